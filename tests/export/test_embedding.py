"""A token that was learned, in the programs that people draw with."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from mapo.errors import MapoError
from mapo.export.verb import export
from mapo.models import find_model, open_model
from mapo.train.config import make_config
from mapo.train.train import train
from tiny import make_pairs, make_sd, make_sdxl

PROMPTS = ["a photo of <dog> on red", "a small red circle"]
MAKERS = {"sdxl": make_sdxl, "sd": make_sd}


@pytest.fixture(scope="module", params=MAKERS)
def work(request, tmp_path_factory):
    """A folder with a base and a run that learned a token, with LoRAs on denoiser and text encoders."""
    folder = tmp_path_factory.mktemp(request.param)
    how = {"text": {"eos_token_id": 2}} if request.param == "sdxl" else {}  # as in the files of SDXL
    MAKERS[request.param](folder / "base", **how)
    make_pairs(folder / "pairs", 2, prompts=PROMPTS)
    values = {
        "model": str(folder / "base"), "pairs": str(folder / "pairs"), "optim": {"lr": 1e-2, "token_lr": 1e-2},
        "adapter": {"kind": "lora", "rank": 2, "text_encoders": True, "token": "<dog>", "token_from": "star"},
        "train": {"steps": 2, "pairs_per_step": 2},
    }  # fmt: skip
    train(make_config(values), folder / "run")
    return folder


def encoded(pipeline) -> list[torch.Tensor]:
    """All that a pipeline makes of the prompts, as it is given to the denoiser."""
    with torch.no_grad():
        found = pipeline.encode_prompt(
            PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return [value for value in found if value is not None]


def ours(work: Path):
    return open_model(find_model(str(work / "run"))).pipeline("cpu", torch.float32)


def assert_equal(one, two, atol=2e-6):
    for mine, theirs in zip(encoded(one), encoded(two), strict=True):
        assert torch.allclose(mine, theirs, atol=atol)


def test_diffusers_loads_the_embedding_and_the_lora_and_encodes_prompts_as_we_do(work):
    export(str(work / "run"), "embedding", work / "dog", licence="openrail++")
    export(str(work / "run"), "lora", work / "lora", licence="openrail++")
    rows = load_file(work / "dog" / "dog.safetensors")
    widths = {name: tuple(value.shape) for name, value in rows.items()}
    is_xl = (work / "base" / "text_encoder_2").exists()
    assert widths == ({"clip_l": (1, 16), "clip_g": (1, 24)} if is_xl else {"emb_params": (1, 24)})
    with safe_open(work / "dog" / "dog.safetensors", "pt") as file:
        assert file.metadata()["token"] == "<dog>"
    card = (work / "dog" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    loading = code.replace('"base"', f'"{work / "base"}"').replace('"dog/', f'"{work / "dog"}/')
    assert "models/embeddings" in card and 'pipeline("a photo of <dog>"' in code
    known = {}
    exec(loading.split("# on a GPU")[0], known)
    pipeline = known["pipeline"]
    assert not torch.allclose(encoded(pipeline)[0], encoded(ours(work))[0], atol=1e-4)  # it lacks the LoRA
    pipeline.load_lora_weights(work / "lora")
    assert_equal(pipeline, ours(work))


def test_a_folder_of_diffusers_has_the_token_in_tokenizers_and_text_encoders(work):
    export(str(work / "run"), "diffusers", work / "whole", licence="openrail++")
    assert_equal(DiffusionPipeline.from_pretrained(work / "whole"), ours(work), atol=1e-6)
    again = open_model(find_model(str(work / "whole")))
    again.check_values()
    assert_equal(again.pipeline("cpu", torch.float32), ours(work), atol=1e-6)
    values = {
        "model": str(work / "whole"), "pairs": str(work / "pairs"), "train": {"steps": 1, "pairs_per_step": 1},
        "adapter": {"kind": "lora", "token": "<dog>", "token_from": "star"},
    }  # fmt: skip
    with pytest.raises(MapoError, match="<dog> is a word that the model's tokenizer has already"):
        train(make_config(values), work / "further")


@pytest.mark.parametrize("to", ["lora", "kohya", "single-file"])
def test_what_does_not_hold_the_token_says_that_its_embedding_has_to_go_along(work, tmp_path, to, heard):
    export(str(work / "run"), to, tmp_path / "out.safetensors", licence="openrail++")
    wanted = (
        f"The token <dog> is not in it: its embedding has to go along, as a file of its own, with `mapo export {work}"
    )
    assert wanted in heard() and "dog.safetensors`" not in (tmp_path / "out.safetensors").name
    if to != "single-file":
        return
    plain = open_model(find_model(str(tmp_path / "out.safetensors")))
    for encoder, before in zip(plain.load_text_encoders("cpu").values(), tables(work / "base"), strict=True):
        assert len(encoder.get_input_embeddings().weight) == before
    export(str(work / "run"), "embedding", tmp_path / "dog.safetensors")
    kind = StableDiffusionXLPipeline if len(plain.text_encoders) > 1 else StableDiffusionPipeline
    assert kind.__name__ == plain.files.pipeline_class and (tmp_path / "dog.safetensors").stat().st_size < 2000


def tables(base: Path) -> list[int]:
    encoders = open_model(find_model(str(base))).load_text_encoders("cpu").values()
    return [len(encoder.get_input_embeddings().weight) for encoder in encoders]


def test_what_has_no_embedding_is_refused_in_a_sentence(work, tmp_path):
    values = {
        "model": str(work / "base"), "pairs": str(work / "pairs"), "adapter": {"kind": "lora"},
        "train": {"steps": 1, "pairs_per_step": 1},
    }  # fmt: skip
    train(make_config(values), tmp_path / "run")
    with pytest.raises(MapoError, match=r"has learned no token\. Train one with --set adapter\.token"):
        export(str(tmp_path / "run"), "embedding", tmp_path / "dog.safetensors")
    assert not (tmp_path / "dog.safetensors").exists()
    with pytest.raises(MapoError, match="--precision: an embedding is written in float32"):
        export(str(work / "run"), "embedding", tmp_path / "dog.safetensors", precision="float16")
