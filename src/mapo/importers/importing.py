"""Importing: a source in any known format becomes a set of pairs."""

from __future__ import annotations

import errno
import itertools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from mapo import progress
from mapo.errors import MapoError, count, printable, suggest
from mapo.files import sha256
from mapo.importers.checking import checked_rows
from mapo.importers.containers.cells import plain
from mapo.importers.containers.rows import rows_in
from mapo.importers.detect import find_importer, parse_columns
from mapo.importers.elsewhere import Elsewhere
from mapo.importers.formats import IMPORTERS
from mapo.importers.partners import Partners
from mapo.importers.sources import Source, find_source
from mapo.importers.splits import split_named
from mapo.importers.told import ImportCounts
from mapo.importers.types import BadRow, Importer, LeftOut, Options, RawPair
from mapo.pairs.pairs import TIE, PairWriter
from mapo.pairs.pictures import Picture
from mapo.pairs.schema import check_text
from mapo.pairs.splits import SPLITS, split_of
from mapo.shards import refuse_existing

LOG = logging.getLogger(__name__)

ROWS_PER_COMMIT = 8192
COMPLAINTS_SHOWN = 5


def import_pairs(
    given: str | Path,
    out: Path,
    *,
    format: str | None = None,
    licence: str | None = None,
    workers: int | None = None,
    columns: str | Mapping[str, str] | None = None,
    partners: Partners | None = None,
    elsewhere: Elsewhere | None = None,
    **options: Any,
) -> dict[str, int]:
    """Read a source (a path or a hub id) into the set ``out``; its counts. ``options`` are those of :class:`Options`.

    ``partners`` are the pictures of ``given`` and of another folder, which are read in place of rows. With
    ``elsewhere`` the set keeps no picture; all of them are handed on there, and all else stays the same.

    Pictures are checked by ``workers`` threads (default: as many as there are cores); the set does not depend on their
    number. An interrupted import goes on where it stopped when it is called again in the same way.
    """
    asked = Options(**options, columns=parse_columns(columns))
    check_format(format)
    refuse_existing(out)
    source = replace(find_source(given), columns=asked.columns)
    module: Importer
    name, module, said = ("partners", partners, None) if partners else find_importer(source, format)
    if said:
        LOG.info(printable(said))
    counts = {"pairs": 0, "ties": 0, "repeats": 0, "bad": 0}
    how = {"format": name, **asked.recorded()}
    provenance = {"imported": source.short_name, **how, "licence": licence, "counts": counts}
    job = _job(source, name, asked, licence)
    if elsewhere:
        provenance["of"] = _digest(job)  # whoever comes again with the same command is to know it
        job["elsewhere"] = elsewhere.identity
    if partners:
        provenance["rejected_from"] = Path(partners.others.name).name
        job["partners"] = partners.identity
        source.notes.extend(partners.notes)
    sensitive = partners is not None and (partners.good.sensitive or partners.others.sensitive)
    try:
        with PairWriter(out, provenance, sensitive, job, elsewhere.add if elsewhere else None) as writer:
            complaints, told = _import(source, module, name, asked, writer, counts, workers, elsewhere)
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
    lines = [*source.notes, *told.lines(), *_held_out(out, asked.split, bool(told.facts().get("splits")))]
    for line in (*_left_out(complaints, counts["bad"]), *lines):
        LOG.info(printable(line))
    return counts


def _left_out(complaints: Sequence[str], bad: int) -> list[str]:
    """The rows that were left out: those that were written down, and how many more there are."""
    more = [f"left out: {bad - len(complaints)} more"] if bad > len(complaints) else []
    return [f"left out: {complaint}" for complaint in complaints] + more


def is_import_of(
    provenance: Mapping[str, Any], given: str, *, format: str | None = None, licence: str | None = None,
    columns: str | Mapping[str, str] | None = None, **options: Any,
) -> bool:  # fmt: skip
    """Whether a set of this ``provenance`` came from this source, as it is now, with these options of an import.

    Only sets that keep no pictures tell it.
    """
    asked = Options(**options, columns=parse_columns(columns))
    check_format(format)
    source = replace(find_source(given), columns=asked.columns)
    name, _, _ = find_importer(source, format)
    return provenance.get("of") == _digest(_job(source, name, asked, licence))


