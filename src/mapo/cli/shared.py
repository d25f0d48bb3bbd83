"""What several verbs share: the group that they are in, how their help ends, options, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mapo import __version__
from mapo.errors import printable
from mapo.files import at_home
from mapo.progress import on_terminal


class Place(click.Path):
    """A path. An empty one, as of a variable of the shell that is not set, does not stand for the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; refused where it is empty."""
        if value == "":
            self.fail("it is empty. Name a file or folder.", param, ctx)
        return super().convert(value, param, ctx)


OUT = Place(path_type=Path)
TRAINABLE = "The model: mini, a diffusers folder, a safetensors file, a run folder, RUN@STEP, or a hub id."
DRAWS = "The model: mini, a folder, safetensors file or hub id of a text-to-image model, a run, or RUN@STEP."
CLIP_SKIP = click.option(
    "--clip-skip", type=click.IntRange(min=0),
    help="How many layers are left out at the end of the text encoder, for Stable Diffusion 1 and 2; default: as a run "
    "was trained.",
)  # fmt: skip

LONG_PROMPTS = click.option(
    "--long-prompts", type=click.Choice(["cut", "chunk"]),
    help="Prompts longer than the text encoders read: cut, or read in chunks by SDXL and Stable Diffusion 1 and 2; "
    "default: as a run was trained, else cut.",
)  # fmt: skip


GUIDANCE = click.option(
    "--guidance", "--cfg", type=float, help="Classifier-free guidance; default: the model's own advice."
)
PRECISION = click.option(
    "--precision", type=click.Choice(["float32", "bfloat16", "float16"]),
    help="In which numbers the model computes while it makes pictures; default: float32, on a GPU bfloat16.",
)  # fmt: skip


MODEL_OPTIONS = (
    click.option(
        "--vae", metavar="NAME",
        help="Another VAE: a folder, a safetensors file, or a hub id; default: the model's own.",
    ),
    click.option(
        "--prediction", type=click.Choice(["epsilon", "v"]),
        help="What the denoiser predicts, where the model's file does not say it or contradicts itself.",
    ),
)  # fmt: skip


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say more of the model than its name."""
    for option in reversed(MODEL_OPTIONS):
        command = option(command)
    return command


IMPORT_OPTIONS = (
    click.option(
        "--format",
        help="The format of the source: pickapic, preference, ranking, scores, hpdv2, imagereward, jsonl or "
        "folders; found by itself when left out.",
    ),
    click.option(
        "--columns", metavar="NAME=COLUMN,…", help="What the source calls columns, such as prompt=text,chosen=image_w."
    ),
    click.option(
        "--captions",
        type=click.Choice(["first", "join", "each"]),
        help="Where a pair has several captions: take the first, join them with commas, or make a pair of each.",
    ),
    click.option(
        "--on-bad-row", type=click.Choice(["stop", "drop"]), default="stop", show_default=True,
        help="What happens at a row that cannot become a pair: stop and name it, or drop it and count it.",
    ),
    click.option(
        "--ties", type=click.Choice(["drop", "keep"]), default="drop", show_default=True,
        help="What happens to pairs of which neither picture is better: drop them, or keep them with preference 0.5.",
    ),
    click.option(
        "--rankings", type=click.Choice(["all", "best-worst"]), default="all", show_default=True,
        help="Which pairs of a ranking are made: all, or only the best picture with the worst.",
    ),
    click.option("--least-gap", type=float, default=0, help="Best and worst of scores closer than this are a tie."),
    click.option(
        "--split", type=click.Choice(["by-prompt", "train", "validation", "test"]),
        help="Put every pair into one split, or hold a fifth of the prompts out for validation and test (by-prompt). "
        "Default: as the source says, or by prompt where it says nothing.",
    ),
    click.option("--licence", "--license", "licence", help="The licence of the source, to be kept with the set."),
)  # fmt: skip


IMPORT_NAMES = (
    "format", "columns", "captions", "on_bad_row", "ties", "rankings", "least_gap", "split", "licence",
)  # fmt: skip


def import_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a foreign source is read."""
    for option in reversed(IMPORT_OPTIONS):
        command = option(command)
    return command


def imports_of(how: dict[str, Any]) -> dict[str, Any]:
    """Those of these options that were given, taken out of a verb's."""
    asked = click.get_current_context().get_parameter_source
    found = {name: how.pop(name) for name in IMPORT_NAMES}
    return {name: value for name, value in found.items() if asked(name) is ParameterSource.COMMANDLINE}


