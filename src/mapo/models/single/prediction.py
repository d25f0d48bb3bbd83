"""Whether a UNet predicts ε or v, and whether its noise ends at zero SNR, as far as its file says."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from safetensors import safe_open

from mapo.errors import MapoError
from mapo.models.parts.header import Header

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # as --prediction and as schedulers call it
SPOKEN = {"epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v", "v-prediction": "v"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
V_OF_SD2 = 0.09  # ComfyUI's limit of the standard deviation of this tensor; models that predict v are above it
CALLED_V = re.compile(r"(?i)(?<![a-z])v[-_ ]?pred(iction)?(?![a-z])")  # merges often lose the marks, but not the word
BIAS_OF_SD2 = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


@dataclass(frozen=True)
class Prediction:
    """What is predicted, "epsilon" or "v", and whether the last step is pure noise."""

    name: str
    zero_snr: bool = False
    unsaid: bool = False  # nothing in the file says it

    @property
    def scheduler(self) -> dict[str, object]:
        """The values of a scheduler that say so."""
        return {"prediction_type": PREDICTIONS[self.name], **(ZERO_SNR if self.zero_snr else {})}


def prediction_of(
    header: Header, telling: str | None = None, asked: str | None = None, beside: str | None = None
) -> Prediction:
    """By marks in a file, unless it is ``asked`` for ("epsilon" or "v").

    ``telling`` names a tensor of Stable Diffusion 2 whose spread tells; ``beside`` is what a scheduler's file says.
    MapoError where the marks contradict each other, or only the file's name says v.
    """
    metadata = header.metadata
    zero = "ztsnr" in header.tensors or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    marks = {"the tensor v_pred": "v"} if "v_pred" in header.tensors else {}
    word = metadata.get("modelspec.prediction_type", "").strip()
    if (said := SPOKEN.get(word.lower())) is not None:
        marks["modelspec.prediction_type in its metadata"] = said
    if telling is not None:
        marks[f"the spread of {telling}"] = "v" if _spread(header, telling) > V_OF_SD2 else "epsilon"
    if beside is not None:
        marks["the scheduler beside it"] = beside
    if asked is not None:
        return Prediction(asked, zero and asked == "v")
    if word and said is None:
        raise MapoError(
            f"{header.path} says in its metadata that it predicts {word!r} (modelspec.prediction_type). Training knows "
            "epsilon and v. If the metadata is wrong, say --prediction epsilon or --prediction v."
        )
    if len(set(marks.values())) > 1:
        each = ", ".join(f"{mark} says {name}" for mark, name in marks.items())
        raise MapoError(
            f"{header.path} contradicts itself about what the model predicts: {each}. Say it with --prediction epsilon "
            "or --prediction v."
        )
    if not marks and (in_name := CALLED_V.search(header.path.stem)):
        raise MapoError(
            f"{header.path} has the word {in_name[0]!r} in its name, but no mark of what it predicts. Say it with "
            "--prediction v or --prediction epsilon."
        )
    name = next(iter(marks.values()), "epsilon")
    if zero and name == "epsilon":
        raise MapoError(
            f"{header.path} says that its noise ends at zero SNR (ztsnr), but not that it predicts v, as such models "
            "do. Say what it predicts with --prediction v or --prediction epsilon."
        )
    return Prediction(name, zero, unsaid=not marks)


def _spread(header: Header, name: str) -> float:
    if name not in header.tensors:
        return 0.0
    with safe_open(header.path, "pt") as file:
        return float(torch.std(file.get_tensor(name).float(), unbiased=False))
