"""Names of layers and tensors in the files that models were first published in, and diffusers' names of the same.

Other programs read and write single files by these original names (the CompVis and Stability "SGM" names of UNets and
VAEs, OpenCLIP's, those of Stable Diffusion 3 and of FLUX). A place says where a layer of diffusers lies there. Several
layers may lie in one, such as q, k and v; some tensors are turned. Everything is worked out from the numbers of blocks
and layers in a part's configuration, so it holds for models of any size. The names agree with those of published files,
which the tests compare one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Change(Enum):
    """How a tensor differs between diffusers and an original file. Each is its own way back."""

    NONE = "none"
    TRANSPOSED = "transposed"
    SWAPPED = "swapped"  # the halves along the first axis: scale and shift
    CONVOLUTION = "convolution"  # "o i" here, "o i 1 1" there


@dataclass(frozen=True)
class Place:
    """Where a layer of diffusers lies in an original file."""

    layer: str
    index: int = 0  # its place among the layers that are one there, such as q, k and v
    change: Change = Change.NONE  # of the weight
    tensor: str = ".{}"  # what follows for the tensor "weight" or "bias"

    def name(self, leaf: str) -> str:
        """The name of the layer's tensor ``leaf``, "weight" or "bias"."""
        return self.layer + self.tensor.format(leaf)


Placing = Callable[[str], Place | None]  # the path of a layer in diffusers; None: the file does not hold it


@dataclass(frozen=True)
class Original:
    """One tensor of an original file, and the tensors of diffusers that it holds one behind the other."""

    name: str
    shape: Shape
    parts: tuple[tuple[str, Shape], ...]  # diffusers' names and shapes
    change: Change = Change.NONE

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor as the file has it, from those of diffusers in the order of ``parts``."""
        whole = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
        return self._turned(whole).reshape(self.shape)

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Diffusers' tensors, by name, from that of the file; views where nothing is turned."""
        if self.change is not Change.CONVOLUTION:
            tensor = self._turned(tensor)
        if len(self.parts) == 1:
            name, shape = self.parts[0]
            return {name: tensor.reshape(shape)}
        pieces = torch.split(tensor, [shape[0] for _, shape in self.parts])
        return {name: piece for (name, _), piece in zip(self.parts, pieces, strict=True)}

    def _turned(self, tensor: Tensor) -> Tensor:
        if self.change is Change.TRANSPOSED:
            return tensor.T.contiguous()
        if self.change is Change.SWAPPED:
            first, second = tensor.chunk(2)
            return torch.cat([second, first])
        return tensor


def originals(placing: Placing, shapes: Mapping[str, Shape], prefix: str = "") -> dict[str, Original]:
    """All tensors of a part in an original file, by name. ``shapes`` are diffusers' tensors, such as an outline's."""
    found: dict[str, dict[int, tuple[str, Shape]]] = {}
    changes: dict[str, Change] = {}
    for ours, shape in shapes.items():
        layer, _, leaf = ours.rpartition(".")
        place = placing(layer)
        if place is None:
            continue
        name = prefix + place.name(leaf)
        found.setdefault(name, {})[place.index] = (ours, shape)
        turned = leaf == "weight" or place.change is Change.SWAPPED
        changes[name] = place.change if turned else Change.NONE
    return {name: _original(name, found[name], changes[name]) for name in found}


def _original(name: str, pieces: Mapping[int, tuple[str, Shape]], change: Change) -> Original:
    parts = tuple(pieces[index] for index in sorted(pieces))
    shape = (sum(shape[0] for _, shape in parts), *parts[0][1][1:]) if len(parts) > 1 else parts[0][1]
    if change is Change.TRANSPOSED:
        shape = shape[::-1]
    if change is Change.CONVOLUTION:
        shape = (*shape, 1, 1)
    return Original(name, shape, parts, change)


# ---------------------------------------------------------------------- UNet

UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.(.+))?")


