"""Counts what a model's published layout decides: parameters, arithmetic, bytes. No weights and no data are needed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from mapo.models.families.unet import UNetModel
from measured import write_measured

TOKENS, RANK, STRIDE, CHANNELS = 77, 8, 8, 4
SDXL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
MODELS: dict[str, tuple[dict[str, Any], int, int]] = {  # the UNet's configuration, pixels, pooled numbers a prompt
    "SDXL": (SDXL, 1024, 1280),
    "Stable Diffusion 2.1": (SD21, 768, 0),
    "Stable Diffusion 1.5": ({"cross_attention_dim": 768, "attention_head_dim": 8}, 512, 0),
}


def sizes(config: dict[str, Any], pixels: int, pooled: int) -> dict[str, float]:
    side, width = pixels // STRIDE, config["cross_attention_dim"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=side, **config)
        given = (torch.empty(1, CHANNELS, side, side), torch.ones(1), torch.empty(1, TOKENS, width))
        added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)} if pooled else None

    def teraflops(backward: bool) -> float:
        with FlopCounterMode(display=False) as counter:
            output = unet(*given, added_cond_kwargs=added, return_dict=False)[0]
            if backward:
                output.sum().backward()
        flops: int = counter.get_total_flops()
        return round(flops / 1e12, 2)

    parameters = sum(p.numel() for p in unet.parameters())
    forward, full = teraflops(False), teraflops(True)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(UNetModel.lora_targets)))
    return {
        "pixels": pixels,
        "parameters": parameters,
        "lora_parameters": sum(p.numel() for p in unet.parameters() if p.requires_grad),
        "teraflops_forward": forward,
        "teraflops_full": full,
        "teraflops_lora": teraflops(True),
        "cache_bytes_of_a_picture": 4 * 2 * CHANNELS * side**2,
        "cache_bytes_of_a_prompt": 4 * (TOKENS * width + pooled),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for sizes.json")
    found = {name: sizes(*how) for name, how in MODELS.items()}
    write_measured(parser.parse_args().out / "sizes.json", {"models": found})
    for name, row in found.items():
        print(name, row)


if __name__ == "__main__":
    main()
