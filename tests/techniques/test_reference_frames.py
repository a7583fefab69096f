"""Given frames as input channels: fresh ones count nothing, shares of tasks, and training on them."""

import json

import pytest
import torch
from pydantic import ValidationError

from cmd_video.denoisers.content import ContentDenoiser
from cmd_video.denoisers.motion import MotionDenoiser
from cmd_video.denoisers.references import ROW, reference_row, references_of, with_references
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.techniques.reference_frames import Settings, TaskMix, ToldFrames, widened

COUNTS = (1, 2)
TASKS = {"text": 0.4, "first": 0.3, "first_last": 0.3}


@pytest.fixture
def components(tiny_components):
    return tiny_components()


def asked(kind, components, batch=2):
    """Denoiser, model, x_t, t and what it is told of some clips, their ends among it."""
    denoiser = (ContentDenoiser if kind == "content" else MotionDenoiser)(components)
    torch.manual_seed(3)
    clips = torch.rand(batch, 3, 4, 16, 16) * 2 - 1
    told = {"video": clips, "prompt": ["a red circle moves up"] * batch, "class_label": torch.full((batch,), -1)}
    model = components[denoiser.component].eval()
    for parameter in model.parameters():  # a fresh one says nothing
        torch.nn.init.normal_(parameter, std=0.05)
    x_0, condition = denoiser.example(told)
    return denoiser, model, x_0, condition


@pytest.mark.parametrize("kind", ["content", "motion"])
@pytest.mark.parametrize("count", COUNTS)
def test_a_fresh_network_is_the_one_it_was_widened_from(kind, count, components):
    denoiser, model, x_0, condition = asked(kind, components)
    t = torch.tensor([300, 700])
    before = denoiser.predict(model, x_0, t, denoiser.encode(condition))
    Settings(count=count).edit(model)
    _, told = denoiser.example({"video": torch.rand(2, 3, 4, 16, 16), "prompt": ["", ""], "class_label": t})
    assert told[ROW].shape[1] == count
    after = denoiser.predict(model, x_0, t, denoiser.encode(condition.having(**{ROW: told[ROW]})))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert Settings(count=count).edit(model) is model  # a second time it stays
    with pytest.raises(
        ValueError, match=f"edit.count: {3 - count}, but the network was made for {count} given frames"
    ):
        Settings(count=3 - count).edit(model)
    silent = denoiser.predict(model, x_0, t, denoiser.encode(condition))  # no row: as a row of zeros
    row = torch.zeros_like(told[ROW])
    zeros = denoiser.predict(model, x_0, t, denoiser.encode(condition.having(**{ROW: row})))
    assert torch.equal(silent, zeros)


@pytest.mark.parametrize("kind", ["content", "motion"])
def test_what_is_told_counts_once_it_was_learned_and_rows_stay_apart(kind, components):
    denoiser, model, x_0, condition = asked(kind, components)
    Settings(count=2).edit(model)
    layer = model.conv_in if kind == "content" else model.content_embed
    torch.nn.init.normal_(layer.weight, std=0.1)
    frame = condition.get("content_frame", x_0)  # (B, C, h, w)
    row = reference_row({0: torch.rand_like(frame), 1: torch.rand_like(frame)}, 2)
    t = torch.tensor([300, 700])
    told = denoiser.encode(condition.having(**{ROW: row}))
    both = denoiser.predict(model, x_0, t, told)
    assert (both - denoiser.predict(model, x_0, t, denoiser.encode(condition))).abs().max() > 1e-4
    for number in range(2):
        one = torch.arange(2) == number
        alone = denoiser.predict(model, x_0[one], t[one], told.chosen(one))
        torch.testing.assert_close(both[one], alone, rtol=0, atol=1e-5)


def test_the_row_has_a_mask_behind_each_frame_that_is_given():
    frame = torch.rand(3, 4, 2, 2) + 1
    row = reference_row({1: frame}, 2)
    assert row.shape == (3, 2, 5, 2, 2)
    assert torch.equal(row[:, 1, :4], frame)
    assert (row[:, 1, 4] == 1).all()
    assert (row[:, 0] == 0).all()
    assert with_references(frame, row, 0) is frame
    assert torch.equal(with_references(frame, row, 1), torch.cat([frame, row[:, 0]], dim=1))


@pytest.mark.parametrize(("channels", "count"), [(4, 0), (9, 1), (14, 2)])
def test_channels_say_how_many_frames_a_network_is_told(channels, count):
    assert references_of(channels, 4) == count
    layer = widened(torch.nn.Conv2d(4, 3, 3, padding=1), channels)
    assert layer.in_channels == channels
    assert (layer.weight[:, 4:] == 0).all()


