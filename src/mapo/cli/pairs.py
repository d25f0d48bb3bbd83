"""Pairs: brought in, looked at, measured, given to other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mapo.cli.shared import (
    BEGINS_AGAIN,
    CLIP_SKIP,
    GUIDANCE,
    LONG_PROMPTS,
    LORA,
    OUT,
    PRECISION,
    TRAINABLE,
    Verb,
    cli,
    import_options,
    model_options,
    say,
)
from mapo.errors import count


@cli.command(cls=Verb, stopped=BEGINS_AGAIN, example="mapo remake work/pairs --pair 0123456789abcdef --out work/again")
@click.argument("pairs", type=OUT)
@click.option(
    "--pair", "ids", multiple=True, required=True, metavar="ID", help="The id of a pair; several if you like."
)
@click.option("--out", type=OUT, required=True, help="The folder to write the pictures into.")
def remake(pairs: Path, ids: tuple[str, ...], out: Path) -> None:
    """Make the pictures of built pairs again, and compare.

    They are made from their rows in the set PAIRS. The exit code is 1 where one differs.
    """
    from mapo.build.remake import remake_pairs
    from mapo.pairs import PairSet

    found = remake_pairs(PairSet(pairs), ids, out)
    for picture in found:
        same = "the same to the bit" if picture.same else "DIFFERS from that of the set"
        where = picture.file or "not written, as the set keeps its latents only"
        say(f"{picture.pair} {picture.side:8} {same}: {where}")
    if not all(picture.same for picture in found):
        say("Other versions of the libraries or another machine round otherwise; look at the pictures.")
        sys.exit(1)


@cli.command("import", cls=Verb, example="mapo import rankings.jsonl --out work/pairs")
@click.argument("source")
@click.option("--out", type=OUT, required=True, help="The pairs set to write.")
@click.option(
    "--rejected-from", type=OUT, metavar="IMAGES",
    help="For a SOURCE of good pictures with prompts: an images folder that has the rejected ones of each prompt.",
)  # fmt: skip
@import_options
def import_(source: str, out: Path, **how: Any) -> None:
    """Make a pairs set from what you have.

    SOURCE is a file, a folder, or a set on the hub (owner/name, or hf://owner/name/path).

    Two folders chosen/ and rejected/ (or w/ and l/): the two pictures of a pair have one name, and the prompt is the
    line of NAME.txt beside either. Or rows: pairs (prompt, chosen, rejected), rankings or scores, as Parquet, JSON
    lines, a JSON list, CSV, TSV, a folder of save_to_disk, or WebDataset tars. Pick-a-Pic, HPDv2 and ImageRewardDB are
    read as they are. Splits that a source publishes are kept.

    Good pictures only? Draw others of the same prompts with `mapo sample`, and name their folder with --rejected-from.
    Both kinds are read as `mapo score` reads them, and are paired by prompt, in the order of their seeds or names.

    An import that was interrupted goes on with the same command.
    """
    from mapo.sample.partners import import_with_partners

    counts = import_with_partners(source, out, **how)
    ties = f"{count(counts['ties'], 'tie')} {'kept' if how['ties'] == 'keep' else 'dropped'}"
    rest = f"{count(counts['repeats'], 'repeat')}, {counts['bad']} bad"
    say(f"{count(counts['pairs'], 'pair')} in {out} ({ties}, {rest})")


@cli.command(cls=Verb, stopped=BEGINS_AGAIN, example="mapo check work/pairs --model mini --out work/check.html")
@click.argument("pairs", type=OUT)
@click.option("--out", type=OUT, default=Path("check.html"), show_default=True, help="The HTML page to write.")
@click.option(
    "--model",
    help="The model that the set is for: mini, a folder, a file or a hub id. Prompts and pictures are measured by it.",
)
@model_options
@LORA
@LONG_PROMPTS
@click.option("--buckets", is_flag=True, help="Look as a training with data.buckets does.")
@click.option("--json", "json_file", type=OUT, help="Write the numbers into this file too.")
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
def check(pairs: Path, strict: bool, **how: Any) -> None:
    """Look for what is wrong in the set PAIRS. The exit code is 1 when there are errors, 0 when there are none."""
    from mapo.check.check import lines
    from mapo.check.verb import check

    found = check(pairs, **how)
    say("\n".join(lines(found)))
    say(f"the page is {how['out']}")
    if found["errors"] or (strict and found["warnings"]):
        sys.exit(1)


@cli.command(cls=Verb, example="mapo mismatch --model mini --pairs work/pairs --num-pairs 32 --out work/mismatch.json")
@click.option("--model", required=True, help=TRAINABLE)
@click.option("--pairs", type=OUT, required=True, help="A pairs set.")
@click.option("--out", type=OUT, default=Path("mismatch.json"), show_default=True, help="The numbers to write.")
@click.option(
    "--encoder", help="A scorer that embeds pictures, such as dinov2, or none; default: dinov2, for mini mini-learned."
)
@click.option(
    "--split", default="train", show_default=True, help="The split to measure: train, validation, test or all."
)
@click.option("--num-pairs", type=int, default=128, show_default=True, help="Measure at most so many, at random.")
@click.option(
    "--seeds",
    default="1000-1001",
    show_default=True,
    help="The seeds of the model's own samples. Take others than those that the set was made with.",
)
@click.option("--resolution", type=int, help="Pixels at which will be trained; default: the model's own.")
@click.option(
    "--buckets", is_flag=True, help="Wide and tall pictures in frames of their shape, as data.buckets trains."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The seed by which pairs, noise and timesteps are chosen."
)
@click.option("--steps", type=int, help="Denoising steps; default: the model's own advice.")
@GUIDANCE
@PRECISION
@click.option("--images-per-batch", type=int, help="Pictures at a time.")
@model_options
@LORA
@CLIP_SKIP
@LONG_PROMPTS
def mismatch(model: str, pairs: Path, out: Path, seeds: str, **how: Any) -> None:
    """Measure how far the pairs are from the model.

    This is asked before anything is trained.

    The model's own samples of the same prompts, which lie in an images folder beside --out, are compared with the
    chosen and the rejected pictures: by the distance of embeddings, and by the model's denoising error.
    """
    from mapo.mismatch.verb import mismatch

    _, said = mismatch(model, pairs, out, seeds, **how)
    say("\n".join(said))
    say(f"the numbers are in {out}")


@cli.command(cls=Verb, stopped=BEGINS_AGAIN, example="mapo export work/run --to lora --out work/my-lora")
@click.argument("source")
@click.option(
    "--to",
    "format",
    required=True,
    help="The form to write. Of a run: diffusers (a whole model), lora, kohya (a LoRA for ComfyUI and A1111), "
    "embedding (the token that it has learned, for all of these), single-file (a checkpoint for ComfyUI and A1111), or "
    "hub. Of a pairs set: preference (Hugging Face), pickapic, or hub.",
)
@click.option(
    "--out",
    type=OUT,
    help="The folder to write, with a card in it; with --to hub by default SOURCE-hub, beside it. Where it ends in "
    ".safetensors a LoRA or checkpoint is written as that file alone.",
)
@click.option("--repo", metavar="OWNER/NAME", help="With --to hub: upload to this repository, by your `hf auth login`.")
@click.option(
    "--private/--public",
    default=None,
    help="Who sees it on the hub. Default: a run is private; a set is public, if not sensitive.",
)
@click.option(
    "--license",
    "--licence",
    "licence",
    help="The licence, by the hub's name for it, such as cc-by-4.0. Of a run: where that of its base is not known.",
)
@click.option(
    "--precision", help="The precision of a run's weights: float32, float16, or bfloat16 (only with diffusers)."
)
@click.option(
    "--scores", type=OUT, multiple=True, help="Tables of `mapo score` with pictures of the run, for its card."
)
@click.option("--base-model", metavar="OWNER/NAME", help="The hub id of a run's base that is a folder or a file here.")
@click.option(
    "--on-missing-picture", type=click.Choice(["stop", "drop"]), default="stop", show_default=True,
    help="What happens at a pair of which the set keeps no picture: stop and say so, or leave the pair out.",
)  # fmt: skip
@click.option(
    "--source-license",
    "source_licences",
    multiple=True,
    metavar="SOURCE=LICENSE",
    help="The licence of a source that the set is made of. May be repeated.",
)
def export(source: str, format: str, out: Path | None, **how: Any) -> None:
    """Write a run or a pairs set for other programs.

    A run is written as they open it, a pairs set as they read it. Either can be published on the hub.

    SOURCE is a run folder, a checkpoint of one (RUN@STEP), or a pairs set. --to hub without --repo only writes the
    folder: look at its README.md, mend it, then repeat the command with --repo.
    """
    from mapo.export.verb import describe, export

    made = export(source, format, out, **how)
    folder, address = made.folder, made.address
    if format == "hub":
        before = f"{folder} was written before and is uploaded as it is"
        say(f"{describe(made, format)} in {folder}" if made.counts else before)
        say(f"published at {address}" if address else f"read {folder}/README.md, then upload with --repo OWNER/NAME")
    elif "bytes" in made.counts:
        say(f"{describe(made, format)} in {folder}")
    else:
        say(f'{describe(made, format)} in {out}; open them with datasets.load_dataset("{out}")')
