"""Published weights and photos, which lie beside a checkout and not in it. Tests on them are skipped where it has none."""

from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
ABSENT = "real material is absent: "


def needs_real(name: str) -> pytest.MarkDecorator:
    """Skip a test where the folder or file ``name`` of :data:`REAL` is absent; the end of the run counts such tests."""
    return pytest.mark.skipif(not (REAL / name).exists(), reason=ABSENT + name)
