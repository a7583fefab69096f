"""Clips that start, or end, at given pictures, without training: roll forward, then refine.

    cmd-video generate "a red ball moves up" --image first.png --last-image last.png -o out.mp4
    pipe(prompt, image=first);  pipe(prompt, last_image=last);  pipe(prompt, image=first, last_image=last)

An autoencoder whose content frame is all but one frame of the clip, its k-th, makes clips around a picture: drawn with
a given picture as content frame, a clip passes through that picture at frame k and goes on. So a picture that belongs
at frame p is first taken as the content frame of a longer clip (pass 1), of which the frame k - p after the picture is
what a clip with the picture at p has at k: the content frame of pass 2. Then Adam moves the motion latents, and hardly
the content frame, towards |g(x_c, z)[p] - picture|^2 = 0 at the given frames. Pictures at both ends: each is rolled to
frame k, the nearer one counts.

Costs a short second pass of the motion model instead of the content model's, and `refine_steps` of the autoencoder's
decoder there and back. It needs a content frame that is nearly one frame, which the autoencoder measures
(`frame_weights`); the paper's own mixes them freely. What pass 1 says of the motion must go on in pass 2.

Differs from paper: there is none; CMD (arXiv 2403.14148) gives no first frame. ViBiDSampler (arXiv 2410.05651) treats
the same task by sampling in both directions.

B batch, C channels, F frames, h, w latents, D motion channels.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from cmd_video.denoisers.given_frames import Decode, refined
from cmd_video.models.anchor import anchor
from cmd_video.section import Section

# content frame, F, most steps and, if it is not that of a clip of F frames, the number of the frame that the content
# frame is, of the clip that is asked for, or the given frames -> normalised motion latents
Draw = Callable[..., Tensor]


class Settings(Section):
    """How given frames are met."""

    kind: Literal["roll_forward"] = "roll_forward"
    roll_steps: int | None = Field(5, ge=1)
    """Most steps of the motion model in pass 1, of which one frame counts; null = as many as in pass 2. A distilled
    model takes its own."""
    refine_steps: int = Field(5, ge=0)
    """Steps of Adam on the motion latents; 0 = roll forward alone."""
    learning_rate: float = Field(0.05, gt=0)
    """Of Adam, for normalised motion latents."""
    content_rate: float = Field(0.01, ge=0)
    """The same for the content frame, where several frames are given; 0 = it stays."""

    tells: ClassVar[bool] = False  # the networks are asked as ever

    def frames(
        self, given: Mapping[int, Tensor], frames: int, weights: list[float], patch: int, draw: Draw, decode: Decode
    ) -> tuple[Tensor, Tensor]:
        """Content frame (B, C, h, w) and normalised motion latents (B, D, F, H' + W') of clips with given frames.

        Args:
            given: pictures (B, C, h, w) in the autoencoder's space, by their frame's number.
            frames: F.
            weights: how much each frame counts in the content frame, of a clip of any length.
            patch: what lengths must be multiples of.
            draw: the motion model.
            decode: the autoencoder.
        """
        nearest, place = nearest_to_anchor(given, frames, weights), anchor(weights, frames)

        def passing(picture: Tensor, length: int, steps: int | None) -> Tensor:
            return draw(picture, length, steps, nearest)

        content_frame = roll(given[nearest], place - nearest, frames, weights, patch, self.roll_steps, passing, decode)
        motion_latents = draw(content_frame, frames, None, given=given)
        return self.refine(given, content_frame, motion_latents, decode)

    def passes(self, numbers: Iterable[int], frames: int, weights: list[float]) -> tuple[int | None, ...]:
        """Most steps of each pass of the motion model, for given frames of these numbers; None = as many as asked."""
        rolled = nearest_to_anchor(numbers, frames, weights) != anchor(weights, frames)
        return (self.roll_steps, None) if rolled else (None,)

    def refine(
        self, given: Mapping[int, Tensor], content_frame: Tensor, motion_latents: Tensor, decode: Decode
    ) -> tuple[Tensor, Tensor]:
        """The two moved so that the clip has the given frames; arguments as `frames`."""
        content_rate = self.content_rate if len(given) > 1 else 0.0
        return refined(
            given, content_frame, motion_latents, decode, self.refine_steps, self.learning_rate, content_rate
        )


def nearest_to_anchor(numbers: Iterable[int], frames: int, weights: list[float]) -> int:
    """Of some frames the one next to the content frame's."""
    return min(numbers, key=lambda number: abs(number - anchor(weights, frames)))


def roll(
    picture: Tensor, offset: int, frames: int, weights: list[float], patch: int, steps: int | None, draw: Draw,
    decode: Decode,
) -> Tensor:  # fmt: skip
    """What is to be seen so many frames after a picture, before it where negative: (B, C, h, w) as the picture.

    Raises:
        ValueError: before it, and the content frame is the first of its clip's.
    """
    if offset == 0:
        return picture
    if offset < 0 and anchor(weights, len(weights)) == 0:
        raise ValueError("frames: what was before the content frame, where it is the first frame, cannot be seen")
    length = frames
    while not 0 <= anchor(weights, length) + offset < length:
        length += patch
    passing = draw(
        picture, length, steps
    )  # (B, D, F, H' + W'), of a clip that passes through the picture at its anchor
    return decode(picture, passing, [anchor(weights, length) + offset])[:, :, 0]
