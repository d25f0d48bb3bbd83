"""Reference pictures for scorers that compare: of an images folder, or the chosen pictures of a pairs set."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from PIL.Image import Image

from mapo.errors import MapoError
from mapo.pairs.pairs import TIE, PairSet
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, open_picture, read_images


class References:
    """The reference pictures of some prompts, named by their hashes.

    A picture is compared with the reference of its prompt and seed. Where the seed is not among them, as it never is
    in a pairs set, it is the one with the number seed modulo n of the prompt's n references in the order of the folder,
    so that pictures of the same prompt and seed always have the same reference.
    """

    def __init__(self, folder: Path, wanted: Collection[str]) -> None:
        """``wanted`` has the prompts' ids."""
        self.folder = folder
        self._names: dict[str, dict[str, None]] = {}  # the hashes of a prompt's references, in order
        self._of_seed: dict[tuple[str, int], str] = {}
        self._rows: dict[str, ImageRow] = {}
        self._pairs: PairSet | None = None
        if (folder / "set.json").is_file() and not (folder / "manifest.jsonl").is_file():
            self._pairs = PairSet(folder)
            self._pairs.refuse_without_pictures("mapo score --references")
            for pair in self._pairs:
                if pair.preference > TIE and (name := prompt_id(pair.prompt)) in wanted:
                    self._names.setdefault(name, {})[pair.chosen] = None
            return
        try:
            rows = read_images(folder)
        except MapoError as error:
            raise MapoError(f"--references takes an images folder or a pairs set. {error}") from None
        for row in rows:
            if row.prompt_id in wanted:
                self._names.setdefault(row.prompt_id, {})[row.sha256] = None
                self._of_seed.setdefault((row.prompt_id, row.seed), row.sha256)
                self._rows[row.sha256] = row

    def name(self, row: ImageRow) -> str | None:
        """The hash of the picture that this one is compared with; None where its prompt has none."""
        names = list(self._names.get(row.prompt_id, ()))
        return self._of_seed.get((row.prompt_id, row.seed), names[row.seed % len(names)]) if names else None

    def picture(self, name: str) -> Image:
        """A reference, RGB; any thread may ask."""
        return self._pairs.image(name) if self._pairs else open_picture(self.folder, self._rows[name])
