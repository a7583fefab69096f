"""The loop and its stages: they learn, stop on nonsense, write what they promise; each setting changes something."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from cmd_video.data.sealed import LIST
from cmd_video.denoisers import prompts
from cmd_video.denoisers.latent_space import encode_video
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.models import CMDAutoencoder
from cmd_video.training import loop
from cmd_video.training.checkpoint import load_latest
from cmd_video.training.components import build_components

STAGES = ("autoencoder", "image", "content", "motion")


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_one_batch_is_learnt_by_heart(name, tiny_config, run_train, read_log, monkeypatch, tmp_path):
    draws = Draws.of
    monkeypatch.setattr(Draws, "of", lambda seed, numbers: draws(seed, numbers % 4))  # the same noise
    optimizer = {"lr": 5e-3, "betas": [0.9, 0.95]}
    config = tiny_config(name, tmp_path, optimizer=optimizer, loop__steps=60, data__length=4, data__split="held_out")
    config["loop"].update(validate_every=60, checkpoint_every=60)
    monkeypatch.setattr(np.random, "default_rng", same_moment(np.random.default_rng))
    run_train(config)
    losses = [line["loss"] for line in read_log(tmp_path, "train")]
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    assert len(losses) == 60 and np.mean(losses[-5:]) < 0.5 * losses[0]


def same_moment(default_rng):
    """The image stage draws the moment of a frame by its number; here the numbers 0 to 3 come again and again."""

    def call(key=None):
        return default_rng([key[0] % 4, *key[1:]] if isinstance(key, list) and key[2:] == [2] else key)

    return call


# --- what a run writes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_what_a_run_writes(name, tiny_config, run_train, tmp_path):
    config = tiny_config(name, tmp_path)
    assert run_train(config) == tmp_path / "pipeline"
    assert json.loads((tmp_path / "config.json").read_text())["loop"]["steps"] == 8
    assert {path.name for path in (tmp_path / "pipeline").iterdir()} == config["components"].keys() | {LIST}
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    frames = {"autoencoder": 1 + 6 + 6, "image": 1, "content": 1, "motion": 1 + 6 + 6}[name]
    for step in (4, 8):
        grid = Image.open(tmp_path / "samples" / f"step-{step:08d}.png")
        assert grid.size == (frames * 16, 2 * 16) and len(set(grid.getdata())) > 20

    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 9))
    rates = [2e-3 * (step + 1) / 3 for step in range(3)]
    rates += [1e-3 * (1 + math.cos(math.pi * step / 5)) for step in range(5)]
    assert [line["lr"] for line in train] == pytest.approx(rates, rel=1e-12)
    assert all(line["grad_norm"] > 0 and line["seconds"] >= 0 for line in train)
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [4, 8]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_a_line_of_the_log_is_a_mean(tiny_config, run_train, read_log, tmp_path):
    for every in (1, 3):
        run_train(tiny_config("autoencoder", tmp_path / str(every), loop__log_every=every))
    each, means = (read_log(tmp_path / str(every), "train") for every in (1, 3))
    assert [line["step"] for line in means] == [3, 6, 8]
    losses = [line["loss"] for line in each]
    assert [line["loss"] for line in means] == pytest.approx(
        [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, sum(losses[6:]) / 2]
    )


def test_no_grid_if_none_is_wanted(tiny_config, run_train, tmp_path):
    run_train(tiny_config("motion", tmp_path, validation__num_samples=0, loop__steps=1))
    assert not (tmp_path / "samples").exists()


def test_learning_rate():
    config = loop.OptimizerConfig(lr=0.5, warmup_steps=4)
    assert [loop.learning_rate(step, 10, config) for step in range(6)] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    cosine = loop.OptimizerConfig(lr=0.5, schedule="cosine")
    rates = [loop.learning_rate(step, 10, cosine) for step in range(10)]
    assert rates[0] == 0.5 and rates[5] == pytest.approx(0.25) and 0 < rates[9] < 0.02
    assert rates == sorted(rates, reverse=True)


def test_the_motion_latents_are_measured(tiny_config, run_train, batch_of, tmp_path):
    run_train(tiny_config("autoencoder", tmp_path))
    autoencoder = CMDAutoencoder.from_pretrained(tmp_path / "pipeline" / "autoencoder")
    config = loop.TrainConfig.model_validate(tiny_config("autoencoder", tmp_path))
    dataset = config.data.open()
    vae = build_components({"vae": config.components["vae"]})["vae"]
    with torch.no_grad():
        clips = encode_video(vae, batch_of(dataset, range(24))["video"])
        latents = autoencoder.normalize_latents(autoencoder.encode(clips).motion_latents).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=1), torch.ones(4), atol=1e-4, rtol=0)


# --- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image", "motion"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_conditions_are_dropped_at_their_rate(name, rate, build_tiny, monkeypatch):
    stage, _ = build_tiny(name, objective__condition_dropout=rate)
    seen = []

    def encode(condition):
        seen.append(condition)
        return Condition({"frame": condition["frame"]})

    monkeypatch.setattr(stage.denoiser, "encode", encode)
    monkeypatch.setattr(stage.denoiser, "predict", lambda model, x_t, t, told, x_1=None: x_t)
    rows = {"prompt": ["p"] * 1000, "class": torch.ones(1000, dtype=torch.long), "frame": torch.zeros(1000, 1)}
    monkeypatch.setattr(stage.denoiser, "example", lambda batch: (torch.zeros(1000, 1, 1), Condition(rows)))
    batch = {"number": torch.arange(1000)}
    stage(batch)
    dropped = seen[0].is_absent("prompt")
    assert abs(int(dropped.sum()) - 1000 * rate) <= 4 * math.sqrt(1000 * rate * (1 - rate))
    assert torch.equal(seen[0].is_absent("class"), dropped) and not seen[0].is_absent("frame").any()
    assert rows["prompt"] == ["p"] * 1000 and (rows["class"] == 1).all()
    stage.validate(batch)
    assert not seen[1].is_absent("prompt").any() and not seen[1].is_absent("class").any()


def test_a_dropped_prompt_reaches_the_text_encoder(build_tiny, batch_of, monkeypatch):
    stage, dataset = build_tiny("image", objective__condition_dropout=0.5)
    seen = []
    encode_prompts = prompts.encode_prompts

    def watched(tokenizer, text_encoder, texts):
        seen.append(texts)
        return encode_prompts(tokenizer, text_encoder, texts)

    monkeypatch.setattr(prompts, "encode_prompts", watched)
    batch = batch_of(dataset, range(16))
    stage(batch)
    kept = [prompt for prompt in seen[0] if prompt]
    assert 0 < len(kept) < 16 and set(kept) <= set(batch["prompt"])


# --- each setting changes something ----------------------------------------------------------------------------------


def losses_with(build_tiny, batch_of, name, **changes):
    """Training loss and validation loss of the same weights."""
    stage, dataset = build_tiny(name, weights=0.2, **changes)
    batch = batch_of(dataset, range(4))
    with torch.no_grad():
        training = stage.train()({**batch}).item()
        return training, stage.eval().validate({**batch})["loss"].item()


@pytest.mark.parametrize(
    ("name", "change", "validation_too"),
    [
        ("autoencoder", {"objective__motion_latents_noise": 0.5}, False),
        ("autoencoder", {"objective__reconstruction": "l1"}, False),
        ("autoencoder", {"objective__anchor_weight": 1.0}, False),
        ("image", {"objective__snr_power": 0.5}, True),
        ("content", {"objective__snr_power": 0.5}, True),
        ("motion", {"objective__snr_power": 0.5}, True),
        ("content", {"objective__logit_normal": [1.0, 1.0]}, False),
        ("motion", {"objective__log_sigma_normal": [0.7, 1.6]}, False),
        ("image", {"objective__condition_dropout": 0.9}, False),
        ("motion", {"objective__condition_dropout": 0.9}, False),
        ("motion", {"objective__content_frame_noise": 1.0}, False),
        ("motion", {"seed": 9}, True),
    ],
)
def test_the_objective_changes_the_loss(name, change, validation_too, build_tiny, batch_of):
    plain, same, other = (losses_with(build_tiny, batch_of, name, **changes) for changes in ({}, {}, change))
    assert plain == same
    assert plain[0] != other[0]
    assert (plain[1] != other[1]) is validation_too


def test_l1_is_the_mean_absolute_difference(build_tiny, batch_of):
    stage, dataset = build_tiny("autoencoder", objective__reconstruction="l1")
    batch = batch_of(dataset, range(2))
    with torch.no_grad():
        clip = stage._clip_latents(batch)
        reconstruction = stage.autoencoder.decode(*stage.autoencoder.encode(clip, return_dict=False)).sample
        assert stage(batch).item() == pytest.approx((reconstruction - clip).abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("autoencoder", {"optimizer__max_grad_norm": None}),
        ("autoencoder", {"optimizer__weight_decay": 0.5}),
        ("autoencoder", {"optimizer__betas": [0.5, 0.9]}),
        ("autoencoder", {"optimizer__lr": 1e-3}),
        ("autoencoder", {"optimizer__warmup_steps": 0}),
        ("autoencoder", {"optimizer__schedule": "constant"}),
        ("autoencoder", {"loop__ema_decay": 0.1}),
        ("autoencoder", {"loop__precision": "bf16"}),
        ("autoencoder", {"data__seed": 1}),
        ("autoencoder", {"data__start": 1}),
        ("autoencoder", {"data__split": "held_out"}),
        ("image", {"objective__train_text_encoder": False}),
    ],
)
def test_a_setting_changes_what_is_exported(name, change, tiny_config, run_train, tmp_path):
    exported = {}
    for folder, changes in (("plain", {}), ("changed", change)):
        config = tiny_config(name, tmp_path / folder, loop__steps=5, **{"optimizer__max_grad_norm": 1e-3, **changes})
        run_train({**config, "validation": {**config["validation"], "num_samples": 0}})
        component = "text_encoder" if name == "image" else "autoencoder"
        file = next((tmp_path / folder / "pipeline" / component).glob("*.safetensors"))
        exported[folder] = file.read_bytes()
    assert len(exported["plain"]) == len(exported["changed"]) and exported["plain"] != exported["changed"]


def test_the_average_is_what_is_exported(tiny_config, run_train, tmp_path):
    for decay in (0.0, 0.9):
        run_train(tiny_config("autoencoder", tmp_path / str(decay), loop__ema_decay=decay))
        _, tensors, _ = load_latest(tmp_path / str(decay) / "checkpoints")
        exported = CMDAutoencoder.from_pretrained(tmp_path / str(decay) / "pipeline" / "autoencoder").state_dict()
        assert all(torch.equal(exported[name.removeprefix("autoencoder.")], t) for name, t in tensors["ema"].items())
        same = all(torch.allclose(tensors["model"][name], t, atol=1e-6) for name, t in tensors["ema"].items())
        assert same is (decay == 0.0)


@pytest.mark.parametrize("name", STAGES)
def test_gradient_checkpointing_computes_the_same_again(
    name, tiny_config, run_train, assert_close_logs, monkeypatch, tmp_path
):
    built, build_stage = [], loop.build_stage
    monkeypatch.setattr(loop, "build_stage", lambda *args: built.append(build_stage(*args)) or built[-1])
    calls, checkpoint = [], torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    for on in (False, True):
        run_train(tiny_config(name, tmp_path / str(on), loop__steps=3, loop__gradient_checkpointing=on))
        assert bool(calls) is on
        for trained in built[-1].trained:
            modules = getattr(built[-1], trained).modules()
            assert any(getattr(module, "gradient_checkpointing", False) for module in modules) is on
    assert_close_logs(tmp_path / "False", tmp_path / "True", 1e-4)


def test_the_motion_model_can_share_the_text_encoder(tiny_config, run_train, tmp_path):
    config = tiny_config("motion", tmp_path, objective__train_text_encoder=False, loop__steps=1)
    for name in ("tokenizer", "text_encoder"):
        config["components"][name] = config["components"].pop(f"motion_{name}")
    run_train(config)
    assert {path.name for path in (tmp_path / "pipeline").iterdir()} == config["components"].keys() | {LIST}
