"""People judge pairs, or all pictures of a prompt at once, on a local page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mapo.cli.shared import OUT, Verb, cli, page_options, say
from mapo.errors import MapoError, to_install


@cli.command(cls=Verb, example="mapo label work/pairs --annotator ann")
@click.argument("pairs", type=OUT, required=False)
@click.option("--grid", is_flag=True, help="Show all pictures of a prompt at once: the best and the worst are picked.")
@click.option("--captions", type=OUT, help="With a folder of pictures: a file of prompts that `mapo caption` wrote.")
@click.option("--annotator", help="Everybody votes under this name; without it the page asks.")
@click.option("--summary", is_flag=True, help="Print the votes of every annotator and how far they agree; no page.")
@click.option("--apply", is_flag=True, help="Write to --out the set that the votes make; no page.")
@click.option("--keep-ties", is_flag=True, help="With --apply: keep pairs on which the votes are even.")
@click.option("--keep-unlabeled", is_flag=True, help="With --apply: keep pairs without a vote as they are.")
@click.option("--before", type=OUT, help="Compare two images folders blindly, anybody's too: that of the model before.")
@click.option("--after", type=OUT, help="The images folder of the model after, of the same prompts and seeds.")
@click.option(
    "--out",
    type=OUT,
    help="With a folder of pictures: the set that is made of them. With --before: the votes.jsonl to write. With "
    "--apply: the new pairs set.",
)
@page_options(8000)
def label(
    pairs: Path | None, before: Path | None, after: Path | None, out: Path | None, captions: Path | None, summary: bool,
    apply: bool, keep_ties: bool, keep_unlabeled: bool, grid: bool, **how: Any,
) -> None:  # fmt: skip
    """Judge pictures by hand, on a local web page.

    PAIRS is a set: two pictures of it at a time, and the page does not say which is which. Or it is a folder of
    pictures with prompts, whoever made them: --out is then the set that is made of them and holds the votes.
    """
    if (keep_ties or keep_unlabeled) and not apply:
        raise MapoError("--keep-ties and --keep-unlabeled say what --apply keeps. Give --apply and --out as well.")
    if before is not None or after is not None:
        if None in (before, after, out) or pairs is not None or captions is not None or grid or apply:
            raise MapoError(HOW)
        _judge_folders(before, after, out, summary, how)
    elif pairs is None:
        raise MapoError(HOW)
    elif apply:
        _apply(pairs, out, keep_ties, keep_unlabeled)
    else:
        _judge_set(pairs, out, captions, grid, summary, how)


HOW = (
    "Give PAIRS, which is a set or a folder of pictures with prompts. Or give two images folders with --before and "
    "--after, and with --out the file for the votes."
)


def _apply(pairs: Path, out: Path | None, keep_ties: bool, keep_unlabeled: bool) -> None:
    from mapo.label.consensus import apply_votes, spoken
    from mapo.pairs import PairSet

    if out is None:
        raise MapoError("--apply needs --out, the pairs set to write.")
    counts = apply_votes(PairSet(pairs), out, keep_ties, keep_unlabeled)
    say(f"{out}: {spoken(counts, keep_ties, keep_unlabeled)}")


def _judge_folders(before: Any, after: Any, votes: Any, summary: bool, how: dict[str, Any]) -> None:
    from mapo.label.blind import of_folders

    material = of_folders(before, after)
    if summary:
        _say_summary(votes, material.tasks)
    else:
        _serve(material, votes, how)


def _judge_set(
    folder: Path, out: Path | None, captions: Path | None, grid: bool, summary: bool, how: dict[str, Any]
) -> None:
    from mapo.label.blind import of_pairs
    from mapo.label.verb import is_pictures, material_of, open_set

    if out is not None and not is_pictures(folder):
        raise MapoError(
            f"The votes on a set lie in it, so label {folder} without --out. With --apply, --out is the set that the "
            "votes make."
        )
    pairs = open_set(folder, out, captions, sensitive=how["blur"])
    votes = pairs.folder / "votes.jsonl"
    if summary:
        _say_summary(votes, of_pairs(pairs).tasks)
    else:
        _serve(material_of(pairs, grid), votes, how)
        if pairs.folder != folder:
            say(f"mapo label {pairs.folder} --apply --out LABELED makes the set that the votes say")


def _say_summary(votes: Path, tasks: Any) -> None:
    from mapo.label.consensus import summarise
    from mapo.label.votes import read_votes

    say(summarise(read_votes(votes), tasks))


def _serve(material: Any, votes: Path, how: dict[str, Any]) -> None:
    try:
        from mapo.label.server import serve
    except ModuleNotFoundError as error:
        raise MapoError(f"The page needs {error.name}. Install it with: {to_install('label')}") from None
    serve(material, votes, say=say, **how)
