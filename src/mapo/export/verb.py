"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapo.errors import MapoError, count, suggest
from mapo.export.pairs import describe as of_pairs
from mapo.export.pairs import export_pairs, export_to_hub, parse_licences
from mapo.files import named
from mapo.models.checkpoints import runs_inside
from mapo.pairs import PairSet

OF_PAIRS = ("preference", "pickapic", "hub")
OF_RUNS = ("diffusers", "lora", "kohya", "embedding", "single-file", "hub")
FLAGS = {"licence": "license", "source_licences": "source-license"}  # whose names differ from those in Python


@dataclass(frozen=True)
class Exported:
    """The folder or file that was written, what was counted (nothing where it was there before), and its address on
    the hub."""

    folder: Path
    counts: Mapping[str, int]
    address: str = ""

    def __fspath__(self) -> str:
        return str(self.folder)


def export(
    source: str, to: str, out: Path | None, *, on_missing_picture: str = "stop", source_licences: Sequence[str] = (),
    licence: str | None = None, repo: str | None = None, private: bool | None = None, precision: str | None = None,
    scores: Sequence[Path] = (), base_model: str | None = None, embedding: Path | None = None, api: Any = None,
) -> Exported:  # fmt: skip
    """Write a set of pairs, or a run or its checkpoint, in the form ``to``. ``api`` is a ``huggingface_hub.HfApi``.

    ``embedding`` is the file in which the token of a run is left too.
    """
    is_set = (Path(source) / "set.json").is_file() or not _is_run(source)
    forms, others = (OF_PAIRS, OF_RUNS) if is_set else (OF_RUNS, OF_PAIRS)
    what = "a pairs set" if is_set else "a run"
    if not source.strip():
        raise MapoError("The name of what is exported is empty. Give a pairs set, a run, or RUN@STEP.")
    if is_set and to in OF_RUNS and to not in OF_PAIRS and not (Path(source) / "set.json").is_file():
        where = runs_inside(Path(source)) or " Give a run folder, or RUN@STEP for one of its checkpoints."
        if not Path(source).exists():
            raise MapoError(f"{source} is not there.{where}")
        raise MapoError(f"{source} is not a run of `mapo train`, and --to {to} is for runs.{where}")
    if is_set:
        opened = PairSet(source)  # or what it is instead
    if to not in forms:
        if to in others:
            raise MapoError(f"{source} is {what}, which does not go to {to!r}. Write --to {' or '.join(forms)}.")
        raise MapoError(f"There is no export {to!r} of {what}. {suggest(to, forms)}")
    _refuse("--to hub", to == "hub", repo=repo, **{"public" if private is False else "private": private})
    if is_set:
        _refuse("a run", False, precision=precision, scores=scores or None, base_model=base_model)
        _refuse("--to hub", to == "hub", licence=licence, source_licences=source_licences or None)
        licences = parse_licences(source_licences)
        card: dict[str, Any] = {"on_missing_picture": on_missing_picture}
        if to != "hub":
            out = _needed(out)
            return Exported(out, export_pairs(opened, to, out, **card))
        out = out or _beside(Path(source))
        card |= {"licence": licence, "source_licences": licences}
        return Exported(out, *export_to_hub(opened, out, repo, private=private, api=api, **card))
    missing = None if on_missing_picture == "stop" else on_missing_picture
    _refuse("a pairs set", False, on_missing_picture=missing, source_licences=source_licences or None)
    from mapo.export.runs.runs import ExportOptions, export_run

    out = out or _beside(Path(source)) if to == "hub" else _needed(out)
    asked = ExportOptions(precision, licence, base_model, scores, repo, private, embedding)
    return Exported(out, *export_run(source, to, out, asked, api))


def describe(made: Exported, to: str) -> str:
    """What was written, in words."""
    if "bytes" not in made.counts:
        return of_pairs(made.counts, to)
    return f"{count(made.counts['files'], 'file')} of {made.counts['bytes'] / 1e6:,.1f} MB"


def _is_run(source: str) -> bool:
    """Whether it is a run folder or a checkpoint in one, by names alone."""
    folder = Path(source)
    if not folder.exists() and "@" in source:
        folder = Path(source.rpartition("@")[0])
    return any((folder / name).is_file() for name in ("run.json", "config.toml"))


def _refuse(where: str, fits: bool, **values: Any) -> None:
    """MapoError about the first value that was given where it has no meaning."""
    for name, value in values.items():
        if value is not None and not fits:
            raise MapoError(f"--{FLAGS.get(name, name.replace('_', '-'))} is for {where} alone.")


def _needed(out: Path | None) -> Path:
    if out is None:
        raise MapoError("Give --out, the folder to write.")
    return out


def _beside(source: Path) -> Path:
    place = named(source)
    return place.with_name(f"{place.name}-hub")
