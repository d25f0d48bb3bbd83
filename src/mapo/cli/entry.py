"""The command itself: a verb is run, and what went wrong is said in a sentence."""

from __future__ import annotations

import os
import signal
import sys
import warnings

import click

from mapo.cli.shared import Stopped, cli
from mapo.errors import SaidElsewhere, printable, spoken


def main() -> None:
    """Run a verb; what went wrong is said in a sentence (exit code 2, or 130 for Ctrl-C and SIGTERM)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost process has torch's own frames beside our words
    _wait_passively()
    warnings.simplefilter("ignore", FutureWarning)  # libraries talking to programmers
    warnings.filterwarnings("ignore", module="PIL")  # about pictures that are refused or counted by us
    try:
        cli.main(prog_name="mapo", standalone_mode=False)
    except Stopped as stopped:
        _stop(str(stopped), 130)
    except (click.Abort, KeyboardInterrupt):  # before a verb began
        _stop("Stopped.", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _stop(_in_our_voice(error), 2)
    except SaidElsewhere:
        sys.exit(2)
    except BrokenPipeError:  # who read our words has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        _stop(spoken(error), 2)


def _in_our_voice(error: click.ClickException) -> str:
    """What is wrong with a command as it was typed, and where it says what it takes."""
    said, context = error.format_message(), getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        said = f"{error.message} Did you mean {error.possibilities[0]!r}?"
    said = said if said.endswith((".", "?")) else f"{said}."
    return f"{said} See {context.command_path} --help." if context else said


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
