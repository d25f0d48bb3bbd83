"""The weights of a part of a model: which file holds them, reading them, and what to say where they cannot be read."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mapo.errors import MapoError, is_out_of_memory, reason
from mapo.models.parts.config import again, read_config
from mapo.models.parts.eight_bits import refuse_quantized, tell_eight_bits
from mapo.models.parts.header import TAKE_WHOLE, read_header
from mapo.texts import parse_json

WEIGHTS = re.compile(
    r"(?P<name>model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?(\.(?P<variant>\w+?))?(-\d{5}-of-\d{5})?\.safetensors"
)
CLIP = "text_model."
LIBRARIES = ("diffusers", "transformers", "huggingface_hub")


def variant_of(folder: Path) -> str | None:
    """The variant of a part's weights, such as "fp16", where there are no others; else None."""
    found = {match["variant"] for file in folder.glob("*.safetensors") if (match := WEIGHTS.fullmatch(file.name))}
    if None in found or not found:
        return None
    return "fp16" if "fp16" in found else min(v for v in found if v)


def variant_read(folder: Path, asked: str | None = None) -> str | None:
    """The variant that is loaded of a part's weights: the one that is ``asked`` for, where the part has it."""
    return asked if asked and any(folder.glob(f"*.{asked}*.safetensors")) else variant_of(folder)


def variants(base: Path, parts: tuple[str, ...]) -> dict[str, str]:
    """The parts of which there is only a variant, with its name."""
    return {part: variant for part in parts if (variant := variant_of(base / part))}


