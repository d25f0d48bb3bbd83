"""Models at their real size with random weights: whether a LoRA trains, and in how much memory.

    python bench/real_size.py --work FOLDER [--model sdxl | sd15 | sd35-medium] [--resolution 256] [--steps 3]
                              [--base-precision float32 bfloat16] [--adapter lora] [--out bench/results]
    python bench/real_size.py --model flux-dev [--out bench/results]

Makes a pipeline folder of the model's published layout part by part (SDXL: 6.5 GB in float16, made once): the denoiser,
its VAE, and both CLIP text encoders in their real depth and width, with the built-in world's own vocabulary; Stable
Diffusion 3.5 without T5, which a folder may leave out. Then encodes two pairs and trains, each as the command a user
would type, and watches the process from outside: seconds of a step, and the most anonymous memory. On a GPU the most of
its memory that tensors took in training is read from the run, which writes it down for every step. A random model
learns nothing; what is measured is that every step runs, is finite, and what it takes.

FLUX.1 dev is opened on the meta device only, where nothing has numbers: one step of a LoRA goes through all its layers,
forward and backward, and what its weights and its LoRA would take is counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measured import write_measured

PARAMETERS = {"sdxl": 2_567_463_684, "sd15": 859_520_964, "sd35-medium": 2_243_171_520, "flux-dev": 11_901_408_320}
UNETS: dict[str, dict[str, Any]] = {
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sd15": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd35-medium": {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
        "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
        "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
        "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
    },
    "flux-dev": {
        "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    },
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
}
VAES: dict[str, dict[str, Any]] = {
    "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025},
    "sd15": {"latent_channels": 4, "scaling_factor": 0.18215},
    "sd35-medium": {
        "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "flux-dev": {
        "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}  # fmt: skip
T5_XXL = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}  # fmt: skip
CLIP_L, CLIP_G = (768, 12, 12, 768), (1280, 32, 20, 1280)  # width, layers, heads, projection


def text_encoders(model: str) -> dict[str, tuple[Any, tuple[int, int, int, int]]]:
    """The class and the size of each."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    if model in ("sd15", "flux-dev"):
        return {"text_encoder": (CLIPTextModel, CLIP_L)}  # and FLUX.1's T5, which is no CLIP
    first = CLIPTextModel if model == "sdxl" else CLIPTextModelWithProjection
    return {"text_encoder": (first, CLIP_L), "text_encoder_2": (CLIPTextModelWithProjection, CLIP_G)}


