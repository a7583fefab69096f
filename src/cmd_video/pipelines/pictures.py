"""Pictures that a user gives: content frames, or first and last frames.

pixels = read_image(picture)             # (3, H, W) in [0, 1]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch

from cmd_video.data.picture_file import upright_rgb
from cmd_video.models.anchor import ONE_FRAME

from .inputs import as_list, check_multiple

ENDS = ("image", "last_image")  # arguments that are frames of the clip


def ends_of(pictures: Mapping[str, Any], num_frames: int) -> dict[int, Any]:
    """Those that are frames of a clip, by the number of their frame."""
    places = dict(zip(ENDS, (0, num_frames - 1), strict=True))
    return {places[name]: picture for name, picture in pictures.items() if name in places}


def how_many(pictures: Mapping[str, Any]) -> int:
    """Clips that they are for."""
    return max((len(as_list(each)) for each in pictures.values()), default=0)


def check_pictures(
    pictures: Mapping[str, Any], height: int, width: int, num_frames: int, weights: list[float] | None,
    references: int | None = None,
) -> None:  # fmt: skip
    """Raise a ValueError unless all are pictures of this size, see `read_image`, and the model can use them.

    Args:
        pictures: by the name of the argument.
        height: H of the clip.
        width: W.
        num_frames: F.
        weights: the autoencoder's `frame_weights`.
        references: how many frames the content model can be told, where it is to be told them; None = it is not.
    """
    for name, given in pictures.items():
        for picture in as_list(given):
            found = tuple(read_image(picture, name).shape[1:])
            if found != (height, width):
                raise ValueError(f"{name}: {found[0]}x{found[1]} (height x width), the clip is {height}x{width}")
    ends = [name for name in ENDS if name in pictures]
    if not ends:
        return
    if "content_frame" in pictures:
        raise ValueError(f"content_frame: given beside {ends[0]}; give one of them")
    if num_frames < 2 and len(ends) > 1:
        raise ValueError(f"num_frames: {num_frames}, but first and last frame are two")
    if references is not None:
        check_told(ends[-1], ENDS.index(ends[-1]) + 1, references)
        return
    check_anchor(ends[0], weights)
    if ends == ["last_image"] and weights is not None and weights[0] == max(weights):
        raise ValueError("last_image: this model's content frame is the first frame; give image as well")


def check_num_clips(
    num_clips: int, pictures: Mapping[str, Any], num_frames: int, weights: list[float] | None, output_type: str,
    references: int | None = None,
) -> None:  # fmt: skip
    """Raise a ValueError unless so many clips can follow each other; arguments as `check_pictures`."""
    check_multiple("num_clips", num_clips, 1)
    if num_clips == 1:
        return
    if references is None:
        check_anchor("num_clips", weights)
    else:
        check_told("num_clips", 1, references)
    if num_frames < 2:
        raise ValueError(f"num_clips: {num_clips} clips of one frame are one frame; give num_frames of at least 2")
    if output_type == "latent":
        raise ValueError(f"num_clips: {num_clips}, but output_type 'latent' is of one clip")
    if "last_image" in pictures:
        raise ValueError(f"num_clips: {num_clips}, but last_image is the end of one clip")


def check_anchor(name: str, weights: list[float] | None) -> None:
    """Raise a ValueError that begins with this name unless the content frame is nearly one frame of its clip."""
    if weights is None:
        raise ValueError(
            f"{name}: how much each frame counts in this model's content frame was not measured (frame_weights of the "
            "autoencoder); give content_frame instead"
        )
    if max(weights) < ONE_FRAME:
        raise ValueError(
            f"{name}: this model's content frame mixes its frames (largest weight {max(weights):.2f}, needed "
            f"{ONE_FRAME:g}); give content_frame instead, or a model trained with objective.anchor_weight"
        )


def check_told(name: str, needed: int, references: int) -> None:
    """Raise a ValueError that begins with this name unless the content model can be told so many frames."""
    if references < needed:
        raise ValueError(
            f"{name}: sampling.given_frames tells the networks, but this content model can be told {references} "
            f"frames, needed {needed} (first; first and last); train it with edit.kind reference_frames"
        )


def read_batch(pictures: Any, num_videos: int = 1) -> torch.Tensor:
    """One picture or several, each so many times: (B, 3, H, W) in [-1, 1]."""
    pixels = torch.stack([read_image(picture) for picture in as_list(pictures)]) * 2 - 1
    return pixels.repeat_interleave(num_videos, dim=0)


def read_region(
    regions: Any, height: int, width: int, output_type: str, count: int, num_videos: int
) -> torch.Tensor | None:
    """Where clips move: (1, H, W) or (B, H, W) in [0, 1], by how bright a picture is; None is everywhere.

    Args:
        regions: one picture for all clips, or one for each of `count`.
        height: H.
        width: W.
        output_type: of the call.
        count: prompts, classes or pictures of the call.
        num_videos: clips for each of these.

    Raises:
        ValueError: a picture cannot be read or is of another size, or there is another number of them, or what comes
            out has no pixels.
    """
    if regions is None:
        return None
    if output_type == "latent":
        raise ValueError("motion_region: output_type 'latent' has no pixels that it could be laid over")
    found = _one_or_each("motion_region", regions, height, width, count)
    return torch.stack(found).mean(dim=1).repeat_interleave(1 if len(found) == 1 else num_videos, dim=0)


def read_structure(
    pictures: Any, beside: Mapping[str, Any], height: int, width: int, count: int
) -> list[torch.Tensor]:
    """Pictures whose structure content frames get, (3, H, W) in [0, 1], one for each of `count`; None are none.

    Args:
        pictures: one for all, or one for each of `count`.
        beside: pictures that are given for something else, by the name of the argument.
        height: H of the clip.
        width: W.
        count: prompts or classes of the call.

    Raises:
        ValueError: a picture cannot be read or is of another size, there is another number of them, or the content
            frame is not generated.
    """
    if pictures is None:
        return []
    for name in beside:
        raise ValueError(f"structure_image: given beside {name}, with which no content frame is generated; give one")
    found = _one_or_each("structure_image", pictures, height, width, count)
    return found * count if len(found) == 1 else found


def _one_or_each(name: str, pictures: Any, height: int, width: int, count: int) -> list[torch.Tensor]:
    """Pictures of this size, (3, H, W) in [0, 1], one for all or one for each of `count`; a ValueError names what does
    not fit.
    """
    found = [read_image(picture, name) for picture in as_list(pictures)]
    for picture in found:
        if picture.shape[1:] != (height, width):
            size = f"{picture.shape[1]}x{picture.shape[2]}"
            raise ValueError(f"{name}: {size} (height x width), the clip is {height}x{width}")
    if len(found) not in (1, count):
        raise ValueError(f"{name}: {len(found)} pictures for {count} clips; one for all, or one for each")
    return found


def read_clips(video: Any) -> torch.Tensor:
    """Clips as the models take them: float32 (B, 3, F, H, W) in [-1, 1].

    Args:
        video: a tensor (B, F, 3, H, W) of floats in [0, 1]; or a clip or a list of clips, each a list of pictures as
            `read_image` takes, or an array (F, H, W, 3).

    Raises:
        ValueError: it is something else, or the frames have several sizes or numbers.
    """
    dimensions = getattr(video, "ndim", None)
    if isinstance(video, torch.Tensor) and dimensions != 5:
        raise ValueError(f"video: a tensor {tuple(video.shape)} is not (B, F, 3, H, W)")
    several = dimensions == 5 or (isinstance(video, (list, tuple)) and len(video) and _is_clip(video[0]))
    clips = [[read_image(frame, "video") for frame in clip] for clip in (video if several else [video])]
    shapes = {tuple(frame.shape) for clip in clips for frame in clip}
    if len({len(clip) for clip in clips}) != 1 or len(shapes) != 1:
        sizes, numbers = sorted(f"{shape[1]}x{shape[2]}" for shape in shapes), sorted({len(clip) for clip in clips})
        raise ValueError(f"video: frames of sizes {sizes}, {numbers} of them; all clips must be alike, and not empty")
    return torch.stack([torch.stack(clip, dim=1) for clip in clips]) * 2 - 1


def _is_clip(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 4


def read_image(image: Any, name: str = "image") -> torch.Tensor:
    """A picture as numbers: float32 (3, H, W) in [0, 1].

    Args:
        image: of Pillow, read as files of training data are: turned upright, transparency laid on black, 16 bits
            scaled to 8; an array of whole numbers, read as the same picture would be: uint8 (H, W), (H, W, 3) or
            (H, W, 4), uint16 (H, W); or floats in [0, 1], a tensor (3, H, W) or an array (H, W, 3).
        name: of the argument, for messages.

    Raises:
        ValueError: it is something else, or its values lie elsewhere.
    """
    if isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.integer):
        image = _of_whole_numbers(image, name)
    if isinstance(image, PIL.Image.Image):
        try:
            pixels = np.array(upright_rgb(image))
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}: {error}") from error
        return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
    kind = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    if isinstance(image, np.ndarray) and image.ndim == 3 and np.issubdtype(image.dtype, np.floating):
        image = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    if not (isinstance(image, torch.Tensor) and image.is_floating_point() and image.ndim == 3 and len(image) == 3):
        raise ValueError(
            f"{name}: expected PIL images, or floats in [0, 1], a tensor (B, 3, H, W) or an array (B, H, W, 3), "
            f"found {kind}"
        )
    if not image.isfinite().all() or image.numel() and not 0 <= float(image.min()) <= float(image.max()) <= 1:
        raise ValueError(
            f"{name}: values from {float(image.min()):g} to {float(image.max()):g}, floats must lie in [0, 1]"
        )
    return image.detach().float()


def _of_whole_numbers(pixels: np.ndarray, name: str) -> PIL.Image.Image:
    """An array of whole numbers as the picture that it is."""
    dimensions = {"uint8": (2, 3), "uint16": (2,)}.get(str(pixels.dtype), ())
    if pixels.ndim not in dimensions or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or not pixels.size:
        raise ValueError(
            f"{name}: found {pixels.dtype} {pixels.shape}; whole numbers may be uint8 (H, W), (H, W, 3), (H, W, 4) or "
            "uint16 (H, W)"
        )
    return PIL.Image.fromarray(pixels)
