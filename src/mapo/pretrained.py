"""Models of transformers: where their files lie, reading them whole, and their picture processors in PIL's form.

A model is a folder, or a repository of the hub at a fixed commit. It is read as safetensors, and none of its own code
is run. ``kind`` is what a message begins with: a scorer, or the flag that named the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.errors import MapoError, reason
from mapo.texts import parse_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MODEL = ("config.json", "model*.safetensors", "model.safetensors.index.json")
PICTURES = ("preprocessor_config.json",)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
PROCESSOR = (*PICTURES, *TOKENIZER)
TALKING = ("chat_template.json", "chat_template.jinja", "generation_config.json", "added_tokens.json")
CHAT = (*PROCESSOR, *TALKING)
OPTIONAL = (*TOKENIZER[1:], *TALKING)  # vocab.json and merges.txt stand in for a tokenizer.json


@dataclass(frozen=True)
class Repository:
    """A repository of the hub; ``commit`` None is its newest one."""

    name: str
    commit: str | None = None


@dataclass(frozen=True)
class Files:
    """Files that are there. ``revision`` is the commit on the hub, or a hash of the content of a folder's files."""

    folder: Path
    revision: str
    name: str  # of the repository or the folder


def find_files(scorer: str, source: str | Repository, patterns: tuple[str, ...]) -> Files:
    """The files :data:`MODEL`, :data:`PROCESSOR` or a part of it, or other names, of a folder or a repository.

    Fetched from the hub if need be. ``scorer`` is for messages. Raises MapoError where they are not to be had.
    """
    folder = Path(source).expanduser() if isinstance(source, str) else None
    if folder and folder.is_dir():
        found = Files(folder, _content(folder, patterns), folder.resolve().name)
    else:
        if isinstance(source, str):
            source = repository(scorer, source)
        folder = snapshot(scorer, source, patterns)
        found = Files(folder, folder.name, source.name)
    if lack := _lacks(folder, patterns):
        whole = {MODEL: "a model in safetensors", PROCESSOR: "what prepares its pictures and texts"}
        what = whole.get(patterns, "what is needed")
        raise MapoError(
            f"{scorer}: {folder} does not hold {what}: it lacks {lack}. Give another with {_as(scorer, 'FOLDER')}."
        )
    return found


def repository(scorer: str, source: str, kinds: str = "a folder") -> Repository:
    """The repository of that name. Raises MapoError for what is not a name of one, hence a path that leads nowhere."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith("/"):
        raise MapoError(
            f"{_as(scorer, source)}: there is no {kinds.removeprefix('a ')} {source}. Give {kinds}, or a repository of "
            f"the hub such as {_as(scorer, 'owner/name')}."
        )
    return Repository(source)


def _as(kind: str, source: str) -> str:
    """How a person names a source: ``clip@SOURCE``, or ``--flag SOURCE``."""
    return f"{kind} {source}" if kind.startswith("--") else f"{kind}@{source}"


def _lacks(folder: Path, patterns: tuple[str, ...]) -> str | None:
    """The name of a file that is needed and not there, or None."""
    if patterns != MODEL:
        old = {"vocab.json", "merges.txt"} <= {name for name in patterns if (folder / name).is_file()}
        names = [name for name in patterns if name not in OPTIONAL and not (old and name == "tokenizer.json")]
    else:
        names = ["config.json", "model.safetensors"]
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                shards = set(parse_json(index.read_text("utf-8"))["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                return f"{index.name} that can be read"
            names = ["config.json", *sorted(Path(str(shard)).name for shard in shards)]
    return next((name for name in names if not (folder / name).is_file()), None)


def _content(folder: Path, patterns: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def at_hand(source: Repository, patterns: tuple[str, ...]) -> Path | None:
    """Where these files lie in the hub's cache on this machine; the hub is not asked."""
    with contextlib.suppress(Exception), quiet():
        folder = _get(source, patterns, here=True)
        if not _lacks(folder, patterns):
            return folder
    return None


