"""Importers: one generator per foreign format, from a source to raw pairs.

A newcomer is a module with ``SHAPE`` (its columns), ``detects(source)`` and ``read(source, options, start)`` and one
line in :data:`IMPORTERS`. What holds the rows (Parquet, JSON lines, CSV, tar, …) does not matter to a format: see
``rows.py``.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow.compute as pc
import pyarrow.parquet as pq

from mapo import progress
from mapo.errors import MapoError, count, printable, suggest
from mapo.importers.cells import plain
from mapo.importers.sources import Source, find_source
from mapo.importers.splits import split_named
from mapo.importers.told import Told
from mapo.pairs.pairs import TIE, PairWriter
from mapo.pairs.pictures import Picture
from mapo.pairs.schema import check_text
from mapo.pairs.splits import SPLITS, split_of
from mapo.shards import refuse_existing

if TYPE_CHECKING:
    from mapo.importers.partners import Partners

LOG = logging.getLogger(__name__)

IMPORTERS = {
    "pickapic": "mapo.importers.pickapic",
    "preference": "mapo.importers.preference",
    "ranking": "mapo.importers.ranking",
    "scores": "mapo.importers.scores",
    "hpdv2": "mapo.importers.hpdv2",
    "imagereward": "mapo.importers.imagereward",
    "jsonl": "mapo.importers.jsonl",
    "folders": "mapo.importers.folders",
}
ROWS_PER_COMMIT = 8192
COMPLAINTS_SHOWN = 5
BY_PROMPT = "by-prompt"


@dataclass(frozen=True)
class RawPair:
    """A pair as its source tells it; ``where`` names the row in messages. ``preference`` 0.5 is a tie.

    ``split`` is the source's own name of the split that it publishes the pair in. Else ``split_as`` decides, the first
    of several captions; None: the prompt.
    """

    where: str
    prompt: str
    chosen: bytes
    rejected: bytes
    preference: float = 1.0
    weight: float = 1.0
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    split_as: str | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot become a pair, and why; ``where`` is empty where ``why`` names the file."""

    where: str
    why: str


@dataclass(frozen=True)
class LeftOut:
    """A row that its source itself says is not a pair, and how it says so: nothing is wrong with it."""

    why: str


@dataclass(frozen=True)
class Options:
    """What a person may ask for; the flags of ``mapo import`` have these names."""

    ties: str = "drop"  # or keep
    rankings: str = "all"  # or best-worst
    least_gap: float = 0.0  # scores closer than this are a tie
    on_bad_row: str = "stop"  # or drop
    captions: str | None = None  # first, join or each, where a pair has several
    columns: Mapping[str, str] = field(default_factory=dict)  # our name → the source's
    split: str | None = None  # as the source publishes, else by prompt; or by prompt; or the one for every pair

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str | None, ...]] = {
            "ties": ("drop", "keep"),
            "rankings": ("all", "best-worst"),
            "on_bad_row": ("stop", "drop"),
            "captions": (None, "first", "join", "each"),
            "split": (None, BY_PROMPT, *SPLITS),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                flag = "--" + name.replace("_", "-")
                words = [word for word in known if word]
                say = f"{', '.join(words[:-1])} or {words[-1]}"
                raise MapoError(f"{flag} is {getattr(self, name)!r}; it must be {say}.")
        if not 0 <= self.least_gap < float("inf"):
            raise MapoError(f"--least-gap is {self.least_gap}; it must be a number that is not negative.")

    def recorded(self) -> dict[str, Any]:
        """What decides how the set turns out, for its provenance."""
        late: dict[str, Any] = {"captions": None, "columns": {}, "split": None}  # recorded where they were asked for
        return {k: v for k, v in asdict(self).items() if k != "on_bad_row" and (k not in late or v != late[k])}


class Importer(Protocol):
    """What a format's module offers."""

    def detects(self, source: Source) -> bool:
        """Whether ``source`` looks like this format."""

    def read(self, source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow | LeftOut]]:
        """A list for each row of ``source`` from number ``start`` on; MapoError when it is not of this format."""


