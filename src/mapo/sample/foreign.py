"""Pictures that another program made, and their prompts: what a folder of them says, read and never written to.

Prompts lie in lists or in texts beside the pictures, as ``captions/beside.py`` reads them: every picture must have one.
Files of other kinds are passed over and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mapo.captions.beside import (
    LINE,
    LISTS,
    MANIFEST,
    Files,
    PromptedPicture,
    files_of,
    in_order,
    is_ours,
    lists_of,
    named,
    read_list,
    some,
    stem_of,
    text_of,
    texts_beside,
    told_absent,
)
from mapo.errors import MapoError
from mapo.pairs.pictures import ENDS
from mapo.pairs.splits import prompt_id


def find_pictures(folder: Path) -> tuple[list[PromptedPicture], int]:
    """The pictures of a folder with their prompts, in the order of their names, and how many files were passed over."""
    files = _files(folder)
    pictures = [name for name in files if name.lower().endswith(ENDS)]
    if not pictures:
        raise MapoError(
            f"{folder} is not an images folder: it has no manifest.jsonl and no pictures. Make it with `mapo sample`, "
            "or name a folder of pictures with their prompts."
        )
    lists = lists_of(folder, files)
    if lists:
        found = [one for name in lists for one in _of_list(folder, name, files)]
        used = {one.file for one in found} | {files[name] for name in lists}
        alone = [name for name in pictures if files[name] not in used]
        if alone:
            raise MapoError(
                f"{some(alone, 'picture is', 'pictures are')} not in {folder / lists[0]} and so without a prompt: "
                f"{named(alone)}. Add a line for each, or move them elsewhere."
            )
    else:
        found, used = _of_texts(folder, files, pictures)
    found.sort(key=lambda one: in_order(one.file))
    _check_seeds(folder, found)
    return found, len(files) - len(used)


def _files(folder: Path) -> Files:
    """The files of a folder that holds no other images folder."""
    files = files_of(folder, "an images folder")
    places = [Path(folder, name) for name in files.values() if Path(name).name == MANIFEST]
    inner = sorted({str(place.parent) for place in places if place.parent != folder and is_ours(place)})
    if len(inner) == 1:
        raise MapoError(f"{folder} is not an images folder; it holds one, {inner[0]}. Name that.")
    if inner:
        raise MapoError(f"{folder} is not an images folder; it holds {len(inner)}: {named(inner)}. Name one of them.")
    return files


def _of_list(folder: Path, name: str, files: Files) -> list[PromptedPicture]:
    """The pictures of a list; MapoError where one has no prompt."""
    listed, path = read_list(folder, name, files), folder / files[name]
    if listed.absent:
        raise MapoError(f"{told_absent(path, listed.absent)}. Put them there, or take their lines out.")
    if listed.empty:
        raise MapoError(
            f"{path} has no prompt for {named(listed.empty)}. Write one, or take the line and the picture out."
        )
    return listed.found


def _check_seeds(folder: Path, found: Sequence[PromptedPicture]) -> None:
    """Either every picture has a seed, no two of a prompt the same, or none has one."""
    without = [one.file for one in found if one.seed is None]
    if without and len(without) < len(found):
        raise MapoError(
            f"{folder}: {some(without, 'picture has', 'pictures have')} no seed and others have one: "
            f"{named(without)}. Give a seed to all or to none."
        )
    seen: dict[tuple[str, int | None], str] = {}
    for one in found if not without else ():
        key = prompt_id(one.prompt), one.seed
        if key in seen:
            raise MapoError(
                f"{folder}: {seen[key]} and {one.file} have the same prompt and the same seed {one.seed}. Keep one of "
                "them, or leave all seeds out: then the pictures of a prompt are numbered in the order of their names."
            )
        seen[key] = one.file


def _of_texts(folder: Path, files: Files, pictures: Sequence[str]) -> tuple[list[PromptedPicture], set[str]]:
    """The pictures with the texts beside them, and all files that were used."""
    texts, owners = texts_beside(folder, files, pictures)
    if texts.keys().isdisjoint(owners):
        raise MapoError(_without_prompts(folder, files, pictures))
    if lonely := [name for stem in texts.keys() - owners.keys() for name in texts[stem]]:
        raise MapoError(
            f"{folder}: {some(lonely, 'text has', 'texts have')} no picture of the same name beside it: "
            f"{named(sorted(lonely))}. Put the picture there, or move the text elsewhere."
        )
    said = {stem: text_of(folder, [files[name] for name in names]) for stem, names in texts.items()}
    if silent := [name for stem, name in owners.items() if not said.get(stem, ("", None))[0]]:
        raise MapoError(
            f"{folder}: {some(silent, 'picture has', 'pictures have')} no prompt: {named(silent)}. Write it into a "
            f"text of the same name beside the picture, such as {stem_of(silent[0])}.txt."
        )
    found = [PromptedPicture(files[name], *said[stem]) for stem, name in owners.items()]
    return found, {one.file for one in found} | {files[name] for names in texts.values() for name in names}


def _without_prompts(folder: Path, files: Files, pictures: Sequence[str]) -> str:
    """What to do with a folder of pictures alone."""
    if "images.json" in (path.name for path in folder.iterdir()):  # `mapo sample` begins a folder with it
        return (
            f"{folder} is not finished: `mapo sample` has not written its manifest yet. Give the same command again, "
            "or with --shard 0/1 where it was shared out."
        )
    others = [name for name in files if name.lower().endswith(LISTS)]
    why = f" {others[0]} is not a list of prompts: it has no columns file_name and prompt." if others else ""
    return (
        f"{folder} has {some(pictures, 'picture', 'pictures')} and no prompts.{why} Write metadata.jsonl into it, "
        f"with a line such as {LINE} for each, or beside each picture a text of its name, such as "
        f"{stem_of(pictures[0])}.txt."
    )
