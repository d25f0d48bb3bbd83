"""Models on the Hugging Face hub: their names, fetching them, and what to say where that fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mapo.errors import MapoError, reason
from mapo.models.parts.header import PICKLES
from mapo.models.parts.weights import quietly

NAME = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[^\s:@]+))?(:(?P<variant>\w+))?")
FILES = (".safetensors", ".gguf", *PICKLES)  # how names of files end
SMALL = ("model_index.json", "*/*config.json", "tokenizer*/*", "sampling.json")
VAE_CONFIGS = ("config.json", "vae/config.json")
VAE_WEIGHTS = ("diffusion_pytorch_model*.safetensors", "vae/diffusion_pytorch_model*.safetensors")


@dataclass(frozen=True)
class HubName:
    """``owner/name``, perhaps with ``@`` a branch, tag or commit, perhaps with ``:`` a variant of the weights."""

    id: str
    revision: str | None
    variant: str | None


def hub_name(name: str) -> HubName | None:
    """The parts of a name such as ``owner/name@v1.0:fp16``; None where it is not one of the hub."""
    is_file = name.startswith((".", "/", "~")) or name.lower().endswith(FILES)
    match = None if is_file else NAME.fullmatch(name)
    return HubName(match["id"], match["revision"], match["variant"]) if match else None


def fetch_model(name: HubName, weights: bool) -> Path:
    """The folder of a pipeline, fetched where it is not on this machine yet; never a pickle."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        with quietly():
            if weights:
                how = {"revision": name.revision, "variant": name.variant}
                folder = Path(DiffusionPipeline.download(name.id, use_safetensors=True, **how))
            else:
                folder = Path(snapshot_download(name.id, revision=name.revision, allow_patterns=list(SMALL)))
    except Exception as error:
        raise not_fetched("--model", name, error) from None
    if weights and name.variant and not any(folder.glob(f"*/*.{name.variant}*.safetensors")):
        raise MapoError(
            f"--model: no part of {name.id} in {folder} has weights in the variant {name.variant}. Leave it out."
        )
    return folder


def fetch_vae(name: HubName, weights: bool) -> Path:
    """The folder of a VAE alone, or of a pipeline of which only its VAE is fetched."""
    from huggingface_hub import snapshot_download

    try:
        with quietly():
            files = [*VAE_CONFIGS, *(VAE_WEIGHTS if weights else ())]
            return Path(snapshot_download(name.id, revision=name.revision, allow_patterns=files))
    except Exception as error:
        raise not_fetched("--vae", name, error) from None


def not_fetched(flag: str, name: HubName, error: BaseException) -> MapoError:
    """What to say where the hub gave no files: by the exception, or by those that stand behind it."""
    from huggingface_hub import errors, is_offline_mode

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in _behind(error))

    start = f"{flag}: {name.id} is not a local folder or file, and "
    here = "or give a folder or a file that is on this machine."
    if is_any(errors.GatedRepoError):
        page = f"https://huggingface.co/{name.id}"
        return MapoError(
            f"{flag}: {name.id} is gated on the hub. Accept its licence at {page}, then log in on this machine with "
            "`hf auth login`."
        )
    if is_any(errors.RevisionNotFoundError):
        return MapoError(f"{flag}: {name.id} is on the hub, but has no branch, tag or commit {name.revision}.")
    if is_any(errors.RepositoryNotFoundError):
        return MapoError(
            f"{start}the hub has no such model, or only for those who may see it. Check the name. If it is private, "
            "log in with `hf auth login`."
        )
    unreachable = is_any(ConnectionError, TimeoutError, *_network())
    if unreachable or is_any(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if is_any(errors.OfflineModeIsEnabled) or (is_offline_mode() and not unreachable):
            return MapoError(f"{start}the hub is switched off by HF_HUB_OFFLINE. Unset it, {here}")
        return MapoError(f"{start}the hub cannot be reached ({reason(_deepest(error))}). Connect and try again, {here}")
    if is_any(errors.HFValidationError):
        return MapoError(f"{start}no model on the hub can have that name. Check it.")
    variant = f" in the variant {name.variant}" if name.variant else ""
    return MapoError(f"{start}could not be fetched from the hub{variant} ({reason(_deepest(error))}).")


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _deepest(error: BaseException) -> BaseException:
    """The one at the bottom, which says in fewest words what is wrong."""
    return list(_behind(error))[-1]


def _network() -> tuple[type[BaseException], ...]:
    """What the libraries under huggingface_hub and diffusers raise without a connection, of those that are loaded."""
    of_httpx = ("NetworkError", "TimeoutException")
    names = {"httpx2": of_httpx, "httpx": of_httpx, "requests": ("ConnectionError", "Timeout")}
    loaded = [(sys.modules[library], kinds) for library, kinds in names.items() if library in sys.modules]
    return tuple(getattr(module, kind) for module, kinds in loaded for kind in kinds if hasattr(module, kind))
