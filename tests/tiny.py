"""Makes small models of the real classes, and sets of pairs."""

import random
from collections.abc import Sequence
from pathlib import Path

from mapo.pairs import PairWriter
from mapo.sample.folder import png_bytes

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def _tokenizer(folder: Path):
    from mapo.lab.mini.parts import make_tokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    return make_tokenizer(folder.parent / f"{folder.name}-tokenizer")


def _text(tokenizer, width: int, layers: int = 2, **settings):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        **{
            "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **settings,
        },
    )


def _unet(**settings):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "attention_head_dim": (2, 4),
            "norm_num_groups": 4,
            **settings,
        }
    )


def make_vae(**settings):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **{"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4, "sample_size": 16, **settings},
    )


def make_sdxl(
    folder: Path, prediction_type: str = "epsilon", seed: int = 0, tokenizer=None, text=None, **unet_settings
) -> Path:
    """A StableDiffusionXLPipeline folder with random weights; other sizes than the built-in model's."""
    import torch
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tokenizer or _tokenizer(folder)
    torch.manual_seed(seed)
    unet = _unet(
        **{
            "cross_attention_dim": 40,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 48,
            **unet_settings,
        }
    )
    vae = make_vae(scaling_factor=0.7)
    schedule = {**SCHEDULE, "prediction_type": prediction_type}
    scheduler = (
        EulerDiscreteScheduler(**schedule) if prediction_type == "epsilon" else DDIMScheduler(**schedule, **ZERO_SNR)
    )
    first = CLIPTextModel(_text(tokenizer, 16, **(text or {})))
    second = CLIPTextModelWithProjection(_text(tokenizer, 24, **(text or {})))
    StableDiffusionXLPipeline(
        vae, first, second, tokenizer, tokenizer, unet, scheduler, force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_sd(
    folder: Path, prediction_type: str = "epsilon", seed: int = 0, tokenizer=None, layers: int = 3, text=None,
    **unet_settings,
) -> Path:  # fmt: skip
    """A StableDiffusionPipeline folder with random weights, with a safety checker as the published ones have."""
    import torch
    from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextModel

    tokenizer = tokenizer or _tokenizer(folder)
    torch.manual_seed(seed)
    unet = _unet(**{"cross_attention_dim": 24, **unet_settings})
    schedule = {**SCHEDULE, "prediction_type": prediction_type, "clip_sample": False, "set_alpha_to_one": False}
    scheduler = (
        PNDMScheduler(**{k: v for k, v in schedule.items() if k != "clip_sample"}, skip_prk_steps=True)
        if prediction_type == "epsilon"
        else DDIMScheduler(**schedule)
    )
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
        "patch_size": 4,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    StableDiffusionPipeline(
        make_vae(), CLIPTextModel(_text(tokenizer, 24, layers, **(text or {}))), tokenizer, unet, scheduler, checker,
        processor,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_t5(width: int = 32):
    """A small T5 with a tokenizer of letters."""
    import string

    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    words = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, *string.digits, *string.punctuation, "▁a", "red"]
    tokenizer = T5Tokenizer(vocab=[(word, -float(k)) for k, word in enumerate(words)], extra_ids=0)
    tokenizer.model_max_length = 512
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                 feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    )  # fmt: skip
    return tokenizer, encoder


def _flow_vae():
    return make_vae(scaling_factor=1.4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)


