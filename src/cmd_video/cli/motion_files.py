"""Files that say how a clip moves, plans and tracks, and the flow that says how it moved."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmd_video.data.files import whole_file, writable_file

from .errors import describe

if TYPE_CHECKING:
    from PIL.Image import Image


def flow_file(path: Path | None) -> Path | None:
    """The path of a flow to write, if there is one.

    Raises:
        ValueError: it cannot be written, or is of another format.
    """
    if path is None:
        return None
    if path.suffix != ".npz":
        raise ValueError(f"flow: {path} ends in {path.suffix!r}, allowed: .npz")
    return writable_file(path)


PlanFile = Annotated[
    Path | None, typer.Option(help="JSON of boxes over time, which what they hold of --image follows.", metavar="FILE")
]
TracksFile = Annotated[
    Path | None, typer.Option(help="JSON of paths along which points of the clip are dragged.", metavar="FILE")
]
FlowFile = Annotated[
    Path | None,
    typer.Option(
        "--flow", help="Also write where pixels come from: a .npz of all clips.", metavar="FILE", callback=flow_file
    ),
]


def read_plan(
    path: Path | None, motion_strength: float | None, num_clips: int, beside: dict[str, Any]
) -> dict[str, Any]:
    """`plan`, as a file has it, and `motion_strength`; nothing without a file.

    Raises:
        ValueError: it is no plan, the first frame is missing, or something is given beside it that would do nothing.
    """
    if path is None:
        if motion_strength is not None:
            raise ValueError(f"motion_strength: {motion_strength:g}, but there is no plan whose motion it changes")
        return {}
    if beside["image"] is None:
        raise ValueError(f"plan: {path}, but there is no image whose objects follow it")
    for name, value in {**beside, "num_clips": None if num_clips == 1 else num_clips}.items():
        if name != "image" and value is not None:
            raise ValueError(f"{name}: {value}, but beside a plan it does nothing; leave one of them out")
    from pydantic import ValidationError

    from cmd_video.pipelines.box_plan import Plan

    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"plan: {path}: {describe(error)}") from error
    return {"plan": plan.model_dump(mode="json"), "motion_strength": motion_strength or 0.0}


def following(pipe: Any, image: "Image", plan: dict[str, Any], motion_strength: float) -> Callable[..., Any]:
    """What makes clips that follow a plan, from the arguments of a pipeline."""
    from cmd_video.pipelines.box_plan import sketch
    from cmd_video.pipelines.inputs import default_size

    def make(num_frames: int | None, height: int | None, width: int | None, **settings: Any) -> Any:
        wanted = "{}x{}".format(*default_size(pipe, height, width))
        if wanted != f"{image.height}x{image.width}":
            raise ValueError(f"image: {image.height}x{image.width} (height x width), the clip is {wanted}")
        clip = sketch(plan, image, pipe.autoencoder.config.num_frames if num_frames is None else num_frames)
        return pipe.edit(clip[None], strength=0.0, motion_strength=motion_strength, **settings)

    return make


def read_tracks(path: Path | None) -> list[dict[str, Any]] | None:
    """The tracks of a file, as a record shows them; None without a file.

    Raises:
        ValueError: it holds something else.
    """
    if path is None:
        return None
    from pydantic import ValidationError

    from cmd_video.techniques.tracks import Tracks

    try:
        found: list[dict[str, Any]] = Tracks.model_validate_json(path.read_bytes()).model_dump(mode="json")["tracks"]
    except ValidationError as error:
        raise ValueError(f"tracks: {path}: {describe(error)}") from error
    return found


def write_flow(flows: list[Any], path: Path) -> None:
    """Flows of clips, (F, H, W, 2) each, as the array `flow` (N, F, H, W, 2) of a .npz."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, flow=np.stack(flows))
    print(path)
