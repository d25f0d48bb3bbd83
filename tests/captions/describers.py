"""Small models of random weights that describe pictures: of the real classes, in the layout of the hub."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

WORDS = ["red", "fox", "gate", "snow", "boat", "cup", "owl", "wall", "green", "harbour"]


def tokenizer(specials, **names):
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=specials[3]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def make_blip(folder, seed=0):
    torch.manual_seed(seed)
    words = tokenizer(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")  # fmt: skip
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **size, "vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 64, "bos_token_id": 1,
            "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0, "initializer_range": 1.0, "projection_dim": 16,
        },
        vision_config={**size, "image_size": 16, "patch_size": 8, "initializer_range": 1.0},
        projection_dim=16, image_text_hidden_size=16,
    )  # fmt: skip
    BlipForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def make_florence(folder, seed=0):
    torch.manual_seed(seed)
    words = tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>", "<image>"], pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    config = Florence2Config(
        text_config={
            "model_type": "bart", "vocab_size": len(words), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
            "max_position_embeddings": 128, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
            "decoder_start_token_id": 2, "forced_eos_token_id": 2, "init_std": 1.0,
        },
        vision_config={
            "model_type": "florence_vision", "embed_dim": [8, 8], "num_heads": [2, 2], "num_groups": [2, 2], "depths": [1, 1],
            "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
            "window_size": 4, "projection_dim": 16, "max_position_embeddings": 8,
        },
        image_token_id=4,
    )  # fmt: skip
    model = Florence2ForConditionalGeneration(config)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=False, image_seq_length=17).save_pretrained(folder)  # fmt: skip
    return folder
