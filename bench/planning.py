"""What a plan costs: a step of SDXL at its real size rehearsed, asking torch once for each shape or each time.

    python bench/planning.py [--out bench/results]

Nothing is computed and no weights are needed. Both ways are taken in one process; seconds are of the processor, of the
first rehearsal and of a second one, as a search for what fits makes many.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mapo.encode.frame import square
from mapo.models import find_model, open_model
from mapo.train.batches import Members
from mapo.train.config import make_config
from mapo.train.objectives import OBJECTIVES
from mapo.train.plan.live import Live
from mapo.train.plan.outcomes import Outcomes
from mapo.train.plan.rehearsal import rehearse
from measured import write_measured
from real_size import make_model


class EachTime(Outcomes):
    """Asks torch whenever an operator is called."""

    def of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    changed = of


def seconds_of(model: Any, kind: str) -> tuple[float, dict[str, int]]:
    config = make_config({"model": "sdxl", "pairs": "none", "adapter": {"kind": kind}, "train": {"pairs_per_step": 4}})
    shown = Members.__new__(Members)
    shown.weights, shown.certain, shown.seen_in, shown.rows = np.ones(4), True, None, np.arange(4)
    shown.pairs = SimpleNamespace(sides=("chosen", "rejected"))  # type: ignore[assignment]
    began = time.process_time()
    found = rehearse(config, model, OBJECTIVES["mapo"], shown, [square(1024)], "cuda")
    return time.process_time() - began, found.kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "sdxl", "sdxl", weights=False)
        model = open_model(find_model(f"{folder}/sdxl", weights=False), to_train=False)
        model.outline(model.denoiser_part)
        for kind in ("full", "lora"):
            told = []
            for way, outcomes in (("each time", EachTime()), ("once", Outcomes())):
                Live.outcomes = outcomes
                for turn in ("first", "second"):
                    seconds, kinds = seconds_of(model, kind)
                    told.append(kinds)
                    rows.append({"trained": kind, "asks torch": way, "rehearsal": turn, "seconds": round(seconds, 2)})
                    print(rows[-1], flush=True)
            assert all(kinds == told[0] for kinds in told)
    if asked.out:
        write_measured(asked.out / "planning.json", {"rows": rows})


if __name__ == "__main__":
    main()
