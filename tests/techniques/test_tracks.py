"""Points that follow tracks: where a flow is linear one step meets them all; and the descent on a real decoder."""

import pytest
import torch

from cmd_video.diffusion.plan import Step
from cmd_video.models import CMDAutoencoder, CMDWarpAutoencoder
from cmd_video.models.autoencoder_warp import unfolded, warp
from cmd_video.techniques.tracks import Settings, Track, Tracks

SIZE = (4, 8, 16)  # F, H, W
WEIGHTS = [0.02, 0.03, 0.9, 0.05]
ANCHOR = 2
MIDDLE = Step(500.0, 0.5)
WHOLE = {"rate": 2.0, "longest": 1e3, "descent_steps": 1}


class Sliding:
    """Every frame is the content frame, moved as a whole by what its motion latents say."""

    def __init__(self, **config) -> None:
        self.config = {"base": "warp", "fold": 1, "frame_weights": WEIGHTS, **config}
        self.config = type("Config", (dict,), {"__getattr__": dict.__getitem__})(self.config)

    def denormalize_latents(self, z):
        return z

    def decode_with_flow(self, content_frame, z, frames=None):
        flow = z[:, :, :, :1, None].expand(-1, -1, -1, *content_frame.shape[-2:])  # (B, 2, F, H, W)
        flow = flow if frames is None else flow[:, :, frames]
        return warp(content_frame, flow, 1), flow


@pytest.fixture
def sliding():
    return Sliding()


@pytest.fixture
def real():
    """A small decoder whose flow depends on what it is told."""
    torch.manual_seed(0)
    model = CMDWarpAutoencoder(in_channels=3, sample_size=SIZE[1:], num_frames=4, dim=16, encoder_depth=1,
                               decoder_depth=1, num_heads=2, latent_channels=4, head_channels=8, base="warp",
                               frame_weights=WEIGHTS).eval()  # fmt: skip
    for value in model.parameters():
        if not value.detach().any():
            torch.nn.init.normal_(value, std=0.2)
    return model


def noise(batch: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.cat([torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed + n)) for n in range(batch)])


def corrected(autoencoder, tracks, z, content_frame, clips=None, shown=None, step=MIDDLE, **settings):
    clips = list(range(len(z))) if clips is None else clips
    control = Settings(**settings).control(tracks, clips, SIZE, autoencoder)
    return control.correct(content_frame, z.shape[2], shown)(z, step)


def misfit(autoencoder, tracks, z, content_frame):
    control = Settings().control(tracks, list(range(len(z))), SIZE, autoencoder)
    places = control.places(ANCHOR, ANCHOR, SIZE[0], None)
    _, flow = autoencoder.decode_with_flow(content_frame, z, places.frames.tolist())
    return places.misfit(unfolded(flow, autoencoder.config.fold))


def test_an_object_is_moved_by_whole_pixels(sliding):
    """One pixel of white at (5, 3) of the content frame is dragged from 2 pixels left of it to 6 right, 1 up."""
    picture = torch.zeros(1, 3, *SIZE[1:])
    picture[:, :, 3, 5] = 1
    track = Track(points=[(0, 3.5, 3.5), (1, 7.5, 2.5), (2, 5.5, 3.5), (3, 11.5, 2.5)])
    z = corrected(sliding, [track], noise(1, 2, 4, 3, seed=1) / 9, picture, **WHOLE)
    clip, _ = sliding.decode_with_flow(picture, z)
    for frame, (x, y) in enumerate([(3, 3), (7, 2), (5, 3), (11, 2)]):
        expected = torch.zeros(8, 16)
        expected[y, x] = 1
        torch.testing.assert_close(clip[0, 0, frame], expected, rtol=0, atol=1e-4)


def test_between_its_points_a_track_is_linear_and_outside_them_free(sliding):
    z = corrected(
        sliding, [{"points": [[1, 2, 2], [3, 10, 6]]}], torch.zeros(1, 2, 4, 3), torch.zeros(1, 3, 8, 16), **WHOLE
    )
    _, flow = sliding.decode_with_flow(torch.zeros(1, 3, 8, 16), z)
    moved = flow[0, :, :, 0, 0].T * torch.tensor([8.0, 4.0])  # in pixels
    torch.testing.assert_close(moved, torch.tensor([[0.0, 0.0], [4.0, 2.0], [0.0, 0.0], [-4.0, -2.0]]))


def test_a_longer_clip_that_begins_earlier_is_told_the_same_path(sliding):
    """The content frame is frame 4 of 8; if it is frame 1 of what is asked for, frame 0 of that is frame 3 here."""
    z = corrected(
        sliding,
        [Track(points=[(0, 2, 4), (3, 8, 4)])],
        torch.zeros(1, 2, 8, 3),
        torch.zeros(1, 3, 8, 16),
        shown=1,
        **WHOLE,
    )
    _, flow = sliding.decode_with_flow(torch.zeros(1, 3, 8, 16), z)
    moved = flow[0, 0, :, 0, 0] * 8
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, -2.0, -4.0, 0.0]))


def test_no_steps_and_no_time_change_nothing(sliding):
    z, picture, track = noise(1, 2, 4, 3), torch.zeros(1, 3, 8, 16), [Track(points=[(0, 2, 4), (3, 8, 4)])]
    assert torch.equal(corrected(sliding, track, z, picture, descent_steps=0), z)
    assert torch.equal(corrected(sliding, track, z, picture, begin=0.4), z)
    assert not torch.equal(corrected(sliding, track, z, picture, begin=0.5), z)
    passed = corrected(sliding, track, noise(1, 2, 4, 3), picture, shown=40)  # a pass that shows other frames
    assert torch.equal(passed, z)


