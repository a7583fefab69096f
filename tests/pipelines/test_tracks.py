"""Tracks and the flow, through the whole pipeline."""

from typing import Any

import pytest
import torch

from cmd_video.models import CMDWarpAutoencoder
from cmd_video.techniques.tracks import Track

TRACKS = [Track(points=((0, 3, 4), (3, 11, 6)))]


@pytest.fixture
def warping(text_pipeline):
    """The text pipeline with an autoencoder that moves pixels of 16x16."""
    settings = {**text_pipeline.autoencoder.config, "fold": 2, "stem_channels": 8, "head_channels": 8, "base": "warp"}
    torch.manual_seed(0)
    fields = {name: value for name, value in settings.items() if not name.startswith("_")}
    autoencoder = CMDWarpAutoencoder(**fields).eval()
    for value in autoencoder.parameters():
        if not value.detach().any():
            torch.nn.init.normal_(value, std=0.2)
    text_pipeline.register_modules(autoencoder=autoencoder)
    return text_pipeline


def steered(pipeline: Any, **settings: Any) -> Any:
    return pipeline.sampling.laid_over({"control": {"kind": "tracks", **settings}, "motion": {"eta": 0.0}})


def test_without_tracks_nothing_changes_to_the_bit(warping, generate):
    plain = generate(warping, "a ball").frames
    assert torch.equal(generate(warping, "a ball", tracks=None, output_flow=True).frames, plain)
    own = generate(warping, "a ball", sampling=steered(warping)).frames
    assert torch.equal(
        own, generate(warping, "a ball", sampling=warping.sampling.laid_over({"motion": {"eta": 0.0}})).frames
    )
    without = generate(warping, "a ball", tracks=TRACKS, sampling=steered(warping, descent_steps=0)).frames
    assert torch.equal(without, own)
    torch.testing.assert_close(own, plain, rtol=0, atol=1e-4)  # which is DDIM too
    assert (generate(warping, "a ball", tracks=TRACKS).frames - plain).abs().max() > 1e-2


def misses(flow: torch.Tensor, content: tuple[float, float], points: dict[int, tuple[float, float]]) -> float:
    """Mean distance in pixels from where points come from to where they lie in the content frame."""
    off = []
    for frame, (x, y) in points.items():
        dx, dy = flow[0, frame, int(y), int(x)]
        off.append(((int(x) + 0.5 + dx - content[0]) ** 2 + (int(y) + 0.5 + dy - content[1]) ** 2) ** 0.5)
    return float(sum(off) / len(off))


@pytest.mark.parametrize("given", [{}, {"content_frame": 0}, {"image": 0}])
def test_points_come_nearer_to_their_tracks(warping, generate, make_image, given):
    pictures = {name: make_image() for name in given}
    track, points = Track(points=((0, 3.5, 4.5), (2, 7.5, 6.5), (3, 11.5, 6.5))), {0: (3.5, 4.5), 3: (11.5, 6.5)}
    off = []
    for steps in (0, 8):
        how = steered(warping, descent_steps=steps, radius=0, begin=1).laid_over(
            {"given_frames": {"kind": "roll_forward", "refine_steps": 0}}
        )
        made = generate(
            warping, "a ball", tracks=[track], output_flow=True, sampling=how, num_inference_steps=4, **pictures
        )
        off.append(misses(made.flow, (7.5, 6.5), points))
    assert off[1] < 0.7 * off[0], off


