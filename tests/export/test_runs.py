"""What a run becomes: opened by others with equal pictures, with a card that says where it comes from."""

from __future__ import annotations

import functools
import inspect
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

from mapo.cli import cli
from mapo.errors import MapoError
from mapo.export.runs.facts import Base
from mapo.export.runs.model_card import Exporting, _snippets
from mapo.export.runs.runs import ExportOptions, export_run
from mapo.export.runs.single_file import write_single_file
from mapo.export.verb import export
from mapo.models import find_model, open_model
from mapo.sample.sample import default_sampling
from mapo.score.table import write_scores
from mapo.train.config import make_config, to_toml
from mapo.train.train import train
from tiny import make_flux, make_pairs, make_sd, make_sd3, make_sdxl

PROMPT = "a small red circle"


def latents(pipeline: Any, **how: Any) -> torch.Tensor:
    """What a pipeline draws, before it is decoded."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "width": 16, "height": 16, **how}
    with torch.inference_mode():
        found: torch.Tensor = pipeline(
            PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent", **settings
        )[0]
    return found


@functools.cache
def of_run(name: Path | str) -> torch.Tensor:
    return latents(open_model(find_model(str(name)), to_train=False).pipeline("cpu", torch.float32))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a sensitive set, a run of a LoRA and one of all weights."""
    folder: Path = tmp_path_factory.mktemp("work")
    make_sdxl(folder / "base")
    (folder / "base" / "sampling.json").write_text('{"steps": 2, "guidance": 3.0, "width": 16, "height": 16}')
    make_pairs(folder / "my pairs", count=4)
    (folder / "my pairs" / "set.json").write_text(
        json.dumps({**json.loads((folder / "my pairs" / "set.json").read_text()), "sensitive": True,
                    "provenance": {"imported": "owner/photos", "licence": "cc-by-4.0", "model": "/home/me/secret/model"}})
    )  # fmt: skip
    for kind in ("lora", "full"):
        values = {
            "model": str(folder / "base"), "pairs": str(folder / "my pairs"),
            "adapter": {"kind": kind, "rank": 4, **({"alpha": 2.0} if kind == "lora" else {})},
            "objective": {"name": "mapo", "beta": 0.3}, "optim": {"lr": 1e-2},
            "train": {"steps": 2, "pairs_per_step": 2, "save_every_steps": 1, "keep_checkpoints": "all"},
        }  # fmt: skip
        train(make_config(values), folder / kind)
    return folder


@pytest.fixture(scope="module")
def lora(work: Path) -> Path:
    export(str(work / "lora"), "lora", work / "exported-lora", licence="openrail++")
    return work / "exported-lora"


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text("utf-8"))


def names_in(folder: Path) -> dict[str, dict[str, str]]:
    """The names and kinds of the tensors of every safetensors file."""
    found = {}
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found[path.parent.name] = {key: file.get_slice(key).get_dtype() for key in set(file.keys())}
    return found


