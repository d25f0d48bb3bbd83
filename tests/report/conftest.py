import json

import pytest
from worlds import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 101):
            row = {
                "step": step,
                "pairs_seen": 8 * step,
                "loss": 0.2,
                "error_chosen": 0.1 - step * 1e-4,
                "error_rejected": 0.1,
            }
            file.write(json.dumps({**row, "margin": step * 1e-4, "accuracy": 0.5 + step / 250}) + "\n")
    (folder / "config.toml").write_text('objective = "mapo"  # <b>bold</b>\n')
    return folder
