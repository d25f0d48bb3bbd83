"""The prompt of a picture is read from what its program wrote into it, and anything else is said in a sentence."""

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from written import chunk, hidden, png, with_exif

from mapo.captions import metadata
from mapo.captions.metadata import read_metadata, told_by, told_in
from mapo.captions.programs.a1111 import read_a1111
from mapo.captions.programs.told import MOST_TEXT, OddMetadata, ProgramPrompt
from mapo.errors import MapoError
from real import REAL, needs_real

A1111 = (
    "a harbour, (dusk:1.2)\nwith boats\nNegative prompt: blurry,\nugly\nSteps: 20, Sampler: Euler a, CFG scale: 7, "
    'Seed: 123, Size: 64x64, Model: dream, Lora hashes: "a: 1, b: 2"'
)
SAID = ProgramPrompt("A1111", "a harbour, (dusk:1.2)\nwith boats", "blurry,\nugly", 123, "dream")
REAL_ONES = {
    "a1111_1x1.jpg": ("A1111", "photo of a duck", 235284042),
    "a1111_1x1.png": ("A1111", "photo of a duck", 235284042),
    "comfyui_flux.png": ("ComfyUI", "cute anime girl with massive fluffy fennec ears and a big fluffy tail blonde messy "
        "long hair blue eyes wearing a maid outfit with a long black gold leaf pattern dress and a white apron mouth "
        "open holding a fancy black forest cake with candles on top in the kitchen of an old dark Victorian mansion lit "
        "by candlelight with a bright window to the foggy forest and very expensive stuff everywhere", 219670278747233),
    "comfyui_lora.png": ("ComfyUI", "masterpiece best quality girl", 513173432917412),
    "comfyui_sdxl.png": ("ComfyUI", "evening sunset scenery blue sky nature, glass bottle with a galaxy in it",
        721897303308196),
}  # fmt: skip
MODELS = {
    "a1111_1x1.png": "realistic_realisticVisionV20_v20", "comfyui_flux.png": "flux1-dev.safetensors",
    "comfyui_lora.png": "v1-5-pruned-emaonly.ckpt", "comfyui_sdxl.png": "sd_xl_base_1.0.safetensors",
}  # fmt: skip


@needs_real("metadata")
@pytest.mark.parametrize("name", REAL_ONES)
def test_published_pictures_give_the_prompt_that_a_person_reads_in_them(name):
    told = read_metadata(REAL / "metadata" / name)
    assert (told.program, told.prompt, told.seed) == REAL_ONES[name]
    assert told.model == MODELS.get(name, told.model)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", "zipped iTXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_every_kind_of_text_of_a_png_is_read(tmp_path, kind, behind):
    text = A1111.encode()
    body = {
        b"tEXt": b"parameters\0" + text,
        b"zTXt": b"parameters\0\0" + zlib.compress(text),
        b"iTXt": b"parameters\0\0\0en\0\0" + text,
        "zipped iTXt": b"parameters\0\1\0\0x\0" + zlib.compress(text),
    }[kind]
    picture = png(tmp_path / "a.png", chunks=[(kind if isinstance(kind, bytes) else b"iTXt", body)], behind=behind)
    assert read_metadata(picture) == SAID


def test_texts_that_are_not_ascii_are_read_in_both_codes(tmp_path):
    for code in ("utf-8", "latin-1"):
        body = b"parameters\0" + "un café à Orléans".encode(code)
        assert read_metadata(png(tmp_path / "a.png", chunks=[(b"tEXt", body)])).prompt == "un café à Orléans"


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + A1111.encode("utf-16-be"),
        b"UNICODE\0" + A1111.encode("utf-16-le"),
        b"UNICODE\0" + A1111.encode("utf-16"),
        b"UNICODE\0" + A1111.encode(),
        b"ASCII\0\0\0" + A1111.encode(),
        b"\0" * 8 + A1111.encode(),
        A1111.encode(),
    ],
)
@pytest.mark.parametrize("end", ["jpg", "webp", "avif", "png"])
def test_a_comment_in_exif_is_read_in_every_code(tmp_path, comment, end):
    assert read_metadata(with_exif(tmp_path / f"a.{end}", {0x9286: comment})) == SAID


