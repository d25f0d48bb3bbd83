"""The card of a run that is exported: ``README.md`` for people and the hub, ``mapo.json`` for programs."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo import __version__
from mapo.errors import count
from mapo.export.hub import FACTS, NO_REPO, cell
from mapo.export.runs.facts import Base, Evaluation, RunFacts, held_out
from mapo.export.runs.licences import Licence
from mapo.files import write_text
from mapo.models.parts.config import read_config
from mapo.models.pipelines import has_true_cfg
from mapo.models.single.file import MAY_LACK
from mapo.pairs.provenance import without_folders
from mapo.settings import merge
from mapo.texts import read_object, write_json
from mapo.train.config import make_config, to_toml
from mapo.train.sections import RANK, TEXT_SHARE
from mapo.worlds import MODELS

if TYPE_CHECKING:
    from mapo.models import Opened
    from mapo.sample.sample import Sampling

FORMAT = "mapo-model"
TAGS = {"lora": "lora", "kohya": "lora", "embedding": "textual_inversion"}  # by form, of what is not a whole model
PROMPT = "a fox in the snow"
PREDICTS = {  # of a model of which diffusers does not see what it predicts
    "v": 'prediction_type="v_prediction"', "epsilon": 'prediction_type="epsilon", rescale_betas_zero_snr=False',
}  # fmt: skip
ZERO_SNR = ', rescale_betas_zero_snr=True, timestep_spacing="trailing"'
T5_OF_A_FILE = (  # which diffusers leaves without the embedding of its words, and in training
    "pipeline.{part}.encoder.embed_tokens.weight = pipeline.{part}.shared.weight",
    "pipeline.{part}.eval()",
)
FILE_PLACES = {
    "kohya": (
        "Put `{file}` into `models/loras` of ComfyUI or `models/Lora` of AUTOMATIC1111 and Forge, and use it with "
        "{base}, at strength 1. Or in diffusers:"
    ),
    "embedding": (
        "Put `{file}` into `models/embeddings` of ComfyUI, where a prompt calls it `embedding:{stem}`, or `embeddings` "
        "of AUTOMATIC1111 and Forge, where it is called `{stem}`. The LoRA that was trained with it goes along. Or in "
        "diffusers:"
    ),
    "single-file": (
        "Put `{file}` into `models/checkpoints` of ComfyUI or `models/Stable-diffusion` of AUTOMATIC1111 and Forge. Or "
        "draw with `mapo`:"
    ),
    "lora": "A LoRA for {base}, as diffusers opens it:",
    "diffusers": "A whole model, as diffusers opens it:",
}


@dataclass(frozen=True)
class Exporting:
    """What is written: its form, the name of its folder, the file in it where it is one, and the hub's repository."""

    form: str
    name: str
    file: str = ""
    repo: str | None = None
    for_hub: bool = False
    precision: str = ""  # of the weights; of a LoRA empty
    scores: Sequence[str] = ()  # the names of the tables in its card

    @property
    def source(self) -> str:
        """What a snippet opens."""
        return (self.repo or NO_REPO) if self.for_hub else self.name


def write_card(
    folder: Path, what: Exporting, opened: Opened, facts: RunFacts, licence: Licence | None, sampling: Sampling,
    evaluation: Evaluation | None,
) -> None:  # fmt: skip
    """Write both files into an exported folder."""
    from jinja2 import Environment, StrictUndefined

    settings = _settings(facts)
    write_json(folder / FACTS, _for_programs(what, opened, facts, licence, settings))
    template = (importlib.resources.files("mapo.export.runs") / "model.md.j2").read_text("utf-8")
    place = FILE_PLACES[what.form].format(file=what.file, base=_shown(facts.base), stem=Path(what.file).stem)
    body = (
        Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            title=cell(what.repo.split("/")[-1] if what.repo else what.name),
            base_shown=_shown(facts.base),
            what=_in_words(what.form, facts),
            compares=any(one.has_rejected for one in facts.training.sets) or not facts.training.sets,
            sensitive=facts.sensitive,
            place=place,
            snippets=_snippets(what, opened, facts.base, sampling),
            training=[(cell(k), cell(v)) for k, v in _training(facts)],
            sets=[
                (cell(one.name), [(cell(k), cell(v)) for k, v in (*one.facts, *one.recorded)])
                for one in facts.training.sets
            ],
            lost=[cell(Path(name).name) for name in facts.training.lost],
            evaluation=evaluation
            and Evaluation(
                [cell(model) for model in evaluation.models], [(cell(m), n, means) for m, n, means in evaluation.rows]
            ),
            loras=[cell(name) for name in dict.fromkeys(Path(one["file"]).name for one in facts.loras)],
            licence=licence and f"{licence.title} (`{licence.called}`)",
            restricts=licence.restricts if licence else "",
            link=licence.link if licence else "",
            notice=cell(licence.notice) if licence else "",
            config=to_toml(make_config(settings)).strip(),
            version=__version__,
        )
    )
    if licence and licence.notice:
        write_text(folder / "NOTICE", f"{licence.notice}\n")
    write_text(folder / "README.md", f"---\n{_head(what, opened, facts, licence)}\n---\n\n{body}")


