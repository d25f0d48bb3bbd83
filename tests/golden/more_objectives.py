"""Losses and gradients of the later objectives in 40-digit arithmetic, from their formulas.

``python tests/golden/more_objectives.py`` writes more_objectives.json. Inputs are exact float32 numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np

HERE = Path(__file__).parent
ERRORS = ((0.1, 0.12), (0.02, 0.018), (0.5, 0.9), (0.0, 0.1), (0.0003, 0.0002), (2.0, 0.25))
REFERENCE = ((0.1, 0.1), (0.021, 0.0185), (0.4, 0.6), (0.001, 0.1), (0.0003, 0.00025), (1.99, 0.26))
AGREEMENT = (0.11, 0.019, -0.2, 0.0, 0.0001, 0.3)  # of sdpo, the mean of e_w · e_l
SETTINGS: dict[str, list[dict[str, float]]] = {
    "ipo": [{"beta": 2000.0}, {"beta": 50.0}],
    "poly_dpo": [{"beta": 2000.0, "alpha": 8.0}, {"beta": 100.0, "alpha": -0.5}, {"beta": 500.0, "alpha": 0.0}],
    "orpo": [{"beta": 0.1}, {"beta": 2.0}],
    "kto": [{"beta": 1000.0, "baseline": 0.0}, {"beta": 100.0, "baseline": 0.004}],
    "sdpo": [{"beta": 2000.0, "mu": 0.6}, {"beta": 50.0, "mu": 0.1}],
}


def drift(w: Any, losing: Any, rw: Any, rl: Any) -> Any:
    return (w - losing) - (rw - rl)


def p(z: Any) -> Any:
    return 1 / (1 + mpmath.exp(-z))


LOSSES: dict[str, Callable[..., Any]] = {
    "ipo": lambda w, x, rw, rl, beta: (-drift(w, x, rw, rl) - 1 / (2 * beta)) ** 2,
    "poly_dpo": lambda w, x, rw, rl, beta, alpha: (
        -mpmath.log(p(-beta / 2 * drift(w, x, rw, rl))) + alpha * (1 - p(-beta / 2 * drift(w, x, rw, rl)))
    ),
    "kto": lambda w, x, rw, rl, beta, baseline: (
        (1 - p(beta * (rw - w - baseline)) + 1 - p(-beta * (rl - x - baseline))) / 2
    ),
    "sdpo": lambda w, x, rw, rl, beta, mu: -mpmath.log(p(-beta / 2 * drift(w, x, rw, rl))),
    "orpo": lambda w, x, rw, rl, beta: w - beta * mpmath.log(p(x - w)),
}


def exact(value: float) -> Any:
    return mpmath.mpf(float(np.float32(value)))


def rows() -> dict[str, list[dict[str, float]]]:
    mpmath.mp.dps = 60  # derivatives are differences, so that 40 digits are left
    found: dict[str, list[dict[str, float]]] = {}
    for name, loss in LOSSES.items():
        for settings in SETTINGS[name]:
            knobs = {k: mpmath.mpf(v) for k, v in settings.items()}
            for (w, x), (rw, rl), agreement in zip(ERRORS, REFERENCE, AGREEMENT, strict=True):
                here = [exact(v) for v in (w, x, rw, rl)]
                by_chosen = mpmath.diff(lambda v, h=here, k=knobs, f=loss: f(v, *h[1:], **k), here[0])
                by_rejected = mpmath.diff(lambda v, h=here, k=knobs, f=loss: f(h[0], v, *h[2:], **k), here[1])
                if name == "sdpo":
                    c = exact(agreement)
                    share = max(0, min(1, (1 - knobs["mu"]) * here[0] / c)) if c > 0 else 1
                    by_rejected *= share  # λ, which is held constant itself
                values = dict(zip(("chosen", "rejected", "ref_chosen", "ref_rejected"), map(float, here), strict=True))
                values |= {"loss": float(loss(*here, **knobs)), "d_chosen": float(by_chosen)}
                if name == "sdpo":
                    values["agreement"] = float(c)
                found.setdefault(name, []).append({**values, "d_rejected": float(by_rejected), **settings})
    return found


if __name__ == "__main__":
    (HERE / "more_objectives.json").write_text(json.dumps(rows(), indent=1) + "\n")
