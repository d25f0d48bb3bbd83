"""What was asked for of a command that does a whole work of others, and what follows from it alone."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mapo.captions.ledger import Caption, read_ledger
from mapo.encode.frame import Frame
from mapo.errors import MapoError
from mapo.files import inside
from mapo.models import find_model, open_model
from mapo.sample.beside import Beside
from mapo.sample.sample import default_sampling
from mapo.score.scorers import scorer_names
from mapo.score.scorers.choice import NEUTRAL, check_goal
from mapo.settings import merge
from mapo.style import copies
from mapo.style.screen import unsafe_in
from mapo.texts import read_object

if TYPE_CHECKING:
    from mapo.train.config import Config


@dataclass(frozen=True)
class Preview:
    """What will be done, before anything is, and why it cannot be; empty where it can."""

    lines: list[str]
    warnings: list[str]
    refusal: str = ""

    def refuse(self) -> None:
        """MapoError where it cannot be done."""
        if self.refusal:
            raise MapoError(self.refusal)


@dataclass(frozen=True)
class Left:
    """What such a command has left in a folder: the files and folders by their names in it, what each stage ``said`` by
    its name, and what was found of ``copies`` (as in ``copies.json``)."""

    folder: Path
    files: Mapping[str, Path]
    said: Mapping[str, str]
    copies: Mapping[str, Any]

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def verdict(self) -> str | None:
        """What the report says; None where there is none, as nobody scores."""
        return self.said.get("report")

    @classmethod
    def of(cls, folder: Path, names: Sequence[str], said: Mapping[str, str]) -> Self:
        """What is there of these names."""
        found = read_object(folder / "copies.json", "what was found of copies", "Delete it.")
        return cls(folder, {name: folder / name for name in names if (folder / name).exists()}, said, found)


def are_wide(frames: Sequence[Frame]) -> bool:
    """Whether not all of them are squares."""
    return any(frame.width != frame.height for frame in frames)


@dataclass
class Asked:
    """Pictures, a model, and a folder ``out`` for all stages.

    Who names no ``recipe`` gets the one in ``OWN_RECIPES`` for the model of that name, else the one in ``RECIPES`` for
    its kind, else ``bare`` settings. Settings in ``OWN`` are the command's, and none of ``settings``.
    """

    RECIPES: ClassVar[Mapping[str, str]] = {}
    OWN_RECIPES: ClassVar[Mapping[str, str]] = {}
    OWN: ClassVar[Mapping[str, str]] = {
        "model": "--model names it", "loras": "--lora names them", "pairs": "they lie in --out",
        "cache": "it lies in --out",
    }  # fmt: skip
    TITLE: ClassVar[str] = "Your pictures"
    bare: ClassVar[Mapping[str, Any]] = {"adapter": {"kind": "lora"}}

    pictures: Path
    model: str
    out: Path
    recipe: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    per_picture: int = 1
    eval_prompts: str | Sequence[str] | None = None
    scorer: str | None = None
    goal: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    loras: Sequence[str] = ()
    copies_with: str | None = None

    def __post_init__(self) -> None:
        from mapo.train.recipes.recipe import read_recipe

        if self.out.resolve().is_relative_to(self.pictures.resolve()):
            raise MapoError(f"--out {self.out} lies in {self.pictures}, whose pictures are read. Choose another place.")
        for name in ("width", "height"):
            if name in self.sampling:
                raise MapoError(f"sampling: {name} is that of the pictures. Leave it out.")
        if self.scorer and scorer_names(self.scorer) == [NEUTRAL]:
            raise MapoError(f"--scorer: {NEUTRAL} alone know no better or worse. Name another scorer, or none.")
        if self.goal:
            check_goal(self.goal, self.scorer, self.model)
        refuse_own(self.settings, self.OWN)
        self.told = _told_of_model(self.settings)
        self.files = find_model(self.model, loras=self.loras, **self.told)
        if self.recipe is None:
            self.recipe = self.OWN_RECIPES.get(self.model) or self._fitting_recipe()
        values = read_recipe(self.recipe) if self.recipe else merge({}, self.bare)
        values.pop("model", None)
        self.resolution: int | None = merge(values, self.settings).get("data", {}).get("resolution")
        if (told := _told_of_model(values)) != self.told:
            self.told, self.files = told, find_model(self.model, loras=self.loras, **told)
        self._check_sampling()
        self.is_lora = values.get("adapter", {}).get("kind", "full") == "lora"
        if self.copies_with is not None:
            copies.look_by(self.copies_with)  # refused now, where it is not a model

    def _check_sampling(self) -> None:
        """MapoError where nothing could be drawn as is asked for."""
        try:
            default_sampling(self.files, **self.sampling)
        except MapoError as error:
            raise MapoError(str(error).replace("--steps", "--sampling-steps", 1)) from None

    def _fitting_recipe(self) -> str | None:
        """The recipe for models of this kind, where this one is not much smaller."""
        from mapo.train.recipes.recipe import check_recipe, read_recipe

        name = self.RECIPES.get(self.files.pipeline_class)
        if name is None:
            return None
        try:
            check_recipe(name, self.model, read_recipe(name).get("data", {}).get("resolution"))
        except MapoError:
            return None
        return name

    @cached_property
    def side(self) -> int:
        """Pixels at which is trained."""
        return open_model(self.files, to_train=False).layout.checked(self.resolution)

    @property
    def captions_file(self) -> Path:
        """The captions, to be read and changed."""
        return self.out / "captions.jsonl"

    @property
    def about_safety(self) -> str:
        """Why pictures or drawings here may be unsafe by what was asked for; empty where they are not known to be."""
        if self.files.sensitive:
            return f"{self.model} was trained on a set that is marked sensitive"
        if self.recipe and "safety" in self.recipe:
            return f"the recipe {self.recipe} is about what is unsafe"
        return ""

    def identity(self) -> dict[str, Any]:
        """What another command in the same folder has to ask for, too."""
        pictures = str(self.pictures.resolve())
        return {"pictures": pictures, "model": self.files.stable_name, "loras": self.files.named_loras_told()}

    def kept(self, captions: Sequence[Caption]) -> list[tuple[Caption, Path]]:
        """The pictures that are kept and still there, and where."""
        found = [
            (one, inside(self.pictures, one.file, str(self.captions_file))) for one in captions if one.keep
        ]  # fmt: skip
        return [(one, path) for one, path in found if path.is_file()]

    def captions_now(self) -> list[Caption]:
        """The captions of the pictures that are kept and still there, as their file has them now."""
        return [one for one, _ in self.kept(list(read_ledger(self.captions_file).values()))]

    def train_settings(self, frames: Sequence[Frame]) -> dict[str, Any]:
        """What a training is told beside its recipe, where its pictures have these frames."""
        start: dict[str, Any] = {"data": {"buckets": True}} if are_wide(frames) else {}
        if self.recipe is None:
            merge(start, self.bare)
        return merge(start, self.settings)

    def drawn_by(self) -> list[str]:
        """What the drawings of the model come from, beside their prompts: its weights, and how it draws."""
        how = [*sorted(self.sampling.items()), *sorted(self.told.items())]
        return [self.files.revision(), *(f"{name}={value}" for name, value in how)]

    def looked_by(self) -> str:
        """By what copies are looked for."""
        return self.copies_with or ("dinov2" if copies.dinov2_at_hand() else "hash")

    def learns_from_rejected(self, config: Config) -> bool:
        """Whether a training looks at rejected pictures."""
        from mapo.train.objectives.own import objective_named

        return objective_named(config.objective.name).needs_rejected or config.train.measure_rejected

    def kinds(self) -> dict[str, str]:
        """What the prompts are that are drawn before and after, by their ids."""
        return {}

    def beside(self) -> Beside:
        """What is shown beside the drawings: the pictures, and of what kind each prompt is."""
        kept = self.kept(list(read_ledger(self.captions_file).values()))
        unsafe = unsafe_in(self.out)
        veiled = {path for one, path in kept if one.file in unsafe}
        return Beside(self.TITLE, [path for _, path in kept], self.kinds(), veiled=veiled)

    def found_of(self, found: Mapping[str, Any]) -> list[str]:
        """What there is to say of drawings and pictures beside each other, where this was ``found`` of copies."""
        return [copies.told(found)]

    def plain_prompts(self) -> list[str]:
        """Prompts that have nothing to do with the pictures."""
        from mapo.sample.prompts import asked_prompts

        if self.eval_prompts:
            try:
                return asked_prompts(self.eval_prompts)
            except MapoError as error:
                raise MapoError(str(error).replace("--prompts", "--eval-prompts", 1)) from None
        return (importlib.resources.files("mapo.style") / "prompts.txt").read_text("utf-8").splitlines()


def _told_of_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What these settings of a training say of its model, as :func:`mapo.models.find_model` takes it."""
    data = settings.get("data", {})
    found = {name: settings.get(name) for name in ("vae", "prediction")}
    found |= {name: data.get(name) for name in ("clip_skip", "long_prompts")}
    return {name: value for name, value in found.items() if value is not None}


def refuse_own(settings: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """MapoError where a setting is one that the command has of its ``own``."""
    for name, instead in own.items():
        found: Any = settings
        for key in name.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            raise MapoError(f"--set {name} cannot be set here: {instead}. Leave it out.")
