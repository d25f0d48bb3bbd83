"""Whether a training goes on with the run that is there, or begins again beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mapo.errors import count
from mapo.style.stages import set_aside
from mapo.train.config import Config
from mapo.train.run.changes import changed_settings, told_changes
from mapo.train.run.folder import Run, settled, steps_of

LOG = logging.getLogger(__name__)


def go_on(run: Run, config: Config, train: Callable[[], object]) -> str:
    """``train``, unless all is done; where a training cannot go on, the run gets another name before. What there is to
    say of it."""
    if why := begins_again(run, config):
        place = run.folder
        LOG.warning(f"The training begins again: {why}. What was there of {place.name} is now {set_aside(place)}.")
    if not is_finished(run, config):
        train()
    return f"trained for {count(run.finished_steps(), 'step')}; more --steps go on from there"


def begins_again(run: Run, config: Config) -> str:
    """Why a training with these settings cannot go on with the run; empty where it can, or there is none."""
    before = run.before()
    if not before:
        return ""
    config = settled(config, run.folder)
    if changed := changed_settings(config, before):
        return told_changes(changed)
    asked, planned = config.train.steps, before["train"]["steps"]
    done = _done(run)
    if done > asked:
        return f"it has done {count(done, 'step')}, and {asked} are asked for"
    if config.optim.schedule != "constant" and asked not in (planned, done):
        return f"its rate falls to zero at step {planned}"
    return ""


def goes_on(run: Run, config: Config, name: str) -> str:
    """From which step the run called ``name`` goes on, a line of the plan; empty where it is not there or is finished.

    It is one that need not begin again.
    """
    if not run.before():
        return ""
    done, asked = _done(run), settled(config, run.folder).train.steps
    return f"goes on    {name} from step {done} to {asked}; what is made from it follows" if done < asked else ""


def _done(run: Run) -> int:
    return max([run.finished_steps(), *map(steps_of, run.checkpoints())])


def is_finished(run: Run, config: Config) -> bool:
    """Whether the run has all steps that are asked for."""
    return run.finished_steps() == settled(config, run.folder).train.steps


def stays(run: Run, config: Config) -> bool:
    """Whether nothing is left to train."""
    return is_finished(run, config) and not begins_again(run, config)