def test_the_order_of_utf_16_is_known_where_few_letters_are_latin(tmp_path):
    text = "雪の中の狐、夕焼け\nSteps: 20, Seed: 3, CFG scale: 7"
    for code in ("utf-16-be", "utf-16-le"):
        told = read_metadata(with_exif(tmp_path / "a.jpg", {0x9286: b"UNICODE\0" + text.encode(code)}))
        assert (told.prompt, told.seed) == ("雪の中の狐、夕焼け", 3)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("a fox\nSteps: 20, Seed: 1, Size: 64x64", "a fox"),
        ("a fox\nin snow: deep, cold", None),  # two settings are none, so this is no text of A1111
        ("a fox\nNegative prompt: dogs", "a fox"),
        ("Steps: 20, Seed: 1, Size: 64x64", ""),
        ("a poster: red, title: blue, sign: green", None),
        ("a fox\nSteps: 20, Civitai resources: [{\"type\":\"lora\"}], Seed: 1, Size: 4x4", "a fox"),
    ],
)  # fmt: skip
def test_the_last_line_is_of_settings_only_where_it_has_three(text, prompt):
    told = read_a1111(text)
    assert (told.prompt if told else None) == prompt


def test_a_setting_in_quotes_may_hold_commas():
    told = read_a1111('a fox\nSteps: 20, ADetailer prompt: "Seed: 5, Model: no, \\"x\\"", Seed: 1, Model: yes')
    assert (told.seed, told.model) == (1, "yes")


