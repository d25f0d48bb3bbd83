"""The prompt of a picture from its own file, without its pixels.

=============  ==================================================================================
a PNG          its texts (tEXt, zTXt, iTXt), read by the heads of its chunks, and its EXIF
other kinds    EXIF: ``UserComment`` (A1111 and its kin), ``Model`` and ``Make`` (ComfyUI); a comment
=============  ==================================================================================

Only where a PNG has an alpha channel and says nothing else are its pixels decoded: NovelAI hides its text in them.
Nothing in a file is trusted: texts are unzipped up to a limit, and whatever stands there, the answer is a prompt, None
or :class:`OddMetadata`.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mapo.captions.programs.a1111 import read_a1111
from mapo.captions.programs.comfyui import read_comfyui
from mapo.captions.programs.others import read_invoke, read_novel, read_parameters
from mapo.captions.programs.told import MOST_TEXT, OddMetadata, ProgramPrompt, json_object
from mapo.errors import MapoError
from mapo.pairs.pictures import PNG
from mapo.pairs.schema import check_text

EXIF_IFD, USER_COMMENT, MAKER_NOTE, SOFTWARE = 0x8769, 0x9286, 0x927C, 0x0131
COMMENT = "UserComment"  # the name of EXIF's and of other comments
COMFY_TAGS = range(0x0100, 0x0111)  # ComfyUI writes downwards from Model and Make
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
MOST_CHUNKS = 100_000
DULL = ("date:", "Creation Time", "Software", "XML:com.adobe.xmp", "Raw profile type", "workflow")  # no prompts there
MAGIC = {b"stealth_pnginfo": False, b"stealth_pngcomp": True}  # in the alpha channel; whether it is zipped


def read_metadata(picture: Path) -> ProgramPrompt | None:
    """What the program that made a picture says of it; None where there are no texts in the file.

    MapoError where there are some and no prompt can be made of them: of a program that is not known, a graph with two
    prompts or none, damaged ones.
    """
    try:
        return told_in(picture)
    except OddMetadata as error:
        raise MapoError(f"{picture}: {error}. Write its caption into {picture.stem}.txt beside it.") from None


def told_in(picture: Path) -> ProgramPrompt | None:
    """As :func:`read_metadata`, with the reason alone as OddMetadata."""
    with picture.open("rb") as file:
        if file.read(len(PNG)) == PNG:
            fields, alpha = png_fields(file)
        else:
            file.seek(0)
            fields, alpha = _exif_fields(file), False
        told = told_by(fields)
        if told is None and alpha and hides_text(file):
            file.seek(0)
            hidden = _hidden_text(file)
            told = told_by(hidden) if hidden else None
    if told is None and (strange := [key for key in fields if not key.startswith(DULL)]):
        program = f" (it names {fields['Software'][:60].strip()!r} as its program)" if fields.get("Software") else ""
        keys = ", ".join(repr(key[:40]) for key in strange[:5])
        raise OddMetadata(f"its metadata are of a kind that is not known: {keys}{program}")
    if told is None and "workflow" in fields:
        raise OddMetadata("it has ComfyUI's workflow and not the graph that was run (“prompt”)")
    return told


def told_by(fields: Mapping[str, str]) -> ProgramPrompt | None:
    """What these texts say, by their names; None where no program is known that writes such."""
    scheme = fields.get("fooocus_scheme")
    told = read_invoke(fields)
    if told is None and "parameters" in fields:
        told = read_parameters(fields["parameters"], scheme)
        if told is None and json_object(fields["parameters"]) is None and fields["parameters"].strip():
            told = ProgramPrompt("A1111", fields["parameters"].strip())  # a prompt alone
    told = told or read_novel(fields)
    if told is None and "prompt" in fields:
        told = read_comfyui(fields["prompt"])
    if told is None and COMMENT in fields:
        comment = fields[COMMENT]
        told = read_parameters(comment, scheme) or read_novel(json_object(comment) or {})
    if told is None:
        return None
    if not told.prompt:
        raise OddMetadata(f"the prompt that {told.program} wrote into it is empty")
    try:
        check_text(told.prompt, "the prompt in its metadata")
    except ValueError as error:
        raise OddMetadata(str(error)) from None
    return told


# ------------------------------------------------------------------ PNG


def png_fields(file: IO[bytes]) -> tuple[dict[str, str], bool]:
    """The texts of a PNG by their names, the last of each, and whether it has an alpha channel.

    ``file`` stands behind the signature. What breaks off ends there: whether a picture is whole is asked elsewhere.
    """
    fields: dict[str, str] = {}
    alpha, total = False, 0
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind not in TEXT_CHUNKS and kind not in (b"IHDR", b"eXIf"):
            file.seek(length + 4, io.SEEK_CUR)
            continue
        if length > MOST_TEXT or total > 2 * MOST_TEXT:
            raise OddMetadata(f"its texts are larger than {MOST_TEXT:,} bytes")
        body = file.read(length)
        file.seek(4, io.SEEK_CUR)
        total += length
        if kind == b"IHDR":
            alpha = body[9:10] in (b"\x04", b"\x06")
        elif kind == b"eXIf":
            fields.update(_fields_of_exif(body))
        else:
            key, text = _text_of(kind, body)
            fields[key] = text
            total += len(text)
    return fields, alpha


def _text_of(kind: bytes, body: bytes) -> tuple[str, str]:
    """A text chunk as its name and text."""
    name, _, rest = body.partition(b"\0")
    key = name.decode("latin-1")
    if kind == b"zTXt":
        rest = _unzip(rest[1:], key)
    elif kind == b"iTXt":
        zipped = rest[:1] == b"\x01"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind the language and the translated name
        rest = _unzip(rest, key) if zipped else rest
    return key, _decoded(rest)


def _unzip(data: bytes, key: str, wbits: int = zlib.MAX_WBITS) -> bytes:
    """No more than MOST_TEXT bytes, however small the zipped text is."""
    try:
        text = zlib.decompressobj(wbits).decompress(data, MOST_TEXT + 1)
    except zlib.error:
        raise OddMetadata(f"its zipped text {key[:40]!r} is damaged") from None
    if len(text) > MOST_TEXT:
        raise OddMetadata(f"its zipped text {key[:40]!r} is larger than {MOST_TEXT:,} bytes (a decompression bomb?)")
    return text


def _decoded(data: bytes) -> str:
    """UTF-8, which many write where Latin-1 should stand."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


