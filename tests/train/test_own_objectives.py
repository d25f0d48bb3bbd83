"""Objectives in a file of the user's own, and those that need more than four errors a pair."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from test_train import assert_same, run

from mapo.api import try_objective
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.report.curves import draw_curves, read_metrics
from mapo.train.objectives import OBJECTIVES
from mapo.train.objectives.own import file_identity, objective_named
from mapo.train.run.folder import Run

MINE = """
import torch.nn.functional as F

def mine(errors, *, beta: float = 0.1):
    w, l = errors.chosen.double(), errors.rejected.double()
    return w - beta * F.logsigmoid(l - w)
"""

WITH_ALL = """
import torch
import torch.nn.functional as F
from mapo.train.objectives import Objective

def loss(errors, *, mean, pull=2.0):
    seen.append((errors.extras["product"].detach().clone(), mean))
    drift = (errors.chosen - errors.rejected) - (errors.ref_chosen - errors.ref_rejected)
    return -F.logsigmoid(-pull * drift.double()) + 0 * errors.extras["product"] + mean * errors.chosen

seen = []
everything = Objective(
    loss, needs_reference=True,
    extras={"product": lambda r: (r.chosen * r.rejected).flatten(1).mean(1)},
    prepare=lambda errors: {"mean": float(errors.chosen.mean())},
)
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my_objective.py"
    path.write_text(MINE)
    return path


def test_a_function_of_ones_own_trains_as_the_built_in_one_of_the_same_formula(tmp_path, sdxl, pairs, cache, file):
    ours = run(tmp_path / "a", sdxl, pairs, cache, {"name": f"{file}:mine", "beta": 0.5})
    theirs = run(tmp_path / "b", sdxl, pairs, cache, {"name": "orpo", "beta": 0.5})
    assert_same(ours, theirs, tolerance=1e-12)
    assert f'name = "{file}:mine"' in (tmp_path / "a" / "config.toml").read_text()
    assert "beta = 0.5" in (tmp_path / "a" / "config.toml").read_text()


