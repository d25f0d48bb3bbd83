"""Published weights and photos, which lie beside a checkout and not in it. Tests on them are skipped where it has none."""

import shutil
from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
ABSENT = "real material is absent: "


def needs_real(name: str) -> pytest.MarkDecorator:
    """Skip a test where the folder or file ``name`` of :data:`REAL` is absent; the end of the run counts such tests."""
    return pytest.mark.skipif(not (REAL / name).exists(), reason=ABSENT + name)


def published(folder: Path, name: str) -> Path:
    """The published small files of a model, with the tokenizers' vocabularies in place."""
    shutil.copytree(REAL / "configs" / name, folder)
    t5 = {"FLUX": "tokenizer_2", "stable-diffusion-3": "tokenizer_3"}
    of_t5 = next((folder / part for start, part in t5.items() if name.startswith(start)), None)
    for tokenizer in folder.glob("tokenizer*"):
        for file in ("vocab.json", "merges.txt") if tokenizer != of_t5 else ():
            shutil.copy(REAL / "clip_tokenizer" / file, tokenizer)
    if of_t5:
        shutil.copytree(REAL / "t5_tokenizer", of_t5, dirs_exist_ok=True)
    return folder