# ------------------------------------------------------------------ EXIF


def _exif_fields(file: IO[bytes]) -> dict[str, str]:
    """The texts of a picture of another kind; none for a file that Pillow does not know."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            exif = picture.info.get("exif")
            comment = picture.info.get("comment")
            data = exif if isinstance(exif, bytes) else picture.getexif().tobytes() if picture.format == "TIFF" else b""
    except Exception:  # of any kind: what is damaged is said where pictures are decoded
        return {}
    fields = _fields_of_exif(data)
    if isinstance(comment, bytes) and COMMENT not in fields and comment.strip(b"\0 "):
        fields[COMMENT] = _decoded(comment)
    return fields


def _fields_of_exif(data: bytes) -> dict[str, str]:
    """What programs write into EXIF, by the names that it has in a PNG."""
    from PIL import Image

    if not data:
        return {}
    exif, fields = Image.Exif(), dict[str, str]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif.load(data)
            tags: dict[int, Any] = {**exif, **exif.get_ifd(EXIF_IFD)}
    except Exception:  # of any kind: Pillow raises what it meets there
        return {}
    if comment := _comment(tags.get(USER_COMMENT)):
        fields[COMMENT] = comment
    if software := _plain(tags.get(SOFTWARE)):
        fields["Software"] = software
    if software.startswith("Fooocus") and (scheme := _plain(tags.get(MAKER_NOTE))):
        fields["fooocus_scheme"] = scheme
    for tag in COMFY_TAGS:
        key, colon, text = _plain(tags.get(tag)).partition(":")
        if colon and key.lower() in ("prompt", "workflow"):  # some nodes write them large
            fields[key.lower()] = text
    return fields


def _plain(value: object) -> str:
    """A text tag, which Pillow gives as text or as bytes."""
    if isinstance(value, str):  # by Latin-1, whatever it was
        try:
            value = value.encode("latin-1")
        except UnicodeEncodeError:
            return str(value).strip("\0 ")
    return _decoded(value).strip("\0 ") if isinstance(value, bytes) else ""


def _comment(value: object) -> str:
    """A comment behind the eight bytes that name its code; UTF-16 comes in both orders, with or without a mark."""
    if not isinstance(value, bytes):
        return _plain(value)
    head, rest = value[:8], value[8:]
    if head == b"UNICODE\0":
        return _utf16(rest).strip("\0 ")
    if head in (b"ASCII\0\0\0", b"\0" * 8):
        return _plain(rest)
    return _plain(value)


def _utf16(data: bytes) -> str:
    """A text of prompts has far more letters of ASCII than signs whose lower byte is zero: that tells the order."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    high, low = data[0::2].count(0), data[1::2].count(0)
    if not high and not low and data.isascii():
        return data.decode("ascii")
    return data.decode("utf-16-le" if low > high else "utf-16-be", errors="replace")


