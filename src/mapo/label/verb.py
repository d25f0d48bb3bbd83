"""The verb as the command line gives it: a set or a folder of pictures in, what is judged out."""

from __future__ import annotations

from pathlib import Path

from mapo.build.groups import read_groups
from mapo.errors import MapoError
from mapo.files import kind_of_folder
from mapo.label.blind import Material, of_grids, of_pairs
from mapo.label.candidates import refuse_other, write_candidates
from mapo.pairs import PairSet

SET = "set.json"


def is_pictures(folder: Path) -> bool:
    """Whether a folder is not a set, so that its pictures have to become one."""
    return folder.is_dir() and not (folder / SET).exists()


def open_set(
    folder: Path, out: Path | None = None, captions: Path | None = None, *, sensitive: bool = False
) -> PairSet:
    """The set to judge: ``folder`` itself, or the one at ``out`` that is made of its pictures, or was before."""
    if not is_pictures(folder):
        if captions is not None:
            raise MapoError(f"--captions goes with a folder of pictures, and {folder} is not one. Leave it out.")
        return PairSet(folder)
    if out is None:
        if kind_of_folder(folder) not in ("", "an images folder"):
            return PairSet(folder)  # which says what it is
        raise MapoError(
            f"{folder} is not a pairs set: it has no {SET}. To judge a folder of pictures, name the set that is to "
            f"hold them and the votes: mapo label {folder} --out MY-SET --grid."
        )
    if out.exists():
        pairs = PairSet(out)
        refuse_other(pairs, folder, captions)
        return pairs
    return write_candidates(read_groups(folder, captions, sensitive=sensitive), out)


def material_of(pairs: PairSet, grid: bool) -> Material:
    """What is judged of a set: its pairs, or all pictures of a prompt at once."""
    return of_grids(pairs) if grid else of_pairs(pairs)
