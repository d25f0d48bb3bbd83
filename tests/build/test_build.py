import json
import os

import pytest
from builds import BEST, CARTOON, HOW, PROMPTS, SAFETY, Fussy, Lightness, contents

import mapo.build.build
import mapo.build.work
import mapo.shards
from apart import run_apart
from mapo.build.build import build, describe
from mapo.build.judge import Filter, parse_filter
from mapo.build.recipe import changed_recipe, read_recipe
from mapo.build.remake import remake
from mapo.errors import MapoError
from mapo.pairs.pairs import PairSet, decode_picture, sha256


class NoStars(Fussy):
    """A scorer that goes by the prompt."""

    name, metrics = "no-stars", ("no_star",)

    def __call__(self, pictures, prompts, references=None):
        return {"no_star": [float("star" not in prompt) for prompt in prompts]}


class Never(Fussy):
    name = "never"

    def __call__(self, pictures, prompts, references=None):
        return {"liked": [0.0] * len(pictures)}


def test_pairs_share_prompt_seed_and_noise_and_differ_in_the_prefix(tmp_path, sdxl):
    counts = build(CARTOON, str(sdxl), PROMPTS, 7, tmp_path / "p", prompts_from="some.txt", **HOW)
    pairs = list(PairSet(tmp_path / "p"))
    assert len(pairs) == counts["pairs"] == 7 and counts["judged_out"] == 0
    assert [p.prompt for p in pairs] == [PROMPTS[k % 3] for k in range(7)]
    for k, pair in enumerate(pairs):
        chosen, rejected = pair.meta["chosen"], pair.meta["rejected"]
        assert chosen["seed"] == rejected["seed"] == k // 3
        assert chosen["noise_seed"] == rejected["noise_seed"]
        assert (chosen["prefix"], rejected["prefix"]) == ("Disney style animated image.", "Realistic 8k image.")
    head = json.loads((tmp_path / "p" / "set.json").read_text())
    assert head["provenance"]["model"] == str(sdxl) and len(head["provenance"]["revision"]) == 16
    assert head["sensitive"] is False
    assert head["provenance"]["prompts"] == "some.txt"
    assert head["provenance"]["prompts_sha256"] == sha256("\n".join(PROMPTS).encode())
    assert [f.name for f in tmp_path.iterdir()] == ["p"]


def test_no_more_candidates_are_made_than_the_keeping_rate_asks_for(tmp_path, sdxl):
    how = {"steps": 1, "images_per_batch": 32}
    assert build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "all", **how)["tried"] == 6
    judge = Filter(
        NoStars(), "no_star", threshold=0.5
    )  # keeps two of three: 4 of the first 6, then the 2 of 3 that lack
    counts = build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "some", judges=[judge], **how)
    assert (counts["tried"], counts["judged_out"]) == (9, 3)
    layouts = [p.meta["chosen"]["batch_layout"] for p in PairSet(tmp_path / "some")]
    assert layouts == ["0/0/6", "0/1/6", "0/3/6", "0/4/6", "6/0/3", "6/1/3"]


def test_other_seeds_give_the_two_pictures_other_noise(tmp_path, sdxl):
    build(changed_recipe(CARTOON, seeds="other"), str(sdxl), PROMPTS, 4, tmp_path / "p", **HOW)
    seeds = [(p.meta["chosen"]["seed"], p.meta["rejected"]["seed"]) for p in PairSet(tmp_path / "p")]
    assert seeds == [(0, 1), (0, 1), (0, 1), (2, 3)]
    assert all(p.meta["chosen"]["noise_seed"] != p.meta["rejected"]["noise_seed"] for p in PairSet(tmp_path / "p"))


