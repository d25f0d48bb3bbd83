"""The built-in world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mapo.cli.shared import BEGINS_AGAIN, OUT, Verb, cli, say


@cli.command(cls=Verb, example="mapo demo --out demo")
@click.option("--out", type=OUT, default=Path("demo"), show_default=True, help="The folder to work in.")
@click.option(
    "--recipe",
    default="pick-style-cartoon",
    show_default=True,
    help="The recipe of the pairs; others are pick-style-pixel-art and pick-safety-hazard.",
)
def demo(out: Path, recipe: str) -> None:
    """Align the built-in model to a style, in minutes.

    It goes the whole way from prompts to a report.
    """
    from mapo.lab.demo import demo

    demo(out, recipe)


@cli.command(cls=Verb, example="mapo study --quick --out work/study")
@click.option("--out", type=OUT, default=Path("work/study"), show_default=True, help="The folder to work in.")
@click.option("--quick", is_flag=True, help="A small study; docs/study.md says which.")
@click.option("--model", default="mini", show_default=True, help="The built-in model to train, or mini-flow.")
@click.option("--domain", "domains", multiple=True, help="Only this domain (repeat for more).")
@click.option("--method", "methods", multiple=True, help="Only this objective (repeat for more).")
@click.option("--pairs", type=int, multiple=True, help="Train on so many pairs (repeat for more).")
@click.option("--seeds", type=int, help="Trainings of each method, domain and number of pairs.")
@click.option("--trials", type=int, help="Trainings for each method's search; default: 6, of --quick 3.")
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
    """Test the paper's claims on the built-in world.

    Methods, domains and numbers of pairs are compared, with intervals.
    Every training is kept as soon as it is done; the same command goes on, and another choice adds to what is there.
    """
    from mapo.lab.study.study import study

    study(out, **how)


@cli.group()
def mini() -> None:
    """Draw pictures of the built-in world, or make its model again."""


@mini.command(cls=Verb, stopped=BEGINS_AGAIN, example="mapo mini draw --style cartoon --out my-pictures")
@click.option("--out", type=OUT, required=True, help="The folder to write.")
@click.option(
    "--style", default="cartoon", show_default=True, help="How they are drawn: cartoon, pixel art, sketch or realistic."
)
@click.option("--pictures", "number", type=int, default=50, show_default=True, help="How many to write.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other pictures for each seed.")
def draw(out: Path, **how: Any) -> None:
    """Write a folder of drawings with their captions.

    They are drawn by code, not by a model: pictures to try `mapo style` on.
    """
    from mapo.lab.mini.pictures import write_pictures

    say(f"{write_pictures(out, **how)} pictures in {out}, each with what it shows in a text of its name")


@mini.command(
    cls=Verb, example="mapo mini pretrain --out work/mini --set vae_steps=20 --set steps=20 --set pictures=256"
)
@click.option("--out", type=OUT, required=True, help="The pipeline folder to write; checkpoints lie in OUT.work.")
@click.option("--flow", is_flag=True, help="Make mini-flow, which is trained by flow matching, on parts of mini.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting, such as steps=6000.")
def pretrain(out: Path, flow: bool, assignments: tuple[str, ...]) -> None:
    """Make a built-in model from nothing (an hour or two on two cores; interrupt and repeat as you like)."""
    from mapo.lab.mini import pretrain, pretrain_flow
    from mapo.settings import parse_set

    values = parse_set(assignments)
    if flow:
        pretrain_flow.pretrain(out, pretrain.make_settings(values, pretrain_flow.Settings()))
    else:
        pretrain.pretrain(out, pretrain.make_settings(values, pretrain.Settings()))
    say(f"the model is in {out}")
