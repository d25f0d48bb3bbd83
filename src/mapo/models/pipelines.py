"""Any text-to-image pipeline that diffusers opens: what its call takes, how it is sampled, what its encoders cut off.

Only training needs a family; making pictures does not.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from torch import nn

from mapo.errors import MapoError, count
from mapo.models import ModelFiles, is_of_a_family, open_model, other_kind, read_config
from mapo.models.families.tokens import check_tokenizer_files
from mapo.models.family import SMALL
from mapo.models.files import MOST_TOKENS
from mapo.models.parts.config import again
from mapo.models.parts.kinds import INDEX_ENTRY, SIDES, SIZES, check_kinds
from mapo.models.parts.tensors import check_finite, is_finite
from mapo.models.parts.weights import load_part, not_loaded, quietly, refuse_pickles, variants

GUIDED_ABOVE = {  # from where on a pipeline looks at the negative prompt
    "StableDiffusionXLPipeline": 1.0, "StableDiffusionPipeline": 1.0, "StableDiffusion3Pipeline": 1.0,
    "ZImagePipeline": 0.0,
}  # fmt: skip
PARTS = ("unet", "transformer", "vae")
LIBRARIES = ("diffusers", "transformers")  # whose classes a pipeline is made of


def pipeline_class(model: ModelFiles) -> tuple[str, Any]:
    """The name and the class of a model folder's pipeline; refused where it makes no pictures from text alone."""
    import diffusers

    name = model.pipeline_class
    kind = getattr(diffusers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise MapoError(
            f"{model.name} is a {name or 'pipeline without a class'}, which this diffusers does not know. "
            f"{_how_to_know(name, kind)}"
        )
    if told := other_kind(model):
        raise MapoError(told)
    taken = accepts(kind)
    if "prompt" not in taken or taken.keys() & {"image", "num_frames", "video", "audio_length_in_s"}:
        raise MapoError(f"{model.name} is a {name}, which does not make pictures from text alone.")
    return name, kind


def _how_to_know(name: str, kind: Any) -> str:
    """What to do where the class of a pipeline is not there: diffusers stands in for one that lacks a package."""
    import diffusers

    if not name:
        return "Its model_index.json has to name the class of the pipeline, as _class_name."
    needs = getattr(kind, "_backends", [])
    if needs:
        return f"It needs packages that are not all installed: {', '.join(needs)}. Install them, or give another model."
    return f"Version {diffusers.__version__} is installed; install one that has it, or give another model."


def accepts(kind: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a pipeline's call."""
    return dict(inspect.signature(kind.__call__).parameters)


def has_true_cfg(model: ModelFiles) -> bool:
    """Whether a model is guided by what it predicts for the negative prompt though its pipeline is not by itself.

    That is a FLUX.1 whose distillation was undone.
    """
    if model.pipeline_class != "FluxPipeline" or not model.called_undone():
        return False
    return not model.config("transformer").get("guidance_embeds")


def check_negative_prompt(model: ModelFiles, kind: Any, words: str) -> None:
    """MapoError where the pipeline would pass over a negative prompt without a word."""
    taken = accepts(kind)
    if not words or has_true_cfg(model):
        return
    name = kind.__name__
    if "negative_prompt" not in taken:
        raise MapoError(f"{model.name} is a {name}, which takes no negative prompt. Leave --negative-prompt out.")
    true_scale = taken.get("true_cfg_scale")
    if true_scale is not None and isinstance(true_scale.default, int | float) and true_scale.default <= 1:
        raise MapoError(
            f"{model.name} is a {name}. Its guidance is built into the model and knows no negative prompt, so it would "
            "be passed over. Leave --negative-prompt out."
        )


def no_effect_told(model: ModelFiles, pipeline: Any, guidance: float, negative_prompt: str) -> list[str]:
    """A sentence where the pipeline does not look at the guidance, or at the negative prompt as that is too little."""
    name, is_compared = type(pipeline).__name__, has_true_cfg(model)
    if guidance and name == "FluxPipeline" and not (is_compared or pipeline.transformer.config.guidance_embeds):
        return [f"The model has no guidance embedding, so --guidance {guidance:g} (--cfg) has no effect."]
    least = 1.0 if is_compared else GUIDED_ABOVE.get(name, -1.0)
    if not negative_prompt or guidance > least:
        return []
    return [f"With guidance {guidance:g} the negative prompt has no effect; it needs one above {least:g} (--cfg)."]


def _side(model: ModelFiles) -> int:
    """The side in pixels of a pipeline that is of no family: its network's sample size times pixels per latent."""
    known = {
        p: read_config(model.base, f"{p}/config.json") for p in PARTS if (model.base / p / "config.json").is_file()
    }
    for part, config in known.items():
        asked = dict.fromkeys(("block_out_channels", "encoder_block_out_channels"), SIZES) if part == "vae" else {}
        check_kinds(model.base / part / "config.json", config, asked or {"sample_size": SIDES})
    size: Any = next((c["sample_size"] for p, c in known.items() if p != "vae" and c.get("sample_size")), 128)
    vae = known.get("vae", {})
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [1]
    return int(size if isinstance(size, int) else size[-1]) << len(blocks) - 1


def advice(model: ModelFiles, kind: Any) -> dict[str, Any]:
    """Steps, guidance and side as the model folder (``sampling.json``), its family, or its pipeline's class says."""
    if is_of_a_family(model):
        opened = open_model(model, to_train=False)
        side, values = opened.layout.side, dict(opened.advised_sampling)
    else:
        side, defaults = _side(model), {key: parameter.default for key, parameter in accepts(kind).items()}
        values = {"steps": defaults.get("num_inference_steps") or 30, "guidance": defaults.get("guidance_scale") or 0.0}
    advised = {key: value for key, value in model.sampling.items() if key != MOST_TOKENS}
    return {"width": side, "height": side, "images_per_batch": 32 if side <= SMALL else 4, **values, **advised}


def open_pipeline(model: ModelFiles, device: Any, dtype: Any) -> Any:
    """The pipeline of a model: its family's, else as diffusers opens the folder; weights from safetensors only."""
    name, kind = pipeline_class(model)
    for part, made in read_config(model.base, "model_index.json").items():
        if isinstance(made, list) and made and str(made[-1]).startswith("CLIPTokenizer"):
            check_tokenizer_files(model.base, part)
    if is_of_a_family(model):
        _check_parts(model, name, kind)
        return open_model(model, to_train=False).pipeline(device, dtype)
    if model.loras:
        raise MapoError(f"--lora: {model.name} is a {name}, of which no layers of LoRAs are known. Leave it out.")
    model.refuse_clip_skip(name)
    model.refuse_chunks(name)
    if model.vae or model.prediction:
        raise MapoError(f"--vae and --prediction are for models that can be trained; {model.name} is a {name}.")
    _check_parts(model, name, kind)
    parts = tuple(config.parent.name for config in sorted(model.base.glob("*/config.json")))
    for part in parts:
        refuse_pickles(model.base, part)
    variant = model.variant or next(iter(variants(model.base, parts).values()), None)
    loaded = {part: load_part(made, model.base, part, dtype, model.variant) for part, made in _networks(model, parts)}
    try:
        with quietly():
            made = kind.from_pretrained(model.base, dtype=dtype, use_safetensors=True, variant=variant, **loaded)
    except Exception as error:
        raise not_loaded(model.base, error) from None
    for part, network in made.components.items():
        if isinstance(network, nn.Module):
            check_finite(network, part, model.name)
    made.set_progress_bar_config(disable=True)
    with quietly():
        return made.to(device)


def _check_parts(model: ModelFiles, name: str, kind: Any) -> None:
    """MapoError where ``model_index.json`` lacks a part of the pipeline, or names one's class that is not there."""
    index = read_config(model.base, "model_index.json")
    needed = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty]
    may_lack = {"self", "args", "kwargs", *getattr(kind, "_optional_components", ())}
    path = model.base / "model_index.json"
    if lacking := [part for part in needed if part not in index and part not in may_lack]:
        raise MapoError(
            f"{path} names no {' and no '.join(lacking)}, which a {name} has: it is not the whole model, or one of "
            f"another kind. {again(model.base)}"
        )
    for part, made in index.items():
        library, wanted = made if INDEX_ENTRY.fits(made) and part not in may_lack else ("", "")
        if library in LIBRARIES and not hasattr(import_module(library), wanted):
            raise MapoError(
                f"{path} says that its {part} is a {wanted}, which this {library} does not know. Version "
                f"{version(library)} is installed; install one that has it, or give another model."
            )


def _networks(model: ModelFiles, parts: Sequence[str]) -> list[tuple[str, Any]]:
    """Those of ``parts`` that are networks of the libraries, with their classes: loading one says what it lacks."""
    index = read_config(model.base, "model_index.json")
    found = []
    for part in parts:
        made: Any = index.get(part)
        library, name = map(str, made) if INDEX_ENTRY.fits(made) else ("", "")
        kind = getattr(import_module(library), name, None) if library in LIBRARIES else None
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            found.append((part, kind))
    return found


@contextlib.contextmanager
def black_pictures_refused(pipeline: Any, model: str) -> Iterator[None]:
    """Inside, MapoError where latents or what the VAE makes of them are not finite: the pictures would be black."""
    vae: Any = getattr(pipeline, "vae", None)
    real: Any = getattr(vae, "decode", None)

    def decode(latents: Any, *given: Any, **named: Any) -> Any:
        found = real(latents, *given, **named)
        made = next((n for n, v in (("denoiser", latents), ("VAE", found[0])) if not is_finite(v)), "")
        if made:
            dtype = str(latents.dtype).removeprefix("torch.")
            wider = " Try --precision float32." if dtype != "float32" else " Its weights may be damaged."
            raise MapoError(f"The {made} of {model} gave numbers that are not finite in {dtype}.{wider}")
        return found

    if real is not None:
        vae.decode = decode
    try:
        yield
    finally:
        if real is not None:
            del vae.decode


def _tokenizers(pipeline: Any) -> list[tuple[Any, int]]:
    """Each tokenizer of a pipeline, with the number of tokens that its encoder reads (1e30 stands for no limit)."""
    room = accepts(type(pipeline)).get("max_sequence_length")
    there = [t for t in (getattr(pipeline, f"tokenizer{n}", None) for n in ("", "_2", "_3", "_4")) if t is not None]
    found = []
    for tokenizer in {id(t): t for t in there}.values():
        most = tokenizer.model_max_length
        if room and isinstance(room.default, int) and most > 77:
            most = min(most, room.default)
        found.append((tokenizer, most))
    return found


def too_long(pipeline: Any, texts: Sequence[str]) -> dict[str, int]:
    """The texts of which every text encoder of the pipeline cuts the end off, with the number of tokens cut."""
    excess: dict[str, int] = {}
    for number, (tokenizer, most) in enumerate(_tokenizers(pipeline) if texts else ()):
        ids = tokenizer(list(texts), verbose=False).input_ids
        over = {t: len(i) - most for t, i in zip(texts, ids, strict=True) if len(i) > most}
        excess = over if number == 0 else {t: min(n, excess[t]) for t, n in over.items() if t in excess}
    return excess


def prompts_cut(pipeline: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts that are longer than the text encoders read, the longest first."""
    excess = too_long(pipeline, list(dict.fromkeys(prompts)))
    return sorted(excess, key=lambda prompt: -excess[prompt])


def cuts_told(pipeline: Any, prompts: Mapping[str, str], negative_prompt: str = "") -> list[str]:
    """A sentence on the prompts that are cut, where some are, and one on the negative prompt.

    ``prompts`` are those of the user, with what the text encoders are given of each.
    """
    cut = prompts_cut(pipeline, list(prompts.values()))
    most = max((most for _, most in _tokenizers(pipeline)), default=0)
    told = []
    if cut:
        longest = next(prompt for prompt, full in prompts.items() if full == cut[0])
        shown = longest if len(longest) <= 60 else f"{longest[:59].rstrip()}…"
        are = "is" if len(cut) == 1 else "are"
        told.append(
            f"{len(set(prompts.values()) & set(cut))} of {count(len(prompts), 'prompt')} {are} longer than the "
            f"model's {most} "
            f"tokens; what stands behind is not seen. The longest: {shown!r}."
        )
    if negative_prompt and prompts_cut(pipeline, [negative_prompt]):
        told.append(f"The negative prompt is longer than the model's {most} tokens; what stands behind is not seen.")
    return told


@contextlib.contextmanager
def cuts_untold(pipeline: Any) -> Iterator[None]:
    """Inside, the libraries do not repeat each prompt that is too long: :func:`cuts_told` has said it in short."""

    def is_other(record: logging.LogRecord) -> bool:
        return not any(words in str(record.msg) for words in ("was truncated because", "sequence length is longer"))

    modules = {kind.__module__ for kind in type(pipeline).__mro__} | {"transformers.tokenization_utils_base"}
    loggers = [logging.getLogger(name) for name in modules]
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_other)
