"""Models by their name on the hub, and what is said where it gives no files: the exceptions are the library's own."""

import importlib
import shutil

import diffusers
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.sources.hub import HubName, hub_name

HTTP = importlib.import_module(errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0])  # what the library stands on


def test_a_name_has_a_revision_and_a_variant_where_they_are_said():
    assert hub_name("owner/name") == HubName("owner/name", None, None)
    assert hub_name("owner/na.me-1@refs-pr:fp16") == HubName("owner/na.me-1", "refs-pr", "fp16")
    assert hub_name("owner/name@v1.0") == HubName("owner/name", "v1.0", None)
    assert hub_name("owner/name:bf16") == HubName("owner/name", None, "bf16")
    for name in ("name", "a/b/c", "./a", "/a/b", "~/a", "a/b@", "a/b:", "owner/name.safetensors/x"):
        assert hub_name(name) is None, name


def test_revision_and_variant_are_asked_of_the_hub_and_kept(monkeypatch, sdxl, tmp_path):
    asked = {}
    shutil.copy(sdxl / "model_index.json", tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").touch()

    def download(name, **how):
        asked.update(how, name=name)
        return str(tmp_path)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    model = find_model("owner/name@abc:fp16")
    assert asked == {"name": "owner/name", "revision": "abc", "variant": "fp16", "use_safetensors": True}
    assert model.stable_name == "owner/name@abc:fp16" and model.variant == "fp16" and not model.is_local
    with pytest.raises(MapoError, match="no part of owner/name in .* has weights in the variant bf16"):
        find_model("owner/name:bf16")  # where it was fetched without, and there is no network


def test_a_variant_is_taken_where_a_part_has_it_beside_its_usual_weights(monkeypatch, sdxl, tmp_path):
    folder = tmp_path / "snapshot"
    shutil.copytree(sdxl, folder)
    usual = next((folder / "unet").glob("*.safetensors"))
    halves = {name: tensor.half() + 1 for name, tensor in load_file(usual).items()}
    save_file(halves, usual.with_name("diffusion_pytorch_model.fp16.safetensors"), {"format": "pt"})
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda name, **how: str(folder))
    plain, variant = open_model(find_model("owner/name")), open_model(find_model("owner/name:fp16"))
    wanted = halves["conv_in.bias"].float()
    assert torch.equal(variant.denoiser("cpu").conv_in.bias, wanted)
    assert torch.equal(variant.pipeline("cpu").unet.conv_in.bias, wanted)
    assert torch.equal(plain.denoiser("cpu").conv_in.bias, load_file(usual)["conv_in.bias"])


def response(status):
    if HTTP.__name__ == "requests":
        found = HTTP.Response()
        found.status_code = status
        return found
    return HTTP.Response(status, request=HTTP.Request("GET", "https://huggingface.co/api/models/owner/name"))


def gone(kind, status):
    return kind("said by the library", response=response(status))


SAID = {
    "is gated on the hub. Accept its licence at https://huggingface.co/owner/name, then log in": gone(errors.GatedRepoError, 401),
    "the hub has no such model, or only for those who may see it": gone(errors.RepositoryNotFoundError, 404),
    "has no branch, tag or commit v9": gone(errors.RevisionNotFoundError, 404),
    "the hub is switched off by HF_HUB_OFFLINE. Unset it, or give": errors.LocalEntryNotFoundError("not in the cache"),
    "is not a local folder or file, and the hub is switched off": errors.OfflineModeIsEnabled("Cannot reach it: offline mode is enabled"),
    "the hub cannot be reached (Conn": getattr(HTTP, "ConnectError", ConnectionError)("refused"),
    "and no model on the hub can have that name": errors.HFValidationError("Repo id must not be longer than 96 letters"),
    "could not be fetched from the hub (": gone(errors.HfHubHTTPError, 500),
}  # fmt: skip


@pytest.mark.parametrize("why", SAID)
def test_each_reason_why_the_hub_gives_no_files_has_a_sentence_of_its_own(monkeypatch, why):
    def fail(*args, **how):
        raise SAID[why]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    for ask in (lambda: find_model("owner/name@v9", weights=False), lambda: find_model("mini", vae="owner/name@v9")):
        with pytest.raises(MapoError) as error:
            ask()
        assert why in str(error.value) and "\n" not in str(error.value)


def test_the_reason_is_told_where_a_library_wraps_it(monkeypatch):
    def fail(*args, **how):
        try:
            raise gone(errors.GatedRepoError, 403)
        except errors.GatedRepoError as error:
            raise OSError("Cannot load model owner/name: see the root cause") from error

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fail)
    with pytest.raises(MapoError, match="owner/name is gated on the hub"):
        find_model("owner/name")


def test_where_the_hub_cannot_be_reached_the_reason_at_the_bottom_is_told_in_a_line(monkeypatch):
    def fail(*args, **how):
        try:
            raise getattr(HTTP, "ConnectError", ConnectionError)("Name or service not known\nand more")
        except Exception as error:
            raise errors.LocalEntryNotFoundError(
                "Cannot find it on the disk (and a long story of " + "x " * 200
            ) from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(MapoError) as error:
        find_model("owner/name", weights=False)
    assert "the hub cannot be reached (Name or service not known). Connect and try again, or give" in str(error.value)


def test_a_name_that_nothing_has_is_answered_with_what_may_be_given():
    with pytest.raises(MapoError, match=r"no folder or file nothing.safetensors.*safetensors file, or a hub id"):
        find_model("nothing.safetensors")


@pytest.mark.parametrize("name", ["fox.safetensors", "Fox.SAFETENSORS", "fox.gguf", "fox.bin", "fox.pt"])
def test_a_file_that_is_not_there_is_not_taken_for_a_name_on_the_hub(name):
    with pytest.raises(MapoError, match=f"there is no folder or file models/{name}"):
        find_model(f"models/{name}")
    with pytest.raises(MapoError, match=f"--vae: there is no file or folder models/{name}"):
        find_model("mini", vae=f"models/{name}")
