"""Captions by a model: pictures that have none are described by a captioning model of transformers on this machine.

Florence-2 is asked for a detailed caption; BLIP, GIT and their like describe a picture without being asked. Pictures
are prepared by PIL, words are the most likely ones, and no code from the model's folder is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mapo import progress
from mapo.captions.ledger import work_file
from mapo.devices import best_device
from mapo.errors import MapoError, memory_told, reason
from mapo.files import inside, sha256
from mapo.pairs.pictures import decode_picture
from mapo.pretrained import (
    CHAT,
    MODEL,
    Files,
    computing,
    find_files,
    load_model,
    load_processor,
    quiet,
    read_json_object,
    repository,
)
from mapo.texts import append_lines, read_lines

FLAG = "--caption-with"
TASK = "<MORE_DETAILED_CAPTION>"
MOST_TOKENS = 256
BEAMS = {"florence2": 3}  # as its authors run it

Describe = Callable[[Sequence[Image]], list[str]]


def check_describer(model: str) -> None:
    """MapoError where that cannot be a captioning model; nothing is fetched to find out."""
    if Path(model).expanduser().is_dir():
        for files in (MODEL, CHAT):
            find_files(FLAG, model, files)
    else:
        repository(FLAG, model)


def written(folder: Path, names: Sequence[str], model: str, out: Path, images_per_batch: int) -> dict[str, str]:
    """What the model says of each picture; "" where it says nothing.

    Each batch is kept beside ``out`` at once (``work_file``), so that a picture is described once, however often this
    is interrupted: by one model, as long as it is the same picture.
    """
    found, _ = (find_files(FLAG, model, files) for files in (MODEL, CHAT))
    done = _done(work_file(out), found)
    data = {name: sha256(_read(folder, name)) for name in names}
    left = [name for name in names if data[name] not in done]
    if left:
        describe = open_describer(found.folder)
        with progress.bar(total=len(names), initial=len(names) - len(left), desc="caption", unit="picture") as bar:
            for start in range(0, len(left), images_per_batch):
                batch = left[start : start + images_per_batch]
                pictures = [_decoded(folder, name) for name in batch]
                with memory_told(len(batch), rest=""):
                    texts = describe(pictures)
                rows = [
                    {"picture": data[name], "model": found.name, "revision": found.revision, "text": text}
                    for name, text in zip(batch, texts, strict=True)
                ]
                append_lines(work_file(out), rows)
                done |= {row["picture"]: row["text"] for row in rows}
                bar.update(len(batch))
    return {name: done[data[name]] for name in names}


def _done(path: Path, model: Files) -> dict[str, str]:
    """The captions that this model has written already, by the hash of the picture."""
    rows = read_lines(path) if path.is_file() else ()
    return {
        str(row["picture"]): str(row["text"])
        for row in rows
        if isinstance(row, dict) and row.keys() >= {"picture", "text"} and row.get("revision") == model.revision
    }


def _read(folder: Path, name: str) -> bytes:
    try:
        return inside(folder, name, str(folder)).read_bytes()
    except OSError as error:
        raise MapoError(
            f"{folder / name} cannot be read ({error.strerror or error}). Mend it, or take it out."
        ) from None


def _decoded(folder: Path, name: str) -> Image:
    try:
        return decode_picture(_read(folder, name))
    except ValueError as error:
        raise MapoError(
            f"{folder / name} is damaged: {error}. Put a whole picture there, or take it out. Captions so far are kept."
        ) from None


# ------------------------------------------------------------------ the model


def open_describer(folder: Path) -> Describe:
    """The function that describes pictures; MapoError where the model is not of a kind that does."""
    kind = str(read_json_object(FLAG, folder / "config.json").get("model_type"))
    prepare = _preparing(folder, kind)
    network = load_model(FLAG, folder, "AutoModelForImageTextToText", trust_remote_code=False)
    network = network.float().eval().to(best_device())
    return partial(_describe, network, *prepare, BEAMS.get(kind, 1), folder)


def _preparing(folder: Path, kind: str) -> tuple[Callable[[Sequence[Image]], Any], Any]:
    """What makes the network's input of pictures, and the tokenizer that reads what it says."""
    pictures = load_processor(FLAG, folder)
    try:
        import transformers

        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if kind == "florence2":
                processor = transformers.Florence2Processor(image_processor=pictures, tokenizer=tokenizer)
    except Exception as error:
        raise MapoError(f"{FLAG}: the tokenizer in {folder} is damaged ({reason(error)}).") from None
    shaped = {"input_data_format": "channels_last"}

    def prepare(batch: Sequence[Image]) -> Any:
        if kind == "florence2":
            return processor(images=list(batch), text=[TASK] * len(batch), return_tensors="pt", images_kwargs=shaped)
        return {"pixel_values": pictures(list(batch), return_tensors="pt", **shaped)["pixel_values"]}

    return prepare, tokenizer


def _describe(
    network: Any, prepare: Callable[[Sequence[Image]], Any], tokenizer: Any, beams: int, folder: Path,
    pictures: Sequence[Image],
) -> list[str]:  # fmt: skip
    """The most likely words for each picture, in one line."""
    with computing():
        inputs = {key: value.to(network.device) for key, value in prepare(pictures).items()}
        words = network.config.get_text_config()
        most = min(MOST_TOKENS, getattr(words, "max_position_embeddings", 2 * MOST_TOKENS) // 2)
        try:
            made = network.generate(
                **inputs, max_new_tokens=most, do_sample=False, num_beams=beams,
                **dict.fromkeys(("temperature", "top_p", "top_k")),
            )  # fmt: skip
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise MapoError(
                f"{FLAG}: the model in {folder} does not describe pictures on its own ({reason(error)}). Give one that "
                "does, such as Florence-2 or BLIP."
            ) from None
    return [" ".join(text.split()) for text in tokenizer.batch_decode(made, skip_special_tokens=True)]
