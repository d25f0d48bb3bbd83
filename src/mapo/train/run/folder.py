"""The run folder and its one owner.

::

    config.toml               the settings, every one spelled out
    metrics.jsonl             a line per step, each step once
    evaluations.jsonl         a line per measurement on held-out pairs; evaluation_base.json has those of the base
    alarms.jsonl              what `mapo train` warned of, and when
    changes.jsonl             from which step on --allow-change gave it other settings
    pictures/step-…           what the model drew then, where train.pictures_every asks for it
    checkpoints/step-…        weights, moments, and a small state.json that is read without them; RUN@STEP is a model
    weights/                  what was trained, in diffusers' format
    reference.safetensors     with train.reference=before: the reference's errors at every position
    run.json                  how many steps these weights have seen; with it the folder is a model

A run is finished when ``run.json`` says as many steps as the settings ask for. A file is on the disk before an older
one is removed, and what a killed process left half written is swept by the next one.
"""

from __future__ import annotations

import logging
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mapo.arguments import as_folder
from mapo.errors import MapoError, count, reason
from mapo.files import prepare_out, replacing, sweep, write_text
from mapo.models import Opened
from mapo.models.checkpoints import EVALUATIONS, best_of, checkpoints, evaluations, lines_of_steps, pictures
from mapo.settings import merge
from mapo.shards import owned
from mapo.texts import append_lines, line_of, read_object, write_json
from mapo.train.config import Config, make_config, to_toml
from mapo.train.kept import kept
from mapo.train.objectives.own import all_settings, stable_name
from mapo.train.run.changes import MUST_STAY, changed_settings, in_full, moved_place, told_changes
from mapo.train.run.checkpoint import REMEDY, read_state, why_damaged
from mapo.train.sections import RANK

LOG = logging.getLogger(__name__)

FORMAT, VERSION = "mapo-run", 1
REFERENCE = "reference.safetensors"
Identity = dict[str, tuple[str, ...]]  # of what is trained: its hash, and the forms that it had in older versions


