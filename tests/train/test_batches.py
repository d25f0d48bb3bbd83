import shutil
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch

from mapo.encode.cache import Cache, cache_key
from mapo.encode.fill import encode
from mapo.errors import MapoError
from mapo.models import Frames, find_model, open_model, together
from mapo.pairs import PairSet
from mapo.pairs.pairs import replace_pairs
from mapo.train.batches import Members, assemble, draws, prefetched, rows_at
from tiny import make_pairs


def loaded(positions, sdxl, pairs, cache, **changes):
    model = open_model(find_model(str(sdxl)))
    rows = list(PairSet(pairs))
    drawn = draws(positions, len(rows), model.process, model.layout.latent(16), **{"seed": 0, **changes})
    return assemble(rows, drawn, Cache(cache, cache_key(model)), model)


def test_every_epoch_is_another_permutation_of_all_rows():
    first, second = rows_at(range(10), 10, 0), rows_at(range(10, 20), 10, 0)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert rows_at([13], 10, 0) == [second[3]]
    assert rows_at(range(10), 10, 1) != first


def test_a_batch_is_the_concatenation_of_its_positions(sdxl, pairs, cache):
    whole = loaded([5, 6, 7], sdxl, pairs, cache)
    single = [loaded([k], sdxl, pairs, cache) for k in (5, 6, 7)]
    assert whole.ids == tuple(b.ids[0] for b in single)
    assert torch.equal(whole.noise, torch.cat([b.noise for b in single]))
    assert torch.equal(whole.timesteps, torch.cat([b.timesteps for b in single]))
    assert torch.equal(whole.latents[:3], torch.cat([b.latents[:1] for b in single]))
    assert torch.equal(whole.latents[3:], torch.cat([b.latents[1:] for b in single]))


def test_a_prompt_moves_once_and_both_pictures_of_its_pair_are_told_the_same(tmp_path, any_model):
    """To the bit what they were told when prompts were repeated before they moved."""
    folder = make_pairs(tmp_path / "pairs", 3, prompts=["red", "a small red circle", "a large blue square"])
    model, pairs = open_model(find_model(str(any_model))), PairSet(folder)
    cache = encode(model, pairs, tmp_path / "cache", resolution=16)
    drawn = draws(range(3), 3, model.process, model.layout.latent(16), seed=0)
    batch = assemble(pairs, drawn, cache, model)
    members = [pairs[draw.row] for draw in drawn]
    texts = together([cache.text(pair.prompt) for pair in members] * 2)
    names = [pair.chosen for pair in members] + [pair.rejected for pair in members]
    wanted = model.condition(texts, Frames.square(torch.stack([cache.size(name) for name in names]), 16))
    assert batch.told("both").keys() == wanted.keys()
    for sides, rows in (("both", slice(6)), ("chosen", slice(3)), ("rejected", slice(3, 6))):
        told = batch.to(torch.device("cpu")).told(sides)
        assert all(torch.equal(told[name], value[rows]) for name, value in wanted.items())
    assert len(batch.cond["prompt_embeds"]) == 3 and batch.certain and not batch.tokens


def test_weights_of_an_old_set_whose_sum_is_infinite_are_refused(tmp_path, pairs):
    folder = shutil.copytree(pairs, tmp_path / "pairs")
    table = PairSet(folder).table
    weights = pa.array([1e308] * len(table))
    replace_pairs(folder, table.set_column(table.schema.get_field_index("weight"), "weight", weights))
    opened = PairSet(folder)
    assert Members(opened, np.array([0])).weights.tolist() == [1e308]
    with pytest.raises(MapoError, match=r"their sum is infinite \(the largest is 1e\+308\)\. Divide all of them"):
        Members(opened, np.arange(len(opened)))


def test_a_batch_does_not_walk_the_cache(sdxl, pairs, cache, monkeypatch):
    model = open_model(find_model(str(sdxl)))
    opened = Cache(cache, cache_key(model))
    reads, find = [], opened.index.find
    monkeypatch.setattr(opened.index, "find", lambda digest: reads.append(digest) or find(digest))
    monkeypatch.setattr(opened.index, "columns_of", None)  # which walks; it is asked once, at opening
    drawn = draws(range(4), 12, model.process, (4, 8, 8), seed=0)
    assemble(PairSet(pairs), drawn, opened, model)
    assert len(reads) == 4 * 5  # the latents and the size of two pictures, and the prompt


def test_chosen_pictures_come_first_and_conditions_are_doubled(sdxl, pairs, cache):
    batch = loaded(range(4), sdxl, pairs, cache)
    assert batch.latents.shape == (8, 4, 8, 8) and batch.noise.shape == (4, 4, 8, 8)
    told = batch.told("both")
    for values in told.values():
        assert len(values) == 8
    assert torch.equal(told["prompt_embeds"][:4], told["prompt_embeds"][4:])
    assert batch.cond["time_ids"][0].tolist() == [16, 20, 0, 2, 16, 16]
    opened = Cache(cache, cache_key(open_model(find_model(str(sdxl)))))
    by_id = {p.id: p for p in PairSet(pairs)}
    for k, name in enumerate(batch.ids):
        for image, picture in ((k, by_id[name].chosen), (k + 4, by_id[name].rejected)):
            mean, logvar = opened.latents(picture, False)
            z = (batch.latents[image] / 0.7 - mean) / (0.5 * logvar).exp()
            assert z.abs().max() < 6  # a draw from this picture's own posterior


def test_timesteps_reach_over_the_whole_schedule_and_repeats_of_a_pair_differ(sdxl, pairs, cache):
    batch = loaded(range(120), sdxl, pairs, cache)
    assert batch.timesteps.min() < 60 and batch.timesteps.max() > 940
    same = [k for k, name in enumerate(batch.ids) if name == batch.ids[0]]
    assert len(same) == 10 and len({int(batch.timesteps[k]) for k in same}) > 5
    assert not torch.equal(batch.noise[same[0]], batch.noise[same[1]])


def test_prefetching_keeps_the_order_and_passes_errors_on():
    import pytest

    assert list(prefetched(lambda k=k: k * k for k in range(5))) == [0, 1, 4, 9, 16]
    begun = threading.Event()
    found = prefetched([lambda: 1, begun.set])
    assert next(found) == 1 and begun.wait(60)  # the second one, while the first is used

    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(prefetched([lambda: 1, fail]))
