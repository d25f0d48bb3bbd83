"""What a run becomes: a folder or a file that other programs open, with its card."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mapo.errors import MapoError, suggest
from mapo.export import hub
from mapo.export.runs.embedding import told_beside, write_embedding
from mapo.export.runs.facts import RunFacts, read_evaluation, read_facts
from mapo.export.runs.licences import HOW, Licence, inherited, licence_of_kind
from mapo.export.runs.model_card import Exporting, facts_of_export, write_card
from mapo.export.runs.pipeline_folder import PRECISIONS, write_diffusers
from mapo.files import prepare_out, replacing, sweep
from mapo.models import Opened, find_model, open_model
from mapo.models.files import at_step
from mapo.models.loras.sources import LORA_FILE
from mapo.models.parts.header import PICKLES
from mapo.models.sources.steps import checkpoint_of
from mapo.sample.sample import default_sampling
from mapo.shards import owned, refuse_existing

LOG = logging.getLogger(__name__)

SUFFIX = ".safetensors"
FLAGS = {"licence": "--license", "base": "--base-model", "precision": "--precision", "scores": "--scores"}
Write = Callable[[Opened, Path, str], None]


@dataclass(frozen=True)
class Form:
    """A form in which a run leaves: how it is written, in which precisions, and the name of the file if it is one."""

    write: Write
    precisions: tuple[str, ...] = ()  # the first is the usual one; none: as it was trained
    file: str = ""  # "{}" stands for the folder's name
    only_loras: bool = False


def _lora(opened: Opened, path: Path, precision: str) -> None:
    from mapo.export.runs.lora import write_lora

    write_lora(opened, path)


def _kohya(opened: Opened, path: Path, precision: str) -> None:
    from mapo.export.runs.kohya import write_kohya

    write_kohya(opened, path)


def _embedding(opened: Opened, path: Path, precision: str) -> None:
    write_embedding(opened, path)


def _single_file(opened: Opened, path: Path, precision: str) -> None:
    from mapo.export.runs.single_file import write_single_file

    write_single_file(opened, path, precision)


FORMS = {
    "diffusers": Form(write_diffusers, PRECISIONS),
    "lora": Form(_lora, file=LORA_FILE, only_loras=True),
    "kohya": Form(_kohya, file="{}" + SUFFIX, only_loras=True),
    "embedding": Form(_embedding, file="{}" + SUFFIX),
    "single-file": Form(_single_file, ("float16", "float32"), file="{}" + SUFFIX),
}


@dataclass(frozen=True)
class ExportOptions:
    """How a run is exported, as the user asked; None and "" where nothing was said."""

    precision: str | None = None
    licence: str | None = None
    base_model: str | None = None
    scores: Sequence[Path] = ()
    repo: str | None = None
    private: bool | None = None
    embedding: Path | None = None  # the token's, which is left as this file


def export_run(name: str, to: str, out: Path, asked: ExportOptions, api: Any = None) -> tuple[dict[str, int], str]:
    """Write the run ``name`` (or ``RUN@STEP``) into ``out``, and with ``to`` "hub" upload it where a repo is named.

    Counts (files and bytes; empty for a folder that was there) and the address on the hub or "". ``out`` is a folder
    with a card in it. Where it ends in .safetensors it is that file alone. ``api`` is a ``huggingface_hub.HfApi``.
    """
    if found := at_step(name):
        checkpoint_of(*found, flag="")  # a step that is missing is told without --model, which export lacks
    opened = open_model(find_model(name), to_train=False)
    facts = read_facts(name, opened, asked.base_model)
    form_name = to if to != "hub" else "lora" if facts.is_lora else "diffusers"
    form = FORMS[form_name]
    if form.only_loras and not facts.is_lora:
        raise MapoError(
            f"{name} is a run in which every weight was trained, so it is not a LoRA. Export it whole, with --to "
            "diffusers or --to single-file."
        )
    precision = _precision(form_name, form, asked.precision)
    if to == "hub" and asked.repo is not None and api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    licence = _licence(opened, facts, asked, to == "hub", api)
    private = True
    if asked.repo is not None:
        private = hub.check_repo(asked.repo, asked.private, facts.sensitive, api, "model")
    elif asked.private is not None:
        raise MapoError("--private and --public are for an upload. Name the repository too, with --repo OWNER/NAME.")
    if opened.files.chunks > 1:
        LOG.info(
            f"{name} was trained with prompts of {opened.files.chunks} chunks. diffusers cuts them and gives it one, "
            "so its pictures differ from those of `mapo sample`."
        )
    if beside := told_beside(opened, form_name, asked.embedding):
        LOG.info(beside)
    counts: dict[str, int] = {}
    if to == "hub" and asked.repo and (written := facts_of_export(out, opened.files.revision())):
        said: dict[str, Any] = {"licence": asked.licence, "base": asked.base_model, "precision": asked.precision}
        said["scores"] = [path.name for path in asked.scores]
        if other := next((key for key, value in said.items() if value and value != written.get(key)), ""):
            raise MapoError(
                f"{out} was written before, and not with this {FLAGS[other]}: mend its README.md, or delete it first "
                "to write it anew."
            )
    else:
        tables = [path.name for path in asked.scores]
        file = form.file.format(out.name)
        what = Exporting(form_name, out.name, file, asked.repo, to == "hub", precision, tables)
        counts = _write(name, opened, facts, licence, what, precision, out, asked)
    return counts, hub.push(out, asked.repo, private, api, "model") if asked.repo is not None else ""


def _precision(to: str, form: Form, asked: str | None) -> str:
    if asked is None:
        return form.precisions[0] if form.precisions else ""
    if not form.precisions:
        what = "an embedding" if to == "embedding" else "a LoRA"
        raise MapoError(f"--precision: {what} is written in float32, as it was trained. Leave it out with --to {to}.")
    if asked not in form.precisions:
        raise MapoError(f"--precision {asked!r} is not one for --to {to}. {suggest(asked, form.precisions)}")
    return asked


def _licence(opened: Opened, facts: RunFacts, asked: ExportOptions, for_hub: bool, api: Any) -> Licence | None:
    """The licence that the base hands down; MapoError where it is not known and the model is to be published."""

    def ask(base: str) -> Mapping[str, Any]:
        with contextlib.suppress(Exception):  # the hub may not be reached, and then it is not known
            return dict(api.model_info(base).card_data or {})
        return {}

    base = facts.base
    if base.is_world:
        found = inherited("", None, asked.licence) if asked.licence else inherited("", None, "apache-2.0")
    else:
        folder = base.place if base.place.is_dir() else None
        found = inherited(base.hub_id, folder, asked.licence, ask if api is not None else None, licence_of_kind(opened))
    if found is None and for_hub:
        raise MapoError(f"The licence of {base.called}, which the model inherits, is not known. {HOW}")
    return found


def _write(
    name: str, opened: Opened, facts: RunFacts, licence: Licence | None, what: Exporting, precision: str, out: Path,
    asked: ExportOptions,
) -> dict[str, int]:  # fmt: skip
    form = FORMS[what.form]
    alone = out.suffix.lower() == SUFFIX
    if not alone and not facts.config:
        raise MapoError(
            f"{facts.folder} has lost its config.toml, of which the card is written. Put it back"
            + (f", or write the file alone, with --out {out.name}{SUFFIX}." if form.file else ".")
        )
    if alone and not form.file:
        raise MapoError(f"--out {out} ends in {SUFFIX}, but --to {what.form} writes a folder. Choose another --out.")
    if form.file and out.suffix.lower() in PICKLES:
        raise MapoError(f"--out {out} ends in {out.suffix}, but files are written as {SUFFIX}. Choose another --out.")
    refuse_existing(out)
    evaluation = read_evaluation(asked.scores, [opened.files.stable_name, name])
    sampling = default_sampling(opened.files)
    prepare_out(out)
    needed = _bytes(opened, form, precision)
    with owned(out):
        _check_space(out, needed)
        sweep(out.parent)
        if alone:
            form.write(opened, out, precision)
            return {"files": 1, "bytes": out.stat().st_size}
        with replacing(out, sync=True) as temporary:
            temporary.mkdir()
            form.write(opened, temporary / what.file if what.file else temporary, precision)
            write_card(temporary, what, opened, facts, licence, sampling, evaluation)
    files = [path for path in out.rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def _bytes(opened: Opened, form: Form, precision: str) -> int:
    """About how much will be written."""
    if form.write is _embedding:
        return 0  # a row or two
    if form.only_loras:
        layers = [layer for layers in opened.lora_layers(heads_only=True) for layer in layers]
        return sum(4 * (layer.down.numel() + layer.up.numel()) for layer in layers)
    parts = [opened.denoiser_part, *(part for part in opened.encoder_parts if not part.startswith("tokenizer"))]
    numbers: int = sum(tensor.numel() for part in parts for tensor in opened.outline(part).state_dict().values())
    kind: torch.dtype = getattr(torch, precision)
    return numbers * kind.itemsize


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise MapoError(
            f"{out} takes about {needed / 1e6:,.1f} MB, and {out.parent} has {free / 1e6:,.1f} MB free. Make room, or "
            "choose another --out."
        )
    about = f"about {needed / 1e6:,.1f} MB" if needed >= 1e5 else "less than 0.1 MB"
    LOG.info(f"{out} takes {about}.")
