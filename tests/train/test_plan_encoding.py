"""What is encoded before the first step counts in the plan of a training."""

import shutil
from dataclasses import replace

import pytest
from test_plan import parameters_of, planned, tight

from mapo.encode.cache import cache_key
from mapo.encode.fill import begin
from mapo.errors import MapoError
from mapo.train.config import make_config
from mapo.train.plan import at_hand
from mapo.train.plan.at_hand import checked_plan
from mapo.train.plan.disk import disk_of
from mapo.train.plan.fit import smaller_encoding
from mapo.train.plan.subject import open_subject
from tiny import make_vae


def test_what_is_encoded_first_counts_until_the_cache_has_it(tmp_path, sdxl, pairs, cache):
    found = planned(sdxl, pairs, cache=tmp_path / "none")
    encoders = sum(parameters_of(sdxl, part) for part in ("vae", "text_encoder", "text_encoder_2"))
    assert sum(found.encoding.get(kind, 0) for kind in ("mapped", "weights")) == pytest.approx(4 * encoders, rel=0.01)
    assert any(line.startswith("before it ") for line in found.lines())
    assert planned(sdxl, pairs, cache=cache).encoding == {}


@pytest.fixture(scope="module")
def with_a_wide_vae(tmp_path_factory, sdxl):
    folder = shutil.copytree(sdxl, tmp_path_factory.mktemp("models") / "wide")
    shutil.rmtree(folder / "vae")
    make_vae(block_out_channels=(256, 512)).save_pretrained(folder / "vae")
    return folder


def test_where_encoding_alone_does_not_fit_less_is_encoded_at_once(tmp_path, with_a_wide_vae, pairs):
    how = {"cache": tmp_path / "none", "adapter": "lora", "settings": {"train.pairs_per_device": 1}}
    whole = planned(with_a_wide_vae, pairs, **how)
    assert whole.memory < whole.before and "Encoding before it needs more" in whole.line()
    found = planned(with_a_wide_vae, pairs, memory=tight(replace(whole, kinds=whole.encoding)), **how)
    assert not found.fits and found.change.settings == {"data.images_per_batch": 4}
    assert found.change.memory < whole.before
    none = planned(with_a_wide_vae, pairs, memory=tight(replace(whole, kinds={"other": whole.memory + 2**20})), **how)
    assert "No setting makes encoding fit" in none.lines()[-1] and "mapo encode" in none.lines()[-1]


def test_a_training_that_fits_is_refused_where_what_comes_before_it_does_not(
    tmp_path, with_a_wide_vae, pairs, monkeypatch
):  # fmt: skip
    data = {"split": "all", "images_per_batch": 1}
    config = make_config({
        "model": str(with_a_wide_vae), "pairs": str(pairs), "cache": str(tmp_path / "none"), "data": data,
        "adapter": {"kind": "lora"}, "train": {"pairs_per_device": 1},
    })  # fmt: skip
    subject = open_subject(config, "cuda")  # on which no margin is kept
    monkeypatch.setattr(at_hand, "SMALL", 2**20)
    monkeypatch.setattr(at_hand, "room_of", lambda device: subject.memory(config) + 2**12)
    with pytest.raises(MapoError, match="Encoding before it needs more") as refused:
        checked_plan(subject, config)
    assert "No setting makes encoding fit" in str(refused.value) and "A tenth" not in str(refused.value)


def test_a_begun_cache_keeps_its_precision_and_another_one_may_have_half(tmp_path, small_model, pairs):
    config = make_config({
        "model": str(small_model("FluxPipeline")), "pairs": str(pairs), "cache": str(tmp_path / "none"),
        "adapter": {"kind": "lora"}, "data": {"split": "all", "images_per_batch": 1},
    })  # fmt: skip
    subject = open_subject(config, "cuda")
    disk = disk_of(config, subject.model, subject.pairs)
    room = sum(subject.encoding(config, disk).values()) - 1
    assert smaller_encoding(subject, config, disk, room) == {"data.cache_precision": "bfloat16"}
    assert smaller_encoding(subject, config, disk, room, begun=True) is None
    begin(tmp_path / "none", cache_key(subject.model))
    assert smaller_encoding(subject, config, disk, room) is None
