"""Small models of SDXL's real classes and layout, and pairs for them: made once per test session."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import pytest

from real import ABSENT
from tiny import make_pairs, make_sdxl


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    if absent := sum(ABSENT in why for why in skipped):
        terminalreporter.write_line(
            f"{absent} tests were skipped because published weights or photos are not beside the checkout"
        )


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
    from mapo.models import family_of, find_model
    from mapo.pairs import PairSet

    folder = tmp_path_factory.mktemp("caches") / "cache"
    model = find_model(str(sdxl))
    encode(family_of(model), model, PairSet(pairs), folder)
    return folder
