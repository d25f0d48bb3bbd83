"""Models: where their files lie (``find``, ``files``), what a family offers (``family``), and the families.

``open_model(find_model(name))`` is the way from a name to all that training, encoding and sampling ask of a model.
"""

from mapo.models.families.opening import is_of_a_family, open_model
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
    "read_config",
    "together",
]
