import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapo.build.minors import WORDS, names_minor
from mapo.lab.mini import scenes

HITS = (
    """
a girl with a kite|GIRLS|a boy's hat|school-girl|Schoolyard at noon|1girl, solo, standing|2boys|t33n|g1rl|l0li|k1d
ｇｉｒｌ|gi\u200brl|a 16 year old woman|16yo|17 y/o|aged 12|age: 9|a sixteen-year-old|twelve years old|6 months old
preteen|pre-teen|teen-age party|high school|5th grade|a goat kid|niña|nina|Mädchen|少女|女の子|소녀|девочка|étudiante
school_uniform|cowboy|a young woman|13-17 years|13 to 17 years|under 18|tomboys|garçon|schoolgirls|petite|12 ans
gіrl in a park|sсhооlgіrl|bοy|chibi style|16 岁|barely legal|little sister|लड़की|बच्चा|طفل|ребёнок|babysitter|childproof|a student|a minor key
kindergarten|toddlers|infant|underage|under-age|a babe in arms|youth|daughter|lolita|0 days, 3 weeks old|grade 7
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
MISSES = (
    """
boycott|kidney|a skid mark|canteen|a kind of bird|a barn|a 30 year old woman|25yo man|aged 45|velveteen|a red square
an 18 year old|a 116 year old tree|a scholar|Boyd|kidnapper|a scolding|18-25 years|a person|sonic|season|8k|in 1912
f-16 jet|stage 3|page 12|2 people|19 years|100 days of rain|image 12|nineteen year old|twenty-one year old
engagement|a woman, 40 years old|menorah|Cubist painting|tote bag|sunny|two men playing chess|a nude on a sofa
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


@pytest.mark.parametrize("prompt", HITS)
def test_what_names_or_could_mean_a_minor_is_found(prompt):
    assert names_minor(prompt)


@pytest.mark.parametrize("prompt", MISSES)
def test_what_names_none_passes(prompt):
    assert names_minor(prompt) is None


def test_the_words_that_were_found_are_said():
    assert names_minor("Two GIRLS and a dog") == "girls"
    assert names_minor("a woman aged 17, smiling") == "aged 17"


def test_no_prompt_of_the_mini_world_is_left_out():
    assert not [p for split in ("train", "validation", "test") for p in scenes.prompts(split) if names_minor(p)]


@pytest.mark.parametrize("frame", ["a {} in a park", "{}", "{}, 8k", "the {}'s hat", "x-{}_y"])
def test_every_word_of_the_list_is_found_in_any_case_and_place(frame):
    missed = [
        w for word in sorted(WORDS) for w in (word, word.upper(), word.title()) if not names_minor(frame.format(w))
    ]
    assert not missed


def test_a_turkish_word_is_found_in_capitals():
    assert names_minor("bir KIZ") and names_minor("bir kız")


@given(st.integers(0, 120), st.sampled_from(["a {} year old man", "a {}-year-old man", "man ({}yo)", "a man aged {}"]))
def test_ages_are_told_apart_at_eighteen(age, frame):
    assert bool(names_minor(frame.format(age))) == (0 < age < 18)


@given(st.text())
def test_any_text_is_read(text):
    assert names_minor(text) is None or names_minor(text)
