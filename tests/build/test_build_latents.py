"""Rejected pictures that are kept as latents and never lie on a disk."""

import json
from pathlib import Path

import pytest
from builds import HOW, PROMPTS, SAFETY, Fussy, Lightness, contents

import mapo.build.build
import mapo.build.work
import mapo.shards
from mapo.build.build import build
from mapo.build.judge import Filter
from mapo.build.remake import remake
from mapo.encode.cache import Cache, cache_key
from mapo.encode.fill import encode, lacking
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.pairs.pairs import PairSet, sha256
from tiny import make_sdxl


def hidden_bytes(folder):
    """Every file below a folder and every picture that one of them holds."""
    return [f.read_bytes() for f in folder.rglob("*") if f.is_file()]


def test_rejected_pictures_kept_as_latents_are_on_no_disk_at_no_time(tmp_path, sdxl, monkeypatch):
    plain, out = tmp_path / "plain" / "p", tmp_path / "hidden" / "p"
    build(SAFETY, str(sdxl), PROMPTS, 6, plain, **HOW)
    rejected = [PairSet(plain).image_bytes(p.rejected) for p in PairSet(plain)]
    real, writes = Path.write_bytes, []
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: writes.append(sha256(data)) or real(self, data))
    real_add, seen = mapo.build.work.Work.add, []

    def look(self, side, rows, data):
        real_add(self, side, rows, data)
        seen.append(side)
        assert not any(png in file for png in rejected for file in hidden_bytes(tmp_path / "hidden"))

    monkeypatch.setattr(mapo.build.work.Work, "add", look)
    build(
        SAFETY,
        str(sdxl),
        PROMPTS,
        6,
        out,
        keep="rejected-as-latents",
        judges=[Filter(Lightness(), "all", threshold=0.0)],
        **HOW,
    )
    opened = PairSet(out)
    assert seen == ["chosen", "rejected"] * 2
    assert [(p.id, p.chosen, p.rejected) for p in opened] == [(p.id, p.chosen, p.rejected) for p in PairSet(plain)]
    assert not set(writes) & {sha256(png) for png in rejected} and writes
    assert not any(png in file for png in rejected for file in hidden_bytes(out))
    for pair in opened:
        assert opened.keeps(pair.chosen) and not opened.keeps(pair.rejected)
        with pytest.raises(MapoError):
            opened.image_bytes(pair.rejected)
        assert [sha256(png) for png in remake(pair)] == [pair.chosen, pair.rejected]


def test_an_interrupted_build_of_latents_goes_on(tmp_path, sdxl, monkeypatch):
    how = {"keep": "rejected-as-latents", "judges": [Filter(Fussy(), "liked", threshold=0.5)], **HOW}
    build(SAFETY, str(sdxl), PROMPTS, 6, tmp_path / "whole", **how)
    real, calls = mapo.build.work.append_images, []

    def cut(*args):
        calls.append(1)
        if len(calls) == 4:  # latents and judgement of the second portion are there, its rows are not
            raise KeyboardInterrupt
        real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapo.build.work, "append_images", cut)
        with pytest.raises(KeyboardInterrupt):
            build(SAFETY, str(sdxl), PROMPTS, 6, tmp_path / "cut", **how)
    with pytest.raises(MapoError, match=r"made with other settings: judges"):
        build(SAFETY, str(sdxl), PROMPTS, 6, tmp_path / "cut", **(how | {"judges": []}))
    build(SAFETY, str(sdxl), PROMPTS, 6, tmp_path / "cut", **how)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_training_on_rejected_latents_is_training_on_the_pictures(tmp_path, sdxl):
    from mapo.train.config import make_config
    from mapo.train.train import train

    model = open_model(find_model(str(sdxl)))
    for keep in ("pictures", "rejected-as-latents"):
        folder = tmp_path / keep
        build(SAFETY, str(sdxl), PROMPTS, 6, folder / "p", keep=keep, **HOW)
        values = {
            "model": str(sdxl), "pairs": str(folder / "p"), "data": {"flip": True, "split": "all"},
            "train": {"steps": 2, "pairs_per_step": 4},
        }  # fmt: skip
        train(make_config(values), folder / "run")
    logs = [
        [json.loads(line)["loss"] for line in (tmp_path / keep / "run" / "metrics.jsonl").read_text().splitlines()]
        for keep in ("pictures", "rejected-as-latents")
    ]
    assert len(logs[0]) == 2 and logs[0] == pytest.approx(logs[1], rel=1e-4)
    opened = PairSet(tmp_path / "rejected-as-latents" / "p")
    encode(model, opened, tmp_path / "no-flip")  # mirrored latents are left out where nobody asks for them
    read = Cache(tmp_path / "no-flip", cache_key(model))
    assert not any(lacking(opened, read.index))
    with pytest.raises(MapoError, match="lacks picture"):
        read.latents(opened[0].rejected, True)


def test_latents_of_another_vae_or_resolution_are_refused_in_a_sentence(tmp_path, sdxl):
    other = make_sdxl(tmp_path / "other", seed=5)
    build(SAFETY, str(sdxl), PROMPTS, 3, tmp_path / "p", keep="rejected-as-latents", **HOW)
    model = open_model(find_model(str(other)))
    with pytest.raises(MapoError, match=r"only as latents of .*sdxl at 16 pixels, which .*other at 16 cannot use"):
        encode(model, PairSet(tmp_path / "p"), tmp_path / "c")
    model = open_model(find_model(str(sdxl)))
    with pytest.raises(MapoError, match=r"at 16 pixels, which .* at 32 cannot use"):
        encode(model, PairSet(tmp_path / "p"), tmp_path / "d", resolution=32)
    build(SAFETY, str(sdxl), PROMPTS, 3, tmp_path / "q", keep="rejected-as-latents", latents_for=str(other), **HOW)
    model = open_model(find_model(str(other)))
    encode(model, PairSet(tmp_path / "q"), tmp_path / "e")
    with pytest.raises(MapoError, match="--latents-for goes with"):
        build(SAFETY, str(sdxl), PROMPTS, 3, tmp_path / "r", latents_for=str(other), **HOW)
