"""What other rooms do for a training while it goes on, and training itself does not know: drawing, the leak test."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mapo import progress
from mapo.encode.seen import Rows
from mapo.pairs import PairSet
from mapo.train.monitor.monitor import Hands
from mapo.train.monitor.pictures import Live


def hands() -> Hands:
    """Those that `mapo train` and mapo.api.train hand in; each loads what it needs when it is asked."""
    return Hands(prompts=_prompts, draw=_draw, told_apart=_told_apart)


def _prompts(source: str) -> list[str]:
    from mapo.sample.prompts import asked_prompts

    return list(asked_prompts(source))


def _draw(live: Live, prompts: Sequence[str], seed: int, folder: Path) -> None:
    """As `mapo sample` would draw with these weights: by the model's own advice, in the precision of training."""
    import torch

    from mapo.sample.sample import Sampler, default_sampling

    files = replace(live.model.files, name=live.name, sensitive=live.sensitive or live.model.files.sensitive)
    device = next(next(iter(live.networks.values())).parameters()).device
    pipeline = live.model.pipeline(device, live.dtype, live.networks)
    try:
        precision = str(live.dtype).removeprefix("torch.")
        sampler = Sampler(files, precision, device, pipeline=pipeline, revisions=(live.revision,))
        how = default_sampling(files, images_per_batch=len(prompts))
        no_bar = progress.show_with(progress.Bar)  # there is the bar of training
        with no_bar, torch.autocast(device.type, torch.bfloat16, enabled=live.autocast):
            sampler.fill(folder, [(prompt, seed) for prompt in prompts], how, desc="pictures")
    finally:
        del pipeline
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _told_apart(pairs: PairSet, rows: Rows) -> str:
    from mapo.check.apart import told_apart

    return told_apart(pairs, rows)
