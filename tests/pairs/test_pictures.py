"""What is a picture, what is refused, and what reading one changes."""

from __future__ import annotations

import io
import struct
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from data_fixtures import RED, encoded, make_picture, noise
from mapo.files import sha256
from mapo.pairs import PairWriter
from mapo.pairs.pictures import Picture, bare_png, check_picture, decode_picture, upright


def png(width: int, height: int, depth: int, colours: int, pixels: bytes, *more: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def rotated(orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("RGB", (8, 4), "white")
    picture.paste("red", (0, 0, 4, 4))
    return encoded(picture, format, exif=exif, **({"quality": 100, "subsampling": 0} if format == "JPEG" else {}))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_the_common_formats_are_read(format: str) -> None:
    picture = decode_picture(make_picture("red", (8, 6), format))
    assert (picture.mode, picture.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(picture, int) - (255, 0, 0)).max() <= 5


OPAQUE: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "alpha is laid on white": (encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0))), (255, 255, 255)),
    "half alpha is blended": (encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128))), (255, 127, 127)),
    "grey alpha": (encoded(Image.new("LA", (2, 2), (0, 0))), (255, 255, 255)),
    "palette": (encoded(Image.new("RGB", (2, 2), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE)), (9, 8, 7)),
    "transparent place of a palette": (encoded(Image.new("P", (2, 2), 0), transparency=0), (255, 255, 255)),
    "transparent colour": (encoded(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
    "transparent GIF": (encoded(Image.new("P", (2, 2), 0), "GIF", transparency=0), (255, 255, 255)),
    "grey": (encoded(Image.new("L", (2, 2), 77)), (77, 77, 77)),
    "one bit": (encoded(Image.new("1", (2, 2), 1)), (255, 255, 255)),
    "CMYK": (encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "CMYK JPEG": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    "16 bits of each colour": (
        png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x1234, 0x8000, 0xFFFF)),
        (0x12, 0x80, 0xFF),
    ),
    "16 bits of grey": (png(1, 1, 16, 0, b"\0" + struct.pack(">H", 0x80FF)), (0x80, 0x80, 0x80)),
    "16 bits of grey in a TIFF": (encoded(Image.fromarray(np.full((2, 2), 0x9C40, np.uint16)), "TIFF"), (0x9C,) * 3),
    "16 bits of grey and alpha": (png(1, 1, 16, 4, b"\0" + struct.pack(">2H", 0x1200, 0)), (255, 255, 255)),
    "MPO, two views": (
        encoded(
            Image.new("RGB", (8, 8), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]
        ),
        (254, 0, 0),
    ),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_every_still_picture_becomes_opaque_rgb(name: str) -> None:
    data, colour = OPAQUE[name]
    picture = decode_picture(data)
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture, int) - colour).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_upright_and_stored_with_its_upright_size(tmp_path: Path, format: str) -> None:
    upright = decode_picture(rotated(6, format))  # 6: turn clockwise, the left half comes up
    assert upright.size == (4, 8)
    pixels = np.asarray(upright, int)
    assert np.abs(pixels[:3] - (255, 0, 0)).max() <= 90
    assert np.abs(pixels[5:] - (255, 255, 255)).max() <= 90
    with PairWriter(tmp_path / "set", {}) as writer:
        writer.add_pair("a", rotated(6, format), rotated(1, format))
    stored = pq.read_table(tmp_path / "set" / "images-00000.parquet").to_pylist()
    assert [(row["width"], row["height"]) for row in stored] == [(4, 8), (8, 4)]


FRAMES = {"save_all": True, "append_images": [noise(1)]}
NO_PICTURE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is empty"),
    "text": (b"hello", "not in a known picture format"),
    "web page": (b"<html>404 Not Found</html>", "not in a known picture format"),
    "animated GIF": (encoded(noise(), "GIF", **FRAMES), "it is animated"),
    "animated WebP": (encoded(noise(), "WEBP", **FRAMES), "it is animated"),
    "animated PNG": (encoded(noise(), "PNG", **FRAMES), "it is animated"),
    "32 bits grey": (encoded(Image.new("I", (2, 2), 70_000), "TIFF"), "colour mode I is not one that can be read"),
    "floats": (encoded(Image.new("F", (2, 2), 0.5), "TIFF"), "colour mode F is not one"),
    "LAB": (encoded(Image.new("LAB", (8, 8)), "TIFF"), "colour mode LAB is not one"),
    "16 bits and a clear colour": (
        png(1, 1, 16, 0, b"\0\x80\0", (b"tRNS", b"\x80\0")),
        "16 bits per channel and a transparent colour",
    ),
    "pages": (encoded(noise(), "TIFF", **FRAMES), "it is a TIFF of 2 pages"),
    "too large to be meant": (png(12_000, 12_000, 8, 2, b"\0"), r"144000000 pixels, more than the limit of \d+ pixels"),
    "a bomb": (png(60_000, 60_000, 8, 2, b"\0"), "far more than the limit"),
    "fewer pixels than said": (png(40, 40, 8, 2, b"\0" * 10), "it cannot be decoded"),
    "damaged EXIF": (encoded(noise(), "PNG", exif=b"garbage"), "it cannot be decoded"),
}


