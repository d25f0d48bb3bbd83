"""The published files of Stable Diffusion 3, 3.5 and FLUX.1: opened as they are, without their weights."""

import json
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig

from mapo.models import Frames, find_model, open_model
from mapo.models.noise.flow import ByResolution
from real import REAL, needs_real, published
from tiny import make_flux, make_sd3

# parameters; layers beside which a LoRA is laid; shapes of a prompt's tensors; shift at the model's own size
PUBLISHED = {
    "stable-diffusion-3-medium-diffusers": (2_028_328_000, 24 * 8 - 1, 3.0),
    "stable-diffusion-3.5-large": (8_056_627_520, 38 * 8 - 1, 3.0),
    "FLUX.1-dev": (11_901_408_320, 19 * 12 + 38 * 3, 3.1581929),  # e^1.15
    "FLUX.1-schnell": (11_891_178_560, 19 * 12 + 38 * 3, 1.0),
}

TIED = {"encoder.embed_tokens.weight"}  # of T5, which is its shared.weight under another name


@needs_real("configs")
def test_there_are_published_indexes_of_transformers_and_of_t5():
    found = {index.parent.name for name in PUBLISHED for index in (REAL / "configs" / name).glob("*/*.index*.json")}
    assert found == {"transformer", "text_encoder_2", "text_encoder_3"}


@needs_real("configs")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_opened_without_its_weights(tmp_path, name):
    parameters, layers, shift = PUBLISHED[name]
    model = open_model(find_model(str(published(tmp_path / "m", name))))
    layout = model.layout
    assert (layout.channels, layout.stride, layout.multiple, layout.side) == (16, 8, 16, 1024)
    shape = layout.latent(1024)
    assert model.process.shift_for(shape) == pytest.approx(shift)
    assert isinstance(model.process.shift, ByResolution) == (name == "FLUX.1-dev")
    assert bool(model.distilled) == (name == "FLUX.1-schnell")
    network = deepcopy(model.files.outline(model.denoiser_part, model.denoiser_kind))
    assert sum(p.numel() for p in network.parameters()) == parameters
    for index in (REAL / "configs" / name).glob("*/*.index*.json"):
        part = index.parent.name
        ours = set(model.files.outline(part, model.networks[part]).state_dict())
        assert ours - TIED == set(json.loads(index.read_text())["weight_map"]) - TIED, index
    sizes = torch.tensor([[1024, 1024, 0, 0]])
    text = {key: torch.zeros(1, *shape, device="meta") for key, shape in model.prompt_shapes.items()}
    cond = model.condition(text, Frames.square(sizes, 1024))
    x, t = torch.empty(1, *shape, device="meta"), torch.zeros(1, device="meta")
    cond = {key: value.to("meta") for key, value in cond.items()}
    assert model.predict(network, x, t, cond).shape == (1, *shape)
    network.add_adapter(LoraConfig(r=4, target_modules=list(model.lora_targets)))
    assert sum("lora_A" in key for key, _ in network.named_parameters()) == layers


@needs_real("configs")
def test_the_published_prompts_take_megabytes(tmp_path):
    sd3 = open_model(find_model(str(published(tmp_path / "sd3", "stable-diffusion-3.5-large"))))
    assert sd3.prompt_shapes == {"clip_embeds": (77, 2048), "text_embeds": (2048,), "t5_embeds": (256, 4096)}
    flux = open_model(find_model(str(published(tmp_path / "flux", "FLUX.1-dev"))))
    assert flux.prompt_shapes == {"prompt_embeds": (512, 4096), "text_embeds": (768,)}
    assert 4 * flux.prompt_numbers == 8_391_680


@needs_real("t5_tokenizer")
@pytest.mark.parametrize("make", [make_sd3, make_flux])
def test_with_the_real_tokenizer_of_t5_prompts_have_the_pipelines_tokens(tmp_path, make):
    name = "FLUX.1-dev" if make is make_flux else "stable-diffusion-3.5-large"
    files = find_model(str(published(tmp_path / "m", name)))
    tokenizer = open_model(files).tokenizers()[-1]
    prompts = ["a cat", "", "a photo of an astronaut riding a horse, ünïcode 雪, " * 60]
    ids = tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    assert ids.shape[1] == (512 if make is make_flux else 256)
    assert ids[0, :4].tolist() == [3, 9, 1712, 1] and ids[1, 0] == 1 and ids[2, -1] == 1 and not ids[0, 4:].any()
