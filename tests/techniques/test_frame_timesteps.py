"""A time of its own for each frame: equal times are one time, slots stay apart, known frames stay."""

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from pydantic import ValidationError

from cmd_video.denoisers.motion import MotionDenoiser
from cmd_video.denoisers.video_conditions import VideoCondition
from cmd_video.denoisers.video_models import call_video_model
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.objective import DenoisingSettings
from cmd_video.diffusion.plan import Step
from cmd_video.techniques.frame_timesteps import KnownFrames, Resample, Settings

FRAMES, SLOT = 4, 2


@pytest.fixture
def motion(tiny_components):
    """Denoiser, a motion model that says something, x_0 and condition of two clips."""
    torch.manual_seed(0)
    components = tiny_components()
    denoiser = MotionDenoiser(components)
    model = components["motion_transformer"].eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    clips = torch.rand(2, 3, FRAMES, 16, 16) * 2 - 1
    batch = {"video": clips, "prompt": ["a red circle moves up"] * 2, "class_label": torch.full((2,), -1)}
    return denoiser, model, *denoiser.example(batch)


def test_equal_times_are_the_model_of_one_time(motion):
    denoiser, model, x_0, condition = motion
    told = denoiser.encode(condition)
    for level in (0, 300, 999):
        one = denoiser.predict(model, x_0, torch.full((2,), level), told)
        each = denoiser.predict(model, x_0, torch.full((2, FRAMES), level), told)
        torch.testing.assert_close(each, one, rtol=0, atol=1e-6)


def test_a_frames_time_is_its_own(motion):
    """What a block adds to a token hangs on other tokens' times by attention alone, the modulation of its own."""
    denoiser, model, x_0, condition = motion
    told = denoiser.encode(condition)
    apart = torch.tensor([[100, 100, 900, 900], [900, 900, 100, 100]])
    both = denoiser.predict(model, x_0, apart, told)
    for number in range(2):
        one = torch.arange(2) == number
        alone = denoiser.predict(model, x_0[one], apart[one], told.chosen(one))
        torch.testing.assert_close(both[one], alone, rtol=0, atol=1e-5)
    assert (both[0] - denoiser.predict(model, x_0, apart.flip(0), told)[0]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="timestep: 3 in a row, 4 frames have 2"):
        model(x_0, torch.zeros(2, 3), condition["content_frame"], told.get("pooled"))


def test_at_equal_times_the_loss_is_the_plain_one(motion):
    denoiser, model, x_0, condition = motion
    settings = Settings(independent=0.0, content_frame_noise=0.1)
    own = settings.build(denoiser, model)
    plain = DenoisingSettings(content_frame_noise=0.1).build(denoiser, model)
    numbers = torch.tensor([4, 9])
    torch.testing.assert_close(
        own.loss(model, x_0, condition, Draws.of(0, numbers), 0),
        plain.loss(model, x_0, condition, Draws.of(0, numbers), 0), rtol=0, atol=1e-6,
    )  # fmt: skip


def test_shares_of_clips_and_the_slots_of_their_times(motion):
    denoiser, model, *_ = motion
    own = Settings(independent=0.3, first_frame=0.4).build(denoiser, model)
    count = 2000
    times = own.times_of_frames(torch.full((count,), 500), 8, Draws.of(1, torch.arange(count)), SLOT)
    assert times.shape == (count, 8)
    assert torch.equal(times[:, ::2], times[:, 1::2])
    rest = times[:, 2:]
    independent = (rest != rest[:, :1]).any(dim=1)
    for share, found in ((0.3, independent), (0.4, times[:, 0] == -1)):
        assert abs(float(found.float().mean()) - share) < 3 * (share * (1 - share) / count) ** 0.5
    assert (rest[~independent] == 500).all()
    again = own.times_of_frames(torch.full((1,), 500), 8, Draws.of(1, torch.tensor([77])), SLOT)
    assert torch.equal(again[0], times[77])


def test_the_loss_does_not_see_a_frame_that_is_told(motion):
    denoiser, model, x_0, condition = motion
    own, told = Settings().build(denoiser, model), denoiser.encode(condition)
    t = torch.tensor([[-1, -1, 400, 400]] * 2)
    z = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    own.at(model, x_0, z, t, told).sum().backward()
    assert (z.grad[:, :, :2] == 0).all()  # neither noised with it nor asked for it
    assert z.grad[:, :, 2:].abs().max() > 0


