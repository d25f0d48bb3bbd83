"""Pictures: made, scored, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mapo.cli.shared import (
    BEGINS_AGAIN,
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


@cli.command(cls=Verb, example="mapo sample --model mini --prompts mini:test --seeds 0-1 --out work/before")
@click.option("--model", required=True, help=DRAWS)
@click.option(
    "--prompts",
    help="Where the prompts are: mini:test, a .txt, .csv, .tsv, .json, .jsonl or .parquet file, a pairs set, or a "
    "set on the hub (owner/name, hf://owner/name/path); SOURCE:COLUMN for another column than prompt or caption.",
)
@click.option(
    "--prompt", "texts", multiple=True, metavar="TEXT", help="One prompt, in place of --prompts. May be repeated."
)
@click.option(
    "--seeds",
    default="0",
    show_default=True,
    help="The seeds. 0-3 makes four pictures per prompt; 4 makes one, with seed 4.",
)
@click.option("--out", type=OUT, required=True, help="The images folder to write, or to complete.")
@click.option("--steps", type=int, help="Denoising steps; default: the model's own advice.")
@GUIDANCE
@click.option(
    "--sampler",
    help="How noise is taken away: ddim, ddpm, euler, euler_a, euler_karras, heun, lms, dpmpp_2m, dpmpp_2m_karras, "
    "dpmpp_2m_sde, dpmpp_2m_sde_karras, unipc; flow_euler for models of flow matching. Default: the model's own.",
)
@click.option("--width", type=int, help="The width in pixels; default: the model's own.")
@click.option("--height", type=int, help="The height in pixels; default: the model's own.")
@click.option("--prefix", default="", help="Words to put before every prompt.")
@click.option("--negative-prompt", default="", help="What pictures should not show. No effect without guidance.")
@PRECISION
@click.option("--images-per-batch", type=int, help="Pictures made at a time.")
@model_options
@LORA
@CLIP_SKIP
@LONG_PROMPTS
@click.option("--grid", is_flag=True, help="Write OUT/grid.png as well: a row for each prompt, a column for each seed.")
@click.option(
    "--compare",
    type=OUT,
    multiple=True,
    metavar="IMAGES",
    help="Put the same pictures of this images folder beside them in the grid. May be repeated; implies --grid.",
)
@click.option("--shard", metavar="I/N", help="Draw this share of the pictures; default: as torchrun or Slurm say.")
def sample(
    model: str, prompts: str | None, texts: tuple[str, ...], seeds: str, out: Path, shard: str | None, **how: Any
) -> None:  # fmt: skip
    """Make pictures. Same prompts and seeds, same noise, whatever the model and however many processes."""
    from mapo.sample.verb import sample

    if (prompts is None) == (not texts):
        raise MapoError("Give either --prompts, a file or set of prompts, or --prompt TEXT, one prompt or several.")
    how["shard"] = asked_shard(shard)
    rows = sample(model, prompts if prompts is not None else list(texts), seeds, out, **how)
    if rows is None:
        say(shard_done(how["shard"], out))
        return
    say(f"{count(len(rows), 'picture')} in {out}")
    if how["grid"] or how["compare"]:
        say(f"they are laid out in {out / 'grid.png'}")


@cli.command(cls=Verb, example="mapo caption my-pictures --out work/captions.jsonl")
@click.argument("pictures", type=OUT)
@click.option("--out", type=OUT, required=True, help="The file of captions to write, or to bring up to date.")
@click.option(
    "--caption-with",
    metavar="MODEL",
    help="Let a model write the captions that are missing: a folder or hub id of Florence-2, BLIP or another model of "
    "transformers that describes pictures.",
)
@click.option("--raw", is_flag=True, help="Keep weights in brackets, LoRAs and style words, which are else taken out.")
@click.option("--images-per-batch", type=int, default=8, show_default=True, help="Pictures given to the model at once.")
def caption(pictures: Path, out: Path, **how: Any) -> None:
    """Put the captions of pictures into one file.

    PICTURES is a folder. The file has a line for each picture, to be read and changed by hand. A caption comes from a
    list (metadata.jsonl, a CSV), else from NAME.txt or NAME.caption beside NAME.png, else from what A1111, Forge,
    ComfyUI, Fooocus, InvokeAI, SwarmUI or NovelAI wrote into the picture. A picture without any is
    named, and nothing is written. The same command again keeps what was changed by hand.
    """
    from mapo.captions.verb import caption, counted

    captions = caption(pictures, out, **how)
    say(f"{count(len(captions), 'caption')} in {out}: {counted(captions)}")


def _scorers() -> tuple[str, list[str]]:
    """What the help of `mapo score` says of them."""
    from mapo.score.scorers import GROUPS, SCORERS

    groups = [f"{name}: {' and '.join(members)}" for name, members in GROUPS.items()]
    return "Scorers", sorted([*SCORERS, *groups])


@cli.command(cls=Verb, more=_scorers, example="mapo score work/before --scorer mini --out work/before-scores.parquet")
@click.argument("images", type=OUT)
@click.option(
    "--scorer",
    help="Scorers, separated by commas; NAME@SOURCE with weights of your own. Default: mini and guards for pictures of "
    "the built-in model, for others every scorer whose weights are on this machine.",
)
@click.option("--out", type=OUT, required=True, help="The table of scores to write, or to complete.")
@click.option(
    "--references", type=OUT, help="For scorers that compare: an images folder, or a pairs set's chosen ones."
)
@click.option("--shard", metavar="I/N", help="Score this share of the pictures; default: as torchrun or Slurm say.")
@click.option("--images-per-batch", type=int, default=64, show_default=True, help="Pictures given to a scorer at once.")
def score(images: Path, scorer: str | None, out: Path, shard: str | None, **how: Any) -> None:
    """Give numbers to the pictures of a folder.

    IMAGES is a folder of `mapo sample`, or anybody's pictures with their prompts.
    Prompts lie in metadata.jsonl or a CSV (file_name, prompt, and seed if you like), or in NAME.txt beside NAME.png.
    The same command again goes on where it was stopped, and scores only pictures that are new or have changed.
    """
    from mapo.score.verb import score

    how["shard"] = asked_shard(shard)
    counts = score(images, scorer, out, **how)
    if counts is None:
        say(shard_done(how["shard"], out))
        return
    scored = counts["pictures"] - counts["without_number"]
    some = f"{scored} of " if counts["without_number"] else ""
    done = "" if counts["scored"] else "; nothing was left to do"
    are = "is" if scored == 1 else "are"
    say(f"{some}{count(counts['pictures'], 'picture')} {are} scored in {out}{done}")


@cli.command(
    cls=Verb,
    stopped=f"{BEGINS_AGAIN}, with the scores that are there",
    example="mapo report --before work/before --after work/after --goal cartoon --out work/report.html",
)
@click.option("--before", type=OUT, required=True, help="Images of the model before, or anybody's with their prompts.")
@click.option("--after", type=OUT, required=True, help="Images of the model after, same prompts and seeds.")
@click.option("--scores", type=OUT, multiple=True, help="Tables of scores of both; default: made beside --out.")
@click.option("--scorer", help="The scorers to use where --scores is not given; default: as in `mapo score`.")
@click.option("--votes", type=OUT, multiple=True, help="Votes of `mapo label --before … --after …`, as a win rate.")
@click.option("--goal", help="The metric that the verdict is about; -METRIC where less is better.")
@click.option(
    "--run",
    type=OUT,
    help="The run that made the pictures after: adds its curves and pairs, and leaves out prompts it was trained on.",
)
@click.option(
    "--judge-of-pairs",
    "judges_of_pairs",
    multiple=True,
    help="A scorer to be marked as one that made or filtered the training pairs; those that --run knows are.",
)
@click.option("--blur", is_flag=True, help="Blur pictures until asked; done by itself after a sensitive pairs set.")
@click.option("--out", type=OUT, required=True, help="The HTML page to write.")
def report(before: Path, after: Path, out: Path, **how: Any) -> None:
    """Compare two images folders.

    One page shows pictures, win rates and intervals.
    """
    from mapo.report.verb import report

    summary = report(before, after, out, **how)
    say(summary["verdict"].replace("\u202f", " "))  # no thin spaces in a terminal
    say(f"the report is {out}")
    if how["goal"] is None and summary["headline"] is None:
        goals = [f"{'-' if c['lower_is_better'] else ''}{c['metric']}" for c in summary["comparisons"]]
        say(f"Say what counts with --goal: {', '.join(dict.fromkeys(goals))}")