@pytest.mark.parametrize("name", NO_PICTURE)
def test_what_is_no_whole_still_picture_is_a_value_error(name: str) -> None:
    data, message = NO_PICTURE[name]
    with pytest.raises(ValueError, match=message) as failure:
        decode_picture(data)
    assert "0x" not in str(failure.value)


WHOLE = {format: encoded(noise(), format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP")}


@settings(max_examples=100, deadline=None)
@given(format=st.sampled_from(sorted(WHOLE)), share=st.floats(0, 1, exclude_max=True))
def test_a_cut_picture_is_refused_or_has_lost_no_pixel(format: str, share: float) -> None:
    data = WHOLE[format]
    try:
        picture = decode_picture(data[: int(share * len(data))])
    except ValueError:
        return
    assert picture.tobytes() == decode_picture(data).tobytes()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), format=st.sampled_from(sorted(WHOLE)))
def test_damaged_bytes_never_raise_anything_but_a_value_error(data: st.DataObject, format: str) -> None:
    damaged = bytearray(WHOLE[format])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        picture = decode_picture(bytes(damaged))
    except ValueError:
        return
    assert picture.mode == "RGB"


CONVERTED: dict[str, tuple[bytes, set[str]]] = {
    "plain": (make_picture("red", (4, 4)), set()),
    "plain JPEG": (make_picture("red", (4, 4), "JPEG"), set()),
    "alpha": (encoded(Image.new("RGBA", (4, 4))), {"alpha"}),
    "palette": (encoded(Image.new("P", (4, 4))), {"palette"}),
    "palette with a clear place": (encoded(Image.new("P", (4, 4)), transparency=0), {"palette", "alpha"}),
    "transparent colour": (encoded(Image.new("RGB", (4, 4)), transparency=(1, 2, 3)), {"alpha"}),
    "grey": (encoded(Image.new("L", (4, 4))), {"grey"}),
    "grey and alpha": (encoded(Image.new("LA", (4, 4))), {"grey", "alpha"}),
    "one bit": (encoded(Image.new("1", (4, 4))), {"grey"}),
    "CMYK": (encoded(Image.new("CMYK", (8, 8)), "JPEG"), {"CMYK"}),
    "YCbCr": (encoded(Image.new("YCbCr", (8, 8)), "TIFF"), {"YCbCr"}),
    "turned": (rotated(6, "JPEG"), {"rotated"}),
    "mirrored": (rotated(2, "PNG"), {"rotated"}),
    "a TIFF that is turned": (rotated(6, "TIFF"), {"rotated"}),
    "upright and saying so": (rotated(1, "JPEG"), set()),
    "16 bits of each colour": (png(2, 2, 16, 2, bytes(2 * 13)), {"16 bits"}),
    "16 bits of each colour and alpha": (png(2, 2, 16, 6, bytes(2 * 17)), {"16 bits", "alpha"}),
    "16 bits of grey": (png(2, 2, 16, 0, bytes(2 * 5)), {"16 bits", "grey"}),
    "16 bits of grey and alpha": (png(2, 2, 16, 4, bytes(2 * 9)), {"16 bits", "alpha"}),
    "MPO": (encoded(noise(), "MPO", save_all=True, append_images=[noise(1)]), {"one of many"}),
    "5, 6 and 5 bits, which are 16 for all": (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 66 + 8, 0, 66, 40, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0)
        + struct.pack("<III", 0xF800, 0x7E0, 0x1F) + bytes(8),
        set(),
    ),
}  # fmt: skip


UNREAD = [] if int(version("pillow").split(".")[0]) >= 13 else ["YCbCr"]  # older ones say that it is cut off


@pytest.mark.parametrize("name", [name for name in CONVERTED if name not in UNREAD])
def test_what_reading_a_picture_changes_has_a_name(name: str) -> None:
    data, names = CONVERTED[name]
    found = check_picture(data)
    assert set(found.conversions) == names
    assert decode_picture(data).size == (found.width, found.height)
    assert (found.sha256, found.data) == (sha256(data), data)


def test_grey_and_colours_of_16_bits_keep_the_same_8(tmp_path: Path) -> None:
    value = struct.pack(">H", 0x7FFF)
    grey, colour = png(1, 1, 16, 0, b"\0" + value), png(1, 1, 16, 2, b"\0" + value * 3)
    assert decode_picture(grey).tobytes() == decode_picture(colour).tobytes() == b"\x7f\x7f\x7f"


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (9, 1)])
def test_a_picture_with_a_side_of_one_pixel_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"it has {size[0]} × {size[1]} pixels; both sides must have 2 or more"):
        check_picture(make_picture("red", size))


