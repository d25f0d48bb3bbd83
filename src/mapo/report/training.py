"""How the model after came to be: its run, the runs that it began from, and the pairs that they were trained on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mapo.errors import MapoError, count, reason
from mapo.label.votes import read_votes
from mapo.pairs.pairs import TIE, PairSet
from mapo.pairs.provenance import flat, sources, without_folders
from mapo.pairs.splits import SPLITS, prompt_id
from mapo.score.scorers import split_judge


@dataclass(frozen=True)
class TrainedOn:
    """What a page tells of one pairs set: facts first, and everything that the set records of itself."""

    name: str
    run: str
    facts: list[tuple[str, str]]
    recorded: list[tuple[str, str]]
    has_rejected: bool = True


@dataclass
class Training:
    """``prompts`` are ids of prompts trained on, ``judges`` scorers that made or filtered pairs, ``annotators`` the
    people who labelled them; ``lost`` names the pairs sets that are not where their run says."""

    prompts: set[str] = field(default_factory=set)
    judges: set[str] = field(default_factory=set)
    annotators: set[str] = field(default_factory=set)
    sets: list[TrainedOn] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def read_config(run: Path) -> str:
    """The text of a run's ``config.toml``; empty where it has none."""
    path = run / "config.toml"
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MapoError(
            f"{path} cannot be read ({reason(error)}). Run `mapo train` again or leave --run out."
        ) from None


def read_training(run: Path) -> Training:
    """What can be found out about a run and, where its model is a run again, about that."""
    found = Training()
    seen: set[Path] = set()
    while run.resolve() not in seen and (text := read_config(run)):
        seen.add(run.resolve())
        try:
            config = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            path = run / "config.toml"
            raise MapoError(
                f"{path} is not TOML ({reason(error)}). Run `mapo train` again or leave --run out."
            ) from None
        if isinstance(config.get("pairs"), str):
            _add(found, run, Path(config["pairs"]), config.get("data", {}))
        run = Path(str(config.get("model", "")))
    return found


def _add(found: Training, run: Path, folder: Path, data: Mapping[str, Any]) -> None:
    try:
        pairs = PairSet(folder)
    except MapoError:
        found.lost.append(str(folder))
        return
    split, preference = (pairs.table[c].to_numpy(zero_copy_only=False) for c in ("split", "preference"))
    wanted = data.get("split", "train")
    kept = ((split == wanted) | (wanted == "all")) & ((preference != TIE) | (data.get("ties") == "keep"))
    trained = pairs.table.filter(pa.array(kept))
    prompts = {prompt_id(prompt) for prompt in set(trained["prompt"].to_pylist())}
    judges: set[str] = set()
    for text in trained["meta"].to_pylist():
        meta = json.loads(text) if text and ('"judges"' in text or '"given_prompt"' in text) else {}
        if isinstance(given := meta.get("given_prompt"), str):
            prompts.add(prompt_id(given))
        judges |= {str(j["scorer"]) for j in meta.get("judges") or [] if isinstance(j, dict) and "scorer" in j}
    provenance = without_folders(pairs.info.get("provenance") or {})
    said = provenance.get("judges")
    judges |= {split_judge(str(j).partition(" (version")[0])[0] for j in (said if isinstance(said, list) else [])}
    if provenance.get("labels"):
        found.annotators |= {vote.annotator for vote in read_votes(folder / "votes.jsonl")}
    found.prompts |= prompts
    found.judges |= judges
    facts = _facts(pairs, kept, len(prompts), provenance)
    found.sets.append(TrainedOn(folder.name, str(run), facts, list(flat(provenance)), pairs.has_rejected))


def _facts(pairs: PairSet, kept: Any, prompts: int, provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    split = pairs.table["split"].to_numpy(zero_copy_only=False)
    sides = ", ".join(f"{int(np.sum(split == s))} {s}" for s in SPLITS)
    ties = f"; {count(pairs.info['ties'], 'tie')}" if pairs.info["ties"] else ""
    recipe = provenance.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    prefixes = {s: recipe[s].get("prefix") for s in ("chosen", "rejected") if isinstance(recipe.get(s), dict)}
    judges = provenance.get("judges")
    table = [
        ("trained on", f"{count(int(np.sum(kept)), 'pair')} of {count(prompts, 'prompt')}"),
        ("the set holds", f"{count(len(pairs), 'pair')} ({sides}{ties})"),
        ("rejected pictures", "" if pairs.has_rejected else "none"),
        ("recipe", str(recipe.get("name") or "")),
        ("made by", str(provenance.get("model") or "")),
        ("imported from", str(provenance.get("imported") or "")),
        *((f"prefix of {side}", repr(prefix)) for side, prefix in prefixes.items() if prefix is not None),
        ("judges", "; ".join(map(str, judges)) if isinstance(judges, list) else ""),
        ("licences", "; ".join(f"{name}: {licence}" for name, licence in sources(pairs, {}).items())),
        ("marked sensitive", "yes" if pairs.info.get("sensitive") else ""),
        ("fingerprint", pairs.fingerprint()),
    ]
    return [(name, value) for name, value in table if value]
