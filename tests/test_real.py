"""A run says how many tests were skipped for want of published weights and photos."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TESTS = """
import pytest
from real import needs_real

@needs_real("photos/zebra")
@pytest.mark.parametrize("number", range(2))
def test_one(number):
    pass

@pytest.mark.skip(reason="another reason")
def test_two():
    pass
"""


def test_the_end_of_a_run_counts_the_tests_whose_material_is_absent(tmp_path):
    folder = tmp_path / "checkout" / "tests"
    folder.mkdir(parents=True)
    for name in ("conftest.py", "real.py", "tiny.py"):
        shutil.copy(HERE / name, folder)
    (folder / "test_some.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "pythonpath=.", str(folder)],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "2 tests were skipped because published weights or photos are not beside the checkout" in done.stdout
    assert "3 skipped" in done.stdout and done.returncode == 0
