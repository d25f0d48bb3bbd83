"""The verbs. Each reads files and writes files; what a verb does stands in the module of its name."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mapo import __version__
from mapo.errors import MapoError, SaidElsewhere, count, printable, spoken
from mapo.progress import on_terminal

OUT = click.Path(path_type=Path)
TRAINABLE = "mini, a diffusers folder, a run folder, or a hub id; SDXL or Stable Diffusion 1 or 2."
CLIP_SKIP = click.option(
    "--clip-skip", type=click.IntRange(min=0),
    help="Layers left out at the end of the text encoder, for Stable Diffusion 1 and 2; default: as a run was trained.",
)  # fmt: skip


PRECISION = click.option(
    "--precision", type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the model while it makes pictures; default: the model's own advice, else float32.",
)  # fmt: skip


class Verb(click.Command):
    """A command that ends its help with an example that works; ``more`` gives the title and the lines of a list."""

    def __init__(
        self, *args: Any, example: str = "", more: Callable[[], tuple[str, list[str]]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.example, self.more = example, more

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the example as it stands."""
        if self.more:
            title, lines = self.more()
            with formatter.section(title):
                formatter.write("".join(f"  {line}\n" for line in lines))
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"  {line}\n")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mapo")
@click.pass_context
def cli(context: click.Context) -> None:
    """Align a text-to-image diffusion model with pairs of pictures, without a reference model.

    prompts -> build -> pairs -> encode -> cache -> train -> run -> sample -> images -> score -> scores -> report
    """
    context.with_resource(on_terminal())


@cli.command(
    cls=Verb,
    example="mapo build pick-style-cartoon --model mini --prompts mini:train --num-pairs 64 --out work/pairs",
)
@click.argument("recipe")
@click.option("--model", required=True, help="mini, a folder or hub id of a text-to-image pipeline, or a run folder.")
@click.option(
    "--prompts",
    required=True,
    help="mini:train, a .txt, .csv, .tsv, .json, .jsonl or .parquet file, or a set on the hub.",
)
@click.option("--num-pairs", type=int, required=True, help="How many pairs the set shall hold.")
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
@click.option("--seeds", type=click.Choice(["same", "other"]), help="Of a prompt's pictures; default: the recipe's.")
@click.option(
    "--context", metavar="HOW", help="Take style words out of prompts: rules, local:MODEL, endpoint:URL, none."
)
@click.option("--context-model", metavar="NAME", help="The model at the endpoint; its key: MAPO_ENDPOINT_KEY.")
@click.option("--keep", type=click.Choice(["pictures", "rejected-as-latents"]), default="pictures", show_default=True)
@click.option("--latents-for", metavar="MODEL", help="Whose VAE encodes rejected pictures not kept; default: --model.")
@click.option("--shard", metavar="I/N", help="Make this share of the work; default: as torchrun or Slurm say.")
@click.option("--steps", type=int, help="Denoising steps; default: the model's own advice.")
@click.option("--guidance", type=float, help="Classifier-free guidance; default: the model's own advice.")
@PRECISION
@click.option("--images-per-batch", type=int, help="Pictures made at a time.")
@CLIP_SKIP
def build(recipe: str, model: str, prompts: str, num_pairs: int, out: Path, shard: str | None, **how: Any) -> None:
    """Let a model make pairs by RECIPE: a name such as pick-style-cartoon, or a TOML file."""
    from mapo.build.verb import build
    from mapo.shards import parse_shard, shard_of_environment

    how["shard"] = parse_shard(shard) if shard else shard_of_environment()
    counts = build(recipe, model, prompts, num_pairs, out, **how)
    if counts is None:
        _say(_shard_done(how["shard"], out))
        return
    from mapo.build.build import describe

    _say(f"{count(counts['pairs'], 'pair')} in {out} ({describe(counts)})")


