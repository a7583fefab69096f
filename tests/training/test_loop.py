"""The loop and its stages: they learn, stop on nonsense, write what they promise; each setting changes something."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from cmd_video.models import CMDAutoencoder
from cmd_video.pipelines import CMDPipeline
from cmd_video.training import loop, stages
from cmd_video.training.checkpoint import load_latest
from cmd_video.training.data import build_dataset
from cmd_video.training.export import export_pipeline

STAGES = ("autoencoder", "image", "content", "motion")


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_one_batch_is_learnt_by_heart(name, tiny_config, run_train, read_log, monkeypatch, tmp_path):
    generators = stages.generators
    monkeypatch.setattr(stages, "generators", lambda seed, numbers: generators(seed, numbers % 4))  # the same noise
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


# --- nonsense --------------------------------------------------------------------------------------------------------


class NanAt:
    """A dataset with one broken clip."""

    def __init__(self, dataset, number):
        self.dataset, self.number = dataset, number

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, number):
        item = self.dataset[number]
        if number == self.number:
            item["video"][0, 0, 0, 0] = math.nan
        return item


@pytest.mark.parametrize("name", ["autoencoder", "image"])
def test_a_loss_that_is_no_number_stops_before_the_update(name, tiny_config, run_train, monkeypatch, tmp_path):
    monkeypatch.setattr(
        loop, "build_dataset", lambda *given, **named: NanAt(build_dataset(*given, **named), 4 * 4 + 2)
    )
    with pytest.raises(ValueError, match="step 5: the loss is nan"):
        run_train(tiny_config(name, tmp_path / "broken", loop__log_every=50))
    monkeypatch.undo()
    run_train(tiny_config(name, tmp_path / "whole", loop__log_every=50, loop__checkpoint_every=4))
    step, tensors, _ = load_latest(tmp_path / "broken" / "checkpoints")
    assert step == 4 and all(t.isfinite().all() for named in tensors.values() for t in named.values())
    whole = (tmp_path / "whole" / "checkpoints" / "step-00000004" / "ema.safetensors").read_bytes()
    assert (tmp_path / "broken" / "checkpoints" / "step-00000004" / "ema.safetensors").read_bytes() == whole


def test_a_gradient_that_is_no_number_stops_before_the_update(tiny_config, run_train, monkeypatch, tmp_path):
    forward = stages.AutoencoderStage.forward

    def steep(self, batch):
        loss = forward(self, batch)  # a finite loss; the derivative of the root at 0 is not
        return loss + (0 * self.autoencoder.patch_embed.weight.sum()).sqrt() if 8 in batch["number"] else loss

    monkeypatch.setattr(stages.AutoencoderStage, "forward", steep)
    with pytest.raises(ValueError, match="step 3: the gradient norm is"):
        run_train(tiny_config("autoencoder", tmp_path))
    assert load_latest(tmp_path / "checkpoints")[0] == 2


# --- what a run writes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_what_a_run_writes(name, tiny_config, run_train, tmp_path):
    config = tiny_config(name, tmp_path)
    assert run_train(config) == tmp_path / "pipeline"
    assert json.loads((tmp_path / "config.json").read_text())["loop"]["steps"] == 8
    assert {path.name for path in (tmp_path / "pipeline").iterdir()} == config["components"].keys()
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
    dataset = build_dataset(config.data)
    from cmd_video.pipelines.image_space import encode_video
    from cmd_video.training.components import build_components

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
    monkeypatch.setattr(stage, "_null_label", lambda: 99)

    def loss(batch, draws, timestep, condition):
        seen.append(condition)
        return timestep.float()

    monkeypatch.setattr(stage, "_loss", loss)
    batch = {"prompt": ["p"] * 1000, "class_label": torch.ones(1000, dtype=torch.long), "number": torch.arange(1000)}
    stage(batch)
    dropped = [prompt == "" for prompt in seen[0]["prompt"]]
    assert abs(sum(dropped) - 1000 * rate) <= 4 * math.sqrt(1000 * rate * (1 - rate))
    assert (seen[0]["class_label"] == 99).tolist() == dropped
    assert batch["prompt"] == ["p"] * 1000 and (batch["class_label"] == 1).all()
    stage.validate(batch)
    assert seen[1]["prompt"] == batch["prompt"]


DIT = {
    "class": "DiTTransformer2DModel",
    "config": {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 12, "out_channels": 12,
        "sample_size": 8, "patch_size": 2, "norm_num_groups": 4,
    },
}  # fmt: skip


def class_conditional(name, num_classes):
    """Changes to a tiny configuration: a denoiser told classes, here sprites' 16 motions."""
    if name == "content":
        parts = {"class": DIT["class"], "config": {**DIT["config"], "num_embeds_ada_norm": num_classes}}
        return {"components__unet": parts}
    return {"components__motion_transformer__config__num_classes": num_classes}


