"""What a person should hear of while training goes on: each alarm is a sentence, and comes once in a run.

An alarm is a pure function of the lines of ``metrics.jsonl`` or ``evaluations.jsonl``. It changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mapo.errors import count
from mapo.pairs import PairSet
from mapo.pairs.splits import prompt_id
from mapo.statistics import Floats
from mapo.train.objectives import Objective
from mapo.train.objectives.reach import reach

Metrics = Mapping[str, Any]  # a line of metrics.jsonl or evaluations.jsonl
Alarm = tuple[str, str]  # its name and what it says

OF_BOTH = ("margin", "error_chosen", "error_rejected")
WINDOW = 50  # steps whose mean is compared with that of the first so many
EARLY = 5  # steps of a training that may be spoiled before a window of it is over
RISE, RISE_IN_TRAINING = 0.05, 0.10  # of both errors, as a share; training's differ in noise and times
LEAP = 1.0  # of both errors against those few, as a share
SURE = 4.0  # standard errors by which what is seen in training has to stand out
FAR = 0.9  # share of pairs beyond the margin's reach that is called nearly all
HARDLY = 0.01  # a push below this share of SFT's pull is not worth the name
NEARLY_ALL = 0.95  # an accuracy that is too good to be taken without a question


class Alarms:
    """Hears every step and every evaluation of a run and gives the alarms that are new.

    ``leak`` finds out what else may tell held-out pairs apart than what the model has learned: a sentence, or nothing.
    ``said`` are the names of the alarms that people have heard, also in an earlier part of the run.
    """

    def __init__(
        self, name: str, objective: Objective, settings: Mapping[str, float], leak: Callable[[], str] = lambda: ""
    ) -> None:
        self.name, self.objective, self.settings, self.leak = name, objective, settings, leak
        self.said = set[str]()
        self.first: list[Metrics] = []
        self.last: deque[Metrics] = deque(maxlen=WINDOW)
        self.evaluated = self.asked = False

    def remember(self, steps: Iterable[Metrics], said: Iterable[Metrics], *, evaluated: bool) -> None:
        """Go on from the lines of an earlier part of the run. What was only found out now nobody has heard."""
        for values in steps:
            self.step(values)
        self.said, self.evaluated = {str(line.get("name")) for line in said}, evaluated

    def step(self, values: Metrics) -> list[Alarm]:
        """The new alarms after a step of training."""
        if any(name not in values for name in OF_BOTH):  # only chosen pictures were run, or the line was written over
            return []
        if len(self.first) < WINDOW:
            self.first.append(values)
        self.last.append(values)
        if len(self.last) < WINDOW or values["step"] % WINDOW:
            return []
        found = [("both_errors_rise", both_rise(self.first[:EARLY], list(self.last), LEAP))]
        if len(self.first) == WINDOW and values["step"] >= 2 * WINDOW:
            found.append(("both_errors_rise", both_rise(self.first, list(self.last))))
        if not self.evaluated:  # else it is known better
            found += self._of_margin(**margin_in_training(self.objective, self.settings, list(self.last)))
        return self._new(found)

    def evaluation(self, row: Metrics) -> list[Alarm]:
        """The new alarms after a measurement on held-out pairs."""
        self.evaluated = True
        if "accuracy" not in row:  # there are no rejected pictures
            return []
        found = [
            ("both_errors_rise", both_rise_held_out(row)),
            *self._of_margin(row.get("push"), row.get("beyond_reach")),
        ]
        if row["accuracy"] >= NEARLY_ALL and not self.asked:
            self.asked = True
            found.append(("leak", leaking(row, self.leak())))
        return self._new(found)

    def _of_margin(self, push: float | None, beyond_reach: float | None) -> list[Alarm]:
        if push is None or beyond_reach is None or self.objective.logit is None:
            return []
        told = f"{self.name} with beta {self.settings['beta']:g}" if "beta" in self.settings else self.name
        if push < HARDLY and not self.objective.needs_reference:
            return [("only_sft", only_sft(told, push))]
        return [("out_of_reach", out_of_reach(told, beyond_reach, self.objective.needs_reference))]

    def _new(self, found: Iterable[Alarm]) -> list[Alarm]:
        new = {name: says for name, says in found if says and name not in self.said}
        self.said |= new.keys()
        return list(new.items())


def both_rise(first: Sequence[Metrics], last: Sequence[Metrics], least: float = RISE_IN_TRAINING) -> str:
    """Whether both errors of training are surely higher than at the start, by ``least``; empty where they are not.

    How much a few numbers scatter cannot be told by them: where the first are fewer they scatter as the last do.
    """
    rises = []
    for name in ("error_chosen", "error_rejected"):
        before, now = (np.array([float(row[name]) for row in rows]) for rows in (first, last))
        variance = (before if len(before) == len(now) else now).var(ddof=1)
        spread = math.sqrt(variance / len(before) + now.var(ddof=1) / len(now))
        rise = float(now.mean() / before.mean() - 1) if before.mean() > 0 else 0.0
        if rise < least or now.mean() - before.mean() < SURE * spread:
            return ""
        rises.append(f"{rise:+.0%}")
    return (
        f"The errors of chosen and of rejected pictures both rise: {rises[0]} and {rises[1]} in the last {len(last)} "
        f"steps against the first {len(first)}. {LEAVES}"
    )


LEAVES = (
    "The model is leaving the data, and pictures get worse although the margin may grow. Try a lower optim.lr, fewer "
    "steps, or a weaker margin."
)


def both_rise_held_out(row: Metrics) -> str:
    """Whether both errors on held-out pairs are higher than the base's; empty where they are not."""
    rises = [float(row[f"error_{side}_change"]) for side in ("chosen", "rejected")]
    if min(rises) < RISE:
        return ""
    return (
        f"On held-out pairs the errors of chosen and of rejected pictures are both above the base's: {rises[0]:+.0%} "
        f"and {rises[1]:+.0%}. {LEAVES}"
    )


