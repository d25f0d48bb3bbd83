import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mapo.errors import MapoError
from mapo.files import sha256
from mapo.images import ImageRow, append_images, png_bytes
from mapo.mini import scenes
from mapo.mini.draw import draw
from mapo.scorers import SCORERS, load_scorer, score_images, scorer_names
from mapo.scores import read_scores
from mapo.splits import prompt_id


def drawn(folder, count=12, styles=scenes.STYLES):
    rng = random.Random(4)
    plain = scenes.random_plain_scenes("test", rng)
    rows, data = [], []
    for k in range(count):
        scene = replace(next(plain), style=styles[k % len(styles)], hazard=k % 3 == 0)
        png = png_bytes(Image.fromarray(draw(scene, rng)))
        prompt = scenes.context(scene)
        rows.append(ImageRow(f"{k}.png", prompt_id(prompt), prompt, k, k, sha256(png), "drawn"))
        data.append(png)
    append_images(folder, rows, data)
    return folder


def test_both_judges_score_drawings_as_they_were_drawn(tmp_path):
    table = read_scores(score_images(drawn(tmp_path / "i"), "mini", tmp_path / "s.parquet", images_per_batch=5))
    rows = table.to_pylist()
    assert len(rows) == 12 * 2 * 6
    for row in rows:
        k = row["seed"]
        want = {"prompt_following": 1, "hazard": float(k % 3 == 0)}
        want |= {s.replace(" ", "_"): float(scenes.STYLES[k % 4] == s) for s in scenes.STYLES}
        assert row["value"] == want[row["metric"]], row
    assert {row["scorer"] for row in rows} == set(SCORERS)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_batch_size_and_order_change_nothing(name, tmp_path):
    one = read_scores(score_images(drawn(tmp_path / "i"), name, tmp_path / "a.parquet", images_per_batch=1))
    many = read_scores(score_images(tmp_path / "i", name, tmp_path / "b.parquet", images_per_batch=64))
    key = [("metric", "ascending"), ("seed", "ascending")]
    assert one.sort_by(key).equals(many.sort_by(key))


def test_a_wrong_prompt_is_not_followed():
    scorer = load_scorer("mini-search")
    picture = Image.fromarray(draw(scenes.parse("a small red circle on a gray background")))
    prompts = ["a small red circle on a gray background", "a small red star on a gray background", "zebra"]
    assert list(scorer([picture] * 3, prompts)["prompt_following"]) == [1, 0, 0]
    larger = picture.resize((480, 480), Image.Resampling.NEAREST)
    assert list(scorer([larger], prompts[:1])["prompt_following"]) == [1]


def test_scoring_that_is_interrupted_goes_on_with_the_next_scorer(tmp_path, monkeypatch):
    import mapo.scorers as module

    folder = drawn(tmp_path / "i")
    real = module.load_scorer

    def cut(name):
        if name == "mini-search":
            raise KeyboardInterrupt
        return real(name)

    monkeypatch.setattr(module, "load_scorer", cut)
    with pytest.raises(KeyboardInterrupt):
        score_images(folder, "mini", tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()

    class Done:
        """Loads, but must not be asked again."""

        version = real("mini-learned").version

    monkeypatch.setattr(module, "load_scorer", lambda name: real(name) if name == "mini-search" else Done())
    score_images(folder, "mini", tmp_path / "s.parquet")
    assert read_scores(tmp_path / "s.parquet").num_rows == 12 * 2 * 6


def test_a_scorer_that_gives_no_number_is_refused(tmp_path, monkeypatch):
    import mapo.scorers as module

    class Nan:
        name, version, revision, metrics, needs_reference = "nan", "1", "", ("x",), False

        def __call__(self, pictures, prompts, references=None):
            return {"x": [np.nan] * len(pictures)}

    monkeypatch.setattr(module, "load_scorer", lambda name: Nan())
    with pytest.raises(MapoError, match="nan gave nan for picture"):
        score_images(drawn(tmp_path / "i"), "mini-search", tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()


def test_groups_and_names_are_resolved():
    assert scorer_names("mini,mini-search") == ["mini-learned", "mini-search"]
    with pytest.raises(MapoError, match="Did you mean 'mini-learned'"):
        scorer_names("mini-lerned")
