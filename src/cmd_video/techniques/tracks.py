"""Points that are dragged along paths: sparse tracks, as those of Motion-I2V (arXiv 2401.15977), without training.

    cmd-video generate "a red circle moves" --content-frame middle.png --tracks tracks.json -o out.mp4
    pipe(prompt, tracks=[Track(points=[(0, 12.5, 40), (15, 50, 40)])])

An autoencoder with `base: warp` or `layers` moves the pixels of the content frame by a flow that its decoder predicts:
at place p of frame f it shows what is at p + flow_f(p) of the content frame. So a point that lies at c in the content
frame is seen at p in frame f if p + flow_f(p) = c. At each step of the motion model the clean estimate z goes down

    L(z) = mean over frames of |p + flow_f(x_c, z)(p) - c|^2, of a window around p that moves as one piece,

by rate L / |L'|^2 L', a step whose length follows from how far L is from 0 (Polyak's; rate 2 meets one place in one
step where the flow is linear in z). c is the track's own place in the frame that the content frame nearly is. Between
its points a track is linear in time; outside them the point goes where the model likes. Sampled by DDIM,
whose steps add the noise that the network said again, not the one that would go with the corrected estimate.

Costs `descent_steps` times the autoencoder's decoder there and back at each step. It needs a flow, and a content frame
that is nearly one frame (`frame_weights`). Differs from paper: that trains a flow model and a ControlNet for tracks;
here the flow is the autoencoder's own, and its gradient does what the ControlNet learns.

B batch, C channels, F frames, h, w latents, D motion channels, N places that points are to have, R places of a window.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor
from torch.nn.functional import grid_sample

from cmd_video.diffusion.correction import Correct
from cmd_video.diffusion.plan import Step
from cmd_video.models.anchor import ONE_FRAME, anchor
from cmd_video.models.autoencoder_warp import check_flow, unfolded
from cmd_video.section import Section


class Track(Section):
    """Where one point of what a clip shows is over time."""

    points: tuple[tuple[int, float, float], ...]
    """(frame, x, y), frames from 0 on and rising, places in pixels of the clip from its upper left corner: pixel n
    reaches from n to n + 1."""


class Tracks(Section):
    """The tracks of a clip, as a file has them: {"tracks": [{"points": [[0, 12.5, 40], [15, 50, 40]]}]}."""

    tracks: tuple[Track, ...] = Field(min_length=1)
    """One for each point that is dragged."""


class Settings(Section):
    """How points are made to follow their tracks."""

    kind: Literal["tracks"] = "tracks"
    begin: float = Field(0.75, gt=0, le=1)
    """Diffusion time from which on, downwards to clean, estimates are corrected, those of the last step always; above
    it hardly anything of them reaches the next step."""
    descent_steps: int = Field(2, ge=0)
    """How often a clean estimate goes down at each step of the motion model; 0 = tracks change nothing."""
    rate: float = Field(2.0, gt=0)
    """Of Polyak's step, 2 = all the way where the flow is linear in the motion latents."""
    longest: float = Field(1.0, gt=0)
    """Most that one step moves normalised motion latents, as a root mean square."""
    radius: float = Field(0.03, ge=0)
    """Half side of the window that moves with a point, as a share of the clip's shorter side; 0 = the point alone."""

    def control(
        self, tracks: Any, clips: Sequence[int], size: tuple[int, int, int], autoencoder: Any, last: float = 0.0
    ) -> "Control":
        """What makes clips follow tracks.

        Args:
            tracks: of all clips, or a list for each prompt, class or picture; `Track`s or what makes them.
            clips: for each clip the number of its prompt, class or picture.
            size: F, H and W of the clips, in pixels.
            autoencoder: whose flow it is.
            last: diffusion time at which the last step starts.

        Raises:
            ValueError: they are no tracks, do not fit the clips, or the autoencoder cannot follow them.
        """
        check_flow("tracks", autoencoder)
        weights = autoencoder.config.get("frame_weights")
        if weights is None or max(weights) < ONE_FRAME:
            found = "was not measured (frame_weights)" if weights is None else f"is {max(weights):.2f}"
            raise ValueError(
                f"tracks: a point needs a place in the content frame, of which one frame makes up most; here the "
                f"largest weight {found}, allowed: {ONE_FRAME:g} or more"
            )
        groups = read_tracks(tracks, max(clips) + 1)
        for group in groups:
            check_tracks(group, *size)
        own = [groups[number if len(groups) > 1 else 0] for number in clips]
        return Control(self.model_copy(update={"begin": max(self.begin, last)}), own, size, autoencoder)


