"""Another VAE than a model's own: from a folder, a file, or the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.models.names.original import Original, Place
from mapo.models.parts.config import read_config
from mapo.models.parts.fingerprints import fingerprint
from mapo.models.parts.header import Header, read_header
from mapo.models.parts.weights import load_part
from mapo.models.single.file import check_tensors, fingerprint_of, load_from
from mapo.models.single.layout import VAE_ALONE, Places, placed
from mapo.models.sources.hub import fetch_vae, hub_name
from mapo.worlds import MODELS

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
        return load_part(kind, self.place.parent, self.place.name, dtype)

    def fingerprint(self) -> str:
        """A hash of its configuration and of samples of its weights."""
        if self.header:
            return fingerprint_of(self.header, self.entries, self.config)
        found = fingerprint(self.place.parent, [self.place.name])
        return hashlib.sha256(f"{found} {json.dumps(self.config, sort_keys=True)}".encode()).hexdigest()[:16]


def find_vae(name: str, model: str, own: Mapping[str, Any], weights: bool = True) -> OtherVae:
    """The VAE called ``name`` in place of the one of ``model``, whose configuration is ``own``.

    Without ``weights`` only configurations are fetched from the hub.

    Nothing in a file tells the VAE of SDXL from that of Stable Diffusion 1, so the scale of latents is the model's. A
    folder that says another one is refused, and so is a VAE whose latents are of another shape.
    """
    path = MODELS.get(name, Path(name))
    if path.is_file():
        return _in_file(path, model, own)
    if path.is_dir():
        return _in_folder(str(path.resolve()) if name not in MODELS else name, path, model, own)
    asked = hub_name(name)
    if asked is None or asked.variant:
        raise MapoError(
            f"--vae: there is no file or folder {name}. Give a folder with a VAE, a model folder, a safetensors file, "
            "or a hub id."
        )
    return _in_folder(name, fetch_vae(asked, weights), model, own)


def _in_file(path: Path, model: str, own: Mapping[str, Any]) -> OtherVae:
    header = read_header(path)
    is_ours, is_earlier = (header.any_with(f"coder.mid_block.{word}") for word in ("", "attentions.0.query."))
    places = BY_EARLIER_NAMES if is_earlier else BY_OUR_NAMES if is_ours else VAE_ALONE
    entries = placed(places, ("diffusers", "AutoencoderKL"), own, header.tensors.keys())
    if not entries:
        raise MapoError(f"--vae: {path} holds no VAE. Give the file of a VAE, a whole model, or a folder.")
    check_tensors(header, f"the VAE of {model}", entries, "Give one of its kind.")
    return OtherVae(str(path.resolve()), path.resolve(), dict(own), header, entries)


def _in_folder(name: str, folder: Path, model: str, own: Mapping[str, Any]) -> OtherVae:
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
    for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        if own.get(key) is not None and config.setdefault(key, own[key]) != own[key]:
            raise MapoError(
                f"--vae: {name} has {key} {config[key]}, the VAE of {model} has {own[key]}. It is the VAE of another "
                "kind of model."
            )
    return OtherVae(name, place, config)