@pytest.mark.parametrize("name", ["content", "motion"])
def test_classes_reach_the_model(name, build_tiny, batch_of):
    stage, dataset = build_tiny(name, weights=0.2, **class_conditional(name, 16))
    batch = batch_of(dataset, range(3))
    noisy, timestep = stage.sample(batch), torch.tensor([500] * 3)
    stage.eval()
    with torch.no_grad():
        told = stage.predict(noisy, timestep, batch)
        other = stage.predict(noisy, timestep, {**batch, "class_label": (batch["class_label"] + 1) % 16})
        none = stage.predict(noisy, timestep, {**batch, **stage._drop(batch, [True] * 3)})
    assert min((told - other).abs().max(), (told - none).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["content", "motion"])
def test_a_class_that_the_model_does_not_know(name, tiny_config, run_train, tmp_path):
    with pytest.raises(ValueError, match=r"class_label: \d+ in the data, the model knows 0 to 1$"):
        run_train(tiny_config(name, tmp_path / "run", **class_conditional(name, 2)))


def test_a_dropped_prompt_reaches_the_text_encoder(build_tiny, batch_of, monkeypatch):
    stage, dataset = build_tiny("image", objective__condition_dropout=0.5)
    seen = []
    encode_prompts = stages.encode_prompts

    def watched(tokenizer, text_encoder, prompts):
        seen.append(prompts)
        return encode_prompts(tokenizer, text_encoder, prompts)

    monkeypatch.setattr(stages, "encode_prompts", watched)
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
        ("image", {"objective__min_snr_gamma": 1.0}, True),
        ("content", {"objective__min_snr_gamma": 1.0}, True),
        ("motion", {"objective__min_snr_gamma": 1.0}, True),
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
    assert {path.name for path in (tmp_path / "pipeline").iterdir()} == config["components"].keys()


# --- export ----------------------------------------------------------------------------------------------------------


def test_runs_become_a_pipeline(tiny_config, run_train, tmp_path):
    runs = [tmp_path / name for name in ("content", "motion", "autoencoder")]
    for run in runs:
        run_train(tiny_config(run.name, run))
    folder = export_pipeline(runs, tmp_path / "model", guidance_scale=2.0, motion_guidance_scale=1.5)
    pipe = CMDPipeline.from_pretrained(folder)
    assert (pipe.config.guidance_scale, pipe.config.motion_guidance_scale) == (2.0, 1.5)
    trained = CMDAutoencoder.from_pretrained(runs[2] / "pipeline" / "autoencoder")  # the last of three counts
    assert pipe.autoencoder.config.latents_std == trained.config.latents_std is not None
    assert all(torch.equal(a, b) for a, b in zip(pipe.autoencoder.parameters(), trained.parameters(), strict=True))
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a red circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
    assert out.frames.shape[-2:] == (16, 16) and out.frames.isfinite().all()

    with pytest.raises(ValueError, match="output.*exists"):
        export_pipeline(runs, tmp_path / "model")
    with pytest.raises(ValueError, match="no motion_transformer, motion_scheduler in"):
        export_pipeline([runs[0]], tmp_path / "other")
    (tmp_path / "begun").mkdir()
    with pytest.raises(ValueError, match="begun: no trained components"):
        export_pipeline([*runs, tmp_path / "begun"], tmp_path / "other")
    assert not list(tmp_path.glob("other*"))
