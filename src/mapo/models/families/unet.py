"""What the families with a UNet share: UNet2DConditionModel, and a DDPM."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from mapo.errors import MapoError
from mapo.models.families.latent import LatentModel
from mapo.models.family import Layout
from mapo.models.kinds import REMEDY, SCHEDULER, UNET
from mapo.models.noise import Ddpm, Process


class UNetModel(LatentModel):
    """A model that denoises with a UNet. What differs between families are its text encoders and what it is told."""

    denoiser_part = "unet"
    denoiser_kind = UNet2DConditionModel
    denoiser_values = UNET
    denoiser_needs = ("sample_size",)
    scheduler_values = SCHEDULER

    @abstractmethod
    def check_unet(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the UNet is told other things than this family's."""

    @cached_property
    def process(self) -> Process:
        """The schedule that the model's scheduler names: its betas, rescaled if it says so, and what it predicts."""
        return Ddpm.from_scheduler(self.files.config("scheduler"), self.files.config_path("scheduler"))

    @cached_property
    def layout(self) -> Layout:
        """As many halvings after the VAE's as the UNet has blocks but one."""
        unet = self.files.config("unet")
        halvings = len(unet.get("block_out_channels") or (320, 640, 1280, 1280)) - 1
        multiple, side = self.stride * 2**halvings, unet["sample_size"] * self.stride
        return Layout(self.channels, self.stride, multiple, side, drawn=self.stride)

    def check_denoiser(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the UNet does not fit the VAE, was distilled, or is told other things than this family's."""
        latent, taken, given = self.channels, config.get("in_channels") or 4, config.get("out_channels") or 4
        if taken != latent:
            raise MapoError(
                f"{path} takes {taken} channels, the VAE gives {latent}: a model for editing or inpainting."
            )
        if given != taken:
            raise MapoError(f"{path} takes {taken} channels and gives {given}; training needs as many. {REMEDY}")
        if config.get("time_cond_proj_dim") is not None:
            raise MapoError(
                f"{path} has time_cond_proj_dim, so the model was distilled with its guidance built in. Train the "
                "model that it was made from."
            )
        self.check_unet(config, path)
