"""One stage for all denoisers: it asks, draws and measures by the denoiser's and the objective's own words."""

import pytest
import torch

from cmd_video.denoisers.content import ContentDenoiser
from cmd_video.denoisers.motion import MotionDenoiser
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.plan import Step
from cmd_video.diffusion.process import process_of
from cmd_video.techniques import TECHNIQUES
from cmd_video.training import outcome
from cmd_video.training.outcome import export_components

BRIDGE = {"kind": "bridge", "kappa": 2.0, "aligned": False}


@pytest.fixture
def seen(monkeypatch):
    """`seen(stage)`: a list of what the motion transformer is shown, filled as it is asked."""

    def watch(stage):
        found = []
        stage.model.latent_embed.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].detach()))
        return found

    return watch


@pytest.mark.parametrize(("name", "kind"), [("image", ContentDenoiser), ("content", ContentDenoiser),
                                            ("motion", MotionDenoiser)])  # fmt: skip
def test_a_stage_has_a_denoiser_and_an_objective_of_its_network(name, kind, build_tiny):
    stage, _ = build_tiny(name)
    assert type(stage.denoiser) is kind and stage.model is stage.components[stage.denoiser.component]
    assert stage.objective.process.prediction_type == "v_prediction"
    text = {"image": ("text_encoder",), "content": (), "motion": ("motion_text_encoder",)}[name]
    assert stage.trained == (stage.denoiser.component, *text)
    assert not stage.frozen.keys() & set(stage.trained)
    assert all(not value.requires_grad for part in stage.frozen.values() for value in part.parameters())


@pytest.mark.parametrize("name", ["image", "content", "motion"])
def test_the_example_of_a_batch_leaves_the_batch_as_it_is(name, build_tiny, batch_of):
    stage, dataset = build_tiny(name)
    batch = batch_of(dataset, range(3))
    before = {key: value.clone() if isinstance(value, torch.Tensor) else list(value) for key, value in batch.items()}
    with torch.no_grad():
        x_0, condition = stage.denoiser.example(batch)
    assert batch.keys() == before.keys() and len(x_0) == len(condition) == 3
    assert all(torch.equal(torch.as_tensor(batch[key]), torch.as_tensor(before[key]))
               for key in before if key != "prompt")  # fmt: skip
    assert batch["prompt"] == before["prompt"] == condition["prompt"]


class Counted:
    """A set that counts what is read of it, and of how many clips at a time."""

    def __init__(self, dataset):
        self.dataset, self.read = dataset, []

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.read.append(index)
        return self.dataset[index]


@pytest.mark.parametrize("name", ["autoencoder", "image", "content", "motion"])
def test_clips_are_read_at_the_end_by_the_stage_that_measures_them_alone(name, build_tiny, tmp_path, monkeypatch):
    stage, dataset = build_tiny(name)
    counted, sizes = Counted(dataset), []
    encode = type(stage.components["autoencoder"]).encode if name == "autoencoder" else None
    if encode is not None:
        watch = lambda self, clip, **options: (sizes.append(len(clip)), encode(self, clip, **options))[1]  # noqa: E731
        monkeypatch.setattr(type(stage.components["autoencoder"]), "encode", watch)
    monkeypatch.setattr(outcome, "CLIPS_FOR_STATISTICS", 7)
    export_components(stage, counted, tmp_path / "pipeline")
    assert counted.read == (list(range(min(7, len(dataset)))) if encode else [])
    assert all(size <= 4 for size in sizes) and sum(sizes) == len(counted.read)


@pytest.mark.parametrize("name", ["image", "content", "motion"])
def test_a_prompt_that_is_left_out_is_the_empty_one(name, build_tiny, batch_of):
    stage, dataset = build_tiny(name)
    with torch.no_grad():
        _, condition = stage.denoiser.example(batch_of(dataset, range(2)))
        dropped = stage.denoiser.encode(condition.dropped([True, False], ("prompt",)))
        written = stage.denoiser.encode(condition.having(prompt=["", condition["prompt"][1]]))
        whole = stage.denoiser.encode(condition)
    assert dropped.rows.keys() == whole.rows.keys()
    for row in whole.rows:
        assert torch.equal(dropped[row], written[row])
        assert torch.equal(dropped[row][1], whole[row][1])
        assert torch.equal(dropped[row][0], whole[row][0]) == (row == "content_frame")


