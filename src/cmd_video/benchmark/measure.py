"""What a clip costs, in one call: operations, parameters, memory, and seconds where a device is given.

row = cost("cmd-sd21:fast", Size(512, 1024, 16));  row["end_to_end_flops"]
"""

from typing import Any

import torch

from cmd_video.pipelines.loading import load_pipeline
from cmd_video.pipelines.shipped import model_folder

from .cmd_system import cmd_system, paper_system
from .peers import PEERS, build_peer
from .report import describe
from .system import Size, System, measure_cost
from .timing import compile_denoisers, time_system

CMD_NAMES = ("cmd-sd15", "cmd-sd21")  # CMD around Stable Diffusion, in the paper's sizes


def cost(
    system: str,
    size: Size | None = None,
    preset: str | None = None,
    motion_size: str = "XL",
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
    device: str = "meta",
    runs: int | None = None,
    compiled: bool = False,
) -> dict[str, Any]:
    """Count a system on the meta device, and time it where another device is asked for and has room for it.

    Args:
        system: see `find_system`.
        size: of the clip; default: the model's own, of the others 16 frames of 512x512.
        preset: of CMD; default: as the model is saved.
        motion_size: motion transformer of cmd-sd15 and cmd-sd21: S, B, L or XL.
        dtype: of the weights.
        batch: clips at once.
        device: "meta" counts only; "cpu" and "cuda" also time.
        runs: that are timed; default 20, on a CPU 5.
        compiled: time the denoisers through `torch.compile`.

    Returns:
        a row of `report.describe`; `failure` says why nothing was timed, where a device's memory did not suffice.

    Raises:
        ValueError: no such system, or a size that it does not take.
    """

    def build(place: str) -> System:
        return find_system(system, size, preset, motion_size, dtype, place).with_batch(batch)

    counted = build("meta")
    timing, failure = None, None
    if device != "meta":
        try:
            real = build(device)
            if compiled:
                compile_denoisers(real)
            timing = time_system(real, device, runs or (5 if device == "cpu" else 20))
        except torch.OutOfMemoryError as error:  # of a GPU; the next system may fit
            failure = str(error).splitlines()[0]
    return {**describe(counted, measure_cost(counted), timing, memory=True), "failure": failure}


def find_system(
    system: str,
    size: Size | None = None,
    preset: str | None = None,
    motion_size: str = "XL",
    dtype: torch.dtype = torch.float32,
    device: str = "meta",
) -> System:
    """A system by name: a model's folder or name, cmd-sd15, cmd-sd21 (also as cmd-sd21:fast), or a peer.

    Raises:
        ValueError: there is none.
    """
    base, _, own_preset = system.partition(":")
    if base in CMD_NAMES:
        chosen = own_preset or preset or "quality"
        return paper_system(base[4:], size or Size(512, 512), chosen, motion_size, device=device, dtype=dtype)
    if system in PEERS:
        return build_peer(system, size or Size(512, 512), device, dtype)
    if not model_folder(system).exists():
        allowed = ", ".join(("default", *CMD_NAMES, *PEERS))
        raise ValueError(f"system: {system!r} is no folder, no .yaml file and none of {allowed}")
    pipe = load_pipeline(system, device, preset, dtype)
    rows, columns = pipe.autoencoder.config.sample_size
    own = Size(rows * pipe.ratio, columns * pipe.ratio, pipe.autoencoder.config.num_frames)
    return cmd_system(pipe, size or own, name=f"{system} {preset or ''}".strip())