def wan():
    config = {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16,
        "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "patch_size": (1, 2, 2), "rope_max_seq_len": 32,
    }  # fmt: skip
    return WanTransformer3DModel(**config)


def ltx():
    config = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
              "cross_attention_dim": 16, "caption_channels": 16, "patch_size": 1, "patch_size_t": 1}  # fmt: skip
    return LTXVideoTransformer3DModel(**config)


@pytest.mark.parametrize("make", [wan, ltx])
def test_video_models_take_a_time_for_each_frame(make):
    torch.manual_seed(0)
    model = make().eval()
    noisy, text = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 5, 16)
    condition = VideoCondition(text=text, mask=torch.ones(2, 5))
    one = call_video_model(model, noisy, torch.full((2,), 700.0), condition)
    each = call_video_model(model, noisy, torch.full((2, 3), 700.0), condition)
    torch.testing.assert_close(each, one, rtol=0, atol=1e-6)
    first_clean = call_video_model(model, noisy, torch.tensor([[0.0, 700.0, 700.0]] * 2), condition)
    assert (first_clean - one).abs().max() > 1e-4


def test_models_of_one_time_say_so():
    from diffusers import UNet3DConditionModel

    model = UNet3DConditionModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock3D",) * 2, up_block_types=("UpBlock3D",) * 2,
        layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match="timestep: one for each frame, which a UNet3DConditionModel does not take"):
        call_video_model(
            model, torch.zeros(1, 4, 2, 8, 8), torch.zeros(1, 2), VideoCondition(text=torch.zeros(1, 2, 8))
        )


class Exact:
    """A denoiser whose network knows the clean sample, and says what it was told and shown."""

    def __init__(self, process, x_0):
        self.process, self.x_0, self.seen = process, x_0, []

    def call(self, model, x, times, told):
        self.seen.append((x, times))
        return self.x_0


def test_known_frames_are_shown_clean_and_stay_to_the_bit(process):
    x_0 = torch.rand(2, 3, FRAMES, 5)
    known, exact = KnownFrames(x_0, torch.tensor([True, True, False, False])), Exact(process, x_0)
    ask = known.ask_under(lambda told: pytest.fail("asked without"), exact, None)(None)
    ask(torch.randn(4, 3, FRAMES, 5), Step(700.0, 0.7))  # rows of two conditions
    x, times = exact.seen[0]
    assert torch.equal(x[:, :, :2], torch.cat([x_0, x_0])[:, :, :2])
    assert times.tolist() == [[0.0, 0.0, 700.0, 700.0]] * 4
    drawn = torch.randn(2, 3, FRAMES, 5)
    whole = known.put_into(drawn)
    assert torch.equal(whole[:, :, :2], x_0[:, :, :2])
    assert torch.equal(whole[:, :, 2:], drawn[:, :, 2:])


@pytest.mark.parametrize("part", [(1, 4), (0, 4), (2, 2), (2, 6), (-2, 2), (0, 3)])
def test_parts_of_clips_are_whole_patches(motion, part):
    _, model, x_0, _ = motion
    with pytest.raises(
        ValueError, match=r"resample_frames: .* is no part of the 4 frames; allowed are multiples of 2"
    ):
        Resample().around(part, x_0, model)
    assert Resample().around((2, 4), x_0, model).known.tolist() == [True, True, False, False]


def test_what_does_not_fit_is_refused(motion, tiny_config, tmp_path):
    from cmd_video.training.config import TrainConfig

    denoiser, model, *_ = motion
    with pytest.raises(ValueError, match="first_frame: motion latents of a frame hang on all others"):
        Settings(first_frame=0.5).check_run("motion", 50)
    with pytest.raises(ValueError, match="process: 'bridge', but times of each frame"):
        Settings(process={"kind": "bridge"}).check_run("motion", 50)
    with pytest.raises(ValidationError, match="'frame_timesteps' is not for the stage 'content'"):
        TrainConfig.model_validate(tiny_config("content", tmp_path, objective={"kind": "frame_timesteps"}))


def test_a_run_learns(tiny_config, tmp_path, run_train, read_log):
    run_train(tiny_config("motion", tmp_path / "run", objective={"kind": "frame_timesteps", "independent": 0.5},
                          loop__steps=2, loop__validate_every=2))  # fmt: skip
    assert len(read_log(tmp_path / "run", "train")) == 2
