"""HPS v2.0 and v2.1 (arXiv 2306.09341): 100 · cosine of a CLIP ViT-H-14 trained on people's choices.

Published as open_clip checkpoints, which are read here onto transformers' class. Pictures are prepared as the authors'
package does: the longer side is resized and the rest filled with black, so that nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from mapo.errors import MapoError, reason
from mapo.pretrained import MODEL, TOKENIZER, Repository, check_type, find_files, load_model, load_part, quiet
from mapo.score.scorers.checkpoint import Checkpoint, check_shapes, checkpoints, find_checkpoint, read_tensors
from mapo.score.scorers.clip import PICKSCORE_PROCESSOR
from mapo.score.scorers.similarity import Similarity, join

HPS = Repository("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")
PUBLISHED = {  # the first digits of a file's sha256 → what it is, by the pages of that repository
    "07cb0d2062623220": "hps-v2.0",  # HPS_v2_compressed.pt; a file called HPS_v2_1.pt goes round that is this one
    "9defdb2ba952d35e": "hps-v2.0",  # HPS_v2.pt
    "c57a38fb4a2f7e7c": "hps-v2.1",  # HPS_v2.1_compressed.pt
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PARTS = {  # open_clip's names of a block → transformers'
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
PLACES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}


def vit_h_14() -> Any:
    """open_clip's ViT-H-14 as transformers' configuration: GELU, not CLIP's quick one, and 80 channels a head."""
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    vision |= {"image_size": 224, "patch_size": 14}
    both = {"hidden_act": "gelu", "projection_dim": 1024}
    return transformers.CLIPConfig(text_config=text | both, vision_config=vision | both, projection_dim=1024)


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under transformers' names; an unknown name stays as it is."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tower, block, rest = name.rpartition("transformer.resblocks.")
        if name in TRANSPOSED:
            found[TRANSPOSED[name]] = tensor.T.contiguous()
        elif not block or tower not in ("", "visual."):
            found[PLACES.get(name, name)] = tensor
        else:
            number, _, part = rest.partition(".")
            layer = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
            part, _, kind = part.rpartition(".")
            if kind in ("in_proj_weight", "in_proj_bias") and tensor.ndim:  # queries, keys and values in one
                for letter, piece in zip("qkv", tensor.tensor_split(3), strict=True):
                    found[f"{layer}.self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}"] = piece.contiguous()
            else:
                found[f"{layer}.{PARTS.get(part, part)}.{kind}"] = tensor
    return found


def load_open_clip(kind: str, path: Path, config: Any) -> Any:
    """A CLIP model of that configuration with the weights of an open_clip checkpoint, key by key and shape by shape."""
    found = from_open_clip(read_tensors(kind, path))
    with torch.device("meta"):
        wanted = transformers.CLIPModel(config).state_dict()
    check_shapes(kind, path, found, wanted, "a CLIP model of open_clip in the size of ViT-H-14 or of its config.json")
    with quiet():
        return transformers.CLIPModel.from_pretrained(None, config=config, state_dict=found)