def test_it_is_found_again_from_another_folder_and_its_changes_are_noticed(
    tmp_path, sdxl, pairs, cache, file, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    first = run(tmp_path / "r", sdxl, pairs, cache, "my_objective.py:mine", steps=2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    more = run(tmp_path / "r", sdxl, pairs, cache, f"{file}:mine", steps=3)
    assert more[:2] == first and len(more) == 3
    file.write_text(MINE.replace("0.1", "0.2"))
    with pytest.raises(MapoError, match=r"the content of .*my_objective\.py"):
        run(tmp_path / "r", sdxl, pairs, cache, {"name": f"{file}:mine", "beta": 0.1}, steps=4)


def test_a_record_of_ones_own_gets_extras_constants_and_a_reference(tmp_path, sdxl, pairs, cache):
    path = tmp_path / "all.py"
    path.write_text(WITH_ALL)
    got = run(tmp_path / "r", sdxl, pairs, cache, f"{path}:everything", pairs_per_device=3, steps=1)
    objective = objective_named(f"{path}:everything")
    seen = objective.loss.__wrapped__.__globals__["seen"]
    constant = {mean for _, mean in seen if isinstance(mean, float)}
    assert got[0]["mean"] in constant and got[0]["mean"] == pytest.approx(got[0]["error_chosen"], rel=1e-12)
    assert all(torch.isfinite(product).all() for product, _ in seen)


BROKEN = {
    "syntax": ("def mine(errors)\n", r"cannot be read \(SyntaxError, line 1: "),
    "import": ("import no_such_module\n", r"cannot be read \(ModuleNotFoundError, line 1: No module named"),
    "name": ("def other(errors):\n    return errors.chosen\n", "has no function 'mine'. It has: other"),
    "nothing": ("x = 1\n", "has no function 'mine'. It has no functions"),
    "not a function": ("mine = 3\n", "has no function 'mine'"),
    "raises": ("def mine(errors):\n    return errors.chosen / errors.size\n", r"cannot be used \(AttributeError, line 2"),
    "arguments": ("def mine(one, two):\n    return one\n", r"cannot be used \(TypeError: "),
    "mean": ("def mine(errors):\n    return errors.chosen.mean()\n", r"gave a tensor of shape \[\]. It has to give a tensor of one loss for"),
    "two": ("def mine(errors):\n    return errors.chosen[:2]\n", r"gave a tensor of shape \[2\]"),
    "list": ("def mine(errors):\n    return [1.0, 2.0, 3.0]\n", r"gave a list. .* for each pair, here of shape \[3\]"),
    "whole numbers": ("def mine(errors):\n    return errors.chosen.long()\n", "Its losses have to be finite numbers"),
    "not finite": ("def mine(errors):\n    return (errors.chosen * 0).log()\n", r"gave \[-inf, -inf, -inf\] for 3"),
    "gradient": ("def mine(errors):\n    return errors.chosen.detach()\n", "losses without a gradient"),
    "bad gradient": (
        "def mine(errors):\n    return (errors.chosen - errors.chosen).abs().sqrt()\n", "a gradient that is not finite",
    ),
    "text": ("def mine(errors, *, mode='x'):\n    return errors.chosen\n", "has the setting mode = 'x'. Settings are finite"),
    "nan": ("def mine(errors, *, f=float('nan')):\n    return errors.chosen\n", "has the setting f = nan"),
    "exit": ("import sys\nsys.exit(0)\n", r"cannot be read \(SystemExit, line 2: 0\)"),
    "exit later": ("def mine(errors):\n    raise SystemExit('bye')\n", r"cannot be used \(SystemExit, line 2: bye\)"),
    "zero gradient": ("def mine(errors):\n    return errors.chosen * 0\n", "a gradient of nothing but zeros"),
    "our own exception": (
        "from mapo.errors import MapoError\ndef mine(errors):\n    raise MapoError('')\n", r"MapoError, line 3: nothing more",
    ),
    "other pairs": (
        "def mine(errors):\n    return errors.chosen - errors.rejected.mean()\n",
        r"broken\.py:mine gave a pair the loss -0\.09 alone and -0\.073\d+ among 3 pairs, or other",
    ),
    "the order": ("def mine(errors):\n    return errors.chosen.flip(0)\n", "a pair the loss 0.16 alone and 0.22 among 3"),
    "one pair alone": ("def mine(errors):\n    return errors.chosen.squeeze()\n", r"shape \[\]. .* here of shape \[1\]"),
    "chance": (
        "import torch\ndef mine(errors):\n    return errors.chosen * torch.rand(len(errors.chosen))\n",
        r"broken\.py:mine gave another loss when it was asked again about the same errors",
    ),
    "reference": (
        "def mine(errors):\n    return errors.chosen - errors.ref_chosen\n", r"cannot be used \(TypeError, line 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_one_that_cannot_be_trained_with_is_refused_in_a_sentence_before_anything_is_loaded(tmp_path, pairs, kind):
    code, says = BROKEN[kind]
    path = tmp_path / "broken.py"
    path.write_text(code)
    words = ["train", "--model", "mini", "--pairs", pairs, "--out", tmp_path / "r", "--objective", f"{path}:mine"]
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert isinstance(done.exception, MapoError), done.exception
    assert re.search(says, str(done.exception)), done.exception
    assert not (tmp_path / "r").exists()


def test_a_file_that_is_not_there_and_a_setting_that_it_lacks_are_named(tmp_path, sdxl, pairs, cache, file):
    with pytest.raises(MapoError, match=r"there is no file .*absent\.py"):
        run(tmp_path / "r", sdxl, pairs, cache, f"{tmp_path}/absent.py:mine")
    with pytest.raises(MapoError, match=r"has no setting 'gamma'. Did you mean|has no setting 'gamma'"):
        run(tmp_path / "r", sdxl, pairs, cache, {"name": f"{file}:mine", "gamma": 1.0})
    with pytest.raises(MapoError, match=r"There is no objective 'mapoo'. .*file\.py:name"):
        run(tmp_path / "r", sdxl, pairs, cache, "mapoo")


RECORDS = {
    "prepare gives a tensor": ("prepare=lambda e: {'k': e.chosen.mean()}", "prepares .*float.…. makes one of a tensor"),
    "prepare fails": ("prepare=lambda e: {'k': 1 / 0}", r"cannot be used \(ZeroDivisionError, line 7"),
    "an extra is one number": ("extras={'x': lambda r: r.chosen.mean()}", r"the extra x is of shape \[\]"),
    "a logit is one number": (
        "logit=lambda e: e.chosen.mean()",
        r"has a logit of shape \[\]. It has to be one number for",
    ),
    "an extra looks at other pairs": (
        "extras={'x': lambda r: r.chosen.flatten(1).mean(1) - r.chosen.mean()}",
        "a pair the loss .* or other gradients",
    ),
    "the reference's own errors": (
        "needs_reference=True",
        "not finite where the errors equal those of the reference. In the first step",
    ),
    "a logit fails": ("logit=lambda e: e.chosen / e.size", r"cannot be used \(AttributeError, line 7"),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_every_function_of_a_record_is_tried_before_anything_is_loaded(tmp_path, kind):
    how, says = RECORDS[kind]
    path = tmp_path / "record.py"
    path.write_text(
        "from mapo.train.objectives import Objective\n\n\n"
        "def loss(errors, **rest):\n    drift = errors.chosen - errors.ref_chosen if errors.ref_chosen is not None else 1\n"
        "    return errors.chosen * (1 + errors.extras.get('x', 0)) / drift\n"
        f"mine = Objective(loss, {how})\n"
    )
    with pytest.raises(MapoError, match=says):
        try_objective(f"{path}:mine")


DOUBTFUL = {
    "nothing": ("errors.chosen.double() - errors.rejected.double()", "errors.rejected - errors.chosen", []),
    "float32": (
        "errors.rejected / (errors.rejected.exp() - 1) - errors.chosen / (errors.chosen.exp() - 1)",
        "errors.rejected - errors.chosen",
        [r"has a .* of \S+ for errors of 0\.\d+ \(chosen\) and 0\.\d+ \(rejected\), where exact arithmetic gives \S+\. "
         r"Compute in float64, with errors\.chosen\.double\(\) and"],
    ),
    "logit": (
        "errors.chosen", "-errors.chosen",
        [r"has a logit of -0\.001 for errors of 0\.001 \(chosen\) and 0\.001 \(rejected\) and of -0\.001 with the two "
         "exchanged. One is not minus the other, so the sign of `logit`"],
    ),
    "equal errors": (
        "(errors.chosen.double() - errors.rejected).abs().sqrt()", "errors.rejected - errors.chosen",
        [r"has a loss or a gradient that is not finite for errors of 0\.001 \(chosen\) and 0\.001 \(rejected\)\. A step with"],
    ),
    "large errors": (
        "(300 * errors.chosen.double()).exp()", "0 * errors.chosen", [r"not finite for errors of 1 \(chosen\) and 0\.001"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_what_is_doubtful_about_one_is_a_sentence_with_its_file_and_name(tmp_path, kind):
    loss, logit, says = DOUBTFUL[kind]
    path = tmp_path / "doubtful.py"
    path.write_text(
        "from mapo.train.objectives import Objective\n"
        f"mine = Objective(lambda errors: {loss}, lambda errors: {logit})\n"
    )
    said = try_objective(f"{path}:mine")
    assert len(said) == len(says), said
    for sentence, pattern in zip(said, says, strict=True):
        assert sentence.startswith(f"The objective {path}:mine has a ")
        assert re.search(pattern, sentence), sentence


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_is_doubtful_about_a_built_in_objective(name):
    assert try_objective(name) == []


@pytest.mark.parametrize("name", ["mapo", "dpo", "orpo"])
def test_a_sign_that_draws_the_model_to_the_rejected_pictures_is_doubted(name):
    told = try_objective(name, settings={"beta": -3.0})
    assert any(sentence.endswith("nearer to the rejected pictures. Is a sign wrong?") for sentence in told), told


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("'loss', 3", r"has the loss 3\. It has to be a function"),
        ("'logit', 3", r"has the logit 3\. It has to be a function"),
        ("'prepare', 7", r"has the prepare 7\. It has to be a function"),
        ("'extras', ['x']", r"has the extras \['x'\]\. They have to be a dictionary of functions"),
        ("'extras', {'x': 3}", "They have to be a dictionary of functions"),
    ],
)
def test_a_part_of_a_record_that_is_not_a_function_is_refused_in_a_sentence(tmp_path, part, says):
    path = tmp_path / "record.py"  # a part is set afterwards, as in tests kinds are checked when a record is made
    path.write_text(
        "from mapo.train.objectives import Objective\n"
        f"mine = Objective(lambda errors: errors.chosen)\nobject.__setattr__(mine, {part})\n"
    )
    with pytest.raises(MapoError, match=says):
        try_objective(f"{path}:mine")


def test_the_line_is_told_of_a_file_that_is_named_from_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def mine(errors):\n    return errors.size\n")
    with pytest.raises(MapoError, match="AttributeError, line 2: "):
        try_objective("mine.py:mine")


def test_settings_are_tried_in_place_of_the_defaults(file):
    assert try_objective(f"{file}:mine", settings={"beta": 1e30}) == []
    with pytest.raises(MapoError, match=r"my_objective\.py:mine with beta = 1e\+308 has a gradient that is not finite"):
        try_objective(f"{file}:mine", settings={"beta": 1e308})
    with pytest.raises(MapoError, match=r"has no setting 'gamma'"):
        try_objective(f"{file}:mine", settings={"gamma": 1})
    with pytest.raises(MapoError, match=r"objective\.beta = 10+ is not a number"):
        try_objective(f"{file}:mine", settings={"beta": 10**400})


def test_what_is_doubtful_is_said_before_the_training(tmp_path, sdxl, pairs, cache, heard):
    path = tmp_path / "record.py"
    path.write_text(
        "from mapo.train.objectives import Objective\n"
        "mine = Objective(lambda errors: errors.chosen, lambda errors: -errors.chosen)\n"
    )
    assert len(run(tmp_path / "r", sdxl, pairs, cache, f"{path}:mine", steps=1)) == 1
    assert heard().count("One is not minus the other") == 1


@pytest.mark.parametrize("logit", ["errors.chosen * 0 + 1", "-errors.chosen", "k * (errors.rejected - errors.chosen)"])
def test_a_logit_may_leave_an_error_out_and_take_a_constant_of_the_step(tmp_path, sdxl, pairs, cache, logit):
    path = tmp_path / "record.py"
    path.write_text(
        "from mapo.train.objectives import Objective\n\n"
        f"def logit(errors, *, k):\n    return {logit}\n\n"
        "def loss(errors, *, k):\n    return errors.chosen - k * errors.rejected\n\n"
        "mine = Objective(loss, logit, prepare=lambda errors: {'k': 0.5})\n"
    )
    got = run(tmp_path / "r", sdxl, pairs, cache, f"{path}:mine", steps=1)
    assert got[0]["k"] == 0.5 and got[0]["logit_scale"] == pytest.approx({"e": 0, "-": 0.5, "k": 0.5}[logit[0]])


def test_a_logit_that_is_not_finite_is_null_and_its_run_goes_on(tmp_path, sdxl, pairs, cache):
    path = tmp_path / "record.py"
    path.write_text(
        "from mapo.train.objectives import Objective\n"
        "mine = Objective(lambda errors: errors.chosen, lambda errors: (errors.chosen - 1e9).sqrt())\n"
    )
    run(tmp_path / "r", sdxl, pairs, cache, f"{path}:mine", steps=1)
    run(tmp_path / "r", sdxl, pairs, cache, f"{path}:mine", steps=2)
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) for line in lines]
    assert [line["logit"] for line in told] == [None, None] == [line["logit"] for line in Run(tmp_path / "r").metrics()]
    assert draw_curves(read_metrics(tmp_path / "r"))


def test_one_that_fails_in_the_middle_loses_no_step_and_names_its_line(tmp_path, sdxl, pairs, cache):
    path = tmp_path / "late.py"
    path.write_text(
        "calls = []\n\ndef mine(errors):\n    calls.append(len(errors.chosen))\n    if calls[-4:] == [4] * 4:\n"
        "        raise ValueError('late')\n    return errors.chosen - errors.rejected\n"
    )
    with pytest.raises(MapoError, match=r"cannot be used \(ValueError, line 6: late\). What was trained up to step 3"):
        run(tmp_path / "r", sdxl, pairs, cache, f"{path}:mine", steps=6)
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-00000003"]
    assert len(run(tmp_path / "r", sdxl, pairs, cache, f"{path}:mine", steps=3)) == 3


def test_one_may_import_a_file_beside_it(tmp_path):
    (tmp_path / "beside_mine.py").write_text("STRENGTH = 2.0\n")
    path = tmp_path / "mine.py"
    path.write_text("from beside_mine import STRENGTH\ndef mine(errors):\n    return STRENGTH * errors.chosen\n")
    before = list(sys.path)
    assert try_objective(f"{path}:mine") == [] and sys.path == before


def test_a_change_of_a_file_that_it_imports_is_noticed(tmp_path, sdxl, pairs, cache):
    folder = tmp_path / "mine"
    (folder / "parts").mkdir(parents=True)
    (folder / "mine.py").write_text("def mine(errors):\n    from parts import of\n    return of.loss(errors)\n")
    (folder / "parts" / "__init__.py").write_text("from . import of\n")
    (folder / "parts" / "of.py").write_text("import far\ndef loss(errors):\n    return far.STRENGTH * errors.chosen\n")
    (folder / "far.py").write_text("STRENGTH = 2.0\n")
    (folder / "other.py").write_text("")
    name = f"{folder / 'mine.py'}:mine"
    first = file_identity(name)["objective"]
    (folder / "other.py").write_text("changed = True\n")
    assert file_identity(name)["objective"] == first and first[0] != first[1]
    (folder / "far.py").write_text("STRENGTH = 3.0\n")
    second = file_identity(name)["objective"]
    assert second[0] != first[0] and second[1] == first[1] == sha256((folder / "mine.py").read_bytes())[:16]


def test_a_run_goes_on_where_the_file_beside_its_objective_is_as_it_was(tmp_path, sdxl, pairs, cache):
    (tmp_path / "strength.py").write_text("STRENGTH = 2.0\n")
    path = tmp_path / "mine.py"
    path.write_text("from strength import STRENGTH\ndef mine(errors):\n    return STRENGTH * errors.chosen\n")
    run(tmp_path / "r", sdxl, pairs, cache, f"{path}:mine", steps=1)
    state = tmp_path / "r" / "checkpoints" / "step-00000001" / "state.json"
    new, old = file_identity(f"{path}:mine")["objective"]
    saved = json.loads(state.read_text().replace(new, old))
    state.write_text(json.dumps({**saved, "crc32": None}))  # as 0.1.0 wrote it
    lines = run(tmp_path / "r", sdxl, pairs, cache, f"{path}:mine", steps=2)
    assert lines[1]["loss"] == pytest.approx(2 * lines[1]["error_chosen"], rel=1e-12)
    (tmp_path / "strength.py").write_text("STRENGTH = 30\n")
    with pytest.raises(MapoError, match=r"the content of .*mine\.py or of a file that it imports"):
        run(tmp_path / "r", sdxl, pairs, cache, f"{path}:mine", steps=3)
    lines = run(tmp_path / "other", sdxl, pairs, cache, f"{path}:mine", steps=1)
    assert lines[0]["loss"] == pytest.approx(30 * lines[0]["error_chosen"], rel=1e-12)


def test_settings_of_one_in_a_relative_file_are_taken_from_its_run(tmp_path, sdxl, pairs, cache, file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "r", sdxl, pairs, cache, {"name": "my_objective.py:mine", "beta": 3.0}, steps=1)
    assert len(run(tmp_path / "r", sdxl, pairs, cache, "my_objective.py:mine", steps=2)) == 2


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ({"name": "ipo", "beta": 0.0}, r"ipo with beta = 0 cannot be used \(ZeroDivisionError"),
        ({"name": "mapo_relative", "sharpness": 0.0}, "mapo_relative with .*sharpness = 0.* cannot be used"),
        ({"name": "mapo_aaai", "beta": 0.0}, "mapo_aaai with beta = 0 (gave|cannot|has)"),
        ({"name": "kto", "beta": 0.0}, "kto with beta = 0 has a gradient of nothing but zeros"),
    ],
)
def test_settings_that_no_loss_can_bear_are_refused_before_a_folder_is_made(
    tmp_path, sdxl, pairs, cache, objective, says
):
    with pytest.raises(MapoError, match=says):
        run(tmp_path / "r", sdxl, pairs, cache, objective)
    assert not (tmp_path / "r" / "config.toml").exists()


@pytest.mark.parametrize("beta", [5e3, 2e4, 1e6])
@pytest.mark.parametrize("name", ["dpo", "poly_dpo", "sdpo", "kto", "ipo"])
def test_a_strong_beta_is_trained_with_as_its_gradient_is_there_where_training_begins(name, beta):
    """In float32 the gradient of pairs that are ten per cent from their reference is nothing from 7,000 or so on."""
    assert try_objective(name, settings={"beta": beta}) == []


def test_a_margin_that_typical_pairs_are_beyond_is_no_reason_to_refuse(tmp_path):
    path = tmp_path / "hinge.py"
    path.write_text("def hinge(errors):\n    return (0.01 + errors.chosen - errors.rejected).clamp(min=0)\n")
    assert try_objective(f"{path}:hinge") == []
