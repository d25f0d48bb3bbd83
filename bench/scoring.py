"""What `mapo score` adds to the bare scorer model.

    python bench/scoring.py [--model FOLDER] [--pictures 32] [--side 512] [--rounds 7] [--out bench/results]

The whole of `mapo score` with the weights loaded (reading, hashing and decoding PNGs, preparing them, the network, the
table) against nothing but the network's calls on the same batches, prepared and on the device before the clock starts.
Both take turns; the result is the bare time over ours. Without --model: CLIP ViT-B/16's layout with random weights.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from measured import write_measured

BATCH = 16


def make_model(folder: Path) -> Path:
    """CLIP of ViT-B/16's layout with random weights, and a small tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from mapo.lab.mini.parts import make_tokenizer

    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    text = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    CLIPModel(CLIPConfig(text_config=text, vision_config={"patch_size": 16})).save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True),
        "resample": 3,
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def make_images(folder: Path, count: int, side: int) -> Path:
    """Pictures as detailed as a photograph, four of every prompt."""
    from PIL import Image

    from mapo.files import sha256
    from mapo.pairs.splits import prompt_id
    from mapo.sample.folder import ImageRow, append_images, png_bytes
    from mapo.sample.prompts import read_prompts

    prompts, rows, data = read_prompts("mini:test"), [], []
    for k in range(count):
        rough = Image.frombytes("RGB", (64, 64), random.Random(k).randbytes(3 * 64 * 64))
        png = png_bytes(rough.resize((side, side), Image.Resampling.BICUBIC))
        prompt = prompts[k // 4 % len(prompts)]
        rows.append(ImageRow(f"{k}.png", prompt_id(prompt), prompt, k, k, sha256(png), "noise"))
        data.append(png)
    append_images(folder, rows, data)
    return folder


def bare_calls(scorer: Any, folder: Path) -> Callable[[], Any]:
    """The network on batches that lie ready, prompts that are equal in a batch given once as `mapo score` does."""
    import torch

    from mapo.sample.folder import open_picture, read_images

    likeness, rows, ready = scorer.similarity, read_images(folder), []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        pixels = torch.stack([likeness.prepare(open_picture(folder, row)) for row in batch]).to(likeness.device)
        texts = list(dict.fromkeys(row.prompt for row in batch))
        place = torch.tensor([texts.index(row.prompt) for row in batch], device=likeness.device)
        ready.append(({"pixel_values": pixels, **likeness._tokens(texts)}, place))

    def calls() -> Any:
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            found = [(likeness.model(**given), place) for given, place in ready]
            return torch.cat([(f.image_embeds * f.text_embeds[place]).sum(-1) for f, place in found]).cpu()

    return calls


def alternate(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each, on the wall and of CPU time, measured in turn so that a busy machine hits all of them."""
    times: dict[str, list[Any]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            began = np.array([time.perf_counter(), time.process_time()])
            run()
            if number:  # the first round warms up
                times[name].append(np.array([time.perf_counter(), time.process_time()]) - began)
    return {
        name: {clock: statistics.median(t[k] for t in taken) for k, clock in enumerate(("wall", "cpu"))}
        for name, taken in times.items()
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    import mapo.score.score
    import mapo.score.task
    from mapo.score.scorers import load_scorer
    from mapo.score.table import read_scores

    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        name = f"clip@{args.model or make_model(here / 'model')}"
        images = make_images(here / "images", args.pictures, args.side)
        scorer: Any = load_scorer(name)
        table = here / "scores.parquet"

        def ours() -> None:
            table.unlink(missing_ok=True)
            mapo.score.score.score(images, name, table, images_per_batch=BATCH)

        bare = bare_calls(scorer, images)
        with mock.patch.object(mapo.score.task, "load_scorer", return_value=scorer):  # loading is not what is measured
            seconds = alternate({"mapo score": ours, "bare": bare}, args.rounds)
        want = (100 * bare().clamp(min=0)).tolist()
        assert np.allclose(read_scores(table)["value"].to_numpy(), want, atol=1e-3), "not the same numbers"
        parameters = sum(p.numel() for p in scorer.similarity.model.parameters())
    ratios = {clock: seconds["bare"][clock] / seconds["mapo score"][clock] for clock in ("wall", "cpu")}
    for clock, ratio in ratios.items():
        print(f"throughput, mapo score / bare model, {clock:4} {ratio:.3f}")
    if args.out:
        result = {
            "parameters": parameters,
            "pictures": args.pictures,
            "side": args.side,
            "images_per_batch": BATCH,
            "median_seconds": seconds,
            "throughput_ratio": ratios,
        }
        write_measured(args.out / "scoring.json", result)


if __name__ == "__main__":
    main()