def test_a_whole_folder_draws_what_the_run_draws_and_every_version_of_transformers_finds_its_names(work, tmp_path):
    made = export(str(work / "lora"), "diffusers", tmp_path / "out")
    assert torch.equal(latents(DiffusionPipeline.from_pretrained(tmp_path / "out")), of_run(work / "lora"))
    assert not torch.equal(of_run(work / "lora"), of_run(work / "base"))
    names = names_in(tmp_path / "out")
    for part in ("text_encoder", "text_encoder_2"):
        assert all(name.startswith("text_model.") or name == "text_projection.weight" for name in names[part])
    assert {kind for part in names.values() for kind in part.values()} == {"F32"}
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert made.counts == {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    for path in files:
        if path.suffix in (".json", ".md"):
            assert str(work) not in path.read_text("utf-8"), path


def test_half_precision_is_merged_first_and_rounded_once(work, tmp_path, caplog):
    export(str(work / "lora"), "diffusers", tmp_path / "half", precision="float16")
    assert not [record for record in caplog.records if record.name.startswith("diffusers")]
    assert {kind for part in names_in(tmp_path / "half").values() for kind in part.values()} == {"F16"}
    export(str(work / "lora"), "single-file", tmp_path / "half.safetensors")
    whole = open_model(find_model(str(work / "lora"))).denoiser("cpu", torch.float32).state_dict()
    for place in ("half", "half.safetensors"):
        half = open_model(find_model(str(tmp_path / place))).denoiser("cpu", torch.float16).state_dict()
        assert all(torch.equal(half[name], whole[name].half()) for name in whole), place


def test_a_number_that_half_precision_cannot_hold_is_told_and_nothing_is_left(work, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(work / "full", tmp_path / "full")
    file = tmp_path / "full" / "weights" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = 1e5
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(MapoError, match=r"conv_in\.weight of unet has numbers that float16 cannot hold"):
        export(str(tmp_path / "full"), "diffusers", tmp_path / "out", precision="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_layers_that_are_left_out_of_a_text_encoder_are_left_out_of_the_folder(tmp_path):
    base, work = make_sd(tmp_path / "base"), tmp_path / "run"
    shutil.copytree(base / "unet", work / "weights" / "unet")
    about = {"base": str(base), "adapter": "full", "denoiser": "weights/unet", "objective": "sft", "clip_skip": 1,
             "long_prompts": "chunk", "chunks": 2}  # fmt: skip
    (work / "run.json").write_text(json.dumps(about))
    settings = {"model": str(base), "pairs": str(tmp_path / "pairs"), "data": {"caption_dropout": 0.1}}
    (work / "config.toml").write_text(to_toml(make_config(settings)))
    export(str(work), "diffusers", tmp_path / "out")
    found = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert found.text_encoder.config.num_hidden_layers == 2
    assert torch.equal(latents(found), of_run(work))
    card = card_of(tmp_path / "out").text
    assert "| long prompts | read in chunks, 2 of them" in card and "| pairs without their prompt | 10% |" in card
    assert "| clip skip | 1 |" in card and "The set pairs was not there when this card was written" in card


def test_a_lora_folder_is_one_and_an_earlier_step_is_another(work, lora, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(work / "base")
    pipeline.load_lora_weights(lora)
    assert torch.allclose(latents(pipeline), of_run(work / "lora"), rtol=1e-4, atol=1e-3)
    export(f"{work}/lora@1", "lora", tmp_path / "first.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["first.safetensors"]
    pipeline = DiffusionPipeline.from_pretrained(work / "base")
    pipeline.load_lora_weights(tmp_path, weight_name="first.safetensors")
    assert torch.allclose(latents(pipeline), of_run(f"{work}/lora@1"), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(of_run(f"{work}/lora@1"), of_run(work / "lora"), rtol=1e-4, atol=1e-3)


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


def trained(base: Path, pairs: Path, out: Path, loras: tuple[str, ...] = ()) -> Path:
    values = {
        "model": str(base), "pairs": str(pairs), "adapter": {"kind": "lora", "rank": 2}, "optim": {"lr": 1e-1},
        "train": {"steps": 2, "pairs_per_step": 2}, "loras": list(loras),
    }  # fmt: skip
    train(make_config(values), out)
    return out


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


@pytest.fixture(scope="module")
def run_of_any(any_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return trained(any_model, make_pairs(folder / "pairs", count=2), folder / "run")


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


# ------------------------------------------------------------------ licences


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


# ------------------------------------------------------------------ the hub


class Hub:
    """Stands for the hub behind ``HfApi``: keeps what it is given, and takes only calls that HfApi would take."""

    def __init__(self, there: Any = None) -> None:
        self.there, self.calls, self.uploaded = there, list[tuple[str, dict[str, Any]]](), set[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            bound = inspect.signature(getattr(HfApi, name)).bind(None, *given, **named)
            arguments = {k: v for k, v in bound.arguments.items() if k != "self"}
            self.calls.append((name, arguments))
            if name == "upload_folder":
                folder = Path(arguments["folder_path"])
                self.uploaded = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
                self.card = (folder / "README.md").read_text()
            answers = {"repo_exists": self.there is not None, "model_info": self.there}
            return answers.get(name, f"https://hub/{arguments.get('repo_id')}")

        return call


def test_the_hub_gets_a_private_model_unless_it_is_said_otherwise(work, tmp_path):
    for private in (None, False):
        api = Hub()
        made = export(
            str(work / "lora"), "hub", tmp_path / str(private), repo="me/circles", private=private, licence="openrail++",
            base_model="stabilityai/stable-diffusion-xl-base-1.0", api=api,
        )  # fmt: skip
        assert made.address == "https://hub/me/circles"
        created = dict(api.calls)["create_repo"]
        assert (created["repo_type"], created["private"]) == ("model", private is None)
        assert api.uploaded == {"README.md", "mapo.json", "pytorch_lora_weights.safetensors"}
        assert not any("token" in arguments for _, arguments in api.calls)
        data = ModelCard(api.card).data.to_dict()
        assert (
            data["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
            and data["base_model_relation"] == "adapter"
        )
        assert 'load_lora_weights("me/circles")' in api.card


def test_a_folder_that_was_looked_at_first_is_uploaded_as_it_lies_there(work, tmp_path):
    out = tmp_path / "out"
    assert export(str(work / "full"), "hub", out, licence="mit").address == ""
    assert 'from_pretrained("OWNER/NAME", ' in (out / "README.md").read_text()
    assert card_of(out).data.to_dict().get("base_model_relation") is None  # its base has no name on the hub
    (out / "README.md").write_text((out / "README.md").read_text() + "Mended.\n")
    api = Hub(SimpleNamespace(private=True, siblings=[]))
    half = {"licence": "mit", "precision": "float16"}
    for other, flag in (({"licence": "apache-2.0"}, "--license"), (half, "--precision")):
        with pytest.raises(MapoError, match=rf"was written before, and not with this {flag}: mend its README\.md"):
            export(str(work / "full"), "hub", out, repo="me/m", api=api, **other)
    with pytest.raises(MapoError, match="is not known"):
        export(str(work / "full"), "hub", out, repo="me/m", api=api)
    made = export(str(work / "full"), "hub", out, repo="me/m", licence="mit", api=api)  # the same command goes on
    assert made.counts == {} and 'from_pretrained("me/m", ' in api.card and api.card.endswith("Mended.\n")


def test_a_model_without_a_known_licence_does_not_go_to_the_hub(work, tmp_path):
    with pytest.raises(MapoError, match=r"The licence of base, which the model inherits, is not known\. .*--license"):
        export(str(work / "lora"), "hub", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    public = Hub(SimpleNamespace(private=False, siblings=[]))
    with pytest.raises(
        MapoError, match="is there already and public, and models go to the hub privately. Say --public"
    ):
        export(str(work / "lora"), "hub", tmp_path / "out", repo="me/m", licence="mit", api=public)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("source", "words", "says"),
    [
        ("full", ["--to", "lora", "--out", "x"], "every weight was trained, so it is not a LoRA. Export it whole"),
        ("full", ["--to", "kohya", "--out", "x.safetensors"], "every weight was trained"),
        ("lora", ["--to", "pickapic", "--out", "x"], "is a run, which does not go to 'pickapic'. Write --to diffusers"),
        ("my pairs", ["--to", "kohya", "--out", "x"], "is a pairs set, which does not go to 'kohya'. Write --to preference"),
        ("lora", ["--to", "diffuser", "--out", "x"], "There is no export 'diffuser' of a run. Did you mean 'diffusers'"),
        ("lora", ["--to", "diffusers"], "Give --out, the folder to write"),
        ("lora", ["--to", "diffusers", "--out", "x.safetensors"], "--to diffusers writes a folder"),
        ("lora", ["--to", "diffusers", "--out", "x", "--precision", "float8"], "--precision 'float8' is not one for"),
        ("full", ["--to", "single-file", "--out", "x", "--precision", "bfloat16"], "--precision 'bfloat16' is not one for"),
        ("lora", ["--to", "lora", "--out", "x", "--precision", "float16"], "a LoRA is written in float32"),
        ("lora", ["--to", "lora", "--out", "x", "--repo", "me/m"], "--repo is for --to hub alone"),
        ("lora", ["--to", "lora", "--out", "x", "--public"], "--public is for --to hub alone"),
        ("full", ["--to", "single-file", "--out", "x.ckpt"], "x.ckpt ends in .ckpt, but files are written as .safetensors"),
        ("lora", ["--to", "lora", "--out", "x", "--source-license", "a=mit"], "--source-license is for a pairs set alone"),
        ("my pairs", ["--to", "preference", "--out", "x", "--precision", "float16"], "--precision is for a run alone"),
        ("lora@9", ["--to", "lora", "--out", "x"], "has no checkpoint of step 9. There are"),
        ("base", ["--to", "lora", "--out", "x"], "base is not a run of `mapo train`"),
        ("nothing", ["--to", "lora", "--out", "x"], "nothing is not there. Give a run folder"),
        ("lora", ["--to", "lora", "--out", "full"], "full already exists"),
        ("", ["--to", "lora", "--out", "x"], "The name of what is exported is empty. Give a pairs set, a run"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_sentence(work, monkeypatch, source, words, says):
    monkeypatch.chdir(work)
    before = sorted(path.name for path in work.iterdir())
    done = CliRunner().invoke(cli, ["export", source, *words])
    assert isinstance(done.exception, MapoError) and says in str(done.exception), done.output
    assert not str(done.exception).startswith("--model")  # which export does not have
    assert sorted(path.name for path in work.iterdir()) == before


def test_a_file_s_name_may_end_in_capitals(work, tmp_path):
    counts, _ = export_run(str(work / "lora"), "kohya", tmp_path / "A.SAFETENSORS", ExportOptions())
    assert counts["files"] == 1 and load_file(tmp_path / "A.SAFETENSORS")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loras": ["a"]}, "loras has to be a list of LoRAs with file, weight and sha256"),
        ({"steps": "x"}, "steps has to be one number"), ({"chunks": "3"}, "chunks has to be one number"),
        ({"clip_skip": "a"}, "clip_skip has to be one number"), ({"adapter": "dora"}, 'adapter has to be "full" or "lora"'),
        ({"base": None}, "it does not say base"), ({"sensitive": "no"}, "sensitive has to be true or false"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_in_what_a_run_says_of_itself_is_named(work, tmp_path, values, says):
    run = shutil.copytree(work / "lora", tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | values))
    with pytest.raises(MapoError, match=f"run.json is damaged: {says}.* Run the same `mapo train` command again"):
        export_run(str(run), "lora", tmp_path / "out", ExportOptions())


def test_of_a_run_that_has_lost_its_settings_the_file_alone_can_be_written(work, tmp_path):
    run = shutil.copytree(work / "lora", tmp_path / "run")
    (run / "config.toml").unlink()
    with pytest.raises(
        MapoError, match="run has lost its config.toml, of which the card is written. .*--out x.safetensors"
    ):
        export_run(str(run), "kohya", tmp_path / "x", ExportOptions())
    assert not (tmp_path / "x").exists()
    export_run(str(run), "kohya", tmp_path / "x.safetensors", ExportOptions())
    assert load_file(tmp_path / "x.safetensors")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(work, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr("mapo.export.runs.runs.shutil.disk_usage", lambda path: usage)
    with pytest.raises(MapoError, match=r"out takes about [\d.]+ MB, and .* has 0.0 MB free"):
        export_run(str(work / "full"), "diffusers", tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_who_may_see_an_upload_is_asked_for_uploads_alone(work):
    with pytest.raises(MapoError, match="--public are for an upload.*--repo OWNER/NAME"):
        export_run(str(work / "lora"), "hub", work / "never", ExportOptions(licence="mit", private=False))
    assert not (work / "never").exists()
