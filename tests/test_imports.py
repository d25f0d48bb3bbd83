"""What reads and describes data is light to import."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter

import grimp
import pytest

LIGHT = (
    "mapo.errors",
    "mapo.files",
    "mapo.pairs.splits",
    "mapo.pairs.pairs",
    "mapo.importers",
    "mapo.importers.formats.pickapic",
    "mapo.importers.formats.ranking",
    "mapo.importers.formats.preference",
    "mapo.importers.formats.jsonl",
    "mapo.importers.formats.scores",
    "mapo.importers.formats.folders",
    "mapo.importers.checking",
    "mapo.sample.prompts",
    "mapo.sample.folder",
    "mapo.score.table",
    "mapo.train.config",
    "mapo.export.pairs",
    "mapo.label.votes",
    "mapo.label.blind",
    "mapo.label.ballot",
    "mapo.label.consensus",
    "mapo.cli",
)


def loaded_by(modules: tuple[str, ...]) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("modules", [LIGHT, ("mapo.cli",)], ids=["data", "help"])
def test_importing_what_describes_data_does_not_import_torch(modules: tuple[str, ...]) -> None:
    heavy = {"torch", "diffusers", "transformers", "accelerate", "datasets", "matplotlib", "scipy"}
    assert loaded_by(modules) & heavy == set()


def test_the_help_needs_no_arrays_and_no_tables() -> None:
    assert loaded_by(("mapo.cli",)) & {"numpy", "pyarrow", "PIL", "pydantic"} == set()


def test_no_modules_import_each_other_directly_or_around() -> None:
    graph = grimp.build_graph("mapo", cache_dir=None)
    assert len(graph.modules) > 150
    TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}).prepare()  # or CycleError
