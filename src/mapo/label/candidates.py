"""A folder of pictures as a set that nobody has judged yet: every two pictures of a prompt are a tie."""

from __future__ import annotations

import itertools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mapo import progress
from mapo.build.groups import Groups, fingerprint, left_out, read_prompts
from mapo.errors import MapoError, count
from mapo.label.blind import hands
from mapo.pairs.pairs import TIE, PairSet, PairWriter
from mapo.pairs.splits import prompt_id

LOG = logging.getLogger(__name__)


def write_candidates(groups: Groups, out: Path) -> PairSet:
    """Write the set ``out``: every two pictures of a hand of a prompt's (see :func:`hands`), each hand a ``group``."""
    provenance = groups.provenance("pictures that other programs made, for people to judge")
    provenance["counts"] = dict(groups.counts)
    with (
        PairWriter(out, provenance, sensitive=groups.sensitive) as writer,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress.bar(total=groups.counts["pictures"], desc="write", unit="picture") as bar,
    ):
        for group in groups.groups:
            for number, hand in enumerate(hands(group.pictures)):
                pngs = group.framed(pool, hand)
                told = {writer.add_image(png): one.told for png, one in zip(pngs, hand, strict=True)}
                for one, other in itertools.combinations(told, 2):
                    writer.add_pair_by_hash(
                        group.prompt, one, other, preference=TIE, group=f"{prompt_id(group.prompt)}-{number}",
                        source=provenance["folder"], meta={"chosen": told[one], "rejected": told[other]},
                    )  # fmt: skip
                bar.update(len(hand))
    pairs = PairSet(out)
    of = f"{count(groups.counts['pictures'], 'picture')} and {count(len(groups.groups), 'prompt')}"
    hidden = [f"{words} left out" for words in left_out(groups.counts)]
    LOG.info(", ".join([f"{out}: {count(len(pairs), 'pair')} of {of}", *hidden]))
    return pairs


def refuse_other(pairs: PairSet, folder: Path, captions: Path | None) -> None:
    """MapoError where a set was not made of the pictures of this folder, with what is said of them now."""
    before = pairs.info.get("provenance", {}).get("captions_sha256")
    if before is None:
        raise MapoError(f"{pairs.folder} already exists and was not made of {folder}. Choose another --out.")
    if before != fingerprint(folder, read_prompts(folder, captions)):
        raise MapoError(
            f"{folder} has other pictures or prompts than when {pairs.folder} was made of it. Go on with the "
            f"old ones by `mapo label {pairs.folder}`, or choose another --out."
        )
