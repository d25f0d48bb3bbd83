"""What was asked of `mapo style`, and what follows from it and from the captions as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.build.against import Own, check_asked, held_out
from mapo.build.judge import parse_filter
from mapo.build.rejected import refuse_within, rejected_of
from mapo.captions.fit import FEWEST, refuse_unfit
from mapo.captions.ledger import Caption
from mapo.encode.frame import Frame
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.pairs import PairSet
from mapo.pairs.splits import prompt_id
from mapo.sample.beside import Beside
from mapo.score.scorers import FLAWS
from mapo.style import copies
from mapo.style.asked import Asked
from mapo.style.screen import SCREENED, refuse_minors, screener
from mapo.style.shown import others, untrained

if TYPE_CHECKING:
    from mapo.train.config import Config


@dataclass
class Style(Asked):
    """What was asked for."""

    RECIPES = {  # noqa: RUF012
        "StableDiffusionXLPipeline": "sdxl-mapo-lora",
        "StableDiffusionPipeline": "sd15-mapo-lora",
        "StableDiffusion3Pipeline": "sd35-mapo-lora",
        "FluxPipeline": "flux-mapo-lora",
    }
    OWN_RECIPES = {"mini": "mini-style"}  # noqa: RUF012

    captions: Path | None = None
    caption_with: str | None = None
    raw: bool = False
    rejected: Path | None = None
    judge: str | None = None
    fit: list[tuple[str, str, bool]] = field(default_factory=list)  # captions of pictures that were looked at

    def __post_init__(self) -> None:
        if self.rejected is not None:
            if self.judge is not None or self.per_picture != 1:
                flag = "--judge" if self.judge is not None else "--rejected-per-picture"
                raise MapoError(f"{flag} is for drawings and does not go with --rejected. Leave one of them out.")
            refuse_within(self.pictures, self.rejected)
        super().__post_init__()
        self.chooser = parse_filter(self.judge) if self.judge else None
        check_asked(self.per_picture, self.chooser)

    @property
    def about_safety(self) -> str:
        """As of all such commands; a judge may look for what is unsafe, too."""
        if not super().about_safety and self.chooser and self.chooser.metric in FLAWS:
            return f"--judge {self.judge} looks for what is unsafe"
        return super().about_safety

    def refuse_unfit(self, captions: Sequence[Caption]) -> None:
        """MapoError where the pictures cannot be learned from, or must not be. The same ones are looked at once."""
        said = [(one.file, one.caption, one.keep) for one in captions]
        if said == self.fit:
            return
        refuse_unfit(self.pictures, captions, fewest=FEWEST, side=self.side // 2)
        if self.about_safety:
            refuse_minors(self.pictures, captions, self.about_safety)
        self.fit = said

    # -------------------------------------------------------------- the pictures

    def own(self, captions: Sequence[Caption]) -> list[Own]:
        """The pictures that are kept and still there."""
        return [Own(one.file, one.caption, path) for one, path in self.kept(captions)]

    def seen(self, captions: Sequence[Caption]) -> list[str]:
        """What is seen of the pictures and captions as they are now, and of the rejected pictures that are given."""
        own = self.own(captions)
        given = rejected_of(own, self.rejected)[0] if self.rejected else {}
        return [f"{one.name} {one.caption} {_hash_of(one.path, one.path.stat().st_mtime_ns)}" for one in own] + [
            f"{name} rejected {_hash_of(path, path.stat().st_mtime_ns)}" for name, path in given.items()
        ]

    # -------------------------------------------------------------- where it lies, and how it is done

    @property
    def pairs(self) -> Path:
        """The set."""
        return self.out / "pairs"

    @property
    def run(self) -> Path:
        """The run."""
        return self.out / "run"

    def beside(self) -> Beside:
        """As of all such commands, and what there is to see."""
        shows = "Your pictures, and what the model draws before and after it learned from them."
        return replace(super().beside(), shows=shows)

    @property
    def draws(self) -> bool:
        """Whether the model draws rejected pictures: where the training looks at them, they are asked for, or there."""
        if self.rejected is not None:
            return False
        there = self.per_picture != 1 or self.chooser is not None or (self.out / "rejected").is_dir()
        return there or self.learns_from_rejected(self.config([]))

    def names(self) -> list[str]:
        """What is left in ``out``."""
        screened, drawn = [SCREENED] * bool(screener()), ["rejected"] * self.draws
        names = ["captions.jsonl", *screened, *drawn, "pairs", "check.html", "mismatch.json", "mismatch.txt"]
        names += ["cache", "run", "before"]
        last = ["lora.safetensors"] * self.is_lora
        return [*names, "after", "after/grid.png", "copies.json", *last, "report.html"]

    def encoder(self) -> str:
        """By what the mismatch is measured: nothing is fetched for it."""
        from mapo.mismatch.distance import default_encoder

        usual = default_encoder(self.files)
        if usual != "dinov2":
            return usual
        return f"dinov2@{self.copies_with}" if self.copies_with else usual if copies.dinov2_at_hand() else "none"

    def named(self) -> dict[str, Any]:
        """The model and what lies on it, as `mapo train` takes them by name."""
        return {"model": self.model, "loras": [*self.loras] or None}

    def of_run(self) -> dict[str, Any]:
        """All that the training takes by name."""
        return {**self.named(), "pairs": str(self.pairs), "cache": str(self.out / "cache")}

    def config(self, frames: Sequence[Frame]) -> Config:
        """The settings of the training, as `mapo train` would have them."""
        from mapo.train.verb import config_of

        return config_of(self.run, self.train_settings(frames), self.recipe, self.of_run())

    def shown(self) -> list[str]:
        """What is drawn before and after: held-out captions and plain prompts, none of which is trained on."""
        held = [pair.prompt for pair in PairSet(self.pairs) if pair.split != "train"]
        return untrained([*held, *self.plain_prompts()], self.pairs)

    def kinds(self) -> dict[str, str]:
        """Captions that are held out, and plain prompts."""
        held = [pair.prompt for pair in PairSet(self.pairs) if pair.split != "train"]
        plain = {prompt_id(prompt): "plain prompt" for prompt in self.plain_prompts()}
        return plain | {prompt_id(prompt): "caption, held out" for prompt in held}

    def foreseen(self, captions: Sequence[Caption]) -> list[str]:
        """As :meth:`shown`, of a set that will be made from these captions."""
        own = self.own(captions)
        split = held_out(own)
        sides: dict[bool, list[str]] = {False: [], True: []}
        for one in own:
            sides[split[prompt_id(one.caption)] == "train"].append(one.caption)
        return others([*sides[False], *self.plain_prompts()], sides[True])


@cache
def _hash_of(path: Path, _changed: int) -> str:
    return sha256(path.read_bytes())
