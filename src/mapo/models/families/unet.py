"""What the families with a UNet share: UNet2DConditionModel, and a DDPM."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from mapo.errors import MapoError
from mapo.models.families.clip import tokenize, tokenize_in_chunks
from mapo.models.families.latent import LatentModel
from mapo.models.family import Cond, Layout, TextEncoder, Texts, filled_up
from mapo.models.noise.process import Ddpm, Process
from mapo.models.parts.kinds import SCHEDULER, UNET
from mapo.models.token import lay_token


class UNetModel(LatentModel):
    """A model that denoises with a UNet. What differs between families are its text encoders and what it is told."""

    denoiser_part = "unet"
    usual_inputs = 4
    denoiser_kind = UNet2DConditionModel
    denoiser_values = UNET
    denoiser_needs = ("sample_size",)
    scheduler_values = SCHEDULER
    text_lora_targets = ("q_proj", "k_proj", "v_proj", "out_proj")  # of CLIP's attention
    penultimate_of: ClassVar[tuple[str, ...]] = ()  # text encoders of whose last layer nothing is read

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

    # ------------------------------------------------------------------ prompts

    def check_long_prompts(self) -> None:
        """Chunks and cuts are both possible."""

    def load_text_encoders(self, device: Any, dtype: Any = torch.float32, loras: bool = True) -> dict[str, nn.Module]:
        """By their parts, in the order in which they are used."""
        loaded = {part: self.loaded(part, dtype, loras) for part in self.text_encoders}
        return {part: encoder.to(device).eval() for part, encoder in loaded.items()}

    def loaded(self, part: str, dtype: Any = torch.float32, loras: bool = True) -> Any:
        """Text encoders have the row of the token that was learned."""
        network, encoders = super().loaded(part, dtype, loras), list(self.text_encoders)
        if self.files.token is not None and part in encoders:
            place = encoders.index(part)
            tokenizer = self._own_tokenizers[self.tokenizer_parts[place]]
            lay_token(network, tokenizer, self.files.token, place, len(encoders))
        return network

    def unread_text_layers(self, part: str, encoder: nn.Module) -> tuple[str, ...]:
        """The last layer of an encoder of which only the penultimate states are read."""
        stacks = [(name, m) for name, m in encoder.named_modules() if name.endswith("layers")]
        return tuple(f"{name}.{len(m) - 1}." for name, m in stacks) if part in self.penultimate_of else ()

    @property
    def prompt_numbers(self) -> int:
        """Of the longest prompt, where long ones are read in chunks."""
        return super().prompt_numbers * self.files.chunks

    @cached_property
    def _own_tokenizers(self) -> dict[str, Any]:
        return dict(zip(self.tokenizer_parts, self.tokenizers(), strict=True))

    def tokens(self, prompts: Sequence[str]) -> list[Cond]:
        """Of each prompt the tokens that each encoder reads, "k l", as ``tokens`` and ``tokens_2``.

        ``…_mask`` is 1 where a token is the prompt's own. k is 1, unless long prompts are read in chunks.
        """
        found: list[Cond] = [{} for _ in (*prompts, "")]
        for part, tokenizer in self._own_tokenizers.items():
            name = part.replace("tokenizer", "tokens")
            if self.files.long_prompts == "chunk":
                rows = tokenize_in_chunks(tokenizer, [*prompts, ""])
            else:
                ids, mask = tokenize(tokenizer, [*prompts, ""])
                rows = list(zip(ids[:, None], mask[:, None], strict=True))
            for tokens, (ids, mask) in zip(found, rows, strict=True):
                tokens |= {name: ids, f"{name}_mask": mask}
        empty = found.pop()
        return [filled_up(tokens, empty, max(map(len, tokens.values()))) for tokens in found]

    @abstractmethod
    def encode_tokens(self, encoders: Sequence[Any], tokens: Cond) -> Cond:
        """What the encoders make of :meth:`tokens` of n prompts, "n k l", with gradients where they have some."""

    def text_encoder(self, device: Any, dtype: Any = torch.float32) -> TextEncoder:
        """Its text encoders, in float32, as one function."""
        encoders = tuple(self.load_text_encoders(device).values())

        @torch.no_grad()
        def encode(prompts: Sequence[str]) -> Texts:
            return self.encode_prompts(encoders, self.tokens(prompts))

        return encode

    def encode_prompts(self, encoders: Sequence[Any], prompts: Sequence[Cond]) -> Texts:
        """What the encoders make of the tokens of some ``prompts``, each of as many chunks as it has.

        The first chunks go through the encoders together, so they become what they are where prompts are cut.
        """
        device = encoders[0].device
        first = self.encode_tokens(
            encoders, _rows([{k: v[:1] for k, v in tokens.items()} for tokens in prompts], device)
        )
        if self.files.long_prompts == "cut":
            return first
        states = list(first["prompt_embeds"])
        rest = [(place, tokens) for place, prompt in enumerate(prompts) for tokens in _further_chunks(prompt)]
        if rest:
            more = self.encode_tokens(encoders, _rows([tokens for _, tokens in rest], device))["prompt_embeds"]
            for (place, _), state in zip(rest, more, strict=True):
                states[place] = torch.cat([states[place], state])
        return {**first, "prompt_embeds": states}

    def pipeline_texts(self, pipeline: Any, prompts: Sequence[str], negative_prompt: str) -> list[Cond]:
        """Each at least as long as the run's prompts were, and both filled up with chunks of the empty prompt."""
        encoders = [getattr(pipeline, part) for part in self.text_encoders]
        asked = self.tokens([*prompts, negative_prompt, ""])
        negative, empty = (_one(self.encode_prompts(encoders, [tokens])) for tokens in asked[-2:])
        texts, found = self.encode_prompts(encoders, asked[:-2]), []
        for place, tokens in enumerate(asked[:-2]):
            own = {name: values[place] for name, values in texts.items()}
            chunks = max(self.files.chunks, *(len(t["tokens"]) for t in (tokens, asked[-2])))
            positive, negative_one = filled_up(own, empty, chunks), filled_up(negative, empty, chunks)
            if not negative_prompt and self.zero_without_prompt:
                negative_one = {name: torch.zeros_like(value) for name, value in positive.items()}
            found.append(_for_pipeline(positive) | _for_pipeline(negative_one, "negative_"))
        return found

    # ------------------------------------------------------------------ the UNet

    def check_denoiser(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the UNet was distilled, or is told other things than this family's."""
        if config.get("time_cond_proj_dim") is not None:
            raise MapoError(
                f"{path} has time_cond_proj_dim, so the model was distilled with its guidance built in. Train the "
                "model that it was made from."
            )
        self.check_unet(config, path)


def _rows(prompts: Sequence[Cond], device: Any) -> Cond:
    """Tokens of equally many chunks as one, "n k l", on ``device``."""
    return {name: torch.stack([tokens[name] for tokens in prompts]).to(device) for name in prompts[0]}


def _further_chunks(tokens: Cond) -> list[Cond]:
    """The chunks of a prompt behind its first one, "1 l" each."""
    return [{name: values[k : k + 1] for name, values in tokens.items()} for k in range(1, len(tokens["tokens"]))]


def _one(texts: Texts) -> Cond:
    return {name: values[0] for name, values in texts.items()}


def _for_pipeline(text: Cond, side: str = "") -> Cond:
    """One prompt by the names of a pipeline's arguments, "1 …"."""
    names = {"prompt_embeds": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}
    return {f"{side}{names[name]}": value[None] for name, value in text.items()}
