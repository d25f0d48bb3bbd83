"""Models: where their files lie (``find``, ``files``), what a family offers (``family``), and the families.

``open_model(find_model(name))`` is the way from a name to all that training, encoding and sampling ask of a model.
Names are loaded when they are first asked for, so that what only reads a run's files starts without the libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapo.models.families.opening import is_of_a_family, open_model, other_kind
    from mapo.models.family import Cond, Frames, Layout, Opened, TokenModel, together
    from mapo.models.files import ModelFiles
    from mapo.models.parts.config import read_config
    from mapo.models.parts.fingerprints import fingerprint
    from mapo.models.sources.find import find_model

__all__ = [
    "Cond",
    "Frames",
    "Layout",
    "ModelFiles",
    "Opened",
    "TokenModel",
    "find_model",
    "fingerprint",
    "is_of_a_family",
    "open_model",
    "other_kind",
    "read_config",
    "together",
]

HOMES = {
    "families.opening": ("is_of_a_family", "open_model", "other_kind"),
    "family": ("Cond", "Frames", "Layout", "Opened", "TokenModel", "together"),
    "files": ("ModelFiles",),
    "parts.config": ("read_config",),
    "parts.fingerprints": ("fingerprint",),
    "sources.find": ("find_model",),
}


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"mapo.models.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
