"""A model in one file is the model in the folder that it was made from, to the bit."""

import json
import re
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mapo.cli import cli
from mapo.encode.cache import cache_key
from mapo.errors import MapoError
from mapo.export.runs.single_file import planned, write_single_file
from mapo.models import Frames, find_model, open_model, together
from mapo.models.single.file import beside_of
from mapo.models.single.layout import LAYOUTS
from sparse import published, write_sparse

PROMPTS = ["a small red circle", "zebra, ünïcode " * 30]


def opened(place, **told):
    return open_model(find_model(str(place), **told))


@pytest.fixture(scope="module")
def both(any_model, tmp_path_factory):
    """A folder and the file made from it."""
    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    model = opened(any_model)
    if model.files.pipeline_class not in LAYOUTS:
        with pytest.raises(MapoError, match="which other programs do not read from one file"):
            write_single_file(model, path)
        pytest.skip("this family has no such file")
    write_single_file(model, path, "float32")
    return any_model, path


def outputs(model, dtype=torch.float32):
    """What the encoders, the denoiser and the VAE make of the same prompts, latents and pixels."""
    found = model.text_encoder("cpu")(PROMPTS)
    texts = [{name: values[k] for name, values in found.items()} for k in range(len(PROMPTS))]
    cond = model.condition(together(texts), Frames.square(torch.tensor([[16, 16, 0, 0]] * len(PROMPTS)), 16))
    generator = torch.Generator().manual_seed(0)
    shape = model.layout.latent(16)
    x, pixels = torch.randn(2, *shape, generator=generator), torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    t = model.process.draw_time(2, generator, shape)
    network = model.denoiser("cpu", dtype)
    assert not network.training and {p.dtype for p in network.parameters()} == {dtype}
    with torch.no_grad():
        prediction = model.predict(network, x.to(dtype), t, cond)
    mean, spread = model.image_encoder("cpu")(pixels)
    return {**found, "prediction": prediction, "mean": mean, "spread": spread}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_gives_what_its_folder_gives_to_the_bit(both, dtype):
    folder, file = (outputs(opened(place), dtype) for place in both)
    assert folder.keys() == file.keys()
    for name in folder:
        assert torch.equal(folder[name], file[name]), name


def test_a_pipeline_of_a_file_is_whole_and_on_no_other_device_than_it_should(both):
    pipelines = [opened(place).pipeline("cpu", torch.float16) for place in both]
    for name, part in pipelines[0].components.items():
        if isinstance(part, torch.nn.Module):
            ours = getattr(pipelines[1], name)
            assert not ours.training and ours.state_dict().keys() == part.state_dict().keys()
            for (key, left), right in zip(part.state_dict().items(), ours.state_dict().values(), strict=True):
                assert left.dtype == right.dtype and torch.equal(left, right), (name, key)
        elif name == "scheduler":
            same = {key: getattr(pipelines[1], name).config[key] == value for key, value in part.config.items()}
            assert type(part) is type(getattr(pipelines[1], name)) and all(same.values())


def test_a_file_is_opened_without_asking_the_network_where_that_is_allowed(both, monkeypatch):
    asked = []

    def ask(*address, **how):
        asked.append(address)
        raise OSError("there is no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", ask)
    monkeypatch.setattr("socket.socket.connect", ask)
    model = opened(both[1])
    model.text_encoder("cpu"), model.image_encoder("cpu"), model.pipeline("cpu")
    assert not asked


def test_the_cache_is_bound_to_the_tensors_of_a_files_encoders(both, tmp_path):
    _, path = both
    copy = tmp_path / "copy.safetensors"
    shutil.copy(path, copy)
    shutil.copytree(beside_of(path), beside_of(copy))
    revision, key = opened(copy).files.revision(), cache_key(opened(copy), 16)
    assert revision == opened(path).files.revision()
    tensors = load_file(path)
    vae = next(name for name in tensors if name.endswith("encoder.conv_out.bias"))
    denoiser = next(name for name in tensors if name.startswith("model.diffusion_model.") and name.endswith("weight"))
    for name, changes_cache in ((vae, True), (denoiser, False)):
        save_file({**tensors, name: tensors[name] + 1}, copy)
        after = opened(copy)
        assert after.files.revision() != revision
        assert (cache_key(after, 16) != key) == changes_cache