def facts_of_export(folder: Path, revision: str) -> Mapping[str, Any]:
    """What a whole export of the run that has this revision says of itself; empty where the folder is none."""
    if not (folder / FACTS).is_file():
        return {}
    facts = read_object(folder / FACTS, "an exported model", "Delete it and export again.")
    return facts if facts.get("format") == FORMAT and facts.get("revision") == revision else {}


def _head(what: Exporting, opened: Opened, facts: RunFacts, licence: Licence | None) -> str:
    """What the hub reads."""
    from huggingface_hub import ModelCardData

    adapter, objective = TAGS.get(what.form), str(facts.config["objective"]["name"])
    data = ModelCardData(
        base_model=facts.base.hub_id or None,
        base_model_relation=("adapter" if adapter else "finetune") if facts.base.hub_id else None,
        library_name="diffusers",
        license=licence.name if licence else "unknown",
        license_name=licence.own_name or None if licence else None,
        license_link=licence.link or None if licence else None,
        pipeline_tag="text-to-image",
        tags=[
            "text-to-image", "mapo", "preference-optimization", objective.rpartition(":")[2],
            f"diffusers:{opened.files.pipeline_class}", *([adapter] if adapter else []),
            *(["not-for-all-audiences"] if facts.sensitive else []),
        ],
    )  # fmt: skip
    return str(data.to_yaml())


def _for_programs(
    what: Exporting, opened: Opened, facts: RunFacts, licence: Licence | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": 1,
        "mapo": __version__,
        "form": what.form,
        "revision": opened.files.revision(),
        "pipeline": opened.files.pipeline_class,
        "base": facts.base.called,
        "adapter": facts.about["adapter"],
        "steps": facts.steps,
        "sensitive": facts.sensitive,
        "licence": licence.called if licence else "unknown",
        "precision": what.precision,
        "scores": list(what.scores),
        "settings": settings,
        "sets": [{"name": one.name, **dict(one.facts)} for one in facts.training.sets],
    }


def _settings(facts: RunFacts) -> dict[str, Any]:
    """The run's settings, with folders of this machine left with their last part."""
    kept: dict[str, Any] = without_folders(merge({}, facts.config))
    for key in ("model", "pairs", "cache"):
        if kept.get(key):
            kept[key] = facts.base.called if key == "model" else Path(kept[key]).name
    own, colon, name = str(kept["objective"]["name"]).rpartition(":")
    kept["objective"]["name"] = f"{Path(own).name}{colon}{name}"
    if kept.get("loras"):
        kept["loras"] = [Path(str(text)).name for text in kept["loras"]]
    return kept


def _shown(base: Base) -> str:
    if base.hub_id:
        return f"[{base.hub_id}](https://huggingface.co/{base.hub_id})"
    if base.is_world:
        return f"`{base.called}`, the model that comes with mapo"
    return f"`{base.called}`"


def _in_words(form: str, facts: RunFacts) -> str:
    trained = "a LoRA" if facts.is_lora else "every weight of its denoiser"
    merged = ", and is merged into its weights here" if facts.is_lora and form in ("diffusers", "single-file") else ""
    return f"What was trained is {trained}{merged}. The model learned to draw more like the chosen pictures."


