"""Encoded pictures: what is a whole still picture, and how it becomes upright, opaque, 8-bit RGB.

A picture is kept as the bytes that came. What reading it changes has a name, so that it can be counted:

=============  =====================================================================
``alpha``      has an alpha channel or a transparent colour: laid on white
``palette``    colours by number: looked up
``grey``       grey or black and white: the same value in all three channels
``CMYK``       printing colours: converted by Pillow's plain formula
``16 bits``    16 bits per channel: the upper 8 are kept
``rotated``    turned or mirrored as its EXIF orientation says
``one of many``  MPO, a still with a second view or a preview: the first is taken
=============  =====================================================================

``YCbCr`` and ``HSV`` count under their own names; other colour modes are refused. Embedded colour profiles are not
applied.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from mapo.files import sha256

ENDS = (  # of names of pictures; not all of them can be read, but none is passed over
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff",
    ".heic", ".heif", ".jxl", ".jp2", ".tga", ".ppm",
)  # fmt: skip
CAPTION_ENDS = (".txt", ".caption")  # of the file of a name that holds the prompt of the picture of that name
LEAST_SIDE = 2
ORIENTATION = 0x0112
DEEP = re.compile(r";16[BLN]\b")  # raw modes of 16 bits per channel; "BGR;16" is 16 bits per pixel
PLAIN = ("RGB", "RGBA", "RGBX", "RGBa")
MODES = {"P": "palette", "PA": "palette", "L": "grey", "LA": "grey", "1": "grey"} | {
    m: m for m in ("CMYK", "YCbCr", "HSV")
}
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # that a PNG can hold
PNG, CHUNK_FRAME = b"\x89PNG\r\n\x1a\n", 12  # a chunk is its length, kind, body and checksum
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
TEXTS_THAT_TURN = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
PIXELS, MAY_CHANGE = (b"IHDR", b"IDAT", b"IEND"), (b"eXIf", b"tRNS", b"acTL")  # chunks
CLEAR = ("RGBA", "RGBa", "LA", "PA")


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded once and found whole; width and height are those of the upright picture.

    ``data`` is None for a picture that is known but not kept.
    """

    sha256: str
    data: bytes | None
    width: int
    height: int
    conversions: tuple[str, ...] = ()


def check_picture(data: bytes, name: str | None = None) -> Picture:
    """Decode ``data`` to see that it is one whole still picture; ValueError says why it is not.

    ``name`` is its hash where that is known already.
    """
    picture, conversions = _load(data)
    width, height = picture.size
    if "rotated" in conversions and picture.getexif().get(ORIENTATION, 1) >= 5:
        width, height = height, width
    if min(width, height) < LEAST_SIDE:
        raise ValueError(f"it has {width} × {height} pixels; both sides must have {LEAST_SIDE} or more")
    return Picture(name or sha256(data), data, width, height, conversions)


def decode_picture(data: bytes) -> Image.Image:
    """Encoded bytes → RGB picture, upright, opaque, 8 bits per channel.

    Raises ValueError for anything that is not one whole still picture.
    """
    picture, conversions = _load(data)
    if "rotated" in conversions:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        picture = _upper_bits(picture)
    if "alpha" in conversions:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def upright(data: bytes) -> bytes | None:
    """A picture that EXIF turns, as a PNG of the same pixels that needs no turning; None for any other."""
    picture, conversions = _load(data)
    if "rotated" not in conversions:
        return None
    turned = ImageOps.exif_transpose(picture)
    profile = turned.info.get("icc_profile")
    if turned.mode not in PNG_MODES:
        turned, profile = decode_picture(data), None
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", icc_profile=profile)
    return buffer.getvalue()


class _Refused(ValueError):
    """In our words, not in Pillow's."""


