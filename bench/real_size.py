"""SDXL at its real size with random weights: whether a LoRA trains, and in how much memory.

    python bench/real_size.py --work FOLDER [--resolution 256] [--steps 3] [--base-precision float32 bfloat16]
                              [--adapter lora] [--out bench/results]

Makes a pipeline folder of SDXL's layout part by part (6.5 GB in float16, made once): the UNet of 2,567,463,684
parameters, its VAE, and both text encoders in their real depth and width, with the built-in world's own vocabulary.
Then encodes two pairs and trains, each as the command a user would type, and watches the process from outside: seconds
of a step, and the most anonymous memory (on a GPU: also the most of the GPU's). A random model learns nothing; what is
measured is that every step runs, is finite, and what it takes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PARAMETERS = 2_567_463_684
UNET = {
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
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
TEXT = {"text_encoder": (768, 12, 12, 768), "text_encoder_2": (1280, 32, 20, 1280)}  # width, layers, heads, projection


def make_model(folder: Path) -> Path:
    """The pipeline folder; what is there already stays."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from mapo.models import find_model

    mini = find_model("mini").base
    folder.mkdir(parents=True, exist_ok=True)
    index = json.loads((mini / "model_index.json").read_text())
    for part in ("tokenizer", "tokenizer_2"):
        tokenizer = CLIPTokenizer.from_pretrained(mini / part)
        tokenizer.model_max_length = 77
        tokenizer.save_pretrained(folder / part)
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )

    def make(part: str, build: Any) -> None:
        if not (folder / part / "whole").exists():
            torch.manual_seed(0)
            torch.set_default_dtype(torch.float16)
            network = build()
            torch.set_default_dtype(torch.float32)
            print(f"{part}: {sum(p.numel() for p in network.parameters()):,} parameters")
            network.save_pretrained(folder / part)
            (folder / part / "whole").touch()

    make("unet", lambda: UNet2DConditionModel(**UNET))
    make("vae", lambda: AutoencoderKL(**VAE))
    for part, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        width, layers, heads, projection = TEXT[part]
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=heads, projection_dim=projection, max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        make(part, lambda kind=kind, config=config: kind(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


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


def main() -> None:
    """Make, train, watch, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--base-precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--adapter", default="lora", choices=["lora", "full"])
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    import torch

    model, pairs = make_model(args.work / "model"), make_pairs(args.work / "pairs")
    cache = args.work / f"cache-{args.resolution}"
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
        rows[precision] = {
            "seconds": seconds, "peak_anonymous_gib": peak, "seconds_of_steps": [s["seconds"] for s in steps],
            "losses": [s["loss"] for s in steps], "gradient_norms": [s["grad_norm"] for s in steps],
        }  # fmt: skip
        last = rows[precision]
        print(
            f"{precision}: {peak:.1f} GiB, steps of {', '.join(f'{s:.1f}' for s in last['seconds_of_steps'])} s, "
            f"losses {', '.join(f'{v:.3f}' for v in last['losses'])}"
        )
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    about = {
        "machine": machine, "torch": torch.__version__, "parameters": PARAMETERS, "resolution": args.resolution,
        "adapter": args.adapter, "gradient_checkpointing": args.checkpointing, "pairs_per_step": 1, "rows": rows,
    }  # fmt: skip
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"real-size-{args.adapter}-{args.resolution}.json"
        (args.out / name).write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