class Places:
    """Places that points are to have, in half frame widths from the middle of the clip.

    Args:
        clips: of which clip each is, (N,).
        frames: in which frame each is, (N,).
        wanted: where, (N, 2) as (x, y).
        origins: where in the content frame, (N, 2).
        window: places around each that are to move with it, relative to it, (R, 2).
    """

    def __init__(self, clips: Tensor, frames: Tensor, wanted: Tensor, origins: Tensor, window: Tensor) -> None:
        self.clips, self.wanted, self.origins, self.window = clips, wanted, origins, window
        self.frames, self.numbers = frames.unique(return_inverse=True)  # those to be decoded, and which of them

    def misfit(self, flow: Tensor) -> Tensor:
        """The mean square by which points of each clip come from elsewhere than their origins: (B,).

        Args:
            flow: (B, F, 2, H, W), of the frames of `frames`, in half frame widths.
        """
        around = (self.wanted[:, None] + self.window)[:, None]  # (N, 1, R, 2)
        field = flow[self.clips, self.numbers]  # (N, 2, H, W)
        moved = grid_sample(field, around, padding_mode="border", align_corners=False)[:, :, 0]  # (N, 2, R)
        squares = (moved + (self.wanted - self.origins)[:, :, None]).square().sum(1).mean(1)  # (N,)
        counts = torch.bincount(self.clips, minlength=len(flow)).clamp(min=1)
        return squares.new_zeros(len(flow)).index_add(0, self.clips, squares) / counts


class Control:
    """Corrections of the motion model's clean estimates, for clips that follow tracks.

    Args:
        settings: how.
        tracks: of each clip.
        size: F, H and W of the clips, in pixels.
        autoencoder: whose flow it is.
    """

    def __init__(
        self, settings: Settings, tracks: Sequence[Sequence[Track]], size: tuple[int, int, int], autoencoder: Any
    ) -> None:
        self.settings, self.tracks, self.autoencoder = settings, tracks, autoencoder
        _, self.height, self.width = size

    def correct(self, content_frame: Tensor, num_frames: int, shown: int | None = None) -> Correct:
        """The correction for one pass of the motion model.

        Args:
            content_frame: (B, C, h, w).
            num_frames: F of the pass.
            shown: number of the frame, of the clips that are asked for, that the content frame is; None = that of a
                clip of this length.
        """
        own = anchor(self.autoencoder.config.frame_weights, num_frames)
        places = self.places(own if shown is None else shown, own, num_frames, content_frame.device)
        settings = self.settings

        def correct(x_0: Tensor, step: Step) -> Tensor:
            if places is None or step.time > settings.begin:
                return x_0
            for _ in range(settings.descent_steps):
                x_0 = self._descended(x_0, content_frame, places)
            return x_0

        return correct

    def places(self, shown: int, own: int, num_frames: int, device: Any) -> Places | None:
        """Where points are to be in a clip of so many frames, whose frame `own` is frame `shown` of what is asked for;
        None where none is in it.
        """
        rows: list[tuple[float, ...]] = []  # clip, frame, x, y, and x, y in the content frame
        for clip, tracks in enumerate(self.tracks):
            for track in tracks:
                known, *lines = zip(*track.points, strict=True)
                frames = np.arange(max(known[0], shown - own), min(known[-1], shown - own + num_frames - 1) + 1)
                *there, origin = zip(*(np.interp([*frames, shown], known, line) for line in lines), strict=True)
                rows += [(clip, frame - shown + own, *at, *origin) for frame, at in zip(frames, there, strict=True)]
        if not rows:
            return None
        with torch.inference_mode(False):  # gradients pass through what is made of them
            table = torch.tensor(rows, dtype=torch.float32, device=device)
            sides = torch.tensor([self.width, self.height], dtype=torch.float32, device=device)
            line = torch.linspace(-1, 1, 5 if self.settings.radius else 1, device=device)
            window = torch.cartesian_prod(line, line).view(-1, 2) * self.settings.radius * 2 * sides.min() / sides
            places = table[:, 2:].unflatten(1, (2, 2)) / sides * 2 - 1  # (N, 2, 2)
            return Places(table[:, 0].long(), table[:, 1].long(), places[:, 0], places[:, 1], window)

    def _descended(self, x_0: Tensor, content_frame: Tensor, places: Places) -> Tensor:
        """Normalised motion latents (B, D, F, H' + W') one step further down."""
        with torch.inference_mode(False), torch.enable_grad():
            z = x_0.detach().float().clone().requires_grad_()
            latents = self.autoencoder.denormalize_latents(z.to(content_frame.dtype))
            _, flow = self.autoencoder.decode_with_flow(content_frame.clone(), latents, places.frames.tolist())
            misfit = places.misfit(unfolded(flow, self.autoencoder.config.fold))  # (B,)
            (slope,) = torch.autograd.grad(misfit.sum(), z)  # a batch moves as its clips alone
        around = (-1, *[1] * (z.ndim - 1))
        steepness = slope.square().flatten(1).sum(1).clamp(min=torch.finfo(slope.dtype).tiny)  # (B,)
        move = slope * (self.settings.rate * misfit.detach() / steepness).view(around)
        length = move.square().flatten(1).mean(1).sqrt().clamp(min=self.settings.longest)
        return x_0 - (move * (self.settings.longest / length).view(around)).to(x_0)


