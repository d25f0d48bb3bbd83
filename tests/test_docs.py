"""The documents say what is there. MAPO_UPDATE_DOCS=1 writes the generated pages anew."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import pytest

from mapo.api import try_objective
from mapo.cli import cli
from mapo.settings import Section
from mapo.train.config import Config
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


def values_of(kind: Any, metadata: Sequence[Any] = ()) -> str:
    """What a setting may be, in words."""
    if get_origin(kind) is Annotated:
        return values_of(kind.__origin__, [*metadata, *kind.__metadata__])
    if get_origin(kind) in (Union, UnionType):
        return ", or ".join(values_of(inner, metadata) for inner in get_args(kind) if inner is not NoneType)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if kind in (bool, str, list[str]):
        return {bool: "`true`, `false`", str: "text", list[str]: "list of texts"}[kind]
    parts = [part for item in metadata for part in getattr(item, "metadata", [item])]  # a Field holds its limits
    wordings = (("gt", "above {:g}"), ("ge", "{:g} or more"), ("lt", "below {:g}"), ("le", "at most {:g}"))
    limits = [w.format(getattr(part, name)) for name, w in wordings for part in parts if hasattr(part, name)]
    return ", ".join([{int: "whole number", float: "number"}[kind], *limits])


def settings_reference() -> str:
    lines = [
        "# Settings of a training run\n",
        "Everything that `mapo train` can be told. Set one at a time with `--set NAME=VALUE`, or many in a TOML file with",
        "`--config FILE`. A run keeps all of them in its `config.toml`, which is such a file too. What a command does not say",
        "comes from the run where there is one, and else from the column *default*.\n",
        "```sh",
        "mapo train --model mini --pairs work/pairs --out work/run --set optim.lr=1e-4 --set train.steps=100",
        "```\n",
        "How to choose steps and rate: [training.md](training.md). Generated from the program; `tests/test_docs.py` keeps it",
        "true.\n",
        "| setting | default | values | what it does |",
        "|---|---|---|---|",
    ]

    def add(section: type[Section], prefix: str) -> None:
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                add(kind, f"{prefix}{name}.")
                continue
            value = None if field.is_required() else field.get_default(call_default_factory=True)
            default = "has to be said" if field.is_required() else "" if value is None else str(value)
            default = "none" if value == [] else default
            default = default.lower() if isinstance(value, bool) else default
            assert field.description, name
            values = values_of(kind, field.metadata)
            lines.append(f"| `{prefix}{name}` | {default} | {values} | {field.description} |")

    add(Config, "")
    lines += [
        "\n## Settings of the objectives\n",
        "Each is a number and stands beside `objective.name`: `--set objective.beta=0.2`. Errors are means of squares, so they",
        "have the unit of latents squared; the formulas are on the page of [objectives](objectives.md). A function of your",
        "own has the keyword arguments that it gives a default.\n",
        "| objective | setting | default | what it does |",
        "|---|---|---|---|",
    ]
    for name, objective in OBJECTIVES.items():
        for knob, value in objective.settings.items():
            lines.append(f"| `{name}` | `objective.{knob}` | {value:g} | {objective.told[knob]} |")
    lines += [
        "\n" + ", ".join(f"`{n}`" for n, objective in OBJECTIVES.items() if not objective.settings) + " has none."
    ]
    return "\n".join(lines) + "\n"


def test_the_page_of_settings_is_what_the_program_says():
    page = ROOT / "docs" / "settings.md"
    if os.environ.get("MAPO_UPDATE_DOCS"):
        page.write_text(settings_reference())
    assert page.read_text() == settings_reference()


def test_every_setting_of_an_objective_says_in_whole_sentences_what_it_does():
    for name, objective in OBJECTIVES.items():
        assert objective.told.keys() == objective.settings.keys(), name
        assert all(re.fullmatch(r"[A-Z].*\.", said) for said in objective.told.values()), name


def test_every_setting_says_what_it_may_be():
    rows = [line.split(" | ") for line in settings_reference().splitlines() if line.startswith("| `")]
    values = {row[0].strip("| `"): row[2] for row in rows if len(row) == 4}
    assert values["train.steps"] == "whole number, above 0"
    assert values["optim.beta1"] == "number, 0 or more, below 1"
    assert values["optim.lr"] == "number, above 0"
    assert values["data.ties"] == "`drop`, `keep`"
    assert values["train.allow_distilled"] == "`true`, `false`"
    assert values["train.gradient_checkpointing"] == "`true`, `false`, or whole number"


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
def test_links_into_a_page_lead_to_a_heading(page):
    for target, anchor in re.findall(r"\]\(([^):#]*)#([^)]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.*)$", (page.parent / target if target else page).read_text(), re.M)
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in slugs, (target, anchor)


def parse(line: str) -> str:
    """The verb of a command, whose options have to be known."""
    words, verb = line.split("#")[0].split()[1:], []
    command: click.Command = cli
    while isinstance(command, click.Group):
        verb.append(words.pop(0))
        command = command.commands[verb[-1]]
    command.make_context("mapo", [w.strip("\"'") for w in words], **cli.context_settings)
    return " ".join(verb)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_in_the_documents_parses(page):
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    blocks = re.findall(r"```(?:sh|bash)?\n(.*?)```", text, re.S)
    for line in (line for block in blocks for line in block.splitlines()):
        if line.startswith("mapo "):
            parse(line)


def test_every_command_of_the_script_that_reproduces_the_paper_parses():
    text = re.sub(r"\\\n\s*", " ", (ROOT / "scripts" / "reproduce.sh").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("mapo ")]
    values = {"PAIRS": "8", "STEPS": "2", "recipe": "best-of-k"}
    filled = [re.sub(r"\$\{?(\w+)\}?", lambda name: values.get(name[1], "x"), line.split(" | ")[0]) for line in lines]
    assert {parse(line) for line in filled} == {"sample", "score", "build", "mismatch", "encode", "train", "report"}


def test_the_page_of_wishes_has_every_verb_and_commands_that_parse():
    page = (ROOT / "docs" / "which-command.md").read_text()
    shown = {parse(line) for line in re.findall(r"\| `(mapo [^`]+)` \|$", page, re.M)}
    assert page.count("| … ") == page.count("` |\n")  # one line for each wish
    there = {
        f"{name} {inner}".strip()
        for name, command in cli.commands.items()
        for inner in (command.commands if isinstance(command, click.Group) else [""])
    }
    assert shown == there


def test_what_a_thing_is_not_is_said_with_not():
    """\"X is not a run folder\", never \"X is no run folder\"; \"there is no run folder\" is something else."""
    said = re.compile(r"(?<!\bthere )\b(?:is|are) no (?!(?:longer|more)\b)\w+", re.I)
    files = [*PAGES, ROOT / "bench" / "README.md", *sorted((ROOT / "src").rglob("*.py"))]
    assert not [(file.name, found) for file in files for found in said.findall(file.read_text("utf-8"))]


