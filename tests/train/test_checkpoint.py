import shutil

import pytest
import torch
from test_train import run

from mapo.errors import MapoError
from mapo.train.run.checkpoint import (
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from mapo.train.weights.optimizers import load_optimizer_tensors, optimizer_tensors


def stepped(seed):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(3, 2).double()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(torch.ones(1, 3).double()).pow(2).sum().backward()
        optimizer.step()
    return layer, optimizer, dict(layer.named_parameters())


def groups(optimizer, names):
    return {"weights": names, "optimizer": optimizer_tensors(optimizer, names)}


def test_weights_and_moments_come_back_to_the_bit(tmp_path):
    layer, optimizer, names = stepped(0)
    save_checkpoint(tmp_path / "c", groups(optimizer, names), {"step": 3})
    other, other_optimizer, other_names = stepped(1)
    found = load_checkpoint(tmp_path / "c")
    with torch.no_grad():
        for name, parameter in other_names.items():
            parameter.copy_(found["weights"][name])
    load_optimizer_tensors(other_optimizer, other_names, found["optimizer"])
    assert read_state(tmp_path / "c")["step"] == 3
    for module, optim in ((layer, optimizer), (other, other_optimizer)):
        optim.zero_grad()
        module(torch.ones(1, 3).double()).pow(2).sum().backward()
        optim.step()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_what_is_saved_of_the_optimizer_is_no_second_copy_of_it():
    _, optimizer, names = stepped(0)
    saved = optimizer_tensors(optimizer, names)
    assert {saved[f"{name}/exp_avg"].data_ptr() for name in names} == {
        optimizer.state[parameter]["exp_avg"].data_ptr() for parameter in names.values()
    }


def test_a_damaged_checkpoint_is_named(tmp_path):
    _, optimizer, names = stepped(0)
    save_checkpoint(tmp_path / "c", groups(optimizer, names), {"step": 3})
    (tmp_path / "c" / "optimizer.safetensors").write_bytes(b"x")
    with pytest.raises(MapoError, match=r"The checkpoint .*c is damaged"):
        load_checkpoint(tmp_path / "c")


def test_nothing_is_left_of_a_checkpoint_that_could_not_be_written(tmp_path):
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path / "c", {"weights": {"w": None}}, {"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_copies_of_checkpoints_are_left_alone(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    folder = tmp_path / "r" / "checkpoints"
    for name in ("step-00000001-copy", "step-00000001.bak"):
        shutil.copytree(folder / "step-00000001", folder / name)
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert {p.name for p in folder.iterdir()} == {"step-00000001-copy", "step-00000001.bak", "step-00000002"}
    (folder / "step-00000002" / "state.json").write_text("{}")
    with pytest.raises(MapoError, match=r"state\.json is damaged"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=3)
