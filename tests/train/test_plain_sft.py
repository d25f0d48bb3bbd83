"""SFT is the plain LoRA fine-tune of other tools, and needs no rejected pictures."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from held import make_held_out
from safetensors.torch import load_file
from test_train import run

from mapo.encode.encoding import to_pixels
from mapo.encode.frame import square
from mapo.errors import MapoError
from mapo.export.verb import export
from mapo.models.noise.process import Ddpm
from mapo.pairs import PairSet
from mapo.train.batches import draws
from mapo.train.config import make_config
from mapo.train.monitor.evaluation import DRAWS
from mapo.train.plan.at_hand import plan_here
from mapo.train.run.folder import Run
from mapo.train.train import train
from mapo.watch.state import held_out
from tiny import chosen_alone, make_pairs

STEPS, SIZE, RANK, RATE = 6, 4, 4, 1e-2


@pytest.fixture(scope="module")
def alone(tmp_path_factory, pairs):
    return chosen_alone(pairs, tmp_path_factory.mktemp("alone") / "pairs")


def drawn_at(step, pairs):
    """What a run is given at random in a step: which pictures, noise, timesteps and samples of the VAE's posterior."""
    positions = range(step * SIZE, (step + 1) * SIZE)
    process = Ddpm(torch.ones(1000), "epsilon")
    return draws(positions, len(pairs), process, (4, 8, 8), seed=0)


