"""Training: encoded once, then trained on."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mapo.cli.shared import (
    BEGINS_AGAIN,
    CLIP_SKIP,
    LONG_PROMPTS,
    LORA,
    MODEL_OPTIONS,
    OUT,
    TRAINABLE,
    Verb,
    asked_shard,
    cli,
    import_options,
    imports_of,
    model_options,
    page_options,
    say,
    shard_done,
    told_rate,
)
from mapo.errors import MapoError, count


@cli.command(
    cls=Verb,
    example="mapo encode --model mini --pairs work/pairs --out work/cache\n"
    "mapo encode pickapic/data --stream --model mini --pairs work/pairs --out work/cache",
)
@click.argument("source", required=False)
@click.option("--model", required=True, help=TRAINABLE)
@click.option("--pairs", type=OUT, required=True, help="A pairs set; with --stream the one to write.")
@click.option("--out", type=OUT, required=True, help="The cache to write, or to complete.")
@click.option("--resolution", type=int, help="Side in pixels; default: the model's own.")
@click.option("--buckets", is_flag=True, help="Wide and tall pictures in frames of their shape (for data.buckets).")
@click.option("--flip", is_flag=True, help="Encode every picture mirrored as well (for data.flip).")
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
    help="How latents and text are kept (for data.cache_precision). The two others halve the cache.",
)  # fmt: skip
@model_options
@LORA
@CLIP_SKIP
@LONG_PROMPTS
@click.option(
    "--images-per-batch", type=int, default=8, show_default=True,
    help="Pictures that are encoded at a time. Fewer take less memory.",
)  # fmt: skip
@click.option("--shard", metavar="I/N", help="Encode this share of the set; default: as torchrun or Slurm say.")
@click.option("--stream", is_flag=True, help="Make the set of SOURCE meanwhile, and keep no picture on disk.")
@import_options
def encode(
    source: str | None, stream: bool, pairs: Path, out: Path, shard: str | None, **how: Any
) -> None:  # fmt: skip
    """Encode a set once, for all training runs.

    Pictures become latents, and prompts what the model reads of them. The same command again goes on.

    With --stream the set does not have to be there: SOURCE is what `mapo import` reads, a file, a folder or a set on
    the hub. Each picture is encoded while it is read, and never kept. The set then has prompts, and hashes in place of
    pictures: it can be trained on with this cache, and not be looked at. --format and what follows are for --stream.
    """
    from mapo.encode.verb import encode

    if stream != (source is not None):
        raise MapoError("Give SOURCE and --stream together: SOURCE is encoded while it is read. Or give neither.")
    imports = imports_of(how)
    how["shard"] = asked_shard(shard)
    made = encode(pairs=pairs, out=out, source=source, imports=imports, **how)
    if made.read and made.read.seconds:
        say(told_rate(made.read.bytes, made.read.seconds))
    if not made.whole:
        say(shard_done(how["shard"], out))
        return
    said = f"{count(len(made.pairs), 'pair')} {'is' if len(made.pairs) == 1 else 'are'} encoded in {out}"
    say("; ".join([said, ", ".join(made.losses)] if made.losses else [said]))


def _recipes() -> tuple[str, list[str]]:
    from mapo.train.recipes.recipe import recipe_list

    return "Recipes", recipe_list()


TRAINING = (
    click.option("--model", help=TRAINABLE),
    click.option("--pairs", help="A pairs set."),
    click.option("--cache", help="A cache; default: the folder `cache` beside the pairs, made when it is not there."),
    click.option(
        "--objective",
        help="The objective: mapo (default), mapo_aaai, mapo_relative, sft, orpo, dpo, ipo, poly_dpo, sdpo or kto; or "
        "a function of your own, as file.py:name.",
    ),
    click.option("--adapter", type=click.Choice(["full", "lora"]), help="What is trained; default: full."),
    click.option(
        "--targets", multiple=True, metavar="PATTERN",
        help="Layers to lay the LoRA beside, by their names or the ends of them, such as to_q or 'mid_block.*'; "
        "default: those of attention.",
    ),
    click.option(
        "--text-encoders", is_flag=True, default=None, help="A LoRA beside the text encoders too, with --adapter lora."
    ),
    *MODEL_OPTIONS,
    LORA,
    click.option(
        "--allow-distilled", is_flag=True, default=None, help="Train a model that was distilled to few steps."
    ),
    LONG_PROMPTS,
    click.option(
        "--keep", metavar="RULE",
        help="Checkpoints that stay, such as best,last,every:1000 (for train.keep_checkpoints); default: the last one.",
    ),
    click.option("--recipe", metavar="NAME", help="Settings that belong together, by a name of the list below."),
    click.option("--config", "config_file", type=OUT, help="A TOML file of settings."),
    click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting, such as optim.lr=1e-5."
    ),
)  # fmt: skip


class OfSettings(Verb):
    """A verb whose flags are few and whose settings are many: a setting that is written as a flag is told how to be."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags; MapoError where one is a setting's name."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.lstrip("-").replace("-", "_")
            if keys := _settings_called(name):
                told = " or ".join(f"--set {key}=VALUE" for key in keys)
                raise MapoError(
                    f"{error.option_name} is not a flag of `mapo {self.name}` but a setting: {told}."
                ) from None
            raise


