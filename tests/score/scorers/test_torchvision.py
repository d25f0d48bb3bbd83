"""Scorers that read pictures with transformers, beside a torchvision, which it would take to prepare them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers.utils import is_torchvision_available

from mapo.score.scorers import load_scorer
from small_scorers import save_clip, save_dinov2, save_processor, save_siglip

RAISES = (
    "def __getattr__(name):\n"
    "    def asked(*given, **named):\n"
    "        raise RuntimeError('torchvision was asked')\n"
    "    return asked\n"
)
FAKE_TORCHVISION = {
    "torchvision/__init__.py": "__version__ = '0.99.0'\n",
    "torchvision/io/__init__.py": RAISES,
    "torchvision/transforms/__init__.py": "from enum import Enum\n"
    "InterpolationMode = Enum('InterpolationMode', {n: n.lower() for n in "
    "'NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS'.split()})\n",
    "torchvision/transforms/functional.py": "from . import InterpolationMode\n" + RAISES,
    "torchvision/transforms/v2/__init__.py": "",
    "torchvision/transforms/v2/functional.py": RAISES,
    "torchvision-0.99.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n",
}

TELL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_torchvision import is_torchvision_available, value_of
print(is_torchvision_available(), *map(value_of, sys.argv[2:]))
"""


def value_of(name):
    picture = Image.linear_gradient("L").resize((50, 40)).convert("RGB")
    scorer = load_scorer(name)
    value = scorer([picture], ["zebra"], [picture.rotate(90)] if scorer.needs_reference else None)
    return value[scorer.metrics[0]][0]


@pytest.mark.long
def test_a_torchvision_that_is_installed_changes_no_score(tmp_path):
    """One picture's values here and in a fresh process, where a torchvision is installed that fails when it is used."""
    save_processor(save_clip(tmp_path / "clip"), "CLIPImageProcessor", 32, 32)
    save_siglip(tmp_path / "siglip"), save_dinov2(tmp_path / "dinov2")
    names = [f"pickscore@{tmp_path / 'clip'}", f"siglip@{tmp_path / 'siglip'}", f"dinov2@{tmp_path / 'dinov2'}"]
    beside = tmp_path / "installed"
    for file, text in FAKE_TORCHVISION.items():
        (beside / file).parent.mkdir(parents=True, exist_ok=True)
        (beside / file).write_text(text)
    path = os.pathsep.join(p for p in (str(beside), *sys.path) if p)
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", TELL, here, *names], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there, *values = done.stdout.split()
    assert (is_torchvision_available(), there) == (False, "True")
    assert values == [str(value_of(name)) for name in names]