class Run:
    """A run folder. Only the first process of a training has one open."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = folder = as_folder("Run(): folder", folder)
        self.log, self.alarm_log = folder / "metrics.jsonl", folder / "alarms.jsonl"
        self.evaluation_log, self.evaluation_base = folder / EVALUATIONS, folder / "evaluation_base.json"
        self.change_log, self._settings = folder / "changes.jsonl", folder / "config.toml"
        self.last_line: Mapping[str, float] = {}  # of the last step that was logged

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def steps(self) -> int:
        """How many steps the final weights have seen; 0 where there are none."""
        return self.finished_steps()

    def metrics(self) -> list[dict[str, Any]]:
        """The line of every step, in order; empty where no step is done. MapoError where the file is damaged."""
        return lines_of_steps(self.log)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only process that writes the folder."""
        prepare_out(self.folder)
        with owned(self.folder):
            yield

    def before(self) -> dict[str, Any]:
        """The settings that the run was begun with; empty where there is no run yet."""
        if not self._settings.exists():
            return {}
        try:
            found = tomllib.loads(self._settings.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise MapoError(f"{self._settings} cannot be read ({reason(error)}). {REMEDY}") from None
        try:
            return in_full(found).model_dump(exclude_none=True)
        except MapoError as error:
            raise MapoError(f"{self._settings}: {error} {REMEDY}") from None

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return list(checkpoints(self.folder).values())

    def finished_steps(self) -> int:
        """How many steps the final weights have seen; 0 where there are none."""
        path = self.folder / "run.json"
        if not path.exists() or not _are_whole(self.folder / "weights"):
            return 0
        steps = read_object(path, "a run", REMEDY).get("steps", 0)
        return steps if isinstance(steps, int) else 0

    def accept(self, config: Config, identity: Identity, allow_change: bool = False) -> Path | None:
        """The newest checkpoint that is whole, if any; ``config`` is refused in a sentence where it does not go on.

        With ``allow_change`` settings may be others than before, where the checkpoint's tensors still fit. A newer
        checkpoint that is damaged is set aside, which is said.
        """
        if not self._settings.exists():
            others = [p for p in self.folder.iterdir() if p.name != REFERENCE] if self.folder.is_dir() else []
            if others or (self.folder.exists() and not self.folder.is_dir()):
                raise MapoError(f"{self.folder} exists and is not a run folder. Choose another --out.")
            return None
        found, damaged = self.checkpoints(), list[tuple[Path, str]]()
        is_done = bool(found) and steps_of(found[-1]) == config.train.steps == self.finished_steps()
        while found and not is_done and (why := why_damaged(found[-1])):
            damaged.append((found.pop(), why))
        alone = damaged if not found else []  # then nothing is set aside
        if alone:
            found, damaged = [alone[0][0]], []
        if found or self.finished_steps():  # else nothing is bound to the settings yet
            self._refuse_another(config, found[-1] if found else None, identity, allow_change)
        if alone:
            path, why = alone[0]
            raise MapoError(f"The checkpoint {path} is damaged ({why}). {REMEDY}")
        for path, why in damaged:
            aside = _free(path.with_name(f"{path.name}.damaged"))
            path.rename(aside)
            LOG.warning(
                f"The checkpoint of step {steps_of(path)} is damaged ({why}), so training goes on from that of step "
                f"{steps_of(found[-1])}. The damaged one is now {aside.name}."
            )
        return found[-1] if found else None

    def sweep(self) -> None:
        """Remove what a killed process left half written in the folder."""
        for place in (self.folder, self.folder / "checkpoints"):
            sweep(place)

    def bind(self, config: Config, step: int) -> None:
        """Write the settings that are trained with from here on, and leave out of the log what came after ``step``.

        Settings that are others than before are written down.
        """
        before = self.before()
        self.folder.mkdir(exist_ok=True)
        for log in (self.log, self.evaluation_log, self.alarm_log, self.change_log):
            if log.exists():
                self._cut(log, step)
        if step:
            self._add_torn(step)
        if before and step and (changed := changed_settings(config, before)):
            append_lines(self.change_log, [{"step": step, "changed": changed}])
            LOG.info(f"From step {step} on with other settings: {told_changes(changed)}.{moved_place(changed, step)}")
        write_text(self._settings, to_toml(config), sync=True)
        for later in self.pictures():
            if later > step:
                shutil.rmtree(self.pictures_at(later), ignore_errors=True)

    def _cut(self, log: Path, step: int) -> None:
        """Leave out of a file of lines what came after ``step``; all of it where training begins again."""
        kept = [line for line in lines_of_steps(log) if line["step"] <= step] if step else []
        write_text(log, "".join(map(line_of, kept)))

    def _add_torn(self, step: int) -> None:
        """Add the line of the step of a checkpoint where it was not whole on the disk: the checkpoint has it too."""
        line = read_state(self.checkpoint_at(step)).get("line")
        rows = self.metrics()
        if isinstance(line, dict) and line.get("step") == step and (rows[-1]["step"] if rows else 0) == step - 1:
            append_lines(self.log, [line])

    def _refuse_another(self, config: Config, checkpoint: Path | None, identity: Identity, allow_change: bool) -> None:
        before, state = self.before(), read_state(checkpoint) if checkpoint else None
        if state is not None and not identity.keys() <= state.keys():
            raise MapoError(f"{checkpoint}/state.json is damaged: it does not say what was trained. {REMEDY}")
        changed = changed_settings(config, before)
        own = f"{config.objective.name.rpartition(':')[0]} or of a file that it imports"
        others = [key for key, forms in identity.items() if state and state[key] not in forms]
        contents = [f"the content of {own if key == 'objective' else key}" for key in others]
        fixed = [name for name in changed if name in MUST_STAY] + contents * ("model" in others)
        if (changed or contents) and (fixed or not allow_change):
            values = f": {told_changes(changed)}" if changed else ""
            remedy = "" if fixed else "To go on here all the same, add --allow-change. "
            if fixed and allow_change:
                remedy = f"--allow-change does not help: the checkpoint does not fit ({', '.join(fixed)}). "
            raise MapoError(
                f"{self.folder} was made with other settings ({', '.join([*changed, *contents])}){values}. {remedy}"
                "Choose another --out, or delete it first."
            )
        done = steps_of(checkpoint) if checkpoint else self.finished_steps()
        asked, planned = config.train.steps, before["train"]["steps"]
        if done > asked:
            raise MapoError(
                f"{self.folder} has done {count(done, 'step')} already, and train.steps asks for {asked}. Ask for "
                "more, or choose another --out."
            )
        if checkpoint is None and asked > done:
            raise MapoError(
                f"{self.folder} has its final weights of {count(done, 'step')} but no checkpoint to go on from. Train "
                f"further from them in another folder: mapo train --model {self.folder} --out OTHER."
            )
        if config.optim.schedule != "constant" and asked not in (planned, done) and not allow_change:
            raise MapoError(
                f"{self.folder} was begun with {count(planned, 'step')} of optim.schedule={config.optim.schedule}, and "
                f"its rate falls to zero there. With {count(asked, 'step')} the rate would jump after step {done}. "
                "Train further in "
                f"another folder, with a rate of its own: mapo train --model {self.folder} --out OTHER. Or begin "
                f"again with train.steps={asked} in another --out."
            )

    def pictures(self) -> list[int]:
        """The steps of which there are pictures, in order."""
        return [*pictures(self.folder)]

    def pictures_at(self, step: int) -> Path:
        """Where the pictures of a step lie, an images folder."""
        return self.folder / "pictures" / f"step-{step:08d}"

    def evaluations(self) -> list[dict[str, Any]]:
        """The measurements on held-out pairs, in order; empty where there are none. MapoError where one is damaged."""
        return evaluations(self.folder)

    def alarms(self) -> list[dict[str, Any]]:
        """What was warned of, ``step``, ``name`` and ``says`` each, in order."""
        return lines_of_steps(self.alarm_log)

    def log_step(self, values: Mapping[str, float]) -> None:
        """Add the line of one step."""
        append_lines(self.log, [values])
        self.last_line = values

    def keep(self, rule: int | str) -> None:
        """Remove the checkpoints that the ``rule`` (``train.keep_checkpoints``) does not keep; the newest one, which is
        on the disk, stays."""
        rules, made = kept(rule), checkpoints(self.folder)
        best = best_of(self.evaluations(), made) if rules.best else None
        for step in rules.spent([*made], best):
            try:
                shutil.rmtree(made[step])
            except OSError as error:
                LOG.info(f"Note: the older checkpoint {made[step]} could not be removed ({error.strerror}).")

    def checkpoint_at(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / "checkpoints" / f"step-{step:08d}"

    @contextmanager
    def final_weights(self) -> Iterator[Path]:
        """A folder to write the final weights into. While they change places the folder is not a model."""
        with replacing(self.folder / "weights", sync=True) as temporary:
            temporary.mkdir()
            yield temporary
            (self.folder / "run.json").unlink(missing_ok=True)

    def about(self, config: Config, model: Opened, sensitive: bool) -> dict[str, Any]:
        """What is trained, and what it stands on."""
        files = model.files
        about = {
            "base": files.stable_name,
            "adapter": config.adapter.kind,
            "denoiser": model.denoiser_part,
            "objective": config.objective.name,
            "sensitive": sensitive,  # reports about its pictures blur them until asked
        }
        if named := files.named_loras_told():  # they are in the weights
            about["loras"] = named
            about["start"] = config.adapter.start
        if config.adapter.token:
            about["token"] = config.adapter.token
        about |= {"clip_skip": files.clip_skip, "long_prompts": files.long_prompts}
        if files.long_prompts == "chunk":
            about["chunks"] = files.chunks
        if files.vae:
            about["vae"] = files.vae.name
        if files.prediction:
            about["prediction"] = files.prediction
        if config.train.ema is not None:
            about["ema"] = config.train.ema  # the weights are a running mean of the trained ones
        if files.is_local:
            about["base_from_here"] = os.path.relpath(files.name, self.folder)
            about["base_revision"] = files.without_named_loras().revision()
        return about

    def finish(self, config: Config, model: Opened, sensitive: bool, device: str, processes: int) -> None:
        """Write ``run.json``: that the weights are whole, what they stand on, and what they were trained on."""
        step = config.train.steps
        about = {"format": FORMAT, "version": VERSION, **self.about(config, model, sensitive)}
        about |= {"steps": step, "pairs_seen": step * config.train.pairs_per_step}
        about |= {"device": device, "processes": processes}  # of the last steps
        about["denoiser"] = f"weights/{model.denoiser_part}"
        if config.adapter.kind == "lora":
            about["denoiser"] = "weights"
            about["holds_loras_below"] = True  # one file for what was trained here and for the LoRAs that it stands on
        write_json(self.folder / "run.json", about, sync=True)


def _free(path: Path) -> Path:
    """``path``, or where that is taken a name beside it with the first number that is free."""
    taken = {there.name for there in path.parent.iterdir()}
    names = (path.name, *(f"{path.name}-{number}" for number in range(2, len(taken) + 3)))
    return path.with_name(next(name for name in names if name not in taken))


def _are_whole(weights: Path) -> bool:
    """Whether final weights are there, as far as their names and heads tell."""
    files = [*weights.glob("pytorch_lora_weights.safetensors"), *weights.glob("*/*.safetensors")]
    parts = [path for path in weights.glob("*") if path.is_dir()]
    if not files or not all((part / "config.json").exists() for part in parts):
        return False
    try:
        for file in files:
            with safe_open(file, "pt"):
                pass
    except (OSError, SafetensorError):
        return False
    return True


def steps_of(checkpoint: Path) -> int:
    """How many steps a checkpoint has seen, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def settled(config: Config, out: Path | None) -> Config:
    """The settings of a training into ``out``: what ``config`` says, then what the run there says, then the defaults.

    ``config`` says what was set in it by name. Without ``out`` there is no run before. An unknown objective or
    setting of it is an error.
    """
    said = config.model_dump(exclude_unset=True)
    before = Run(out).before() if out else {}
    merged = merge(merge({}, before), said)
    name = stable_name(merged.get("objective", {}).get("name", config.objective.name))
    if before and name != before["objective"]["name"]:
        merged["objective"] = said["objective"]  # it will be refused: by the name, not by the other one's settings
    settings = {k: v for k, v in merged.get("objective", {}).items() if k != "name"}
    merged["objective"] = {"name": name, **all_settings(name, settings)}
    found = make_config(merged)
    if found.adapter.rank is None and found.adapter.start != "continued":
        merged = merge(merged, {"adapter": {"rank": RANK}})
        found = make_config(merged)
    if found.optim.lr is None:
        found = make_config(merge(merged, {"optim": {"lr": found.rate}}))
    return found
