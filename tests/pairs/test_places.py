"""Where pictures lie."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapo.pairs.places import Places, write_places


@settings(max_examples=60, deadline=None)
@given(shas=st.sets(st.binary(min_size=2, max_size=2), max_size=40), others=st.sets(st.binary(min_size=2, max_size=2)))
def test_every_picture_is_found_and_no_other_even_where_hashes_begin_alike(
    shas: set[bytes], others: set[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    def full(sha: bytes) -> bytes:
        return sha[:1] + bytes(7) + sha[1:] + bytes(23)  # few different beginnings

    names = sorted(full(sha) for sha in shas)
    path = tmp_path_factory.mktemp("places") / "pictures.npy"
    write_places(path, len(names), ((name, 1, 2, k, True) for k, name in enumerate(names)))
    places = Places(path)
    for k, name in enumerate(names):
        assert places.find(name.hex())["row"] == k  # type: ignore[index]
    asked = [full(sha).hex() for sha in sorted(shas | others)]
    missing = [row for row, name in enumerate(asked) if bytes.fromhex(name) not in names]
    chunked = pa.chunked_array([asked[:3], asked[3:]], pa.string())
    assert places.missing(chunked).tolist() == missing
    assert [row for row, name in enumerate(asked) if places.find(name) is None] == missing
    sliced = pa.chunked_array([pa.array(asked, pa.string()).slice(1)])
    assert places.missing(sliced).tolist() == [row - 1 for row in missing if row]
