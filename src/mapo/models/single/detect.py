"""What lies in a file, told by the names and shapes in its head."""

from __future__ import annotations

import re
from pathlib import Path

from mapo.errors import MapoError
from mapo.models.loras.keys import WITHOUT_NAMES
from mapo.models.parts.eight_bits import refuse_quantized
from mapo.models.parts.header import Header

INSIDE = "model.diffusion_model."  # before the names of a denoiser in a whole checkpoint
LORA = re.compile(r"lora_(up|down|A|B|mid)\b|\.lora\.|lora_linear|hada_w|lokr_w|dora_scale|\.oft_|\.(diff|diff_b)$")
EMBEDDING = ("clip_l", "clip_g", "t5xxl", "emb_params", "string_to_param")
FOLDER = "Give the model as a folder in diffusers' layout."
OTHER_DENOISERS = {  # names that only these have
    "noise_refiner.": "Z-Image or Lumina", "double_stream_modulation_img.": "FLUX.2", "txt_norm.": "Qwen-Image",
    "distilled_guidance_layer.": "Chroma", "patch_embedding.": "Wan, a model of video",
    "caption_projection.": "PixArt or Sana", "clip_txt_mapper.": "Stable Cascade", "cond_seq_linear.": "AuraFlow",
    "adaln_single.": "PixArt or LTX", "mlp_t5.": "Hunyuan-DiT",
}  # fmt: skip
FLUX_INPUTS = {384: "FLUX.1 Fill, a model for inpainting", 128: "FLUX.1 Depth or Canny, a model that copies a layout"}
PIECE, INDEX = re.compile(r"(?P<start>.+)-\d{5}-of-\d{5}\.safetensors"), ".safetensors.index.json"
UNET_INPUTS = {
    9: "a model for inpainting", 8: "a model for editing (InstructPix2Pix)", 5: "a model that is given depth",
    7: "an upscaler",
}  # fmt: skip
EDITS_PICTURES = re.compile(r"(?i)kontext")


def inside(header: Header) -> str:
    """What stands before the names of the denoiser: in a whole checkpoint, or in a file of the denoiser alone."""
    return INSIDE if header.any(INSIDE) else ""


def refuse_pieces(path: Path) -> None:
    """MapoError where a file is, by its name, only a piece of a model, or says where the pieces lie."""
    if path.name == "model_index.json":
        raise MapoError(f"{path} describes a model folder. Give the folder: {path.parent}.")
    piece, index = PIECE.fullmatch(path.name), path.name.endswith(INDEX)
    if not piece and not index:
        return
    base = path.parent.parent
    if (base / "model_index.json").is_file():
        raise MapoError(f"{path} is only a piece of the model in {base}. Give that folder.")
    start = piece["start"] if piece else path.name.removesuffix(INDEX)
    pieces, whole = path.with_name(f"{start}-*-of-*.safetensors"), path.with_name(f"{start}.safetensors")
    what = "is one of several pieces of a model" if piece else "only says in which pieces a model lies"
    raise MapoError(
        f'{path} {what}. Join them to one file, and give that: python -c "import glob, safetensors.torch as s; '
        f"s.save_file({{k: v for f in sorted(glob.glob('{pieces}')) for k, v in s.load_file(f).items()}}, '{whole}')\""
    )


def refuse_what_is_not_a_model(header: Header) -> None:
    """MapoError, by name, where a file holds something else than a model, or weights that cannot be used."""
    path, names = header.path, header.tensors
    if not names:
        raise MapoError(f"{path} holds no tensors. Download it again.")
    if all(WITHOUT_NAMES.fullmatch(name) for name in names):
        raise MapoError(
            f"{path} is a list of tensors without names, so nothing says where they belong. Save it again with names."
        )
    if any(LORA.search(name) for name in names):
        raise MapoError(
            f"{path} is a LoRA, not a model. Give --model the model that it belongs to, and this with --lora."
        )
    if set(names) <= set(EMBEDDING) or (len(names) == 1 and len(header.shape(next(iter(names)))) <= 2):
        raise MapoError(f"{path} is an embedding (textual inversion), not a model.")
    if header.any("control_model.", "controlnet_", "input_hint_block.") or header.any_with("controlnet_cond_embedding"):
        raise MapoError(f"{path} is a ControlNet, not a model. Give --model the model that it belongs to.")
    if header.any_with("motion_modules.") and not header.any(INSIDE):
        raise MapoError(f"{path} is a motion module of AnimateDiff, not a model.")
    refuse_quantized(header)


