"""Pictures from a model: the same prompts and seeds give the same noise, whatever the model or the batch size."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mapo.devices import best_device, use_own_device
from mapo.errors import MapoError, is_out_of_memory, memory_told, reason, several, suggest
from mapo.files import sha256
from mapo.models import ModelFiles, TokenModel, find_model, is_of_a_family, open_model
from mapo.models.parts.weights import quietly
from mapo.models.pipelines import (
    accepts,
    advice,
    black_pictures_refused,
    check_negative_prompt,
    cuts_told,
    cuts_untold,
    has_true_cfg,
    no_effect_told,
    open_pipeline,
    pipeline_class,
)
from mapo.pairs.splits import prompt_id
from mapo.sample.filling import Filling, open_folder
from mapo.sample.folder import ImageRow
from mapo.sample.samplers import SAMPLERS, check_sampler, scheduler_named
from mapo.shards import WHOLE, Shard
from mapo.texts import is_whole_text
from mapo.worlds import world_of

LOG = logging.getLogger(__name__)

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
MOST_SEEDS = 1_000_000
MOST_SIDE = 2**16  # no picture is wider or higher
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Sampling:
    """How pictures are made. :func:`default_sampling` knows what suits a model."""

    steps: int
    guidance: float
    width: int
    height: int
    prefix: str = ""
    negative_prompt: str = ""
    precision: str = "float32"  # of the network's weights and arithmetic
    images_per_batch: int = 32
    sampler: str = ""  # one of SAMPLERS; empty: the model's own scheduler

    def told(self) -> dict[str, Any]:
        """The values by name, without a sampler where none is asked for, as older versions knew none."""
        return {key: value for key, value in asdict(self).items() if key != "sampler" or value}


def default_sampling(model: ModelFiles, **changes: Any) -> Sampling:
    """The sampling that suits a model: what its folder advises (``sampling.json``), else its family or its class."""
    name, kind = pipeline_class(model)
    changes = {key: value for key, value in changes.items() if value is not None}
    if changes.get("guidance") and "guidance_scale" not in accepts(kind):
        raise MapoError(f"--guidance: {model.name} is a {name}, which takes no guidance. Leave it out.")
    check_negative_prompt(model, kind, changes.get("negative_prompt", ""))
    advised, path = advice(model, kind), model.base / "sampling.json"
    _refuse_nonsense(advised, lambda key: f"{path}: {key}")
    _refuse_nonsense(changes, lambda key: f"--{key.replace('_', '-')}")
    sampling = Sampling(**({"precision": usual_precision(model)} | advised | changes))
    if sampling.sampler:
        check_sampler(sampling.sampler, model)
    if is_of_a_family(model):
        step = open_model(model, to_train=False).layout.drawn
        for key in ("width", "height"):
            if getattr(sampling, key) % step:
                raise MapoError(
                    f"--{key} is {getattr(sampling, key)}; it has to be a multiple of {step} for this model."
                )
    return sampling


def usual_precision(model: ModelFiles) -> str:
    """In which numbers pictures are drawn where nobody says: in 16 bits on a GPU, which are faster and take half.

    On a CPU they are slow. The figures of built-in models are of float32, in which those are drawn anywhere.
    """
    if best_device() != "cuda" or world_of(model.base):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _refuse_nonsense(values: dict[str, Any], name: Callable[[str], str]) -> None:
    """MapoError about the first value that no picture can be made with; ``name`` says whose it is."""
    for key, value in values.items():
        kind = Sampling.__annotations__.get(key)
        if kind is None:
            raise MapoError(f"{name(key)} is not known. {suggest(key, Sampling.__annotations__)}")
        if kind == "str" and not (isinstance(value, str) and is_whole_text(value)):
            raise MapoError(f"{name(key)} is {value!r}; it must be a text{' in UTF-8' * isinstance(value, str)}.")
        if key == "sampler" and value and value not in SAMPLERS:
            raise MapoError(f"{name(key)} {value!r} is not known. {suggest(value, SAMPLERS)}")
        if key == "precision" and value not in PRECISIONS:
            raise MapoError(f"{name(key)} {value!r} is not known. {suggest(value, PRECISIONS)}")
        if kind == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise MapoError(f"{name(key)} is {value!r}; it must be a whole number, at least 1.")
        if key in ("width", "height") and value > MOST_SIDE:
            raise MapoError(f"{name(key)} is {value}; it must be at most {MOST_SIDE:,} pixels.")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind == "float" and not (number and math.isfinite(value) and value >= 0):
            raise MapoError(f"{name(key)} is {value!r}; it must be a number that is not negative.")


def parse_seeds(text: str) -> list[int]:
    """``0-3`` or ``0,5,7`` or a mixture → the seeds."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise MapoError(f"--seeds {text!r} is not a list of seeds. Write 0-3 or 0,5,7.")
        if int(last if dash else first) >= 2**63:
            raise MapoError(f"--seeds {text!r}: a seed has to be below 2^63.")
        if int(last or first) - int(first) >= MOST_SEEDS:
            raise MapoError(f"--seeds {text!r} are more than {MOST_SEEDS:,} seeds. Was a comma meant?")
        seeds += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(seeds))


