"""Features of student and teacher that belong together, and the discriminator that looks at them."""

import pytest
import torch

from cmd_video.pruning.pruned_models import prune
from cmd_video.pruning.recovery import (
    FeatureDiscriminator,
    by_frame,
    content_loss,
    discriminator_loss,
    encoder_taps,
    generator_loss,
    shared_stages,
    spread,
    tap,
)


def features(student, teacher, call):
    pairs = shared_stages(student, teacher)
    with torch.no_grad(), tap(teacher, [pair.teacher for pair in pairs]) as taught:
        call(teacher)
    with torch.no_grad(), tap(student, [pair.student for pair in pairs]) as learned:
        call(student)
    return learned, taught


@pytest.fixture
def denoiser(denoiser_example, awake):
    return awake(denoiser_example)


def test_features_of_a_pruned_model_match_its_teachers(denoiser_example, denoiser, selection):
    learned, taught = features(
        prune(denoiser, selection(denoiser, denoiser_example.removed)), denoiser, denoiser_example.call
    )
    assert len(learned) >= 2 and content_loss(learned, taught) > 0


def test_features_of_an_unpruned_model_are_its_teachers(denoiser_example, denoiser, selection):
    learned, taught = features(prune(denoiser, selection(denoiser, ())), denoiser, denoiser_example.call)
    assert content_loss(learned, taught) == 0


def test_a_block_stands_for_those_left_out_after_it(transformer_example, awake, selection):
    teacher, removed = awake(transformer_example), transformer_example.removed
    pairs = shared_stages(prune(teacher, selection(teacher, removed)), teacher, most=99)
    for name in removed:
        parent, number = name.rsplit(".", 1)
        first = all(f"{parent}.{before}" in removed for before in range(int(number)))
        if not first and f"{parent}.{int(number) + 1}" not in removed:
            assert name in {pair.teacher for pair in pairs}


def test_the_encoder_is_left_behind_its_last_tap(denoiser_example, denoiser):
    taps, reached = encoder_taps(denoiser), []
    last = list(denoiser.children())[-1]
    handle = last.register_forward_hook(lambda *_: reached.append(1))
    with torch.no_grad(), tap(denoiser, taps, stop=True) as found:
        denoiser_example.call(denoiser)
    handle.remove()
    assert len(found) == len(taps) and not reached
    assert not any(module._forward_hooks for module in denoiser.modules())


def test_features_by_frame():
    unet = torch.arange(2 * 3).view(6, 1, 1, 1).expand(6, 4, 5, 7).float()  # (B * F, C, h, w)
    assert torch.equal(by_frame(unet, 2, 3)[:, :, 0, 0, 0], torch.arange(6).view(2, 3).float())
    tokens = torch.arange(2 * 3 * 4).view(1, 24, 1).repeat(2, 1, 5).float()  # (B, S, C): 3 frames of 4, 12 others
    frames = by_frame(tokens, 2, 3, tokens=12)
    assert frames.shape == (2, 3, 5, 1, 4)
    assert torch.equal(frames[0, 1, 0, 0], torch.tensor([4.0, 5, 6, 7]))
    pictures = by_frame(tokens, 2, 3, tokens=12, rows=2)
    assert torch.equal(pictures[0, 1, 0], torch.tensor([[4.0, 5], [6, 7]]))


def test_spread_keeps_the_last():
    assert spread(range(10), 3) == [2, 6, 9] and spread([1, 2], 3) == [1, 2]


def test_temporal_heads_see_the_order_of_frames_and_spatial_ones_do_not():
    torch.manual_seed(0)
    discriminator = FeatureDiscriminator([6, 4], temporal=True)
    clip = [torch.randn(2, 5, 6, 4, 4), torch.randn(2, 5, 4, 1, 3)]
    level = torch.tensor([10, 500])
    scores = discriminator(clip, level)
    shuffled = discriminator([feature[:, [2, 0, 4, 1, 3]] for feature in clip], level)
    assert scores.shape == (2, 4)
    torch.testing.assert_close(scores[:, :2], shuffled[:, :2])
    assert (scores[:, 2:] - shuffled[:, 2:]).abs().min() > 1e-6
    assert not torch.allclose(scores, discriminator(clip, level.flip(0)))


def test_hinge_in_closed_form():
    teacher, student = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 1.0]])
    assert discriminator_loss(teacher, student) == pytest.approx((0 + 0.5) / 2 + (0 + 2) / 2)
    assert generator_loss(student) == pytest.approx(1.0)


def test_the_distance_of_features_is_a_sum_over_stages():
    """Of means over numbers: another stage adds its own, however many there are."""
    student = [torch.zeros(2, 3, 4), torch.zeros(5, 6)]
    teacher = [torch.full((2, 3, 4), 2.0), torch.full((5, 6), 3.0)]
    assert content_loss(student, teacher) == pytest.approx(4 + 9)
    assert content_loss(student * 2, teacher * 2) == pytest.approx(2 * (4 + 9))


def test_features_that_do_not_go_together():
    with pytest.raises(ValueError, match="teacher: its features .* do not match"):
        content_loss([torch.zeros(1, 2)], [torch.zeros(1, 3)])
