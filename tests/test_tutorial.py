"""The tutorial and the README's five steps do what they say: their commands are run as they stand, in order."""

import contextlib
import json
import re
import shlex
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from mapo.cli import cli

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent


def commands_of(text: str) -> list[list[str]]:
    """The words of every command `mapo …` in the blocks of a page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mapo ")]


def run(words: list[str], folder: Path) -> str:
    """A command in that folder, in this process; what it prints."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, (words, done.output[-2000:], done.exception)
    return done.stdout


def means(table: Path) -> dict[tuple[str, str], float]:
    values = defaultdict(list)
    for row in pq.read_table(table).to_pylist():
        values[row["scorer"], row["metric"]].append(row["value"])
    return {name: sum(found) / len(found) for name, found in values.items()}


def test_every_step_of_the_tutorial_ends_well_and_gives_what_the_text_promises(tmp_path):
    steps = re.split(r"^## \d+\. .*\n", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.M)[1:]
    assert len(steps) == 10
    said = []
    for step in steps:
        (words,) = commands_of(step)
        (promised,) = re.findall(r"^\*\*You get\*\* `([^`]+)`", step, re.M)
        assert not (tmp_path / promised).exists()
        said.append(run(words, tmp_path))
        assert (tmp_path / promised).exists(), promised
    work = tmp_path / "work"
    assert said[0].startswith("64 pairs in")
    assert "No errors in 64 pairs" in said[1] and "brightness" in said[1] and "contrast" in said[1]
    assert "In 60 steps of 8 each is seen 7.5 times." in said[3]
    accuracies = [json.loads(line)["accuracy"] for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert accuracies[0] == 0 and sum(accuracies[-10:]) / 10 > 0.9
    assert said[4].startswith("84 pictures")
    before, after = (means(work / f"{side}-scores.parquet") for side in ("before", "after"))
    for judge in ("mini-learned", "mini-search"):
        assert before[judge, "cartoon"] == 0
        assert after[judge, "cartoon"] > 0.9 and after[judge, "prompt_following"] > 0.9
    assert said[8].startswith("After beats before on cartoon")


def test_the_five_steps_of_the_readme_work_with_pictures_of_ones_own(tmp_path):
    pictures = tmp_path / "my-pictures"
    for number in range(8):
        for side, colour in (("chosen", "orange"), ("rejected", "gray")):
            (pictures / side).mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (64, 64), (20 * number, 90, 120))
            ImageDraw.Draw(picture).ellipse((8 + number, 8, 50, 50), fill=colour)
            picture.save(pictures / side / f"{number:03}.png")
        (pictures / "chosen" / f"{number:03}.txt").write_text(f"a ball, number {number}\n")
    (tmp_path / "my-prompts.txt").write_text("a small red circle on a gray background\na ball\n")
    page = (ROOT / "README.md").read_text()
    section = page[page.index("## Your pairs, in five steps") : page.index("## Which objective")]
    for words in commands_of(section):
        here = ["mini" if word.startswith("stabilityai/") else word for word in words]
        run(["train.steps=2" if word == "train.steps=100" else word for word in here], tmp_path)
    work = tmp_path / "work"
    assert "bfloat16" in (work / "run" / "config.toml").read_text()
    assert (work / "run" / "weights" / "pytorch_lora_weights.safetensors").exists()
    for made in ("check.html", "before/manifest.jsonl", "after/manifest.jsonl", "report.html"):
        assert (work / made).exists(), made
