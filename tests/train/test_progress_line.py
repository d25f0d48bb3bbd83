"""The numbers beside the bar of a training."""

import re

import torch
from test_train import metrics, run

from mapo import progress
from mapo.devices import memory_in_use


def test_the_bar_of_training_shows_errors_margin_accuracy_speed_and_memory(tmp_path, sdxl, pairs, cache):
    seen = []

    class Bar(progress.Bar):
        def update(self, n=1):
            self.initial += n

        def set_postfix(self, **values):
            seen.append((self.desc, self.initial, self.total, values))

    with progress.show_with(Bar):
        run(tmp_path / "r", sdxl, pairs, cache, steps=3)
    assert [(desc, done, total) for desc, done, total, _ in seen] == [("train", k, 3) for k in range(3)]
    for line, (*_, values) in zip(metrics(tmp_path / "r"), seen, strict=True):
        assert list(values) == ["chosen", "rejected", "margin", "accuracy", "pairs_s", "memory"]
        assert float(values["chosen"]) == round(line["error_chosen"], 4)
        assert float(values["rejected"]) == round(line["error_rejected"], 4)
        assert float(values["pairs_s"]) == round(line["pairs_per_second"], 1)
        assert re.fullmatch(r"\d+\.\dGiB", values["memory"]) and line["memory"] > 50e6


def test_memory_is_what_the_process_holds_without_its_files():
    before = memory_in_use("cpu")
    held = torch.ones(40_000_000)
    assert 150e6 < memory_in_use("cpu") - before < 170e6, held.sum()


def test_a_message_stands_on_a_line_of_its_own_above_a_bar(capsys):
    import logging

    with progress.on_terminal(), progress.bar(total=5, desc="train", unit="step") as bar:
        bar.update(2)
        logging.getLogger("mapo.test").info("Step 2 was measured.")
    said = capsys.readouterr()
    assert said.out.rpartition("\r")[2] == "Step 2 was measured.\n"
    assert re.search(r"2/5 \[\d\d:\d\d<", said.err)  # and the bar says how long it will take
