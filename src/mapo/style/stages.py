"""Stages of a longer work in one folder: each is made once, and again when what it was made from has changed.

``FOLDER/stages.json`` has for each stage a digest of what it is made from, written before it begins, and whether it is
done, with what it said. A stage that was stopped goes on. One that was made from other things is removed and made
again. So whoever changes a file of a stage by hand finds that the stages behind it follow.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.files import prepare_out, sha256
from mapo.shards import owned
from mapo.texts import read_object, write_json

LOG = logging.getLogger(__name__)

FORMAT, VERSION = "mapo-stages", 1
NAME = "stages.json"
REMEDY = "Move the folder away, or choose another --out."


@dataclass(frozen=True)
class Stage:
    """``do`` makes the files or folders ``makes``, by their names, from what ``made_from`` tells.

    What ``do`` returns is what there is to say of it, which is said again when it is not done again. Where what it is
    made from has changed, its files are removed first, and so are those that it ``clears``. Those ``aside`` are too
    dear for that and get another name, and so do those ``aside_if_changed`` where a person has changed them. A stage
    ``again`` is done each time: what it does knows what is there.

    It ``follows`` the stages that make what it is made from. Where what ``made_from`` will tell can be ``foreseen``
    before these are done, that says it.
    """

    name: str
    says: str
    makes: tuple[str, ...]
    made_from: Callable[[], Sequence[str]]
    do: Callable[[], str | None]
    again: bool = False
    aside: bool = False
    aside_if_changed: bool = False
    clears: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    foreseen: Callable[[], Sequence[str]] | None = None


class StageLedger:
    """Which stages of a folder are begun and done."""

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self.folder, self.path = folder, folder / NAME
        self.asked = asked
        self.stages: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            found = read_object(self.path, "the stages of a folder", REMEDY)
            if found.get("format") != FORMAT:
                raise MapoError(f"{self.path} is not a list of stages. Choose another --out.")
            if found.get("asked") != asked:
                raise MapoError(_told_other(folder, found.get("asked"), asked))
            self.stages = _checked(self.path, found.get("stages"))
        elif folder.is_file():
            raise MapoError(f"--out {folder} is a file. Name a folder for the stages.")
        elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise MapoError(f"{folder} exists and was not made by this command. Choose another --out.")

    def stale(self, stages: Sequence[Stage]) -> list[str]:
        """The stages that were done and will be made again: those that are gone, those whose sources have changed, and
        those that follow such."""
        found, others, gone = list[str](), set[str](), set[str]()
        for stage in stages:
            known, there = self.stages.get(stage.name, {}), self._is_there(stage)
            if known and self._will_differ(stage, str(known.get("from")), others, gone):
                others.add(stage.name)
                found.append(stage.name)
            elif not there:
                (gone if known else others).add(stage.name)
                found += [stage.name] if known.get("done") and not known.get("without") else []
        return found

    def _will_differ(self, stage: Stage, before: str, others: Set[str], gone: Set[str]) -> bool:
        """Whether a stage will be made from other things than ``before``, where some stages will be ``others``, and
        some that are ``gone`` come back as they were."""
        told: Callable[[], Sequence[str]] | None = stage.made_from
        if not (others | gone).isdisjoint(stage.follows):
            told = stage.foreseen
        return not others.isdisjoint(stage.follows) if told is None else before != _digest(told)

    def told_done(self, stages: Sequence[Stage], left: Collection[str]) -> str:
        """The first of the stages that are done and not ``left`` to do: a line of the plan; empty where none is."""

        def is_done(stage: Stage) -> bool:
            return stage.name not in left and bool(self.stages.get(stage.name, {}).get("done"))

        done = list(itertools.takewhile(is_done, stages))
        names = "all stages" if len(done) == len(stages) else ", ".join(stage.name for stage in done)
        return f"done       {names}" if done else ""

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage has been done from what it would be made from now, and is there."""
        known = self.stages.get(stage.name, {})
        return bool(known.get("done")) and self._is_there(stage) and known.get("from") == _digest(stage.made_from)

    def _is_there(self, stage: Stage) -> bool:
        return all((self.folder / name).exists() for name in stage.makes)

    def run(self, stage: Stage) -> str | None:
        """Do a stage, or find that it is done; what there is to say of it."""
        digest = _digest(stage.made_from)
        known = self.stages.get(stage.name, {})
        if known.get("from") == digest and known.get("done") and self._is_there(stage) and not stage.again:
            said = known.get("said")
            if said:
                LOG.info(f"{stage.name}, done before: {said}")
            return str(said) if said else None
        if known and known.get("from") != digest:
            LOG.info(f"{stage.name}: what it was made from has changed, so it is made again")
            aside = stage.aside or (stage.aside_if_changed and known.get("made") != self._made(stage))
            for name in stage.makes:
                if aside and (self.folder / name).exists():
                    LOG.warning(f"What was there of {name} is now {set_aside(self.folder / name)}.")
                _remove(self.folder / name)
            for name in stage.clears:
                _remove(self.folder / name)
        LOG.info(f"{stage.name}: {stage.says}")
        self._write(stage.name, digest, done=False)
        said = stage.do()
        if said:
            LOG.info(said)
        made = {"made": self._made(stage)} if stage.aside_if_changed else {}
        without = {} if self._is_there(stage) else {"without": True}  # as a report where nobody scores
        self._write(stage.name, digest, done=True, **made, **without, **({"said": said} if said else {}))
        return said

    def _made(self, stage: Stage) -> str:
        """A digest of the files that a stage has made, as they are now."""
        return sha256(" ".join(digest_of(self.folder / name) for name in stage.makes).encode())

    def _write(self, name: str, digest: str, *, done: bool, **more: str | bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stages[name] = {"from": digest, "done": done, **more}
        write_json(self.path, {"format": FORMAT, "version": VERSION, "asked": self.asked, "stages": self.stages})


def run_all(folder: Path, asked: dict[str, Any], stages: Sequence[Stage]) -> dict[str, str]:
    """Do the stages of a folder, which one process does at a time; what there is to say of each, by its name.

    MapoError where one cannot be done, with those before it kept.
    """
    with owned(folder):
        ledger = StageLedger(folder, asked)
        prepare_out(folder)
        said = {stage.name: ledger.run(stage) for stage in stages}
    return {name: text for name, text in said.items() if text}


def told_again(names: Sequence[str]) -> str:
    """Which stages will be made again: a line of the plan."""
    return f"made again {', '.join(names)}: gone, or what they are made from has changed"


def _digest(made_from: Callable[[], Sequence[str]]) -> str:
    return sha256("\n".join(made_from()).encode())


def _checked(path: Path, stages: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(stages, dict) or not all(isinstance(one, dict) for one in stages.values()):
        raise MapoError(f"{path} is damaged. {REMEDY}")
    return stages


def set_aside(path: Path) -> Path:
    """Give a file or folder the first free name with a number."""
    aside = next(new for k in itertools.count(2) if not (new := path.with_name(f"{path.name}-{k}")).exists())
    return path.rename(aside)


def _told_other(folder: Path, before: Any, now: dict[str, Any]) -> str:
    before = before if isinstance(before, dict) else {}
    changed = [f"{key} was {before.get(key)!r} and is now {now[key]!r}" for key in now if before.get(key) != now[key]]
    return f"{folder} was begun with other things: {'; '.join(changed)}. Choose another --out, or give those of before."


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """A digest of a file's bytes, or of those of all files of a folder but hidden ones; empty where there is none.

    Of files of more than a megabyte only the size and the first and last bytes count: pictures in a set carry their
    hashes, and weights of another training differ at once.
    """
    if not path.exists():
        return ""
    files = (
        [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    )
    said = [f"{file.relative_to(path)} {_digest_of_file(file)}" for file in files]
    return sha256("\n".join(said).encode())


def _digest_of_file(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= 2**20:
            return sha256(file.read())
        first = file.read(2**16)
        file.seek(-(2**16), 2)
        return sha256(b"%d " % size + first + file.read())
