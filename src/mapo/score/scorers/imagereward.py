"""ImageReward (arXiv 2304.05977): how people would like a picture for its prompt, from BLIP and a small head.

A ViT-L/16 sees the picture, a BERT with cross attention to it reads the prompt, and five linear layers turn the state
of its first token into a number, which is brought to mean 0 and deviation 1 of the authors' own pictures. On the BLIP
classes of transformers, in float32; pictures are prepared by PIL.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from mapo.errors import MapoError, reason
from mapo.pretrained import TOKENIZER, Repository, computing, find_files, quiet, read_json_object
from mapo.score.scorers import check_inputs
from mapo.score.scorers.checkpoint import check_shapes, find_checkpoint, read_tensors
from mapo.score.scorers.similarity import device, join, told_of_cuts

WEIGHTS = Repository("THUDM/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72")
WORDS = Repository("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
FILE, CONFIG = "ImageReward.pt", "med_config.json"
CENTRE, SPREAD = 0.16717362830052426, 1.0333394966054072  # of the rewards, in the authors' code
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the pixels
TOKENS = 35
HEAD_WIDTH = 64  # of a BLIP vision transformer of either size
NAMES = (  # of the checkpoint → of the classes of transformers
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
)
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names of :func:`network`, without those that take no part in the number."""
    result = {}
    for name, tensor in weights.items():
        if not name.startswith(UNUSED):
            found = next((re.sub(old, new, name) for old, new in NAMES if re.match(old, name)), name)
            result[found] = tensor
    return result


def network(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.ModuleDict:
    """``vision``, ``text`` and ``head``, not loaded yet, as large as renamed weights and ``med_config.json`` say."""
    patches = weights["vision.embeddings.position_embedding"]
    kernel = weights["vision.embeddings.patch_embedding.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    layers = {name.split(".")[3] for name in weights if name.startswith("vision.encoder.layers.")}
    vision = transformers.BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=patch * round((patches.shape[1] - 1) ** 0.5),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,  # BLIP's; the class has another default
    )
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    others = ("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id")
    text = transformers.BlipTextConfig(
        **{name: config[name] for name in sizes},
        **{name: config[name] for name in others if name in config},
        encoder_hidden_size=width,
        is_decoder=True,  # so that it has cross attention; nothing is decoded
    )
    ends = (text.hidden_size, 1024, 128, 64, 16, 1)
    lines = [nn.Linear(a, b) for a, b in itertools.pairwise(ends)]
    head = nn.Sequential(lines[0], nn.Dropout(), lines[1], nn.Dropout(), lines[2], nn.Dropout(), lines[3], lines[4])
    parts = {"vision": transformers.BlipVisionModel(vision), "head": head}
    return nn.ModuleDict({**parts, "text": transformers.BlipTextModel(text, add_pooling_layer=False)})


def pixels_of(picture: Image.Image, side: int) -> Tensor:
    """A picture as "3 side side": the shorter side resized (bicubic), the middle cropped, CLIP's mean and deviation."""
    width, height = picture.size
    short = min(width, height)
    resized = picture.resize((int(side * width / short), int(side * height / short)), Image.Resampling.BICUBIC)
    left, top = round((resized.width - side) / 2), round((resized.height - side) / 2)
    cropped = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    return torch.from_numpy((cropped - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).permute(2, 0, 1)


class ImageReward:
    """ImageReward, without bounds, about −2 … 2; higher is better.

    A source of the user's is a checkpoint, or a folder or repository with one (``.pt`` or ``.safetensors``), beside it
    ``med_config.json`` and, if it has its own, the tokenizer. Weights are loaded when they are first asked for.
    """

    metrics: tuple[str, ...] = ("imagereward",)
    needs = ((WEIGHTS, (FILE,)), (WEIGHTS, (CONFIG,)), (WORDS, TOKENIZER))
    needs_reference = False
    whole_prompts = False
    version = "1"

    def __init__(self, source: str | None = None) -> None:
        found = find_checkpoint("imagereward", source or WEIGHTS, FILE)
        self.path, folder = found.path, found.path.parent
        beside = source if source and not Path(source).expanduser().is_file() else str(folder)
        config = find_files("imagereward", beside if source else WEIGHTS, (CONFIG,))
        has_own = source and (folder / "tokenizer.json").is_file()
        words = find_files("imagereward", beside if has_own else WORDS, TOKENIZER)
        self.name = f"imagereward@{found.name}" if source else "imagereward"
        self.revision = join(found.revision, config.revision, words.revision)
        self.config = read_json_object("imagereward", config.folder / CONFIG)
        self.tokenizer = _tokenizer(words.folder, int(self.config.get("vocab_size", 0)))
        self.device, self.cut, self._lock = device(), dict[str, int](), threading.Lock()

    @cached_property
    def model(self) -> Any:
        """The network, in float32; weights that do not fit it to the last one are refused."""
        weights = renamed(read_tensors("imagereward", self.path))
        try:
            with quiet():
                model = network(weights, self.config)
        except (KeyError, TypeError, ValueError) as error:
            raise MapoError(f"imagereward: {self.path} and its {CONFIG} are not an ImageReward ({error!r}).") from None
        check_shapes("imagereward", self.path, weights, model.state_dict(), "an ImageReward model")
        model.load_state_dict(weights)
        return model.float().eval().to(self.device)

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """How much people would like each picture for its prompt."""
        check_inputs("imagereward", pictures, prompts)
        return self.score([self.prepare(picture) for picture in pictures], prompts)

    def prepare(self, picture: Image.Image) -> Tensor:
        """What the network sees of a picture, "3 s s"; any thread may ask."""
        with self._lock:
            side = self.model["vision"].config.image_size
        return pixels_of(picture, side)

    def score(
        self, prepared: Sequence[Tensor], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """The same of prepared pictures."""
        if not prepared:
            return {"imagereward": []}
        with computing():
            seen = self.model["vision"](pixel_values=torch.stack(list(prepared)).to(self.device)).last_hidden_state
            read = self.model["text"](**self._tokens(prompts), encoder_hidden_states=seen).last_hidden_state
            rewards = (self.model["head"](read[:, 0]).squeeze(-1).double() - CENTRE) / SPREAD
        return {"imagereward": rewards.tolist()}

    def _tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and mask "n t", cut to :data:`TOKENS` with the end of text kept, as the authors do."""
        for text, ids in zip(prompts, self.tokenizer(list(prompts), verbose=False)["input_ids"], strict=True):
            if len(ids) > TOKENS:
                self.cut[text] = len(ids)
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def notes(self) -> list[str]:
        """What was cut."""
        return told_of_cuts("imagereward", self.cut, f"than the {TOKENS} tokens that it reads")


def _tokenizer(folder: Path, most: int) -> Any:
    """BERT's tokenizer with the two tokens that BLIP adds, so that they are not words of a prompt."""
    try:
        with quiet():
            tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
            tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    except Exception as error:
        raise MapoError(f"imagereward: the tokenizer in {folder} is damaged ({reason(error)}).") from None
    if len(tokenizer) > most:
        raise MapoError(
            f"imagereward: the tokenizer in {folder} has {len(tokenizer)} tokens and the model reads {most}. Put the "
            "tokenizer of bert-base-uncased there, or none."
        )
    return tokenizer
