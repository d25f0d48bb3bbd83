"""Families of models: what training and sampling need to know about one, behind one contract.

A family is a module that offers the functions of :class:`Family`. A newcomer is one module and one line in
:data:`FAMILIES`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from mapo.errors import MapoError
from mapo.files import inside, read_object
from mapo.models.noise import Schedule
from mapo.worlds import WORLDS

FAMILIES = {
    "StableDiffusionXLPipeline": "mapo.models.sdxl",
}


@dataclass(frozen=True)
class Model:
    """Where a model's parts lie: a pipeline folder, and a run's denoiser or LoRA on top of it."""

    name: str  # as the user wrote it
    base: Path  # a diffusers pipeline folder
    denoiser: Path | None = None
    loras: tuple[Path, ...] = ()
    sensitive: bool = False  # trained on a sensitive set, so pages blur its pictures

    @property
    def stable_name(self) -> str:
        """The name to write into files: a hub id and ``mini`` as they are, a folder as an absolute path."""
        return str(Path(self.name).resolve()) if self.is_local else self.name

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of the user's, which may be moved."""
        return self.name not in WORLDS and Path(self.name).is_dir()

    def revision(self) -> str:
        """A hash of everything that decides what pictures the model makes."""
        parts = [p.parent.name for p in sorted(self.base.glob("*/config.json"))] + ["scheduler"]
        hashes = [fingerprint(self.base, parts)]
        hashes += [fingerprint(path.parent, [path.name]) for path in (self.denoiser, *self.loras) if path]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


class Family(Protocol):
    """What a family's module offers. n images or prompts; c h w a latent."""

    LORA_TARGETS: tuple[str, ...]
    PARTS: tuple[str, ...]  # the folders whose weights decide what the cache holds

    def check(self, model: Model) -> None:
        """MapoError where the folder says that its model is of another kind than this family trains."""

    def check_loras(self, model: Model, on_top: bool) -> None:
        """MapoError where a LoRA of the model does not fit it, or could not be one file with another ``on_top``."""

    def load_denoiser(self, model: Model, device: Any, dtype: Any) -> nn.Module:
        """The network that is trained, on ``device``."""

    def load_tokenizers(self, model: Model) -> tuple[Any, ...]:
        """What turns prompts into tokens, one for each text encoder; no weights are read."""

    def load_text_encoders(self, model: Model, device: Any) -> Any:
        """What :meth:`encode_prompts` needs, in float32."""

    def load_vae(self, model: Model, device: Any) -> Any:
        """What :meth:`encode_images` needs, in float32."""

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1] "n 3 H W" → mean and log-variance of the latents, "n c h w" each, not yet scaled."""

    def encode_prompts(self, encoders: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the denoiser is given for each prompt: named tensors "n …"."""

    def scale_latents(self, model: Model, latents: Tensor) -> Tensor:
        """The VAE's latents as the denoiser knows them."""

    def schedule(self, model: Model) -> Schedule:
        """The forward process that the model was trained with."""

    def resolution(self, model: Model) -> int:
        """The side in pixels at which the model works by itself."""

    def latent_stride(self, model: Model) -> int:
        """Pixels per latent element and side."""

    def size_condition(self, sizes: Tensor, resolution: int) -> dict[str, Tensor]:
        """Conditioning on (original height, width, crop top, left) "b 4" and the side trained at: tensors "b …"."""

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The denoiser's output, "b c h w"."""

    def pipeline(self, model: Model, device: Any, dtype: Any) -> Any:
        """A diffusers pipeline that makes pictures."""

    def save_denoiser(self, denoiser: nn.Module, folder: Path) -> None:
        """Write a fully trained denoiser into the run folder, in diffusers' format."""

    def save_lora(self, denoiser: nn.Module, folder: Path, below: Sequence[Path] = ()) -> None:
        """Write a trained LoRA and those that it stands on as one ``pytorch_lora_weights.safetensors``."""