LORA = click.option(
    "--lora", "loras", multiple=True, metavar="FILE[:WEIGHT]",
    help="A LoRA on top of the model: a .safetensors file of any common trainer, a folder of diffusers, a run, "
    "or RUN@STEP.",
)  # fmt: skip


def page_options(port: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a verb that serves a page, by default at ``port``."""
    options = (
        click.option(
            "--blur", is_flag=True, help="Blur pictures until asked, as those of a sensitive set always are."
        ),
        click.option(
            "--host", default="127.0.0.1", show_default=True,
            help="The address that the page listens at. Any but this machine's own asks for a token.",
        ),
        click.option(
            "--port", type=click.IntRange(0, 65535), default=port, show_default=True,
            help="The port of the page. 0 takes any that is free.",
        ),
        click.option(
            "--token", help="What the page's address must carry; default beyond this machine: a random one."
        ),
    )  # fmt: skip

    def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


GOES_ON, BEGINS_AGAIN = "the same command goes on", "the same command begins again"


class Stopped(click.Abort):
    """A verb was stopped by Ctrl-C or SIGTERM, or by a no where it asked; the message says what to expect then."""


class Verb(click.Command):
    """A command that ends its help with an example that works; ``more`` gives the title and the lines of a list.

    ``stopped`` is what the same command does after it was stopped.
    """

    def __init__(
        self, *args: Any, example: str = "", more: Callable[[], tuple[str, list[str]]] | None = None,
        stopped: str = GOES_ON, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self.example, self.more, self.stopped = example, more, stopped

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags. A shell leaves ``--out=~/x`` as it is, where it would expand ``--out ~/x``."""
        parts = [arg.partition("=") if arg.startswith("--") else (arg, "", "") for arg in args]
        return super().parse_args(ctx, [f"{flag}{equals}{at_home(value)}" for flag, equals, value in parts])

    def invoke(self, ctx: click.Context) -> Any:
        """Do it; :class:`Stopped` where that was stopped."""
        try:
            return super().invoke(ctx)
        except (click.Abort, KeyboardInterrupt) as error:
            raise Stopped(f"Stopped. Nothing half-written was left; {self.stopped}.") from error

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the example as it stands."""
        if self.more:
            title, lines = self.more()
            with formatter.section(title):
                formatter.write("".join(f"  {line}\n" for line in lines))
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"  {line}\n")


JOURNEY = {  # what the verbs are for, in the order in which they are used
    "From pictures to a result": ("style", "personalize"),
    "Make pairs": ("caption", "build", "import", "label", "check", "remake"),
    "Train": ("mismatch", "encode", "plan", "train", "watch"),
    "Look": ("sample", "score", "report"),
    "Take away": ("export",),
    "The built-in world": ("demo", "mini", "study"),
}


class Verbs(click.Group):
    """The verbs, listed by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print a list for each part of the journey."""
        width = max(map(len, self.commands))
        room = formatter.width - 6 - width
        for title, names in JOURNEY.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{name:{width}}", self.commands[name].get_short_help_str(room)) for name in names]
                )


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mapo")
@click.pass_context
def cli(context: click.Context) -> None:
    """Align a text-to-image diffusion model with pairs of pictures, without a reference model.

    prompts -> build -> pairs -> encode -> cache -> train -> run -> sample -> images -> score -> scores -> report
    """
    context.with_resource(on_terminal())


def say(text: str) -> None:
    """Print a line."""
    click.echo(printable(text))


def asked_shard(text: str | None) -> tuple[int, int]:
    """The shard of ``--shard``, else this process's place among those that a launcher started."""
    from mapo.shards import parse_shard, shard_of_environment

    return parse_shard(text) if text else shard_of_environment()


def told_rate(bytes_read: int, seconds: float) -> str:
    """How much was read of a source, and how fast."""
    rate = bytes_read / seconds
    return f"{bytes_read / 1e6:,.1f} MB of pictures were read in {seconds:,.0f} s: {rate:,.0f} bytes a second"


def shard_done(shard: tuple[int, int], out: Path) -> str:
    """What is said where a share of the work is done."""
    index, of = shard
    return f"shard {index}/{of} is done; the last one, or the same command with --shard 0/1, writes {out}"
