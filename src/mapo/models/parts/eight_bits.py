"""Weights in 8 bits and fewer: those that are read as they are, and those that would be wrong so."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from mapo.errors import MapoError
from mapo.models.parts.header import TAKE_WHOLE, Header

LOG = logging.getLogger(__name__)

FLOATS = ("F64", "F32", "F16", "BF16")
EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "F8_E4M3FN", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
SCALED = ("scaled_fp8", ".scale_weight", ".weight_scale", ".scale_input")
QUANTIZED = (".absmax", ".quant_map", ".quant_state", ".qweight", ".weight_format")
WEIGHT = (".weight", ".scale")  # how the names of weights end; places and counters are whole numbers in any file


def refuse_quantized(header: Header) -> None:
    """MapoError about the first tensor that is a scale of other weights, or a weight in whole numbers."""
    path = header.path
    for name, held in header.tensors.items():
        if any(word in name for word in SCALED):
            raise MapoError(
                f"{path} holds scaled 8-bit weights, as {name} tells. Read as they are they would be wrong, and they "
                f"cannot be trained. {TAKE_WHOLE}"
            )
        is_whole = name.endswith(WEIGHT) and held.dtype not in (*FLOATS, *EIGHT_BITS)
        if is_whole or any(word in name for word in QUANTIZED):
            raise MapoError(
                f"{path} holds quantized weights, as {name} ({held.dtype}) tells, which cannot be trained. {TAKE_WHOLE}"
            )


def tell_eight_bits(header: Header) -> None:
    """Say, once for each file, that its weights have lost digits."""
    if any(held.dtype in EIGHT_BITS for held in header.tensors.values()):
        _tell(header.path)


@cache
def _tell(path: Path) -> None:
    LOG.info(f"{path} holds weights in 8 bits, which have lost digits. Train the file in 16 bits if you can.")