@pytest.mark.parametrize("name", ["image", "content", "motion"])
def test_a_batch_is_validated_and_drawn_as_its_samples(name, build_tiny, batch_of):
    stage, dataset = build_tiny(name, weights=0.2)
    stage.eval()
    numbers = [0, 3, 5]
    with torch.no_grad():
        together = stage.validate(batch_of(dataset, numbers))["loss"]
        alone = [stage.validate(batch_of(dataset, [number]))["loss"] for number in numbers]
        drawn = stage.draw_samples(batch_of(dataset, numbers))
        single = torch.cat([stage.draw_samples(batch_of(dataset, [number])) for number in numbers])
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(drawn, single, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_the_pipelines_loop_asks_a_network_as_training_does(name, build_tiny, batch_of):
    """`ask` computes once what does not change; the numbers are those of `call`."""
    stage, dataset = build_tiny(name, weights=0.2)
    x_0, condition = stage.denoiser.example(batch_of(dataset, range(2)))
    told = stage.denoiser.encode(condition)
    assert set(stage.denoiser.told(stage.model)) == set(told.rows)
    with torch.no_grad():
        ask = stage.denoiser.ask(stage.model, told)
        for t in (999, 500, 0):
            called = stage.denoiser.call(stage.model, x_0, torch.tensor([t, t]), told)
            assert torch.equal(ask(x_0, Step(float(t), t / 1000)), called)


def test_a_bridge_is_sampled_from_the_still_clip(build_tiny, batch_of, seen):
    stage, dataset = build_tiny("motion", weights=0.2, objective={"process": BRIDGE})
    batch, shown = batch_of(dataset, range(2)), seen(stage)
    with torch.no_grad():
        x_0, condition = stage.denoiser.example(batch)
        source = stage.objective.source(condition, x_0)
        drawn = stage.draw_samples(batch)
    assert torch.equal(shown[0][-2:], source)  # the second half of a guided batch is the condition's
    assert drawn.shape == x_0.shape and drawn.isfinite().all()
    still = stage.components["autoencoder"].encode(condition["content_frame"][:, :, None].expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(source, stage.components["autoencoder"].normalize_latents(still.motion_latents))


def test_networks_are_measured_on_what_training_shows_them(build_tiny, batch_of, seen):
    for changes in ({}, {"objective": {"process": BRIDGE}}):
        stage, dataset = build_tiny("motion", weights=0.2, **changes)
        batch, shown = batch_of(dataset, range(2)), seen(stage)
        with torch.no_grad():
            validated = stage.validate(batch)["loss"]
            noisy = stage.noisy_batch(batch)
            prediction = noisy.call(stage.model)
        assert torch.equal(shown[0], shown[1])
        torch.testing.assert_close((prediction - noisy.target).square().mean(), validated)


def test_only_a_denoiser_with_a_source_learns_a_bridge(build_tiny):
    for field, kind in (("process", "bridge"), ("disturb", "image_leakage")):
        with pytest.raises(ValueError, match=rf"objective\.{field}: '{kind}' is not for the stage 'content'"):
            build_tiny("content", objective={field: {"kind": kind}})


def test_a_process_that_is_learned_takes_the_place_of_the_schedulers(build_tiny):
    stage, _ = build_tiny("motion", objective={"process": BRIDGE})
    plain = process_of(stage.components["motion_scheduler"])
    assert stage.denoiser.process.source is not None and plain.source is None
    assert not torch.equal(stage.denoiser.process.signal, plain.signal)
    how = stage.sampling()
    assert how.process.kappa == 2.0 and how.num_inference_steps == 2
    assert TECHNIQUES["bridge"].denoisers == ("motion",)


def test_draws_of_training_validation_and_samples_differ(build_tiny, batch_of, monkeypatch):
    stage, dataset = build_tiny("content")
    seeds, own = [], Draws.of
    monkeypatch.setattr(Draws, "of", lambda seed, numbers: seeds.append(seed) or own(seed, numbers))
    batch = batch_of(dataset, range(2))
    stage(batch)
    with torch.no_grad():
        stage.validate(batch)
        stage.draw_samples(batch)
    assert seeds == [3, 4, 5]
