"""Loading SDXL at its real size, from a folder and from one file: how much memory and time it takes.

    python bench/loading.py --work FOLDER [--precision float32 bfloat16 float16] [--out bench/results]

Makes a pipeline folder of SDXL's published layout with random weights in float16 (6.9 GB), and one file of it by the
export of the package (another 6.9 GB); both stay in FOLDER. Then each is opened in a process of its own as training
opens it: the text encoders read a prompt and go, the VAE encodes a picture and goes, then the denoiser comes in the
precision that is asked for. A thread watches the process's anonymous memory; pages of mapped files are not anonymous.
The measure is its peak, less what the process held once everything was imported, over the size of the denoiser in that
precision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from measured import write_measured

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def make(work: Path) -> tuple[Path, Path]:
    """The folder and the file; what is there already stays."""
    import torch

    from mapo.export.runs.single_file import write_single_file
    from mapo.models import find_model, open_model
    from mapo.models.single.layout import LAYOUTS, class_of, outline
    from mapo.models.single.tables import table, write_folder

    folder, file, values = work / "sdxl", work / "sdxl.safetensors", table("sdxl")
    write_folder(folder, "sdxl")
    for part in LAYOUTS["StableDiffusionXLPipeline"]:
        if (folder / part / "whole").exists():
            continue
        generator = torch.Generator().manual_seed(0)
        network = outline(class_of(values["model_index"][part]), values[part]).half().to_empty(device="cpu")
        for tensor in network.parameters():
            tensor.data.uniform_(-0.02, 0.02, generator=generator)
        print(f"{part}: {sum(p.numel() for p in network.parameters()):,} parameters")
        network.save_pretrained(folder / part)
        (folder / part / "whole").touch()
        del network
    if not file.exists():
        write_single_file(open_model(find_model(str(folder))), file, "float16")
    return folder, file


def anonymous() -> int:
    """Bytes of anonymous memory that this process holds (Linux)."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024


def load(place: str, precision: str) -> dict[str, Any]:
    """Open a model as training does; bytes and seconds of each stage."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401

    from mapo.models import find_model, open_model

    torch.zeros(1)
    before, peak, done = anonymous(), 0, False

    def watch() -> None:
        nonlocal peak
        while not done:
            peak = max(peak, anonymous())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    stages: dict[str, Any] = {}
    began = time.perf_counter()

    def stage(name: str) -> None:
        nonlocal peak, began
        stages[name] = {"seconds": time.perf_counter() - began, "peak": peak - before, "held": anonymous() - before}
        peak, began = 0, time.perf_counter()

    model = open_model(find_model(place))
    model.files.check_weights(model.denoiser_part)
    stage("open")
    text = model.text_encoder("cpu")(["a small red circle"])
    stage("text encoders")
    latents = model.image_encoder("cpu")(torch.zeros(1, 3, 64, 64))
    stage("VAE")
    denoiser = model.denoiser("cpu", getattr(torch, precision))
    parameters = sum(p.numel() for p in denoiser.parameters())
    stage("denoiser")
    done = True
    watcher.join()
    assert len(text) == 2 and len(latents) == 2
    most, size = max(s["peak"] for s in stages.values()), parameters * BYTES[precision]
    return {"imported": before, "peak": most, "size": size, "ratio": most / size, "stages": stages}


def main() -> None:
    """Make, load in processes of their own, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--precision", nargs="+", default=list(BYTES), choices=list(BYTES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)  # a place and a precision, in a process of its own
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(*args.load)))
        return

    made = dict(zip(("folder", "file"), make(args.work), strict=True))
    rows: dict[str, dict[str, Any]] = {}
    for precision in args.precision:
        for name, place in made.items():
            words = [sys.executable, __file__, "--work", str(args.work), "--load", str(place), precision]
            said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout
            found = json.loads(said.splitlines()[-1])
            rows.setdefault(precision, {})[name] = found
            seconds = sum(s["seconds"] for s in found["stages"].values())
            print(
                f"{precision:9} {name:7} peak {found['peak'] / 2**30:.2f} GiB above the imported process "
                f"({found['imported'] / 2**30:.2f}), {found['ratio']:.2f} of the denoiser's size, {seconds:.0f} s"
            )
    if args.out:
        write_measured(args.out / "loading.json", {"rows": rows})


if __name__ == "__main__":
    main()
