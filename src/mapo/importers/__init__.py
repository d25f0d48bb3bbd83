"""Importers: somebody's pairs, rankings or scores become a set of pairs.

``importing.py`` does it. Of a source (``sources.py``) ``detect.py`` says which format it is in (``formats/``), whatever
holds its rows (``containers/``).
"""

from mapo.importers.formats import IMPORTERS
from mapo.importers.importing import import_pairs
from mapo.importers.types import BadRow, Importer, LeftOut, Options, RawPair

__all__ = ["IMPORTERS", "BadRow", "Importer", "LeftOut", "Options", "RawPair", "import_pairs"]
