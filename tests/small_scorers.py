"""Small models of the classes behind scorers, and what their tests share."""

import json
import random
import shutil

import pytest
import torch
from PIL import Image

MEAN, STD = (0.4814, 0.4578, 0.4082), (0.2686, 0.2613, 0.2757)
SIZES = [(32, 32), (70, 41), (41, 70), (33, 96), (20, 11), (1, 1), (3, 3), (5, 1), (3, 64), (64, 3)]
SIGLIP_WORDS = ["</s>", "<unk>", "a", "red", "circle", "zebra", "two", "of", "them"]
PROMPTS = ["a small red circle", "Zebra, two of them!", "a blue heart on a gray background", "Bär 🐻"]


def noise(size, seed=0):
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def lively(model, std=0.3, seed=3):
    """Weights far from their small beginnings, so that pictures and prompts matter."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def save_clip(folder, side=32, tokens=24, width=12):
    """A CLIPModel with tokenizer, in a folder without what prepares its pictures."""
    from transformers import CLIPConfig, CLIPModel

    from mapo.lab.mini.parts import make_tokenizer

    tokenizer = make_tokenizer(folder)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    layers["projection_dim"] = width
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokens}
    words |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=layers | words,
        vision_config=layers | {"image_size": side, "patch_size": 8},
        projection_dim=width,
    )
    lively(CLIPModel(config)).save_pretrained(folder)
    return folder


def save_siglip(folder):
    """A whole model of SigLIP's class, of side 32, eight tokens and the words below."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = layers | {"vocab_size": len(SIGLIP_WORDS), "max_position_embeddings": 8, "projection_size": 16}
    text |= {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = SiglipConfig(text_config=text, vision_config=layers | {"image_size": 32, "patch_size": 8})
    lively(SiglipModel(config)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(SIGLIP_WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 0)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="</s>", unk_token="<unk>", model_max_length=64
    )
    wrapped.save_pretrained(folder)
    save_processor(folder, "SiglipImageProcessor", (32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return folder


def save_dinov2(folder):
    """A whole model of DINOv2's class, which sees 28 of 36 pixels; it was made for more, as the published are."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=42, patch_size=7
    )
    lively(Dinov2Model(config), std=1).save_pretrained(folder)
    save_processor(folder, "BitImageProcessor", 36, 28)
    return folder


def save_processor(folder, kind, resize, crop=None, mean=MEAN, std=STD):
    """What prepares pictures: ``resize`` a side's length or (height, width), ``crop`` a side."""
    size = {"shortest_edge": resize} if isinstance(resize, int) else dict(zip(("height", "width"), resize, strict=True))
    settings = {
        "image_processor_type": kind, "size": size, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "resample": 3, "rescale_factor": 1 / 255, "image_mean": mean, "image_std": std,
    }  # fmt: skip
    settings |= {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}} if crop else {}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def by_hand(picture, resize, crop=None, mean=MEAN, std=STD):
    """The same in float64, "1 3 h w", with Pillow's resize alone."""
    if crop:
        short = min(picture.size)
        size = tuple(resize if length == short else resize * length // short for length in picture.size)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
        picture = picture.crop((left, top, left + crop, top + crop))
    else:
        picture = picture.resize(resize[::-1], Image.Resampling.BICUBIC)
    shape = (picture.height, picture.width, 3)
    pixels = torch.tensor(list(picture.tobytes()), dtype=torch.float64).reshape(shape) / 255
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]


def cosine(one, two):
    return float(one.flatten() @ two.flatten() / one.norm() / two.norm())


def check_order(scorer, *columns, tolerance=2e-4):
    """Batch size and order change nothing but rounding: all at once, one by one, and shuffled."""
    (metric,) = scorer.metrics
    whole = scorer(*columns)[metric]
    assert max(whole) - min(whole) > 100 * tolerance
    single = [scorer(*([value] for value in row))[metric][0] for row in zip(*columns, strict=True)]
    order = random.Random(1).sample(range(len(whole)), len(whole))
    turned = scorer(*([column[k] for k in order] for column in columns))[metric]
    assert whole == pytest.approx(single, abs=tolerance)
    assert [whole[k] for k in order] == pytest.approx(turned, abs=tolerance)


def place_in_hub(home, repository, folder, *names):
    """Puts files of a folder into the hub's cache ``home`` as its downloads do."""
    cache = home / f"models--{repository.name.replace('/', '--')}"
    place = cache / "snapshots" / repository.commit
    place.mkdir(parents=True)
    for name in names or [path.name for path in folder.iterdir()]:
        shutil.copy(folder / name, place / name)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(repository.commit)