def unet_layer(path: str, config: Mapping[str, Any]) -> str:
    """The path of a UNet's layer in diffusers → its SGM path. ``config`` is the UNet's, with all values.

    ``down_blocks.1.attentions.0.proj_in`` → ``input_blocks.4.1.proj_in`` for SDXL.
    """
    if path in UNET_ENDS:
        return UNET_ENDS[path]
    if path.startswith("mid_block."):
        _, part, place, *inner = path.split(".")
        return _joined(UNET_MIDDLE[f"{part}.{place}"], UNET_RESNET if part == "resnets" else {}, ".".join(inner))
    match = BLOCK.fullmatch(path)
    if not match:
        raise KeyError(f"a UNet as it was published has no layer for {path}")
    side, kind, rest = match[1], match[3], match[5] or ""
    block, number = int(match[2]), int(match[4])
    start = _first_layer(config, side, block)
    if kind in ("resnets", "attentions"):
        where = f"{_blocks(side)}.{start + number}.{int(kind == 'attentions')}"
        return _joined(where, UNET_RESNET if kind == "resnets" else {}, rest)
    if kind == "downsamplers":
        return f"input_blocks.{start + _layers(config, side, block)}.0.op"
    last = start + _layers(config, side, block) - 1
    behind = 1 + ("CrossAttn" in config["up_block_types"][block])
    return f"output_blocks.{last}.{behind}.{rest}"


def unet_placing(config: Mapping[str, Any]) -> Placing:
    """The placing of UNet2DConditionModel with this configuration, of Stable Diffusion 1, 2 and XL."""
    return lambda path: Place(unet_layer(path, config))


def _blocks(side: str) -> str:
    return "input_blocks" if side == "down" else "output_blocks"


def _layers(config: Mapping[str, Any], side: str, block: int) -> int:
    """The resnets of a block; those on the way up have one more."""
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        layers = layers[block] if side == "down" else layers[::-1][block]
    return int(layers) + (side == "up")


def _first_layer(config: Mapping[str, Any], side: str, block: int) -> int:
    """The number of a block's first layer. On the way down conv_in is 0 and a halving follows each block."""
    before = sum(_layers(config, side, earlier) for earlier in range(block))
    return before + 1 + block if side == "down" else before


def _joined(place: str, names: Mapping[str, str], rest: str) -> str:
    return f"{place}.{names.get(rest, rest)}" if rest else place


# ---------------------------------------------------------------------- VAE

VAE_ENDS = {"conv_norm_out": "norm_out"}
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
VAE_BLOCK = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")


def vae_placing(config: Mapping[str, Any]) -> Placing:
    """The placing of AutoencoderKL. Its attention is made of 1 × 1 convolutions there."""
    last = len(config["block_out_channels"]) - 1

    def place(path: str) -> Place:
        half, _, rest = path.partition(".")
        if rest.startswith("mid_block."):
            _, kind, number, inner = rest.split(".", 3)
            names = VAE_ATTENTION if kind == "attentions" else VAE_RESNET
            is_square = kind == "attentions" and inner != "group_norm"
            where = f"{half}.mid.{VAE_MIDDLE[f'{kind}.{number}']}.{names.get(inner, inner)}"
            return Place(where, change=Change.CONVOLUTION if is_square else Change.NONE)
        if match := VAE_BLOCK.fullmatch(path):
            side, kind, number, inner = match[2], match[4], match[5], match[6]
            block = int(match[3]) if side == "down" else last - int(match[3])
            if kind == "resnets":
                return Place(f"{half}.{side}.{block}.block.{number}.{VAE_RESNET.get(inner, inner)}")
            return Place(f"{half}.{side}.{block}.{kind.removesuffix('rs')}.{inner}")
        return Place(f"{half}.{VAE_ENDS.get(rest, rest)}" if rest else half)

    return place


# ---------------------------------------------------------------------- text encoders

OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
QKV = {"q": 0, "k": 1, "v": 2}


def clip_placing(path: str) -> Place:
    """Of a CLIP text encoder as transformers 4 named it. transformers 5 left out ``text_model.`` in one class."""
    return Place(path if path == "text_projection" else f"text_model.{path.removeprefix('text_model.')}")


