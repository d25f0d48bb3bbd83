"""What all pages' templates share."""

from pathlib import Path

import pytest

from mapo.pages.templates import environment


def test_a_flag_in_a_sentence_is_never_broken_over_two_lines_and_the_rest_is_escaped():
    template = environment(Path(__file__).parent).from_string("{{ text | flags }}")
    made = template.render(text="Name it with --goal; <say> --goal=-nudity.")
    assert made == (
        'Name it with <span class="flag">--goal</span>; &lt;say&gt; <span class="flag">--goal=-nudity</span>.'
    )
    assert ".flag { white-space: nowrap; }" in environment(Path(__file__).parent).get_template("page.css.j2").render()


@pytest.mark.parametrize("home", ["/home/me", "/home/me/", "/", ""])
def test_a_page_does_not_tell_the_home_folder_of_whoever_makes_it(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    template = environment(Path(__file__).parent).from_string(
        "{{ file }} {{ picture }} {{ told | tojson }} {{ file | place }}"
    )
    file, picture = "/home/me/my-style/run", "data:image/png;base64,/home/me/"
    made = template.render(file=file, picture=picture, told={"file": file})
    told = "~/my-style/run" if home.startswith("/home") else file
    assert made == f'{told} {picture} {{"file": "{told}"}} my-style/run'
