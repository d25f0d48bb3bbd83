"""The built-in model, as it is shipped."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline

from mapo.lab.mini import scenes
from mapo.lab.mini.judges import JUDGES, follows
from mapo.lab.mini.pretrain_flow import Settings
from mapo.sample.sample import Sampler, default_sampling
from mapo.worlds import MODELS

pytestmark = pytest.mark.long

MINI, FLOW = MODELS["mini"], MODELS["mini-flow"]


def test_the_model_is_a_whole_sdxl_pipeline_within_its_size():
    index = json.loads((MINI / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    parts = {"vae", "unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}
    assert parts <= index.keys()
    assert sum(f.stat().st_size for f in MINI.rglob("*") if f.is_file()) <= 10e6
    pipeline = StableDiffusionXLPipeline.from_pretrained(MINI, add_watermarker=False)
    assert pipeline.unet.config.addition_embed_type == "text_time"
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_the_second_model_is_a_whole_sd3_pipeline_without_t5_within_its_size():
    index = json.loads((FLOW / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline" and index["text_encoder_3"] == [None, None]
    assert sum(f.stat().st_size for f in FLOW.rglob("*") if f.is_file()) <= 6e6
    settings = json.loads((FLOW.parent / "pretrain-flow-settings.json").read_text())
    steps = [json.loads(line) for line in (FLOW.parent / "pretrain-flow-log.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == settings["steps"] and settings == asdict(Settings())


def test_its_log_and_settings_are_there():
    settings = json.loads((MINI.parent / "pretrain-settings.json").read_text())
    steps = [json.loads(line) for line in (MINI.parent / "pretrain-log.jsonl").read_text().splitlines()]
    assert max(s["step"] for s in steps if s["part"] == "vae") == settings["vae_steps"]
    assert max(s["step"] for s in steps if s["part"] == "denoiser") == settings["steps"]


@pytest.fixture(scope="module", params=["mini", "mini-flow"])
def pictures(request):
    """Prompts and pictures: plain ones, and ones behind a style phrase."""
    sampler = Sampler(request.param)
    made = {}
    for style in ("", "cartoon", "pixel art"):
        prefix = scenes.STYLE_PHRASES[style][1] if style else ""
        jobs = [(prompt, 100) for prompt in scenes.prompts("test", 1)[:24]]
        batch = sampler.batch(jobs, default_sampling(sampler.model, prefix=prefix))
        made[style] = (jobs, np.stack([np.asarray(picture) for picture in batch]))
    return made


@pytest.mark.parametrize("judge", sorted(JUDGES))
def test_it_follows_held_out_prompts_and_shows_the_style_that_is_asked_for(judge, pictures):
    for style, (jobs, stack) in pictures.items():
        seen = JUDGES[judge]()(stack)
        assert np.mean([s.style == (style or "realistic") for s in seen]) >= 0.85, style
        if not style:
            assert np.mean([follows(scenes.parse(p), s) for (p, _), s in zip(jobs, seen, strict=True)]) >= 0.8