def plain_fine_tune(model, pairs, heard):
    """The loop of a public script for LoRAs of SDXL on pictures and captions; yields the LoRA after every step.

    It reads diffusers' own classes and nothing of ours but the pictures and the random draws that it is fed.
    """
    from diffusers import DDPMScheduler, StableDiffusionXLPipeline
    from peft import LoraConfig

    pipe = StableDiffusionXLPipeline.from_pretrained(model)
    unet, vae, scheduler = pipe.unet.double(), pipe.vae, DDPMScheduler.from_config(pipe.scheduler.config)
    for network in (unet, vae, pipe.text_encoder, pipe.text_encoder_2):
        network.requires_grad_(False)
    torch.manual_seed(0)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
    trained = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    for step in range(STEPS):
        batch = drawn_at(step, pairs)
        members = [pairs[draw.row] for draw in batch]
        pixels, sizes = zip(*(to_pixels(pairs.image(one.chosen), square(16)) for one in members), strict=True)
        with torch.no_grad():
            dist = vae.encode(torch.stack(pixels)).latent_dist
            latents = dist.mean + dist.std * torch.stack([draw.samples[0] for draw in batch])
            latents = (latents * vae.config.scaling_factor).double()
            states, _, pooled, _ = pipe.encode_prompt(
                [one.prompt for one in members], do_classifier_free_guidance=False
            )
        noise, timesteps = torch.stack([d.noise for d in batch]).double(), torch.stack([d.time for d in batch])
        noisy = scheduler.add_noise(latents, noise, timesteps)
        time_ids = torch.tensor([[*size, 16, 16] for size in sizes]).double()
        told = {"text_embeds": pooled.double(), "time_ids": time_ids}
        predicted = unet(noisy, timesteps, states.double(), added_cond_kwargs=told).sample
        loss = F.mse_loss(predicted, noise, reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        heard.append(loss.item())
        yield {name: weight.detach().clone() for name, weight in trained.items()}


def test_the_weights_go_the_way_of_the_plain_lora_fine_tune_of_other_tools(tmp_path, sdxl, alone):
    how = {"steps": STEPS, "pairs_per_step": SIZE, "save_every_steps": 1, "keep_checkpoints": "all"}
    lines = run(tmp_path / "r", sdxl, alone, None, "sft", "lora", optim={"lr": RATE, "warmup_steps": 0}, **how)
    heard, before = [], None
    ours = sorted((tmp_path / "r" / "checkpoints").iterdir())
    for folder, theirs in itertools.zip_longest(ours, plain_fine_tune(sdxl, PairSet(alone), heard)):
        weights = load_file(folder / "weights.safetensors")
        assert weights.keys() == theirs.keys()
        apart = max(float((weights[name] - theirs[name]).abs().max()) for name in theirs)
        if before is not None:
            moved = max(float((theirs[name] - before[name]).abs().max()) for name in theirs)
            assert moved > RATE / 2
        assert apart < 1e-10  # 1e-14 was measured
        before = theirs
    assert len(ours) == STEPS and [line["loss"] for line in lines] == pytest.approx(heard, rel=1e-7)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_without_rejected_pictures_it_is_to_the_bit_what_it_is_with_them(tmp_path, sdxl, pairs, alone, cache, kind):
    how = {"steps": 3, "pairs_per_device": 3, "precision": "float32"}
    one = run(tmp_path / "a", sdxl, pairs, cache, "sft", kind, data={"caption_dropout": 0.2}, **how)
    other = run(tmp_path / "b", sdxl, alone, cache, "sft", kind, data={"caption_dropout": 0.2}, **how)
    timed = {"seconds", "pairs_per_second", "memory"}
    assert [{k: v for k, v in line.items() if k not in timed} for line in one] == [
        {k: v for k, v in line.items() if k not in timed} for line in other
    ]
    for path in (tmp_path / "a" / "weights").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert one[0].keys() >= {"loss", "error_chosen"} and "error_rejected" not in one[0]


def test_wide_pictures_are_trained_on_whole_with_text_encoders_too(tmp_path, sdxl, heard):
    folder = chosen_alone(make_pairs(tmp_path / "wide", 4, seed=1, size=(32, 8)), tmp_path / "alone")
    heard()
    values = {
        "model": str(sdxl), "pairs": str(folder), "objective": {"name": "sft"}, "data": {"buckets": True},
        "adapter": {"kind": "lora", "rank": 2, "text_encoders": True}, "train": {"steps": 1, "pairs_per_step": 2},
    }  # fmt: skip
    train(make_config(values), tmp_path / "r")
    said = heard()
    assert "Seen in 1 frame" in said
    assert "Rejected pictures are not run" not in said


def test_the_card_of_such_a_run_does_not_speak_of_pairs(tmp_path, sdxl, alone, cache):
    run(tmp_path / "r", sdxl, alone, cache, "sft", "lora", steps=1)
    export(str(tmp_path / "r"), "lora", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "taught by pictures with their prompts." in card and "one that is rejected" not in card
    assert "| rejected pictures | none |" in card


def test_objectives_that_compare_are_refused_with_what_to_do_and_so_is_measuring(tmp_path, sdxl, alone):
    why = r"has no rejected pictures, and the objective dpo needs them. Draw them with `mapo build .* --objective sft\."
    with pytest.raises(MapoError, match=why):
        run(tmp_path / "r", sdxl, alone, None, "dpo")
    with pytest.raises(MapoError, match=r"and train.measure_rejected needs them. .* or leave it out\."):
        run(tmp_path / "r", sdxl, alone, None, "sft", measure_rejected=True)
    values = {"model": str(sdxl), "pairs": str(alone), "objective": {"name": "mapo"}}
    with pytest.raises(MapoError, match="the objective mapo needs them"):
        plan_here(make_config(values))
    assert not (tmp_path / "r").exists()
    found = plan_here(make_config({**values, "objective": {"name": "sft"}, "cache": str(tmp_path / "cache")}))
    assert found.fits and found.disk.pictures == len(PairSet(alone))


def test_an_objective_of_ones_own_that_runs_no_rejected_pictures_is_trained_with_a_reference_too(tmp_path, sdxl, alone):
    file = tmp_path / "own.py"
    file.write_text(
        "from mapo.train.objectives import Objective\n"
        "def near(errors):\n"
        "    return (errors.chosen - errors.ref_chosen).double().square() + errors.chosen.double()\n"
        "near = Objective(near, needs_reference=True, needs_rejected=False)\n"
    )
    lines = [
        run(tmp_path / how, sdxl, alone, None, f"{file}:near", "lora", steps=2, reference=how)
        for how in ("together", "before")
    ]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9) and math.isfinite(one["loss"])


def test_held_out_pictures_are_measured_and_the_best_checkpoint_has_their_smallest_error(tmp_path, sdxl, heard):
    folder = chosen_alone(make_held_out(tmp_path / "pairs", held=3), tmp_path / "alone")
    how = {"evaluate_every": 1, "save_every_steps": 1, "keep_checkpoints": "best", "optim": {"lr": 1e-2}}
    run(tmp_path / "r", sdxl, folder, None, "sft", "lora", steps=3, **how)
    rows = [json.loads(line) for line in (tmp_path / "r" / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and rows[0]["error_chosen_change"] == 0
    assert {"accuracy", "margin", "error_rejected"}.isdisjoint(rows[0])
    assert "Step 1: on 3 held-out pairs the error of chosen pictures is" in heard()
    best = min(rows[1:], key=lambda row: row["error_chosen"])["step"]
    assert f"step-{best:08d}" in {path.name for path in Run(tmp_path / "r").checkpoints()}
    base = json.loads((tmp_path / "r" / "evaluation_base.json").read_text())
    assert base["rejected"] == [[None] * DRAWS] * 3 and rows[0]["error_chosen"] == pytest.approx(
        sum(map(sum, base["chosen"])) / (3 * DRAWS)
    )
    titles = {curve["title"]: [line["points"] for line in curve["lines"]] for curve in held_out(rows)}
    assert len(titles["Errors against the base's"][0]) == 4 and titles["Margin by timestep"] == []
    before = (tmp_path / "r" / "evaluation_base.json").stat().st_mtime_ns
    run(tmp_path / "r", sdxl, folder, None, "sft", "lora", steps=4, **how)
    assert (tmp_path / "r" / "evaluation_base.json").stat().st_mtime_ns == before
