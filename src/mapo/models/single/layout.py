"""Where the parts of each kind of pipeline lie in one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from mapo.models.names import original
from mapo.models.names.original import Original, Placing, Shape, originals, shapes_of
from mapo.models.single.detect import INSIDE

Placer = Callable[[Mapping[str, Any]], Placing]  # a part's configuration, with all values → its placing
Places = tuple[tuple[str, Placer], ...]  # what stands before the names, and how they go on; the first is written


def _always(placing: Placing) -> Placer:
    return lambda config: placing


def _without_prefix(path: str) -> original.Place:
    """CLIP as some early merges have it."""
    return original.Place(path.removeprefix("text_model."))


CLIP, OPEN_CLIP, T5 = (_always(p) for p in (original.clip_placing, original.open_clip_placing, original.t5_placing))
FLUX = _always(original.flux_placing)


def _denoiser(placer: Placer) -> Places:
    return (INSIDE, placer), ("", placer)


VAE: Places = tuple((start, original.vae_placing) for start in ("first_stage_model.", "vae."))
VAE_ALONE: Places = (("", original.vae_placing), *VAE)
LAYOUTS: dict[str, dict[str, Places]] = {
    "StableDiffusionXLPipeline": {
        "unet": _denoiser(original.unet_placing),
        "vae": VAE,
        "text_encoder": (("conditioner.embedders.0.transformer.", CLIP),),
        "text_encoder_2": (("conditioner.embedders.1.model.", OPEN_CLIP),),
    },
    "StableDiffusionPipeline": {
        "unet": _denoiser(original.unet_placing),
        "vae": VAE,
        "text_encoder": (
            ("cond_stage_model.transformer.", CLIP), ("cond_stage_model.model.", OPEN_CLIP),
            ("cond_stage_model.transformer.", _always(_without_prefix)),
        ),
    },
    "StableDiffusion3Pipeline": {
        "transformer": _denoiser(original.sd3_placing),
        "vae": VAE,
        "text_encoder": (("text_encoders.clip_l.transformer.", CLIP),),
        "text_encoder_2": (("text_encoders.clip_g.transformer.", CLIP),),
        "text_encoder_3": (("text_encoders.t5xxl.transformer.", T5),),
    },
    "FluxPipeline": {
        "transformer": _denoiser(FLUX),
        "vae": (VAE[1], VAE[0]),
        "text_encoder": (("text_encoders.clip_l.transformer.", CLIP),),
        "text_encoder_2": (("text_encoders.t5xxl.transformer.", T5),),
    },
}  # fmt: skip


def class_of(made: Sequence[str]) -> Any:
    """The class of a part, as ``model_index.json`` names its library and its class."""
    import diffusers
    import transformers

    return getattr(diffusers if made[0] == "diffusers" else transformers, made[1])


def outline(kind: Any, config: Mapping[str, Any]) -> Any:
    """A network without weights."""
    with torch.device("meta"):
        return kind.from_config(dict(config)) if hasattr(kind, "from_config") else kind(kind.config_class(**config))


def placed(
    places: Places, made: Sequence[str], config: Mapping[str, Any], names: Collection[str] | None = None
) -> dict[str, Original]:
    """The tensors of a part in a file that has these ``names``; empty where the file has none of them.

    ``made`` is its library and class. Without names: as they are written.
    """
    shapes, config = _shapes(tuple(made), json.dumps(config, sort_keys=True))
    for prefix, placer in places:
        found = originals(placer(config), shapes, prefix)
        if names is None or any(name in names for name in found):
            return found
    return {}


@lru_cache(maxsize=32)
def _shapes(made: tuple[str, ...], config: str) -> tuple[dict[str, Shape], Mapping[str, Any]]:
    """The shapes of a network's tensors, and its configuration with all values."""
    network = outline(class_of(made), json.loads(config))
    whole = network.config if isinstance(network.config, Mapping) else network.config.to_dict()
    return shapes_of(network.state_dict().items()), whole
