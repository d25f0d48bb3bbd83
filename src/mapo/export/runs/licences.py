"""Licences that a trained model inherits from the model that it was made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.errors import MapoError
from mapo.export.hub import LICENCE

if TYPE_CHECKING:
    from mapo.models import Opened


@dataclass(frozen=True)
class Licence:
    """A licence by the hub's name for it. ``restricts`` says in short what it asks of whoever uses the model.

    Where the hub has no name of its own for it, ``name`` is "other" and ``own_name`` what model cards call it.
    ``notice`` is what it asks to be written beside every copy, in its own words.
    """

    name: str
    title: str
    restricts: str = ""
    own_name: str = ""
    link: str = ""
    notice: str = ""

    @property
    def called(self) -> str:
        """The name by which people know it."""
        return self.own_name or self.name

    @property
    def passes_on(self) -> bool:
        """Whether what is made of the model has to bear the same licence."""
        return self.name not in ("apache-2.0", "mit")


RAIL = (
    "You may use the model, share it and sell what you make with it, but not for what the licence's list of forbidden "
    "uses names, such as harming or deceiving people or breaking the law. Whoever passes the model on, or a model made "
    "of it, has to pass these restrictions on."
)
LICENCES = {
    licence.called: licence
    for licence in (
        Licence("apache-2.0", "Apache 2.0", "It may be used for anything. Keep its notices, and say what was changed."),
        Licence("mit", "MIT", "It may be used for anything. Keep its notice."),
        Licence("openrail++", "CreativeML Open RAIL++-M", RAIL),
        Licence("creativeml-openrail-m", "CreativeML Open RAIL-M", RAIL),
        Licence(
            "other", "Stability AI Community License",
            "Free for research, for non-commercial use, and for commercial use by whoever earns less than a million US "
            "dollars a year; others need a licence from Stability AI. Whoever passes the model on, or a model made of "
            "it, has to pass the licence on and say that it is powered by Stability AI. A policy forbids harmful uses.",
            "stabilityai-ai-community", "https://stability.ai/community-license-agreement",
            "Powered by Stability AI. This Stability AI Model is licensed under the Stability AI Community License, "
            "Copyright © Stability AI Ltd. All Rights Reserved",
        ),
        Licence(
            "other", "FLUX.1 [dev] Non-Commercial License",
            "Not for commercial use of the model or of models made of it; that needs a licence from Black Forest Labs. "
            "Whoever passes the model on, or a model made of it, has to do so under the same licence.",
            "flux-1-dev-non-commercial-license",
            "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
            "The FLUX.1 [dev] Model is licensed by Black Forest Labs. Inc. under the FLUX.1 [dev] Non-Commercial "
            "License. Copyright Black Forest Labs. Inc. IN NO EVENT SHALL BLACK FOREST LABS, INC. BE LIABLE FOR ANY "
            "CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT "
            "OF OR IN CONNECTION WITH USE OF THIS MODEL.",
        ),
    )
}  # fmt: skip
BASES = (  # pattern of a hub id, and the licence of these models
    (r"stabilityai/stable-diffusion-xl-base-1\.0", "openrail++"),
    (r"(stabilityai|sd2-community)/stable-diffusion-2(-1)?(-base)?", "openrail++"),
    (r"(runwayml|stable-diffusion-v1-5)/stable-diffusion-v1-5", "creativeml-openrail-m"),
    (r"compvis/stable-diffusion-v1-[1-4]", "creativeml-openrail-m"),
    (r"stabilityai/stable-diffusion-3(-medium(-diffusers)?|\.5-(medium|large)(-turbo)?)", "stabilityai-ai-community"),
    (r"black-forest-labs/flux\.1-dev", "flux-1-dev-non-commercial-license"),
    (r"black-forest-labs/flux\.1-schnell|tongyi-mai/z-image(-turbo)?", "apache-2.0"),
)  # fmt: skip
KINDS = {  # of a pipeline: what such models are called, and the licence of those that they are made of
    "StableDiffusion3Pipeline": ("Stable Diffusion 3", "stabilityai-ai-community"),
    "FluxPipeline": ("FLUX.1 dev", "flux-1-dev-non-commercial-license"),
}
HOW = (
    "Look at the page of that model and give its licence with --license, by the hub's name for it, such as openrail++ "
    "or apache-2.0. Where the base is a model of the hub, --base-model OWNER/NAME may be enough."
)


def licence_of_id(hub_id: str) -> Licence | None:
    """The licence of a model on the hub, where it is one that is known here."""
    name = re.split(r"[@:]", hub_id)[0].lower()
    return next((LICENCES[licence] for pattern, licence in BASES if re.fullmatch(pattern, name)), None)


def licence_of_kind(opened: Opened) -> tuple[str, Licence] | None:
    """How a model's kind is called, and its licence, where all models of this kind come from one maker's."""
    files = opened.files
    if files.pipeline_class == "FluxPipeline" and not files.config(opened.denoiser_part).get("guidance_embeds"):
        return None  # schnell and what was made of it may be passed on under any licence
    if files.pipeline_class not in KINDS:
        return None
    called, licence = KINDS[files.pipeline_class]
    return called, LICENCES[licence]


def licence_of_card(about: Mapping[str, Any]) -> Licence | None:
    """The licence that the head of a model's own card names."""
    name, own_name = about.get("license"), about.get("license_name")
    if isinstance(name, list):
        name = name[0] if len(name) == 1 else None
    if not isinstance(name, str) or name == "unknown":
        return None
    own = str(own_name) if name == "other" and own_name else ""
    if name == "other" and not own:
        return None
    link = about.get("license_link")
    return LICENCES.get(own or name) or Licence(name, own or name, "", own, str(link) if link else "")


def read_card(folder: Path) -> Mapping[str, Any]:
    """The head of a model folder's ``README.md``; empty where it has none."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except Exception:  # a card that anybody wrote in any way
        return {}


def inherited(
    base: str, folder: Path | None, given: str | None, ask: Callable[[str], Mapping[str, Any]] | None = None,
    kind: tuple[str, Licence] | None = None,
) -> Licence | None:  # fmt: skip
    """The licence of what was made of a model; None where it is not known.

    ``base`` is the model's hub id or "", ``folder`` where it lies. ``ask`` fetches the head of a card from the hub.
    ``kind`` is that of :func:`licence_of_kind`, which counts where neither an id nor a card is there.
    MapoError where ``given`` is another licence than the base's, which has to be passed on.
    """
    if given is not None and not LICENCE.fullmatch(given):
        raise MapoError(f"--license is {given!r}; write the hub's name for it, such as openrail++, mit or other.")
    found = licence_of_id(base) if base else None
    if found is None and folder is not None:
        found = licence_of_card(read_card(folder))
    if found is None and base and ask is not None:
        found = licence_of_card(ask(base))
    if found is None and not base and kind is not None:
        found = kind[1]
        if given not in (None, found.name, found.called):
            raise MapoError(
                f"--license is {given}, but the base is a model of the kind of {kind[0]}, and these are under "
                f"{found.title} ({found.called}), which has to be passed on. Leave --license out. If this base has "
                "another licence, name it with --base-model OWNER/NAME, or write the licence into its README.md."
            )
    if given is None:
        return found
    if found is not None and found.passes_on and given not in (found.name, found.called):
        raise MapoError(
            f"--license is {given}, but the base is under {found.title} ({found.called}), which has to be passed on. "
            "Leave --license out."
        )
    if found is not None and given in (found.name, found.called):
        return found
    return LICENCES.get(given) or Licence(given, given)
