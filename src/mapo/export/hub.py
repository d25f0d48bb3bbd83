"""A set on the Hugging Face Hub: its card, written from what the set records of itself; the upload of any folder."""

from __future__ import annotations

import contextlib
import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mapo import __version__
from mapo.errors import MapoError, count, reason
from mapo.files import write_text
from mapo.pairs.pairs import ROWS_AT_ONCE, PairSet
from mapo.pairs.provenance import UNKNOWN, flat, without_folders
from mapo.texts import read_json, write_json

FACTS, NO_REPO = "mapo.json", "OWNER/NAME"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # how the hub names licences
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass(frozen=True)
class Size:
    """How large a split is: rows, bytes in memory, bytes of its files."""

    rows: int
    in_memory: int
    on_disk: int


def write_card(
    folder: Path,
    name: str,
    repo: str | None,
    pairs: PairSet,
    rows: np.ndarray[Any, np.dtype[np.bool_]],
    sizes: Mapping[str, Size],
    sources: Mapping[str, str],
    licence: str | None,
) -> None:
    """``README.md`` with the front matter that the hub reads, and ``mapo.json`` with the same facts for programs.

    ``rows`` says which rows of the set are in the export, ``sizes`` its splits. Where ``repo`` is not known yet the
    card says :data:`NO_REPO`, and :func:`push` fills it in.
    """
    from jinja2 import Environment, StrictUndefined

    total = int(rows.sum())
    preference, weight = (pairs.table[column].to_numpy() for column in ("preference", "weight"))
    splits = [_count(pairs, split, rows & pc.equal(pairs.table["split"], split).to_numpy()) for split in sizes]
    sensitive = bool(pairs.info.get("sensitive"))
    provenance = without_folders(pairs.info.get("provenance") or {})
    facts = {
        "format": "mapo-export",
        "version": 1,
        "mapo": __version__,
        "set": pairs.fingerprint(),
        "sensitive": sensitive,
        "licence": licence or UNKNOWN,
        "sources": dict(sources),
        "splits": splits,
        "provenance": provenance,
    }
    write_json(folder / FACTS, facts)
    template = (importlib.resources.files("mapo.export") / "card.md.j2").read_text("utf-8")
    body = (
        Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            title=cell(name),
            total=count(total, "pair"),
            splits=splits,
            pictures=_different(pairs, ("chosen", "rejected"), rows),
            graded=int((rows & (preference > 0.5) & (preference < 1)).sum()),
            weighted=int((rows & (weight != 1)).sum()),
            left_out=len(pairs) - total,
            provenance=[(cell(k), cell(v)) for k, v in flat(provenance)],
            sensitive=sensitive,
            licence=cell(licence or UNKNOWN),
            sources=[(cell(k), cell(v)) for k, v in sources.items()],
            repo=repo or NO_REPO,
            version=__version__,
            folder=pairs.folder.resolve().name.replace("`", "'"),
            fingerprint=facts["set"],
        )
    )
    front = _front_matter(name, licence or UNKNOWN, total, sensitive, sizes)
    write_text(folder / "README.md", f"---\n{front}\n---\n\n{body}")


def _front_matter(name: str, licence: str, total: int, sensitive: bool, sizes: Mapping[str, Size]) -> str:
    """What the hub reads of a card, in YAML; ``total`` is the number of its pairs."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=licence,
        pretty_name=name,
        task_categories=["text-to-image"],
        tags=["preference", "image", "mapo", *(["not-for-all-audiences"] if sensitive else [])],
        size_categories=[next((word for most, word in SIZES if total < most), "n>10M")],
        dataset_info=_dataset_info(sizes),
        configs=[
            {"config_name": "default", "data_files": [{"split": s, "path": f"data/{s}-*.parquet"} for s in sizes]}
        ],
    )
    return str(data.to_yaml())


def _count(pairs: PairSet, split: str, rows: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    """A row of the card's table of splits."""
    ties = int((pairs.table["preference"].to_numpy()[rows] == 0.5).sum())
    return {"split": split, "pairs": int(rows.sum()), "ties": ties, "prompts": _different(pairs, ("prompt",), rows)}


