"""What training sees of a set, and that every verb counts the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apart import run_apart
from data_fixtures import make_picture
from mapo.encode.frame import crop, frame, share_cut_away, square
from mapo.encode.seen import choose, choose_any, excess_tokens, view_of, what_training_sees
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.pairs import PairSet, PairWriter


@pytest.fixture(scope="module")
def mini():
    model = find_model("mini")
    return open_model(model)


@given(st.integers(2, 5000), st.integers(2, 5000), st.sampled_from([16, 48, 512, 1024]))
@settings(deadline=None)
def test_the_frame_of_many_pictures_is_that_of_each_and_holds_the_square(width, height, side):
    wide, high, left, top = (int(v) for v in frame(width, height, side))
    assert min(wide, high) == side and 0 <= left <= wide - side and 0 <= top <= high - side
    scale = side / min(width, height)
    assert (wide, high) == (max(side, round(width * scale)), max(side, round(height * scale)))
    many = frame([width, 640], [height, 480], side)
    assert [int(v[0]) for v in many] == [wide, high, left, top]
    assert 0 <= share_cut_away(width, height, side) < 1


def test_three_quarters_of_a_panorama_are_cut_away():
    assert share_cut_away(192, 48, 48) == pytest.approx(0.75)
    assert share_cut_away(48, 192, 48) == pytest.approx(0.75)
    assert share_cut_away(64, 64, 48) == 0
    picture = Image.new("RGB", (192, 48), "red")
    picture.paste("blue", (72, 0, 120, 48))
    middle, left, top = crop(picture, square(48))
    assert (middle.size, left, top) == ((48, 48), 72, 0) and middle.getcolors() == [(48 * 48, (0, 0, 255))]


WORDS = st.sampled_from(
    ["a fox", "ünïcode", "İstanbul", "ΟΔΟΣ", "日本語", "don't", "12345", "<|endoftext|>", "e\u0301", "…", ""]
)
TEXTS = st.lists(WORDS | st.text(max_size=12), max_size=12).flatmap(
    lambda words: st.sampled_from([" ", "  ", "\t", "\n", "\u00a0", ","]).map(lambda by: by.join(words))
)


@given(st.lists(TEXTS, min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_tokens_are_counted_as_the_tokenizer_counts_them(mini, texts):
    view = view_of(mini)
    encodable = [t.encode("utf-8", "ignore").decode() for t in texts]
    lengths = [len(ids) for ids in view.tokenizers[0](encodable, truncation=False, verbose=False).input_ids]
    assert excess_tokens(view, encodable).tolist() == [max(0, n - view.most_tokens) for n in lengths]


def write(folder: Path, *rows: dict) -> PairSet:
    with PairWriter(folder, {"made": "by a test"}) as writer:
        for k, row in enumerate(rows):
            size = row.pop("size", (48, 48))
            prompt = row.pop("prompt", f"prompt {k}")
            writer.add_pair(prompt, make_picture((k, 1, 0), size), make_picture((k, 2, 0), size), **row)
    return PairSet(folder)


def test_it_is_told_what_is_trained_on_and_what_is_left_out(tmp_path, mini):
    long = "a red circle " * 30
    pairs = write(
        tmp_path / "set",
        {"split": "train"}, {"split": "train", "size": (96, 48)}, {"split": "train", "prompt": long},
        {"split": "train", "prompt": long, "size": (50, 48)}, {"split": "train", "preference": 0.5, "size": (96, 48)},
        {"split": "validation", "preference": 0.5}, {"split": "test", "size": (96, 48)},
    )  # fmt: skip
    seen = what_training_sees(pairs, mini, split="train", ties="drop", resolution=None)
    assert seen.rows.tolist() == [0, 1, 2, 3]
    assert (seen.held_out, seen.ties, seen.ties_kept, seen.cropped, seen.cut_prompts) == (2, 1, False, 2, 1)
    assert seen.line() == (
        "Training on 4 pairs; 2 held out (validation, test); 1 tie left out, 2 pictures cropped by more than a tenth, "
        "1 prompt cut at 32 tokens."
    )
    kept = what_training_sees(pairs, mini, split="train", ties="keep", resolution=None)
    assert kept.rows.tolist() == [0, 1, 2, 3, 4] and kept.cropped == 4 and "1 tie kept" in kept.line()
    every = what_training_sees(pairs, mini, split="all", ties="keep", resolution=None)
    assert len(every.rows) == 7 and every.held_out == 0 and every.ties == 2


def test_a_plain_set_says_only_its_number(tmp_path, mini):
    pairs = write(tmp_path / "set", {"split": "train"}, {"split": "train"})
    assert what_training_sees(pairs, mini).line() == "Training on 2 pairs."


def test_nothing_to_train_on_is_an_error_that_says_what_to_do(tmp_path, mini):
    pairs = write(tmp_path / "set", {"split": "test"}, {"split": "validation", "preference": 0.5})
    with pytest.raises(MapoError, match=r"has no pairs in the split 'train'; try --set data.split=all"):
        what_training_sees(pairs, mini)
    with pytest.raises(MapoError, match=r"has no pairs but 1 tie in the split 'validation'; keep ties with --set"):
        choose(pairs, "validation", "drop")
    assert not len(choose_any(pairs, "train").rows)


def test_mismatch_counts_the_ties_that_training_counts(tmp_path):
    from mapo.mismatch.material import choose_pairs

    pairs = write(tmp_path / "set", {"split": "test"}, {"split": "train", "preference": 0.5})
    with pytest.raises(MapoError, match=r"has no pairs but 1 tie in the split 'train'; try --split all"):
        choose_pairs(pairs, "train", 8, 0)
    with pytest.raises(MapoError, match=r"has no pairs in the split 'validation'; try --split all"):
        choose_pairs(pairs, "validation", 8, 0)


def test_a_prompt_that_is_too_long_makes_no_library_speak(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mapo.pairs import PairSet\n"
        "from mapo.encode.seen import what_training_sees; from mapo.models import find_model, open_model\n"
        "print(what_training_sees(PairSet(Path(sys.argv[1])), open_model(find_model('mini'))).line())"
    )
    write(tmp_path / "set", {"split": "train", "prompt": "a red circle and " * 300})
    done = run_apart("-c", code, tmp_path / "set")
    assert done.stdout == "Training on 1 pair; 1 prompt cut at 32 tokens.\n"
    assert "sequence length" not in done.stderr