def _load(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture as it lies in the file, its pixels read, and the names of what is to be changed."""
    if not data:
        raise ValueError("it is empty")
    try:
        try:
            picture, deep, orientation = _read(data)
        except ValueError as error:
            if not _is_about_texts(error):
                raise
            picture, deep, orientation = _read(_without_texts(data))
    except _Refused:
        raise
    except UnidentifiedImageError:
        raise ValueError("it is not in a known picture format") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large("far more")) from None
    except Exception as error:
        if _is_about_texts(error):
            raise ValueError("its zipped EXIF or XMP text is too large (a decompression bomb?)") from None
        raise ValueError(f"it cannot be decoded ({str(error) or type(error).__name__})") from None
    clear = picture.mode in CLEAR or "transparency" in picture.info
    if not (deep or picture.mode in PLAIN or picture.mode in MODES):
        raise ValueError(f"its colour mode {picture.mode} is not one that can be read as RGB with 8 bits a channel")
    if deep and "transparency" in picture.info:
        raise ValueError("it has 16 bits per channel and a transparent colour, which cannot be read together")
    named = {
        "alpha": clear,
        "16 bits": deep,
        "rotated": orientation in range(2, 9),
        "one of many": picture.format == "MPO",
        "grey": deep and picture.mode.startswith("I"),
    }
    if not named["grey"] and picture.mode not in PLAIN:
        named[MODES[picture.mode]] = True
    return picture, tuple(sorted(name for name, true in named.items() if true))


def _read(data: bytes) -> tuple[Image.Image, bool, int]:
    """A picture with its pixels read, whether it has 16 bits per channel, and the orientation in its file."""
    picture: Image.Image = Image.open(io.BytesIO(data))
    _refuse_size_and_frames(picture)
    deep = picture.mode.startswith("I;16") or any(DEEP.search(str(tile[3])) for tile in _tiles(picture))
    before = picture.getexif().get(ORIENTATION, 1) if picture.format == "TIFF" else 1
    picture.load()  # which turns a TIFF, and takes the orientation away
    return picture, deep, picture.getexif().get(ORIENTATION, before)


def _is_about_texts(error: Exception) -> bool:
    """Whether Pillow refuses a PNG for its zipped texts, as a whole workflow of ComfyUI can be one."""
    return isinstance(error, ValueError) and "MAX_TEXT" in str(error)


def _without_texts(data: bytes) -> bytes:
    """A PNG without its texts and colour profile, of which the pixels need nothing; those that may turn it stay."""
    parts, place = [data[: len(PNG)]], len(PNG)
    while place < len(data):
        end = place + CHUNK_FRAME + int.from_bytes(data[place : place + 4], "big")
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 40]
        if kind not in TEXTS or body.startswith(TEXTS_THAT_TURN):
            parts.append(data[place:end])
        place = end
    return b"".join(parts)


def bare_png(data: bytes) -> bytes | None:
    """A PNG of colours with 8 bits, without all but its pixels; None for a picture that reading would change."""
    if data[: len(PNG)] != PNG or data[24:26] != b"\x08\x02":  # bits, and no palette or alpha
        return None
    parts, place = [PNG], len(PNG)
    kind = b""
    while place < len(data) and kind != b"IEND":
        end = place + CHUNK_FRAME + int.from_bytes(data[place : place + 4], "big")
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 40]
        if kind in MAY_CHANGE or (kind in TEXTS and body.startswith(TEXTS_THAT_TURN)):
            return None
        if kind in PIXELS:
            parts.append(data[place:end])
        place = end
    return b"".join(parts)


def _refuse_size_and_frames(picture: Image.Image) -> None:
    pixels, limit = picture.width * picture.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise _Refused(_too_large(f"{pixels} pixels, more"))
    if picture.format == "MPO" or getattr(picture, "n_frames", 1) == 1:
        return
    if picture.format == "TIFF":
        raise _Refused(f"it is a TIFF of {getattr(picture, 'n_frames', 1)} pages")
    raise _Refused("it is animated")


def _too_large(how: str) -> str:
    return f"it has {how} than the limit of {Image.MAX_IMAGE_PIXELS} pixels (a decompression bomb?)"


def _tiles(picture: Image.Image) -> list[tuple[object, ...]]:
    tiles: list[tuple[object, ...]] = getattr(picture, "tile", None) or []
    return tiles


def _upper_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits → grey of 8, as Pillow itself does with colours of 16 bits."""
    import numpy as np

    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
