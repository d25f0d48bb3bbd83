"""What is known of a run that is exported: what it stands on, what it was trained with and on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.files import own_place
from mapo.models import Opened
from mapo.models.checkpoints import evaluations
from mapo.models.files import at_step, is_there
from mapo.models.sources.steps import checkpoint_of
from mapo.report.training import Training, read_training
from mapo.score.table import read_scores
from mapo.texts import read_object
from mapo.train.run.folder import Run
from mapo.worlds import MODELS

HUB_FOLDER = "models--"  # how the hub's cache begins the name of a model's folder
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Base:
    """The model at the bottom of a run: its hub id or "", how it is called, and where it lies."""

    hub_id: str
    called: str
    place: Path
    is_world: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is one file."""
        return self.place.is_file()


@dataclass(frozen=True)
class RunFacts:
    """A run, or its checkpoint at a step, with what its card tells."""

    folder: Path
    step: int | None  # of a checkpoint; None: the finished run
    about: Mapping[str, Any]  # what run.json or the checkpoint says
    config: Mapping[str, Any]
    base: Base
    training: Training
    loras: Sequence[Mapping[str, Any]] = ()  # that lay on it and on the runs below it: their file, weight and sha256

    @property
    def is_lora(self) -> bool:
        """Whether a LoRA was trained, and not every weight."""
        return bool(self.about["adapter"] == "lora")

    @property
    def steps(self) -> int:
        """How many steps its weights have seen."""
        return int(self.about.get("steps", 0) if self.step is None else self.step)

    @property
    def sensitive(self) -> bool:
        """Whether a set that it was trained on is marked sensitive."""
        return bool(self.about.get("sensitive"))


def is_run(source: str) -> bool:
    """Whether a name is that of a run folder or of a checkpoint in one."""
    return at_step(source) is not None or any((Path(source) / name).is_file() for name in ("run.json", "config.toml"))


def read_facts(name: str, opened: Opened, base_model: str | None = None) -> RunFacts:
    """What is known of the run ``name``; ``base_model`` is the hub id of a base that is a folder or a file."""
    found = at_step(name)
    folder, step = found if found else (Path(name), None)
    about = _about(name)
    assert about is not None  # it was opened
    root, loras = _below(name)
    base = _base(root, opened, base_model)
    return RunFacts(folder, step, about, Run(folder).before(), base, read_training(folder), loras)


def _about(name: str) -> Mapping[str, Any] | None:
    """What a run or checkpoint says of itself; None for other models."""
    if found := at_step(name):
        return checkpoint_of(*found)[1]
    path = Path(name) / "run.json"
    if name in MODELS or not path.is_file():
        return None
    return read_object(path, "a run folder", "Run the same `mapo train` command again: it writes the file anew.")


def _below(name: str) -> tuple[str, list[Mapping[str, Any]]]:
    """The name of the model at the bottom, and the LoRAs that were named on the way: runs may stand on runs."""
    seen: set[str] = set()
    loras: list[Mapping[str, Any]] = []
    while name not in seen and (about := _about(name)) is not None:
        seen.add(name)
        loras = [*(about.get("loras") or ()), *loras]
        folder = found[0] if (found := at_step(name)) else Path(name)
        near = str(own_place(folder / str(about.get("base_from_here", ""))))  # where both were moved together
        name = near if about.get("base_from_here") and is_there(near) else str(about["base"])
    return name, loras


def _base(root: str, opened: Opened, base_model: str | None) -> Base:
    place, world = Path(root) if Path(root).is_file() else opened.files.base, root in MODELS
    hub_id = ""
    if not world and not Path(root).is_absolute() and HUB_ID.fullmatch(re.split(r"[@:]", root)[0]):
        hub_id = re.split(r"[@:]", root)[0]
    elif not world:
        hub_id = _id_of_cache(place)
    if base_model is not None:
        if not HUB_ID.fullmatch(base_model):
            raise MapoError(f"--base-model is {base_model!r}; write the hub id of the base, OWNER/NAME.")
        if world or hub_id not in ("", base_model):
            raise MapoError(f"--base-model is {base_model}, but the run was trained on {hub_id or root}. Leave it out.")
        hub_id = base_model
    return Base(hub_id, hub_id or (root if world else Path(root).name), place, world)


def _id_of_cache(place: Path) -> str:
    """The hub id of a model in the hub's own cache, by the name of its folder; empty elsewhere."""
    folder = next((part for part in place.absolute().parts if part.startswith(HUB_FOLDER)), "")
    return folder.removeprefix(HUB_FOLDER).replace("--", "/", 1)


def held_out(folder: Path, step: int) -> str:
    """What a run measured last on held-out pairs, up to a step, in words; empty where nothing was measured."""
    rows = evaluations(folder)
    rows = [row for row in rows if row["step"] <= step and row.get("of") == rows[-1].get("of")]
    if not rows:
        return ""
    by_step = {row["step"]: _measured(row) for row in rows}
    last = max(by_step)
    before = f"; before training {by_step[0]}" if last and 0 in by_step else ""
    return f"{by_step[last]} at step {last:,}{before}"


def _measured(row: Mapping[str, Any]) -> str:
    if "accuracy" in row:
        return f"accuracy {row['accuracy']:.1%}, margin {row.get('margin', 0):.3g}"
    return f"error of the chosen pictures {row.get('error_chosen', 0):.3g}"


@dataclass(frozen=True)
class Evaluation:
    """Means of scores: the models as columns, and a row for each metric with how many pictures have it."""

    models: Sequence[str]
    rows: Sequence[tuple[str, int, Sequence[str]]]


def read_evaluation(tables: Sequence[Path], own_names: Sequence[str]) -> Evaluation | None:
    """The means of tables of `mapo score`, by metric and model; None without tables.

    ``own_names`` are those of the run in these tables. MapoError where none of them is there.
    """
    import pyarrow as pa

    if not tables:
        return None
    table = pa.concat_tables([read_scores(path) for path in tables])
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in table.select(["model", "scorer", "metric", "value"]).to_pylist():
        if row["value"] is not None:
            values.setdefault((row["scorer"], row["metric"]), {}).setdefault(row["model"], []).append(row["value"])
    models = list(dict.fromkeys(model for by_model in values.values() for model in by_model))
    own = [model for model in models if model in own_names]
    if not own:
        there = ", ".join(models) or "nothing"
        raise MapoError(
            f"--scores: no picture of {own_names[0]} is in {' or '.join(map(str, tables))}; there are those of {there}."
            " Draw with the run, and score the pictures."
        )
    ordered = [model for model in models if model not in own] + own
    rows = []
    for (scorer, metric), by_model in sorted(values.items()):
        means = [f"{sum(v) / len(v):.4g}" if (v := by_model.get(model)) else "" for model in ordered]
        rows.append((f"{metric} ({scorer})", max(map(len, by_model.values())), means))
    return Evaluation([_shown(model, own) for model in ordered], rows)


def _shown(model: str, own: Sequence[str]) -> str:
    if model in own:
        return "this model"
    return Path(model).name if Path(model).is_absolute() else model
