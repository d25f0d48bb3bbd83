"""The parts of the built-in model, untrained, and how they become a pipeline folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mapo.files import replacing
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import SIDE
from mapo.texts import write_json

LATENT_SIDE = SIDE // 4
TOKENS = 32


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the words of the world (a token or a few each) and spells any other text in bytes."""
    text = " ".join(
        [
            *scenes.prompts("train"),
            *(p for ps in scenes.STYLE_PHRASES.values() for p in ps),
            *scenes.HAZARD_PHRASES,
            "an",
        ]
    )
    words = sorted({w.strip(".,") for w in text.split()})
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(c + "</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        have = word[0]
        for i, letter in enumerate(word[1:], 1):
            last = letter + ("</w>" if i == len(word) - 1 else "")
            if (have, last) not in merges:
                merges.append((have, last))
            have += last
    vocabulary += list(dict.fromkeys(a + b for a, b in merges))
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True})
    )
    return CLIPTokenizer.from_pretrained(folder)


def make_parts(tokenizer: CLIPTokenizer) -> tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel, CLIPTextModel]:
    """VAE, UNet and both text encoders with random weights: SDXL's layout at a thousandth of its size."""
    width = 80
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    )
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 80, 96),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(3, 5, 6),
        norm_num_groups=16,
        cross_attention_dim=2 * width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=width + 6 * 16,
    )
    return vae, unet, CLIPTextModel(text), CLIPTextModelWithProjection(text)


def time_ids(count: int) -> Tensor:
    """SDXL's size conditioning (original height and width, crop top and left, target height and width), "n 6"."""
    return torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE], dtype=torch.float32).expand(count, 6)


def scheduler() -> EulerDiscreteScheduler:
    """SDXL's scheduler, but that sampling begins at the last timestep ("trailing").

    SDXL's own "leading" begins at 914 of 1,000 with twelve steps, and what the first step decides then comes out too
    seldom: the unasked tape in 17 % of the pictures instead of 20 (Lin et al., arXiv 2305.08891, section 3.3).
    """
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        timestep_spacing="trailing",
        interpolation_type="linear",
        use_karras_sigmas=False,
    )


def save_pipeline(pipeline: Any, folder: Path, sampling: Mapping[str, float]) -> None:
    """Write a pipeline in half precision, with how it is best sampled. It goes on in float32."""
    with replacing(folder) as temporary:
        pipeline.to(torch.float16).save_pretrained(temporary, safe_serialization=True)
        write_json(temporary / "sampling.json", sampling)
    pipeline.to(torch.float32)
