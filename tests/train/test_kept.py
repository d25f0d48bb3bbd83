"""Which checkpoints stay."""

import pytest

from mapo.errors import MapoError
from mapo.models.checkpoints import best_of
from mapo.train.config import make_config
from mapo.train.kept import Kept, kept


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (1, Kept()),
        (3, Kept(last=3)),
        ("2", Kept(last=2)),
        ("all", Kept(all=True)),
        ("last", Kept()),
        ("last:2, best", Kept(last=2, best=True)),
        ("best,every:500", Kept(every=500, best=True)),
    ],
)
def test_a_rule_is_a_number_or_words_between_commas(said, means):
    assert kept(said) == means


@pytest.mark.parametrize("said", ["", "bst", "every", "every:0", "last:-1", "best;last", 0, 1.5, True, None])
def test_what_is_no_rule_is_refused_with_those_that_are(said):
    with pytest.raises(ValueError, match=r'at least 1, or "all", or a list such as "last:2,best,every:1000"'):
        kept(said)


def test_the_newest_the_best_and_every_so_many_stay():
    steps = [100, 200, 300, 400, 450]
    assert kept("last").spent(steps, None) == [100, 200, 300, 400]
    assert kept("best,last").spent(steps, 200) == [100, 300, 400]
    assert kept("best,last").spent(steps, 450) == [100, 200, 300, 400]
    assert kept("every:200").spent(steps, 100) == [100, 300]
    assert kept("best,last:2,every:300").spent(steps, 100) == [200]
    assert kept("all").spent(steps, None) == []


def test_room_is_asked_for_as_many_as_will_be_there():
    assert kept(1).to_add(0, 8, 2000) == 1
    assert kept(3).to_add(2, 8, 2000) == 1
    assert kept("all").to_add(2, 8, 2000) == 8
    assert kept("best,last").to_add(0, 8, 2000) == 2
    assert kept("every:500,last").to_add(0, 8, 2000) == 5


def test_the_best_has_the_highest_accuracy_then_the_higher_margin_then_is_the_earlier():
    rows = [{"step": k, "accuracy": a, "margin": m} for k, a, m in ((1, 0.5, 9), (2, 0.7, 1), (3, 0.7, 2), (4, 0.7, 2))]
    assert best_of(rows, [1, 2, 3, 4]) == 3
    assert best_of(rows, [1, 2]) == 2
    assert best_of(rows, [5]) is None


def test_the_base_is_not_the_best_nor_is_what_was_measured_in_another_way():
    rows = [
        {"step": k, "accuracy": a, "of": of}
        for k, a, of in ((0, 0.8, "a"), (1, 0.9, "a"), (2, 0.6, "b"), (3, 0.5, "b"))
    ]
    assert best_of(rows, range(4)) == 2
    assert best_of(rows[:2], range(4)) == 1 and best_of(rows[:1], range(4)) is None


def test_the_best_without_measurements_is_refused_in_a_sentence():
    values = {"model": "mini", "pairs": "p", "train": {"keep_checkpoints": "best,last"}}
    with pytest.raises(MapoError, match=r"keep_checkpoints = 'best' needs train.evaluate_every, by which the best is"):
        make_config(values)
