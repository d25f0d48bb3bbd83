"""Reading the LoRA of anybody: every tensor of its file is used, or the file is refused.

Understood are the names of diffusers and peft (``unet.….lora.down.weight``, ``transformer.….lora_A.weight``), those of
Kohya's trainer (``lora_unet_…``, ``lora_te1_…``), and the paths of the original files (``diffusion_model.…``), as
AI-toolkit writes them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mapo.errors import MapoError, reason
from mapo.models.loras.keys import BY_PEFT, PEFT, Names, family_of, layers_named
from mapo.models.loras.layers import Layer
from mapo.models.names.kohya import PREFIXES, original_layers, own_layers, underscored
from mapo.models.names.original import Change, Original, Shape
from mapo.models.parts.header import read_header
from mapo.models.parts.tensors import is_finite

METADATA = "lora_adapter_metadata"  # diffusers' settings of peft, as JSON, where alpha is not the rank
DOTTED = "diffusion_model"
Table = Mapping[str, Original]


@dataclass(frozen=True)
class Kind:
    """What a LoRA is read for: a class of pipelines, the model's name in messages, and what helps where it fails."""

    pipeline: str
    model: str
    remedy: str


@dataclass(frozen=True)
class Tensors:
    """The tensors of a LoRA's file, by name, and its metadata."""

    names: tuple[str, ...]
    get: Callable[[str], Tensor]
    metadata: Mapping[str, str]


@contextmanager
def opened(path: Path, remedy: str, again: str, heads_only: bool = False) -> Iterator[Tensors]:
    """The tensors of a file; with ``heads_only`` their shapes, on the meta device, but for alphas.

    MapoError where it is not a whole safetensors file; ``again`` says how to get it anew.
    """
    if not path.exists():
        raise MapoError(f"There is no file {path}. {remedy}")
    read_header(path, again)
    try:
        with safe_open(path, "pt") as file:

            def get(name: str) -> Tensor:
                if heads_only and not name.endswith(".alpha"):
                    return torch.empty(file.get_slice(name).get_shape(), device="meta")
                tensor: Tensor = file.get_tensor(name)
                return tensor

            yield Tensors(tuple(file.keys()), get, file.metadata() or {})
    except OSError as error:
        raise MapoError(f"{path} cannot be read ({error.strerror or error}). {remedy}") from None
    except SafetensorError:
        raise MapoError(f"{path} is damaged. {again}") from None


def read_layers(path: Path, tensors: Tensors, networks: Mapping[str, nn.Module], kind: Kind) -> list[Layer]:
    """The layers of a LoRA that lie in ``networks``, a pipeline's parts by name; they may have no weights.

    Layers of other parts of this kind of pipeline are passed over, so whoever wants to know that a LoRA is used whole
    gives all parts. MapoError where a tensor is of no use, of another model, or does not fit.
    """
    found = layers_named(tensors.names, path, kind.remedy)
    alphas, schemes = _alphas(path, tensors, kind), dict[str, str]()
    tables: dict[tuple[str, str], Table] = {}
    made: dict[tuple[str, str], Layer] = {}
    for name, entry in found.items():
        part, rest, scheme = _part_of(name, path, kind, found)
        if part not in networks:
            continue
        layer, scheme = _look_up(tables, part, rest, scheme, networks[part])
        if layer is None:
            raise _lacking(path, name, kind, found)
        if not part.startswith("text_encoder"):
            schemes.setdefault(scheme, name)
        if len(schemes) > 1:
            raise MapoError(
                f"{path} mixes two ways of naming layers ({' and '.join(schemes.values())}), and other programs would "
                f"drop one half of it. {kind.remedy}"
            )
        for one in _records(path, name, entry, tensors, part, layer, alphas, kind):
            if one.key in made:
                raise MapoError(f"{path} has the layer {one.module} of {part} twice. {kind.remedy}")
            made[one.key] = one
    return list(made.values())


def parts_named(tensors: Tensors, path: Path, kind: Kind) -> set[str]:
    """The parts of a pipeline that a LoRA changes, by the names of its tensors."""
    found = layers_named(tensors.names, path, kind.remedy)
    return {_part_of(name, path, kind, found)[0] for name in found}


