"""Values that a model's JSON files cannot have: each is told with its file, for both families, before anything is made."""

import json
import shutil
from pathlib import Path

import pytest

from mapo.errors import MapoError
from mapo.models import find_model, open_model
from tiny import make_sd, make_sdxl

VAE, UNET = "vae/config.json", "unet/config.json"
TEXT, TOKENIZER = "text_encoder/config.json", "tokenizer/tokenizer_config.json"
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
GONE = object()


@pytest.fixture(scope="module", params=[make_sd, make_sdxl], ids=["sd", "sdxl"])
def model(request, tmp_path_factory) -> Path:
    return request.param(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture
def changed(model, tmp_path):
    """A copy of the model with other values in a JSON file; the file's text where the values are one."""

    def change(file: str, **values) -> Path:
        folder = tmp_path / "m"
        shutil.copytree(model, folder)
        path = folder / file
        config = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not GONE}))
        return folder

    return change


WRONG = [
    (VAE, {"block_out_channels": 5}, "block_out_channels 5; it has to be a list"),
    (VAE, {"block_out_channels": None}, "has no block_out_channels"),
    (VAE, {"block_out_channels": GONE}, "has no block_out_channels"),
    (VAE, {"block_out_channels": ["8", 16]}, "block_out_channels .*it has to be a list"),
    (VAE, {"block_out_channels": [8] * 900}, "block_out_channels .*…; it has to be a list of at most 16"),
    (VAE, {"down_block_types": []}, "down_block_types ..; it has to be a list of texts"),
    (VAE, {"down_block_types": ["DownEncoderBlock2D"]}, "1 values in down_block_types, but 2 in block_out_channels"),
    (VAE, {"down_block_types": ["x", "y"]}, "vae cannot be loaded"),
    (VAE, {"scaling_factor": "x"}, 'scaling_factor "x"; it has to be a number above 0'),
    (VAE, {"scaling_factor": []}, "scaling_factor"),
    (VAE, {"scaling_factor": 0}, "scaling_factor 0"),
    (VAE, {"scaling_factor": -1}, "scaling_factor -1"),
    (VAE, {"scaling_factor": float("nan")}, "scaling_factor NaN"),
    (VAE, {"scaling_factor": 10**400}, "scaling_factor 10"),
    (VAE, {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "3 values in latents_mean, for 4 channels"),
    (VAE, {"latents_mean": "x", "latents_std": [1.0] * 4}, 'latents_mean "x"'),
    (VAE, {"latents_mean": [], "latents_std": []}, "latents_mean"),
    (VAE, {"latents_mean": [0.0] * 4}, "has latents_mean alone"),
    (VAE, {"latents_std": [1.0] * 4}, "has latents_std alone"),
    (VAE, {"latents_mean": [0.0] * 4, "latents_std": [1.0, 0, 1, 1]}, "latents_std .* numbers above 0"),
    (VAE, {"latent_channels": "4"}, 'latent_channels "4"'),
    (VAE, {"norm_num_groups": 7}, "vae cannot be loaded"),
    (UNET, {"block_out_channels": 320}, "block_out_channels 320"),
    (UNET, {"block_out_channels": None}, "unet cannot be loaded"),
    (UNET, {"sample_size": 0}, "sample_size 0"),
    (UNET, {"sample_size": -8}, "sample_size -8"),
    (UNET, {"sample_size": True}, "sample_size true"),
    (UNET, {"sample_size": [8, 8]}, "sample_size .8, 8."),
    (UNET, {"sample_size": 10**30}, "sample_size 10"),
    (UNET, {"out_channels": 8}, "takes 4 channels and gives 8"),
    (UNET, {"in_channels": "4"}, 'in_channels "4"'),
    (UNET, {"layers_per_block": "x"}, "unet cannot be loaded"),
    (UNET, {"attention_head_dim": {}}, "unet cannot be loaded"),
    (SCHEDULER, {"beta_start": "x"}, 'beta_start "x"; it has to be a number between 0 and 1'),
    (SCHEDULER, {"beta_start": True}, "beta_start true"),
    (SCHEDULER, {"beta_start": 0}, "beta_start 0"),
    (SCHEDULER, {"beta_end": 3}, "beta_end 3"),
    (SCHEDULER, {"beta_schedule": -1}, "beta_schedule -1"),
    (SCHEDULER, {"beta_schedule": []}, "beta_schedule"),
    (SCHEDULER, {"beta_schedule": "cubic"}, "scheduler_config.json makes no schedule of noise .*cubic"),
    (SCHEDULER, {"num_train_timesteps": "x"}, "num_train_timesteps"),
    (SCHEDULER, {"num_train_timesteps": -1}, "num_train_timesteps -1"),
    (SCHEDULER, {"num_train_timesteps": 0}, "num_train_timesteps 0"),
    (SCHEDULER, {"trained_betas": 0}, "trained_betas 0"),
    (SCHEDULER, {"trained_betas": [1]}, "trained_betas .1."),
    (SCHEDULER, {"trained_betas": [0.1, "x"]}, "trained_betas"),
    (SCHEDULER, {"trained_betas": [0.1, 2]}, "trained_betas"),
    (SCHEDULER, {"trained_betas": [0.1, 0.2]}, "2 values in trained_betas, but num_train_timesteps 1000"),
    (SCHEDULER, {"prediction_type": {}}, "prediction_type"),
    (SCHEDULER, {"rescale_betas_zero_snr": "x"}, "rescale_betas_zero_snr"),
    (TOKENIZER, {"model_max_length": [1]}, "model_max_length"),
    (TOKENIZER, {"model_max_length": "x"}, "model_max_length"),
    (TOKENIZER, {"model_max_length": -1}, "model_max_length -1"),
    (TOKENIZER, {"pad_token": None}, "tokenizer/tokenizer_config.json has no pad_token"),
    (TOKENIZER, {"pad_token": [1]}, "tokenizer cannot be loaded"),
    (TEXT, {"num_hidden_layers": "2"}, "num_hidden_layers"),
    (TEXT, {"num_hidden_layers": {}}, "num_hidden_layers"),
    (TEXT, {"max_position_embeddings": [1]}, "max_position_embeddings"),
    (TEXT, {"max_position_embeddings": {}}, "max_position_embeddings"),
    (TEXT, {"num_attention_heads": 0}, "text_encoder cannot be loaded"),
    (TEXT, {"hidden_act": "x"}, "text_encoder cannot be loaded"),
    *((INDEX, {part: wrong}, f"model_index.json has (no )?{part}.*it has to be a list of two texts")
      for part in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
      for wrong in (True, -1, None, [], [None, None], GONE)),
]  # fmt: skip


@pytest.mark.parametrize(("file", "values", "says"), WRONG)
def test_a_value_that_cannot_be_is_told_with_its_file_when_the_model_is_opened_for_training(
    changed, file, values, says
):
    folder = changed(file, **values)
    with pytest.raises(MapoError, match=says) as told:
        open_model(find_model(str(folder)))
    assert "\n" not in str(told.value) and str(folder) in str(told.value)


@pytest.mark.parametrize("length", [GONE, None, 10**30, 1e30, 1000])
def test_a_tokenizer_without_a_limit_reads_as_many_tokens_as_its_encoder_for_training_and_for_pictures(changed, length):
    model = open_model(find_model(str(changed(TOKENIZER, model_max_length=length))))
    assert model.tokenizers()[0].model_max_length == 32
    assert model.pipeline("cpu").tokenizer.model_max_length == 32


@pytest.mark.parametrize("values", [{"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.01] * 1000}])
def test_other_schedules_that_are_whole_are_taken(changed, values):
    assert open_model(find_model(str(changed(SCHEDULER, **values)))).process.num_timesteps == 1000
