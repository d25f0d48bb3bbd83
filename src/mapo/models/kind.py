"""Whether the parts of a model folder are of the kind that training knows. What is not said is not guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mapo.errors import MapoError

# All of these sample from one process: βs at whole timesteps, noise added by their product.
DDPM_LIKE = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler",
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler", "LCMScheduler", "TCDScheduler",
)  # fmt: skip
PREDICTIONS = ("epsilon", "v_prediction")
ELSEWHERE = "`mapo sample` may still make pictures with it."
KNOWN = "Training knows noise that is added by betas (DDPM, DDIM, Euler …) and a model that predicts epsilon or v."
SPARE = 128  # rows that an encoder's table of words may have beyond its tokenizer's, as tables are padded


def check_scheduler(base: Path, config: dict[str, Any]) -> None:
    """MapoError where ``scheduler/scheduler_config.json`` is not that of a DDPM which predicts ε or v."""
    path = base / "scheduler" / "scheduler_config.json"
    name = str(config.get("_class_name", ""))
    why = ""
    if name not in DDPM_LIKE:
        why = f"names {name or 'no class'}"
    elif config.get("use_flow_sigmas"):
        why = "has use_flow_sigmas, so the model is one of flow matching"
    elif config.get("timestep_type", "discrete") != "discrete":
        why = f"has timestep_type {config['timestep_type']!r}"
    elif edm := [key for key in ("sigma_data", "sigma_min", "sigma_max") if config.get(key) is not None]:
        why = f"has {edm[0]}, so the model is one of EDM"
    elif config.get("prediction_type", "epsilon") not in PREDICTIONS:
        why = f"has prediction_type {config['prediction_type']!r}"
    if why:
        raise MapoError(f"{path} {why}. {KNOWN} {ELSEWHERE}")
    needed = ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule"]
    if config.get("trained_betas") is None and (absent := [key for key in needed if config.get(key) is None]):
        raise MapoError(
            f"{path} does not say {absent[0]}, so the noise that the model was trained with is not known. "
            "Take the file from the model's own page."
        )


def check_vae(base: Path, config: dict[str, Any], usual: float, may_lack: bool = False) -> None:
    """MapoError where the VAE is of another class or its scaling factor is not said; ``usual`` is the family's."""
    path = base / "vae" / "config.json"
    name = config.get("_class_name", "AutoencoderKL")
    if name != "AutoencoderKL":
        raise MapoError(f"{path} names {name}; training knows AutoencoderKL. {ELSEWHERE}")
    if config.get("scaling_factor") is None and not may_lack:
        raise MapoError(
            f"{path} has no scaling_factor. Pipelines would take 0.18215 without a word, but the usual VAE of this "
            f'kind of model has {usual}. Write the right one into the file: "scaling_factor": {usual}.'
        )


def check_tokenizer_files(base: Path, part: str) -> None:
    """MapoError where a tokenizer's folder lacks what decides tokens: a library would make one of two tokens up."""
    folder = base / part
    if not folder.is_dir():
        raise MapoError(f"The model folder {base} is not whole: {part}/ is missing. Download it from the model's page.")
    whole = (folder / "tokenizer.json").is_file() or all((folder / f).is_file() for f in ("vocab.json", "merges.txt"))
    if not whole:
        raise MapoError(
            f"The model folder {base} is not whole: {part}/ has no vocabulary (vocab.json and merges.txt, or "
            "tokenizer.json). Download it from the model's page."
        )
    if not (folder / "tokenizer_config.json").is_file():
        raise MapoError(
            f"The model folder {base} is not whole: {part}/tokenizer_config.json is missing. It says how many "
            "tokens are read and with what prompts are filled up. Download it from the model's page."
        )


def check_vocabulary(base: Path, tokenizer: Any, part: str, encoder: dict[str, Any], encoder_part: str) -> None:
    """MapoError where a tokenizer's words are not those of its text encoder."""
    words, rows = len(tokenizer), encoder.get("vocab_size")
    if not isinstance(rows, int) or not words <= rows < words + SPARE:
        raise MapoError(
            f"The model folder {base} does not fit together: {part}/ has {words} tokens, "
            f"{encoder_part}/config.json {rows or 'names no number'}. Download both from the model's page."
        )