def _part_of(name: str, path: Path, kind: Kind, found: Mapping[str, Names]) -> tuple[str, str, str]:
    """Of a layer's name in a file: the part, the path in it, and how that is written."""
    parts = PREFIXES.get(kind.pipeline, {})
    if name.startswith(PEFT):
        raise MapoError(f"{path} {BY_PEFT}")
    first, _, rest = name.partition(".")
    rest = rest.removeprefix(PEFT)
    if first in parts:
        return first, rest, "diffusers"
    if first == DOTTED and rest:
        return next(iter(parts), ""), rest, "original"
    for part, prefixes in parts.items():
        for prefix in prefixes:
            if name.startswith(f"{prefix}_"):
                return part, name.removeprefix(f"{prefix}_"), "kohya"
    if "." not in name or first in ("unet", "transformer", "text_encoder_2", "text_encoder_3"):
        raise _lacking(path, name, kind, found)
    raise MapoError(
        f"{path} has the layer {name}, which does not say of which part of a model it is (such as unet., transformer. "
        f"or lora_unet_). {kind.remedy}"
    )


def _table(network: nn.Module, part: str, scheme: str) -> Table:
    """The layers of a network by their paths in one way of writing them."""
    if scheme == "diffusers":
        return own_layers(network)
    if scheme == "original":
        return original_layers(part, network)
    return underscored(own_layers(network) if scheme == "kohya, diffusers" else original_layers(part, network))


def _look_up(
    tables: dict[tuple[str, str], Table], part: str, path: str, scheme: str, network: nn.Module
) -> tuple[Original | None, str]:
    """The layer at a path, and the way in which that is written: files of others have diffusers' paths too."""
    is_text = part.startswith("text_encoder")
    mark = "text_model_" if scheme == "kohya" else "text_model."
    forms = [path, path.removeprefix(mark), f"{mark}{path}"] if is_text else [path]
    for way in {"kohya": ("kohya", "kohya, diffusers"), "original": ("original", "diffusers")}.get(scheme, (scheme,)):
        if (part, way) not in tables:
            tables[part, way] = _table(network, part, way)
        for form in forms:
            if form in tables[part, way]:
                return tables[part, way][form], way
    return None, scheme


def _lacking(path: Path, name: str, kind: Kind, found: Mapping[str, Names]) -> MapoError:
    family = family_of(found)
    seems = f" It seems to be a LoRA of {family}." if family else ""
    return MapoError(f"{path} has the layer {name}, which {kind.model} lacks.{seems} {kind.remedy}")


# ---------------------------------------------------------------------- how strong a layer is


def _alphas(path: Path, tensors: Tensors, kind: Kind) -> dict[str, Any]:
    """Diffusers' own settings of a LoRA, such as ``unet.lora_alpha``; empty where the file has none."""
    if METADATA not in tensors.metadata:
        return {}
    try:
        found = json.loads(tensors.metadata[METADATA])
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise MapoError(f"{path} has {METADATA} that cannot be read ({reason(error)}). {kind.remedy}") from None
    if part := next((key for key, value in found.items() if key.endswith(".use_dora") and value), ""):
        raise MapoError(f"{path} says {part}: it is a DoRA, which is not read. {kind.remedy}")
    if found and (alpha := next((name for name in tensors.names if name.endswith(".alpha")), "")):
        raise MapoError(f"{path} says its alpha twice, in {METADATA} and in {alpha}. {kind.remedy}")
    return found


def _alpha(settings: Mapping[str, Any], part: str, module: str, rank: int) -> float:
    """The alpha that diffusers' settings give a layer; the rank where they say nothing."""
    alpha = _of_pattern(settings.get(f"{part}.alpha_pattern"), module, settings.get(f"{part}.lora_alpha"))
    if alpha is None:
        return float(rank)
    return float(alpha) * (math.sqrt(rank) if settings.get(f"{part}.use_rslora") else 1.0)  # peft: alpha / √rank


