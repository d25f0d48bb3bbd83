"""What a training run can be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mapo.errors import MapoError, suggest
from mapo.settings import NotNegative, Number, Positive, Section, told
from mapo.train.kept import kept


def _kept(value: Any) -> Any:
    kept(value)
    return value


def _truth_for_small(value: int) -> int:
    if value < 0:
        raise ValueError("Input should be true, false or a whole number, at least 1")
    return bool(value) if value < 2 else value


KeptCheckpoints = Annotated[int | str, BeforeValidator(_kept)]
Checkpointing = Annotated[bool | int, AfterValidator(_truth_for_small)]  # 1 is true, and 0 false


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


TRACKERS = ("tensorboard", "wandb")


class TrainConfig(Section):
    """How long and how."""

    steps: Positive = told(2000, "Updates of the weights. docs/training.md says how to choose.")
    pairs_per_step: Positive = told(16, "Pairs of one update, over all devices together.")
    pairs_per_device: Positive | None = told(
        None,
        "Pairs that a device holds at a time; the gradients of its portions are added up. Left out, its whole share. "
        "Changes memory and speed, and the result by rounding only. With `kto` each pair then goes through the model "
        "once more.",
    )
    seed: NotNegative = told(
        0, "Decides the order of pairs, their noise and timesteps, mirroring, and a LoRA's first weights."
    )
    precision: Literal["float32", "bfloat16", "float64"] = told(
        "float32",
        "Of the arithmetic. With `bfloat16` the weights that are trained stay in float32. `float64` is for tests, and "
        "takes twice the memory.",
    )
    base_precision: Literal["float32", "bfloat16", "float16"] = told(
        "float32",
        "Of the frozen weights beside a LoRA, which itself stays in float32. `bfloat16` and `float16` halve what the "
        "frozen weights take. No effect with `full`.",
    )
    guidance: Annotated[Number, Field(ge=0)] = told(
        1.0,
        "What a model with a guidance embedding, such as FLUX.1 dev, is told in training. No effect with others.",
    )
    allow_distilled: bool = told(
        False,
        "Train a model that was distilled to draw in few steps (schnell, Turbo, Lightning …). Training makes it one "
        "that needs more steps again.",
    )
    gradient_checkpointing: Checkpointing = told(
        False,
        "Compute activations twice so that few are held: slower, with much less memory and the same result. `true`: "
        "those of every block; a number n: those of every n-th block only.",
    )
    weights: Literal["float32", "bfloat16-master", "bfloat16-stochastic"] = told(
        "float32",
        "How the trained weights are kept with `full`: in float32; in bfloat16, with a master in float32 that the "
        "optimizer moves (`bfloat16-master`); or in bfloat16 alone, each update rounded at random so that small ones "
        "are not lost on average (`bfloat16-stochastic`, for rates of 1e-6 and more). The highest rate counts: "
        "where `optim.schedule` lets it fall to 0 the last steps are below that, and rounding moves weights further "
        "than they do. The arithmetic of bfloat16 weights is in bfloat16. A LoRA is always in float32.",
    )
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = told(
        None,
        "The run's weights, and those of RUN@STEP, are a running mean of the trained ones, of which each step keeps "
        "this share, such as 0.999; in step k at most (1 + k) / (10 + k), so that the first weights are soon "
        "forgotten. Takes 4 bytes for each trained number. Left out, the last weights.",
    )
    pair_by_pair: bool = told(
        False,
        "Let one picture of a pair go through the model at a time: the chosen one forward and back, then the rejected "
        "one, whose error is measured before. Takes the activations of one picture in place of two, with 7 units of "
        "arithmetic in place of 6 (with a LoRA about 5 in place of 4). The same result but for rounding. No effect "
        "where rejected pictures are not run.",
    )
    reference: Literal["together", "before"] = told(
        "together",
        "When the reference of `dpo` and its like is run: in every step (`together`), or once before training "
        "(`before`). Its errors are then kept in the run folder, and training holds no second model. With `lora` "
        "there is none anyway. Changes memory only; docs/training.md says when it pays. No effect with other "
        "objectives.",
    )
    allow_oversize: bool = told(
        False,
        "Begin a training that does not fit the memory by its plan. It will probably stop there. No effect where it "
        "fits.",
    )
    measure_rejected: bool = told(
        False,
        "Run the rejected pictures too where the objective does not learn from them, as with `sft`, so that "
        "`metrics.jsonl` has their error, the margin and the accuracy. Takes twice the time. The weights are the same "
        "but for rounding. No effect with other objectives.",
    )
    shard: Literal["none", "fsdp2"] = told(
        "none",
        "What several processes have of the trained model: each all of it (`none`), or each a part of every weight, "
        "gradient and moment (`fsdp2`), which are gathered block by block when they are needed. Changes memory and "
        "speed, and the result by rounding only. docs/training.md says what does not go with it. No effect with one "
        "process.",
    )
    compile: bool = told(
        False,
        "Compile the denoiser's repeated blocks with torch.compile. The first step then takes longer. The same result "
        "but for rounding. Needs triton on a GPU, a C++ compiler on a CPU.",
    )
    channels_last: bool = told(
        False,
        "Keep the weights of convolutions with their channels last, which some GPUs take faster. The same result but "
        "for rounding. No effect on denoisers without convolutions of pictures.",
    )
    tf32: bool = told(
        False,
        "Let NVIDIA's GPUs round the factors of products in float32 to 10 bits, which is faster. Refused elsewhere. "
        "No effect with `bfloat16`.",
    )
    save_every_steps: Positive = told(
        250,
        "Steps between checkpoints. A run that is stopped saves first; one that is killed goes back to its last "
        "checkpoint. Changes no result.",
    )
    keep_checkpoints: KeptCheckpoints = told(
        1,
        "Which checkpoints are kept: so many of the newest ones, or `all`, or words between commas: `last` or `last:N` "
        "(the newest), `best` (the one with the highest accuracy on held-out pairs, which needs "
        "`train.evaluate_every`), `every:N` (those at multiples of N steps). The newest one is always kept. Each can "
        "be used as a model, as RUN@STEP or RUN@best. With 1 there is none to go back to where the one on the disk is "
        "damaged; 2 keeps one more for that. With all weights of SDXL one takes 31 GB. Changes no result.",
    )
    evaluate_every: NotNegative = told(
        0,
        "Steps between measurements on held-out pairs, those of the split `validation`, with the same noise and "
        "timesteps each time; also before the first step and after the last. 0: none. They go into "
        "`evaluations.jsonl` and change no result.",
    )
    evaluate_pairs: Positive = told(
        64,
        "Held-out pairs that are measured, each at four timesteps; all of them where there are fewer. No effect "
        "without `train.evaluate_every`.",
    )
    pictures_every: NotNegative = told(
        0,
        "Steps between pictures that are drawn at the same seed with the weights as they are; also before the first "
        "step and after the last. 0: none. They go into `pictures/` of the run and change no result.",
    )
    picture_prompts: str | None = told(
        None,
        "The prompts of these pictures: a source as `mapo sample --prompts` takes it, of which all are drawn. Left "
        "out, the first four prompts of the split `validation`, or of the pairs trained on where it has none. No "
        "effect without `train.pictures_every`.",
    )
    trackers: list[str] = told(
        [],
        "Other programs that are told the numbers too, by accelerate: `tensorboard`, `wandb`. What is installed for "
        "them is their own. `metrics.jsonl` is always written.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if kept(self.keep_checkpoints).best and not self.evaluate_every:
            raise ValueError("keep_checkpoints = 'best' needs train.evaluate_every, by which the best is known")
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"trackers knows {' and '.join(TRACKERS)}, not {unknown[0]!r}")
        return self


RANK = 8  # of adapter.rank where it is left out
RATES = {"full": 1e-5, "lora": 1e-4}  # of optim.lr where it is left out


class Config(Section):
    """A training run."""

    model: str = Field(
        description="The model to train: `mini`, a folder in diffusers' layout, one safetensors file, a run folder, or "
        "a hub id; of the layout of SDXL, Stable Diffusion 1, 2 and 3, FLUX.1 or Z-Image (Z-Image not as one file)."
    )
    pairs: str = Field(description="The folder of a pairs set.")
    cache: str | None = told(
        None,
        "The folder for what the encoders make of the pairs. What it lacks is encoded first. Left out, the folder "
        "`cache` beside the pairs.",
    )
    vae: str | None = told(
        None,
        "Another VAE than the model's own: a folder, a model folder, a safetensors file or a hub id. The run keeps it. "
        "Left out, that of the run that is trained further, else the model's own.",
    )
    prediction: Literal["epsilon", "v"] | None = told(
        None,
        "What the denoiser predicts, where the model's file does not say it or contradicts itself. Only for Stable "
        "Diffusion 1, 2 and XL. Left out, it is as the model says.",
    )
    loras: list[str] = told(
        [],
        "LoRAs that lie on the model before training, each `FILE` or `FILE:WEIGHT`: a .safetensors file of any common "
        "trainer, a folder with pytorch_lora_weights.safetensors in it, a run folder or RUN@STEP. `adapter.start` says "
        "what becomes of them.",
    )
    objective: ObjectiveConfig = Field(default_factory=lambda: ObjectiveConfig.model_validate({}))
    adapter: AdapterConfig = AdapterConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @property
    def rate(self) -> float:
        """The learning rate that was set, or that of the adapter."""
        return self.optim.lr if self.optim.lr is not None else RATES[self.adapter.kind]


def _known_keys(section: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    for name in path:
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        section = inner[0]
    return list(section.model_fields)


def make_config(values: Mapping[str, Any]) -> Config:
    """A checked configuration, or one error that names the key and says what it may be."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as failure:
        error = failure.errors()[0]
        where = ".".join(str(p) for p in error["loc"])
        if error["type"] == "extra_forbidden":
            path = tuple(str(p) for p in error["loc"])
            elsewhere = [f"{s}.{path[-1]}" for s in Config.model_fields if path[-1] in _known_keys(Config, (s,))]
            section = "".join(f"{name}." for name in path[:-1])
            near = suggest(path[-1], _known_keys(Config, path[:-1]), section)
            hint = f"Did you mean {elsewhere[0]!r}?" if elsewhere else near
            raise MapoError(f"There is no setting {where!r}. {hint}") from None
        if error["type"] == "missing":
            raise MapoError(f"The setting {where} is missing.") from None
        if error["type"] in ("model_type", "model_attributes_type"):
            example = f"{where}.{_known_keys(Config, (where,))[0]}"
            raise MapoError(f"{where} is a section of settings; set one of them, such as {example}.") from None
        why = error["msg"].removeprefix("Value error, ")
        if isinstance(error["input"], Mapping) and where:  # what a section holds, together
            raise MapoError(f"The section {where} does not fit: {why}.") from None
        if error["type"] == "list_type":
            why = 'it is a list, such as ["NAME"]'
        raise MapoError(f"The setting {where} = {error['input']!r} does not fit: {why}.") from None


def to_toml(config: Config) -> str:
    """The configuration as TOML, every value spelled out."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))
