"""Another VAE than a model's own: from a folder, a file, or the hub."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.models.names.original import Original, Place
from mapo.models.parts.config import read_config
from mapo.models.parts.eight_bits import refuse_quantized
from mapo.models.parts.fingerprints import fingerprint
from mapo.models.parts.header import Header, read_header
from mapo.models.parts.weights import load_part
from mapo.models.single.file import check_tensors, fingerprint_of, load_from
from mapo.models.single.layout import VAE_ALONE, Places, placed
from mapo.models.sources.hub import fetch_vae, hub_name
from mapo.worlds import MODELS

LOG = logging.getLogger(__name__)

SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
OF_CLASS = 0.18215  # what diffusers takes for a scaling_factor that a VAE's file does not say
EARLIER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # in diffusers before 0.15


def _earlier(path: str) -> Place:
    new = next((name for name in EARLIER if path.endswith(f".attentions.0.{name}")), "")
    return Place(path.removesuffix(new) + EARLIER.get(new, ""))


BY_OUR_NAMES: Places = (("", lambda config: Place), ("vae.", lambda config: Place))
BY_EARLIER_NAMES: Places = (("", lambda config: _earlier), ("vae.", lambda config: _earlier))


@dataclass(frozen=True)
class OtherVae:
    """A VAE that stands in for a model's own. ``place`` is its folder, or its file."""

    name: str  # a hub id, or an absolute path
    place: Path
    config: Mapping[str, Any]
    header: Header | None = field(default=None, compare=False)
    entries: Mapping[str, Original] = field(default_factory=dict, compare=False)

    @property
    def config_path(self) -> Path:
        """The file to be named where its configuration is wrong."""
        return self.place if self.header else self.place / "config.json"

    def load(self, kind: Any, dtype: Any) -> Any:
        """The network; MapoError where it cannot be loaded."""
        if self.header:
            return load_from(self.place, self.entries, kind, self.config, dtype)
        network = load_part(kind, self.place.parent, self.place.name, dtype)
        network.register_to_config(**{key: self.config[key] for key in SCALES if key in self.config})
        return network

    def fingerprint(self) -> str:
        """A hash of its configuration and of samples of its weights."""
        if self.header:
            return fingerprint_of(self.header, self.entries, self.config)
        found = fingerprint(self.place.parent, [self.place.name])
        return hashlib.sha256(f"{found} {json.dumps(self.config, sort_keys=True)}".encode()).hexdigest()[:16]


def find_vae(name: str, model: str, own: Mapping[str, Any], usual: float | None, weights: bool = True) -> OtherVae:
    """The VAE called ``name`` in place of the one of ``model``, whose configuration is ``own``.

    Where that does not say how latents are scaled they are by ``usual``, if it is known. Without ``weights`` only
    configurations are fetched from the hub.

    Nothing in a file tells the VAE of SDXL from that of Stable Diffusion 1, so the scale of latents is the model's. A
    folder that says another one is refused, and so is a VAE whose latents are of another shape.
    """
    if not name.strip():
        raise MapoError("--vae is empty. Give a folder with a VAE, a model folder, a safetensors file, or a hub id.")
    path = MODELS.get(name, Path(name))
    if path.is_file():
        return _in_file(path, model, own)
    if path.is_dir():
        return _in_folder(str(path.resolve()) if name not in MODELS else name, path, model, own, usual)
    asked = hub_name(name)
    if asked is None or asked.variant:
        raise MapoError(
            f"--vae: there is no file or folder {name}. Give a folder with a VAE, a model folder, a safetensors file, "
            "or a hub id."
        )
    return _in_folder(name, fetch_vae(asked, weights), model, own, usual)


def _check_unsaid_scale(name: str, path: Path, model: str, scale: float) -> None:
    """MapoError where a VAE's file that says no scale is of a kind whose latents are not scaled by ``scale``."""
    if scale != OF_CLASS:
        raise MapoError(
            f"--vae: {path} has no scaling_factor, as VAEs of Stable Diffusion 1, whose latents are scaled by "
            f"{OF_CLASS}. Those of {model} are scaled by {scale}. If this is a VAE of its kind, write that into the "
            f'file: "scaling_factor": {scale}.'
        )
    _tell_scale(name, model, scale)


@cache
def _tell_scale(name: str, model: str, scale: float) -> None:
    """Once for each."""
    LOG.info(f"--vae: {name} does not say how its latents are scaled. They are by {scale}, as those of {model}.")


def _in_file(path: Path, model: str, own: Mapping[str, Any]) -> OtherVae:
    header = read_header(path)
    is_ours, is_earlier = (header.any_with(f"coder.mid_block.{word}") for word in ("", "attentions.0.query."))
    places = BY_EARLIER_NAMES if is_earlier else BY_OUR_NAMES if is_ours else VAE_ALONE
    entries = placed(places, ("diffusers", "AutoencoderKL"), own, header.tensors.keys())
    if not entries:
        raise MapoError(f"--vae: {path} holds no VAE. Give the file of a VAE, a whole model, or a folder.")
    check_tensors(header, f"the VAE of {model}", entries, "Give one of its kind.")
    here = {n: held for n, held in header.tensors.items() if {n, f"{n.rpartition('.')[0]}.weight"} & entries.keys()}
    refuse_quantized(replace(header, tensors=here))
    return OtherVae(str(path.resolve()), path.resolve(), dict(own), header, entries)


def _in_folder(name: str, folder: Path, model: str, own: Mapping[str, Any], usual_scale: float | None) -> OtherVae:
    place = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    if not (place / "config.json").is_file():
        raise MapoError(
            f"--vae: {name} holds no VAE: neither config.json nor vae/config.json is there. Give another folder."
        )
    place = place.resolve()
    config = read_config(place.parent, f"{place.name}/config.json")
    kind = config.get("_class_name")
    if kind != "AutoencoderKL":
        raise MapoError(f"--vae: {place / 'config.json'} names {kind or 'no class'}; a VAE is an AutoencoderKL.")
    for key, usual in (("latent_channels", 4), ("block_out_channels", [64])):
        theirs, ours = (c.get(key) or usual for c in (config, own))
        theirs, ours = (len(v) if isinstance(v, list) else v for v in (theirs, ours))
        if theirs != ours:
            what = "channels of latents" if key == "latent_channels" else "sizes of layers"
            raise MapoError(f"--vae: {name} has {theirs} {what}, the VAE of {model} has {ours}. Give one of its kind.")
    config = {key: value for key, value in config.items() if value is not None}
    wanted = {**own, "scaling_factor": own.get("scaling_factor") or usual_scale}
    if "scaling_factor" not in config and wanted["scaling_factor"]:
        _check_unsaid_scale(name, place / "config.json", model, wanted["scaling_factor"])
    for key in SCALES:
        if wanted.get(key) is not None and config.get(key, wanted[key]) != wanted[key]:
            raise MapoError(
                f"--vae: {name} has {key} {config[key]}, the VAE of {model} has {wanted[key]}. It is the VAE of "
                "another kind of model."
            )
    config |= {key: own[key] for key in SCALES if key not in config and own.get(key) is not None}
    return OtherVae(name, place, config)