def noise_seed(prompt: str, seed: int) -> int:
    """What a picture's own generator is seeded with: another for every prompt, so that seeds are independent draws."""
    return int.from_bytes(hashlib.sha256(f"{prompt_id(prompt)}:{seed}".encode()).digest()[:8], "big") >> 1


def full_prompt(prompt: str, prefix: str) -> str:
    """What the text encoders are given."""
    return f"{prefix} {prompt}".strip()


@contextlib.contextmanager
def prompts_projected_once(pipeline: Any) -> Iterator[None]:
    """Inside, a UNet computes the keys and values of the prompts once and not in every step; the numbers are the same.

    Its layers that do nothing but project the prompts remember the last tensor that they were given.
    """
    network = getattr(pipeline, "unet", None)
    layers = [m for n, m in network.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))] if network else []
    kept: dict[Any, tuple[Any, Any]] = {}

    def remembering(layer: Any) -> Any:
        real = layer.forward

        def forward(given: Any, *rest: Any, **named: Any) -> Any:
            if layer not in kept or kept[layer][0] is not given:
                kept[layer] = given, real(given, *rest, **named)
            return kept[layer][1]

        return forward

    for layer in layers:
        layer.forward = remembering(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextlib.contextmanager
def equal_prompts_encoded_once(pipeline: Any, known: dict[str, tuple[Any, Any]]) -> Iterator[None]:
    """Inside, a batch of one and the same text, as negative prompts are, is encoded once and then taken from ``known``.

    Of each text encoder ``known`` has the last such batch and what came of it.
    """
    encoders = {n: m for n in TEXT_ENCODERS if (m := getattr(pipeline, n, None)) is not None}

    def remembering(name: str, real: Any) -> Any:
        def forward(*given: Any, **named: Any) -> Any:
            plain = len(given) == 1 and all(v is None or isinstance(v, bool) for v in named.values())
            if not plain or given[0].ndim != 2 or bool((given[0] != given[0][:1]).any()):
                return real(*given, **named)
            (tokens,) = given
            asked = tokens.tolist(), named
            if known.get(name, (None,))[0] != asked:
                known[name] = asked, real(tokens, **named)
            return known[name][1]

        return forward

    for name, encoder in encoders.items():
        encoder.forward = remembering(name, encoder.forward)
    try:
        yield
    finally:
        for encoder in encoders.values():
            del encoder.forward


class Sampler:
    """A loaded pipeline that makes pictures, and fills images folders.

    A ``pipeline`` that is there already is taken as it is; ``revisions`` then say of what weights it is.
    """

    def __init__(
        self, model: str | ModelFiles, precision: str = "float32", device: Any = None, clip_skip: int | None = None,
        *, pipeline: Any = None, revisions: Sequence[str] = (), **told: Any,
    ) -> None:  # fmt: skip
        self.model = find_model(model, clip_skip=clip_skip, **told) if isinstance(model, str) else model
        self.revisions = revisions or self.model.revisions()
        self.revision = self.revisions[0]
        self.device = device or best_device()
        self.smaller = "--precision bfloat16" if precision == "float32" else ""  # what else would take less memory
        with memory_told(0, rest=self.smaller):
            self.pipeline = pipeline or open_pipeline(self.model, self.device, PRECISIONS[precision])
        self.precision = precision
        self.has_true_cfg = has_true_cfg(self.model)
        self.own_scheduler = getattr(self.pipeline, "scheduler", None)
        self.encoded: dict[str, tuple[Any, Any]] = {}

    def settings(self, how: Sampling) -> dict[str, Any]:
        """What all pictures of an images folder share."""
        named: dict[str, Any] = {"model": self.model.stable_name, "revision": self.revision}
        if loras := self.model.named_loras_told():
            named["loras"] = loras
        return {**named, **asdict(how), "sampler": self.sampler(how)}

    def sampler(self, how: Sampling) -> str:
        """What is written down: the sampler that was asked for, else the class of the model's own scheduler."""
        return how.sampler or type(self.own_scheduler).__name__

    def _take_sampler(self, how: Sampling) -> None:
        if how.sampler:
            self.pipeline.scheduler = scheduler_named(how.sampler, self.own_scheduler, self.model.name)
        elif self.own_scheduler is not None:
            self.pipeline.scheduler = self.own_scheduler

    def batch(self, jobs: Sequence[tuple[str, int]], how: Sampling) -> list[Any]:
        """The pictures of ``jobs`` (prompt, seed), each from its own generator."""
        kind = type(self.pipeline)
        taken = accepts(kind)
        check_negative_prompt(self.model, kind, how.negative_prompt)
        self._take_sampler(how)
        given = {
            "num_inference_steps": how.steps,
            "guidance_scale": how.guidance,
            "width": how.width,
            "height": how.height,
            "max_sequence_length": self.model.text_tokens,
        }
        if self.has_true_cfg:
            given["true_cfg_scale"] = how.guidance
        seeds = [noise_seed(prompt, seed) for prompt, seed in jobs]
        found: list[Any] = [None] * len(jobs)
        with (
            memory_told(len(jobs), rest=self.smaller),
            torch.inference_mode(),
            equal_prompts_encoded_once(self.pipeline, self.encoded),
            prompts_projected_once(self.pipeline),
            cuts_untold(self.pipeline),
            quietly(),
            black_pictures_refused(self.pipeline, self.model.name),
        ):
            try:
                for places, texts in self._texts([prompt for prompt, _ in jobs], how):
                    generators = [torch.Generator("cpu").manual_seed(seeds[place]) for place in places]
                    wanted = {**given, **texts, "generator": generators}
                    made = self.pipeline(**{k: v for k, v in wanted.items() if k in taken and v is not None})
                    for place, picture in zip(places, made.images, strict=True):
                        found[place] = picture
                return found
            except MapoError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise MapoError(
                    f"The model {self.model.name} was loaded but makes no pictures ({reason(error)}). One of the files "
                    f"in {self.model.base} may be of another model; download the folder again."
                ) from error

    def _texts(self, prompts: Sequence[str], how: Sampling) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """What the pipeline is given of the prompts at some places of a batch: all at once, or where they are read in
        chunks those of one length at once."""
        full = [full_prompt(prompt, how.prefix) for prompt in prompts]
        if self.model.long_prompts == "cut":
            is_compared = how.negative_prompt or (self.has_true_cfg and how.guidance > 1)
            negative = [how.negative_prompt] * len(full) if is_compared else None
            yield list(range(len(full))), {"prompt": full, "negative_prompt": negative}
            return
        opened = open_model(self.model, to_train=False)
        assert isinstance(opened, TokenModel)  # others refuse to read chunks
        texts = opened.pipeline_texts(self.pipeline, full, how.negative_prompt)
        for length in sorted({text["prompt_embeds"].shape[1] for text in texts}):
            places = [k for k, text in enumerate(texts) if text["prompt_embeds"].shape[1] == length]
            yield places, {name: torch.cat([texts[k][name] for k in places]) for name in texts[0]}

    def fill(
        self, folder: Path, jobs: Sequence[tuple[str, int]], how: Sampling, desc: str = "sample"
    ) -> list[ImageRow]:
        """Make the pictures of ``jobs`` that ``folder`` lacks or has damaged; its rows in the order of ``jobs``.

        A second process is refused in the same folder.
        """
        rows = self.filling(folder, jobs, how, desc).fill()
        if rows is None:
            raise MapoError(f"Another process has just filled {folder}. Give the same command again.")
        return rows

    def filling(self, folder: Path, jobs: Sequence[tuple[str, int]], how: Sampling, desc: str = "sample") -> Filling:
        """The same, to be done by one process or in shards."""

        def tell() -> None:
            for text in no_effect_told(self.model, self.pipeline, how.guidance, how.negative_prompt):
                LOG.info(text)
            if self.model.long_prompts == "cut":
                full = {prompt: full_prompt(prompt, how.prefix) for prompt, _ in jobs}
                for text in cuts_told(self.pipeline, full, how.negative_prompt):
                    LOG.info(text)

        return Filling(
            folder, partial(open_folder, folder, self.settings(how), self.model.sensitive, self.revisions),
            jobs, how.images_per_batch,
            draw=lambda batch: self.batch(batch, how), row=lambda job, png, at: self.row(job, how, png, at),
            tell=tell, desc=desc,
        )  # fmt: skip

    def row(self, job: tuple[str, int], how: Sampling, png: bytes, layout: str, file: str | None = None) -> ImageRow:
        """The manifest's row of a picture."""
        prompt, seed = job
        return ImageRow(
            file=f"{prompt_id(prompt)}-{seed}.png" if file is None else file,
            prompt_id=prompt_id(prompt),
            prompt=prompt,
            seed=seed,
            noise_seed=noise_seed(prompt, seed),
            sha256=sha256(png),
            model=self.model.stable_name,
            revision=self.revision,
            prefix=how.prefix,
            negative_prompt=how.negative_prompt,
            sampler=self.sampler(how),
            steps=how.steps,
            guidance=how.guidance,
            width=how.width,
            height=how.height,
            precision=self.precision,
            batch_layout=layout,
        )


def sample(
    model: str, prompts: str | Sequence[str], seeds: int | Sequence[int], out: Path, clip_skip: int | None = None,
    vae: str | None = None, prediction: str | None = None, loras: Sequence[str] = (), long_prompts: str | None = None,
    shard: Shard = WHOLE, **how: Any,
) -> list[ImageRow] | None:  # fmt: skip
    """Make a picture of every prompt at every seed in ``out``, going on where an earlier call stopped.

    With a ``shard`` only its batches are drawn; None where other shards are not done yet.
    ``clip_skip`` is for Stable Diffusion 1 and 2, ``long_prompts`` ("cut" or "chunk") for SDXL too. ``vae`` is another
    VAE, ``prediction`` what the denoiser predicts. Where they are left out they are what a run was trained with.
    """
    told: dict[str, Any] = {"vae": vae, "prediction": prediction, "loras": loras, "long_prompts": long_prompts}
    sampling = default_sampling(find_model(model, **told), **how)
    jobs = [(p, s) for p in several(prompts) for s in ([seeds] if isinstance(seeds, int) else seeds)]
    use_own_device()
    filling = Sampler(model, sampling.precision, clip_skip=clip_skip, **told).filling(Path(out), jobs, sampling)
    rows = filling.fill(shard)
    if shard == WHOLE and not filling.drawn:
        LOG.info(f"{out} has all of these pictures, so nothing was left to draw.")
    return rows