def _settings_called(name: str) -> list[str]:
    from mapo.settings import keys_called
    from mapo.train.config import Config

    if found := keys_called(Config, name):
        return found
    from mapo.train.objectives import OBJECTIVES

    of_objectives = {f"objective.{key}" for objective in OBJECTIVES.values() for key in objective.settings}
    return [key for key in sorted(of_objectives) if name in (key, key.rpartition(".")[2])]


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is trained and how, for `train` and `plan`."""
    for option in reversed(TRAINING):
        command = option(command)
    return command


def _settings(config_file: Path | None, assignments: tuple[str, ...]) -> dict[str, Any]:
    from mapo.settings import merge, parse_set, read_toml

    return merge(read_toml(config_file) if config_file else {}, parse_set(assignments))


@cli.command(
    cls=OfSettings,
    more=_recipes,
    example="mapo train --model mini --pairs work/pairs --out work/run --set optim.lr=1e-4 --set train.steps=100\n"
    "mapo train --recipe mini-cartoon --pairs work/pairs --out work/run",
)
@click.option("--out", type=OUT, required=True, help="The run folder. The same command again goes on where it stopped.")
@click.option(
    "--allow-change", is_flag=True,
    help="Go on with a run although settings that decide its result are others now. What changed is written down.",
)  # fmt: skip
@training_options
def train(
    out: Path, config_file: Path | None, assignments: tuple[str, ...], loras: tuple[str, ...],
    targets: tuple[str, ...], **flags: Any,
) -> None:  # fmt: skip
    """Train on a pairs set.

    Settings come from --recipe, then --config, then --set, then the other flags. The later one wins.
    """
    from mapo.train.verb import train
    from mapo.watch.verb import hands

    settings = _settings(config_file, assignments)
    if train(out, settings, loras=list(loras) or None, targets=list(targets) or None, hands=hands, **flags):
        name = shlex.quote(str(out))
        say(f"the run is in {out}; look at it with: mapo sample --model {name} --prompts FILE --out IMAGES")


@cli.command(
    cls=OfSettings,
    more=_recipes,
    stopped=BEGINS_AGAIN,
    example="mapo plan --model mini --pairs work/pairs --adapter lora --memory 8GB",
)
@click.option("--out", type=OUT, help="A run whose settings count and whose steps were timed.")
@click.option("--memory", metavar="SIZE", help="Such as 24GB; default: the memory of the device at hand.")
@click.option(
    "--processes", type=click.IntRange(1), help="Of the training, one to a device; default: those that are started."
)
@training_options
def plan(
    config_file: Path | None, assignments: tuple[str, ...], loras: tuple[str, ...], targets: tuple[str, ...],
    **flags: Any,
) -> None:  # fmt: skip
    """Say what a training needs before it begins.

    That is memory, by kind, and disk. It takes the options of `mapo train`, reads no weights and writes nothing. Where
    the training does not fit it names the smallest change that makes it fit, and the exit code is 1.
    """
    from mapo.train.verb import plan

    settings = _settings(config_file, assignments)
    found = plan(settings, loras=list(loras) or None, targets=list(targets) or None, **flags)
    for line in found.lines() if asked_shard(None)[0] == 0 else ():  # of several processes the first one says it
        say(line)
    if not found.fits:
        sys.exit(1)


@cli.command(cls=Verb, example="mapo watch work/run")
@click.argument("run", type=OUT)
@page_options(8001)
def watch(run: Path, **how: Any) -> None:
    """Show a run on a local web page while it goes on.

    The page has curves, alarms and pictures, and shows them afterwards too. It only reads the folder RUN. The training
    is not slowed, and goes on when the page is ended.
    """
    from mapo.watch.verb import watch

    watch(run, say=say, **how)
