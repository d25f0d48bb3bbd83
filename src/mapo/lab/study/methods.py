"""The methods that the study compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """An objective, where its search begins, by which factors it moves, and after which steps, beside the plan's, its
    trials are looked at."""

    title: str
    start: Mapping[str, float]
    factors: Mapping[str, float]
    looks: tuple[int, ...] = ()


LR = {"lr": 1e-4}
METHODS: dict[str, Method] = {
    "sft": Method("SFT on chosen", LR, {"lr": 10**0.5}),
    # Far from the reference it is a race: chosen pictures are learned for some steps, then all prompts are forgotten.
    # So it begins lower, moves β further, and may be stopped at more places.
    "dpo": Method("Diffusion-DPO", {"lr": 3e-5, "beta": 10.0}, {"lr": 10**0.5, "beta": 10.0}, (24, 32, 64, 96)),
    "mapo": Method("MaPO, public code", {**LR, "beta": 0.1}, {"lr": 10**0.5, "beta": 4.0}),
    "mapo_aaai": Method("MaPO, AAAI paper", {**LR, "beta": 8.0}, {"lr": 10**0.5, "beta": 4.0}),
    "mapo_relative": Method("MaPO, relative margin", {**LR, "beta": 2.0}, {"lr": 10**0.5, "beta": 4.0}),
}
