"""The run folder and its one owner.

::

    config.toml               the settings, every one spelled out
    metrics.jsonl             a line per step, each step once
    checkpoints/step-…        weights, moments, and a small state.json that is read without them
    weights/                  what was trained, in diffusers' format
    run.json                  how many steps these weights have seen; with it the folder is a model

A run is finished when ``run.json`` says as many steps as the settings ask for. A file is on the disk before an older
one is removed, and what a killed process left half written is swept by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mapo.checkpoint import read_state
from mapo.config import Config, differences, make_config, merge, to_toml
from mapo.errors import MapoError, count, suggest
from mapo.families import Model
from mapo.files import append_lines, prepare_out, read_lines, read_object, replacing, sweep, write_json, write_text
from mapo.objectives import OBJECTIVES, settings_of
from mapo.shards import owned

FORMAT, VERSION = "mapo-run", 1
REMEDY = "Delete it, or restore it from a copy, then run the same command again."
MAY_CHANGE = {
    "cache",
    "pairs",
    "model",
    "train.steps",
    "train.save_every_steps",
    "train.pairs_per_device",
    "train.gradient_checkpointing",
    "data.images_per_batch",
}
# Settings that came after 0.1.0, with what they mean in a run that does not name them.
AS_IN_0_1_0: dict[str, Any] = {"data": {"images_per_batch": 8}}


class Run:
    """A run folder. Only the first process of a training has one open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "metrics.jsonl"
        self._settings = folder / "config.toml"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only process that writes the folder, and sweep what a killed one left in it."""
        prepare_out(self.folder)
        with owned(self.folder):
            for place in (self.folder, self.folder / "checkpoints"):
                sweep(place)
            yield

    def before(self) -> dict[str, Any]:
        """The settings that the run was begun with; empty where there is no run yet."""
        if not self._settings.exists():
            return {}
        try:
            found = tomllib.loads(self._settings.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise MapoError(f"{self._settings} cannot be read ({error}). {REMEDY}") from None
        return merge(merge({}, AS_IN_0_1_0), found)

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def finished_steps(self) -> int:
        """How many steps the final weights have seen; 0 where there are none."""
        path = self.folder / "run.json"
        if not path.exists() or not (self.folder / "weights").exists():
            return 0
        steps = read_object(path, "a run", REMEDY).get("steps", 0)
        return steps if isinstance(steps, int) else 0

    def accept(self, config: Config, identity: Mapping[str, str]) -> Path | None:
        """The newest checkpoint, if any; ``config`` is refused in a sentence where it does not go on from there."""
        if not self._settings.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise MapoError(f"{self.folder} exists and is not a run folder. Choose another --out.")
            return None
        found = self.checkpoints()
        if found:  # else nothing is bound to the settings yet
            self._refuse_another(config, found[-1], identity)
        return found[-1] if found else None

    def bind(self, config: Config, step: int) -> None:
        """Write the settings that are trained with from here on, and leave out of the log what came after ``step``."""
        self.folder.mkdir(exist_ok=True)
        write_text(self._settings, to_toml(config), sync=True)
        if self.log.exists():
            kept = [line for line in read_lines(self.log) if line["step"] <= step]
            write_text(self.log, "".join(json.dumps(line) + "\n" for line in kept))

    def _refuse_another(self, config: Config, checkpoint: Path, identity: Mapping[str, str]) -> None:
        before, state = self.before(), read_state(checkpoint)
        changed = [k for k in differences(before, tomllib.loads(to_toml(config))) if k not in MAY_CHANGE]
        changed += [f"the content of {k}" for k, v in identity.items() if state.get(k) != v]
        if changed:
            raise MapoError(
                f"{self.folder} was made with other settings ({', '.join(changed)}). Choose another --out, or delete "
                "it first."
            )
        done, asked, planned = steps_of(checkpoint), config.train.steps, before["train"]["steps"]
        if done > asked:
            raise MapoError(f"{self.folder} has done {count(done, 'step')} already, train.steps asks for {asked}.")
        if config.optim.schedule != "constant" and asked not in (planned, done):
            raise MapoError(
                f"{self.folder} was begun with {count(planned, 'step')} of optim.schedule={config.optim.schedule}, and "
                f"its rate falls to zero there. With {count(asked, 'step')} the rate would jump after step {done}. "
                "Train further in "
                f"another folder, with a rate of its own: mapo train --model {self.folder} --out OTHER. Or begin "
                f"again with train.steps={asked} in another --out."
            )

    def log_step(self, values: Mapping[str, float]) -> None:
        """Add the line of one step."""
        append_lines(self.log, [values])

    def keep_only(self, checkpoint: Path) -> None:
        """Remove older checkpoints; the one named is on the disk."""
        for old in self.checkpoints():
            if old != checkpoint:
                shutil.rmtree(old)

    def checkpoint_at(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / "checkpoints" / f"step-{step:08d}"

    @contextmanager
    def final_weights(self) -> Iterator[Path]:
        """A folder to write the final weights into. While they change places the folder is no model."""
        with replacing(self.folder / "weights", sync=True) as temporary:
            temporary.mkdir()
            yield temporary
            (self.folder / "run.json").unlink(missing_ok=True)

    def finish(self, config: Config, model: Model, step: int, sensitive: bool) -> None:
        """Write ``run.json``, which says that the weights are whole and what they stand on."""
        about = {
            "format": FORMAT,
            "version": VERSION,
            "base": model.stable_name,
            "adapter": config.adapter.kind,
            "denoiser": "weights" if config.adapter.kind == "lora" else "weights/unet",
            "objective": config.objective.name,
            "steps": step,
            "pairs_seen": step * config.train.pairs_per_step,
            "sensitive": sensitive,  # reports about its pictures blur them until asked
        }
        if config.adapter.kind == "lora":
            about["holds_loras_below"] = True  # one file for what was trained here and for the LoRAs that it stands on
        if model.is_local:
            about["base_from_here"] = os.path.relpath(model.name, self.folder)
            about["base_revision"] = model.revision()
        write_json(self.folder / "run.json", about, sync=True)


def steps_of(checkpoint: Path) -> int:
    """How many steps a checkpoint has seen, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def settled(config: Config, out: Path) -> Config:
    """The settings of a training into ``out``: what ``config`` says, then what the run there says, then the defaults.

    ``config`` says what was set in it by name. An unknown objective or setting of it is an error.
    """
    said = config.model_dump(exclude_unset=True)
    before = Run(out).before()
    merged = merge(merge({}, before), said)
    name = merged.get("objective", {}).get("name", config.objective.name)
    if before and name != before["objective"]["name"]:
        merged["objective"] = said["objective"]  # it will be refused: by the name, not by the other one's settings
    settings = {k: v for k, v in merged.get("objective", {}).items() if k != "name"}
    merged["objective"] = {"name": name, **_objective_settings(name, settings)}
    found = make_config(merged)
    if found.optim.lr is None:
        found = make_config(merge(merged, {"optim": {"lr": found.rate}}))
    return found


def _objective_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of an objective, those that were given on top of its defaults."""
    if name not in OBJECTIVES:
        raise MapoError(f"There is no objective {name!r}. {suggest(name, OBJECTIVES)}")
    known = settings_of(name)
    for key, value in given.items():
        if key not in known:
            raise MapoError(
                f"The objective {name} has no setting {key!r}. {suggest(key, known) if known else ''}".strip()
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MapoError(f"The setting objective.{key} = {value!r} is not a number.")
    return {**known, **given}
