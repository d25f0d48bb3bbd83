"""What a training run can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from mapo.errors import MapoError, suggest
from mapo.settings import NotNegative, Number, Positive, Section, told, why_not
from mapo.train.kept import kept
from mapo.train.sections import RATES, AdapterConfig, DataConfig, ObjectiveConfig, OptimConfig


def _kept(value: Any) -> Any:
    kept(value)
    return value


def _truth_for_small(value: int) -> int:
    if value < 0:
        raise ValueError("it has to be true, false or a whole number, at least 1")
    return bool(value) if value < 2 else value


KeptCheckpoints = Annotated[int | str, BeforeValidator(_kept)]
Checkpointing = Annotated[bool | int, AfterValidator(_truth_for_small)]  # 1 is true, and 0 false


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
        "What a model with a guidance embedding, such as FLUX.1 dev, is told in training. No effect with others, which "
        "a line says.",
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
        "Steps between measurements on held-out pairs, those of the split `validation`, or of `test` where it has "
        "none, with the same noise and timesteps each time; also before the first step and after the last. 0: none. "
        "They go into `evaluations.jsonl` and change no result.",
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
        "Other programs that are told the numbers too, by the names that accelerate has for them: `tensorboard`, "
        "`wandb`, `mlflow`, `comet_ml`, `aim`, `clearml`, `dvclive`, `swanlab`, `trackio`. Each has its own package, "
        "and its own settings say where to. `metrics.jsonl` is always written.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if kept(self.keep_checkpoints).best and not self.evaluate_every:
            raise ValueError("keep_checkpoints = 'best' needs train.evaluate_every, by which the best is known")
        return self


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
        why = why_not(error)
        if isinstance(error["input"], Mapping) and where:  # what a section holds, together
            raise MapoError(f"The section {where} does not fit: {why}.") from None
        raise MapoError(f"The setting {where} = {error['input']!r} does not fit: {why}.") from None


def to_toml(config: Config) -> str:
    """The configuration as TOML, every value spelled out."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))
