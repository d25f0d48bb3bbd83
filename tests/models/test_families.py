import inspect
import json

import pytest
import torch

from mapo.errors import MapoError
from mapo.models import FAMILIES, Family, family_of, find_model, fingerprint


def test_every_family_offers_what_the_contract_asks_for(sdxl):
    family = family_of(find_model(str(sdxl)))
    for name, wanted in inspect.getmembers(Family, inspect.isfunction):
        if name.startswith("_"):
            continue
        offered = list(inspect.signature(getattr(family, name)).parameters)
        assert offered == [p for p in inspect.signature(wanted).parameters if p != "self"], name
    assert family.PARTS and family.LORA_TARGETS


def test_resolution_and_stride_are_read_from_the_model(sdxl):
    model = find_model(str(sdxl))
    family = family_of(model)
    assert (family.resolution(model), family.latent_stride(model)) == (16, 2)
    assert family.scale_latents(model, torch.ones(1, 4, 1, 1)).flatten().tolist() == pytest.approx([0.7] * 4)


def test_latents_are_shifted_and_scaled_per_channel_where_the_vae_says_so(sdxl, tmp_path):
    import shutil

    shutil.copytree(sdxl, tmp_path / "m")
    path = tmp_path / "m" / "vae" / "config.json"
    config = json.loads(path.read_text()) | {"latents_mean": [1, 0, 0, 0], "latents_std": [1, 2, 1, 1]}
    path.write_text(json.dumps(config))
    model = find_model(str(tmp_path / "m"))
    got = family_of(model).scale_latents(model, torch.full((1, 4, 1, 1), 3.0)).flatten().tolist()
    assert got == pytest.approx([1.4, 1.05, 2.1, 2.1])


def test_the_schedule_is_the_models_own(sdxl, sdxl_v):
    one, two = (find_model(str(m)) for m in (sdxl, sdxl_v))
    assert family_of(one).schedule(one).prediction_type == "epsilon"
    schedule = family_of(two).schedule(two)
    assert schedule.prediction_type == "v_prediction" and schedule.num_timesteps == 1000
    assert schedule.alphas_cumprod[-1] < 1e-6 < family_of(one).schedule(one).alphas_cumprod[-1]


def test_the_pipeline_predicts_what_the_denoiser_that_is_trained_predicts(sdxl):
    model = find_model(str(sdxl))
    family = family_of(model)
    pipeline, denoiser = family.pipeline(model, "cpu"), family.load_denoiser(model, "cpu")
    cond = {"prompt_embeds": torch.randn(2, 32, 40), "text_embeds": torch.randn(2, 24), "time_ids": torch.ones(2, 6)}
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(family.predict(denoiser, x, t, cond), family.predict(pipeline.unet, x, t, cond))


def test_another_class_of_pipeline_is_named(sdxl, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "WuerstchenPipeline"}')
    with pytest.raises(MapoError, match="is a WuerstchenPipeline; known are: StableDiffusionXLPipeline"):
        family_of(find_model(str(tmp_path)))
    assert "StableDiffusionXLPipeline" in FAMILIES


def test_the_fingerprint_sees_a_change_of_weights(sdxl, tmp_path):
    import shutil

    shutil.copytree(sdxl / "vae", tmp_path / "vae")
    before = fingerprint(tmp_path, ["vae"])
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)
    assert fingerprint(sdxl, ["vae"]) == before != fingerprint(tmp_path, ["vae"])


def test_a_run_that_points_out_of_its_folder_is_refused(sdxl, tmp_path):
    run = {"base": str(sdxl), "adapter": "full", "denoiser": "../elsewhere"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(MapoError, match="leaves its folder"):
        find_model(str(tmp_path))


def test_a_single_file_is_called_one_with_the_way_to_make_a_folder_of_it(tmp_path, monkeypatch):
    (tmp_path / "juggernautXL.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MapoError, match=r"juggernautXL.safetensors is a single file; .*from_single_file\("):
        find_model("juggernautXL.safetensors")