def refuse_pickles(base: Path, part: str) -> None:
    """MapoError where the weights of a part are there only as pickles, which can run code when they are opened."""
    folder = base / part
    pickles = sorted(f.name for f in folder.glob("*") if f.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise MapoError(
            f"{folder} has its weights only as {pickles[0]}. Such a file can run code when it is opened, so it is not "
            "read. If you trust it, write the model anew as safetensors: "
            f'DiffusionPipeline.from_pretrained("{base}", use_safetensors=False).save_pretrained("NEW FOLDER").'
        )


def load_part(kind: Any, base: Path, part: str, dtype: Any = torch.float32, variant: str | None = None) -> Any:
    """The network of a part with its weights, as the class ``kind`` loads them; MapoError where that fails.

    Where the part has no such ``variant`` of them, it is the usual one.
    """
    files = check_weights(base, part, variant)
    how = {"dtype": dtype, "use_safetensors": True, "variant": variant_read(base / part, variant)}
    try:
        with quietly():
            network, report = kind.from_pretrained(base, subfolder=part, output_loading_info=True, **how)
    except Exception as error:
        if misfit := _misfit(kind, base, part, files):
            raise MapoError(misfit) from None
        raise not_whole(base, part, error) from None
    if lacking := sorted(report["missing_keys"]):
        are = "tensor is" if len(lacking) == 1 else "tensors are"
        raise MapoError(
            f"The model folder {base} is not whole: the weights of {part} lack {lacking[0]} "
            f"({len(lacking)} {are} missing). {again(base)}"
        )
    return network


@functools.lru_cache(maxsize=32)
def outline_of(kind: Any, config: str) -> Any:
    """A network of the class ``kind`` without weights, from its configuration in JSON."""
    values = json.loads(config)
    with quietly(), torch.device("meta"):
        return kind.from_config(values) if hasattr(kind, "from_config") else kind(kind.config_class(**values))


def check_weights(base: Path, part: str, variant: str | None = None) -> list[Path]:
    """The files of a part's weights; MapoError where one lacks, is cut off or quantized. Only their heads are read."""
    refuse_pickles(base, part)
    variant = variant_read(base / part, variant)
    index_name = f"*.safetensors.index.{variant}.json" if variant else "*.safetensors.index.json"
    files = [file for file in sorted((base / part).glob("*.safetensors")) if WEIGHTS.fullmatch(file.name)]
    try:
        for index in (base / part).glob(index_name):
            named = _names_in(index, base)
            if absent := [name for name in named if not (base / part / name).exists()]:
                raise MapoError(
                    f"The model folder {base} is not whole: {part} has no {absent[0]}, which {index.name} names. "
                    f"{again(base)}"
                )
            files += [base / part / name for name in named]
        for file in files:
            with safe_open(file, "pt"):
                pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise not_whole(base, part, error) from None
    if not files:
        raise MapoError(f"The model folder {base} is not whole: {part}/ has no weights. {again(base)}")
    if not _is_quantized(base / part):  # else the library knows how they are meant
        for file in dict.fromkeys(files):
            match = WEIGHTS.fullmatch(file.name)
            if not match or match["variant"] == variant:
                header = read_header(file, again(base))
                refuse_quantized(header)
                tell_eight_bits(header)
    return files


def _names_in(index: Path, base: Path) -> list[str]:
    """The files that an index of weights names, which have to lie beside it."""
    whole = f"The model folder {base} is not whole: {index.relative_to(base)}"
    try:
        named: Any = sorted(set(parse_json(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError) as error:
        raise MapoError(f"{whole} cannot be read ({reason(error)}). {again(base)}") from None
    except (KeyError, TypeError, AttributeError):
        raise MapoError(f"{whole} does not say which file each tensor is in. {again(base)}") from None
    for name in named:
        if not isinstance(name, str) or Path(name).name != name:
            raise MapoError(f"{whole} names {name!r}, which is not a file beside it. {again(base)}")
    return named  # type: ignore[no-any-return]


def _misfit(kind: Any, base: Path, part: str, files: Sequence[Path]) -> str:
    """A sentence on the first tensor that is not of the shape that the configuration asks for, where there is one."""
    try:
        config = json.dumps(read_config(base, f"{part}/config.json"))
        wanted = {name: tuple(tensor.shape) for name, tensor in outline_of(kind, config).state_dict().items()}
        found = {name: held.shape for file in files for name, held in read_header(file).tensors.items()}
    except Exception:
        return ""
    for name, shape in found.items():
        for own in (
            name,
            name.removeprefix(CLIP),
            f"{CLIP}{name}",
        ):  # versions of transformers write it or leave it out
            if wanted.get(own, shape) != shape:
                return (
                    f"The model folder {base} is not whole: {name} of {part} has the shape {list(shape)}, and by its "
                    f"config.json it has {list(wanted[own])}. {again(base)}"
                )
    return ""


def not_whole(base: Path, part: str, error: Exception) -> MapoError:
    """What to say where a library could not load a part: which file is to blame, or else the library's words.

    That memory ran out is raised as it is: the folder is not to blame.
    """
    if is_out_of_memory(error):
        raise error
    damaged = _damaged(base, part)
    if not damaged and _is_quantized(base / part):
        return MapoError(f"The {part} of {base} is quantized and cannot be loaded ({reason(error)}). {TAKE_WHOLE}")
    why = damaged or f" ({reason(error)}). {again(base)}"
    return MapoError(f"The model folder {base} is not whole: {part} cannot be loaded{why}")


def _is_quantized(folder: Path) -> bool:
    try:
        return "quantization_config" in read_config(folder.parent, f"{folder.name}/config.json")
    except MapoError:
        return False


def not_loaded(base: Path, error: Exception) -> MapoError:
    """The same of a whole pipeline."""
    if is_out_of_memory(error):
        raise error
    damaged = _damaged(base, "*")
    if isinstance(error, OSError) and not damaged:  # a file may not be there: a network has a config.json, and weights
        for config in sorted(base.glob("*/config.json")):
            try:
                check_weights(base, config.parent.name)
            except MapoError as told:
                return told
    return MapoError(f"The model folder {base} cannot be loaded{damaged or f' ({reason(error)}). {again(base)}'}")


def _damaged(base: Path, parts: str) -> str:
    """Which file of weights in some parts is not whole, as the end of a sentence; empty where all are."""
    for file in sorted(base.glob(f"{parts}/*.safetensors")):
        try:
            read_header(file, again(base))
        except MapoError as told:
            return f", as {told}"
    return ""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, the libraries log nothing: where a part cannot be loaded, our sentence stands alone."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