def test_the_last_step_is_corrected_wherever_it_starts(sliding):
    z, picture, track = noise(1, 2, 4, 3), torch.zeros(1, 3, 8, 16), [Track(points=[(0, 2, 4), (3, 8, 4)])]
    for last, same in ((0.0, True), (0.999, False)):
        control = Settings().control(track, [0], SIZE, sliding, last)
        assert torch.equal(control.correct(picture, 4)(z, Step(999.0, 0.999)), z) is same


def test_what_is_met_stays(sliding):
    z, picture, track = noise(1, 2, 4, 3), torch.zeros(1, 3, 8, 16), [Track(points=[(0, 2, 4), (3, 8, 4)])]
    met = corrected(sliding, track, z, picture, **WHOLE)
    torch.testing.assert_close(corrected(sliding, track, met, picture, **WHOLE), met, rtol=0, atol=1e-5)


def test_no_step_is_longer_than_the_longest(sliding):
    z, picture, track = noise(1, 2, 4, 3), torch.zeros(1, 3, 8, 16), [Track(points=[(0, 2, 4), (3, 8, 4)])]
    moved = corrected(sliding, track, z, picture, longest=0.01, descent_steps=1) - z
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.01, rel=1e-4)


def test_on_a_real_decoder_points_come_nearer(real):
    z, picture, tracks = noise(2, 4, 4, 12), noise(2, 3, 8, 16), [Track(points=[(0, 3, 4), (3, 9, 5)])]
    before = misfit(real, tracks, z, picture)
    after = misfit(real, tracks, corrected(real, tracks, z, picture, descent_steps=20), picture)
    assert (after < 0.5 * before).all()
    assert not any(value.grad is not None for value in real.parameters())


def test_a_batch_moves_as_its_clips_alone(real):
    z, picture = noise(3, 4, 4, 12), noise(3, 3, 8, 16)
    two = [Track(points=[(1, 2, 2), (2, 4, 4)]), Track(points=[(0, 9, 7), (3, 9, 1)])]
    tracks = [[Track(points=[(0, 3, 4), (3, 9, 5)])], two, [Track(points=[(2, 5, 5), (3, 5, 6)])]]
    both = corrected(real, tracks, z, picture)
    for number in range(3):
        one = slice(number, number + 1)
        alone = corrected(real, tracks[number], z[one], picture[one])
        torch.testing.assert_close(both[one], alone, rtol=0, atol=1e-4)


def test_it_works_in_inference_mode(real):
    z, picture, tracks = noise(1, 4, 4, 12), noise(1, 3, 8, 16), [Track(points=[(0, 3, 4), (3, 9, 5)])]
    expected = corrected(real, tracks, z, picture)
    with torch.inference_mode():
        inside = corrected(real, tracks, noise(1, 4, 4, 12), noise(1, 3, 8, 16))
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-6)
    assert not expected.requires_grad


GOOD = {"points": [[0, 2, 4], [3, 8, 4]]}


@pytest.mark.parametrize(
    ("tracks", "words"),
    [
        ([{"points": [[0, 2, 4]]}], "track 0: 1 points; allowed: 2 or more"),
        ([GOOD, {"points": [[0, 2, 4], [4, 8, 4]]}], "track 1, point 1: frame 4; allowed: 0 to 3"),
        ([{"points": [[-1, 2, 4], [3, 8, 4]]}], "track 0, point 0: frame -1; allowed: 0 to 3"),
        ([{"points": [[3, 2, 4], [1, 8, 4]]}], "track 0, point 1: frame 1 behind frame 3; allowed: rising"),
        ([{"points": [[1, 2, 4], [1, 8, 4]]}], "track 0, point 1: frame 1 behind frame 1; allowed: rising"),
        ([{"points": [[0, 2, 8.5], [3, 8, 4]]}], r"track 0, point 0: \(2, 8.5\) is outside; allowed: x 0 to 16"),
        ([{"points": [[0, 2, 4], [3, "left", 4]]}], "track 0: points.1.1: .* got 'left'; allowed: points of"),
        ([{"path": []}], "track 0: points: "),
        ([], "expected a list of tracks"),
        ("left", "expected a list of tracks, .*got 'left'"),
        ([[GOOD], [GOOD], [GOOD]], "3 lists of them for 2 clips; one for all, or one for each"),
    ],
)  # fmt: skip
def test_what_is_no_track_is_named(sliding, tracks, words):
    with pytest.raises(ValueError, match=f"^tracks: {words}"):
        Settings().control(tracks, [0, 1], SIZE, sliding)


@pytest.mark.parametrize(
    ("autoencoder", "words"),
    [
        (Sliding(base="none"), "this autoencoder predicts no flow .base 'none'."),
        (Sliding(base="content"), "this autoencoder predicts no flow .base 'content'."),
        (CMDAutoencoder(dim=16, num_heads=2, encoder_depth=1, decoder_depth=1), "this autoencoder predicts no flow"),
        (Sliding(frame_weights=None), ".*was not measured"),
        (Sliding(frame_weights=[0.4, 0.2, 0.2, 0.2]), ".*largest weight is 0.40, allowed: 0.5 or more"),
    ],
)  # fmt: skip
def test_what_cannot_follow_tracks_says_why(autoencoder, words):
    with pytest.raises(ValueError, match=f"^tracks: {words}"):
        Settings().control([GOOD], [0], SIZE, autoencoder)


def test_tracks_of_a_file_are_tracks(sliding):
    control = Settings().control(Tracks(tracks=(Track(**GOOD),)), [0, 0], SIZE, sliding)
    assert [len(each) for each in control.tracks] == [1, 1]