def open_clip_placing(path: str) -> Place:
    """Of a CLIP text encoder as OpenCLIP has it: q, k and v in one, the projection transposed."""
    path = path.removeprefix("text_model.")
    if path == "embeddings.token_embedding":
        return Place("token_embedding")
    if path == "embeddings.position_embedding":
        return Place("positional_embedding", tensor="")
    if path == "text_projection":
        return Place("text_projection", change=Change.TRANSPOSED, tensor="")
    if path == "final_layer_norm":
        return Place("ln_final")
    _, _, number, layer = path.split(".", 3)
    block = f"transformer.resblocks.{number}"
    if layer in OPEN_CLIP_LAYER:
        return Place(f"{block}.{OPEN_CLIP_LAYER[layer]}")
    return Place(f"{block}.attn.in_proj", QKV[layer.removeprefix("self_attn.")[0]], tensor="_{}")


def t5_placing(path: str) -> Place | None:
    """Of T5's encoder, whose table of words stands in the file once, as ``shared``."""
    return None if path == "encoder.embed_tokens" else Place(path)


# ---------------------------------------------------------------------- transformers

SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder", "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}  # fmt: skip
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k", "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
}  # fmt: skip
ATTENTION = re.compile(r"(attn2?)\.(?:to_([qkv])|add_([qkv])_proj)")


def sd3_placing(config: Mapping[str, Any]) -> Placing:
    """The placing of SD3Transformer2DModel. Where scale and shift come last, they come the other way round."""
    last = config["num_layers"] - 1

    def place(path: str) -> Place:
        if path == "pos_embed":
            return Place("pos_embed", tensor="")
        if path in SD3_ENDS:
            return Place(SD3_ENDS[path])
        if path == "norm_out.linear":
            return Place("final_layer.adaLN_modulation.1", change=Change.SWAPPED)
        _, number, layer = path.split(".", 2)
        block = f"joint_blocks.{number}"
        if match := ATTENTION.fullmatch(layer):
            half = "x_block" if match[2] else "context_block"
            return Place(f"{block}.{half}.{match[1]}.qkv", QKV[match[2] or match[3]])
        is_swapped = layer == "norm1_context.linear" and int(number) == last
        return Place(f"{block}.{SD3_BLOCK[layer]}", change=Change.SWAPPED if is_swapped else Change.NONE)

    return place


FLUX_ENDS = {
    "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
}  # fmt: skip
FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
}  # fmt: skip
FLUX_SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
FLUX_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
}  # fmt: skip
FLUX_SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}


def flux_placing(path: str) -> Place:
    """Of FluxTransformer2DModel. A single block has q, k, v and the first layer of its MLP in one."""
    if path in FLUX_ENDS:
        return Place(FLUX_ENDS[path])
    if path == "norm_out.linear":
        return Place("final_layer.adaLN_modulation.1", change=Change.SWAPPED)
    kind, number, layer = path.split(".", 2)
    is_double = kind == "transformer_blocks"
    block = f"{'double' if is_double else 'single'}_blocks.{number}"
    norms, names = (FLUX_NORMS, FLUX_DOUBLE) if is_double else (FLUX_SINGLE_NORMS, FLUX_SINGLE)
    if layer in norms:
        return Place(f"{block}.{norms[layer]}", tensor=".scale")
    match = ATTENTION.fullmatch(layer)
    if match and is_double:
        return Place(f"{block}.{'img' if match[2] else 'txt'}_attn.qkv", QKV[match[2] or match[3]])
    if match or layer == "proj_mlp":
        return Place(f"{block}.linear1", QKV[match[2]] if match else 3)
    return Place(f"{block}.{names[layer]}")


def denoiser_placing(kind: str, config: Mapping[str, Any]) -> Placing:
    """The placing of a denoiser of diffusers' class ``kind``; KeyError where no original file has one."""
    makers: dict[str, Callable[[Mapping[str, Any]], Placing]] = {
        "UNet2DConditionModel": unet_placing, "SD3Transformer2DModel": sd3_placing,
        "FluxTransformer2DModel": lambda _: flux_placing,
    }  # fmt: skip
    return makers[kind](config)


def shapes_of(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Shape]:
    """The shapes of a network's tensors, by name: ``shapes_of(network.state_dict().items())``."""
    return {name: tuple(tensor.shape) for name, tensor in tensors}
