"""Makes small models of the real classes, and sets of pairs."""

import random
from pathlib import Path

from mapo.pairs import PairWriter
from mapo.sample.folder import png_bytes

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def _tokenizer(folder: Path):
    from mapo.lab.mini.pretrain import make_tokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    return make_tokenizer(folder.parent / f"{folder.name}-tokenizer")


def _text(tokenizer, width: int, layers: int = 2, **settings):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        **{
            "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **settings,
        },
    )


def _unet(**settings):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "attention_head_dim": (2, 4),
            "norm_num_groups": 4,
            **settings,
        }
    )


def _vae(**settings):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **settings,
    )


def make_sdxl(folder: Path, prediction_type: str = "epsilon", seed: int = 0, **unet_settings) -> Path:
    """A StableDiffusionXLPipeline folder with random weights; other sizes than the built-in model's."""
    import torch
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _tokenizer(folder)
    torch.manual_seed(seed)
    unet = _unet(
        **{
            "cross_attention_dim": 40,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 48,
            **unet_settings,
        }
    )
    vae = _vae(scaling_factor=0.7)
    schedule = {**SCHEDULE, "prediction_type": prediction_type}
    scheduler = (
        EulerDiscreteScheduler(**schedule) if prediction_type == "epsilon" else DDIMScheduler(**schedule, **ZERO_SNR)
    )
    first, second = CLIPTextModel(_text(tokenizer, 16)), CLIPTextModelWithProjection(_text(tokenizer, 24))
    StableDiffusionXLPipeline(
        vae, first, second, tokenizer, tokenizer, unet, scheduler, force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_sd(
    folder: Path, prediction_type: str = "epsilon", seed: int = 0, tokenizer=None, layers: int = 3, text=None,
    **unet_settings,
) -> Path:  # fmt: skip
    """A StableDiffusionPipeline folder with random weights, with a safety checker as the published ones have."""
    import torch
    from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextModel

    tokenizer = tokenizer or _tokenizer(folder)
    torch.manual_seed(seed)
    unet = _unet(**{"cross_attention_dim": 24, **unet_settings})
    schedule = {**SCHEDULE, "prediction_type": prediction_type, "clip_sample": False, "set_alpha_to_one": False}
    scheduler = (
        PNDMScheduler(**{k: v for k, v in schedule.items() if k != "clip_sample"}, skip_prk_steps=True)
        if prediction_type == "epsilon"
        else DDIMScheduler(**schedule)
    )
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
        "patch_size": 4,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    StableDiffusionPipeline(
        _vae(), CLIPTextModel(_text(tokenizer, 24, layers, **(text or {}))), tokenizer, unet, scheduler, checker,
        processor,
    ).save_pretrained(folder)  # fmt: skip
    return folder


MAKERS = {"StableDiffusionXLPipeline": make_sdxl, "StableDiffusionPipeline": make_sd}  # one for each family


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
