"""The token that a run has learned, as ComfyUI, A1111, Forge and diffusers open it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mapo.errors import MapoError
from mapo.files import replacing

if TYPE_CHECKING:
    from mapo.models import Opened

WITH_TOKEN = ("embedding", "diffusers")  # forms that hold it


def write_embedding(opened: Opened, path: Path) -> None:
    """Write the token's row of each text encoder as the file ``path``; MapoError where no token was learned.

    They are ``clip_l`` and ``clip_g`` of SDXL, "1 d" each, and ``emb_params`` of Stable Diffusion 1 and 2.
    """
    from mapo.models.token import NAMES, write_token

    token = opened.files.token
    if token is None:
        raise MapoError(
            f"{opened.files.name} has learned no token. Train one with --set adapter.token, or take --to lora."
        )
    encoders = sum(part.startswith("text_encoder") for part in opened.encoder_parts)
    with replacing(path) as temporary:
        write_token(temporary, token.word, [token.row(place, encoders) for place in range(len(NAMES[encoders]))])


def told_beside(opened: Opened, form: str, beside: Path | None = None) -> str:
    """That the embedding has to go along, in a sentence; empty where there is none, or it is in what is written.

    It is the file ``beside``, where one is left there too; else the sentence says how to write it.
    """
    name, token = opened.files.name, opened.files.token
    if token is None or form in WITH_TOKEN:
        return ""
    if beside is not None:
        return f"The token {token.word} is not in it: {beside.name} has to go along."
    file = f"my-{token.word.strip('<>').removeprefix('my-') or 'token'}.safetensors"
    return (
        f"The token {token.word} is not in it: its embedding has to go along, as a file of its own, with `mapo export "
        f"{name} --to embedding --out {file}`."
    )
