"""The facts in the configuration files of published models, and their tokenizers, as this package carries them.

A table is a JSON file in ``tables/`` with the values of each part. They are facts of the published files; ``NOTICE``
says where the tokenizers come from and their licences. :func:`write_folder` makes of a table what a model folder has
besides its weights, so that a file is opened as a folder is.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mapo.models.parts.config import CONFIGS, TOKENIZER_CONFIG

HERE = Path(__file__).parent / "tables"
SMALL = (".json", ".txt", ".model", ".jinja")  # files of a model folder that are not weights
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"


@cache
def table(name: str) -> dict[str, Any]:
    """A table by its name, such as "sdxl". Not to be changed."""
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text("utf-8"))
    return found


def write_folder(folder: Path, name: str) -> None:
    """A model folder without weights, of a table's values."""
    values = table(name)
    write_config(folder / "model_index.json", values["model_index"])
    for part, made in values["model_index"].items():
        if part in values["tokenizers"]:
            write_tokenizer(folder / part, values["tokenizers"][part])
        elif isinstance(made, list) and made[0] is not None:
            write_config(folder / part / CONFIGS.get(part, "config.json"), values[part])


def copy_small_files(source: Path, folder: Path) -> None:
    """A model folder's files but its weights."""
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=_weights)


def _weights(folder: str, names: list[str]) -> list[str]:
    files = [name for name in names if (Path(folder) / name).is_file()]
    return [name for name in files if not name.endswith(SMALL) or name.endswith(".index.json")]


def write_tokenizer(folder: Path, kind: str) -> None:
    """CLIP's tokenizer ("clip", or "clip-g" that fills up with "!") or that of T5 ("t5")."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "t5":
        settings = {
            "tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "pad_token": "<pad>", "eos_token": "</s>",
            "unk_token": "<unk>", "extra_ids": 100,
        }  # fmt: skip
        (folder / "tokenizer.json").write_bytes(gzip.decompress((HERE / "t5-tokenizer.json.gz").read_bytes()))
    else:
        settings = {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "add_prefix_space": False, "errors": "replace",
            "do_lower_case": True, "bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END,
            "pad_token": "!" if kind == "clip-g" else CLIP_END,
        }  # fmt: skip
        for file, content in _clip_files().items():
            (folder / file).write_bytes(content)
    write_config(folder / TOKENIZER_CONFIG, settings)


@cache
def _clip_files() -> dict[str, bytes]:
    merges = gzip.decompress((HERE / "clip-merges.txt.gz").read_bytes())
    words = json.dumps(clip_vocabulary(merges.decode()), ensure_ascii=False)
    return {"merges.txt": merges, "vocab.json": words.encode()}


def clip_vocabulary(merges: str) -> dict[str, int]:
    """CLIP's words by the merges: the bytes, the bytes at the end of a word, what is merged, begin and end."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [chr(256 + k) for k in range(256 - len(plain))]
    letters = [*map(chr, plain), *others]
    merged = [line.replace(" ", "") for line in merges.splitlines()[1:] if line]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged, CLIP_START, CLIP_END]
    return {word: number for number, word in enumerate(words)}


def write_config(path: Path, values: Mapping[str, Any]) -> None:
    """Write a configuration into a model folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1), "utf-8")
