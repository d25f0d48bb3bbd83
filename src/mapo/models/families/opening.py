"""Opening a model, once: from its files to what its family offers."""

from __future__ import annotations

from mapo.errors import MapoError
from mapo.models.family import Opened
from mapo.models.files import ModelFiles
from mapo.models.parts.config import read_config

MADE_FROM = "Give the model that it was made from, one that makes pictures from text."
OTHER_KINDS = (  # a word in the class of a pipeline, and what such a model is; the first one counts
    ("ControlNet", "which needs a ControlNet beside its model. Give the model alone, as a folder of its own class."),
    ("InstructPix2Pix", f"a model for editing pictures. {MADE_FROM}"),
    ("Edit", f"a model for editing pictures. {MADE_FROM}"),
    ("Kontext", f"a model for editing pictures. {MADE_FROM}"),
    ("Inpaint", f"a model for inpainting. {MADE_FROM}"),
    ("Fill", f"a model for inpainting. {MADE_FROM}"),
    ("FluxControl", f"a model that copies a layout (FLUX.1 Depth or Canny). {MADE_FROM}"),
    ("Depth2Img", f"a model that is given depth. {MADE_FROM}"),
    ("Upscale", f"an upscaler. {MADE_FROM}"),
    ("Img2Img", f"which begins with a picture and not with text. {MADE_FROM}"),
)


def open_model(files: ModelFiles, to_train: bool = True) -> Opened:
    """The model as its family offers it; MapoError where no family knows its pipeline's class.

    Its JSON files have to say what is asked of them, each in its kind. Where it is opened ``to_train`` the folder has
    to be of the family's kind in every part as well. No weights are read.
    """
    from mapo.models.families import FAMILIES  # which loads diffusers

    kind = files.pipeline_class
    if told := other_kind(files):
        raise MapoError(told)
    if kind not in FAMILIES:
        raise MapoError(
            f"{files.name} is a {kind or 'pipeline without a class'}; known are: {', '.join(FAMILIES)}. "
            "No other can be trained; give a model of one of these."
        )
    _hide_loading_bars()
    opened = FAMILIES[kind](files)
    opened.check_values()
    if to_train:
        opened.check()
    return opened


def other_kind(files: ModelFiles) -> str:
    """What a model is that makes no pictures from text alone, by its folder, and what to name instead; else empty."""
    index, kind = read_config(files.base, "model_index.json"), files.pipeline_class
    if kind.startswith("StableDiffusionXL") and index.get("requires_aesthetics_score"):
        return f"{files.name} is the refiner of SDXL, which only finishes pictures. Give the base model."
    for word, what in OTHER_KINDS:
        if word in kind:
            return f"{files.name} is a {kind}, {what}"
    return ""


def is_of_a_family(files: ModelFiles) -> bool:
    """Whether a family knows the class of the model's pipeline."""
    from mapo.models.families import FAMILIES

    return files.pipeline_class in FAMILIES


def _hide_loading_bars() -> None:
    """The libraries' bars over files that lie on the disk pass in a second; those of downloads stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