def test_weights_of_8_bits_are_read_and_said_to_have_lost_digits(both, tmp_path, heard):
    path = tmp_path / "eight.safetensors"
    shutil.copytree(beside_of(both[1]), beside_of(path))
    tensors = load_file(both[1])
    save_file(
        {name: tensor.to(torch.float8_e4m3fn) if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}, path
    )
    model = opened(path)
    assert "holds weights in 8 bits" in heard()
    whole, read = opened(both[1]).denoiser("cpu"), model.denoiser("cpu")
    for (name, left), right in zip(whole.state_dict().items(), read.state_dict().values(), strict=True):
        assert torch.equal(left.to(torch.float8_e4m3fn).float() if left.ndim > 1 else left, right), name


# ---------------------------------------------------------------------- every verb


def mapo(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def file(sdxl_v, tmp_path_factory):
    """An SDXL that predicts v, as one file in float16, which is a link as in the hub's cache."""
    path = tmp_path_factory.mktemp("files") / "sdxl.safetensors"
    write_single_file(opened(sdxl_v), path)
    blob = path.parent / "blobs" / "0a1b2c"
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to("blobs/0a1b2c")
    return path


def test_a_file_is_encoded_trained_and_drawn_from_and_its_run_is_a_model(file, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(file.parent)
    settings = ["--set", "train.steps=1", "--set", "train.pairs_per_step=2"]
    mapo("check", pairs, "--model", file, "--out", tmp_path / "check.html")
    mapo("encode", "--model", file.name, "--pairs", pairs, "--out", tmp_path / "cache")
    given = ["--pairs", pairs, "--cache", tmp_path / "cache", *settings]
    for adapter in ("full", "lora"):
        run = tmp_path / adapter
        mapo("train", "--model", file.name, "--adapter", adapter, "--out", run, *given)
        about = json.loads((run / "run.json").read_text())
        assert about["base"] == str(file) and about["base_revision"] == find_model(str(file)).revision()
        model = opened(run)
        assert model.process.prediction_type == "v_prediction"
        assert model.files.fingerprint(model.encoder_parts) == opened(file).files.fingerprint(model.encoder_parts)
        again = tmp_path / f"{adapter}.safetensors"
        write_single_file(model, again, "float32")
        merged, network = opened(again).denoiser("cpu"), model.denoiser("cpu")
        assert_same(merged, network)
        base = opened(file).denoiser("cpu")
        assert any(not torch.equal(a, b) for a, b in zip(base.parameters(), network.parameters(), strict=True))
    mapo("sample", "--model", tmp_path / "lora", "--prompts", prompts(tmp_path), "--steps", 1, "--out", tmp_path / "im")
    assert len(list((tmp_path / "im").glob("*.png"))) == 1


def assert_same(left, right):
    for (name, one), other in zip(left.state_dict().items(), right.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def prompts(folder):
    (folder / "prompts.txt").write_text("a small red circle\n")
    return folder / "prompts.txt"


def test_a_run_on_a_file_that_has_changed_or_is_gone_says_so(sdxl, pairs, tmp_path):
    path = tmp_path / "m.safetensors"
    write_single_file(opened(sdxl), path)
    settings = ["--set", "train.steps=1", "--set", "train.pairs_per_step=1", "--adapter", "lora"]
    mapo("train", "--model", path, "--pairs", pairs, "--cache", tmp_path / "c", "--out", tmp_path / "run", *settings)
    tensors = load_file(path)
    save_file({**tensors, "first_stage_model.decoder.conv_out.bias": torch.ones(3, dtype=torch.float16)}, path)
    with pytest.raises(MapoError, match=r"m.safetensors as it was then; that one has changed"):
        find_model(str(tmp_path / "run"))
    path.unlink()
    with pytest.raises(MapoError, match=r"m.safetensors, which is not there any more"):
        find_model(str(tmp_path / "run"))


# ---------------------------------------------------------------------- what is written


def test_a_mapped_file_does_not_change_when_its_weights_do(sdxl, tmp_path):
    path = tmp_path / "m.safetensors"
    write_single_file(opened(sdxl), path, "float32")
    before, network = path.read_bytes(), opened(path).denoiser("cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert path.read_bytes() == before


def test_a_file_in_float16_is_the_model_rounded_once(sdxl, tmp_path):
    write_single_file(opened(sdxl), tmp_path / "m.safetensors", "float16")
    read, whole = opened(tmp_path / "m.safetensors").denoiser("cpu"), opened(sdxl).denoiser("cpu")
    assert_same(read, whole.half().float())


def test_marks_and_metadata_are_those_that_other_programs_read(file, sdxl, tmp_path):
    with safe_open(file, "pt") as found:
        names, metadata = set(found.keys()), found.metadata()
    assert {"v_pred", "ztsnr"} <= names
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert (metadata["modelspec.prediction_type"], metadata["modelspec.resolution"]) == ("v", "16x16")
    write_single_file(opened(sdxl), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as found:
        assert not {"v_pred", "ztsnr"} & set(found.keys())
        assert found.metadata()["modelspec.prediction_type"] == "epsilon"


def test_of_a_stable_diffusion_1_that_predicts_v_it_is_said_that_no_other_program_sees_it(sdxl_v, tmp_path, heard):
    from tiny import make_sd

    for folder, said in ((make_sd(tmp_path / "v", "v_prediction"), 1), (make_sd(tmp_path / "e"), 0), (sdxl_v, 0)):
        heard()
        write_single_file(opened(folder), tmp_path / "m.safetensors")
        assert (
            heard().count("predicts v. ComfyUI, Forge and AUTOMATIC1111 take every file of Stable Diffusion 1") == said
        )


def test_flux_without_guidance_leaves_as_schnell_in_both_kinds_of_file(tmp_path):
    from mapo.export.runs.kohya import write_kohya
    from tiny import make_flux, make_lora

    for guidance, name in ((True, "flux-1-dev"), (False, "flux-1-schnell")):
        folder = make_flux(tmp_path / name, guidance=guidance)
        lora = make_lora(find_model(str(folder)), tmp_path / f"{name}-lora.safetensors")
        write_single_file(opened(folder), tmp_path / "whole.safetensors")
        write_kohya(opened(folder, loras=[str(lora)]), tmp_path / "kohya.safetensors")
        for file, ending in (("whole", ""), ("kohya", "/lora")):
            with safe_open(tmp_path / f"{file}.safetensors", "pt") as found:
                assert found.metadata()["modelspec.architecture"] == name + ending


@pytest.mark.parametrize("name", ["sdxl", "sd"])
def test_diffusers_opens_the_file_with_the_same_denoiser(name, sdxl, tmp_path):
    import diffusers

    from tiny import make_sd

    folder = sdxl if name == "sdxl" else make_sd(tmp_path / "sd")
    path = tmp_path / "model.safetensors"
    model = opened(folder)
    write_single_file(model, path, "float32")
    unet = diffusers.UNet2DConditionModel.from_single_file(
        str(path), config=str(folder / "unet"), local_files_only=True
    )
    assert_same(unet, model.denoiser("cpu"))
    kind = getattr(diffusers, model.files.pipeline_class)
    theirs = kind.from_single_file(str(path), config=str(folder), local_files_only=True, **(
        {"safety_checker": None, "feature_extractor": None} if name == "sd" else {}
    ))  # fmt: skip
    ours = model.pipeline("cpu")
    for part in model.networks:
        assert_same(getattr(theirs, part), getattr(ours, part))


@pytest.mark.parametrize(
    ("name", "table"), [("sdxl", "sdxl"), ("sd15", "sd15"), ("sd3", "sd3-medium"), ("flux", "flux-dev")]
)
def test_at_real_size_what_is_written_has_the_names_and_shapes_of_published_files(tmp_path, name, table):
    """Of Stable Diffusion 3 and FLUX without a few single numbers that no network has."""
    from mapo.models.single.tables import write_folder

    write_folder(tmp_path, table)
    files = find_model(str(tmp_path))
    found = {
        key: entry.shape for _, part in planned(files, files.pipeline_class).values() for key, entry in part.items()
    }
    wanted = published(name)
    assert found.items() <= wanted.items()
    lacking = published(name, optional=False).keys() - found.keys()
    assert all(key.endswith((".logit_scale", ".sigmas")) for key in lacking)


def test_noise_that_files_of_a_published_size_do_not_have_is_written_beside(tmp_path, heard):
    from mapo.export.runs.single_file import describe_noise
    from tiny import SCHEDULE, make_sd

    shapes = {key: shape for key, shape in published("sd15").items() if key not in ("v_pred", "ztsnr")}
    path = write_sparse(tmp_path / "m.safetensors", shapes)
    folder = make_sd(tmp_path / "sd")
    describe_noise(opened(folder), path)
    assert not (tmp_path / "m.config").exists()
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **SCHEDULE, "beta_end": 0.02}))
    heard()
    describe_noise(opened(folder), path)
    assert (
        "m.config/scheduler/scheduler_config.json beside the file says which noise the model was trained with"
        in heard()
    )
    assert torch.equal(opened(path).process.alphas_cumprod, opened(folder).process.alphas_cumprod)
    assert "does not say what it predicts" not in heard()


def test_what_cannot_be_written_is_said_and_nothing_is_left_behind(sdxl, tmp_path):
    model = opened(sdxl)
    with pytest.raises(MapoError, match="written in float16 or float32"):
        write_single_file(model, tmp_path / "m.safetensors", "bfloat16")
    folder = tmp_path / "large"
    shutil.copytree(sdxl, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"] + 1e6}, weights, {"format": "pt"})
    with pytest.raises(MapoError, match=r"not finite in float16, such as in conv_in.bias. Take float32"):
        write_single_file(opened(folder), tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_the_built_in_model_goes_out_as_a_file_and_comes_back(tmp_path):
    model = opened("mini")
    write_single_file(model, tmp_path / "mini.safetensors", "float32")
    back = opened(tmp_path / "mini.safetensors")
    assert_same(back.denoiser("cpu"), model.denoiser("cpu"))
    assert back.files.sampling == model.files.sampling
    assert {path.suffix for path in beside_of(tmp_path / "mini.safetensors").rglob("*.*")} <= {".json", ".txt"}


# ---------------------------------------------------------------------- another VAE


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory):
    """A VAE of the small SDXL's kind with other weights, as a folder, within a model folder, and as files."""
    from tiny import make_sdxl

    folder = make_sdxl(tmp_path_factory.mktemp("vae") / "model", seed=7)
    write_single_file(opened(folder), folder.parent / "whole.safetensors", "float32")
    tensors = load_file(folder.parent / "whole.safetensors")
    start = "first_stage_model."
    alone = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    save_file(alone, folder.parent / "alone.safetensors")
    renamed = folder.parent / "renamed.safetensors"
    shutil.copy(next((folder / "vae").glob("*.safetensors")), renamed)
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    earlier = {
        re.sub("|".join(words), lambda found: words[found[0]], name): t for name, t in load_file(renamed).items()
    }
    save_file(earlier, folder.parent / "earlier.safetensors")  # of early versions of diffusers
    return folder.parent


@pytest.mark.parametrize(
    "where",
    ["model", "model/vae", "alone.safetensors", "renamed.safetensors", "earlier.safetensors", "whole.safetensors"],
)
def test_another_vae_takes_the_place_of_the_models_own(other_vae, sdxl, where):
    model, own = opened(sdxl, vae=str(other_vae / where)), opened(sdxl)
    found = [m.image_encoder("cpu")(torch.ones(1, 3, 16, 16))[0] for m in (model, opened(other_vae / "model"), own)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert cache_key(model, 16) != cache_key(own, 16) and model.files.revision() != own.files.revision()
    assert model.vae_config["scaling_factor"] == 0.7
    assert torch.equal(
        model.pipeline("cpu").vae.quant_conv.bias, opened(other_vae / "model").pipeline("cpu").vae.quant_conv.bias
    )


def test_a_run_keeps_its_vae_and_its_prediction(other_vae, sdxl, pairs, tmp_path):
    settings = ["--set", "train.steps=1", "--set", "train.pairs_per_step=1", "--adapter", "lora"]
    given = ["--pairs", pairs, "--cache", tmp_path / "cache", "--out", tmp_path / "run", *settings]
    mapo("train", "--model", sdxl, "--vae", other_vae / "model", "--prediction", "v", *given)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["vae"], about["prediction"]) == (str(other_vae / "model"), "v")
    model = opened(tmp_path / "run")
    assert model.files.vae.name == about["vae"] and model.process.prediction_type == "v_prediction"
    assert model.pipeline("cpu").scheduler.config.prediction_type == "v_prediction"
    assert opened(tmp_path / "run", prediction="epsilon").process.prediction_type == "epsilon"
    assert opened(tmp_path / "run", prediction="epsilon").files.vae.name == about["vae"]
    done = CliRunner().invoke(
        cli, list(map(str, ["train", "--model", sdxl, *given[:4], "--out", tmp_path / "b", *settings]))
    )
    assert f"was encoded with {about['vae']}, this run asks for the model's own VAE" in str(done.exception)


@pytest.mark.parametrize("said", [{"scaling_factor": None}, {"scaling_factor": 0.18215}])
def test_where_a_model_says_no_scale_another_vae_has_that_of_the_family(sdxl, tmp_path, heard, said):
    from tiny import make_sd

    folder = make_sd(tmp_path / "sd")
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "scaling_factor"}))
    (other := tmp_path / "vae").symlink_to(shutil.copytree(folder / "vae", tmp_path / "other"))
    (other / "config.json").write_text(json.dumps({**config, **said}))
    for _ in range(2):
        model = opened(folder, vae=str(other))
    assert model.scale(torch.ones(1, 4, 1, 1)).flatten()[0] == pytest.approx(0.18215)
    assert model.pipeline("cpu").vae.config.scaling_factor == 0.18215
    line = "does not say how its latents are scaled. They are by 0.18215, as those of"
    assert heard().count(line) == (said["scaling_factor"] is None)
    with pytest.raises(MapoError, match="has scaling_factor 0.7, the VAE of .* has 0.18215. It is the VAE of another"):
        opened(folder, vae=str(sdxl))