def read_tracks(tracks: Any, count: int) -> list[list[Track]]:
    """Tracks of all clips, one list, or a list for each of `count`.

    Raises:
        ValueError: they are something else.
    """
    if isinstance(tracks, Tracks):
        tracks = tracks.tracks
    if not isinstance(tracks, (list, tuple)) or not tracks:
        raise ValueError(f"tracks: expected a list of tracks, or such a list for each clip, got {tracks!r:.80}")
    groups = list(tracks) if all(isinstance(each, (list, tuple)) for each in tracks) else [tracks]
    if len(groups) not in (1, count):
        raise ValueError(f"tracks: {len(groups)} lists of them for {count} clips; one for all, or one for each")
    return [[_read_track(track, number) for number, track in enumerate(group)] for group in groups]


def _read_track(track: Any, number: int) -> Track:
    try:
        return Track.model_validate(track)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(key) for key in problem["loc"])
        raise ValueError(
            f"tracks: track {number}: {place}: {problem['msg']}, got {problem['input']!r:.80}; allowed: points of "
            "(frame, x, y)"
        ) from error


def check_tracks(tracks: Sequence[Track], num_frames: int, height: int, width: int) -> None:
    """Raise a ValueError that names track and point, value and what is allowed, unless they fit a clip.

    Args:
        tracks: of the clip.
        num_frames: F.
        height: H in pixels.
        width: W.
    """
    for number, track in enumerate(tracks):
        if len(track.points) < 2:
            raise ValueError(f"tracks: track {number}: {len(track.points)} points; allowed: 2 or more")
        before = -1
        for place, (frame, x, y) in enumerate(track.points):
            where = f"tracks: track {number}, point {place}"
            if not 0 <= frame < num_frames:
                raise ValueError(f"{where}: frame {frame}; allowed: 0 to {num_frames - 1}")
            if frame <= before:
                raise ValueError(f"{where}: frame {frame} behind frame {before}; allowed: rising frames")
            if not (0 <= x <= width and 0 <= y <= height):
                raise ValueError(f"{where}: ({x:g}, {y:g}) is outside; allowed: x 0 to {width}, y 0 to {height}")
            before = frame
