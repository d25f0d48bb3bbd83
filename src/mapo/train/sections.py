"""What a training run can be told of its objective, its adapter, its optimizer and its data."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from mapo.settings import NotNegative, Number, Positive, Section, told


class ObjectiveConfig(Section):
    """Which loss, and its knobs (``[objective] name = "mapo", beta = 0.1``)."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    name: str = told(
        "mapo",
        "The loss. A name of docs/objectives.md, or `file.py:name` for a function of your own. Its own settings stand "
        "beside it, such as `objective.beta`.",
    )

    @model_validator(mode="after")
    def _finite(self) -> Self:
        for key, value in self.settings.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} should be a finite number")
        return self

    @property
    def settings(self) -> dict[str, float]:
        """The knobs that were set."""
        return dict(self.model_extra or {})


RANK = 8  # of adapter.rank where it is left out
RATES = {"full": 1e-5, "lora": 1e-4}  # of optim.lr where it is left out


class AdapterConfig(Section):
    """What is trained."""

    kind: Literal["full", "lora"] = told(
        "full",
        "What is trained: every weight of the denoiser (`full`), or a LoRA on its attention layers, beside its frozen "
        "weights (`lora`).",
    )
    rank: Positive | None = told(
        None,
        "The rank of the LoRA. Left out it is 8, or where a LoRA is `continued` that one's own, and another is refused "
        "there. No effect with `full`.",
    )
    alpha: Annotated[Number, Field(gt=0)] | None = told(
        None,
        "What the LoRA adds is multiplied by alpha / rank. Left out, alpha is the rank, so that nothing is scaled. No "
        "effect with `full`.",
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = told(
        0.0,
        "The share of the numbers before the LoRA that each step leaves out, at random. Which ones depends on "
        "`train.seed` and the pair's place in the run alone. No effect with `full`.",
    )
    targets: list[str] | None = told(
        None,
        "The layers of the denoiser beside which the LoRA lies, by their names or the ends of them, such as "
        '`["to_q", "attn2.*", "mid_block.*"]`; `*` stands for anything. Left out, those of attention (docs/models.md). '
        "Only with `lora`.",
    )
    start: Literal["fused", "continued", "frozen"] = told(
        "fused",
        "What becomes of the LoRAs that lie on the model before training, those of `loras` and of a run that is the "
        "model: merged into the frozen weights (`fused`); trained further, where it is one (`continued`); or left as "
        "they are beside the new one (`frozen`). No effect without such LoRAs. With `full` they are always merged.",
    )

    text_encoders: bool = told(
        False,
        "Lay the LoRA beside the attention layers of the text encoders too, with SDXL and Stable Diffusion 1 and 2. "
        "Prompts are then encoded in every step. Only with `lora`.",
    )

    token: str | None = told(
        None,
        "A word such as `<dog>` that the model is to learn, with SDXL and Stable Diffusion 1 and 2: one new row in the "
        "table of words of each text encoder is trained beside the LoRA, and no other row changes. It has to stand in "
        "captions. Prompts are then encoded in every step. What DPO and the like compare with reads it as it was where "
        "training began. Only with `lora`.",
    )
    token_from: str | None = told(
        None,
        "The word at whose row `adapter.token` begins, such as `dog`; the mean of its tokens where it is several. No "
        "effect where the model has learned the token already: it is trained further.",
    )

    @property
    def encodes(self) -> bool:
        """Whether prompts are encoded in every step, as something of the text encoders is trained."""
        return self.text_encoders or self.token is not None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.token is not None and self.kind == "full":
            raise ValueError("token is trained beside a LoRA (adapter.kind = 'lora')")
        if self.text_encoders and self.kind == "full":
            raise ValueError("text_encoders is for a LoRA (adapter.kind = 'lora')")
        if self.start != "fused" and self.kind == "full":
            raise ValueError(f"start = {self.start!r} is for a LoRA (adapter.kind = 'lora')")
        if self.targets is not None and self.kind == "full":
            raise ValueError("targets is for a LoRA (adapter.kind = 'lora')")
        if self.start == "continued" and (self.alpha is not None or self.targets is not None):
            raise ValueError("a LoRA that is continued keeps its own alpha and targets; leave them out")
        if self.targets is not None and not self.targets:
            raise ValueError("targets names no layer")
        return self


TEXT_SHARE = 0.1  # as in the paper's personalization: 5e-5 and 5e-6 (arXiv:2406.06424v2)


class OptimConfig(Section):
    """The optimizer and its rate."""

    name: Literal["adamw", "adamw8bit", "adafactor"] = told(
        "adamw",
        "The optimizer, by what it holds of each trained number: AdamW with two numbers of 4 bytes (`adamw`) or of 1 "
        '(`adamw8bit`, which needs `pip install "mapo[memory]"`), or Adafactor, with next to nothing (`adafactor`). '
        "docs/training.md has what each gives and costs.",
    )
    lr: Annotated[Number, Field(gt=0)] | None = told(
        None,
        "The learning rate: about how far a step moves each number. Left out, it is 1e-5 with `full` and 1e-4 with "
        "`lora`. With `adafactor` too it is such a distance, not a share of the weight.",
    )
    text_lr: Annotated[Number, Field(gt=0)] | None = told(
        None,
        "The learning rate of the text encoders, with the same schedule. Left out, a tenth of `optim.lr`. No effect "
        "without `adapter.text_encoders`.",
    )
    token_lr: Annotated[Number, Field(gt=0)] = told(
        5e-4,
        "The learning rate of `adapter.token`, with the same schedule and without weight decay. No effect without it.",
    )
    beta1: Annotated[Number, Field(ge=0, lt=1)] = told(
        0.9, "How much of AdamW's mean gradient a step keeps. No effect with `adafactor`, which has none."
    )
    beta2: Annotated[Number, Field(ge=0, lt=1)] = told(
        0.999,
        "How much of AdamW's mean squared gradient a step keeps. No effect with `adafactor`, where it is "
        "1 − step^−0.8.",
    )
    eps: Annotated[Number, Field(gt=0)] = told(
        1e-8,
        "Added to the root of AdamW's mean squared gradient, so that nothing is divided by 0. No effect with "
        "`adafactor`.",
    )
    weight_decay: Annotated[Number, Field(ge=0)] = told(
        1e-2, "In each step every trained weight shrinks by this times the learning rate. 0: not at all."
    )
    clip_norm: Annotated[Number, Field(ge=0)] = told(
        1.0,
        "The longest gradient, over all trained weights together. A longer one is shortened to it. 0: it is left as "
        "it is.",
    )
    in_backward: bool = told(
        False,
        "Move each weight as soon as its gradient is there, and forget the gradient, so that never all gradients are "
        "held. Changes memory only. It takes `optim.clip_norm = 0`, one process, and all pairs of a step at once.",
    )
    schedule: Literal["constant", "linear", "cosine"] = told(
        "constant",
        "How the rate goes on after the warm-up. `linear` and `cosine` fall to zero at `train.steps`, so such a run "
        "cannot be lengthened.",
    )
    warmup_steps: NotNegative = told(0, "Steps in which the rate rises from zero to `optim.lr`. 0: it begins there.")

    @property
    def text_share(self) -> float:
        """The learning rate of the text encoders, as a share of that of the denoiser."""
        return TEXT_SHARE if self.text_lr is None or self.lr is None else self.text_lr / self.lr

    @property
    def token_share(self) -> float:
        """The learning rate of the token, as a share of that of the denoiser."""
        return self.token_lr / (self.lr or RATES["full"])


class DataConfig(Section):
    """Which pairs, and how pictures become latents."""

    resolution: Positive | None = told(
        None,
        "The side, in pixels, of the square to which pictures are resized and cropped. A multiple of 32 for SDXL, of "
        "64 for Stable Diffusion 1 and 2, of 16 for Stable Diffusion 3, FLUX.1 and Z-Image. Left out, the model's own.",
    )
    buckets: bool = told(
        False,
        "See wide and tall pictures in frames of their shape, with about as many pixels as the square of "
        "`data.resolution` has; both pictures of a pair in the same. The cache keeps a picture once for each frame. No "
        "effect on square pictures.",
    )
    flip: bool = told(
        False,
        "Mirror the pair in half of the times that it is seen, always both of its pictures. The cache then holds every "
        "picture twice.",
    )
    split: Literal["train", "validation", "test", "all"] = told(
        "train",
        "The pairs to train on. Unless its source publishes splits, a set keeps about a fifth of its prompts for "
        "`validation` and `test`; `all` trains on these too.",
    )
    ties: Literal["drop", "keep"] = told(
        "drop",
        "Pairs of which neither picture is better: leave them out, or train on them as ties. No effect where the set "
        "holds none.",
    )
    cache_precision: Literal["float32", "bfloat16", "float16"] = told(
        "float32",
        "How the cache keeps latents and text. `bfloat16` and `float16` halve it, and round. docs/data.md has the "
        "bytes. A cache that is there has to be of the same precision.",
    )
    clip_skip: NotNegative | None = told(
        None,
        "Layers left out at the end of the text encoder, in training and when the run is sampled from. Only for Stable "
        "Diffusion 1 and 2; others refuse anything but 0. What other programs call clip skip 2 is 1 here. Left out, "
        "that of the run that is trained further, else 0.",
    )
    long_prompts: Literal["cut", "chunk"] | None = told(
        None,
        "Prompts that are longer than the text encoders read: cut there (`cut`), or read in several chunks (`chunk`) "
        "by SDXL and Stable Diffusion 1 and 2, in training and when the run is sampled from. docs/training.md says "
        "how. Left out, that of the run that is trained further, else `cut`.",
    )
    caption_dropout: Annotated[Number, Field(ge=0, le=1)] = told(
        0.0,
        "In this share of the times that a pair is seen both of its pictures are without their prompt, as the model "
        "is in guidance. 0: never.",
    )
    images_per_batch: Positive = told(
        8, "Pictures encoded at a time. Changes memory only. No effect where the cache lacks nothing."
    )
