"""What the names of a file's tensors say: which layer and matrix each is, or why the file is not a usable LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mapo.errors import MapoError

SUFFIX = re.compile(  # peft may write the name of its adapter, such as default_0
    r"(?P<layer>.+?)(?:"
    r"\.(?:lora_down|lora_A(?:\.[A-Za-z]\w*)?|lora\.down|lora_linear_layer\.down)\.(?P<down>weight)"
    r"|\.(?:lora_up|lora_B(?:\.[A-Za-z]\w*)?|lora\.up|lora_linear_layer\.up)\.(?P<up>weight)"
    r"|\.(?P<alpha>alpha))"
)
OLDER = re.compile(r"\.(?:processor|self_attn)\.to_(q|k|v|out)_lora\.(down|up)\.weight$")  # diffusers before 0.22
OTHER_KINDS = (  # a pattern in a tensor's name, and what such a file is
    (r"dora_scale|lora_magnitude_vector", "a DoRA"),
    (r"hada_", "a LoHa"),
    (r"lokr_", "a LoKr"),
    (r"lora_mid", "a LoRA of convolutions in three pieces"),
    (r"oft_", "an OFT"),
    (r"\.on_input$", "an IA3"),
    (r"\.[ab][12]\.weight$", "a GLoRA"),
    (r"_lora[12]\.(down|up)\.", "a LoRA of XLabs"),
    (r"^lllite_", "a ControlNet-LLLite"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter"),
    (r"^bundle_emb", "a LoRA with embeddings in it"),
    (r"lora_(A|B|up|down)\b.*bias$", "a LoRA with biases"),
    (r"\.diff(_b)?$", "a LoRA with differences of whole weights"),
    (r"[wb]_norm$", "a LoRA with differences of norms"),
)
PEFT = "base_model.model."  # peft's wrapper, before the paths of layers
BY_PEFT = (  # the rest of a sentence
    "was written by peft alone, which keeps alpha in another file, adapter_config.json. Load it into its pipeline with "
    "diffusers, write it with save_lora_weights, and give that file."
)
WITHOUT_NAMES = re.compile(r"(tensor|arr|param)?[_.]?\d+")  # such as those of `numpy.savez`
WHOLE_MODELS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders.")
VAES = ("decoder.conv_in.", "encoder.conv_in.", "decoder.mid", "encoder.mid")
EMBEDDINGS = ("clip_l", "clip_g", "t5xxl", "emb_params", "string_to_param")
FAMILIES = (  # a pattern of names, and whose LoRA has them
    (r"double_blocks|single_blocks|single_transformer_blocks|single_stream", "FLUX.1"),
    (r"joint_blocks|add_q_proj|context_block", "Stable Diffusion 3"),
    (r"lora_te2_|text_encoder_2|input_blocks_[478]_1_|label_emb|attentions.\d.transformer_blocks.[2-9]", "SDXL"),
    (r"lora_te_|down_blocks[._]0[._]attentions|up_blocks[._]3[._]attentions", "Stable Diffusion 1 or 2"),
    (r"input_blocks|down_blocks", "another UNet"),
    (r"lora_te3_|transformer_blocks", "another transformer"),
)  # fmt: skip


@dataclass
class Names:
    """The tensors of one layer of a file, by what they are."""

    down: str = ""
    up: str = ""
    alpha: str = ""


def layers_named(names: Iterable[str], path: object, remedy: str) -> dict[str, Names]:
    """The layers of a LoRA by the names that its file has for them; MapoError where a tensor would not be used."""
    names = list(names)
    found: dict[str, Names] = {}
    unread = []
    for name in names:
        match = SUFFIX.fullmatch(_newer(name))
        if match is None:
            unread.append(name)
            continue
        layer, side = match["layer"], next(side for side in ("down", "up", "alpha") if match[side])
        entry = found.setdefault(layer, Names())
        if getattr(entry, side):
            raise MapoError(f"{path} has the layer {layer} twice ({getattr(entry, side)} and {name}). {remedy}")
        setattr(entry, side, name)
    if unread:
        raise MapoError(f"{path} {_why_not(unread, bool(found))} {remedy}")
    if not found:
        raise MapoError(f"{path} holds no layers. {remedy}")
    if halves := [layer for layer, entry in found.items() if not (entry.down and entry.up)]:
        raise MapoError(f"{path} holds only half of the layer {halves[0]}. {remedy}")
    return found


def _newer(name: str) -> str:
    """The name as diffusers has written it since 0.22."""

    def renewed(match: re.Match[str]) -> str:
        layer = {"out": "to_out.0"}.get(match[1], f"to_{match[1]}")
        if ".self_attn." in match[0]:
            layer = f"self_attn.{match[1]}_proj"
        return f".{layer}.lora.{match[2]}.weight"

    return OLDER.sub(renewed, name)


def _why_not(unread: list[str], has_layers: bool) -> str:
    """Why a file with these tensors cannot be used as a LoRA, as the rest of a sentence."""
    first = unread[0]
    for pattern, kind in OTHER_KINDS:
        if name := next((name for name in unread if re.search(pattern, name)), ""):
            return f"holds {name}: it is {kind}, which is not read."
    if has_layers:
        return f"holds {first}, which is not a tensor of a LoRA, so it could be used only in part."
    if name := next((name for name in unread if re.search(r"[._]lora_(A|B|up|down|embedding)", name)), ""):
        return f"holds {name}: a LoRA whose tensors have names that are not read."
    if any(name.startswith(VAES) for name in unread):
        return f"holds {first}: it is a VAE and not a LoRA."
    if any(name.startswith(WHOLE_MODELS) or (".weight" in name and "blocks" in name) for name in unread):
        return f"holds {first}: it is a whole model or its denoiser and not a LoRA."
    if all(WITHOUT_NAMES.fullmatch(name) for name in unread):
        return f"is a list of tensors ({first} …) that does not name the layers they belong to."
    if any(name.split(".")[0] in EMBEDDINGS or name.startswith("<") for name in unread) or (
        len(unread) <= 2 and not any("." in name for name in unread)
    ):
        return f"holds {first}: it is an embedding (textual inversion) and not a LoRA."
    return f"holds {first}, and nothing in it is called as the layers of a LoRA are."


def family_of(names: Iterable[str]) -> str:
    """Whose LoRA has layers of these names, as far as they tell; else empty."""
    text = "\n".join(names)
    return next((family for pattern, family in FAMILIES if re.search(pattern, text)), "")