def table_of(header: Header) -> str:
    """The name of the table that describes a model; MapoError, by name, where it is not one that can be trained."""
    path, begin = header.path, inside(header)
    if header.any(f"{begin}joint_blocks."):
        return _sd3(header, begin)
    if header.any(f"{begin}double_blocks."):
        return _flux(header, begin)
    if header.any(f"{begin}input_blocks."):
        return _unet(header, begin)
    if name := next((name for start, name in OTHER_DENOISERS.items() if header.any(f"{begin}{start}")), ""):
        raise MapoError(f"{path} is a model of {name}, which is not read from one file. {FOLDER}")
    if header.any("unet.", "transformer.") and header.any("vae.", "text_encoder."):
        raise MapoError(f"{path} holds the parts of a model by diffusers' names. {FOLDER}")
    if header.any("down_blocks.", "unet.down_blocks.", "transformer_blocks.", "single_transformer_blocks."):
        raise MapoError(
            f"{path} holds only a denoiser, by diffusers' names. Put it into the folder of its pipeline, as unet/ or "
            "transformer/diffusion_pytorch_model.safetensors, and give that folder."
        )
    if header.any("model_ema.diffusion_model"):
        raise MapoError(
            f"{path} holds its denoiser only as the running mean of a training (model_ema). Take the file for drawing, "
            "which has it by its usual names."
        )
    if is_vae(header) and header.any("cond_stage_model.", "conditioner.", "text_encoders."):
        raise MapoError(f"{path} has a VAE and a text encoder but no denoiser. Take a file that holds every part.")
    if is_vae(header):
        raise MapoError(f"{path} is a VAE, not a model. Give it with --vae, and the model with --model.")
    if header.any("text_model.", "encoder.block.", "transformer.resblocks.", "encoder.layers.", "shared.weight"):
        raise MapoError(f"{path} is a text encoder, not a model.")
    raise MapoError(
        f"{path} is not a model that is known: SDXL, Stable Diffusion 1, 2 and 3, or FLUX.1. Its first tensor is "
        f"{min(header.tensors)}."
    )


def is_vae(header: Header) -> bool:
    """Whether a file holds a VAE and no denoiser."""
    starts = ("", "first_stage_model.", "vae.")
    has_vae = any(f"{start}{half}.conv_in.weight" in header.tensors for start in starts for half in HALVES)
    blocks = ("input_blocks.", "double_blocks.", "joint_blocks.")
    return has_vae and not header.any(*blocks, *(INSIDE + block for block in blocks))


HALVES = ("decoder", "encoder")


def _sd3(header: Header, begin: str) -> str:
    if header.any(f"{begin}joint_blocks.37."):
        return "sd35-large"
    places = (header.shape(f"{begin}pos_embed") or (0, 0))[1]
    tables = {36_864: "sd3-medium", 147_456: "sd35-medium"}
    if places not in tables:
        raise MapoError(f"{header.path} is a Stable Diffusion 3 of an unknown size (pos_embed {places}). {FOLDER}")
    return tables[places]


def _flux(header: Header, begin: str) -> str:
    taken = (header.shape(f"{begin}img_in.weight") or (0, 0))[1]
    if header.any(f"{begin}distilled_guidance_layer."):
        raise MapoError(f"{header.path} is a model of Chroma, which is not read from one file. {FOLDER}")
    if header.any(f"{begin}double_stream_modulation_img."):
        raise MapoError(f"{header.path} is a model of FLUX.2, which is not trained here.")
    if taken in FLUX_INPUTS:
        raise MapoError(f"{header.path} is {FLUX_INPUTS[taken]}. Training knows FLUX.1 dev and schnell.")
    if word := _called(header, EDITS_PICTURES):
        raise MapoError(
            f"{header.path} has the word {word!r} in its name or metadata, which FLUX.1 Kontext bears, a model for "
            "editing. Its tensors are those of FLUX.1 dev. If it is not one, give the file another name."
        )
    return "flux-dev" if header.any(f"{begin}guidance_in.") else "flux-schnell"


def _unet(header: Header, begin: str) -> str:
    path = header.path
    taken = (header.shape(f"{begin}input_blocks.0.0.weight") or (0, 0))[1]
    told = (header.shape(f"{begin}label_emb.0.0.weight") or (0, 0))[1]
    if told == 2560:
        raise MapoError(f"{path} is the refiner of SDXL, which only finishes pictures. Give the base model.")
    if taken in UNET_INPUTS:
        raise MapoError(f"{path} takes {taken} channels: {UNET_INPUTS[taken]}. Training knows models that take 4.")
    if "edm_mean" in header.tensors or "edm_std" in header.tensors:
        raise MapoError(f"{path} is an EDM model (Playground 2.5). Training knows models with SDXL's own noise.")
    if header.any("edm_vpred."):
        raise MapoError(
            f"{path} is an EDM model (edm_vpred, as CosXL): it is told the logarithm of the noise, where SDXL is told "
            "a step. Training knows models with SDXL's own noise."
        )
    if told in (1536, 2048):
        raise MapoError(f"{path} is Stable Diffusion 2.1 unCLIP, which is told a picture. Give one that is told text.")
    if told:
        if told != 2816:
            raise MapoError(f"{path} is an SDXL of an unknown kind (label_emb takes {told} numbers). {FOLDER}")
        return "sdxl"
    reads = re.compile(re.escape(begin) + r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight")
    width = next((held.shape[1] for name, held in header.tensors.items() if reads.fullmatch(name)), 0)
    tables = {768: "sd15", 1024: "sd2"}
    if width not in tables:
        raise MapoError(f"{path} is a UNet that reads text of {width} numbers a token, which is not known. {FOLDER}")
    return tables[width]


def called(header: Header) -> tuple[str, ...]:
    """A file's name, and what its metadata calls it."""
    return header.path.stem, *(header.metadata.get(f"modelspec.{key}", "") for key in ("architecture", "title"))


def _called(header: Header, word: re.Pattern[str]) -> str:
    return next((match[0] for text in called(header) if (match := word.search(text))), "")
