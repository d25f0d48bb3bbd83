"""LoRAs that lie on a model: where their files are, how strong each is, and the layers in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mapo.models.parts.fingerprints import add_samples, fingerprint
from mapo.models.parts.header import AGAIN

if TYPE_CHECKING:
    from mapo.models.loras.layers import Layer
    from mapo.models.loras.read import Kind

LORA_FILE = "pytorch_lora_weights.safetensors"
OF_A_RUN = "Put the file that `mapo train` wrote back there, or train that run again."
OF_OTHERS = "Give another --lora, or leave it out."


@dataclass(frozen=True)
class Lora:
    """A LoRA's file and the strength at which it lies on its model."""

    path: Path
    weight: float = 1.0
    named: bool = False  # by --lora; else it is that of a run which is the model

    @property
    def remedy(self) -> str:
        """What helps where it cannot be used."""
        return OF_OTHERS if self.named else OF_A_RUN

    @property
    def again(self) -> str:
        """How to get its file anew where that is damaged."""
        return AGAIN if self.named else OF_A_RUN

    def parts(self, pipeline: str, model: str) -> set[str]:
        """The parts of the pipeline that it changes. Only the file's head is read."""
        from mapo.models.loras.read import opened, parts_named

        with opened(self.path, self.remedy, self.again, heads_only=True) as tensors:
            return parts_named(tensors, self.path, self._kind(pipeline, model))

    def layers(
        self, pipeline: str, model: str, networks: Mapping[str, nn.Module], heads_only: bool = False
    ) -> list[Layer]:
        """Its layers in ``networks`` (parts by name) at its strength; MapoError where it is not one of this model."""
        from mapo.models.loras.read import opened, read_layers

        with opened(self.path, self.remedy, self.again, heads_only) as tensors:
            found = read_layers(self.path, tensors, networks, self._kind(pipeline, model))
        return [layer.weighted(self.weight) for layer in found]

    def _kind(self, pipeline: str, model: str) -> Kind:
        from mapo.models.loras.read import Kind

        return Kind(pipeline, model if self.named else "its model", self.remedy)

    def fingerprint(self) -> str:
        """A hash of samples of the file and of its strength."""
        folder, digest = self.path.parent, hashlib.sha256()
        if self.named:
            add_samples(digest, self.path, "lora")
            found = digest.hexdigest()[:16]
        else:
            found = fingerprint(folder.parent, [folder.name])
        return found if self.weight == 1 else hashlib.sha256(f"{found} weight {self.weight}".encode()).hexdigest()[:16]

    def told(self) -> dict[str, Any]:
        """What a run says of it."""
        digest = hashlib.sha256()
        with self.path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return {"file": str(self.path.resolve()), "weight": self.weight, "sha256": digest.hexdigest()}


def without_named(loras: Sequence[Lora]) -> tuple[Lora, ...]:
    """Those of the run alone that is the model."""
    return tuple(lora for lora in loras if not lora.named)