def prepare(side: int, pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as HPS v2's package prepares them, "n 3 side side".

    The longer side is resized to ``side`` (bicubic with antialiasing, on numbers that are not rounded to 8 bits or
    clipped), the shorter one filled with black on both sides, the odd pixel at the right or the bottom.
    """
    pixels = np.zeros((len(pictures), 3, side, side), np.float32)
    for number, picture in enumerate(pictures):
        scale = side / max(picture.size)
        width, height = (max(1, round(length * scale)) for length in picture.size)
        left, top = (side - width) // 2, (side - height) // 2
        for channel, band in enumerate(picture.split()):
            exact = Image.fromarray(np.asarray(band, np.float32) / 255)
            sized = exact.resize((width, height), Image.Resampling.BICUBIC)
            pixels[number, channel, top : top + height, left : left + width] = np.asarray(sized)
    mean, std = (np.array(value, np.float32).reshape(3, 1, 1) for value in (MEAN, STD))
    return torch.from_numpy((pixels - mean) / std)


class _Hps:
    """A version of HPS v2. Numbers of the two versions are not comparable."""

    kind: str
    file: str
    metrics: tuple[str, ...]
    needs_reference = False
    whole_prompts = False
    version = "1"
    foreign: str = ""  # the name of weights that are not known as published

    def __init__(self, source: str | None = None) -> None:
        load, config, weights, name = self._find(source)
        folder = Path(source).expanduser() if source else Path()
        own = source and any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        tokenizer = find_files(self.kind, source if source and own else PICKSCORE_PROCESSOR, TOKENIZER)
        self.name = f"{self.kind}@{name}" if source else self.kind
        self.revision = join(weights, tokenizer.revision)
        words = load_part(self.kind, tokenizer.folder, "CLIPTokenizerFast")
        side = config.vision_config.image_size
        self.similarity = Similarity(self.kind, load, partial(prepare, side), words)

    def _find(self, source: str | None) -> tuple[Callable[[], Any], Any, str, str]:
        """What loads the network, its configuration, revision and name.

        A folder's config.json tells the sizes of what is there; a file alone is a ViT-H-14.
        """
        folder = Path(source).expanduser() if source else Path()
        if not (source and (folder / "config.json").is_file()):
            found = self._known(find_checkpoint(self.kind, source or HPS, self.file))
            config = vit_h_14()
            return partial(load_open_clip, self.kind, found.path, config), config, found.revision, found.name
        check_type(self.kind, folder, "clip", "CLIP")
        try:
            with quiet():
                config = transformers.CLIPConfig.from_pretrained(folder)
        except Exception as error:
            raise MapoError(f"{self.kind}: {folder} is damaged ({reason(error)}).") from None
        if not checkpoints(folder):
            model = find_files(self.kind, str(source), MODEL)
            self.foreign = model.name
            return partial(load_model, self.kind, folder, "CLIPModel"), config, model.revision, model.name
        found = self._known(find_checkpoint(self.kind, str(source), self.file))
        revision = join(find_files(self.kind, str(source), ("config.json",)).revision, found.revision)
        return partial(load_open_clip, self.kind, found.path, config), config, revision, found.name

    def _known(self, found: Checkpoint) -> Checkpoint:
        """Refuse the file of the other version, which has the same names and shapes; remember one that nobody knows."""
        published = PUBLISHED.get(found.revision.rpartition("/")[2])
        if published not in (None, self.kind):
            raise MapoError(
                f"{self.kind}: {found.path} is the published file of {published}, whatever it is called; numbers of "
                f"the two cannot be compared. Write {published}@FILE, or give the file of {self.kind}."
            )
        self.foreign = "" if published else found.path.name
        return found

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """How much people would like each picture for its prompt; only differences at one prompt mean anything."""
        return {self.metrics[0]: (100 * self.similarity(pictures, prompts)).tolist()}

    def prepare(self, picture: Image.Image) -> Tensor:
        """What the network sees of a picture."""
        return self.similarity.prepare(picture)

    def score(
        self, prepared: Sequence[Tensor], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """The same of prepared pictures."""
        return {self.metrics[0]: (100 * self.similarity.cosines(prepared, prompts)).tolist()}

    def notes(self) -> list[str]:
        """What was cut, and whether the weights are the published ones."""
        if not self.foreign:
            return self.similarity.notes()
        return [
            *self.similarity.notes(),
            f"{self.kind}: {self.foreign} is not the published file; unless it holds the same weights, its numbers "
            "cannot be compared with published ones",
        ]


class HpsV20(_Hps):
    """HPS v2.0, which the authors' package scores with by default."""

    kind, file, metrics = "hps-v2.0", "HPS_v2_compressed.pt", ("hps_v2.0",)
    needs = ((HPS, (file,)), (PICKSCORE_PROCESSOR, TOKENIZER))


class HpsV21(_Hps):
    """HPS v2.1, trained later and on better data."""

    kind, file, metrics = "hps-v2.1", "HPS_v2.1_compressed.pt", ("hps_v2.1",)
    needs = ((HPS, (file,)), (PICKSCORE_PROCESSOR, TOKENIZER))
