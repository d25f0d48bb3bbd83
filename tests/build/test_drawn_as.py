"""What is told of a drawing may differ from what its pair says, and a picture may have fewer drawings than others."""

from PIL import Image

from mapo.build.against import Own, build_against
from mapo.pairs import PairSet


def test_a_drawing_may_be_told_another_prompt_and_a_picture_may_have_fewer_drawings_and_count_less(tmp_path):
    for number, name in enumerate(("a", "d")):
        Image.new("RGB", (48, 48), (number, 80, 160)).save(tmp_path / f"{name}.png")
    own = [
        Own("a.png", "a red thing", tmp_path / "a.png", drawn_as="a red square"),
        Own("d.png", "a red square", tmp_path / "d.png", drawings=1),
    ]
    build_against(own, "mini", tmp_path / "pairs", tmp_path / "drawn", per_picture=2, hold_out=False, steps=1)
    pairs = PairSet(tmp_path / "pairs")
    assert [(p.prompt, p.meta["rejected_seed"], p.meta.get("rejected_prompt"), p.weight) for p in pairs] == [
        ("a red thing", 0, "a red square", 0.5), ("a red thing", 1, "a red square", 0.5), ("a red square", 2, None, 0.5),
    ]  # fmt: skip
    assert {p.split for p in pairs} == {"train"}