def _of_pattern(patterns: Any, module: str, otherwise: Any) -> Any:
    """What peft takes for a module: patterns are ends of names."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        names = (module, f"text_model.{module}", module.removeprefix("text_model."))
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
            return value
    return otherwise


# ---------------------------------------------------------------------- matrices


def _records(
    path: Path, name: str, entry: Names, tensors: Tensors, part: str, layer: Original,
    settings: Mapping[str, Any], kind: Kind,
) -> list[Layer]:  # fmt: skip
    """A layer of a file as one record, or as several where it is one there that diffusers has in pieces."""
    down, up = _in_shape(
        _numbers(path, entry.down, tensors, kind), _numbers(path, entry.up, tensors, kind), layer.shape
    )
    rank = len(down) if down.ndim else 0
    if rank and up.ndim > 1 and up.shape[1] != rank:
        raise MapoError(
            f"{path} is damaged: {name} is of rank {rank} by its down matrix, and of rank {up.shape[1]} by its up "
            f"matrix. {kind.remedy}"
        )
    if not rank or down.ndim < 2 or up.ndim < 2:
        raise MapoError(
            f"{path} is damaged: {name} has matrices of the shapes {list(down.shape)} and {list(up.shape)}, of which "
            f"no layer can be made. {kind.remedy}"
        )
    is_odd = up.ndim != len(layer.shape) or any(side != 1 for side in up.shape[2:])
    if is_odd or (down.shape[1:], up.shape[:1], up.shape[1:2]) != (layer.shape[1:], layer.shape[:1], down.shape[:1]):
        family = family_of([name])
        raise MapoError(
            f"{path} does not fit {kind.model}: {name} has another size ({' × '.join(map(str, up.shape[:1]))} by "
            f"{' × '.join(map(str, down.shape[1:]))}, not {' × '.join(map(str, layer.shape))}). "
            f"{f'It may be a LoRA of {family}. ' if family else ''}{kind.remedy}"
        )
    said = tensors.get(entry.alpha) if entry.alpha else torch.zeros(())
    if said.numel() != 1 or not math.isfinite(alpha := float(said)):
        raise MapoError(f"{path}: the alpha of {name} is not a finite number. {kind.remedy}")
    if layer.change is Change.SWAPPED:
        up = torch.cat(up.chunk(2)[::-1])
    sizes = [shape[0] for _, shape in layer.parts]
    pieces = _in_pieces(down, up, sizes)
    found = []
    for (weight, _), (own_down, own_up) in zip(layer.parts, pieces, strict=True):
        if not len(own_down):
            continue  # a LoRA of q and v alone
        module = weight.removesuffix(".weight")
        try:
            whole = _alpha(settings, part, module, rank) if settings else alpha or float(rank)
            if not math.isfinite(whole):
                raise ValueError(f"the alpha of {module} is not finite")
        except (TypeError, ValueError, re.error) as error:
            raise MapoError(f"{path} has {METADATA} that cannot be read ({reason(error)}). {kind.remedy}") from None
        found.append(Layer(part, module, own_down, own_up, whole * len(own_down) / rank))
    return found


def _numbers(path: Path, name: str, tensors: Tensors, kind: Kind) -> Tensor:
    """A matrix of a layer; MapoError where its numbers are whole ones, or not all finite."""
    found = tensors.get(name)
    if not found.is_floating_point():
        raise MapoError(f"{path} holds {name} in whole numbers ({found.dtype}), as no LoRA has them. {kind.remedy}")
    if found.element_size() == 1:  # 8 bits, in which nothing can be computed
        found = found.float()
    if not found.is_meta and not is_finite(found):
        raise MapoError(f"{path} is damaged: {name} has numbers that are not finite. {kind.remedy}")
    return found


def _in_shape(down: Tensor, up: Tensor, weight: Shape) -> tuple[Tensor, Tensor]:
    """Both matrices of a linear layer as "r i" and "o r"; those of a convolution with their two sides more."""
    if len(weight) == 2 and down.shape[2:] == (1, 1) and up.shape[2:] == (1, 1):
        return down[..., 0, 0], up[..., 0, 0]
    if len(weight) == 4:
        return down if down.ndim == 4 else down[..., None, None], up if up.ndim == 4 else up[..., None, None]
    return down, up


def _in_pieces(down: Tensor, up: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    """The matrices of several layers that are one in the file, one behind the other.

    Each has the whole ``down``. Where each uses rows of it that no other uses, as in LoRAs that were put together of
    several, it has these alone, which may be none.
    """
    ups = list(torch.split(up, sizes))
    if len(sizes) == 1 or up.is_meta:
        return [(down, piece) for piece in ups]
    used = torch.stack([piece.any(0) for piece in ups])  # "pieces r"
    shares = torch.eye(len(sizes), dtype=torch.bool).repeat_interleave(len(down) // len(sizes), 1)
    if len(shares[0]) == len(down) and not (used & ~shares).any():
        used = shares  # of equal ranks, whatever is still zero in them
    elif (used.sum(0) != 1).any():
        return [(down, piece) for piece in ups]
    return [(down[rows], piece[:, rows]) for rows, piece in zip(used, ups, strict=True)]