@cli.command(cls=Verb, example="mapo remake work/pairs --pair 0123456789abcdef --out work/again")
@click.argument("pairs", type=OUT)
@click.option(
    "--pair", "ids", multiple=True, required=True, metavar="ID", help="The id of a pair; several if you like."
)
@click.option("--out", type=OUT, required=True, help="The folder to write the pictures into.")
def remake(pairs: Path, ids: tuple[str, ...], out: Path) -> None:
    """Make the pictures of built pairs again from their rows, and compare. The exit code is 1 where one differs."""
    from mapo.build.remake import remake_pairs
    from mapo.pairs import PairSet

    found = remake_pairs(PairSet(pairs), ids, out)
    for picture in found:
        same = "the same to the bit" if picture.same else "DIFFERS from that of the set"
        where = picture.file or "not written, as the set keeps its latents only"
        _say(f"{picture.pair} {picture.side:8} {same}: {where}")
    if not all(picture.same for picture in found):
        _say("Other versions of the libraries or another machine round otherwise; look at the pictures.")
        sys.exit(1)


@cli.command("import", cls=Verb, example="mapo import rankings.jsonl --out work/pairs")
@click.argument("source")
@click.option("--out", type=OUT, required=True, help="The pairs set to write.")
@click.option(
    "--format",
    help="pickapic, preference, ranking, scores, hpdv2, imagereward, jsonl or folders; found by itself when left out.",
)
@click.option(
    "--columns", metavar="NAME=COLUMN,…", help="What the source calls columns, such as prompt=text,chosen=image_w."
)
@click.option(
    "--rejected-from", type=OUT, metavar="IMAGES",
    help="For a SOURCE of good pictures with prompts: an images folder that has the rejected ones of each prompt.",
)  # fmt: skip
@click.option(
    "--captions",
    type=click.Choice(["first", "join", "each"]),
    help="Where a pair has several captions: take the first, join them with commas, or make a pair of each.",
)
@click.option("--on-bad-row", type=click.Choice(["stop", "drop"]), default="stop", show_default=True)
@click.option("--ties", type=click.Choice(["drop", "keep"]), default="drop", show_default=True)
@click.option(
    "--rankings", type=click.Choice(["all", "best-worst"]), default="all", show_default=True,
    help="The pairs of a ranking.",
)  # fmt: skip
@click.option("--least-gap", type=float, default=0, help="Best and worst of scores closer than this are a tie.")
@click.option(
    "--split", type=click.Choice(["by-prompt", "train", "validation", "test"]),
    help="Put every pair into one split, or hold a fifth of the prompts out for validation and test (by-prompt). "
    "Default: as the source says, or by prompt where it says nothing.",
)  # fmt: skip
@click.option("--licence", "--license", "licence", help="The licence of the source, to be kept with the set.")
def import_(source: str, out: Path, **how: Any) -> None:
    """Make a pairs set from SOURCE: a file, a folder, or a set on the hub (owner/name, or hf://owner/name/path).

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
    _say(f"{count(counts['pairs'], 'pair')} in {out} ({ties}, {rest})")


@cli.command(cls=Verb, example="mapo check work/pairs --model mini --out work/check.html")
@click.argument("pairs", type=OUT)
@click.option("--out", type=OUT, default=Path("check.html"), show_default=True, help="The HTML page to write.")
@click.option("--model", help="mini, a folder or a hub id: its tokenizers measure prompts, its resolution pictures.")
@click.option("--json", "json_file", type=OUT, help="Write the numbers into this file too.")
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
def check(pairs: Path, strict: bool, **how: Any) -> None:
    """Look for what is wrong in a set. The exit code is 1 when there are errors, 0 when there are none."""
    from mapo.check.check import lines
    from mapo.check.verb import check

    found = check(pairs, **how)
    _say("\n".join(lines(found)))
    _say(f"the page is {how['out']}")
    if found["errors"] or (strict and found["warnings"]):
        sys.exit(1)


@cli.command(cls=Verb, example="mapo encode --model mini --pairs work/pairs --out work/cache")
@click.option("--model", required=True, help=TRAINABLE)
@click.option("--pairs", type=OUT, required=True, help="A pairs set.")
@click.option("--out", type=OUT, required=True, help="The cache to write, or to complete.")
@click.option("--resolution", type=int, help="Side in pixels; default: the model's own.")
@click.option("--flip", is_flag=True, help="Encode every picture mirrored as well (for data.flip).")
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
    help="How latents and text are kept (for data.cache_precision). The two others halve the cache.",
)  # fmt: skip
@CLIP_SKIP
@click.option(
    "--images-per-batch", type=int, default=8, show_default=True,
    help="Pictures that are encoded at a time. Fewer take less memory.",
)  # fmt: skip
def encode(pairs: Path, out: Path, **how: Any) -> None:
    """Encode the pictures and prompts of a set once, for all training runs. The same command again goes on."""
    from mapo.encode.verb import encode

    _, found, losses = encode(pairs=pairs, out=out, **how)
    said = f"{count(len(found), 'pair')} {'is' if len(found) == 1 else 'are'} encoded in {out}"
    _say("; ".join([said, ", ".join(losses)] if losses else [said]))


@cli.command(
    cls=Verb,
    example="mapo train --model mini --pairs work/pairs --out work/run --set optim.lr=1e-4 --set train.steps=100",
)
@click.option("--model", help=TRAINABLE)
@click.option("--pairs", help="A pairs set.")
@click.option("--out", type=OUT, required=True, help="The run folder. The same command again goes on where it stopped.")
@click.option("--cache", help="A cache; default: the folder `cache` beside the pairs, made when it is not there.")
@click.option(
    "--objective",
    help="mapo (default), mapo_aaai, mapo_relative, sft, orpo, dpo, ipo, poly_dpo, sdpo or kto; or a function of your "
    "own, as file.py:name.",
)
@click.option("--adapter", type=click.Choice(["full", "lora"]), help="What is trained; default: full.")
@click.option("--config", "config_file", type=OUT, help="A TOML file of settings.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting, such as optim.lr=1e-5.")
def train(out: Path, config_file: Path | None, assignments: tuple[str, ...], **flags: str | None) -> None:
    """Train on a pairs set. Settings come from --config, then --set, then the other flags."""
    from mapo.settings import merge, parse_set, read_toml
    from mapo.train.verb import train

    settings = merge(read_toml(config_file) if config_file else {}, parse_set(assignments))
    if train(out, settings, **flags):
        _say(f"the run is in {out}; look at it with: mapo sample --model {out} --prompts FILE --out IMAGES")


@cli.command(cls=Verb, example="mapo sample --model mini --prompts mini:test --seeds 0-1 --out work/before")
@click.option("--model", required=True, help="mini, a folder or hub id of a text-to-image pipeline, or a run folder.")
@click.option(
    "--prompts",
    required=True,
    help="mini:test, a .txt, .csv, .tsv, .json, .jsonl or .parquet file, or a set on the hub (owner/name, "
    "hf://owner/name/path); SOURCE:COLUMN for another column than prompt or caption.",
)
@click.option(
    "--seeds", default="0", show_default=True, help="0-3 makes four pictures per prompt; 4 makes one, with seed 4."
)
@click.option("--out", type=OUT, required=True, help="The images folder to write, or to complete.")
@click.option("--steps", type=int, help="Denoising steps; default: the model's own advice.")
@click.option("--guidance", type=float, help="Classifier-free guidance; default: the model's own advice.")
@click.option("--prefix", default="", help="Words to put before every prompt.")
@PRECISION
@click.option("--images-per-batch", type=int, help="Pictures made at a time.")
@CLIP_SKIP
def sample(model: str, prompts: str, seeds: str, out: Path, **how: Any) -> None:
    """Make pictures. Same prompts and seeds, same noise, whatever the model."""
    from mapo.sample.verb import sample

    rows = sample(model, prompts, seeds, out, **how)
    _say(f"{count(len(rows), 'picture')} in {out}")


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
    """Give numbers to the pictures of an IMAGES folder: of `mapo sample`, or anybody's pictures with their prompts.

    Prompts lie in metadata.jsonl or a CSV (file_name, prompt, and seed if you like), or in NAME.txt beside NAME.png.
    The same command again goes on where it was stopped, and scores only pictures that are new or have changed.
    """
    from mapo.score.verb import score
    from mapo.shards import parse_shard, shard_of_environment

    how["shard"] = parse_shard(shard) if shard else shard_of_environment()
    counts = score(images, scorer, out, **how)
    if counts is None:
        _say(_shard_done(how["shard"], out))
        return
    scored = counts["pictures"] - counts["without_number"]
    some = f"{scored} of " if counts["without_number"] else ""
    done = "" if counts["scored"] else "; nothing was left to do"
    are = "is" if scored == 1 else "are"
    _say(f"{some}{count(counts['pictures'], 'picture')} {are} scored in {out}{done}")


def _shard_done(shard: tuple[int, int], out: Path) -> str:
    index, of = shard
    return f"shard {index}/{of} is done; the last one, or the same command with --shard 0/1, writes {out}"


@cli.command(cls=Verb, example="mapo mismatch --model mini --pairs work/pairs --num-pairs 32 --out work/mismatch.json")
@click.option("--model", required=True, help=TRAINABLE)
@click.option("--pairs", type=OUT, required=True, help="A pairs set.")
@click.option("--out", type=OUT, default=Path("mismatch.json"), show_default=True, help="The numbers to write.")
@click.option(
    "--encoder", help="A scorer that embeds pictures, such as dinov2, or none; default: dinov2, for mini mini-learned."
)
@click.option("--split", default="train", show_default=True, help="train, validation, test or all.")
@click.option("--num-pairs", type=int, default=128, show_default=True, help="Measure at most so many, at random.")
@click.option("--seeds", default="1000-1001", show_default=True, help="Of own samples; not those the set is made of.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of pairs, noise and timesteps.")
@click.option("--steps", type=int, help="Denoising steps; default: the model's own advice.")
@click.option("--guidance", type=float, help="Classifier-free guidance; default: the model's own advice.")
@PRECISION
@click.option("--images-per-batch", type=int, help="Pictures at a time.")
@CLIP_SKIP
def mismatch(model: str, pairs: Path, out: Path, seeds: str, **how: Any) -> None:
    """Measure how far the pairs are from the model before anything is trained.

    The model's own samples of the same prompts, which lie in an images folder beside --out, are compared with the
    chosen and the rejected pictures: by the distance of embeddings, and by the model's denoising error.
    """
    from mapo.mismatch.verb import mismatch

    _, said = mismatch(model, pairs, out, seeds, **how)
    _say("\n".join(said))
    _say(f"the numbers are in {out}")


@cli.command(
    cls=Verb, example="mapo report --before work/before --after work/after --goal cartoon --out work/report.html"
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
    """Compare two images folders: one page with pictures, win rates and intervals."""
    from mapo.report.verb import report

    summary = report(before, after, out, **how)
    _say(summary["verdict"].replace("\u202f", " "))  # no thin spaces in a terminal
    _say(f"the report is {out}")
    if how["goal"] is None and summary["headline"] is None:
        goals = [f"{'-' if c['lower_is_better'] else ''}{c['metric']}" for c in summary["comparisons"]]
        _say(f"Say what counts with --goal: {', '.join(dict.fromkeys(goals))}")


@cli.command(cls=Verb, example="mapo label work/pairs --annotator ann")
@click.argument("pairs", type=OUT, required=False)
@click.option("--annotator", help="Everybody votes under this name; without it the page asks.")
@click.option("--summary", is_flag=True, help="Print the votes of every annotator and how far they agree; no page.")
@click.option("--apply", is_flag=True, help="Write to --out the set that the votes make; no page.")
@click.option("--keep-ties", is_flag=True, help="With --apply: keep pairs on which the votes are even.")
@click.option("--keep-unlabeled", is_flag=True, help="With --apply: keep pairs without a vote as they are.")
@click.option("--before", type=OUT, help="Compare two images folders blindly, anybody's too: that of the model before.")
@click.option("--after", type=OUT, help="That of the model after, same prompts and seeds.")
@click.option("--out", type=OUT, help="With --before: the votes.jsonl to write. With --apply: the new pairs set.")
@click.option("--blur", is_flag=True, help="Blur pictures until asked, as those of a sensitive set always are.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but this machine's own asks for a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--token", help="What the page's address must carry; default beyond this machine: a random one.")
def label(
    pairs: Path | None, before: Path | None, after: Path | None, out: Path | None, summary: bool, apply: bool,
    keep_ties: bool, keep_unlabeled: bool, **how: Any,
) -> None:  # fmt: skip
    """Judge the pairs of a set by hand, on a local web page that does not say which picture is which."""
    from mapo.label.blind import of_folders, of_pairs
    from mapo.label.consensus import apply_votes, spoken, summarise
    from mapo.label.votes import read_votes
    from mapo.pairs import PairSet

    if (keep_ties or keep_unlabeled) and not apply:
        raise MapoError("--keep-ties and --keep-unlabeled say what --apply shall keep. Give --apply and --out as well.")
    if pairs is not None and before is None and after is None and (out is not None) == apply:
        if out is not None:
            counts = apply_votes(PairSet(pairs), out, keep_ties, keep_unlabeled)
            _say(f"{out}: {spoken(counts, keep_ties, keep_unlabeled)}")
            return
        material, votes = of_pairs(PairSet(pairs)), pairs / "votes.jsonl"
    elif pairs is None and before is not None and after is not None and out is not None and not apply:
        material, votes = of_folders(before, after), out
    elif apply and pairs is not None and out is None:
        raise MapoError("--apply needs --out, the pairs set to write.")
    else:
        raise MapoError("Give PAIRS (and --out only with --apply), or else --before, --after and --out together.")
    if summary:
        _say(summarise(read_votes(votes), material.tasks))
        return
    try:
        from mapo.label.server import serve
    except ModuleNotFoundError as error:
        raise MapoError(f'The page needs {error.name}. Install it with: pip install "mapo[label]"') from None
    serve(material, votes, say=_say, **how)


@cli.command(cls=Verb, example="mapo export work/pairs --to preference --out work/hf")
@click.argument("pairs", type=OUT)
@click.option("--to", "format", required=True, help="preference (Hugging Face), pickapic, or hub (with a card).")
@click.option("--out", type=OUT, help="The folder to write; with --to hub by default PAIRS-hub, beside the set.")
@click.option("--on-missing-picture", type=click.Choice(["stop", "drop"]), default="stop", show_default=True)
@click.option("--repo", metavar="OWNER/NAME", help="With --to hub: upload to this dataset, by your `hf auth login`.")
@click.option("--private/--public", default=None, help="Who sees it on the hub; default: public, if not sensitive.")
@click.option(
    "--license", "--licence", "licence", help="The set's licence, by the hub's name for it, such as cc-by-4.0."
)
@click.option(
    "--source-license", "source_licences", multiple=True, metavar="SOURCE=LICENSE", help="Of what it is made."
)
def export(pairs: Path, format: str, out: Path | None, **how: Any) -> None:
    """Write a pairs set as other programs read it, or publish it.

    --to hub without --repo only writes the folder: look at its README.md, mend it, then repeat the command with --repo.
    """
    from mapo.export.export import describe
    from mapo.export.verb import export

    made = export(pairs, format, out, **how)
    if format == "hub":
        folder, address = made.folder, made.address
        before = f"{folder} was written before and is uploaded as it is"
        _say(f"{describe(made.counts, format)} in {folder}" if made.counts else before)
        _say(f"published at {address}" if address else f"read {folder}/README.md, then upload with --repo OWNER/NAME")
        return
    _say(f'{describe(made.counts, format)} in {out}; open them with datasets.load_dataset("{out}")')


@cli.command(cls=Verb, example="mapo demo --out demo")
@click.option("--out", type=OUT, default=Path("demo"), show_default=True, help="The folder to work in.")
@click.option(
    "--recipe", default="pick-style-cartoon", show_default=True, help="Or pick-style-pixel-art, pick-safety-hazard."
)
def demo(out: Path, recipe: str) -> None:
    """Align the built-in model to a style, from prompts to a report, in minutes."""
    from mapo.lab.demo import demo

    demo(out, recipe)


@cli.command(cls=Verb, example="mapo study --quick --out work/study")
@click.option("--out", type=OUT, default=Path("work/study"), show_default=True, help="The folder to work in.")
@click.option("--quick", is_flag=True, help="A small study; docs/study.md says which.")
@click.option("--domain", "domains", multiple=True, help="Only this domain (repeat for more).")
@click.option("--method", "methods", multiple=True, help="Only this objective (repeat for more).")
@click.option("--pairs", type=int, multiple=True, help="Train on so many pairs (repeat for more).")
@click.option("--seeds", type=int, help="Trainings of each method, domain and number of pairs.")
@click.option(
    "--look",
    "looks",
    type=int,
    multiple=True,
    help="Look at trials after so many steps (repeat for more) and train no longer; default: 16, 48, 128, and "
    "further where that helps; of --quick 16, 48. Diffusion-DPO is looked at more often.",
)
@click.option("--workers", type=int, help="Trainings at a time; default: one per core, or one on a GPU.")
def study(out: Path, **how: Any) -> None:
    """Test the paper's claims on the built-in world: methods, domains, numbers of pairs, with intervals.

    Every training is kept as soon as it is done; the same command goes on, and another choice adds to what is there.
    """
    from mapo.lab.study.study import study

    study(out, **how)


@cli.group()
def mini() -> None:
    """The built-in world: make its model again."""


@mini.command(
    cls=Verb, example="mapo mini pretrain --out work/mini --set vae_steps=20 --set steps=20 --set pictures=256"
)
@click.option("--out", type=OUT, required=True, help="The pipeline folder to write; checkpoints lie in OUT.work.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting, such as steps=6000.")
def pretrain(out: Path, assignments: tuple[str, ...]) -> None:
    """Make the built-in model from nothing (an hour or two on two cores; interrupt and repeat as you like)."""
    from mapo.lab.mini.pretrain import make_settings, pretrain
    from mapo.settings import parse_set

    pretrain(out, make_settings(parse_set(assignments)))
    _say(f"the model is in {out}")


def _say(text: str) -> None:
    click.echo(printable(text))


def main() -> None:
    """Run a verb; what went wrong is said in a sentence (exit code 2, or 130 for Ctrl-C and SIGTERM)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _wait_passively()
    warnings.simplefilter("ignore", FutureWarning)  # libraries talking to programmers
    warnings.filterwarnings("ignore", module="PIL")  # about pictures that are refused or counted by us
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _stop("Stopped. Nothing half-written was left; the same command goes on.", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except KeyboardInterrupt:
        _stop("Stopped. Nothing half-written was left; the same command goes on.", 130)
    except SaidElsewhere:
        sys.exit(2)
    except BrokenPipeError:  # who read our words has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        _stop(spoken(error), 2)


def _wait_passively() -> None:
    """On CPUs, let threads that wait for each other spin for a moment and then sleep (bench/waiting.py).

    On busy cores spinning longer is several times slower; on quiet cores sleeping at once is. It has to be said before
    the first library with threads is loaded. What the user chose stands.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def _stop(text: str, code: int) -> None:
    bars = list(getattr(getattr(sys.modules.get("tqdm.std"), "tqdm", None), "_instances", ()))
    for bar in bars:
        bar.close()  # or it would be drawn once more behind the message
    if not bars and sys.stderr.isatty():
        click.echo("", err=True)
    click.echo(f"mapo: {printable(text)}", err=True)
    sys.exit(code)