def _different(pairs: PairSet, columns: Sequence[str], rows: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """How many different texts the columns hold, by their hashes of 64 bits: 8 bytes of memory a row."""
    hashes = [
        np.fromiter(map(hash, part.filter(pa.array(rows[start : start + ROWS_AT_ONCE])).to_pylist()), np.int64)
        for column in columns
        for start in range(0, len(pairs), ROWS_AT_ONCE)
        for part in (pairs.table[column].slice(start, ROWS_AT_ONCE),)
    ]
    return len(np.unique(np.concatenate(hashes)))


def _dataset_info(sizes: Mapping[str, Size]) -> dict[str, Any]:
    """What the hub and ``datasets`` want to know before they open the files."""
    kinds = {"prompt": "string", "chosen": "image", "rejected": "image", "preference": "float64", "weight": "float64"}
    kinds |= dict.fromkeys(("id", "group", "source", "meta"), "string")
    return {
        "features": [{"name": name, "dtype": kind} for name, kind in kinds.items()],
        "splits": [{"name": k, "num_bytes": v.in_memory, "num_examples": v.rows} for k, v in sizes.items()],
        "download_size": sum(size.on_disk for size in sizes.values()),
        "dataset_size": sum(size.in_memory for size in sizes.values()),
    }


def cell(text: str) -> str:
    """Text that Markdown shows as it stands, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", " ".join(text.split()))


def is_export_of(folder: Path, pairs: PairSet) -> bool:
    """Whether the folder is a whole export for the hub of just this set."""
    if not (folder / FACTS).is_file():
        return False
    facts = read_json(folder / FACTS, "an export for the hub", "Delete it and export again.")
    return isinstance(facts, dict) and facts.get("set") == pairs.fingerprint()


def check_repo(repo: str, private: bool | None, sensitive: bool, api: Any, kind: str = "dataset") -> bool:
    """Whether the repository is to be private, after a look at all that could stop an upload; MapoError if it would.

    ``private`` None is not said: a set is public then, but for a sensitive one, of which it has to be said; a ``kind``
    "model" is private.
    """
    is_said = private is not None
    if kind == "model":
        private = private is None or private
    elif sensitive and private is None:
        raise MapoError("The set is marked sensitive: say --private, or --public if everybody may see it.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise MapoError(f"--repo is {repo!r}; write owner/name.")
    with speaking(repo):
        api.whoami()
        there = None
        if api.repo_exists(repo, repo_type=kind):
            there = api.model_info(repo) if kind == "model" else api.dataset_info(repo)
    if there is None:
        return bool(private)
    if private is not None and bool(there.private) != private:
        if not is_said:
            raise MapoError(
                f"--repo {repo} is there already and public, and models go to the hub privately. Say --public if "
                "everybody may see it, or name another."
            )
        now, asked = ("private", "--public") if there.private else ("public", "--private")
        raise MapoError(
            f"--repo {repo} is there already and {now}, against {asked}. Change it on the hub, or name another."
        )
    files = [file.rfilename for file in there.siblings or [] if file.rfilename != ".gitattributes"]
    if files:
        what = (
            f"files already ({files[0]} and {len(files) - 1:,} more)" if files[1:] else f"a file already ({files[0]})"
        )
        raise MapoError(
            f"--repo {repo} holds {what}. Name another one, or upload "
            f"into it with: hf upload {repo} FOLDER --repo-type {kind}"
        )
    return bool(there.private)


def push(folder: Path, repo: str, private: bool, api: Any, kind: str = "dataset") -> str:
    """Upload an export as one commit, into a repository that is made for it; its address.

    An upload that was cut off goes on when it is repeated: the hub keeps the files that have arrived.
    """
    card = (folder / "README.md").read_text("utf-8")
    if f'"{NO_REPO}"' in card:
        write_text(folder / "README.md", card.replace(f'"{NO_REPO}"', f'"{repo}"'))
    with speaking(repo):
        address = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        message = f"{'Pairs' if kind == 'dataset' else 'A model'}, written by mapo {__version__}"
        api.upload_folder(repo_id=repo, repo_type=kind, folder_path=folder, commit_message=message)
    return str(address)


@contextlib.contextmanager
def speaking(repo: str) -> Iterator[None]:
    """Errors of the hub as sentences."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise MapoError("The hub does not know you on this machine. Type: hf auth login") from None
    except Exception as error:
        raise MapoError(
            f"--repo {repo}: the hub refused or could not be reached ({reason(error)}). Check the name, the "
            "connection and `hf auth whoami`; the same command goes on."
        ) from None
