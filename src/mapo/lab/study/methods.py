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
    flow_start: Mapping[str, float] | None = None  # where the search begins on a model that predicts a velocity

    def begins(self, flow: bool) -> Mapping[str, float]:
        """Where the search begins."""
        return self.flow_start if flow and self.flow_start else self.start


LR, FLOW_LR = {"lr": 1e-4}, {"lr": 3e-4}


def _form(title: str, beta: float, flow_beta: float) -> Method:
    """A form of MaPO; on flow models errors are larger, which asks for another β (docs/objectives.md)."""
    factors = {"lr": 10**0.5, "beta": 4.0}
    return Method(title, {**LR, "beta": beta}, factors, flow_start={**FLOW_LR, "beta": flow_beta})


METHODS: dict[str, Method] = {
    "sft": Method("SFT on chosen", LR, {"lr": 10**0.5}, flow_start=FLOW_LR),
    # Far from the reference it is a race: chosen pictures are learned for some steps, then all prompts are forgotten.
    # So it begins lower, moves β further, and may be stopped at more places.
    "dpo": Method(
        "Diffusion-DPO", {"lr": 3e-5, "beta": 10.0}, {"lr": 10**0.5, "beta": 10.0}, (24, 32, 64, 96),
        flow_start={"lr": 3e-5, "beta": 3.0},
    ),
    "mapo": _form("MaPO, public code", 0.1, 0.1),
    "mapo_aaai": _form("MaPO, AAAI paper", 8.0, 2.0),
    "mapo_relative": _form("MaPO, relative margin", 2.0, 2.0),
}  # fmt: skip