def _get(source: Repository, patterns: tuple[str, ...], here: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = list(patterns)
    return Path(snapshot_download(source.name, revision=source.commit, allow_patterns=wanted, local_files_only=here))


def snapshot(scorer: str, source: Repository, patterns: tuple[str, ...]) -> Path:
    """The hub is asked only for what its cache on this machine lacks; a download shows the hub's own bars."""
    if folder := at_hand(source, patterns):
        return folder
    try:
        with quiet(bars=True):
            return _get(source, patterns, here=False)
    except Exception as error:
        commit = f" --revision {source.commit}" if source.commit else ""
        kinds = {MODEL: ("*.json", "model*.safetensors"), PROCESSOR: ("*.json", "*.txt")}.get(patterns, patterns)
        command = f"hf download {source.name}{commit} " + " ".join(f'--include "{kind}"' for kind in kinds)
        raise MapoError(
            f"{scorer}: {source.name} is not on this machine and could not be fetched ({reason(error)}); where there "
            f"is a network, type `{command}`, or give a folder with {_as(scorer, 'FOLDER')}."
        ) from None


@contextlib.contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Libraries keep warnings and bars (but for those of downloads with ``bars``) to themselves inside the block."""
    from transformers.utils import logging as messages

    hub = logging.getLogger("huggingface_hub")
    before = messages.get_verbosity(), hub.level, messages.is_progress_bar_enabled()
    messages.set_verbosity_error()
    hub.setLevel(logging.ERROR)
    if not bars:
        messages.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        messages.set_verbosity(before[0])
        hub.setLevel(before[1])
        if before[2]:
            messages.enable_progress_bar()


# ------------------------------------------------------------------ reading them


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """No gradients, no TF32, and libraries keep quiet."""
    import torch

    with quiet(), torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield


def check_type(kind: str, folder: Path, wanted: str, title: str) -> None:
    """Refuse a folder whose config.json tells of another class of models."""
    try:
        found = str(parse_json((folder / "config.json").read_text("utf-8")).get("model_type"))
    except (ValueError, AttributeError):
        found = "damaged"
    if found != wanted:
        raise MapoError(f"{kind}: {folder} is not a {title} model; its config.json says {found}. Give one that is.")


def load_model(kind: str, folder: Path, name: str, **how: Any) -> Any:
    """The model of transformers' class ``name``. Weights that the file lacks are an error: they would be random."""
    import transformers

    try:
        with quiet():
            model, info = getattr(transformers, name).from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **how
            )
    except Exception as error:
        raise MapoError(f"{kind}: {folder} cannot be loaded ({reason(error)}).") from None
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise MapoError(f"{kind}: the weights in {folder} are not whole; they lack {first}.")
    return model


def load_part(kind: str, folder: Path, name: str) -> Any:
    """A tokenizer or picture processor of transformers' class ``name``.

    transformers 5 has a class ending in Pil beside each picture processor; before, the plain one was PIL's.
    """
    import transformers

    try:
        with quiet():
            return (getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)).from_pretrained(folder)
    except Exception as error:
        raise MapoError(f"{kind}: {folder} is damaged ({reason(error)}).") from None


def load_processor(kind: str, folder: Path) -> Any:
    """The picture processor that ``preprocessor_config.json`` names, in its PIL form whatever else is installed."""
    config = read_json_object(kind, folder / "preprocessor_config.json")
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    return load_part(kind, folder, named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor"))


def read_json_object(kind: str, path: Path) -> dict[str, Any]:
    """The object in a JSON file; MapoError where there is none."""
    try:
        found = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MapoError(f"{kind}: {path} is damaged ({reason(error)}).") from None
    if not isinstance(found, dict):
        raise MapoError(f"{kind}: {path} is damaged (it is not a JSON object).")
    return found


def process(processor: Any, pictures: Sequence[Image]) -> Tensor:
    """Pictures as a transformers processor prepares them, "n c h w"."""
    pixels: Tensor = processor(list(pictures), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    return pixels
