"""Segments of diffusion time: where jumps start, which one a level lies in, and a jump through all of them."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from cmd_video.diffusion.process import ddim_step, process_of
from cmd_video.diffusion.segments import SegmentSettings, Taught


class Network(torch.nn.Module):
    """A network that says what it was made with."""

    def __init__(self, value: float, **config) -> None:
        super().__init__()
        self.value, self.config = torch.nn.Parameter(torch.tensor(value)), config


def taught(student=None, teacher=None, total=1000, **settings) -> Taught:
    scheduler = DDIMScheduler(num_train_timesteps=total, prediction_type="sample", clip_sample=False)
    denoiser = SimpleNamespace(
        process=process_of(scheduler), scheduler="content_scheduler",
        predict=lambda model, x_t, t, told: model.value * torch.ones_like(x_t),
    )  # fmt: skip
    return Taught(SegmentSettings(**settings), denoiser, student or Network(0.25), teacher)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 10])
def test_segments_are_of_equal_length_unless_they_are_given(count):
    starts = SegmentSettings(num_segments=count).segment_starts
    assert starts == tuple(1000 * part // count - 1 for part in range(count, 0, -1))
    assert SegmentSettings(num_segments=2, starts=(999, 99)).segment_starts == (999, 99)


@pytest.mark.parametrize("settings", [{"num_segments": 4}, {"num_segments": 3, "starts": (999, 849, 399)}])
def test_every_level_lies_in_one_segment(settings):
    learned, t = taught(**settings), torch.arange(1000)
    start, end = learned.segment(t)
    assert ((end < t) & (t <= start)).all()
    starts = learned.settings.segment_starts
    assert sorted(set(start.tolist()), reverse=True) == list(starts)
    ends = dict(zip(starts, (*starts[1:], -1), strict=True))
    assert all(ends[one] == other for one, other in zip(start.tolist(), end.tolist(), strict=True))


def test_a_jump_goes_from_start_to_start_and_ends_clean():
    learned, z = taught(num_segments=3, starts=(999, 849, 399)), torch.randn(2, 3, 4)
    x, clean = z, torch.full_like(z, 0.25)
    for start, until in ((999, 849), (849, 399)):
        x = ddim_step(learned.process, x, clean, torch.full((2,), start), torch.full((2,), until))
    found = learned.jump(Network(0.25), z, told=None)
    torch.testing.assert_close(found, clean)  # the last jump ends at what the network says
    seen = []
    learned.denoiser.predict = lambda model, x_t, t, told: seen.append((int(t[0]), x_t)) or torch.full_like(x_t, 0.25)
    learned.jump(None, z, told=None)
    assert [t for t, _ in seen] == [999, 849, 399] and torch.equal(seen[0][1], z)
    torch.testing.assert_close(seen[2][1], x)


def test_without_a_teacher_it_is_the_student_as_it_is_now():
    student = Network(0.5)
    learned = taught(student)
    with torch.no_grad():
        student.value.fill_(0.75)
    assert learned.teacher.value.item() == 0.5
    assert not learned.teacher.training and not learned.teacher.value.requires_grad and student.value.requires_grad
    assert not learned.modules


def test_student_and_teacher_have_the_same_inputs_and_outputs():
    taught(Network(0.0, in_channels=4, layers=3), Network(0.0, in_channels=4, layers=9))
    with pytest.raises(ValueError, match=r"components\.teacher\.in_channels: 4, the student has 8"):
        taught(Network(0.0, in_channels=8), Network(0.0, in_channels=4))
    with pytest.raises(ValueError, match="content_scheduler.num_train_timesteps: 500, distillation needs 1000"):
        taught(total=500)


def test_a_student_of_few_steps_is_sampled_by_its_jumps_without_guidance():
    how = taught(num_segments=2, starts=(999, 299)).sampling()
    assert how == {"starts": (999, 299), "guidance": {"kind": "classifier_free", "scale": 1.0}}
