"""The documents say what is there. MAPO_UPDATE_DOCS=1 writes the generated page anew."""

import os
import re
import subprocess
from pathlib import Path

import click
import pytest

from mapo.cli import cli
from mapo.train.objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def cli_reference() -> str:
    parts = ["# Command line\n\nGenerated from the program; `tests/test_docs.py` keeps it true.\n"]

    def add(command: click.Command, context: click.Context) -> None:
        parts.append(f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n")
        if isinstance(command, click.Group):
            for name in sorted(command.commands):
                inner = command.commands[name]
                settings = {"terminal_width": 100, "max_content_width": 100}
                add(inner, click.Context(inner, info_name=name, parent=context, **settings))

    add(
        cli,
        click.Context(
            cli, info_name="mapo", terminal_width=100, max_content_width=100, help_option_names=["-h", "--help"]
        ),
    )
    return "\n".join(parts)


def test_the_command_line_reference_is_what_the_program_says():
    page = ROOT / "docs" / "cli.md"
    if os.environ.get("MAPO_UPDATE_DOCS"):
        page.write_text(cli_reference())
    assert page.read_text() == cli_reference()


def settings_reference() -> str:
    from mapo.settings import Section
    from mapo.train.config import Config

    lines = ["| setting | default | what it does |", "|---|---|---|"]

    def add(section: type[Section], prefix: str) -> None:
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section) and name != "objective":
                add(kind, f"{prefix}{name}.")
                continue
            default = (
                "" if field.is_required() or field.default is None else field.get_default(call_default_factory=True)
            )
            shown = "mapo" if name == "objective" else str(default).lower() if isinstance(default, bool) else default
            assert field.description, name
            lines.append(f"| `{prefix}{name}` | {shown} | {field.description} |")

    add(Config, "")
    return "\n".join(lines) + "\n"


def test_the_reference_of_settings_is_what_the_program_says():
    page = ROOT / "docs" / "training.md"
    above, _, _ = page.read_text().partition("| setting | default |")
    if os.environ.get("MAPO_UPDATE_DOCS"):
        page.write_text(above + settings_reference())
    assert page.read_text() == above + settings_reference()


def test_every_fault_in_the_changelog_names_a_test_that_is_there():
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 58))
    for number, cell in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", cell)
        assert named, number
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(), (number, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_in_the_documents_parses(page):
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    blocks = re.findall(r"```(?:sh|bash)?\n(.*?)```", text, re.S)
    for line in (line for block in blocks for line in block.splitlines()):
        if not line.startswith("mapo "):
            continue
        words = line.split("#")[0].split()[1:]
        command: click.Command = cli
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        command.make_context("mapo", [w.strip("\"'") for w in words], **cli.context_settings)


def test_the_file_map_of_the_readme_names_every_module_and_nothing_else():
    listed = set(re.findall(r"^\| `([\w/.*-]+)` \|", README.read_text(), re.M))
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/mapo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    files = [Path(f).relative_to("src/mapo") for f in tracked.stdout.split()]
    if not files:  # not a git checkout
        files = [f.relative_to(ROOT / "src/mapo") for f in (ROOT / "src/mapo").rglob("*.py")]
    rooms = {f"{f.parts[0]}/" if len(f.parts) > 1 else f.name for f in files if f.suffix == ".py"}
    assert listed == rooms - {"__init__.py", "__main__.py"}


def test_every_objective_and_setting_is_documented():
    page = (ROOT / "docs" / "objectives.md").read_text()
    for name in OBJECTIVES:
        assert f"| `{name}` |" in page
        for knob, value in OBJECTIVES[name].settings.items():
            row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
            assert f"`{knob}`" in row and f"{value:g}" in row


def test_the_layers_of_the_architecture_page_are_those_that_are_enforced():
    import tomllib

    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = "\n".join("   ".join(layer.split(" | ")) for layer in contract["layers"])
    assert layers in (ROOT / "docs" / "architecture.md").read_text()