def make_sd3(folder: Path, seed: int = 0, t5: bool = True, shift: float = 3.0, text=None, **settings) -> Path:
    """A StableDiffusion3Pipeline folder with random weights, with or without its T5."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    tokenizer = _tokenizer(folder)
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        **{
            "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
            "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 48, "caption_projection_dim": 16,
            "pooled_projection_dim": 48, "pos_embed_max_size": 8, "qk_norm": "rms_norm", **settings,
        }
    )  # fmt: skip
    first = CLIPTextModelWithProjection(_text(tokenizer, 16, **(text or {})))
    second = CLIPTextModelWithProjection(_text(tokenizer, 24, **(text or {})))
    t5_tokenizer, encoder = make_t5(width=48) if t5 else (None, None)
    StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=shift), _flow_vae(), first, tokenizer, second, tokenizer,
        encoder, t5_tokenizer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_flux(
    folder: Path, seed: int = 0, guidance: bool = True, dynamic: bool = True, width: int = 32, **settings
) -> Path:
    """A FluxPipeline folder with random weights: dev, or schnell where it is told no guidance; ``width`` is T5's."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    tokenizer = _tokenizer(folder)
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        **{
            "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
            "num_attention_heads": 2, "joint_attention_dim": width, "pooled_projection_dim": 24,
            "guidance_embeds": guidance, "axes_dims_rope": (2, 2, 4), **settings,
        }
    )  # fmt: skip
    t5_tokenizer, encoder = make_t5(width)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if dynamic else 1.0, use_dynamic_shifting=dynamic)
    FluxPipeline(
        scheduler, _flow_vae(), CLIPTextModel(_text(tokenizer, 24)), tokenizer, encoder, t5_tokenizer, transformer
    ).save_pretrained(folder)
    (folder / "sampling.json").write_text('{"width": 16, "height": 16}')
    return folder


def make_z_image(folder: Path, seed: int = 0) -> Path:
    """A ZImagePipeline folder with random weights."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner = Tokenizer(models.BPE({word: k for k, word in enumerate([*special, *letters])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=special[0], eos_token=special[2], extra_special_tokens=special[1:]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=24,
        axes_dims=[2, 2, 4], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():  # those that the class leaves empty
        if name.endswith("pad_token"):
            parameter.data.normal_()
    qwen = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024,
    )  # fmt: skip
    ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0), _flow_vae(), Qwen3Model(qwen), tokenizer, transformer
    ).save_pretrained(folder)
    (folder / "sampling.json").write_text('{"width": 16, "height": 16}')
    return folder


MAKERS = {  # one for each family
    "StableDiffusionXLPipeline": make_sdxl, "StableDiffusionPipeline": make_sd,
    "StableDiffusion3Pipeline": make_sd3, "FluxPipeline": make_flux, "ZImagePipeline": make_z_image,
}  # fmt: skip


UNETS = ("StableDiffusionXLPipeline", "StableDiffusionPipeline")  # of which a model may predict v


def make_lora(model, file: Path, seed: int = 0, rank: int = 2) -> Path:
    """A LoRA beside the attention of a model's denoiser (``find_model``), with random weights."""
    import torch

    from mapo.models import open_model
    from mapo.models.loras.layers import Layer
    from mapo.models.loras.write import write_layers
    from mapo.models.names.kohya import layer_shapes

    opened = open_model(model)
    part, generator = opened.denoiser_part, torch.Generator().manual_seed(seed)
    shapes = {name: s for name, s in layer_shapes(opened.outline(part)).items() if name.endswith(("to_q", "to_k"))}
    layers = [
        Layer(part, name, torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator), 1.0)
        for name, shape in shapes.items()
    ]  # fmt: skip
    write_layers(file, layers)
    return file


def make_pairs(
    folder: Path, count: int = 12, seed: int = 0, size: tuple[int, int] = (20, 16), prompts: Sequence[str] = (), **rest
) -> Path:  # fmt: skip
    """A set of ``count`` pairs of noise pictures, of ``prompts`` in turn; else every third prompt is used twice."""
    from PIL import Image

    rng = random.Random(seed)

    def picture() -> bytes:
        return png_bytes(Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])))

    with PairWriter(folder, {"made": "by a test"}) as writer:
        for k in range(count):
            prompt = prompts[k % len(prompts)] if prompts else f"a small red circle number {k - (k % 3 == 2)}"
            writer.add_pair(prompt, picture(), picture(), split="train", **rest)
    return folder


def chosen_alone(pairs: Path, folder: Path) -> Path:
    """The set of the same prompts, chosen pictures and splits, without rejected pictures."""
    from mapo.pairs import PairSet

    source = PairSet(pairs)
    with PairWriter(folder, {"made": "by a test"}) as writer:
        for pair in source:
            writer.add_pair(pair.prompt, source.image_bytes(pair.chosen), None, split=pair.split, weight=pair.weight)
    return folder
