"""Fooocus, InvokeAI, SwarmUI and NovelAI: programs that write JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mapo.captions.programs.a1111 import read_a1111
from mapo.captions.programs.told import OddMetadata, ProgramPrompt, as_seed, as_text, first_text, json_object, needed


def read_parameters(text: str, scheme: str | None = None) -> ProgramPrompt | None:
    """What lies under the name ``parameters``: JSON of SwarmUI or Fooocus, or the text of A1111, in this order.

    ``scheme`` is how Fooocus calls the form, which says that it was Fooocus. None for a text of another kind.
    """
    row = json_object(text)
    if row is None:
        told = read_a1111(text)
        return replace(told, program="Fooocus") if told and scheme else told
    swarm = row.get("sui_image_params")
    if isinstance(swarm, dict):
        prompt = needed("SwarmUI", first_text(swarm, "prompt"))
        negative, model = first_text(swarm, "negativeprompt", "negative_prompt"), first_text(swarm, "model")
        return ProgramPrompt("SwarmUI", prompt, negative, as_seed(swarm.get("seed")), model)
    if "prompt" in row and (scheme or not {"full_prompt", "base_model", "metadata_scheme"}.isdisjoint(row)):
        prompt = needed("Fooocus", _joined(row.get("prompt")) or _joined(row.get("full_prompt")))
        negative, model = _joined(row.get("negative_prompt")), first_text(row, "base_model")
        return ProgramPrompt("Fooocus", prompt, negative, as_seed(row.get("seed")), model)
    return None


def _joined(value: object) -> str | None:
    """A text, or the texts of a list."""
    if isinstance(value, list):
        value = ", ".join(part.strip() for part in value if isinstance(part, str) and part.strip())
    return as_text(value)


def read_invoke(fields: Mapping[str, str]) -> ProgramPrompt | None:
    """InvokeAI: ``invokeai_metadata``, and what it wrote before: ``sd-metadata`` and ``Dream``."""
    if (text := fields.get("invokeai_metadata")) is not None:
        row = json_object(text)
        if row is None:
            raise OddMetadata("its invokeai_metadata are not JSON")
        prompt = needed("InvokeAI", first_text(row, "positive_prompt"))
        negative = first_text(row, "negative_prompt")
        return ProgramPrompt("InvokeAI", prompt, negative, as_seed(row.get("seed")), _named(row.get("model")))
    if (text := fields.get("sd-metadata")) is not None:
        row = json_object(text) or {}
        image = row.get("image")
        inner: dict[str, Any] = image if isinstance(image, dict) else row
        prompt, negative = _apart(_spoken(inner.get("prompt")) or "")
        return ProgramPrompt(
            "InvokeAI",
            needed("InvokeAI", prompt),
            negative,
            as_seed(inner.get("seed")),
            as_text(row.get("model_weights")),
        )
    if (text := fields.get("Dream")) is not None:
        said = re.match(r'\s*"((?:[^"\\]|\\.)*)"(.*)', text, re.DOTALL)
        prompt, negative = _apart(said[1] if said else re.split(r"\s-[A-Za-z]", text)[0])
        seed = re.search(r"\s-S\s?(\d{1,20})\b", said[2] if said else text)
        return ProgramPrompt("InvokeAI", needed("InvokeAI", prompt), negative, as_seed(seed[1]) if seed else None)
    return None


def _named(model: object) -> str | None:
    """A model by its name, which one version writes as a text and another into an object."""
    return first_text(model, "name", "model_name", "key") if isinstance(model, dict) else as_text(model)


def _spoken(value: object) -> str | None:
    """A prompt, or the prompts of a list of such as ``{"prompt": "a fox", "weight": 1.0}``."""
    if isinstance(value, list):
        value = [one.get("prompt") if isinstance(one, dict) else one for one in value]
    return _joined(value)


def _apart(prompt: str) -> tuple[str, str | None]:
    """Older InvokeAI has the negative prompt in brackets inside the prompt."""
    negative = re.findall(r"(?<!\\)\[([^\[\]]*)\]", prompt)
    return " ".join(re.sub(r"(?<!\\)\[[^\[\]]*\]", " ", prompt).split()), as_text(", ".join(negative))


def read_novel(fields: Mapping[str, object]) -> ProgramPrompt | None:
    """NovelAI: ``Comment`` is JSON that has the prompt (in version 4 apart from those of characters), or
    ``Description`` is the prompt. None where it is not NovelAI's."""
    comment = fields.get("Comment")
    row = comment if isinstance(comment, dict) else json_object(comment) if isinstance(comment, str) else None
    software = str(fields.get("Software") or fields.get("Source") or "")
    if row is None or not ("NovelAI" in software or "uc" in row or "v4_prompt" in row):
        return None
    parts = [_at(row, "v4_prompt", "caption", "base_caption")]
    people = _at(row, "v4_prompt", "caption", "char_captions")
    parts += [one.get("char_caption") for one in people if isinstance(one, dict)] if isinstance(people, list) else []
    prompt = _joined(parts) or first_text(row, "prompt") or as_text(fields.get("Description"))
    negative = as_text(_at(row, "v4_negative_prompt", "caption", "base_caption")) or first_text(row, "uc")
    return ProgramPrompt(
        "NovelAI", needed("NovelAI", prompt), negative, as_seed(row.get("seed")), as_text(fields.get("Source"))
    )


def _at(row: object, *names: str) -> object:
    """What lies so deep inside objects; None where it does not."""
    for name in names:
        row = row.get(name) if isinstance(row, dict) else None
    return row
