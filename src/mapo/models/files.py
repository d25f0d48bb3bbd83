"""Where the parts of a model lie, and what they are together: a folder or one file, with the LoRAs on top of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from mapo.errors import MapoError
from mapo.files import own_place
from mapo.models.checkpoints import best_step
from mapo.models.loras.layers import Layer, fuse
from mapo.models.loras.sources import Lora, without_named
from mapo.models.parts.config import CONFIGS, read_config
from mapo.models.parts.fingerprints import contents, fingerprint
from mapo.models.parts.tensors import check_finite
from mapo.models.parts.weights import check_weights, load_part, not_whole, outline_of
from mapo.models.token import Token
from mapo.texts import read_object
from mapo.worlds import MODELS

# name.safetensors, name.fp16.safetensors, name-00001-of-00002.safetensors, and both spellings of a variant in shards


MOST_TOKENS = "max_sequence_length"
SAMPLING = "sampling.json"  # ours: how a model is best sampled, and of how many tokens of T5 it is told
FEW_STEPS = ("turbo", "schnell", "lightning", "hyper", "lcm", "klein", "dmd2", "dmd", "flash", "distilled", "distill")
DISTILLED = re.compile(  # as a word of its own, also where capitals part the words: XL_lightningDPM, sdxlTurbo
    rf"(?<![A-Za-z])(?:{'|'.join(FEW_STEPS)})(?![a-z])|(?:{'|'.join(map(str.title, FEW_STEPS))})(?![a-z])"
    rf"|(?<![A-Z])(?:{'|'.join(map(str.upper, FEW_STEPS))})(?![A-Za-z])"
)
UNDONE = re.compile(r"(?i)(de|un)[-_. ]?distil|libreflux|openflux")  # in names of models whose distillation was undone
AT_STEP = re.compile(r"(?P<run>.+)@(?P<step>\d+|best)")  # a checkpoint of a run
LONG_PROMPTS = ("cut", "chunk")  # what becomes of prompts that are longer than the text encoders read


class OneFile(Protocol):
    """A model in one file (``single``)."""

    def load(self, part: str, kind: Any, dtype: Any) -> Any:
        """The network of a part."""

    def fingerprint(self, part: str) -> str:
        """A hash of a part."""

    @property
    def parts(self) -> Mapping[str, Any]:
        """The parts that it holds."""

    @property
    def called(self) -> tuple[str, ...]:
        """Its name, and what its metadata calls it."""


class AnotherVae(Protocol):
    """A VAE in place of a model's own (``vae``)."""

    @property
    def name(self) -> str:
        """A hub id, or an absolute path."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration."""

    @property
    def config_path(self) -> Path:
        """The file to be named where that is wrong."""

    def load(self, kind: Any, dtype: Any) -> Any:
        """The network."""

    def fingerprint(self) -> str:
        """A hash of it."""


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: a pipeline folder or one file, and a run's denoiser or LoRAs on top of it."""

    name: str  # as the user wrote it
    base: Path  # a diffusers pipeline folder; of one file, the small files of such a folder
    denoiser: Path | None = None  # a run's own, whose folder bears the part's name
    loras: tuple[Lora, ...] = ()  # of the run that is the model, and those that were named beside it
    token: Token | None = None  # that a run has learned, or training begins to learn
    sensitive: bool = False  # trained on a sensitive set, so pages blur its pictures
    clip_skip: int = 0  # layers left out at the end of the text encoder
    long_prompts: str = "cut"  # at what the text encoders read, or "chunk": read in several chunks
    chunks: int = 1  # that every prompt has at least, where long ones are read in chunks
    guidance: float = 1.0  # what a model with a guidance embedding is told in training
    single: OneFile | None = None  # that holds the weights in place of ``base``
    vae: AnotherVae | None = None  # in place of the base's
    prediction: str = ""  # "epsilon" or "v" where the user says what the denoiser predicts
    variant: str | None = None  # of the weights, such as "fp16", where the user names one

    @property
    def stable_name(self) -> str:
        """The name to write into files: a hub id and ``mini`` as they are, a folder or file as an absolute path."""
        return str(own_place(Path(self.name))) if self.is_local else self.name

    @property
    def is_local(self) -> bool:
        """Whether it is a folder or a file of the user's, which may be moved."""
        return self.name not in MODELS and is_there(self.name)

    @property
    def pipeline_class(self) -> str:
        """The class that ``model_index.json`` names; empty where it names none."""
        return str(read_config(self.base, "model_index.json").get("_class_name", ""))

    @property
    def scheduler_class(self) -> str:
        """The class of scheduler that pictures are drawn with, which diffusers takes from ``model_index.json``."""
        named = read_config(self.base, "model_index.json").get("scheduler")
        return str(named[-1]) if isinstance(named, list) and named else ""

    def parts_left_out(self, parts: Sequence[str]) -> tuple[str, ...]:
        """Those of ``parts`` that ``model_index.json`` does not have, or has as null."""
        index = read_config(self.base, "model_index.json")
        return tuple(part for part in parts if index.get(part) in (None, [None, None]))

    @property
    def sampling(self) -> dict[str, Any]:
        """What the folder's ``sampling.json`` advises, if there is one."""
        path = self.base / SAMPLING
        return read_object(path, "a model folder", "Mend it, or delete it.") if path.is_file() else {}

    @property
    def text_tokens(self) -> int | None:
        """How many tokens T5 reads, where ``sampling.json`` says so."""
        return self._advised(MOST_TOKENS, 0, 512)

    @property
    def side(self) -> int | None:
        """The side in pixels at which the model works by itself, where ``sampling.json`` says so."""
        return self._advised("width", 1, 2**16)

    def _advised(self, key: str, least: int, most: int) -> int | None:
        value = self.sampling.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
            return value
        raise MapoError(
            f"{self.base / SAMPLING} has {key} {value!r}; it has to be a whole number from {least} to {most}."
        )

    def called_distilled(self) -> str:
        """A sentence where the model's name is that of one distilled to few steps; else empty."""
        names = [name for name in self._called() if not UNDONE.search(name)]
        word = next((match[0] for name in names if (match := DISTILLED.search(name))), None)
        return f"Its name has the word {word!r}, which models bear that were distilled to few steps." if word else ""

    def called_undone(self) -> bool:
        """Whether the model's name is that of one whose distillation was undone."""
        return any(UNDONE.search(name) for name in self._called())

    def _called(self) -> tuple[str, ...]:
        """What the model and its base are called: by their place, by their folder's own word, by their file's."""
        index = read_config(self.base, "model_index.json")
        places = (self.name, str(index.get("_name_or_path", "")), "" if self.single else str(self.base))
        own = self.single.called if self.single else ()
        kept = self.base.parent  # in the hub's cache, as models--OWNER--NAME/snapshots/…
        hub = (kept.parent.name.rsplit("--", 1)[-1],) if kept.name == "snapshots" else ()
        return (*(place.rstrip("/").rsplit("/", 1)[-1] for place in places), *hub, *own)

    def place(self, part: str) -> tuple[Path, str]:
        """The model folder in which a part lies, and its name there: the run's denoiser stands in for the base's."""
        if self.denoiser is not None and self.denoiser.name == part:
            return self.denoiser.parent, part
        return self.base, part

    def _elsewhere(self, part: str) -> bool:
        """Whether the weights of a part of the base do not lie in its folder."""
        if part == "vae" and self.vae is not None:
            return True
        return self.single is not None and part in self.single.parts and self.place(part)[0] == self.base

    def refuse_clip_skip(self, kind: str) -> None:
        """MapoError where layers are to be left out of a text encoder of a pipeline, ``kind``, that leaves out none."""
        if self.clip_skip:
            raise MapoError(
                f"clip_skip is {self.clip_skip}, but {self.name} is a {kind}; only Stable Diffusion 1 and 2 leave out "
                "layers of their text encoder. Leave it out."
            )

    def refuse_chunks(self, kind: str) -> None:
        """MapoError where prompts are to be read in chunks by a pipeline, ``kind``, that reads none."""
        if self.long_prompts == "chunk":
            raise MapoError(
                f"long_prompts is chunk, but {self.name} is a {kind}; only Stable Diffusion 1 and 2 and SDXL read long "
                "prompts in chunks. Take cut."
            )

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part."""
        if part == "vae" and self.vae is not None:
            return dict(self.vae.config)
        base, part = self.place(part)
        found = read_config(base, f"{part}/{CONFIGS.get(part, 'config.json')}")
        if part == "scheduler" and self.prediction == "v":
            return {**found, "prediction_type": "v_prediction"}
        if part == "scheduler" and self.prediction:
            return {**found, "prediction_type": "epsilon", "rescale_betas_zero_snr": False}
        return found

    def config_path(self, part: str) -> Path:
        """The file of :meth:`config`, to be named in a message."""
        if part == "vae" and self.vae is not None:
            return self.vae.config_path
        base, part = self.place(part)
        return base / part / CONFIGS.get(part, "config.json")

    def load(self, part: str, kind: Any, dtype: Any = torch.float32, loras: bool = True) -> Any:
        """The network of a part with its weights, as the class ``kind`` loads them; MapoError where that fails or
        a number is not finite.

        Its LoRAs are merged in, but for where ``loras`` is false.
        """
        network = self._loaded(part, kind, dtype)
        check_finite(network, part, self.name)
        if loras and self.loras:
            for layers in self.lora_layers({part: network}):
                fuse(network, layers)
        return network

    def lora_layers(self, networks: Mapping[str, Any], heads_only: bool = False) -> list[list[Layer]]:
        """The layers of each LoRA in some parts; MapoError where one does not fit. ``networks`` may be outlines."""
        kind = self.pipeline_class
        return [lora.layers(kind, self.name, networks, heads_only) for lora in self.loras]

    def lora_parts(self, networks: Collection[str]) -> set[str]:
        """The parts that LoRAs change; MapoError where one is not among the model's ``networks``."""
        found = set()
        for lora in self.loras:
            parts = lora.parts(self.pipeline_class, self.name)
            if lacking := sorted(parts.difference(networks)):
                raise MapoError(
                    f"{lora.path} has layers of {lacking[0]}, without which {self.name} was opened. {lora.remedy}"
                )
            found |= parts
        return found

    def _loaded(self, part: str, kind: Any, dtype: Any) -> Any:
        """The network from where its weights lie: another VAE, one file, a run's folder or the base's."""
        if part == "vae" and self.vae is not None:
            return self.vae.load(kind, dtype)
        if self.single is not None and self._elsewhere(part):
            return self.single.load(part, kind, dtype)
        base, part = self.place(part)
        return load_part(kind, base, part, dtype, self.variant if base == self.base else None)

    def outline(self, part: str, kind: Any) -> Any:
        """The network of a part without its weights; MapoError where its configuration makes none.

        Every part of this kind and configuration has the same one: change nothing in it.
        """
        config = self.config(part)
        try:
            return outline_of(kind, json.dumps(config))
        except Exception as error:
            raise not_whole(*self.place(part), error) from None

    def check_weights(self, part: str) -> None:
        """MapoError where the weights of a part are not whole, as far as their names and heads tell."""
        if not self._elsewhere(part):  # else that was checked when it was found
            base, part = self.place(part)
            check_weights(base, part, self.variant if base == self.base else None)

    def fingerprint(self, parts: Sequence[str]) -> str:
        """A hash of the base's ``parts``: see :func:`fingerprint`."""
        found = self._fingerprint(parts)
        if self.clip_skip and any(part.startswith("text_encoder") for part in parts):
            found = hashlib.sha256(f"{found} clip_skip {self.clip_skip}".encode()).hexdigest()[:16]
        if self.long_prompts != "cut" and any(part.startswith("text_encoder") for part in parts):
            found = hashlib.sha256(f"{found} long_prompts {self.long_prompts}".encode()).hexdigest()[:16]
        if self.text_tokens is not None and any(part.startswith("text_encoder") for part in parts):
            found = hashlib.sha256(f"{found} tokens {self.text_tokens}".encode()).hexdigest()[:16]
        for lora in self.loras:  # those that change what the cache holds
            if not lora.parts(self.pipeline_class, self.name).isdisjoint(parts):
                found = hashlib.sha256(f"{found} lora {lora.fingerprint()}".encode()).hexdigest()[:16]
        if self._learned and any(part.startswith("text_encoder") for part in parts):
            found = hashlib.sha256(f"{found} token {self._learned}".encode()).hexdigest()[:16]
        return found

    @property
    def _learned(self) -> str:
        """The hash of the token that was learned; empty where there is none yet: no prompt is cached with it then."""
        return self.token.fingerprint() if self.token else ""

    def _fingerprint(self, parts: Sequence[str]) -> str:
        """The hash of what lies in the folder, with those of what lies elsewhere or is said to be otherwise."""
        others = []
        for part in parts:
            if part == "vae" and self.vae is not None:
                others.append(self.vae.fingerprint())
            elif self.single is not None and part in self.single.parts:
                others.append(self.single.fingerprint(part))
            elif part == "scheduler" and self.prediction:
                others.append(f"prediction {self.prediction}")
        rest = [part for part in parts if part not in (self.single.parts if self.single else ())]
        rest = [part for part in rest if part != "vae" or self.vae is None]
        found = [fingerprint(self.base, rest)] if rest else []
        if not others:
            return found[0]
        return hashlib.sha256(" ".join([*found, *others]).encode()).hexdigest()[:16]

    def revision(self) -> str:
        """A hash of everything that decides what pictures the model makes."""
        return self.revisions()[0]

    def named_loras_told(self) -> list[dict[str, Any]]:
        """What is written down of the LoRAs that were named beside the model: file, weight and hash."""
        return [lora.told() for lora in self.loras if lora.named]

    def without_named_loras(self) -> ModelFiles:
        """The model by its name alone, without the LoRAs that were named beside it."""
        return replace(self, loras=without_named(self.loras))

    def revisions(self) -> tuple[str, ...]:
        """:meth:`revision`, and what 0.1.0 wrote in its place, which knows nothing of tokenizers.

        What lies on disk is of this model if it names one of them.
        """
        parts = [p.parent.name for p in sorted(self.base.glob("*/config.json"))] + ["scheduler"]
        hashes = [replace(self, loras=(), token=None).fingerprint(parts)]
        hashes += [fingerprint(path.parent, [path.name]) for path in (self.denoiser,) if path]
        hashes += [lora.fingerprint() for lora in self.loras] + ([self._learned] if self._learned else [])
        named = read_config(self.base, "model_index.json")
        others = sorted({name for name in named if (self.base / name).is_dir()}.difference(parts))
        forms = [[*hashes, contents(self.base, others)], hashes] if others else [hashes]
        return tuple(hashlib.sha256(" ".join(form).encode()).hexdigest()[:16] for form in forms)


def at_step(name: str) -> tuple[Path, int] | None:
    """The run folder and the step of a name such as ``work/run@250`` or ``work/run@best``; None for other names."""
    found = AT_STEP.fullmatch(name)
    if not found or Path(name).exists() or not Path(found["run"]).is_dir():
        return None
    run = Path(found["run"])
    return run, best_step(run) if found["step"] == "best" else int(found["step"])


def is_there(name: str) -> bool:
    """Whether a model's name is that of a folder or file on this machine, or of a checkpoint in a folder."""
    return Path(name).exists() or at_step(name) is not None
