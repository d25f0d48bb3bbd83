"""The study with few prompts, held-out pairs and sampling steps, in this process and in those of its trainings."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apart import forkserver
from mapo.lab.study import cost, domains, runs
from mapo.statistics import MIN_PROMPTS

PROMPTS, HELD_OUT, STEPS, SAMPLING_STEPS = MIN_PROMPTS, 8, 6, 4
RUN, LOOK, COST, ASKED = runs.run, runs.look, cost._one, domains.Domain.prompts
SAMPLING = runs.default_sampling


@contextmanager
def few() -> Iterator[pytest.MonkeyPatch]:
    """A study is made small for this block; processes begin as copies of one that has loaded the libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domains.Domain, "prompts", lambda *asked: tuple(found[:PROMPTS] for found in ASKED(*asked)))
        patch.setattr(runs, "HELD_OUT", HELD_OUT)
        patch.setattr(runs, "default_sampling", lambda model: SAMPLING(model, steps=SAMPLING_STEPS))
        patch.setattr(cost, "STEPS", STEPS)
        patch.setattr(cost, "_one", one_cost)
        patch.setattr(runs, "run", run)
        patch.setattr(runs, "look", look)
        patch.setattr(multiprocessing, "get_context", lambda _: forkserver())
        yield patch


def run(work: Path, job: runs.Job, model: str) -> list[dict[str, Any]]:
    with few():
        return RUN(work, job, model)


def look(work: Path, job: runs.Job, model: str) -> dict[str, Any]:
    with few():
        return LOOK(work, job, model)


def one_cost(work: Path, model: str, domain: str, method: str) -> dict[str, Any]:
    with few():
        return COST(work, model, domain, method)