def test_the_bytes_of_the_cache_are_those_that_the_layouts_decide():
    found = json.loads((ROOT / "bench" / "results" / "sizes.json").read_text())["models"]
    page = (ROOT / "docs" / "data.md").read_text()
    for name, row in found.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} at {row['pixels']}"))
        numbers = [int(cell.split("=")[-1].replace(",", "")) for cell in line.strip("| ").split(" | ")[1:]]
        pictures, prompts = row["cache_bytes_of_a_picture"], row["cache_bytes_of_a_prompt"]
        assert numbers == [pictures // 4, pictures, prompts // 4, prompts]


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


def test_the_files_of_golden_numbers_are_named_with_the_objectives_in_them():
    import json

    page = (ROOT / "docs" / "objectives.md").read_text()
    for file in sorted((ROOT / "tests" / "golden").glob("*objectives.json")):
        told = re.search(rf"`tests/golden/{file.name}` \((.*?)\)", page)
        assert told, file.name
        names = re.findall(r"`(\w+)`", told[1])
        if file.name.startswith("more"):
            assert sorted(names) == sorted(json.loads(file.read_text()))
        assert set(names) <= OBJECTIVES.keys()


def test_the_layers_of_the_architecture_page_are_those_that_are_enforced():
    import tomllib

    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = "\n".join("   ".join(layer.split(" | ")) for layer in contract["layers"])
    assert layers in (ROOT / "docs" / "architecture.md").read_text()


def test_objectives_of_ones_own_are_as_the_page_writes_them(tmp_path, monkeypatch, capsys):
    from mapo.train.objectives.own import all_settings, objective_named

    page = (ROOT / "docs" / "objectives.md").read_text()
    plain, wrapped, tried = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "my_losses.py").write_text(f"{plain}\n\n{wrapped}")
    for name, settings in (("pull", {"beta": 0.5, "reach": 10.0}), ("careful", {"beta": 1.0})):
        named = f"{tmp_path}/my_losses.py:{name}"
        assert all_settings(named, {}) == settings and try_objective(named) == []
        assert objective_named(named).needs_reference == (name == "careful")
    monkeypatch.chdir(tmp_path)
    exec(tried, {})
    assert capsys.readouterr().out == "[]\n"
