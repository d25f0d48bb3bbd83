"""Pairs are built: by a recipe, of somebody's own pictures against drawings, or of pictures that share a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mapo.cli.shared import (
    CLIP_SKIP,
    DRAWS,
    GUIDANCE,
    LONG_PROMPTS,
    LORA,
    OUT,
    PRECISION,
    Verb,
    asked_shard,
    cli,
    model_options,
    say,
    shard_done,
)
from mapo.errors import MapoError, count


@cli.command(
    cls=Verb,
    example="mapo build pick-style-cartoon --model mini --prompts mini:train --num-pairs 64 --out work/pairs",
)
@click.argument("recipe", required=False)
@click.option("--model", help=DRAWS)
@click.option(
    "--prompts",
    help="Where the prompts are: mini:train, a .txt, .csv, .tsv, .json, .jsonl or .parquet file, a pairs set, or a "
    "set on the hub.",
)
@click.option("--num-pairs", type=int, help="How many pairs to make.")
@click.option(
    "--chosen",
    type=OUT,
    metavar="PICTURES",
    help="In place of a RECIPE: a folder of pictures with captions. They are chosen, each against a drawing of "
    "--rejected-from; or, with --model, without rejected pictures, in the frames of that model.",
)
@click.option("--rejected-from", metavar="MODEL", help="The model that draws from the same captions, with --chosen.")
@click.option(
    "--rejected",
    type=OUT,
    metavar="FOLDER",
    help="In its place: the rejected pictures, each of the same name as its chosen one. --model says whose frames both "
    "are cut to.",
)
@click.option(
    "--rejected-per-picture",
    "per_picture",
    type=int,
    help="Drawings of each caption, with --chosen; 1 by default. All become pairs, or the one that --judge likes best.",
)
@click.option(
    "--from-images",
    type=OUT,
    metavar="PICTURES",
    help="In place of a RECIPE: a folder of pictures that other programs made, such as ComfyUI's output. Those of one "
    "prompt become pairs, by --judge.",
)
@click.option(
    "--rankings",
    type=click.Choice(["best-worst", "all"]),
    default="best-worst",
    show_default=True,
    help="With --from-images: only the best picture of a prompt with its worst, or every two on which judges agree.",
)
@click.option(
    "--sensitive",
    is_flag=True,
    help="With --from-images: pages blur the set, and no prompt is used that could mean minors.",
)
@click.option(
    "--captions",
    type=OUT,
    help="A file that `mapo caption` wrote, or a list of pictures and prompts, with --chosen or --from-images; "
    "default: as PICTURES say.",
)
@click.option("--resolution", type=int, help="Pixels at which is trained, with --chosen; default: the model's own.")
@click.option("--out", type=OUT, required=True, help="The pairs set to write. The same command again goes on.")
@click.option(
    "--judge",
    "judges",
    multiple=True,
    help="Keep a pair only where SCORER:METRIC prefers the chosen picture (:-METRIC if less is better), or where that "
    "picture scores above SCORER:METRIC:THRESHOLD.",
)
@click.option("--prefix", "prefixes", multiple=True, metavar="SIDE=WORDS", help="Another prefix, chosen or rejected.")
@click.option("--candidates", type=int, help="Pictures of each prompt, for a recipe that takes the best and the worst.")
@click.option(
    "--seeds",
    type=click.Choice(["same", "other"]),
    help="Whether both pictures of a pair begin with the same noise; default: as the recipe says.",
)
@click.option(
    "--context", metavar="HOW", help="Take style words out of prompts: rules, local:MODEL, endpoint:URL, none."
)
@click.option("--context-model", metavar="NAME", help="The model at the endpoint; its key: MAPO_ENDPOINT_KEY.")
@click.option(
    "--keep", type=click.Choice(["pictures", "rejected-as-latents"]), default="pictures", show_default=True,
    help="What the set keeps: all pictures, or of rejected ones only latents, which nobody can look at.",
)  # fmt: skip
@click.option(
    "--latents-for",
    metavar="MODEL",
    help="The model whose VAE encodes the rejected pictures that are not kept; default: --model.",
)
@click.option("--shard", metavar="I/N", help="Make this share of the work; default: as torchrun or Slurm say.")
@click.option("--steps", type=int, help="Denoising steps; default: the model's own advice.")
@GUIDANCE
@PRECISION
@click.option("--images-per-batch", type=int, help="Pictures made at a time.")
@model_options
@LORA
@CLIP_SKIP
@LONG_PROMPTS
def build(out: Path, **how: Any) -> None:
    """Let a model make pairs.

    RECIPE is a name such as pick-style-cartoon, or a TOML file. With --chosen PICTURES --rejected-from MODEL in its
    place, make pairs of pictures of your own and of what the model draws from their captions; with --chosen PICTURES
    --rejected FOLDER --model MODEL, of two folders of yours. With --from-images PICTURES --judge SCORER:METRIC, make
    pairs of pictures that are there already: no model draws. With --chosen PICTURES --model MODEL nothing is drawn: the
    set has no rejected pictures, for `mapo train --objective sft`.
    """
    if how["rejected"] is not None:
        _build_beside(out, _only(how, "--rejected"))
    elif how["chosen"] is not None and how["rejected_from"] is None:
        _build_alone(out, _only(how, ALONE))
    elif how["chosen"] is not None:
        _build_against(out, _only(how, "--chosen"))
    elif how["from_images"] is not None:
        _build_from_images(out, _only(how, "--from-images"))
    else:
        _build_by_recipe(out, _only(how, RECIPE))


RECIPE, ALONE = "a RECIPE", "--chosen without --rejected-from"
BY_RECIPE = (
    "recipe", "model", "prompts", "num_pairs", "prefixes", "candidates", "seeds", "context", "context_model",
    "latents_for", "keep",
)  # fmt: skip
OF_MODEL = ("clip_skip", "long_prompts", "vae", "prediction", "loras")
DRAWING = ("steps", "guidance", "precision", "images_per_batch", *OF_MODEL)
TAKES = {
    RECIPE: ("shard", "judges", *BY_RECIPE, *DRAWING),
    "--chosen": ("chosen", "rejected_from", "per_picture", "resolution", "captions", "judges", *DRAWING),
    ALONE: ("chosen", "model", "resolution", "captions", *OF_MODEL),
    "--rejected": ("chosen", "rejected", "model", "resolution", "captions", *OF_MODEL),
    "--from-images": ("from_images", "rankings", "sensitive", "captions", "judges", "shard"),
}  # options of each way to build
NAMES = {
    "recipe": "RECIPE", "per_picture": "--rejected-per-picture", "prefixes": "--prefix", "loras": "--lora",
    "judges": "--judge",
}  # fmt: skip


def _flag(name: str) -> str:
    return NAMES.get(name, f"--{name.replace('_', '-')}")


def _only(how: dict[str, Any], way: str) -> dict[str, Any]:
    """The options of this way to build; MapoError names one that was given and is of another."""
    asked = click.get_current_context().get_parameter_source
    for name in how:
        if name not in TAKES[way] and asked(name) is ParameterSource.COMMANDLINE:
            if way != RECIPE:
                raise MapoError(f"{_flag(name)} does not go with {way}. Leave it out.")
            others = [other for other in ("--chosen", "--from-images") if name in TAKES[other]]
            raise MapoError(f"{_flag(name)} goes with {' or '.join(others)}.")
    return {name: value for name, value in how.items() if name in TAKES[way]}


def _build_by_recipe(out: Path, how: dict[str, Any]) -> None:
    from mapo.build.verb import build

    for name in ("recipe", "model", "prompts", "num_pairs"):
        if how[name] is None:
            what = (
                "Name a RECIPE, or pictures of your own with --chosen or --from-images"
                if name == "recipe"
                else f"Give {_flag(name)}"
            )
            raise MapoError(f"{what}. See mapo build --help.")
    how["shard"] = asked_shard(how["shard"])
    counts = build(how.pop("recipe"), how.pop("model"), how.pop("prompts"), how.pop("num_pairs"), out, **how)
    if counts is None:
        say(shard_done(how["shard"], out))
        return
    from mapo.build.build import describe

    say(f"{count(counts['pairs'], 'pair')} in {out} ({describe(counts)})")


def _build_against(out: Path, how: dict[str, Any]) -> None:
    """Pairs of somebody's own pictures and of a model's drawings."""
    from mapo.build.against import told
    from mapo.build.verb import build_against

    how["per_picture"] = 1 if how["per_picture"] is None else how["per_picture"]
    say(f"{out}: {told(build_against(how.pop('chosen'), how.pop('rejected_from'), out, **how))}")


def _build_alone(out: Path, how: dict[str, Any]) -> None:
    """Somebody's own pictures, without rejected ones."""
    from mapo.build.against import told
    from mapo.build.verb import build_alone

    if how["model"] is None:
        raise MapoError(
            "With --chosen give --rejected-from MODEL, which draws rejected pictures, --rejected FOLDER, which has "
            "them, or --model, for none."
        )
    say(f"{out}: {told(build_alone(how.pop('chosen'), how.pop('model'), out, **how), drawn=False)}")


def _build_beside(out: Path, how: dict[str, Any]) -> None:
    """Pairs of two folders of pictures."""
    from mapo.build.against import told
    from mapo.build.verb import build_beside

    for name, what in (("chosen", "PICTURES, the chosen ones"), ("model", "MODEL, whose frames both are cut to")):
        if how[name] is None:
            raise MapoError(f"--rejected needs --{name} {what}.")
    counts = build_beside(how.pop("chosen"), how.pop("rejected"), how.pop("model"), out, **how)
    say(f"{out}: {told(counts)}")


def _build_from_images(out: Path, how: dict[str, Any]) -> None:
    """Pairs of pictures that share a prompt."""
    from mapo.build.from_images import told
    from mapo.build.verb import build_from_images

    how["shard"] = asked_shard(how["shard"])
    counts = build_from_images(how.pop("from_images"), out, **how)
    say(shard_done(how["shard"], out) if counts is None else f"{out}: {told(counts)}")
