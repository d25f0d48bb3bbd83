"""The set on disk: schema, reader, writer, pictures, splits."""

from mapo.pairs.pairs import PairSet
from mapo.pairs.writer import PairWriter

__all__ = ["PairSet", "PairWriter"]
