"""Safetensors files of any size that take no room on the disk: a head, and a hole where the numbers would be."""

import gzip
import json
import math
from pathlib import Path

SIZES = {"F64": 8, "F32": 4, "I64": 8, "I32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
NAMES = Path(__file__).parent / "data" / "original_names.json.gz"


def published(name: str, optional: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file: "sdxl", "sd15", "sd3", "flux"; perhaps without what it may lack."""
    listed = json.loads(gzip.decompress(NAMES.read_bytes()))[name]
    left_out = () if optional else set(listed["optional"])
    return {
        key: tuple(map(int, shape.split("x"))) if shape else ()
        for key, shape in listed["shapes"].items()
        if key not in left_out
    }


def write_sparse(path: Path, shapes, dtype: str = "F16", metadata=None, cut: int = 0) -> Path:
    """A file with tensors of these shapes, all zeros; ``shapes`` may give a kind too: (kind, shape)."""
    head, place = {"__metadata__": metadata or {}}, 0
    for name, shape in shapes.items():
        kind, sides = shape if shape and isinstance(shape[0], str) else (dtype, shape)
        end = place + SIZES[kind] * math.prod(sides)
        head[name] = {"dtype": kind, "shape": list(sides), "data_offsets": [place, end]}
        place = end
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place - cut)
    return path
