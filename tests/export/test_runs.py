"""What a run becomes: opened by others with equal pictures, or put on the hub."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline
from exported import card_of, latents, of_run
from huggingface_hub import HfApi, ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

from mapo.cli import cli
from mapo.errors import MapoError
from mapo.export.runs.runs import ExportOptions, export_run
from mapo.export.verb import export
from mapo.models import find_model, open_model
from mapo.train.config import make_config, to_toml
from tiny import make_sd


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