# ------------------------------------------------------------------ in the alpha channel


def hides_text(file: IO[bytes]) -> bool:
    """Whether the first column begins with the magic word: only so many rows are unzipped. True where nobody knows.

    In the first column nothing lies to the left, so that a row's filter leaves its value, adds the one above or half
    of it.
    """
    file.seek(len(PNG) + 8)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13).ljust(13, b"\0"))
    bits = 8 * len(next(iter(MAGIC)))
    row = 1 + 4 * width
    if (depth, colour, interlaced) != (8, 6, 0) or height < bits or not 5 <= row <= MOST_TEXT // bits:
        return True
    rows, zipped = bytearray(), zlib.decompressobj()
    file.seek(4, io.SEEK_CUR)
    while len(rows) < bits * row:
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        if len(head) < 8 or head[4:] == b"IEND":
            return False  # it breaks off
        if head[4:] == b"IDAT":
            try:
                rows += zipped.decompress(file.read(min(length, MOST_TEXT)), bits * row - len(rows))
            except zlib.error:
                return False
            file.seek(max(0, length - MOST_TEXT) + 4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)
    above, found = 0, []
    for start in range(0, bits * row, row):
        added = {0: 0, 1: 0, 2: above, 3: above // 2, 4: above}.get(rows[start], 0)
        above = (rows[start + 4] + added) % 256
        found.append(above & 1)
    word = int("".join(map(str, found)), 2).to_bytes(bits // 8, "big")
    return word in MAGIC


def _hidden_text(file: IO[bytes]) -> dict[str, str] | None:
    """What the lowest bits of the alpha channel say, column by column: a magic word, a length in bits, a text."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as picture:
            if picture.width * picture.height > (Image.MAX_IMAGE_PIXELS or 2**31):
                return None
            alpha = np.asarray(picture.getchannel("A"))
    except Exception:
        return None
    size = len(next(iter(MAGIC)))
    start = alpha[:, : -(-8 * size // len(alpha))].T.reshape(-1)[: 8 * size] & 1
    zipped = MAGIC.get(np.packbits(start).tobytes())
    if zipped is None:
        return None
    data = np.packbits(alpha.T.reshape(-1) & 1).tobytes()
    if len(data) < size + 4:
        return None
    length = struct.unpack_from(">I", data, size)[0] // 8
    body = data[size + 4 : size + 4 + length]
    text = _decoded(_unzip(body, "in the alpha channel", zlib.MAX_WBITS | 16) if zipped else body)
    row = json_object(text)
    if row is None:
        return {"parameters": text} if read_a1111(text) else None
    return dict(_texts_of(row))


def _texts_of(row: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The entries of an object that are texts; objects inside it as JSON again."""
    import json

    for key, value in row.items():
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            yield key, json.dumps(value)