@pytest.mark.parametrize("where", [2, 3, 4])
def test_an_interrupted_build_goes_on_and_makes_the_same_set(tmp_path, sdxl, monkeypatch, where):
    judge = Filter(Fussy(), "liked", threshold=0.5)
    build(CARTOON, str(sdxl), PROMPTS, 5, tmp_path / "whole", judges=[judge], **HOW)
    real, calls = mapo.build.work.append_images, []

    def cut(*args):
        calls.append(1)
        if len(calls) == where:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(mapo.build.work, "append_images", cut)
    with pytest.raises(KeyboardInterrupt):
        build(CARTOON, str(sdxl), PROMPTS, 5, tmp_path / "cut", judges=[judge], **HOW)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(mapo.build.work, "append_images", real)
    build(CARTOON, str(sdxl), PROMPTS, 5, tmp_path / "cut", judges=[judge], **HOW)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_an_interrupted_judge_goes_on_without_new_pictures(tmp_path, sdxl, monkeypatch):
    from mapo.sample.sample import Sampler

    class Stopped(Fussy):
        calls = 0

        def __call__(self, pictures, prompts, references=None):
            type(self).calls += 1
            if type(self).calls == 2:
                raise KeyboardInterrupt
            return super().__call__(pictures, prompts)

    judge = Filter(Stopped(), "liked", threshold=0.5)
    with pytest.raises(KeyboardInterrupt):
        build(CARTOON, str(sdxl), PROMPTS, 8, tmp_path / "p", judges=[judge], **HOW)
    made, real = [], Sampler.batch
    monkeypatch.setattr(Sampler, "batch", lambda self, jobs, how: made.append(jobs) or real(self, jobs, how))
    build(CARTOON, str(sdxl), PROMPTS, 8, tmp_path / "p", judges=[judge], **HOW)
    again = {(prompt, seed) for jobs in made for prompt, seed in jobs}
    assert not again & {(PROMPTS[k % 3], k // 3) for k in range(8)}  # the first two portions were there
    build(CARTOON, str(sdxl), PROMPTS, 8, tmp_path / "q", judges=[Filter(Fussy(), "liked", threshold=0.5)], **HOW)
    assert contents(tmp_path / "p") == contents(tmp_path / "q")


def test_a_judge_keeps_only_pairs_that_it_lets_pass_and_its_values_are_kept(tmp_path, sdxl):
    judge = Filter(Lightness(), "red")
    counts = build(CARTOON, str(sdxl), PROMPTS, 5, tmp_path / "p", judges=[judge], **HOW)
    opened = PairSet(tmp_path / "p")
    assert len(opened) == 5 and counts["judged_out"] > 0
    for pair in opened:
        (said,) = pair.meta["judges"]
        assert (said["scorer"], said["metric"], said["version"]) == ("lightness", "red", "1")
        assert said["chosen"] > said["rejected"]
        values = Lightness()([opened.image(pair.chosen), opened.image(pair.rejected)], [pair.prompt] * 2)["red"]
        assert values == [said["chosen"], said["rejected"]]


def test_a_judge_that_keeps_too_few_is_told_and_another_judge_finds_the_pictures(tmp_path, sdxl, monkeypatch):
    with pytest.raises(MapoError, match="Of 10 tried pairs only 0 were kept"):
        build(CARTOON, str(sdxl), PROMPTS, 2, tmp_path / "p", judges=[Filter(Never(), "liked")], **HOW)
    assert not (tmp_path / "p").exists()
    from mapo.sample.sample import Sampler

    monkeypatch.setattr(Sampler, "batch", None)
    build(CARTOON, str(sdxl), PROMPTS, 2, tmp_path / "p", **HOW)
    assert len(PairSet(tmp_path / "p")) == 2 and [f.name for f in tmp_path.iterdir()] == ["p"]


def test_other_settings_are_refused_with_what_differs_and_what_to_delete(tmp_path, sdxl):
    with pytest.raises(MapoError, match="only 0 were kept"):
        build(CARTOON, str(sdxl), PROMPTS, 1, tmp_path / "p", judges=[Filter(Never(), "liked")], **HOW)
    message = r"unfinished build of .*/p lies in .*/\.p\.build\.partial, made with other settings: sampling\.steps \(2, now 3\)\. .*delete"
    with pytest.raises(MapoError, match=message):
        build(CARTOON, str(sdxl), PROMPTS, 1, tmp_path / "p", steps=3, images_per_batch=4)
    with pytest.raises(MapoError, match=r"recipe\.about \(.*now.*\), recipe\.chosen\.prefix \("):
        build(read_recipe("pick-style-pixel-art"), str(sdxl), PROMPTS, 1, tmp_path / "p", **HOW)
    with pytest.raises(MapoError, match=r"other settings: prompts \("):
        build(CARTOON, str(sdxl), PROMPTS[:2], 1, tmp_path / "p", **HOW)


def test_the_best_and_the_worst_of_k_become_a_pair(tmp_path, sdxl):
    counts = build(BEST, str(sdxl), PROMPTS, 5, tmp_path / "p", judges=[Filter(Lightness(), "all")], **HOW)
    assert counts["tried"] == 5
    for k, pair in enumerate(PairSet(tmp_path / "p")):
        seeds = {pair.meta[side]["seed"] for side in ("chosen", "rejected")}
        assert len(seeds) == 2 and seeds <= {3 * (k // 3) + j for j in range(3)}
        assert pair.meta["judges"][0]["chosen"] > pair.meta["judges"][0]["rejected"]
        assert pair.meta["candidates"] == 3
    with pytest.raises(MapoError, match="name a judge that orders them"):
        build(BEST, str(sdxl), PROMPTS, 5, tmp_path / "q", **HOW)
    with pytest.raises(MapoError, match="known only afterwards which picture is rejected"):
        build(
            BEST, str(sdxl), PROMPTS, 5, tmp_path / "q", judges=[Filter(Lightness(), "all")],
            keep="rejected-as-latents", **HOW,
        )  # fmt: skip


# Context prompts


def test_pictures_are_made_from_context_prompts_and_training_sees_them(tmp_path, sdxl):
    given = ["a red square, watercolor", "watercolor", "a blue heart, 8k", "a red square, 4k", "a green star"]
    recipe = changed_recipe(read_recipe("pick-style-cartoon-v2"))
    judge = Filter(Lightness(), "all", threshold=0.0)
    with pytest.raises(MapoError, match="--context rules, local:MODEL or endpoint:URL, or none"):
        build(recipe, str(sdxl), given, 3, tmp_path / "p", judges=[judge], **HOW)
    with pytest.raises(MapoError, match="keeps only pairs whose chosen picture a judge puts above 5"):
        build(recipe, str(sdxl), given, 3, tmp_path / "p", context="rules", **HOW)
    counts = build(recipe, str(sdxl), given, 3, tmp_path / "p", judges=[judge], context="rules", **HOW)
    pairs = list(PairSet(tmp_path / "p"))
    assert [p.prompt for p in pairs] == ["a red square", "a blue heart", "a green star"]
    assert [p.meta["given_prompt"] for p in pairs] == [given[0], given[2], given[4]]
    assert (counts["no_context"], counts["repeats"]) == (1, 1)
    assert pairs[0].meta["context_by"].startswith("rules 1")


# Safety


def test_prompts_that_could_mean_minors_are_never_used_and_are_counted(tmp_path, sdxl, heard):
    given = ["a girl with a kite", *PROMPTS, "Schoolyard at noon", "a sketch of a 12-year-old on a swing"]
    counts = build(SAFETY, str(sdxl), given, 6, tmp_path / "p", **HOW)
    opened = PairSet(tmp_path / "p")
    assert {p.prompt for p in opened} == set(PROMPTS) and counts["minors"] == 3
    assert "3 of 6 prompts name or could mean minors and are not used" in heard()
    assert opened.info["sensitive"] is True
    assert opened.info["provenance"]["counts"]["minors"] == 3 and opened.info["provenance"]["minors_list"] == "1"
    with pytest.raises(MapoError, match="The only prompt could mean minors, so nothing can be made"):
        build(SAFETY, str(sdxl), given[:1], 6, tmp_path / "q", **HOW)
    with pytest.raises(MapoError, match="rejected prefix 'Teen image.' could mean a minor"):
        build(changed_recipe(SAFETY, ["rejected=Teen image."]), str(sdxl), PROMPTS, 1, tmp_path / "q", **HOW)


def test_one_prompt_that_could_mean_a_minor_is_told_as_one(tmp_path, sdxl, heard):
    build(SAFETY, str(sdxl), ["a girl with a kite", PROMPTS[0]], 1, tmp_path / "p", **HOW)
    assert "1 of 2 prompts names or could mean minors and is not used." in heard()


def test_what_was_counted_is_said_with_one_of_each_and_with_several():
    names = ("tried", "judged_out", "unjudged", "equal_pictures", "repeats", "minors", "no_context")
    assert describe(dict.fromkeys(names, 1)) == (
        "1 tried, 1 judged out, 1 unjudged, 1 with equal pictures, 1 repeat, 1 prompt that could mean minors, "
        "1 prompt without a context"
    )
    some = {**dict.fromkeys(names, 0), "tried": 1_000, "repeats": 2, "minors": 2}
    assert describe(some) == "1,000 tried, 2 repeats, 2 prompts that could mean minors"


def test_a_context_that_could_mean_a_minor_is_not_used_either(tmp_path, sdxl, monkeypatch):
    class Adds:
        name = "adds"

        def __call__(self, prompts):
            for prompt in prompts:
                yield prompt, "a boy and a heart" if "heart" in prompt else prompt

    monkeypatch.setattr("mapo.build.build.open_rewriter", lambda how, model: Adds())
    counts = build(SAFETY, str(sdxl), PROMPTS, 4, tmp_path / "p", context="rules", **HOW)
    assert {p.prompt for p in PairSet(tmp_path / "p")} == {"a red square", "a green star"}
    assert counts["minors"] == 1


def test_prompts_that_are_too_long_are_named_once(tmp_path, sdxl, heard):
    long = [f"a red square {'and a blue heart ' * n}" for n in (10, 11, 12, 13, 14, 15, 16)]
    build(CARTOON, str(sdxl), [*PROMPTS, *long], 10, tmp_path / "p", **HOW)
    said = heard()
    assert said.count("7 of 10 prompts are longer than the model's") == said.count("tokens") == 1


BARS_OFF = """
import sys
from functools import partialmethod
from pathlib import Path
import tqdm
tqdm.tqdm.__init__ = partialmethod(tqdm.tqdm.__init__, disable=True)  # as it is where tqdm was loaded with the variable
import mapo.build.build
from mapo.build.build import build
from mapo.encode.fill import encode
from mapo.check.check import check_pairs
from mapo.export.pairs import export_pairs
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.build.recipe import read_recipe
from mapo.sample.sample import sample
from mapo.score.score import score

folder, model = Path(sys.argv[1]), sys.argv[2]
write = mapo.build.build._write
def stop(*given):
    raise KeyboardInterrupt
for mapo.build.build._write in (stop, write):
    try:
        build(read_recipe("pick-style-cartoon"), model, ["a red square"], 4, folder / "p", steps=1, images_per_batch=2)
    except KeyboardInterrupt:
        pass
pairs, found = PairSet(folder / "p"), find_model(model)
for times in range(2):
    check_pairs(pairs, folder / "check.html")
    encode(open_model(found), pairs, folder / "cache")
    sample(model, "a red square", [0, 1], folder / "images", steps=1)
    score(folder / "images", "mini", folder / "scores.parquet")
export_pairs(pairs, "preference", folder / "export")
"""


def test_verbs_go_on_where_bars_are_switched_off(tmp_path, sdxl):
    done = run_apart("-c", BARS_OFF, tmp_path, sdxl, env={**os.environ, "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr


def broken(*given):
    raise KeyboardInterrupt


def test_a_build_goes_on_with_fewer_pictures_at_a_time_and_uses_what_is_there(tmp_path, sdxl, monkeypatch):
    def made(work):
        return {p: p.stat().st_mtime_ns for p in work.rglob("*.png")}

    with monkeypatch.context() as patch:
        patch.setattr("mapo.build.build._write", broken)
        with pytest.raises(KeyboardInterrupt):
            build(CARTOON, str(sdxl), PROMPTS, 4, tmp_path / "p", steps=2, images_per_batch=4)
    before = made(tmp_path / ".p.build.partial")
    assert len(before) == 8
    with monkeypatch.context() as patch:
        patch.setattr("mapo.build.build._write", broken)
        with pytest.raises(KeyboardInterrupt):
            build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "p", steps=2, images_per_batch=2)
    after = made(tmp_path / ".p.build.partial")
    assert before.items() <= after.items() and len(after) == 12  # 4 pairs as they were, 2 new ones
    assert build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "p", steps=2, images_per_batch=2)["pairs"] == 6
    sizes = [pair.meta["chosen"]["batch_layout"].split("/")[2] for pair in PairSet(tmp_path / "p")]
    assert sizes == ["4"] * 4 + ["2"] * 2
    for pair in (PairSet(tmp_path / "p")[0], PairSet(tmp_path / "p")[5]):
        assert [sha256(png) for png in remake(pair)] == [pair.chosen, pair.rejected]


def test_one_prompt_needs_no_list(tmp_path, sdxl):
    build(CARTOON, str(sdxl), "a red fox", 2, tmp_path / "p", **HOW)
    assert {pair.prompt for pair in PairSet(tmp_path / "p")} == {"a red fox"}


def test_the_built_in_model_and_judges_build_on_the_cpu(tmp_path):
    judges = [parse_filter("mini-learned:cartoon"), parse_filter("mini-learned:prompt_following:0.5")]
    prompts = ["a small red circle on a gray background", "a large blue star on a pink background"]
    build(CARTOON, "mini", prompts, 2, tmp_path / "p", judges=judges, steps=8)
    (first, second) = PairSet(tmp_path / "p")
    assert [j["metric"] for j in first.meta["judges"]] == ["cartoon", "prompt_following"]
    assert (first.meta["judges"][0]["chosen"], first.meta["judges"][0]["rejected"]) == (1.0, 0.0)
    assert decode_picture(PairSet(tmp_path / "p").image_bytes(second.chosen)).size == (48, 48)


def test_a_build_that_another_process_has_finished_meanwhile_leaves_nothing_behind(tmp_path, sdxl, monkeypatch):
    import mapo.build.build as module

    how = {"steps": 1, "images_per_batch": 2}
    opened = module.open_work

    def late(out, *rest):
        """The work folder is made only when the other process is done with its own."""
        monkeypatch.setattr(module, "open_work", opened)
        build(CARTOON, str(sdxl), PROMPTS, 4, out, **how)
        return opened(out, *rest)

    monkeypatch.setattr(module, "open_work", late)
    with pytest.raises(MapoError, match="already exists"):
        build(CARTOON, str(sdxl), PROMPTS, 4, tmp_path / "p", **how)
    assert [path.name for path in tmp_path.iterdir()] == ["p"] and len(PairSet(tmp_path / "p")) == 4
