"""Whether a training goes on with the run that is there, or begins again beside it."""

from __future__ import annotations

from mapo.errors import count
from mapo.train.config import Config
from mapo.train.run.changes import changed_settings, told_changes
from mapo.train.run.folder import Run, settled, steps_of


def begins_again(run: Run, config: Config) -> str:
    """Why a training with these settings cannot go on with the run; empty where it can, or there is none."""
    before = run.before()
    if not before:
        return ""
    config = settled(config, run.folder)
    if changed := changed_settings(config, before):
        return told_changes(changed)
    asked, planned = config.train.steps, before["train"]["steps"]
    done = max([run.finished_steps(), *map(steps_of, run.checkpoints())])
    if done > asked:
        return f"it has done {count(done, 'step')}, and {asked} are asked for"
    if config.optim.schedule != "constant" and asked not in (planned, done):
        return f"its rate falls to zero at step {planned}"
    return ""


def is_finished(run: Run, config: Config) -> bool:
    """Whether the run has all steps that are asked for."""
    return run.finished_steps() == settled(config, run.folder).train.steps
