"""Makes small models of the real classes, and sets of pairs."""

import random
from pathlib import Path

from mapo.pairs import PairWriter
from mapo.sample.folder import png_bytes


def make_sdxl(folder: Path, prediction_type: str = "epsilon", seed: int = 0, **unet_settings) -> Path:
    """A StableDiffusionXLPipeline folder with random weights; other sizes than the built-in model's."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from mapo.lab.mini.pretrain import make_tokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(folder.parent / f"{folder.name}-tokenizer")

    def text(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        **{
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "attention_head_dim": (2, 4),
            "norm_num_groups": 4,
            "cross_attention_dim": 40,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 48,
            **unet_settings,
        }
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.7,
        sample_size=16,
    )
    schedule = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
    }
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = (
        EulerDiscreteScheduler(**schedule) if prediction_type == "epsilon" else DDIMScheduler(**schedule, **zero_snr)
    )
    StableDiffusionXLPipeline(
        vae, CLIPTextModel(text(16)), CLIPTextModelWithProjection(text(24)), tokenizer, tokenizer, unet, scheduler,
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_pairs(folder: Path, count: int = 12, seed: int = 0, size: tuple[int, int] = (20, 16), **rest) -> Path:
    """A set of ``count`` pairs of noise pictures; every third prompt is used twice."""
    from PIL import Image

    rng = random.Random(seed)

    def picture() -> bytes:
        return png_bytes(Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])))

    with PairWriter(folder, {"made": "by a test"}) as writer:
        for k in range(count):
            writer.add_pair(
                f"a small red circle number {k - (k % 3 == 2)}", picture(), picture(), split="train", **rest
            )
    return folder
