"""What was asked for of a personalization, and what follows from it and the photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.build.against import Own, check_asked
from mapo.build.minors import names_minor
from mapo.captions.fit import FEWEST, refuse_unfit
from mapo.captions.ledger import Caption
from mapo.encode.frame import Frame
from mapo.errors import MapoError
from mapo.models import TokenModel, open_model
from mapo.pairs.splits import prompt_id
from mapo.personalize.captions import PhotoCaptions, captions_in
from mapo.personalize.words import PLACE, Words, own_lines, read_templates
from mapo.sample.beside import Beside
from mapo.settings import merge
from mapo.style import copies
from mapo.style.asked import Asked
from mapo.style.screen import refuse_minors

if TYPE_CHECKING:
    from mapo.train.config import Config

PRIOR_SEED = 10_000  # the first of the prior's chosen drawings; its rejected ones begin at 0
NOT_GOING_ON = ("rank", "alpha", "targets")  # settings of an adapter that one which is trained further keeps


@dataclass
class Personalize(Asked):
    """What was asked for: ``token`` stands for the subject, ``noun`` is the class word."""

    RECIPES = {  # noqa: RUF012
        "StableDiffusionXLPipeline": "sdxl-personalize",
        "StableDiffusionPipeline": "sd15-personalize",
    }
    OWN_RECIPES = {"mini": "mini-personalize"}  # noqa: RUF012
    OWN = {  # noqa: RUF012
        **Asked.OWN, "adapter.token": "--token names it", "adapter.token_from": "--class names it",
        "adapter.start": "each round goes on where the one before ended",
    }  # fmt: skip
    TITLE = "Your photos"
    bare = {"adapter": {"kind": "lora", "text_encoders": True}}  # noqa: RUF012

    token: str = ""
    noun: str = ""
    templates: str | None = None
    rounds: int = 2
    prior: int = 40
    prior_prompts: str | None = None
    per_picture: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_asked(self.per_picture, None)
        if self.rounds < 1:
            raise MapoError(f"--rounds is {self.rounds}; it must be at least 1.")
        if self.prior < 0:
            raise MapoError(f"--prior is {self.prior}; it must not be negative. 0 draws none.")
        if not self.is_lora:
            raise MapoError("A token is learned beside a LoRA: leave adapter.kind as it is (lora).")
        self.words = Words(self.token, " ".join(self.noun.split()), read_templates(self.templates))
        if self.about_safety and names_minor(self.words.noun):
            raise MapoError(f"--class {self.words.noun}: {self.about_safety}, and this word could mean minors.")
        _check_token(self)

    def identity(self) -> dict[str, Any]:
        """What another command in the same folder has to ask for, too."""
        return {**super().identity(), "token": self.token, "class": self.words.noun}

    def round(self, number: int) -> Path:
        """The folder of a round, the first being 1."""
        return self.out / f"round-{number}"

    @property
    def draws(self) -> bool:
        """Whether the model draws rejected pictures: where the training looks at them, or a round has some."""
        there = self.out.is_dir() and any(self.out.glob("round-*/rejected"))
        return there or self.learns_from_rejected(self.config([], 1))

    def before(self, number: int) -> tuple[str, Sequence[str]]:
        """The model that a round begins with, and the LoRAs that lie on it."""
        return (self.model, self.loras) if number == 1 else (str(self.round(number - 1) / "run"), ())

    def of_run(self, number: int) -> dict[str, Any]:
        """What the training of a round takes by name."""
        model, loras = self.before(number)
        place = self.round(number)
        return {"model": model, "loras": [*loras] or None, "pairs": str(place / "pairs"), "cache": str(place / "cache")}

    def config(self, frames: Sequence[Frame], number: int) -> Config:
        """The settings of a round's training, as `mapo train` would have them."""
        from mapo.train.verb import config_of

        run, settings = self.round(number) / "run", self.round_settings(frames, number)
        return config_of(run, settings, self.recipe, self.of_run(number))

    def found(self) -> PhotoCaptions:
        """The captions; MapoError where the photos cannot be learned from."""
        found = captions_in(self.pictures, self.words, self.captions_file)
        refuse_unfit(self.pictures, found.captions, fewest=FEWEST, side=self.side // 2, styled=True)
        if self.about_safety:
            refuse_minors(self.pictures, found.captions, self.about_safety)
        return found

    def photos(self, captions: Sequence[Caption], number: int) -> list[Own]:
        """The photos that are kept. In the first round the model is told the class word: it knows no token yet."""
        kept = self.kept(captions)
        if number > 1:
            return [Own(one.file, one.caption, path) for one, path in kept]
        return [Own(one.file, one.caption, path, self.words.of_class(one.caption)) for one, path in kept]

    def prior_jobs(self, captions: Sequence[Caption]) -> list[tuple[str, int]]:
        """Prompts and seeds of the pictures that are to stay as they are: of the captions with the class word and of
        ``prior_prompts`` in turn."""
        from mapo.sample.prompts import asked_prompts

        lists = [[*dict.fromkeys(self.words.of_class(one.caption) for one in captions if one.keep)]]
        if self.prior_prompts:
            lists.append(asked_prompts(self.prior_prompts))
        if having := [prompt for prompt in lists[-1] if self.words.knows(prompt)]:
            raise MapoError(
                f"--prior-prompts: “{having[0]}” has {self.token} in it. These are prompts whose pictures stay as they "
                "are; write the class word."
            )
        jobs = []
        for k in range(self.prior):
            prompts, number = lists[k % len(lists)], k // len(lists)
            jobs.append((prompts[number % len(prompts)], PRIOR_SEED + number // len(prompts)))
        return jobs

    def shown(self) -> list[str]:
        """What is drawn before and after: the subject in places of no photo, its class there, and plain prompts."""
        subject = [self.words.filled(line) for line in own_lines("shown.txt")]
        prompts = [prompt.replace(PLACE, self.token) for prompt in self.plain_prompts()]
        if self.eval_prompts:
            subject, prompts = (
                [p for p in prompts if self.words.knows(p)],
                [p for p in prompts if not self.words.knows(p)],
            )
        return [*subject, *map(self.words.of_class, subject), *prompts]

    def kinds(self) -> dict[str, str]:
        """Prompts with the token, the same with the class word, and plain ones."""
        shown = self.shown()
        subject = [prompt for prompt in shown if self.words.knows(prompt)]
        of = dict.fromkeys(map(prompt_id, shown), "plain prompt")
        of |= {prompt_id(self.words.of_class(prompt)): "with the class word" for prompt in subject}
        return of | {prompt_id(prompt): f"with {self.token}" for prompt in subject}

    def beside(self) -> Beside:
        """As of all such commands, and what there is to see."""
        return replace(
            super().beside(), shows=f"Your photos, and what the model draws before and after it learned {self.token}."
        )

    def found_of(self, found: Mapping[str, Any]) -> list[str]:
        """Whether the drawings show the subject, and whether they are copies."""
        return [copies.likeness(found, self.token), copies.told(found, f" of {self.token}")]

    def round_settings(self, frames: Sequence[Frame], number: int) -> dict[str, Any]:
        """The settings of a round's training: behind the first it goes on with the LoRA of the round before."""
        token = {"adapter": {"token": self.token, "token_from": self.words.noun}}
        settings = merge(self.train_settings(frames), token)
        if number > 1:
            for name in NOT_GOING_ON:
                settings["adapter"].pop(name, None)
            settings["adapter"]["start"] = "continued"
        return settings


def _check_token(asked: Personalize) -> None:
    """MapoError where the model cannot learn such a token, or from such a class word."""
    from mapo.train.sections import AdapterConfig
    from mapo.train.weights.token import with_token

    model = open_model(asked.files, to_train=False)
    if not isinstance(model, TokenModel):
        raise MapoError(
            f"{asked.files.name} is a {asked.files.pipeline_class}, which learns no token. Take Stable Diffusion XL, 1 "
            "or 2."
        )
    if asked.files.token is not None:
        raise MapoError(
            f"{asked.files.name} has learned {asked.files.token.word} already. Take the model that it was made from, "
            "or go on in its own folder with more --rounds."
        )
    try:
        with_token(model, AdapterConfig(kind="lora", token=asked.token, token_from=asked.words.noun))
    except MapoError as error:
        said = str(error).replace("adapter.token_from", "--class").replace("adapter.token", "--token")
        raise MapoError(said) from None