def find_model(name: str, weights: bool = True) -> Model:
    """``mini``, a run folder, a diffusers folder or a hub id → where its parts lie.

    Without ``weights`` only configurations and tokenizers of a hub id are fetched.
    """
    path = WORLDS[name].model if name in WORLDS else Path(name)
    if (path / "run.json").is_file():
        return _find_run(name, path, weights)
    if (path / "model_index.json").is_file():
        return Model(name, path)
    if path.is_dir():
        raise MapoError(
            f"--model: {name} is neither a diffusers pipeline (it has no model_index.json) nor a finished run of "
            "`mapo train` (it has no run.json)."
        )
    if path.is_file():
        raise MapoError(
            f"--model: {name} is a single file; a model is a folder in diffusers' layout. Convert it once: "
            f'StableDiffusionXLPipeline.from_single_file("{name}").save_pretrained("{path.stem}"). Then give that '
            "folder."
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MapoError(
            f"--model: there is no folder {name}. Give {' or '.join(f'`{world}`' for world in WORLDS)}, a diffusers "
            "folder, a run folder or a hub id."
        )
    return Model(name, _download(name, weights))


def _find_run(name: str, path: Path, weights: bool) -> Model:
    about = path / "run.json"
    run = read_object(about, "a run folder", "Run the same `mapo train` command again: it writes the file anew.")
    if not all(isinstance(run.get(key), str) for key in ("base", "denoiser", "adapter")):
        raise MapoError(f"{about} is damaged. Run the same `mapo train` command again: it writes the file anew.")
    base, denoiser = _find_base(name, path, run, weights), inside(path, run["denoiser"], f"{path}/run.json")
    if not denoiser.is_dir():
        raise MapoError(f"{path} has lost its {run['denoiser']}. Run the same `mapo train` command again.")
    sensitive = base.sensitive or bool(run.get("sensitive"))
    if run["adapter"] == "lora":
        below = () if run.get("holds_loras_below") else base.loras  # a LoRA of 0.1.0 is the last difference alone
        return Model(name, base.base, base.denoiser, (*below, denoiser), sensitive)
    return Model(name, base.base, denoiser, (), sensitive)


def _find_base(name: str, path: Path, run: Mapping[str, Any], weights: bool) -> Model:
    """What a run stands on: where it lies from here, if that is still the same, else where it lay."""
    base, from_here = run["base"], run.get("base_from_here")
    near = (path / from_here).resolve() if isinstance(from_here, str) else path.resolve()
    if near.is_dir() and near != path.resolve():
        with contextlib.suppress(MapoError, RecursionError):  # it is another one that has its name now
            found = find_model(str(near), weights)
            if found.revision() == run.get("base_revision"):
                return found
    if Path(base).is_absolute() and Path(base).resolve() == path.resolve():
        raise MapoError(f"{name} says that it stands on itself. Write its true base into {path / 'run.json'}.")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise MapoError(
            f"{name} was trained on the model {base}, which is not there any more. Put it back there, or write its "
            f"new place as base into {path / 'run.json'}."
        )
    found = find_model(base, weights)
    if found.is_local and run.get("base_revision") not in (None, found.revision()):
        raise MapoError(
            f"{name} was trained on the model {base} as it was then; that one has changed since. Train {name} again, "
            f"or take base_revision out of {path / 'run.json'} to use it all the same."
        )
    return found


def _download(name: str, weights: bool) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        if not weights:
            return Path(snapshot_download(name, allow_patterns=["model_index.json", "*/*config.json", "tokenizer*/*"]))
        return Path(DiffusionPipeline.download(name, use_safetensors=True))  # never a pickle
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise MapoError(
            f"--model: {name} is not a local folder and could not be fetched from the hub ({reason}). "
            "Check the name, the connection, and `hf auth login` for models behind a licence."
        ) from None


def family_of(model: Model) -> Family:
    """The family of a model, by the class that its pipeline folder names."""
    kind = read_config(model.base, "model_index.json").get("_class_name", "")
    if kind not in FAMILIES:
        raise MapoError(f"{model.name} is a {kind or 'pipeline without a class'}; known are: {', '.join(FAMILIES)}.")
    _hide_loading_bars()
    return cast("Family", importlib.import_module(FAMILIES[kind]))


def _hide_loading_bars() -> None:
    """The libraries' bars over files that lie on the disk pass in a second; those of downloads stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()


def read_config(base: Path, name: str) -> dict[str, Any]:
    """A JSON file of a pipeline folder."""
    try:
        found = json.loads((base / name).read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
        return found
    except (OSError, ValueError) as error:
        raise MapoError(f"The model folder {base} is not whole: {name} cannot be read ({error}).") from None


def fingerprint(base: Path, parts: Sequence[str]) -> str:
    """A hash of the configurations of ``parts`` and of samples of their weights: cheap for gigabytes, stable."""
    digest = hashlib.sha256()
    for part in parts:
        files = sorted(f for f in (base / part).glob("*") if f.suffix in (".json", ".safetensors", ".txt", ".bin"))
        if not files:
            raise MapoError(f"The model folder {base} is not whole: {part} is missing.")
        for file in files:
            size = file.stat().st_size
            digest.update(f"{part}/{file.name}:{size}\n".encode())
            with file.open("rb") as stream:
                for place in range(0, size, max(4096, size // 64)):
                    stream.seek(place)
                    digest.update(stream.read(4096))
    return digest.hexdigest()[:16]
