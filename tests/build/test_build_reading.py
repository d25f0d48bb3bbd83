"""Judges that read: models behind an address, which answer in words."""

import base64

import pytest
from builds import CARTOON, HOW

from mapo.build.build import build
from mapo.build.judge import parse_filter
from mapo.build.recipe import read_recipe
from mapo.errors import MapoError
from mapo.pairs.pairs import PairSet

# A judge that sees and reads


CAPTIONS = [f"a small {colour} circle on a gray background" for colour in ("red", "blue", "green", "yellow")]
ANSWERS = {"red": "Score: 8", "blue": "Score: 5", "green": "I would rather not.", "yellow": "Score: 6"}


@pytest.fixture
def reader(monkeypatch):
    """A server on loopback that judges by the colour in the request, and what it was asked."""
    from chat_server import chat_server, said

    monkeypatch.setattr("mapo.score.scorers.endpoint.SECONDS_TO_WAIT", (0, 0, 0))

    def answer(body):
        text = body["messages"][0]["content"][1]["text"]
        return said(next(words for colour, words in ANSWERS.items() if colour in text))

    with chat_server(answer) as (url, asked):
        yield f"vlm@endpoint:{url}#reader:vlm_score", asked


def test_a_v2_recipe_keeps_what_a_reading_judge_puts_above_5(tmp_path, reader, capsys):
    from mapo.cli import cli

    judge, asked = reader
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS))
    command = ["build", "pick-style-cartoon-v2", "--model", "mini", "--prompts", str(tmp_path / "prompts.txt"),
               "--num-pairs", "2", "--context", "none", "--steps", "2", "--images-per-batch", "4",
               "--judge", judge, "--out", str(tmp_path / "p")]  # fmt: skip
    cli.main(command, standalone_mode=False)
    opened = PairSet(tmp_path / "p")
    assert [p.prompt for p in opened] == [CAPTIONS[0], CAPTIONS[3]]
    verdicts = [p.meta["judges"][0] for p in opened]
    assert [(v["scorer"], v["metric"], v["threshold"]) for v in verdicts] == [("vlm@reader", "vlm_score", 5.0)] * 2
    assert [(v["chosen"], v["rejected"]) for v in verdicts] == [(8.0, None), (6.0, None)]
    counts = opened.info["provenance"]["counts"]
    assert (counts["tried"], counts["judged_out"], counts["unjudged"]) == (4, 1, 1)
    said = capsys.readouterr().out
    assert "vlm@reader: 1 of 4 pictures has no score" in said and "1 judged out, 1 unjudged)" in said
    texts = [body["messages"][0]["content"][1]["text"] for _, _, body in asked]
    assert len(texts) == 3 + 4  # each chosen picture once, the one that got no number four times, none rejected
    assert all(f"\nDisney style animated image. {CAPTIONS[0][:8]}" in text for text in texts)
    sent = {body["messages"][0]["content"][0]["image_url"]["url"] for _, _, body in asked}
    chosen = [base64.b64encode(opened.image_bytes(p.chosen)).decode() for p in opened]
    assert len(sent) == 4 and all(f"data:image/png;base64,{picture}" in sent for picture in chosen)


def test_what_a_judge_gave_no_number_is_kept_as_such_when_a_build_goes_on(tmp_path, sdxl, reader, monkeypatch):
    judge, asked = reader
    arguments = (read_recipe("pick-style-cartoon-v2"), str(sdxl), CAPTIONS)
    with pytest.raises(MapoError, match=r"only 0 were kept \(0 judged out, 5 without a judge's number"):
        build(*arguments[:2], CAPTIONS[2:3], 1, tmp_path / "q", judges=[parse_filter(judge)], context="none", **HOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mapo.build.build._write", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(*arguments, 2, tmp_path / "p", judges=[parse_filter(judge)], context="none", **HOW)
    before = len(asked)
    build(*arguments, 2, tmp_path / "p", judges=[parse_filter(judge)], context="none", **HOW)
    assert [p.prompt for p in PairSet(tmp_path / "p")] == [CAPTIONS[0], CAPTIONS[3]] and len(asked) == before


def test_an_endpoint_that_is_gone_stops_a_build_that_can_go_on(tmp_path, sdxl, monkeypatch):
    monkeypatch.setattr("mapo.score.scorers.endpoint.SECONDS_TO_WAIT", ())
    recipe = read_recipe("pick-style-cartoon-v2")
    judge = parse_filter("vlm@endpoint:http://127.0.0.1:9/v1#m:vlm_score")
    with pytest.raises(MapoError, match=r"vlm: http://127\.0\.0\.1:9/v1/chat/completions gave no answer"):
        build(recipe, str(sdxl), CAPTIONS, 9, tmp_path / "p", judges=[judge], context="none", **HOW)
    assert (tmp_path / ".p.build.partial" / "0-of-1" / "chosen" / "manifest.jsonl").exists()


def test_a_reading_judge_without_a_threshold_sees_both_pictures_and_the_same_request(tmp_path, sdxl, reader):
    judge, asked = reader
    with pytest.raises(MapoError, match="only 0 were kept"):  # it says the same of both
        build(CARTOON, str(sdxl), CAPTIONS[:1], 1, tmp_path / "p", judges=[parse_filter(judge)], **HOW)
    texts = {body["messages"][0]["content"][1]["text"] for _, _, body in asked}
    assert len(asked) == 10 and len(texts) == 1 and "Disney style animated image. a small red" in texts.pop()
