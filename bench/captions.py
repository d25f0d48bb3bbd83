"""How many pictures a second give their prompt from their metadata, without their pixels being decoded.

python bench/captions.py [--pictures 400] [--side 1024] [--work FOLDER] [--out bench/results]

A folder of pictures of ``--side`` pixels is written, the pixels of each kind the same noisy gradient: PNG with the text
of A1111, PNG with a graph of ComfyUI and a workflow of 16 kB, JPEG, WebP and AVIF with EXIF, PNG with nothing, with and
without an alpha channel (whose pixels are then read, to see whether NovelAI hides something there). In rounds in which
the kinds take turns each is read by ``told_in``; then the whole folder of the first five by ``read_captions``. One
process, one thread; the files are in the machine's memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import write_measured

ROUNDS = 5
A1111 = (
    "a red fox beside a gate number {}, snow, morning light\nNegative prompt: blurry, text\nSteps: 28, Sampler: Euler, "
    "CFG scale: 6.5, Seed: {}, Size: 1024x1024, Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Version: v1.10.1"
)


def graph(number: int) -> str:
    """A graph of ComfyUI with a base model, a refiner and a LoRA."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    nodes = {
        "1": node("CheckpointLoaderSimple", ckpt_name="base.safetensors"),
        "2": node("LoraLoader", lora_name="x.safetensors", model=["1", 0], clip=["1", 1]),
        "3": node("CLIPTextEncode", text=f"a red fox beside a gate number {number}", clip=["2", 1]),
        "4": node("CLIPTextEncode", text="blurry", clip=["2", 1]),
        "5": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
        "6": node("KSampler", seed=number, model=["2", 0], positive=["3", 0], negative=["4", 0], latent_image=["5", 0]),
        "7": node("KSampler", seed=0, model=["1", 0], positive=["3", 0], negative=["4", 0], latent_image=["6", 0]),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": node("SaveImage", images=["8", 0]),
    }
    return json.dumps(nodes)


def make(folder: Path, count: int, side: int) -> dict[str, list[Path]]:
    """The pictures of each kind: one is encoded, and its bytes get other texts."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    across = np.linspace(0, 200, side)[None, :, None] + np.linspace(0, 40, side)[:, None, None]
    noisy = across + np.random.default_rng(0).normal(0, 4, (side, side, 3))
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    def png(path: Path, number: int, texts: dict[str, str]) -> None:
        info = PngInfo()
        for key, text in texts.items():
            info.add_text(key, text)
        picture.save(path, pnginfo=info, compress_level=1)

    def exif(path: Path, number: int) -> None:
        tags = Image.Exif()
        tags.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.format(number, number).encode("utf-16-be")
        picture.save(path, exif=tags.tobytes(), speed=10)

    kinds: dict[str, Callable[[Path, int], None]] = {
        "png a1111": lambda path, n: png(path, n, {"parameters": A1111.format(n, n)}),
        "png comfyui": lambda path, n: png(path, n, {"prompt": graph(n), "workflow": json.dumps({"x": "y" * 16_000})}),
        "jpg": exif,
        "webp": exif,
        "avif": exif,
        "png without texts": lambda path, n: png(path, n, {}),
        "png with alpha without texts": lambda path, n: picture.convert("RGBA").save(path, compress_level=1),
    }
    found: dict[str, list[Path]] = {}
    for kind, write in kinds.items():
        end = kind.split()[0]
        place = folder / ("told" if "without" not in kind else "silent") / kind.replace(" ", "-")
        place.mkdir(parents=True)
        found[kind] = [place / f"{number}.{end}" for number in range(count)]
        write(found[kind][0], 0)
        data = found[kind][0].read_bytes()
        for path in found[kind][1:]:
            path.write_bytes(data)
    return found


def measure(folder: Path, count: int, side: int) -> dict[str, Any]:
    """Pictures a second of each kind, and of the whole folder."""
    from mapo.captions.folder import read_captions
    from mapo.captions.metadata import told_in

    kinds = make(folder, count, side)
    rates: dict[str, list[float]] = {kind: [] for kind in (*kinds, "folder of the first five kinds")}
    sizes = {kind: paths[0].stat().st_size for kind, paths in kinds.items()}
    for number in range(ROUNDS + 1):
        for kind, paths in kinds.items():
            few = paths if "alpha" not in kind else paths[: max(1, count // 10)]
            start = time.perf_counter()
            told = [told_in(path) for path in few]
            rate = len(few) / (time.perf_counter() - start)
            assert all((one is None) == ("without" in kind) for one in told)
            if number:  # the first round reads files into memory
                rates[kind].append(rate)
        start = time.perf_counter()
        captions = read_captions(folder / "told")
        if number:
            rates["folder of the first five kinds"].append(len(captions) / (time.perf_counter() - start))
    return {
        "pictures_a_second": {kind: round(statistics.median(values)) for kind, values in rates.items()},
        "least_pictures_a_second": {kind: round(min(values)) for kind, values in rates.items()},
        "bytes_of_a_picture": sizes,
    }


def main() -> None:
    """Make the pictures, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=400, help="of each kind")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--work", type=Path, help="where the pictures are written; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="the folder for captions.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        found = measure(Path(folder), given.pictures, given.side)
    found |= {
        "pictures": given.pictures,
        "side": given.side,
        "rounds": ROUNDS,
    }
    print(json.dumps(found, indent=1))
    if given.out:
        write_measured(given.out / "captions.json", found)


if __name__ == "__main__":
    main()