@pytest.mark.parametrize("channels", [3, 5, 8, 19, 24])
def test_other_channels_are_refused(channels):
    with pytest.raises(ValueError, match=f"{channels}, must be 4 here, or 9 or 14 where frames are given"):
        references_of(channels, 4)


def test_shares_of_tasks_are_kept_and_depend_on_seed_and_sample_alone():
    mix, numbers = TaskMix(**TASKS), torch.arange(3000)
    told = Condition({ROW: torch.ones(3000, 2, 2, 1, 1)})
    kept = mix.disturb(told, torch.zeros(3000), Draws.of(0, numbers))[ROW][:, :, 0, 0, 0].sum(dim=1)  # (B,)
    for count, share in enumerate(TASKS.values()):
        spread = (share * (1 - share) / len(numbers)) ** 0.5
        assert abs(float((kept == count).float().mean()) - share) < 3 * spread
    some = torch.tensor([7, 1999, 42])
    again = mix.disturb(Condition({ROW: torch.ones(3, 2, 2, 1, 1)}), torch.zeros(3), Draws.of(0, some))[ROW]
    assert torch.equal(again[:, :, 0, 0, 0].sum(dim=1), kept[some])


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_text_alone_is_training_without_it_to_the_bit(noise, components):
    from cmd_video.diffusion.objective import DenoisingSettings

    denoiser, model, x_0, condition = asked("motion", components)
    plain = DenoisingSettings(content_frame_noise=noise).build(denoiser, model)
    mixed = DenoisingSettings(
        disturb={"kind": "task_mix", "text": 1.0, "first": 0.0, "first_last": 0.0, "content_frame_noise": noise}
    ).build(denoiser, model)
    Settings(count=2).edit(model)
    torch.nn.init.normal_(model.content_embed.weight, std=0.1)
    told = condition.having(**{ROW: reference_row({0: torch.rand_like(condition["content_frame"])}, 2)})
    numbers = torch.arange(2)
    first = plain.loss(model, x_0, condition, Draws.of(0, numbers), 0)
    assert torch.equal(first, mixed.loss(model, x_0, told, Draws.of(0, numbers), 0))


def test_all_frames_is_the_neutral_mix():
    told = Condition({ROW: torch.rand(4, 2, 5, 2, 2), "content_frame": torch.rand(4, 4, 2, 2)})
    seen = TaskMix().disturb(told, torch.zeros(4), Draws.of(0, torch.arange(4)))
    assert torch.equal(seen[ROW], told[ROW])
    assert torch.equal(seen["content_frame"], told["content_frame"])


def test_mistakes_are_named(components):
    with pytest.raises(ValidationError, match=r"text, first, first_last: 0.5, 0.5, 0.5 do not add to 1"):
        TaskMix(text=0.5, first=0.5, first_last=0.5)
    with pytest.raises(ValueError, match="disturb: this network is told no frames"):
        TaskMix().disturb(Condition({"content_frame": torch.zeros(1, 4, 2, 2)}), torch.zeros(1), Draws([]))
    with pytest.raises(ValueError, match="edit.count: 1, but a Linear is told no frames"):
        Settings(count=1).edit(torch.nn.Linear(1, 1))
    assert Settings().edit(components["unet"]).config.in_channels == 12


def test_without_steps_what_was_drawn_stays():
    x_c, z = torch.rand(1, 2, 3, 3), torch.rand(1, 2, 4, 6)
    told = ToldFrames()
    assert told.passes([0], 4, []) == (None,)
    same = told.refine({0: x_c}, x_c, z, lambda *_: pytest.fail("asked"))
    assert same[0] is x_c
    assert same[1] is z


@pytest.mark.parametrize("stage", ["content", "motion"])
def test_a_run_saves_a_network_that_is_told_frames(stage, tmp_path, tiny_config, run_train, read_log):
    changes = {
        "edit": {"kind": "reference_frames", "count": 2},
        "objective": {"disturb": {"kind": "task_mix", **TASKS}},
        "loop__steps": 2, "loop__validate_every": 2,
    }  # fmt: skip
    folder = run_train(tiny_config(stage, tmp_path / stage, **changes))
    assert len(read_log(tmp_path / stage, "train")) == 2
    name = "unet" if stage == "content" else "motion_transformer"
    saved = json.loads((folder / name / "config.json").read_text())
    if stage == "content":
        assert references_of(saved["in_channels"], saved["out_channels"]) == 2
    else:
        assert saved["num_references"] == 2