def import_pairs(
    given: str | Path,
    out: Path,
    *,
    format: str | None = None,
    licence: str | None = None,
    workers: int | None = None,
    columns: str | Mapping[str, str] | None = None,
    partners: Partners | None = None,
    **options: Any,
) -> dict[str, int]:
    """Read a source (a path or a hub id) into the set ``out``; its counts. ``options`` are those of :class:`Options`.

    ``partners`` are the pictures of ``given`` and of another folder, which are read in place of rows.

    Pictures are checked by ``workers`` threads (default: as many as there are cores); the set does not depend on their
    number. An interrupted import goes on where it stopped when it is called again in the same way.
    """
    from mapo.importers.detect import find_importer, parse_columns

    asked = Options(**options, columns=parse_columns(columns))
    if format is not None and format not in IMPORTERS:
        raise MapoError(f"There is no format {format!r}. {suggest(format, IMPORTERS)}")
    refuse_existing(out)
    source = replace(find_source(given), columns=asked.columns)
    module: Importer
    name, module, said = ("partners", partners, None) if partners else find_importer(source, format)
    if said:
        LOG.info(printable(said))
    counts = {"pairs": 0, "ties": 0, "repeats": 0, "bad": 0}
    how = {"format": name, **asked.recorded()}
    provenance = {"imported": source.short_name, **how, "licence": licence, "counts": counts}
    job = {"source": source.identity(), "licence": licence, "on_bad_row": asked.on_bad_row, **how}
    if partners:
        provenance["rejected_from"] = Path(partners.others.name).name
        job["partners"] = partners.identity
        source.notes.extend(partners.notes)
    sensitive = partners is not None and (partners.good.sensitive or partners.others.sensitive)
    try:
        with PairWriter(out, provenance, sensitive, job) as writer:
            complaints, told = _import(source, module, name, asked, writer, counts, workers)
            if counts["pairs"] == 0:
                raise MapoError(_no_pairs(source, counts, complaints, told))
            told.shared = writer.shared_prompts()
            writer.provenance |= told.facts()
    except ConnectionError as error:
        raise MapoError(f"{error}. Repeat the command: it goes on where it stopped.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise MapoError(
            f"There is no space left for {out} ({error.strerror or error}). "
            "Make room and repeat the command: it goes on where it stopped."
        ) from None
    for complaint in complaints:
        LOG.info(f"left out: {printable(complaint)}")
    if counts["bad"] > len(complaints):
        LOG.info(f"left out: {counts['bad'] - len(complaints)} more")
    for line in (*source.notes, *told.lines(), *_held_out(out, asked.split, bool(told.facts().get("splits")))):
        LOG.info(printable(line))
    return counts


def _held_out(out: Path, split: str | None, published: bool) -> list[str]:
    """How many pairs of the set ``out`` are not trained on, and why."""
    splits = pq.read_table(out / "pairs.parquet", columns=["split"])["split"]
    total, train = len(splits), pc.sum(pc.equal(splits, "train")).as_py()
    if train == total:
        return []
    why = "for validation and test, " + ("as the source says" if published else "by their prompts")
    if train:
        verb = "is" if total - train == 1 else "are"
        return [f"{total - train} of {total} pairs {verb} held out {why}; --split train trains on all."]
    every = "The only pair is" if total == 1 else f"All {total} pairs are"
    if split in SPLITS:
        return [f"{every} held out, as --split {split} says; nothing is trained on them."]
    return [
        f"{every} held out {why}, so there is nothing to train on. Delete {out}, and import again with --split train."
    ]


