"""The card of a run: where it comes from, what its licence asks, and code that works as it stands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from exported import PROMPT, card_of, latents, of_run, trained
from safetensors.torch import load_file

from mapo.cli import cli
from mapo.errors import MapoError
from mapo.export.runs.facts import Base
from mapo.export.runs.model_card import Exporting, _snippets
from mapo.export.runs.single_file import write_single_file
from mapo.export.verb import export
from mapo.models import find_model, open_model
from mapo.sample.sample import default_sampling
from mapo.score.table import write_scores
from mapo.train.config import make_config
from mapo.train.train import train
from tiny import make_flux, make_pairs, make_sd3, make_sdxl


@pytest.mark.parametrize(
    ("form", "kind"), [("lora", "lora"), ("kohya", "lora"), ("diffusers", "full"), ("single-file", "full")]
)
def test_what_the_card_says_to_type_works(work, monkeypatch, form, kind):
    out = work / f"snippet-{form}"
    export(str(work / kind), form, out, precision="float16" if form == "diffusers" else None)
    text = (out / "README.md").read_text()
    (code,) = [block.split("```")[0] for block in text.split(f"```{'sh' if form == 'single-file' else 'python'}\n")[1:]]
    monkeypatch.chdir(work)
    if form == "single-file":
        assert f"Put `{out.name}.safetensors` into `models/checkpoints` of ComfyUI" in text
        monkeypatch.chdir(out)
        Path("my-prompts.txt").write_text(PROMPT + "\n")
        done = CliRunner().invoke(cli, code.split()[1:])
        assert done.exit_code == 0, done.output
        assert len(list(Path("pictures").glob("*.png"))) == 1
        return
    if form == "kohya":
        assert f"Put `{out.name}.safetensors` into `models/loras` of ComfyUI" in text
    monkeypatch.setattr("tqdm.std.tqdm.display", lambda *args, **named: None)
    names: dict[str, Any] = {}
    exec(code, names)
    assert Path("picture.png").is_file()
    made = latents(names["pipeline"])
    far = [float((made - of_run(work / name)).abs().mean() / made.abs().mean()) for name in (kind, "base")]
    assert far[0] < (0.01 if form == "diffusers" else 1e-4) < far[1], far  # which was rounded to half precision


@pytest.mark.parametrize("form", ["lora", "diffusers"])
def test_what_the_card_says_to_type_works_for_every_family(any_model, run_of_any, tmp_path, monkeypatch, form):
    export(str(run_of_any), form, tmp_path / "out")
    (code,) = [block.split("```")[0] for block in (tmp_path / "out" / "README.md").read_text().split("```python\n")[1:]]
    (tmp_path / any_model.name).symlink_to(any_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tqdm.std.tqdm.display", lambda *args, **named: None)
    names: dict[str, Any] = {}
    exec(code, names)
    assert Path("picture.png").is_file()
    made = latents(names["pipeline"])
    far = [float((made - of_run(name)).abs().mean() / made.abs().mean()) for name in (run_of_any, any_model)]
    assert far[0] < 1e-4 < far[1], far


def test_the_card_names_every_lora_below_whose_licence_holds_too(work, tmp_path):
    from tiny import make_lora

    for k, name in enumerate(("first", "second")):
        make_lora(find_model(str(work / "base")), tmp_path / f"{name}.safetensors", seed=k)
    one = trained(work / "base", work / "my pairs", tmp_path / "one", (f"{tmp_path}/first.safetensors",))
    two = trained(one, work / "my pairs", tmp_path / "two", (f"{tmp_path}/second.safetensors:0.5",))
    for run, says in (
        (one, "this LoRA too, and what its licence asks holds for it as well: first.safetensors."),
        (two, "these LoRAs too, and what their licences ask holds for it as well: first.safetensors, second.safetensors."),
    ):  # fmt: skip
        export(str(run), "lora", tmp_path / f"{run.name}-out", licence="mit")
        assert f"It stands on {says}" in card_of(tmp_path / f"{run.name}-out").text
    export(str(work / "lora"), "lora", tmp_path / "plain")
    assert "It stands on" not in card_of(tmp_path / "plain").text


def test_the_card_says_what_was_trained_on_what_and_nothing_of_this_machine(work, lora):
    card = card_of(lora)
    for row in (
        "| base | base |", "| trained | a LoRA of rank 4, alpha 2 |", "| objective | mapo (beta 0.3, snr 0.5, num\\_timesteps 1000) |",
        "| steps | 2 of 2 pairs: 4 pairs seen |", "| learning rate | 0.01, constant, 0 steps of warm-up |",
        "**my pairs**", "| imported from | owner/photos |", "| licences | model: unknown; owner/photos: cc-by-4.0 |",
        "What was trained is a LoRA.", 'pipeline.load_lora_weights("exported-lora")', "beta = 0.3",
    ):  # fmt: skip
        assert row in card.text, (row, card.text)
    assert card.text.index("> **Sensitive.**") < card.text.index("## Use it")
    data = card.data.to_dict()
    assert data["license"] == "openrail++" and data["library_name"] == "diffusers"
    assert {"lora", "mapo", "text-to-image", "not-for-all-audiences"} <= set(data["tags"]) and "base_model" not in data
    assert not (lora / "NOTICE").exists()
    assert "CreativeML Open RAIL++-M (`openrail++`)" in card.text and "Only the licence's own text counts" in card.text
    facts = json.loads((lora / "mapo.json").read_text())
    assert facts["settings"]["pairs"] == "my pairs" and facts["steps"] == 2 and facts["licence"] == "openrail++"
    for path in lora.iterdir():
        assert str(work).encode() not in path.read_bytes() and b"/home/me" not in path.read_bytes()


def test_the_card_says_what_was_measured_on_held_out_pairs_up_to_its_step(work, tmp_path):
    run = shutil.copytree(work / "lora", tmp_path / "run")
    rows = [{"step": step, "of": "them", "accuracy": 0.5 + step / 10, "margin": step / 1000} for step in range(3)]
    (run / "evaluations.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [{**rows[1], "of": "others"}, *rows])
    )
    for name, said in (
        ("run", "accuracy 70.0%, margin 0.002 at step 2"),
        ("run@1", "accuracy 60.0%, margin 0.001 at step 1"),
    ):
        export(str(tmp_path / name), "lora", tmp_path / f"{name}-out")
        row = f"| on held-out pairs | {said}; before training accuracy 50.0%, margin 0 |"
        assert row in card_of(tmp_path / f"{name}-out").text


def test_the_card_tells_diffusers_what_the_model_predicts_where_the_user_said_it(work, tmp_path, monkeypatch):
    values = {
        "model": str(work / "base"), "pairs": str(work / "my pairs"), "prediction": "v", "adapter": {"kind": "lora"},
        "train": {"steps": 1, "pairs_per_step": 1},
    }  # fmt: skip
    train(make_config(values), tmp_path / "run")
    export(str(tmp_path / "run"), "lora", tmp_path / "out")
    (code,) = re.findall(r"```python\n(.*?)```", card_of(tmp_path / "out").text, re.DOTALL)
    monkeypatch.chdir(work)
    here: dict[str, Any] = {}
    exec(code.replace('"out"', repr(str(tmp_path / "out"))).split("picture =")[0], here)
    assert here["pipeline"].scheduler.config.prediction_type == "v_prediction"
    assert torch.allclose(latents(here["pipeline"]), of_run(tmp_path / "run"), atol=1e-5)


def test_the_card_tells_diffusers_what_a_file_predicts_by_its_marks(work, tmp_path, monkeypatch):
    folder, file = make_sdxl(tmp_path / "m", "v_prediction"), tmp_path / "m.safetensors"
    write_single_file(open_model(find_model(str(folder))), file, "float32")
    run = trained(file, make_pairs(tmp_path / "pairs", count=2), tmp_path / "run")
    shutil.copy(work / "base" / "scheduler" / "scheduler_config.json", folder / "scheduler")  # diffusers sees no marks
    export(str(run), "lora", tmp_path / "out")
    (code,) = re.findall(r"```python\n(.*?)```", card_of(tmp_path / "out").text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    opening = code.replace("torch_dtype", f"config={str(folder)!r}, local_files_only=True, torch_dtype").split("#")[0]
    exec(opening, here := dict[str, Any]())
    scheduler = here["pipeline"].scheduler.config
    assert scheduler.prediction_type == "v_prediction" and scheduler.rescale_betas_zero_snr
    assert scheduler.timestep_spacing == "trailing"
    assert torch.allclose(latents(here["pipeline"]), of_run(run), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("make", "t5"), [(make_flux, "text_encoder_2"), (make_sd3, "text_encoder_3")])
def test_the_card_mends_the_t5_that_diffusers_reads_from_a_file(make, t5, tmp_path):
    from diffusers.loaders.single_file_utils import create_diffusers_t5_model_from_checkpoint
    from transformers import T5EncoderModel

    folder, file = make(tmp_path / "m"), tmp_path / "m.safetensors"
    write_single_file(open_model(find_model(str(folder))), file, "float32")
    model = open_model(find_model(str(file)))
    ((_, code),) = _snippets(
        Exporting("lora", "out"), model, Base("", file.name, file), default_sampling(model.files, steps=1)
    )
    read = create_diffusers_t5_model_from_checkpoint(
        T5EncoderModel, load_file(file), subfolder=t5, config=str(folder), local_files_only=True
    )
    mending = [line for line in code.splitlines() if line.startswith(f"pipeline.{t5}.")]
    exec("\n".join(mending), {"pipeline": SimpleNamespace(**{t5: read})})
    ids = torch.arange(5)[None]
    wanted = model.files.load(t5, T5EncoderModel)
    for _ in range(2):
        assert torch.equal(read(ids)[0], wanted(ids)[0])


def test_the_card_opens_the_other_vae_that_a_run_was_trained_with(work, tmp_path, monkeypatch):
    other = make_sdxl(tmp_path / "other", seed=5)
    model = open_model(find_model(str(work / "base"), vae=str(other)))
    what, base = Exporting("lora", "out"), Base("", "base", work / "base")
    ((_, code),) = _snippets(what, model, base, default_sampling(model.files))
    (work / "other").symlink_to(other)
    monkeypatch.chdir(work)
    opening = "\n".join(line for line in code.split("#")[0].splitlines() if "load_lora" not in line)
    exec(opening, here := dict[str, Any]())
    wanted = model.files.vae.load(type(here["pipeline"].vae), torch.float32).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in here["pipeline"].vae.state_dict().items())


def test_the_card_says_that_a_file_has_no_t5(tmp_path):
    folder, file = make_sd3(tmp_path / "m", t5=False), tmp_path / "m.safetensors"
    write_single_file(open_model(find_model(str(folder))), file, "float32")
    model = open_model(find_model(str(file)))
    ((_, code),) = _snippets(
        Exporting("lora", "out"), model, Base("", file.name, file), default_sampling(model.files, steps=1)
    )
    assert 'from_single_file("m.safetensors", text_encoder_3=None, tokenizer_3=None, torch_dtype=' in code


def test_the_card_guides_a_flux_whose_distillation_was_undone_by_an_empty_negative_prompt(tmp_path, monkeypatch):
    folder, times = make_flux(tmp_path / "flux-de-distilled", guidance=False), []
    sampling = default_sampling(find_model(str(folder)), steps=3)
    what, base = Exporting("diffusers", folder.name), Base("", folder.name, folder)
    ((_, code),) = _snippets(what, open_model(find_model(str(folder))), base, sampling)
    monkeypatch.chdir(tmp_path)
    opening, drawing = code.split("picture =")
    exec(opening, here := dict[str, Any]())
    here["pipeline"].transformer.register_forward_pre_hook(lambda *_: times.append(1))
    exec(f"picture ={drawing}", here)
    assert len(times) == 2 * 3


def test_scores_stand_in_the_card_and_others_are_refused(work, tmp_path):
    def table(path: Path, *models: tuple[str, float]) -> Path:
        rows = [
            {"image": f"{k}{model}", "prompt_id": "p", "prompt": "p", "seed": k, "model": model, "scorer": "clip",
             "metric": "clip_score", "version": "1", "revision": "", "reference": "", "value": value + k}
            for model, value in models for k in range(2)
        ]  # fmt: skip
        write_scores(path, rows)
        return path

    before = table(tmp_path / "before.parquet", ("owner/model", 20.0))
    after = table(tmp_path / "after.parquet", (str(work / "lora"), 30.0))
    export(str(work / "lora"), "lora", tmp_path / "out", scores=[before, after])
    text = card_of(tmp_path / "out").text
    assert "| | pictures | owner/model | this model |\n|---|---:|---:|---:|\n" in text
    assert r"| clip\_score (clip) | 2 | 20.5 | 30.5 |" in text
    with pytest.raises(MapoError, match="--scores: no picture of .*lora is in .*; there are those of owner/model"):
        export(str(work / "lora"), "lora", tmp_path / "none", scores=[before])
    assert not (tmp_path / "none").exists()


def with_card(folder: Path, head: str) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    return folder


@pytest.mark.parametrize(
    ("base", "name", "own_name"),
    [
        ("black-forest-labs/FLUX.1-dev", "other", "flux-1-dev-non-commercial-license"),
        ("black-forest-labs/FLUX.1-schnell", "apache-2.0", ""),
        ("stabilityai/stable-diffusion-3.5-large", "other", "stabilityai-ai-community"),
        ("stabilityai/stable-diffusion-3-medium-diffusers", "other", "stabilityai-ai-community"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "openrail++", ""),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m", ""),
        ("Tongyi-MAI/Z-Image", "apache-2.0", ""),
    ],
)
def test_the_licence_of_a_known_base_is_passed_on_and_cannot_be_changed(base, name, own_name):
    from mapo.export.runs.licences import inherited

    found = inherited(base, None, None)
    assert found is not None and (found.name, found.own_name) == (name, own_name) and found.restricts
    assert inherited(base, None, own_name or name) == found
    if name == "apache-2.0":
        assert inherited(base, None, "mit").name == "mit"
        return
    with pytest.raises(MapoError, match=rf"--license is mit, but the base is under .*{found.called.replace('+', '.')}"):
        inherited(base, None, "mit")


def test_a_base_s_own_card_names_its_licence_and_else_the_hub_is_asked(tmp_path):
    from mapo.export.runs.licences import inherited

    def ask(base: str) -> dict[str, str]:
        return {"license": "other", "license_name": "faipl-1.0-sd", "license_link": "https://freedevproject.org"}

    known = inherited("", with_card(tmp_path / "a", "license: creativeml-openrail-m"), None)
    assert known.title == "CreativeML Open RAIL-M"
    assert inherited("", with_card(tmp_path / "b", "license: unknown"), None) is None
    assert inherited("", with_card(tmp_path / "c", "license: [broken"), None) is None
    assert inherited("", with_card(tmp_path / "d", "license: other"), None) is None
    found = inherited("a/b", tmp_path / "nothing", None, ask)
    assert (found.name, found.own_name, found.link) == ("other", "faipl-1.0-sd", "https://freedevproject.org")
    assert inherited("a/b", None, None) is None and inherited("", None, "cc-by-4.0").name == "cc-by-4.0"
    with pytest.raises(MapoError, match="write the hub's name for it"):
        inherited("", None, "My Licence")


def test_the_licence_of_flux_dev_and_sd3_is_that_of_their_kind_where_no_id_and_no_card_says_it(any_model, run_of_any):
    """A file or a bare folder has no name on the hub."""
    from mapo.export.runs.licences import inherited, licence_of_kind

    kind = licence_of_kind(opened := open_model(find_model(str(run_of_any))))
    wanted = {
        "FluxPipeline": "flux-1-dev-non-commercial-license", "StableDiffusion3Pipeline": "stabilityai-ai-community"
    }.get(opened.files.pipeline_class)  # fmt: skip
    if wanted is None:
        assert kind is None
        return
    out = run_of_any.parent / "published"
    with pytest.raises(
        MapoError, match=r"--license is mit, but the base is a model of the kind of .*--base-model OWNER"
    ):
        export(str(run_of_any), "hub", out, licence="mit")
    export(str(run_of_any), "hub", out)
    assert card_of(out).data.to_dict()["license_name"] == wanted
    said = {"FluxPipeline": "licensed by Black Forest Labs.", "StableDiffusion3Pipeline": "Powered by Stability AI."}
    for text in ((out / "NOTICE").read_text("utf-8"), card_of(out).text):
        assert said[opened.files.pipeline_class] in text
    assert inherited("owner/other", None, "mit", None, kind).name == "mit"  # --base-model says otherwise
    with_card(run_of_any.parent / "carded", "license: apache-2.0")
    assert inherited("", run_of_any.parent / "carded", None, None, kind).name == "apache-2.0"


def test_what_is_made_of_flux_without_guidance_may_have_any_licence(tmp_path):
    from mapo.export.runs.licences import licence_of_kind
    from tiny import make_flux

    assert licence_of_kind(open_model(find_model(str(make_flux(tmp_path / "m", guidance=False))))) is None