def make_index(model: str, folder: Path) -> None:
    """``model_index.json`` and the scheduler."""
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler: Any = {
        "sdxl": lambda: EulerDiscreteScheduler(**betas),
        "sd15": lambda: PNDMScheduler(**betas, skip_prk_steps=True),
        "sd35-medium": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        "flux-dev": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }[model]()
    scheduler.save_pretrained(folder / "scheduler")
    kinds = {"sdxl": "StableDiffusionXL", "sd15": "StableDiffusion", "sd35-medium": "StableDiffusion3"}
    kind = {**kinds, "flux-dev": "Flux"}[model]
    index: dict[str, Any] = {
        "_class_name": f"{kind}Pipeline", "scheduler": ["diffusers", type(scheduler).__name__],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    for part, (encoder, _) in text_encoders(model).items():
        index |= {part: ["transformers", encoder.__name__]}
        index |= {part.replace("text_encoder", "tokenizer"): ["transformers", "CLIPTokenizer"]}
    if model in UNETS:
        index |= {"unet": ["diffusers", "UNet2DConditionModel"]}
    elif model == "flux-dev":
        index |= {"transformer": ["diffusers", "FluxTransformer2DModel"]}
        index |= {"text_encoder_2": ["transformers", "T5EncoderModel"], "tokenizer_2": ["transformers", "T5Tokenizer"]}
    else:
        index |= {"transformer": ["diffusers", "SD3Transformer2DModel"]}
        index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    if model == "sd15":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    if model == "sdxl":
        index |= {"force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index))


def make_model(folder: Path, model: str = "sdxl", *, weights: bool = True) -> Path:
    """The pipeline folder; what is there already stays. Without ``weights`` it has the parts' configurations alone."""
    import torch
    from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTokenizer

    from mapo.models import find_model

    mini = find_model("mini").base
    folder.mkdir(parents=True, exist_ok=True)
    for part in text_encoders(model):
        name = part.replace("text_encoder", "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(mini / name)
        tokenizer.model_max_length = 77
        tokenizer.save_pretrained(folder / name)

    def make(part: str, build: Any) -> None:
        if not weights:
            with torch.device("meta"):
                network = build()
            if hasattr(network, "save_config"):
                network.save_config(folder / part)
            else:
                network.config.save_pretrained(folder / part)
        elif not (folder / part / "whole").exists():
            torch.manual_seed(0)
            torch.set_default_dtype(torch.float16)
            network = build()
            torch.set_default_dtype(torch.float32)
            print(f"{part}: {sum(p.numel() for p in network.parameters()):,} parameters")
            network.save_pretrained(folder / part)
            (folder / part / "whole").touch()

    if model in UNETS:
        make("unet", lambda: UNet2DConditionModel(**UNETS[model]))
    else:
        kind = FluxTransformer2DModel if model == "flux-dev" else SD3Transformer2DModel
        make("transformer", lambda: kind(**TRANSFORMERS[model]))
    if model == "flux-dev":
        make("text_encoder_2", lambda: make_t5(folder / "tokenizer_2"))
    make("vae", lambda: AutoencoderKL(**VAE, **VAES[model]))
    for part, (kind, (width, layers, heads, projection)) in text_encoders(model).items():
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=heads, projection_dim=projection, max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        make(part, lambda kind=kind, config=config: kind(config))
    make_index(model, folder)
    return folder


def make_t5(folder: Path) -> Any:
    """T5 in FLUX.1's depth and width, and in ``folder`` a tokenizer of letters for it."""
    import string

    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    words = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, *string.digits, *string.punctuation]
    tokenizer = T5Tokenizer(vocab=[(word, -float(k)) for k, word in enumerate(words)], extra_ids=0)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return T5EncoderModel(T5Config(vocab_size=32128, **T5_XXL))


def on_meta() -> dict[str, Any]:
    """FLUX.1 dev without numbers: a step of a LoRA through all its layers at 1024 pixels, and what would be held."""
    import torch
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig

    from mapo.models.families.flux import Flux

    with torch.device("meta"):
        network = FluxTransformer2DModel(**TRANSFORMERS["flux-dev"]).requires_grad_(False)
        network.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=list(Flux.lora_targets)))
        lora = [p for p in network.parameters() if p.requires_grad]
        tokens, pairs = 64 * 64, 2
        output = network(
            hidden_states=torch.randn(pairs, tokens, 64), timestep=torch.rand(pairs), guidance=torch.ones(pairs),
            encoder_hidden_states=torch.randn(pairs, 512, 4096), pooled_projections=torch.randn(pairs, 768),
            txt_ids=torch.zeros(512, 3), img_ids=torch.zeros(tokens, 3), return_dict=False,
        )[0]  # fmt: skip
        output.square().mean().backward()
    assert all(p.grad is not None for p in lora) and output.shape == (pairs, tokens, 64)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in lora)
    assert frozen == PARAMETERS["flux-dev"], frozen
    found = {
        "parameters": frozen, "lora_rank_8": trained, "frozen_bfloat16_gb": 2 * frozen / 1e9,
        "frozen_float32_gb": 4 * frozen / 1e9, "lora_and_adamw_gb": 16 * trained / 1e9,
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    return found


def make_pairs(folder: Path) -> Path:
    """Two pairs of noise pictures."""
    import random

    from PIL import Image

    from mapo.pairs import PairWriter
    from mapo.sample.folder import png_bytes

    rng = random.Random(0)
    if not folder.exists():
        with PairWriter(folder, {"made": "by bench/real_size.py"}) as writer:
            for k in range(2):
                sides = [png_bytes(Image.frombytes("RGB", (256, 256), rng.randbytes(3 * 256**2))) for _ in range(2)]
                writer.add_pair(f"a small red circle number {k}", *sides, split="train")
    return folder


def anonymous_gib(pid: int) -> float:
    """Anonymous resident memory of a process (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 2**20
    except (OSError, StopIteration):
        return 0.0


def watched(words: list[str]) -> tuple[float, float]:
    """Run a command of `mapo`; seconds, and the most anonymous memory in GiB. Stops where it fails."""
    began, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(
        [sys.executable, "-m", "mapo", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None:
        peak = max(peak, anonymous_gib(process.pid))
        time.sleep(0.02)
    said = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"mapo {' '.join(words)} failed:\n{said[-2000:]}")
    return time.perf_counter() - began, peak


def row_of(seconds: float, peak: float, steps: list[dict[str, Any]], on_gpu: bool) -> dict[str, Any]:
    """What a training took, by the lines of its run. On a GPU ``memory`` there is torch.cuda.max_memory_allocated."""
    found = {
        "seconds": seconds, "peak_anonymous_gib": peak, "seconds_of_steps": [s["seconds"] for s in steps],
        "losses": [s["loss"] for s in steps], "gradient_norms": [s["grad_norm"] for s in steps],
    }  # fmt: skip
    return {**found, "peak_gpu_gib": max(s["memory"] for s in steps) / 2**30} if on_gpu else found


def main() -> None:
    """Make, train, watch, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, help="needed for all but flux-dev")
    parser.add_argument("--model", default="sdxl", choices=list(PARAMETERS))
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--base-precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--adapter", default="lora", choices=["lora", "full"])
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    import torch

    if args.model == "flux-dev":
        found = {"date": time.strftime("%Y-%m-%d"), **on_meta()}
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "real-size-flux-dev.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    if not args.work:
        parser.error("give --work, the folder to make the model in")
    model, pairs = make_model(args.work / args.model, args.model), make_pairs(args.work / "pairs")
    cache = args.work / f"cache-{args.model}-{args.resolution}"
    common = ["--model", str(model), "--pairs", str(pairs)]
    seconds, peak = watched(["encode", *common, "--resolution", str(args.resolution), "--out", str(cache)])
    rows: dict[str, Any] = {"encode": {"seconds": seconds, "peak_anonymous_gib": peak}}
    print(f"encode: {seconds:.0f} s, {peak:.1f} GiB")
    for precision in args.base_precision:
        out = args.work / f"run-{precision}-{time.time_ns()}"
        settings = {
            "train.steps": args.steps, "train.pairs_per_step": 1, "adapter.rank": 8,
            "train.base_precision": precision, "data.resolution": args.resolution, "data.split": "all",
            "train.gradient_checkpointing": str(args.checkpointing).lower(),
        }  # fmt: skip
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        words = ["train", *common, "--cache", str(cache), "--out", str(out), "--adapter", args.adapter, *sets]
        seconds, peak = watched(words)
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        last = rows[precision] = row_of(seconds, peak, steps, torch.cuda.is_available())
        of_gpu = f"{last['peak_gpu_gib']:.1f} GiB of the GPU, " if "peak_gpu_gib" in last else ""
        print(
            f"{precision}: {peak:.1f} GiB, {of_gpu}"
            f"steps of {', '.join(f'{s:.1f}' for s in last['seconds_of_steps'])} s, "
            f"losses {', '.join(f'{v:.3f}' for v in last['losses'])}"
        )
    about = {
        "model": args.model, "parameters": PARAMETERS[args.model],
        "resolution": args.resolution,
        "adapter": args.adapter, "gradient_checkpointing": args.checkpointing, "pairs_per_step": 1, "rows": rows,
    }  # fmt: skip
    if args.out:
        of = "" if args.model == "sdxl" else f"-{args.model}"
        write_measured(args.out / f"real-size{of}-{args.adapter}-{args.resolution}.json", about)


if __name__ == "__main__":
    main()