def check_format(format: str | None) -> None:
    """MapoError about a format that is not known."""
    if format is not None and format not in IMPORTERS:
        raise MapoError(f"There is no format {format!r}. {suggest(format, IMPORTERS)}")


def _job(source: Source, name: str, asked: Options, licence: str | None) -> dict[str, Any]:
    """All that decides what an import makes."""
    how = {"format": name, **asked.recorded()}
    return {"source": source.identity(), "licence": licence, "on_bad_row": asked.on_bad_row, **how}


def _digest(job: Mapping[str, Any]) -> str:
    return sha256(json.dumps(job, sort_keys=True).encode())


def _held_out(out: Path, split: str | None, published: bool) -> list[str]:
    """How many pairs of the set ``out`` are not trained on, and why."""
    splits = pq.read_table(out / "pairs.parquet", columns=["split"])["split"]
    total, train = len(splits), pc.sum(pc.equal(splits, "train")).as_py()
    if train == total:
        told = split in SPLITS or published
        return [] if told else ["By their prompts all pairs are in train, so no pair is held out."]
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
    elsewhere: Elsewhere | None,
) -> tuple[list[str], ImportCounts]:
    """Fill ``writer`` and ``counts``; the first complaints about bad rows, and counts of all else."""
    before = writer.progress or {"rows": 0, "counts": counts, "complaints": []}
    done, complaints = int(before["rows"]), list(before["complaints"])
    told = ImportCounts(Counter(before.get("notes", {})))
    counts.update(before["counts"])
    first = elsewhere.resume(before["elsewhere"]) if elsewhere and "elsewhere" in before else done
    rows = checked_rows(module.read(source, options, first), workers, check_ties=options.ties == "keep")

    def commit() -> None:
        rest = {"elsewhere": elsewhere.state(done)} if elsewhere else {}
        told_so_far = {"counts": counts, "complaints": complaints, "notes": told.notes}
        writer.commit({"rows": done, **told_so_far, **rest})

    since = 0
    with progress.bar(desc=f"import {name}", unit="row", initial=done, total=rows_in(source)) as bar:
        for number, row in enumerate(rows, first):
            if elsewhere:
                elsewhere.look(number, row, again=number < done)
            if number < done:
                continue
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
                        more = [] if where else _bad_behind(module, source, options, number)
                        raise MapoError(_refusal(where, str(error).rstrip("."), more)) from None
                    counts["bad"] += 1
                    if len(complaints) < COMPLAINTS_SHOWN:
                        complaints.append(f"{where}: {error}" if where else str(error))
            done, since = done + 1, since + 1
            bar.update()
            if writer.wants_commit or since >= ROWS_PER_COMMIT:
                commit()
                since = 0
    if elsewhere:
        elsewhere.flush()
    commit()
    return complaints, told


def _bad_behind(module: Importer, source: Source, options: Options, number: int) -> list[str]:
    """Why some rows behind a bad one are bad too, so that they can be mended at once. Pictures are not looked at."""
    rows = itertools.islice(module.read(replace(source, notes=[]), options, number + 1), ROWS_PER_COMMIT)
    try:
        return [item.why.rstrip(".") for row in rows for item in row if isinstance(item, BadRow)]
    except (MapoError, OSError):
        return []


def _refusal(where: str, why: str, more: Sequence[str] = ()) -> str:
    if more:
        shown = "; ".join([why, *more[: COMPLAINTS_SHOWN - 1]])
        first = f"The first {COMPLAINTS_SHOWN}: " if len(more) >= COMPLAINTS_SHOWN else ""
        return (
            f"{len(more) + 1} pairs are bad. {first}{shown}. Mend them, or leave such pairs out with --on-bad-row drop."
        )
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
    told: ImportCounts,
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


def _no_pairs(source: Source, counts: dict[str, int], complaints: list[str], told: ImportCounts) -> str:
    first = f" First: {complaints[0]}." if complaints else ""
    advice = " Keep the ties with --ties keep." if counts["ties"] and not counts["bad"] else ""
    unlabelled = "".join(f" {line}" for line in told.left_out())
    found = f"{count(counts['ties'], 'tie')}, {count(counts['bad'], 'bad row')}"
    return f"{source.name} gave no pairs ({found}).{first}{unlabelled}{advice}"
