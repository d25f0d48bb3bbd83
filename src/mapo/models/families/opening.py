"""Opening a model, once: from its files to what its family offers."""

from __future__ import annotations

from mapo.errors import MapoError
from mapo.models.family import Opened
from mapo.models.files import ModelFiles


def open_model(files: ModelFiles, to_train: bool = True) -> Opened:
    """The model as its family offers it; MapoError where no family knows its pipeline's class.

    Its JSON files have to say what is asked of them, each in its kind. Where it is opened ``to_train`` the folder has
    to be of the family's kind in every part as well. No weights are read.
    """
    from mapo.models.families import FAMILIES  # which loads diffusers

    kind = files.pipeline_class
    if kind not in FAMILIES:
        raise MapoError(f"{files.name} is a {kind or 'pipeline without a class'}; known are: {', '.join(FAMILIES)}.")
    _hide_loading_bars()
    opened = FAMILIES[kind](files)
    opened.check_values()
    if to_train:
        opened.check()
    return opened


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
