"""ComfyUI: the prompt of a picture from the graph that was run (``prompt``; the ``workflow`` of its page is not read).

From the node that saves, up to the last sampler on the way, and from there up its positive conditioning to the text.
A graph is anybody's: it may be in a circle, name nodes that are not there, and hold nodes that nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mapo.captions.programs.told import MOST_TEXT, OddMetadata, ProgramPrompt, as_seed, as_text, json_object

PROGRAM = "ComfyUI"
KIND = "class_type"
DEEPEST = 150  # nodes behind each other
TEXTS = ("t5xxl", "text", "text_g", "clip_g", "text_l", "clip_l", "prompt")  # of a text encoder, the fullest first
STRINGS = ("populated_text", "text", "string", "value", "prompt", "text_g", "result", "Text", "String")
MODELS = ("ckpt_name", "unet_name", "model_name", "model_path")
SEEDS = ("seed", "noise_seed", "value", "int")
ASIDE = re.compile(  # links that lead away from what was drawn
    r"model|clip|vae|positive|negative|cond|guider|sampler|sigmas|noise|mask|control_net|text|string|prompt|seed",
    re.IGNORECASE,
)
NOT_WORDS = re.compile(r"model|clip|vae|image|pixels|latent|samples|mask|control_net|sampler|sigmas", re.IGNORECASE)
PIPES = ("basic_pipe", "pipe", "detailer_pipe", "base_ctx")
LOADS = {"model", "ckpt_name", "base_ctx"}  # of nodes that give a model as well, so that places count otherwise
LATENTS = ("latent_image", "latent", "samples", "sigmas")

Nodes = Mapping[str, dict[str, Any]]  # each node's inputs, and its kind under KIND


def read_comfyui(text: str) -> ProgramPrompt | None:
    """What the graph says; None where the text is not a graph, OddMetadata where it says two things or nothing."""
    graph = json_object(text)
    nodes: dict[str, dict[str, Any]] = {}
    for name, node in (graph or {}).items():
        if isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict):
            nodes[name] = {**node["inputs"], KIND: node["class_type"]}
    if not nodes:
        return None
    last = _last_samplers(nodes)
    if not last:
        kinds = ", ".join(sorted({node[KIND] for node in nodes.values()})[:5])
        raise OddMetadata(f"its ComfyUI graph has no sampler that leads to a saved picture (it has {kinds})")
    said = {name: _prompt(nodes, name, "positive") for name in last}
    prompts = list(dict.fromkeys(said.values()))
    if len(prompts) > 1:
        shown = " and ".join(f"“{_short(prompt)}” (node {name})" for name, prompt in list(said.items())[:2])
        raise OddMetadata(f"its ComfyUI graph has {len(said)} samplers side by side with different prompts: {shown}")
    if not prompts[0]:  # a refiner may have none of its own
        every = (_prompt(nodes, name, "positive") for name in nodes if _is_sampler(nodes, name))
        prompts = [prompt for prompt in dict.fromkeys(every) if prompt]
    if len(prompts) != 1:
        raise OddMetadata(f"the prompt of the last sampler of its ComfyUI graph (node {last[0]}) is empty")
    first = _first_sampler(nodes, last[0])
    try:
        negative = _prompt(nodes, last[0], "negative")
    except OddMetadata:
        negative = ""
    return ProgramPrompt(PROGRAM, prompts[0], negative or None, _seed(nodes, first), _model(nodes, first))


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _link(nodes: Nodes, value: object) -> str | None:
    """The node that an input comes from; None where it is a value, or the node is not there."""
    if isinstance(value, list) and len(value) == 2 and type(value[1]) is int and str(value[0]) in nodes:
        return str(value[0])
    return None


def _links(nodes: Nodes, name: str) -> Iterator[tuple[str, str]]:
    """The inputs of a node that are links, and where they lead."""
    for key, value in nodes[name].items():
        if (to := _link(nodes, value)) is not None:
            yield key, to


# ------------------------------------------------------------------ samplers


def _is_sampler(nodes: Nodes, name: str) -> bool:
    """Whether a node draws: it has a guider, or a positive conditioning and something to begin with."""
    node = nodes[name]
    if _link(nodes, node.get("guider")) is not None:
        return True
    if "sampler" in node[KIND].lower() and _piped(nodes, name, "positive") != name:
        return True
    if not node.get("positive"):
        return False
    return any(_link(nodes, node.get(key)) is not None for key in LATENTS) or "sampler" in node[KIND].lower()


def _redraws(nodes: Nodes, name: str) -> bool:
    """Whether a node draws over a picture, in tiles or in parts, as upscalers do."""
    return _link(nodes, nodes[name].get("positive")) is not None and not {"seed", "noise_seed"}.isdisjoint(nodes[name])


def _last_samplers(nodes: Nodes) -> list[str]:
    """The first samplers that are met on the ways up from what is saved, or, without such, from what is shown."""
    used = {to for name in nodes for _, to in _links(nodes, name)}
    taking = [name for name in nodes if any(key in ("images", "image") for key, _ in _links(nodes, name))]
    saved = [name for name in taking if "save" in nodes[name][KIND].lower()]
    ends = [name for name in taking if name not in used]
    shown = [name for name in ends if "preview" not in nodes[name][KIND].lower()]
    for draws in (_is_sampler, _redraws):
        drawing = {name for name in nodes if draws(nodes, name)}
        for starts in (saved, shown, ends, [name for name in nodes if name not in used]):
            if found := _met(nodes, starts, drawing):
                return found
    return []


def _met(nodes: Nodes, starts: Iterable[str], drawing: set[str]) -> list[str]:
    """The nodes of ``drawing`` that are met first on the ways up from ``starts``."""
    waiting, seen, found = list(starts), set[str](), list[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in drawing:
            found.append(name)
        else:
            waiting += [to for key, to in _links(nodes, name) if not ASIDE.search(key)]
    return sorted(found, key=list(nodes).index)


def _first_sampler(nodes: Nodes, last: str) -> str:
    """The sampler that began the picture which ``last`` ends, as a base model does before its refiner."""
    drawing = {name for name in nodes if _is_sampler(nodes, name)}
    seen = {last}
    while True:
        before = [to for key, to in _links(nodes, last) if not ASIDE.search(key)]
        met = [name for name in _met(nodes, before, drawing) if name not in seen]
        if not met:
            return last
        last = met[0]
        seen.add(last)


# ------------------------------------------------------------------ from a sampler to its text


def _piped(nodes: Nodes, name: str, key: str) -> str:
    """The node that has this input, up through pipes, which carry several things at once; else the node itself."""
    at: str | None = name
    for _ in range(DEEPEST):
        if at is None:
            break
        if nodes[at].get(key):
            return at
        at = next((to for pipe in PIPES if (to := _link(nodes, nodes[at].get(pipe)))), None)
    return name


def _prompt(nodes: Nodes, sampler: str, side: str) -> str:
    """The text of one side of a sampler, ``positive`` or ``negative``."""
    node = nodes[sampler]
    if (guider := _link(nodes, node.get("guider"))) is not None:
        node = nodes[guider]
        side = side if side in node or side == "negative" else "conditioning" if "conditioning" in node else "cond1"
    given = node.get(side) or nodes[_piped(nodes, sampler, side)].get(side)
    if isinstance(given, str):
        return given.strip()
    return ", ".join(dict.fromkeys(_conditioned(nodes, given, side, set(), 0)))


def _conditioned(nodes: Nodes, given: object, side: str, seen: set[str], depth: int) -> list[str]:
    """The texts behind a link to a conditioning, each node asked once."""
    name = _link(nodes, given)
    if name is None or name in seen:
        return []
    if depth > DEEPEST:
        raise OddMetadata(f"its ComfyUI graph has more than {DEEPEST} nodes behind each other")
    seen.add(name)
    node = nodes[name]
    if "zeroout" in node[KIND].lower():
        return []
    own = [key for key in TEXTS if isinstance(node.get(key), str) or _link(nodes, node.get(key)) is not None]
    if own:
        text = next((text for key in own if (text := _string(nodes, node[key], {}, name))), None)
        return [text] if text else []
    word = "negative" if side == "negative" else "positive"
    if isinstance(node.get(word), str):  # a loader that takes both prompts as texts
        return [text] if (text := node[word].strip()) else []
    if _link(nodes, node.get("positive")) is not None and "negative" in node:
        assert isinstance(given, list)
        if LOADS.isdisjoint(node):
            word = "negative" if given[1] == 1 else "positive"
        return _conditioned(nodes, node[word], side, seen, depth + 1)
    keys = [key for key, _ in _links(nodes, name) if not NOT_WORDS.search(key)]
    near = [key for key in keys if "cond" in key.lower() or key in ("positive", "negative")] or keys
    return [text for key in near for text in _conditioned(nodes, node[key], side, seen, depth + 1)]


def _string(nodes: Nodes, given: object, known: dict[str, str | None], reader: str) -> str:
    """A text, or the text of the node that a link leads to: one that holds it, or that joins others.

    ``known`` has the texts of nodes that were asked, and None for those that are being asked now.
    """
    if isinstance(given, str):
        return given.strip()
    name = _link(nodes, given)
    if name is None or len(known) > DEEPEST or (name in known and known[name] is None):
        raise OddMetadata(f"the text of node {reader} of its ComfyUI graph comes from nowhere or in a circle")
    if (text := known.get(name)) is None:
        known[name] = None
        text = known[name] = _string_of(nodes, name, known, reader)
    return text


def _string_of(nodes: Nodes, name: str, known: dict[str, str | None], reader: str) -> str:
    node = nodes[name]
    if re.search(r"concat|join|combine|append", node[KIND], re.IGNORECASE):
        between = next((node[key] for key in ("delimiter", "separator") if isinstance(node.get(key), str)), " ")
        keys = sorted(key for key in node if re.match(r"text|string|prompt", key, re.IGNORECASE))
        parts = [_string(nodes, node[key], known, reader) for key in keys if isinstance(node[key], str | list)]
        text = between.replace("\\n", "\n").join(part for part in parts if part).strip()
        if len(text) > MOST_TEXT:
            raise OddMetadata(f"the text of node {reader} of its ComfyUI graph is too long")
        return text
    links = [key for key, _ in _links(nodes, name)]
    key = next((key for key in STRINGS if isinstance(node.get(key), str)), None)
    key = key or next((key for key in STRINGS if key in links), None)
    if key is None and len(links) == 1 and len(node) == 2:  # a reroute
        key = links[0]
    if key is None:
        raise OddMetadata(
            f"the text of node {reader} of its ComfyUI graph is made by a node {_short(node[KIND])}, and what it made "
            "is not in the file"
        )
    return _string(nodes, node[key], known, reader)


# ------------------------------------------------------------------ seed and model


def _seed(nodes: Nodes, sampler: str) -> int | None:
    """The seed of a sampler, of its noise, or of the node that gives it one."""
    for key in ("seed", "noise_seed", "noise"):
        value = nodes[sampler].get(key)
        for _ in range(DEEPEST):
            if (name := _link(nodes, value)) is None:
                break
            value = next((nodes[name][k] for k in SEEDS if k in nodes[name]), None)
        if (seed := as_seed(value)) is not None:
            return seed
    return None


def _model(nodes: Nodes, sampler: str) -> str | None:
    """The file of the model that a sampler drew with, up through LoRAs and the like."""
    name: str | None = sampler
    for _ in range(DEEPEST):
        if name is None:
            return None
        node = nodes[name]
        if found := next((text for key in MODELS if (text := as_text(node.get(key)))), None):
            return found
        name = next((to for key in ("model", "guider", *PIPES) if (to := _link(nodes, node.get(key)))), None)
    return None
