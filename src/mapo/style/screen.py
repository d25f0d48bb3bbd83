"""Whether pictures that somebody gives look unsafe, where a safety scorer is on this machine, and could show minors.

It is a look, not a proof: a scorer sees some of what is unsafe, and takes harmless pictures for it now and then. So its
findings are told, and refused is only what also could mean minors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mapo import progress
from mapo.build.minors import names_minor
from mapo.captions.beside import named, some
from mapo.captions.ledger import Caption
from mapo.errors import MapoError, count, to_install
from mapo.files import inside
from mapo.pairs.pictures import decode_picture
from mapo.score.scorers import load_scorer
from mapo.score.scorers.choice import lacks
from mapo.style.stages import Stage, StageLedger
from mapo.texts import read_object, write_json

METRICS = {"nsfw": "nsfw", "safety": "unsafe"}  # of the scorers, the first that is at hand looks
UNSAFE = 0.5
SCREENED = "screen.json"
LOOKED_AT: dict[tuple[str, str, int], float] = {}  # by scorer, picture, and when that was changed
NOBODY = f"no safety scorer is on this machine; this brings one: {to_install('safety')}"


def screener() -> str | None:
    """The safety scorer that is on this machine."""
    return next((name for name in METRICS if lacks(name) is None), None)


@dataclass(frozen=True)
class Screened:
    """What a scorer says of the pictures of a folder: a number each, higher where they look less safe."""

    folder: Path
    scorer: str
    values: dict[str, float]

    @property
    def unsafe(self) -> list[str]:
        """The pictures that look unsafe with their numbers, the worst first."""
        found = sorted((-value, name) for name, value in self.values.items() if value > UNSAFE)
        return [f"{name} ({-value:.2f})" for value, name in found]

    @property
    def says(self) -> str:
        """The finding in a sentence without its end."""
        of = count(len(self.values), "picture")
        if not self.unsafe:
            return f"{self.scorer} takes none of {of} for unsafe"
        return f"{self.scorer} takes {len(self.unsafe)} of {of} for unsafe: {named(self.unsafe)}"

    @property
    def warning(self) -> str:
        """What to do about it; empty where nothing looks unsafe."""
        if not self.unsafe:
            return ""
        look = some(self.unsafe, "picture looks", "pictures look")
        return (
            f"{self.folder}: {look} unsafe to {self.scorer}: {named(self.unsafe)}. Look at them. "
            '"keep": false in its line of captions.jsonl leaves a picture out.'
        )


def screen(folder: Path, captions: Sequence[Caption], scorer: str) -> Screened:
    """Let a scorer look at the pictures of a folder; each is looked at once, however often this is asked.

    MapoError where a picture looks unsafe and its caption could mean minors.
    """
    paths = {one.file: inside(folder, one.file, str(folder)) for one in captions}
    keys = {name: (scorer, str(path.resolve()), path.stat().st_mtime_ns) for name, path in paths.items()}
    left = [one for one in captions if keys[one.file] not in LOOKED_AT]
    judge = load_scorer(scorer) if left else None
    with progress.bar(total=len(left), desc="screen", unit="picture", shown=bool(left)) as bar:
        for one in left:
            assert judge is not None
            found = judge([decode_picture(paths[one.file].read_bytes())], [one.caption])
            LOOKED_AT[keys[one.file]] = float(found[METRICS[scorer]][0] or 0.0)
            bar.update()
    return refused(Screened(folder, scorer, {name: LOOKED_AT[key] for name, key in keys.items()}), captions)


def refused(found: Screened, captions: Sequence[Caption]) -> Screened:
    """The same; MapoError where a picture looks unsafe and its caption could mean minors."""
    unsafe = [one for one in captions if found.values.get(one.file, 0.0) > UNSAFE]
    refuse_minors(found.folder, unsafe, f"{found.scorer} takes pictures for unsafe")
    return found


def screening(
    folder: Path, scorer: str, out: Path, captions: Callable[[], list[Caption]], seen: Callable[[], list[str]]
) -> Stage:
    """The stage that lets a scorer look at the pictures of a folder, as they and their captions are then."""

    def look() -> str:
        found = screen(folder, captions(), scorer)
        told = {"by": scorer, "metric": METRICS[scorer], "unsafe_above": UNSAFE, "pictures": found.values}
        write_json(out / SCREENED, told)
        return found.says

    return Stage("screen", "whether a picture looks unsafe", (SCREENED,), lambda: [scorer, *seen()], look)


def screened_before(
    stages: Sequence[Stage], ledger: StageLedger, folder: Path, captions: Sequence[Caption]
) -> list[str]:
    """What the plan says of it, and of what it warns; where the stage is not done, the scorer looks now."""
    scorer = screener()
    if scorer is None:
        return [f"by nobody: {NOBODY}"]
    stage = next(one for one in stages if one.name == "screen")
    if ledger.is_done(stage):
        found = refused(Screened(folder, scorer, _values(ledger.folder)), captions)
    else:
        found = screen(folder, captions, scorer)
    return [found.says, *filter(None, [found.warning])]


def unsafe_in(out: Path) -> set[str]:
    """The pictures that looked unsafe when they were screened; none where nobody looked."""
    return {name for name, value in _values(out).items() if value > UNSAFE} if (out / SCREENED).is_file() else set()


def _values(out: Path) -> dict[str, float]:
    said = read_object(out / SCREENED, "what a safety scorer said", "Delete it.")
    return dict(said.get("pictures", {}))


def refuse_minors(folder: Path, captions: Sequence[Caption], why: str) -> None:
    """MapoError names the pictures whose caption, or what it was made from, could mean minors; ``why`` that matters."""
    found = {one.file: names_minor(f"{one.caption}\n{one.raw}") for one in captions if one.keep}
    if shown := [f"{name} (“{word}”)" for name, word in found.items() if word]:
        raise MapoError(
            f"{folder}: {why}, and {some(shown, 'caption', 'captions')} could mean minors: {named(shown)}. Nothing is "
            "made of them. Take these pictures out."
        )
