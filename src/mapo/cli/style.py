"""The commands that do a whole work of others: from pictures to a style, and from photos to a subject."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mapo.cli.shared import GUIDANCE, LORA, OUT, PRECISION, TRAINABLE, Verb, cli, say
from mapo.errors import MapoError

if TYPE_CHECKING:
    from mapo.style.asked import Asked, Left, Preview

A = TypeVar("A", bound="Asked")

BEFORE = (
    click.option("--model", required=True, help=TRAINABLE),
    click.option(
        "--out", type=OUT, required=True, help="The folder for all stages. The same command again goes on."
    ),
)  # fmt: skip
TRAINING = (
    click.option(
        "--recipe", metavar="NAME", help="How to train, by a name of `mapo train --help`; default: the model's."
    ),
    click.option("--steps", type=int, help="Updates of the weights in a training; default: the recipe's."),
    click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting of `mapo train`."),
)  # fmt: skip
SHOWING = (
    click.option("--scorer", help="Who scores the pictures before and after; default: those at hand."),
    click.option("--goal", metavar="METRIC", help="What counts as better in the report, as with `mapo report`."),
    click.option(
        "--sampling-steps", type=int, help="Denoising steps of all drawings; default: the model's own advice."
    ),
    click.option(
        "--copies-with", metavar="MODEL",
        help="Look for copies by this DINOv2 of transformers, a folder or hub id; default: by the one on this machine, "
        "else by a perceptual hash.",
    ),
    GUIDANCE,
    PRECISION,
    click.option("--images-per-batch", type=int, help="Pictures drawn at a time."),
    LORA,
    click.option("--yes", is_flag=True, help="Begin without asking."),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and stop; exit code 1 where it cannot."),
)  # fmt: skip


def with_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """These options, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@cli.command(cls=Verb, example="mapo style my-pictures --model sdxl-base.safetensors --out my-style")
@click.argument("pictures", type=OUT)
@with_options(*BEFORE)
@click.option(
    "--caption-with", metavar="MODEL",
    help="Let a model write the captions that are missing: a folder or hub id of Florence-2, BLIP or another model of "
    "transformers.",
)  # fmt: skip
@click.option(
    "--captions", type=OUT, metavar="FILE",
    help="Captions that come first: a file that `mapo caption` wrote, or a list of pictures and prompts.",
)  # fmt: skip
@click.option("--raw", is_flag=True, help="Leave captions as they are, with style words and weights.")
@with_options(*TRAINING)
@click.option(
    "--rejected", type=OUT, metavar="FOLDER",
    help="Your own rejected pictures, each of the same name as its chosen one. Then the model draws none. With SFT "
    "they are not learned from.",
)  # fmt: skip
@click.option(
    "--rejected-per-picture", "per_picture", type=int, default=1, show_default=True,
    help="Drawings of each caption. All become pairs, or the one that --judge likes best.",
)  # fmt: skip
@click.option("--judge", metavar="SCORER:METRIC", help="Who chooses among several drawings of a caption.")
@click.option(
    "--eval-prompts", metavar="SOURCE", help="Plain prompts to draw before and after; default: sixteen of ours."
)
@with_options(*SHOWING)
def style(**how: Any) -> None:
    """Teach a model the style of a folder of PICTURES.

    It learns to draw like the pictures, and with MaPO away from its own drawings of the same captions. Leaves
    captions, pairs, their check, the run, pictures before and after, a report, and a LoRA for other programs, each as
    the ordinary command would. What you change by hand is followed when you give the same command again.
    """
    from mapo.style.style import Style, preview
    from mapo.style.style import style as do

    _go_through(Style, preview, do, how)


@cli.command(
    cls=Verb, example="mapo personalize my-dog --model sdxl-base.safetensors --token '<rex>' --class dog --out my-rex"
)
@click.argument("photos", type=OUT)
@with_options(*BEFORE)
@click.option("--token", required=True, help="The new word for the subject, such as <rex>.")
@click.option(
    "--class", "noun", required=True, metavar="WORD", help="What the subject is, in a common word such as dog."
)
@click.option(
    "--templates", metavar="FILE",
    help="Captions for photos that have none, a line each with {} where the word stands; default: eight of ours.",
)  # fmt: skip
@click.option(
    "--rounds", type=int, default=2, show_default=True,
    help="Rounds of drawing, pairs and training. Each rejects what the model of the round before draws.",
)  # fmt: skip
@click.option(
    "--rejected-per-photo", "per_picture", type=int, default=8, show_default=True,
    help="Drawings of each caption in a round, each a pair. With SFT nothing is drawn, and each photo counts so many "
    "times.",
)  # fmt: skip
@click.option(
    "--prior", type=int, default=40, show_default=True,
    help="Drawings without the token by the model as it was, which are to stay as they are. 0 draws none.",
)  # fmt: skip
@click.option(
    "--prior-prompts", metavar="SOURCE",
    help="Prompts of every other of these drawings; the others, or all, are of the captions with the class word.",
)  # fmt: skip
@with_options(*TRAINING)
@click.option(
    "--eval-prompts", metavar="SOURCE",
    help="Prompts to draw before and after, with the token or {} where the subject is meant; default: eight of the "
    "subject and sixteen plain ones of ours.",
)  # fmt: skip
@with_options(*SHOWING)
def personalize(**how: Any) -> None:
    """Teach a model a subject from a few PHOTOS, and a word for it.

    It learns to draw the photos' subject at the new word, and with MaPO away from its own drawings. Leaves captions,
    rounds with pairs and a run each, pictures before and after, a report, and a LoRA and an embedding for other
    programs, each as the ordinary command would. The same command again goes on.
    """
    from mapo.personalize.asked import Personalize
    from mapo.personalize.personalize import personalize as do
    from mapo.personalize.personalize import preview

    _go_through(Personalize, preview, do, {"pictures": how.pop("photos"), **how})


SAMPLING = {
    "sampling_steps": "steps",
    "guidance": "guidance",
    "precision": "precision",
    "images_per_batch": "images_per_batch",
}


def _go_through(
    kind: type[A], preview: Callable[[A], Preview], do: Callable[..., Left], how: dict[str, Any]
) -> None:  # fmt: skip
    """Say what would be done, ask, do it, and say what came of it."""
    from mapo.settings import parse_set
    from mapo.watch.verb import hands

    yes, dry_run, steps, settings = (
        how.pop("yes"),
        how.pop("dry_run"),
        how.pop("steps"),
        parse_set(how.pop("assignments")),
    )
    if steps is not None:
        if "steps" in settings.get("train", {}):
            raise MapoError("--steps and --set train.steps say the same. Leave one of them out.")
        settings.setdefault("train", {})["steps"] = steps
    sampling = {name: value for option, name in SAMPLING.items() if (value := how.pop(option)) is not None}
    asked = kind(settings=settings, sampling=sampling, **how)
    seen = preview(asked)
    for line in [*seen.lines, *seen.warnings]:
        say(line)
    if dry_run:
        sys.exit(1 if seen.refusal else 0)
    seen.refuse()
    if not yes:
        if not sys.stdin.isatty():
            raise MapoError("Nobody is there to be asked. Add --yes to begin, or --dry-run to see what would be done.")
        click.confirm("Begin?", default=True, abort=True)
    done = do(asked, hands=hands)
    width = max(map(len, done.files))
    say("\n".join(f"{name:{width}} {path}" for name, path in done.files.items()))
    first = next((done.files[name] for name in ("report.html", "after/grid.png") if name in done.files), None)
    if first:
        say(f"Open {first} first.")
