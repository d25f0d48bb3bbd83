"""What the families with a transformer share: rectified flow, and an AutoencoderKL whose latents are shifted."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from mapo.errors import MapoError
from mapo.models.families.latent import LatentModel
from mapo.models.noise.flow import RectifiedFlow
from mapo.models.noise.process import Process
from mapo.models.parts.kinds import FLOW_SCHEDULER


class FlowModel(LatentModel):
    """A model that denoises with a transformer, trained by flow matching."""

    denoiser_part = "transformer"
    scheduler_values = FLOW_SCHEDULER
    usual_shift: ClassVar[float]  # of the latents

    @property
    def patch(self) -> int:
        """The side of a token, in elements of the latent."""
        return 2

    @cached_property
    def process(self) -> Process:
        """The flow that the model's scheduler names, with its shift."""
        config, path = self.files.config("scheduler"), self.files.config_path("scheduler")
        return RectifiedFlow.from_scheduler(config, path, self.patch)

    def check_vae(self) -> None:
        """MapoError where the VAE's file does not say how latents are shifted; pipelines would stop or guess."""
        super().check_vae()
        if self.vae_config.get("shift_factor") is None:
            raise MapoError(
                f"{self.files.config_path('vae')} has no shift_factor. The usual VAE of this kind of model has "
                f'{self.usual_shift}. Write the right one into the file: "shift_factor": {self.usual_shift}.'
            )