def _training(facts: RunFacts) -> list[tuple[str, str]]:
    """The rows of the card's table."""
    config = facts.config
    objective, adapter, optim, train = (config[name] for name in ("objective", "adapter", "optim", "train"))
    knobs = ", ".join(f"{key} {value:g}" for key, value in objective.items() if key != "name")
    name = str(objective["name"])
    shown = f"{Path(name.rpartition(':')[0]).name}:{name.rpartition(':')[2]}" if ":" in name else name
    rank = adapter.get("rank") or RANK
    lora = f"a LoRA of rank {rank}, alpha {adapter.get('alpha') or rank:g}"
    if adapter.get("start") == "continued":
        lora = "a LoRA that was there before, trained further"
    if adapter.get("text_encoders"):
        lora += ", beside the denoiser and the text encoders"
    if adapter.get("token"):
        lora += f", and the token {adapter['token']}"
    seen = facts.steps * train["pairs_per_step"]
    loras = [f"{Path(one['file']).name} at {one['weight']:g} (sha256 {one['sha256']})" for one in _loras(facts)]
    start = {"fused": "merged", "frozen": "left as they were", "continued": "trained further"}
    before = f"{'; '.join(loras)}, {start.get(str(facts.about.get('start')), '')}" if loras else ""
    warm_up = count(optim["warmup_steps"], "step")
    frozen = f"; frozen weights in {train['base_precision']}" if facts.is_lora else ""
    chunks, dropped = facts.about.get("chunks"), config["data"].get("caption_dropout")
    rate = f"{optim.get('lr', 0):g}"
    if adapter.get("text_encoders"):
        rate += f" ({optim.get('text_lr') or TEXT_SHARE * optim.get('lr', 0):g} for the text encoders)"
    if adapter.get("token"):
        rate += f" ({optim['token_lr']:g} for the token)"
    rows = [
        ("base", facts.base.called),
        ("trained", lora if facts.is_lora else "every weight of the denoiser"),
        ("LoRAs that lay on it", before),
        ("objective", f"{shown} ({knobs})" if knobs else shown),
        ("steps", f"{facts.steps:,} of {count(train['pairs_per_step'], 'pair')}: {count(seen, 'pair')} seen"),
        ("learning rate", f"{rate}, {optim['schedule']}, {warm_up} of warm-up"),
        ("precision", f"{train['precision']}{frozen}"),
        ("another VAE", Path(str(facts.about.get("vae") or "")).name),
        ("told that it predicts", str(facts.about.get("prediction") or "")),
        ("resolution", str(config["data"].get("resolution") or "the model's own")),
        ("clip skip", str(facts.about.get("clip_skip") or "")),
        ("long prompts", f"read in chunks, {chunks} of them for every prompt" if chunks else ""),
        ("pairs without their prompt", f"{dropped:.0%}" if dropped else ""),
        ("seed", str(train["seed"])),
        ("on held-out pairs", held_out(facts.folder, facts.steps)),
    ]  # fmt: skip
    return [(key, value) for key, value in rows if value]


def _loras(facts: RunFacts) -> list[dict[str, Any]]:
    return list(facts.about.get("loras") or [])


def _snippets(what: Exporting, opened: Opened, base: Base, sampling: Sampling) -> list[tuple[str, str]]:
    """The code of the card, each with its language."""
    if what.form == "single-file":
        return [("sh", f"mapo sample --model {what.file} --prompts my-prompts.txt --out pictures")]
    lines = _opening(what, opened, base)
    if what.form != "diffusers" and (other := _other_vae(opened)):
        lines[1] += ", AutoencoderKL"
        lines += [f"pipeline.vae = AutoencoderKL.from_pretrained({other}, torch_dtype=torch.float32)"]
    if what.form in ("lora", "kohya"):
        named = f', weight_name="{what.file}"' if what.form == "kohya" else ""
        lines += [f'pipeline.load_lora_weights("{what.source}"{named})']
    if what.form != "diffusers" and (told := _prediction_told(opened, base)):
        lines += [f"pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config, {told})"]
    prompt, token = PROMPT, opened.files.token
    if what.form == "embedding" and token is not None:
        lines += _loading(what, token.word, sum(part.startswith("text_encoder") for part in opened.encoder_parts))
        prompt = f"a photo of {token.word}"
    guided = f", guidance_scale={sampling.guidance:g}"
    if has_true_cfg(opened.files):
        guided = f', negative_prompt="", true_cfg_scale={sampling.guidance:g}'
    size = f", width={sampling.width}, height={sampling.height}"
    lines += [
        '# on a GPU: pipeline.to("cuda"), and torch.float16 or torch.bfloat16 above for half the memory',
        f'picture = pipeline("{prompt}", num_inference_steps={sampling.steps}{guided}{size}).images[0]',
        'picture.save("picture.png")',
    ]
    return [("python", "\n".join(lines))]


