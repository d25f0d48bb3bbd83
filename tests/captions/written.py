"""Small pictures with the texts of other programs in them."""

import gzip
import io
import json
import struct
import zlib

import numpy as np
from PIL import Image


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(path, texts=None, chunks=(), mode="RGB", behind=False):
    """A PNG with texts as iTXt, and chunks of (kind, body); ``behind``: they stand behind the pixels."""
    buffer = io.BytesIO()
    Image.new(mode, (4, 4), 200).save(buffer, "PNG")
    data = buffer.getvalue()
    bodies = [(b"iTXt", key.encode() + b"\0\0\0\0\0" + text.encode()) for key, text in (texts or {}).items()]
    extra = b"".join(chunk(kind, body) for kind, body in [*bodies, *chunks])
    place = data.rindex(b"IEND") - 4 if behind else 8 + 25
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[:place] + extra + data[place:])
    return path


def with_exif(path, tags, **how):
    """A picture with these EXIF tags; those of the EXIF part by their numbers from 0x9000 on."""
    exif = Image.Exif()
    for tag, value in tags.items():
        (exif.get_ifd(0x8769) if tag >= 0x9000 else exif)[tag] = value
    Image.new("RGB", (4, 4), "red").save(path, exif=exif.tobytes(), **how)
    return path


def hidden(path, text, zipped=True):
    """A PNG with a text in the lowest bits of its alpha channel, column by column."""
    body = gzip.compress(text.encode()) if zipped else text.encode()
    data = (b"stealth_pngcomp" if zipped else b"stealth_pnginfo") + struct.pack(">I", 8 * len(body)) + body
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    width, height = 64, 150
    alpha = np.full(width * height, 254, np.uint8)
    alpha[: len(bits)] |= bits
    picture = np.full((height, width, 4), 120, np.uint8)
    picture[..., 3] = alpha.reshape(width, height).T
    Image.fromarray(picture).save(path)
    return path


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(**more):
    """A plain graph of ComfyUI; ``more`` are further nodes, or others in the place of these."""
    nodes = {
        "1": node("CheckpointLoaderSimple", ckpt_name="base.safetensors"),
        "2": node("CLIPTextEncode", text="a red fox", clip=["1", 1]),
        "3": node("CLIPTextEncode", text="blurry", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node("KSampler", seed=7, model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0]),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="x"),
    }
    return nodes | {name.removeprefix("n"): inputs for name, inputs in more.items()}


def comfy(path, nodes):
    return png(path, {"prompt": json.dumps(nodes), "workflow": "{}"})