def _import(
    source: Source,
    module: Importer,
    name: str,
    options: Options,
    writer: PairWriter,
    counts: dict[str, int],
    workers: int | None,
) -> tuple[list[str], Told]:
    """Fill ``writer`` and ``counts``; the first complaints about bad rows, and counts of all else."""
    from mapo.importers.checking import checked_rows

    before = writer.progress or {"rows": 0, "counts": counts, "complaints": []}
    done, complaints, told = int(before["rows"]), list(before["complaints"]), Told(Counter(before.get("notes", {})))
    counts.update(before["counts"])
    rows = checked_rows(module.read(source, options, done), workers, check_ties=options.ties == "keep")
    since = 0
    with progress.bar(desc=f"import {name}", unit="row", initial=done) as bar:
        for row in rows:
            for item in row:
                if isinstance(item, LeftOut):
                    told.add_left_out(item.why)
                    continue
                try:
                    if isinstance(item, BadRow):
                        raise ValueError(item.why)
                    _add(writer, name, options, *item, counts, told)
                except ValueError as error:
                    where = item.where if isinstance(item, BadRow) else item[0].where
                    if options.on_bad_row == "stop":
                        raise MapoError(_refusal(where, str(error).rstrip("."))) from None
                    counts["bad"] += 1
                    if len(complaints) < COMPLAINTS_SHOWN:
                        complaints.append(f"{where}: {error}" if where else str(error))
            done, since = done + 1, since + 1
            bar.update()
            if writer.wants_commit or since >= ROWS_PER_COMMIT:
                writer.commit({"rows": done, "counts": counts, "complaints": complaints, "notes": told.notes})
                since = 0
    writer.commit({"rows": done, "counts": counts, "complaints": complaints, "notes": told.notes})
    return complaints, told


def _refusal(where: str, why: str) -> str:
    if not where:
        return f"{why}. Mend it, or leave such pairs out with --on-bad-row drop."
    return f"{where}: {why}. Mend the row, or leave such rows out with --on-bad-row drop."


def _add(
    writer: PairWriter,
    name: str,
    options: Options,
    raw: RawPair,
    pictures: tuple[Picture, Picture] | None,
    counts: dict[str, int],
    told: Told,
) -> None:
    """Add a pair to the set, or only count it; ValueError when it is outside the schema."""
    counts["ties"] += raw.preference == TIE
    if pictures is None:
        return
    meta, lost = plain(raw.meta)
    rest: dict[str, Any] = {"preference": raw.preference, "weight": raw.weight, "group": raw.group, "meta": meta}
    published = split_named(raw.split) if raw.split is not None and options.split is None else None
    split = options.split if options.split in SPLITS else published
    by_prompt = split is None
    if split is None:
        decides, what = (raw.prompt, "the prompt") if raw.split_as is None else (raw.split_as, "its first caption")
        check_text(decides, what)
        split = split_of(decides)
    added = writer.add_checked_pair(raw.prompt, *pictures, source=name, split=split, **rest)
    counts["pairs" if added else "repeats"] += 1
    chosen, rejected = (picture.sha256 for picture in pictures)
    if by_prompt and options.captions == "each":
        writer.note_captions(raw.prompt, chosen, rejected, split, several=raw.split_as is not None)
    if published:
        first = writer.note_split(raw.prompt, chosen, rejected, published)
        if first != published:
            told.add_repeat(published, first)
    if added:
        if published:
            told.add_published(published)
        elif options.split is None:
            told.add_by_prompt(raw.split or "")
        told.add_lost(lost)


def _no_pairs(source: Source, counts: dict[str, int], complaints: list[str], told: Told) -> str:
    first = f" First: {complaints[0]}." if complaints else ""
    advice = " Keep the ties with --ties keep." if counts["ties"] and not counts["bad"] else ""
    unlabelled = "".join(f" {line}" for line in told.left_out())
    found = f"{count(counts['ties'], 'tie')}, {count(counts['bad'], 'bad row')}"
    return f"{source.name} gave no pairs ({found}).{first}{unlabelled}{advice}"