def _opening(what: Exporting, opened: Opened, base: Base) -> list[str]:
    """The code with which diffusers opens the whole model, or the base of a LoRA."""
    kind = opened.files.pipeline_class
    dtype = "torch_dtype=torch.float32"  # else the libraries read half precision each in another way
    begin = ["import torch", "from diffusers import DiffusionPipeline", ""]
    if what.form == "diffusers":
        return [*begin, f'pipeline = DiffusionPipeline.from_pretrained("{what.source}", {dtype})']
    if base.is_world:
        begin[2:] = ["from mapo.worlds import MODELS", ""]
        return [*begin, f'pipeline = DiffusionPipeline.from_pretrained(MODELS["{base.called}"], {dtype})']
    if not base.is_file:
        return [*begin, f'pipeline = DiffusionPipeline.from_pretrained("{base.called}", {dtype})']
    begin[1] = f"from diffusers import {kind}"
    index = read_config(opened.files.base, "model_index.json")
    without = "".join(f", {part}=None" for part in MAY_LACK.get(kind, ()) if not index.get(part, [None])[0])
    t5 = [part for part, made in index.items() if isinstance(made, list) and made[1] == "T5EncoderModel"]
    return [
        *begin,
        f'pipeline = {kind}.from_single_file("{base.called}"{without}, {dtype})',
        *(line.format(part=part) for part in t5 for line in T5_OF_A_FILE),
    ]


def _other_vae(opened: Opened) -> str:
    """What diffusers is given to open a VAE that stands in for the base's own; empty where it is a file, or none."""
    vae = opened.files.vae
    if vae is None or vae.config_path.name != "config.json" or vae.name in MODELS:
        return ""
    name, revision = Path(vae.name).name, ""
    if not Path(vae.name).is_absolute():
        name, _, revision = vae.name.partition("@")
    is_inside = vae.config_path.parent.name == "vae" and Path(name).name != "vae"
    told = (', subfolder="vae"' if is_inside else "") + (f', revision="{revision}"' if revision else "")
    return f'"{name}"{told}'


def _prediction_told(opened: Opened, base: Base) -> str:
    """What diffusers has to be told of a UNet's noise; empty where it reads that itself. It sees no mark of a file."""
    scheduler, asked = opened.files.config("scheduler"), opened.files.prediction
    if not base.is_file or "prediction_type" not in scheduler:
        return PREDICTS[asked] if asked else ""
    is_v = scheduler["prediction_type"] == "v_prediction"
    return PREDICTS["v" if is_v else "epsilon"] + (ZERO_SNR if is_v and scheduler.get("rescale_betas_zero_snr") else "")


def _loading(what: Exporting, word: str, encoders: int) -> list[str]:
    """The code with which diffusers opens an embedding. Of two text encoders it opens each one's row by itself."""
    path = f"{what.source}/{what.file}"
    if encoders == 1:
        return [f'pipeline.load_textual_inversion("{path}", token="{word}")']
    return [
        "from safetensors.torch import load_file",
        "",
        f'rows = load_file("{path}")',
        "one = dict(text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)",
        "two = dict(text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2)",
        f'pipeline.load_textual_inversion(rows["clip_l"], "{word}", **one)',
        f'pipeline.load_textual_inversion(rows["clip_g"], "{word}", **two)',
        "# the files of SDXL name another end of prompts, and the new token would be taken for it",
        "pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id",
    ]
