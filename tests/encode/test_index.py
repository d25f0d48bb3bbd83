"""The index finds tensors of any kind, hashes that begin alike among them, at a cost that does not grow."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mapo.encode.index import RECORD, Index, digests_of, open_index
from mapo.errors import MapoError


def name_of(number: int, begin: str = "") -> str:
    return (begin + hashlib.sha256(str(number).encode()).hexdigest())[:64]


@pytest.fixture
def shards(tmp_path):
    """Two shards whose tensors differ in kind, some with hashes of which the first half is the same."""
    names = [name_of(k, "ab" * 8 if k % 3 == 0 else "") for k in range(12)]
    tensors = {}
    for k, name in enumerate(names):
        dtype = (torch.float32, torch.bfloat16, torch.float16)[k % 3]
        tensors[f"{name}|0"] = torch.randn((2, 4, 3, 3) if k % 2 else (2, 1, 1, 2)).to(dtype)
        tensors[f"{name}|size"] = torch.tensor([k, k, 0, 0], dtype=torch.int32)
    half = len(tensors) // 2
    for number, part in enumerate((list(tensors)[:half], list(tensors)[half:])):
        save_file({key: tensors[key] for key in part}, tmp_path / f"latents-{number}.safetensors")
    return tmp_path, names, tensors


def test_every_tensor_is_found_as_it_was_written(shards):
    folder, names, tensors = shards
    index = open_index(folder)
    for name in names:
        found = index.find(bytes.fromhex(name))
        assert set(found) == {"0", "size"}
        for column, entry in found.items():
            assert torch.equal(entry.read(), tensors[f"{name}|{column}"])
    assert index.find(bytes.fromhex(name_of(99, "ab" * 8))) == {}
    assert index.holds(digests_of([*names, name_of(99), name_of(99, "ab" * 8)])).tolist() == [True] * 12 + [False] * 2


def test_first_numbers_are_those_of_the_tensors_and_nan_where_there_are_none(shards):
    folder, names, tensors = shards
    strangers = [name_of(99), name_of(99, "ab" * 8)]
    found = open_index(folder).first_numbers(digests_of([*names, *strangers]), "0", 8)
    assert found.shape == (14, 8)
    for row, name in zip(found, names, strict=False):
        whole = tensors[f"{name}|0"].float().flatten()[:8]
        assert torch.equal(row[: len(whole)], whole) and row[len(whole) :].isnan().all()
    assert found[12:].isnan().all()
    assert open_index(folder).first_numbers(digests_of(names), "1", 8).isnan().all()  # no picture was flipped


def test_first_numbers_of_a_shard_that_was_cut_name_it(shards):
    folder, names, _ = shards
    index, path = open_index(folder), folder / "latents-1.safetensors"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(MapoError, match=r"latents-1.safetensors is damaged"):
        index.first_numbers(digests_of(names), "0", 4)


def test_finding_one_tensor_costs_the_same_among_many():
    def index_of(count: int) -> tuple[Index, list[bytes]]:
        heads = np.sort(np.random.default_rng(count).integers(0, 2**63, count).astype(np.uint64))
        records = {name: np.zeros(count, RECORD[name].newbyteorder("=")) for name in RECORD.names or ()} | {
            "head": heads
        }
        keys = [int(head).to_bytes(8, "big") + bytes(8) for head in heads[:: count // 100][:100].tolist()]
        return Index(
            Path("cache"), [("latents-0.safetensors", 0, 0)], ["0"], [("F32", (4,))], records, set(), False
        ), keys

    def least(index: Index, keys: list[bytes]) -> float:
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            for key in keys:
                assert list(index.find(key)) == ["0"]
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    few, many = index_of(100), index_of(1_000_000)
    assert least(*many) < 10 * least(*few)