def test_a_batch_equals_its_clips(warping, generate):
    each = [TRACKS, [{"points": [[1, 8, 8], [2, 4, 2]]}, {"points": [[0, 2, 2], [3, 2, 12]]}]]
    prompts = ["a red ball", "a blue square"]
    both = generate(warping, prompts, seed=[0, 1], tracks=each).frames
    twice = generate(warping, prompts, seed=[0, 1, 0, 1], tracks=each, num_videos_per_prompt=2).frames
    for number in range(2):
        alone = generate(warping, prompts[number], seed=[number], tracks=each[number]).frames
        torch.testing.assert_close(both[number : number + 1], alone, rtol=0, atol=1e-3)
    torch.testing.assert_close(twice[[0, 3]], both, rtol=0, atol=1e-3)
    shared = generate(warping, prompts, seed=[0, 1], tracks=TRACKS).frames
    torch.testing.assert_close(shared[:1], both[:1], rtol=0, atol=1e-3)


def test_a_constant_flow_is_whole_pixels(warping, generate):
    """Every pixel comes from 3 to the right and 2 below: the content frame moves to the left and up."""
    last, area = warping.autoencoder.head.conv_out, 4
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        last.bias[-2 * area : -area], last.bias[-area:] = 3 * 2 / 16, 2 * 2 / 16
    out = generate(warping, "a ball", output_flow=True)
    assert out.flow.shape == (1, 4, 16, 16, 2)
    torch.testing.assert_close(out.flow, torch.tensor([3.0, 2.0]).expand(1, 4, 16, 16, 2))
    moved = out.content_frames[:, :, 2:, 3:]
    for frame in out.frames[0]:
        torch.testing.assert_close(frame[None, :, :-2, :-3], moved, rtol=0, atol=1e-4)


def test_the_flow_is_of_the_kind_of_the_output(warping, generate):
    pictures = generate(warping, "a ball", output_flow=True, output_type="pil")
    tensor = generate(warping, "a ball", output_flow=True, output_type="latent").flow
    assert pictures.flow.dtype == "float32" and isinstance(tensor, torch.Tensor)
    assert (torch.from_numpy(pictures.flow) == tensor).all()
    assert generate(warping, "a ball").flow is None
    assert len(generate(warping, "a ball", output_flow=True, return_dict=False)) == 4


def test_between_latents_the_flow_is_interpolated(make_text_pipeline, generate):
    pipeline = make_text_pipeline("kl")
    fields = {name: value for name, value in pipeline.autoencoder.config.items() if not name.startswith("_")}
    pipeline.register_modules(autoencoder=CMDWarpAutoencoder(**{**fields, "head_channels": 8, "base": "warp"}).eval())
    with torch.no_grad():
        pipeline.autoencoder.head.conv_out.bias[-2:] = torch.tensor([0.25, -0.5])
    flow = generate(pipeline, "a ball", output_flow=True).flow
    torch.testing.assert_close(flow, torch.tensor([2.0, -4.0]).expand(1, 4, 16, 16, 2), rtol=0, atol=1e-5)
    assert generate(pipeline, "a ball", tracks=TRACKS).frames.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tracks": TRACKS, "num_clips": 2}, "num_clips: 2, but tracks are of one clip"),
        ({"output_flow": True, "num_clips": 2}, "output_flow: 2 clips in a row"),
        ({"tracks": [{"points": [[0, 3, 4], [4, 3, 4]]}]}, "tracks: track 0, point 1: frame 4; allowed: 0 to 3"),
        ({"tracks": [{"points": [[0, 3, 4], [3, 17, 4]]}]}, r"tracks: track 0, point 1: \(17, 4\) is outside"),
        ({"tracks": TRACKS, "sampling": {"motion": {"process": {"kind": "bridge"}}}}, "process: .*'bridge'"),
        ({"sampling": {"control": {"kind": "roll_forward"}}}, "none of tracks"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(warping, generate, arguments, words):
    with pytest.raises(ValueError, match=words):
        generate(warping, "a ball", **arguments)


def test_without_a_flow_both_are_refused(text_pipeline, generate):
    for name, value in (("tracks", TRACKS), ("output_flow", True)):
        with pytest.raises(ValueError, match=f"^{name}: this autoencoder predicts no flow .base 'none'."):
            generate(text_pipeline, "a ball", **{name: value})