SWARM = {"sui_image_params": {"prompt": "a fox", "negativeprompt": "dogs", "seed": 5, "model": "m"}}
FOOOCUS = {"prompt": "a fox", "full_prompt": ["a fox, epic", "x"], "negative_prompt": "dogs", "seed": "5", "base_model": "m"}  # fmt: skip
INVOKE = {"positive_prompt": "a fox", "negative_prompt": "dogs", "seed": 5, "model": {"name": "m"}}
OLD_INVOKE = {"model_weights": "m", "image": {"prompt": [{"prompt": "a fox [dogs]", "weight": 1.0}], "seed": 5}}
NOVEL = {"prompt": "a fox", "uc": "dogs", "seed": 5}
NOVEL_4 = {
    "prompt": "ignored", "uc": "ignored", "seed": 5,
    "v4_prompt": {"caption": {"base_caption": "a fox", "char_captions": [{"char_caption": "girl"}]}},
    "v4_negative_prompt": {"caption": {"base_caption": "dogs"}},
}  # fmt: skip
FORMS = {
    "SwarmUI": ({"parameters": json.dumps(SWARM)}, "SwarmUI", "a fox", "m"),
    "Fooocus": ({"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}, "Fooocus", "a fox", "m"),
    "Fooocus without a scheme": ({"parameters": json.dumps(FOOOCUS)}, "Fooocus", "a fox", "m"),
    "Fooocus as A1111": (
        {"parameters": "a fox\nNegative prompt: dogs\nSteps: 3, Seed: 5, Model: m", "fooocus_scheme": "a1111"},
        "Fooocus", "a fox", "m"),
    "InvokeAI": ({"invokeai_metadata": json.dumps(INVOKE), "invokeai_graph": "{}"}, "InvokeAI", "a fox", "m"),
    "InvokeAI 2": ({"sd-metadata": json.dumps(OLD_INVOKE), "Dream": "x"}, "InvokeAI", "a fox", "m"),
    "Dream": ({"Dream": '"a fox [dogs]" -s 50 -S 5 -W 64 -C 7.5'}, "InvokeAI", "a fox", None),
    "NovelAI": (
        {"Software": "NovelAI", "Source": "m", "Description": "a fox", "Comment": json.dumps(NOVEL)},
        "NovelAI", "a fox", "m"),
    "NovelAI 4": (
        {"Software": "NovelAI", "Source": "m", "Description": "ignored", "Comment": json.dumps(NOVEL_4)},
        "NovelAI", "a fox, girl", "m"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_programs_that_write_json_are_read(tmp_path, form):
    texts, program, prompt, model = FORMS[form]
    assert read_metadata(png(tmp_path / "a.png", texts)) == ProgramPrompt(program, prompt, "dogs", 5, model)


def test_swarm_and_fooocus_are_read_in_exif_too(tmp_path):
    for text, program in ((SWARM, "SwarmUI"), (FOOOCUS, "Fooocus")):
        comment = b"UNICODE\0" + json.dumps(text).encode("utf-16-be")
        assert read_metadata(with_exif(tmp_path / "a.webp", {0x9286: comment})).program == program


@pytest.mark.parametrize("zipped", [False, True])
def test_what_novelai_hides_in_the_alpha_channel_is_read(tmp_path, zipped):
    text = json.dumps({"Description": "a fox", "Software": "NovelAI", "Source": "m", "Comment": json.dumps(NOVEL)})
    assert read_metadata(hidden(tmp_path / "a.png", text, zipped)) == ProgramPrompt("NovelAI", "a fox", "dogs", 5, "m")
    assert read_metadata(hidden(tmp_path / "b.png", A1111, zipped)) == SAID


@pytest.mark.parametrize("filtered", range(5))
def test_a_magic_word_is_found_in_the_first_rows_whatever_their_filter(tmp_path, filtered):
    """Rows are filtered here by the definition of each filter, at the hand of all columns."""

    def rows(picture):
        lines = [b"\0" * picture.width * 4]
        for y in range(picture.height):
            line, above = picture.crop((0, y, picture.width, y + 1)).tobytes(), lines[-1]
            left = b"\0\0\0\0" + line[:-4]
            beyond = b"\0\0\0\0" + above[:-4]
            near = [
                min((a, b, c), key=lambda v, p=a + b - c: abs(p - v))
                for a, b, c in zip(left, above, beyond, strict=True)
            ]
            taken = [[0] * len(line), left, above, [(a + b) // 2 for a, b in zip(left, above, strict=True)], near]
            yield bytes([filtered, *((v - t) % 256 for v, t in zip(line, taken[filtered], strict=True))])
            lines.append(line)

    text = json.dumps({"Description": "a fox", "Software": "NovelAI", "Comment": json.dumps(NOVEL)})
    for path, hides in ((hidden(tmp_path / "a.png", text), True), (tmp_path / "b.png", False)):
        picture = Image.open(tmp_path / "a.png").convert("RGBA")
        picture = picture if hides else picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        data = zlib.compress(b"".join(rows(picture)))
        head = struct.pack(">IIBBBBB", 64, 150, 8, 6, 0, 0, 0)
        parts = [chunk(b"IDAT", data[place : place + 500]) for place in range(0, len(data), 500)]
        path.write_bytes(metadata.PNG + chunk(b"IHDR", head) + b"".join(parts) + chunk(b"IEND", b""))
        with path.open("rb") as file:
            assert metadata.hides_text(file) == hides
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(picture))


def test_pixels_are_decoded_only_where_a_png_with_alpha_says_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("pixels were decoded")

    texts = [png(tmp_path / "a.png", {"parameters": A1111}, mode="RGBA")]
    texts += [
        with_exif(tmp_path / f"a.{end}", {0x9286: b"ASCII\0\0\0" + A1111.encode()}) for end in ("jpg", "webp", "avif")
    ]
    opaque, clear = png(tmp_path / "b.png"), tmp_path / "c.png"
    Image.new("RGBA", (4, 150), (1, 2, 3, 254)).save(clear)
    hiding = hidden(tmp_path / "d.png", "x")
    for kind in (Image.Image, ImageFile.ImageFile):
        monkeypatch.setattr(kind, "load", fail)
    monkeypatch.setattr(metadata, "_hidden_text", fail)
    assert [read_metadata(picture) for picture in texts] == [SAID] * 4
    assert read_metadata(opaque) is None
    assert read_metadata(clear) is None
    with pytest.raises(AssertionError, match="pixels were decoded"):
        read_metadata(hiding)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"Software": "Midjourney", "Description": "a fox --v 6"},
         "its metadata are of a kind that is not known: 'Description' (it names 'Midjourney' as its program)"),
        ({"parameters": '{"some": "thing"}'}, "its metadata are of a kind that is not known: 'parameters'"),
        ({"prompt": "a fox"}, "its metadata are of a kind that is not known: 'prompt'"),
        ({"workflow": "{}"}, "it has ComfyUI's workflow and not the graph that was run (“prompt”)"),
        ({"parameters": "Steps: 20, Seed: 1, Size: 64x64"}, "the prompt that A1111 wrote into it is empty"),
        ({"invokeai_metadata": "{"}, "its invokeai_metadata are not JSON"),
        ({"parameters": json.dumps({"sui_image_params": {"prompt": "\ud83d"}})}, "has half a character at place 0"),
    ],
)  # fmt: skip
def test_metadata_without_a_prompt_are_told_by_file_and_program(tmp_path, texts, said):
    picture = png(tmp_path / "a.png", texts)
    with pytest.raises(MapoError) as caught:
        read_metadata(picture)
    assert str(caught.value).startswith(f"{picture}: ") and said in str(caught.value)


def test_pictures_without_texts_say_nothing(tmp_path):
    assert read_metadata(png(tmp_path / "a.png", {"Software": "GIMP", "date:create": "now"})) is None
    assert read_metadata(with_exif(tmp_path / "b.jpg", {0x010F: "Canon", 0x0110: "EOS"})) is None
    (tmp_path / "c.jpg").write_bytes(b"not a picture")
    assert read_metadata(tmp_path / "c.jpg") is None


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_text_that_unzips_to_far_more_is_refused(tmp_path, kind):
    zipped = zlib.compress(b"x" * (MOST_TEXT + 1), 9)
    body = b"parameters\0\0" + zipped if kind == b"zTXt" else b"parameters\0\1\0\0\0" + zipped
    with pytest.raises(MapoError, match="'parameters' is larger than 16,777,216 bytes"):
        read_metadata(png(tmp_path / "a.png", chunks=[(kind, body)]))
    with pytest.raises(MapoError, match="'x' is damaged"):
        read_metadata(png(tmp_path / "b.png", chunks=[(b"zTXt", b"x\0\0not zipped")]))


def test_a_chunk_that_says_it_is_huge_is_not_read(tmp_path):
    (tmp_path / "a.png").write_bytes(metadata.PNG + b"\x7f\xff\xff\xfftEXtparameters\0a")
    with pytest.raises(MapoError, match="its texts are larger"):
        read_metadata(tmp_path / "a.png")


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=300), st.booleans())
def test_whatever_a_png_with_alpha_holds_nothing_else_is_raised(tmp_path_factory, width, height, data, small):
    width, height = (width % 5, 120 + height % 3) if small else (width, height)
    path = tmp_path_factory.mktemp("odd") / "a.png"
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    for body in (data, zlib.compress(data * 50), zlib.compress(data * 50)[:-9]):
        path.write_bytes(metadata.PNG + head + chunk(b"IDAT", body) + chunk(b"IEND", b""))
        assert told_in(path) is None


