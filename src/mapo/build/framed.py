"""A picture of somebody's, cut to the frame that it shares with another."""

from __future__ import annotations

from pathlib import Path

from mapo.encode.frame import Frame, crop
from mapo.errors import MapoError
from mapo.pairs.pictures import bare_png, decode_picture
from mapo.sample.folder import png_bytes


def in_frame(path: Path, frame: Frame) -> bytes:
    """A picture in a frame, as the bytes of a PNG."""
    try:
        picture = decode_picture(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MapoError(f"The picture {path} cannot be used: {error}. Mend it, or leave it out.") from None
    return png_bytes(crop(picture, frame)[0])


def as_it_is(path: Path) -> bytes | None:
    """The pixels of a PNG as they lie in its file, without anything else; None for a file that has to be read."""
    try:
        return bare_png(path.read_bytes())
    except OSError:
        return None
