"""Small models of SDXL's real classes and layout, and pairs for them: made once per test session."""

import functools
import gc
import importlib
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from real import ABSENT
from tiny import MAKERS, UNETS, make_pairs, make_sdxl

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
os.fsync = lambda descriptor: None  # no test cuts the power, and the disk would be waited for ten thousand times

SHAPED = ["mapo.train.types", "mapo.train.step", "mapo.train.objectives"]
install_import_hook(SHAPED, "shapes.checked")  # the shapes that their functions name are checked at every call

HERE = Path(__file__).parent


LONGEST = [
    "test_kills.py", "lab/study/test_study.py", "test_tutorial.py", "train/test_matrix.py", "train/test_equivalence.py", "golden/test_recorded.py",
    "style/test_style.py", "personalize/test_personalize.py", "test_gpu_bench.py", "test_older.py", "train/test_peers.py", "train/test_levers.py", "train/test_plan.py",
    "build/test_build.py", "build/test_build_shares.py",
    "models/test_families.py", "label/test_page.py", "train/test_train.py", "train/test_run.py",
    "train/test_going_on.py", "train/test_damaged_runs.py", "train/test_optimizers.py",
    "train/test_pictures.py", "watch/test_page.py", "train/test_evaluation.py",
    "mismatch/test_mismatch.py", "models/test_one_file.py", "test_cli.py", "train/test_token.py",
    "train/test_starts.py", "encode/test_cache.py", "models/test_long_prompts.py", "train/test_recipes.py",
    "train/test_own_objectives.py", "train/test_constants.py", "train/test_plan_encoding.py", "train/test_processes.py",
    "export/test_cards.py", "export/test_runs.py", "importers/test_interrupted.py",
    "check/test_training.py", "lab/mini/test_model.py", "test_api.py", "score/scorers/test_vlm.py",
    "lab/study/test_subjects.py", "train/test_text_encoders.py", "score/scorers/test_clip.py", "lab/test_demo.py",
]  # fmt: skip


def pytest_collection_modifyitems(items) -> None:
    """The longest files come first, so that no process is left alone with one of them at the end."""
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """All test modules, and with them the libraries, are loaded."""
    importlib.import_module("frozen")


@pytest.fixture(autouse=True, scope="module")
def _what_lies_in_memory_is_no_garbage() -> None:
    """A full collection, of which every encoding asks for one, does not look through what earlier modules left."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    if absent := sum(ABSENT in why for why in skipped):
        terminalreporter.write_line(
            f"{absent} tests were skipped because published weights or photos are not beside the checkout"
        )


@pytest.fixture
def heard(caplog):
    """What the library has said, a line for each message, since this was last called."""
    caplog.set_level("INFO", "mapo")

    def since() -> str:
        said = "".join(f"{message}\n" for message in caplog.messages)
        caplog.clear()
        return said

    return since


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory) -> Path:
    return make_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="session")
def sdxl_v(tmp_path_factory) -> Path:
    return make_sdxl(tmp_path_factory.mktemp("models") / "sdxl-v", "v_prediction", seed=1, block_out_channels=(8, 24))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("sets") / "pairs")


@pytest.fixture(scope="session")
def cache(tmp_path_factory, sdxl, pairs) -> Path:
    from mapo.encode.fill import encode
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet

    folder = tmp_path_factory.mktemp("caches") / "cache"
    encode(open_model(find_model(str(sdxl))), PairSet(pairs), folder)
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """Makes a small model of a family, which predicts another thing if that is said; each of them once."""

    @functools.cache
    def make(family: str, *prediction: str) -> Path:
        return MAKERS[family](tmp_path_factory.mktemp("models") / "model", *prediction)

    return make


@pytest.fixture(scope="session", params=MAKERS)
def any_model(request, small_model) -> Path:
    """A small model of each family in turn."""
    return small_model(request.param)


@pytest.fixture(
    scope="session", params=[(family,) for family in MAKERS] + [(u, "v_prediction") for u in UNETS], ids="-".join
)
def any_prediction(request, small_model) -> Path:
    """A small model of each family in turn, and of those with a UNet one more that predicts v."""
    return small_model(*request.param)