KEYS = ["parameters", "prompt", "workflow", "Comment", "Description", "Software", "invokeai_metadata", "sd-metadata", "Dream",
        "fooocus_scheme", "UserComment", "x"]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    LEAVES | st.lists(st.sampled_from(["1", "2", 0, 1]), min_size=2, max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["1", "2", "inputs", "class_type", "text", "positive", "images", "latent_image", "prompt", "uc",
                         "sui_image_params", "v4_prompt", "caption", "image", "guider", "full_prompt"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"IHDR", b"IDAT"]), st.binary(max_size=80)), max_size=4),
    st.binary(max_size=20),
)  # fmt: skip
def test_whatever_bytes_a_png_holds_nothing_else_is_raised(tmp_path_factory, chunks, rest):
    path = tmp_path_factory.mktemp("odd") / "a.png"
    path.write_bytes(metadata.PNG + b"".join(chunk(kind, body) for kind, body in chunks) + rest)
    try:
        told_in(path)
    except OddMetadata as error:
        assert str(error)


@given(st.dictionaries(st.sampled_from(KEYS), JSON.map(json.dumps) | st.text(max_size=60), max_size=4))
def test_whatever_texts_a_picture_holds_nothing_else_is_raised(fields):
    try:
        told = told_by(fields)
        assert told is None or told.prompt
    except OddMetadata as error:
        assert str(error)


@given(st.binary(max_size=120))
def test_whatever_bytes_exif_holds_nothing_else_is_raised(data):
    for start in (b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x02", b"II*\0\x08\0\0\0\x03\0"):
        metadata._fields_of_exif(start + data)
    metadata._comment(data), metadata._comment(b"UNICODE\0" + data)
