"""What all pages' templates share."""

from pathlib import Path

from mapo.pages.templates import environment


def test_a_flag_in_a_sentence_is_never_broken_over_two_lines_and_the_rest_is_escaped():
    template = environment(Path(__file__).parent).from_string("{{ text | flags }}")
    made = template.render(text="Name it with --goal; <say> --goal=-nudity.")
    assert made == (
        'Name it with <span class="flag">--goal</span>; &lt;say&gt; <span class="flag">--goal=-nudity</span>.'
    )
    assert ".flag { white-space: nowrap; }" in environment(Path(__file__).parent).get_template("page.css.j2").render()