def test_what_another_vae_does_not_say_is_the_models_own_also_where_pictures_are_drawn(tmp_path):
    from tiny import make_sd3

    folder = make_sd3(tmp_path / "sd3", t5=False)
    other = shutil.copytree(folder / "vae", tmp_path / "vae")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "shift_factor"}))
    assert opened(folder, vae=str(other)).pipeline("cpu").vae.config.shift_factor == 0.06


def test_a_vae_that_does_not_fit_is_refused(sdxl, tmp_path):
    from tiny import make_sd, make_sd3

    with pytest.raises(MapoError, match="has scaling_factor 1.4, the VAE of"):
        opened(sdxl, vae=str(make_sd3(tmp_path / "sd3")))
    path = make_sd(tmp_path / "sd") / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "scaling_factor": 0.18215}))
    with pytest.raises(
        MapoError, match="has scaling_factor 0.18215, the VAE of .* has 0.7. It is the VAE of another kind"
    ):
        opened(sdxl, vae=str(tmp_path / "sd"))
    path.write_text(json.dumps({**config, "scaling_factor": None}))
    with pytest.raises(
        MapoError, match="has no scaling_factor, as VAEs of Stable Diffusion 1, .* scaled by 0.18215. Those"
    ):
        opened(sdxl, vae=str(tmp_path / "sd"))
    path.write_text(json.dumps({**config, "latent_channels": 16}))
    with pytest.raises(MapoError, match="has 16 channels of latents, the VAE of .* has 4"):
        opened(sdxl, vae=str(tmp_path / "sd"))
    path.write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(MapoError, match="names VQModel; a VAE is an AutoencoderKL"):
        opened(sdxl, vae=str(tmp_path / "sd"))
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    for name, why in (
        ("x.safetensors", "holds no VAE"),
        ("nothing", "there is no file or folder"),
        (".", "holds no VAE"),
    ):
        with pytest.raises(MapoError, match=f"--vae: .*{why}"):
            opened(sdxl, vae=str(tmp_path / name))
    (vae,), name = (sdxl / "vae").glob("*.safetensors"), "decoder.conv_in.weight"
    tensors = load_file(vae)
    for added in ({name: tensors[name].to(torch.int8)}, {f"{name}_scale": torch.ones(())}):
        save_file({**tensors, **added}, tmp_path / "x.safetensors")
        with pytest.raises(MapoError, match=f"x.safetensors holds .* weights, as {next(iter(added))} "):
            opened(sdxl, vae=str(tmp_path / "x.safetensors"))