@pytest.mark.parametrize("name", NO_PICTURE)
def test_checking_and_decoding_refuse_the_same_pictures(name: str) -> None:
    data, message = NO_PICTURE[name]
    with pytest.raises(ValueError, match=message):
        check_picture(data)


def test_a_picture_of_which_the_hash_is_known_is_not_hashed_again() -> None:
    assert check_picture(RED, "known") == Picture("known", RED, 6, 4)


def with_text(picture: Image.Image, *texts: tuple[str, str, bool], behind: bool = False, **how: object) -> bytes:
    """A PNG with texts (keyword, text, whether it is zipped), as ComfyUI writes its workflow."""
    info = PngInfo()
    for keyword, text, zipped in texts:
        info.add_text(keyword, text, zip=zipped)
    data = encoded(picture, "PNG", pnginfo=info, **how)
    if not behind:
        return data
    chunks, place = [], 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        chunks.append(data[place:end])
        place = end
    texts_of = [c for c in chunks if c[4:8] in (b"tEXt", b"zTXt")]
    return data[:8] + b"".join([*(c for c in chunks[:-1] if c not in texts_of), *texts_of, chunks[-1]])


def xmp(orientation: int) -> PngInfo:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    info.add_text("workflow", "x" * 2**21, zip=True)
    return info


LONG = {
    "a zipped workflow": lambda: with_text(noise(), ("workflow", "x" * 2**21, True)),
    "behind the pixels": lambda: with_text(noise(), ("workflow", "x" * 2**21, True), behind=True),
    "many texts": lambda: with_text(noise(), *[(f"t{k}", "x" * 2**20, True) for k in range(70)]),
    "a zipped text bomb": lambda: with_text(noise(), ("workflow", "x" * 2**28, True)),
    "a large colour profile": lambda: encoded(noise(), "PNG", icc_profile=bytes(2**21)),
}


@pytest.mark.parametrize("name", LONG)
def test_a_picture_with_much_zipped_text_is_read_and_its_bytes_are_kept(name: str) -> None:
    data = LONG[name]()
    assert decode_picture(data).tobytes() == noise().tobytes()
    found = check_picture(data)
    assert (found.sha256, found.data, found.conversions) == (sha256(data), data, ())


def test_a_png_is_bared_of_all_but_its_pixels_and_what_reading_would_change_is_not() -> None:
    texts, turned = PngInfo(), Image.Exif()
    texts.add_text("parameters", "a red fox")
    turned[0x0112] = 6
    plain = encoded(noise(1, (40, 30)), "PNG", pnginfo=texts, icc_profile=b"profile") + b"behind the end"
    bare = bare_png(plain)
    assert bare is not None and np.array_equal(decode_picture(bare), decode_picture(plain))
    assert Image.open(io.BytesIO(bare)).info == {} and bare.endswith(b"IEND\xaeB`\x82")
    for other in (
        encoded(noise(1, (40, 30)), "PNG", exif=turned),
        encoded(noise(1, (40, 30)), "JPEG"),
        *(encoded(noise(1, (40, 30)).convert(mode), "PNG") for mode in ("RGBA", "P", "L", "1")),
        encoded(noise(1, (40, 30)), "PNG", transparency=(1, 2, 3)),
    ):
        assert bare_png(other) is None


def test_the_limits_of_pillow_stay_as_they_are() -> None:
    before = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    decode_picture(LONG["a zipped workflow"]())
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_what_turns_a_picture_is_kept_beside_much_zipped_text() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (
        with_text(noise(), ("workflow", "x" * 2**21, True), exif=exif),
        encoded(noise(), "PNG", pnginfo=xmp(6)),
    ):
        assert check_picture(data).conversions == ("rotated",)
        assert decode_picture(data).size == noise().size[::-1]


def test_a_text_that_could_turn_a_picture_and_is_a_bomb_is_refused_in_plain_words() -> None:
    data = with_text(noise(), ("Raw profile type exif", "0" * 2**22, True))
    with pytest.raises(ValueError, match=r"^its zipped EXIF or XMP text is too large \(a decompression bomb\?\)$"):
        decode_picture(data)


def test_a_cut_picture_with_much_zipped_text_is_refused() -> None:
    data = LONG["a zipped workflow"]()
    with pytest.raises(ValueError, match="it cannot be decoded"):
        decode_picture(data[:-200])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_made_upright_has_the_same_pixels_and_needs_no_turning(format: str) -> None:
    for orientation in range(2, 9):
        data = rotated(orientation, format)
        new = upright(data)
        assert new is not None
        assert check_picture(new).conversions == ()
        assert decode_picture(new).tobytes() == decode_picture(data).tobytes()
    assert upright(rotated(1, format)) is None


def test_a_picture_made_upright_keeps_its_depth_and_its_colour_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 1000)
    new = upright(encoded(deep, "PNG", exif=exif, icc_profile=b"profile"))
    assert new is not None
    with Image.open(io.BytesIO(new)) as picture:
        assert np.array_equal(np.asarray(picture), np.rot90(np.asarray(deep), -1))
        assert picture.info["icc_profile"] == b"profile"