def margin_in_training(
    objective: Objective, settings: Mapping[str, float], last: Sequence[Metrics]
) -> dict[str, float | None]:
    """``push`` and ``beyond_reach`` (0 or 1) at the mean errors of some steps: all that ``metrics.jsonl`` tells."""
    chosen, rejected = (float(np.mean([row[f"error_{side}"] for row in last])) for side in ("chosen", "rejected"))
    margins = np.array([float(row.get("margin_over_reference", row["margin"])) for row in last])
    surely = margins.mean() - SURE * math.sqrt(margins.var(ddof=1) / len(margins))
    try:
        here = reach(objective, settings, min(chosen, rejected))
    except Exception:  # somebody's own objective, which may ask more of residuals than one element
        return {"push": None, "beyond_reach": None}
    return {"push": here.push, "beyond_reach": float(here.margin is not None and surely > here.margin)}


def out_of_reach(told: str, beyond: float, over_reference: bool) -> str:
    """Whether nearly all pairs are where the margin hardly pushes any more; empty where they are not."""
    if beyond < FAR:
        return ""
    share = "on average" if beyond == 1 else f"in {beyond:.0%} of pairs"
    left = "little is learned" if over_reference else "almost only the chosen pictures teach, as in SFT"
    return (
        f"The margin of {told} is out of reach: {share} the two pictures are so far apart that less than a tenth of "
        f"its push is left. From here on {left}. This is not a fault: where the pictures are as you wish, nothing has "
        "to be done. To learn more from rejected pictures begin another run with another beta or objective; more steps "
        "of this one will not do it."
    )


def only_sft(told: str, push: float) -> str:
    """That the margin hardly counts beside the supervised term."""
    return (
        f"{told} is all but SFT here: at the errors of these pairs its margin pushes {push:.1g} times as hard as SFT "
        "learns the chosen picture. Another beta or another objective would use the rejected pictures."
    )


def leaking(row: Metrics, why: str) -> str:
    """What a held-out accuracy of 100 % is worth where there is a leak; empty where none is known."""
    if not why:
        return ""
    return f"The held-out accuracy is {row['accuracy']:.0%}, but the model may not have earned it: {why}"


def shared(pairs: PairSet, trained: Floats, held: Floats) -> str:
    """What held-out pairs have in common with those that are trained on, in a sentence; empty where that is nothing.

    ``trained`` and ``held`` are rows of the set.
    """
    columns = {name: pairs.table[name] for name in ("prompt", "chosen", "rejected")}
    theirs = {name: column.take(trained).to_pylist() for name, column in columns.items()}
    ours = {name: column.take(held).to_pylist() for name, column in columns.items()}
    prompts = {prompt_id(prompt) for prompt in set(theirs["prompt"])}
    pictures = {*theirs["chosen"], *theirs["rejected"]}
    by_prompt = sum(prompt_id(prompt) in prompts for prompt in ours["prompt"])
    by_picture = sum(
        one in pictures or two in pictures for one, two in zip(ours["chosen"], ours["rejected"], strict=True)
    )
    said = [f"{by_prompt} share their prompt"] if by_prompt else []
    said += [f"{by_picture} share a picture"] if by_picture else []
    if not said:
        return ""
    return f"of {count(len(held), 'held-out pair')} {' and '.join(said)} with pairs that are trained on."
