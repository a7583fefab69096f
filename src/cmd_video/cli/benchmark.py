"""`cmd-video benchmark`: what a clip costs: operations, parameters, memory, seconds, beside the peers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DTYPES, Json, Plot, find_dtype

if TYPE_CHECKING:
    from cmd_video.benchmark.system import Size

PRESET_NAMES = "quality, fast, turbo"


def command(
    systems: Annotated[
        list[str] | None,
        typer.Argument(
            help="A model folder, a training config (.yaml), cmd-sd15, cmd-sd21 (also as cmd-sd21:fast) or a peer; "
            "default: the model that ships with the package.",
            metavar="SYSTEM...",
        ),
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="CMD under each preset and all peers.")] = False,
    training: Annotated[
        bool, typer.Option("--training", help="A training step of CMD's stages and ModelScope.")
    ] = False,
    resolution: Annotated[
        list[str] | None, typer.Option(metavar="HxW", help="May be given several times; default: the model's own.")
    ] = None,
    frames: Annotated[list[int] | None, typer.Option(min=1, help="May be given several times; default 16.")] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Of CMD: {PRESET_NAMES}; default: as the model is saved.")
    ] = None,
    motion_size: Annotated[
        str | None, typer.Option(help="Motion transformer of cmd-sd15 and cmd-sd21: S, B, L, XL; default XL.")
    ] = None,
    device: Annotated[str, typer.Option(help="meta counts only; cpu and cuda also time.")] = "meta",
    dtype: Annotated[
        str | None,
        typer.Option(help=f"Of the weights: {', '.join(DTYPES)}; default: float32 on a CPU, else bfloat16."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips at once.")] = 1,
    compiled: Annotated[bool, typer.Option("--compile", help="Time denoisers through torch.compile.")] = False,
    runs: Annotated[int | None, typer.Option(min=1, help="Timed runs; default 20, on a CPU 5.")] = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """What a clip costs: operations in both conventions, parameters, memory, seconds; denoiser and end to end.

    Example: cmd-video benchmark cmd-sd21 modelscope --resolution 512x1024
    """
    from cmd_video.benchmark.measure import cost
    from cmd_video.benchmark.peers import PEERS
    from cmd_video.benchmark.timing import check_device
    from cmd_video.studies.training_cost import training_cost

    presets = [f"cmd-sd21:{name}" for name in PRESET_NAMES.split(", ")]
    names = [*(systems or []), *([*presets, *PEERS] if peers else [])]
    names = names or ([] if training else ["default"])
    recipes = [Path(name) for name in names if name.endswith((".yaml", ".yml"))]
    names = [name for name in names if not name.endswith((".yaml", ".yml"))]
    _refuse_idle(names, frames, resolution, peers, plot, preset, motion_size, batch, compiled, runs, device)
    if dtype is not None and recipes and not names and not training:
        raise ValueError("--dtype: a recipe trains in its own precision, and is counted in float32")
    dtype = dtype or ("float32" if device == "cpu" or not (names or training) else "bfloat16")
    find_dtype(dtype)
    check_device(device)
    sizes = _sizes(resolution or (["256x256", "512x512", "512x1024"] if peers else []), frames or [16])
    report = _Report(json, plot, device, dtype)
    for name in names:
        for size in (*sizes,) or (None,):
            kind = find_dtype(dtype)
            report.add(cost(name, size, preset, motion_size or "XL", kind, batch, device, runs, compiled))
    size, kind = sizes[0] if resolution else None, find_dtype(dtype)
    report.training = training_cost(recipes, size, training, kind, device, runs or 5)
    report.finish()


def _refuse_idle(
    names: list[str], frames: list[int] | None, resolution: list[str] | None, peers: bool, plot: Path | None,
    preset: str | None, motion_size: str | None, batch: int, compiled: bool, runs: int | None, device: str,
) -> None:  # fmt: skip
    """Raise a ValueError for options that would do nothing."""
    from cmd_video.benchmark.measure import CMD_NAMES
    from cmd_video.benchmark.peers import PEERS

    own = [name for name in names if ":" not in name and name not in PEERS]
    mistakes = (
        (bool(frames) and not (resolution or peers), "--frames: give a --resolution with it"),
        (plot is not None and not names, "--plot: there is nothing to plot but training steps"),
        (preset is not None and not own, "--preset: of CMD only, and with --peers each preset has its row"),
        (motion_size is not None and not any(name.partition(":")[0] in CMD_NAMES for name in names),
         "--motion-size: of cmd-sd15 and cmd-sd21 only"),
        (batch > 1 and not names, "--batch: of training steps it is always 1"),
        (len(resolution or ()) * len(frames or [0]) > 1 and not names, "--resolution: one only for training steps"),
        (compiled and (device == "meta" or not names), "--compile: needs a system to time, and --device cpu or cuda"),
        (runs is not None and device == "meta", "--runs: nothing is timed on the device meta"),
    )  # fmt: skip
    for applies, message in mistakes:
        if applies:
            raise ValueError(message)


def _sizes(resolutions: list[str], frames: list[int]) -> "list[Size]":
    from cmd_video.benchmark.system import Size

    sizes = []
    for text in resolutions:
        height, _, width = text.partition("x")
        if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
            raise ValueError(f"--resolution: {text!r} is not of the form HxW, such as 512x1024")
        sizes += [Size(int(height), int(width), count) for count in frames]
    return sizes


class _Report:
    """Prints and writes what was measured; the file after every system, so that none is lost with the next one."""

    def __init__(self, json: Path | None, plot: Path | None, device: str, dtype: str) -> None:
        from cmd_video.benchmark.timing import describe_device

        self.json, self.plot, self.quiet = json, plot, json == Path("-")
        where = "counted on the meta device" if device == "meta" else describe_device(device)
        self.protocol = {"device": where, "dtype": dtype}
        self.rows: list[dict[str, Any]] = []
        self.training: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if not self.quiet:
            done = "done" if row["failure"] is None else row["failure"]
            print(f"{row['name']} {row['frames']}x{row['height']}x{row['width']}: {done}", flush=True)
            self._write()

    def finish(self) -> None:
        import json as encoder

        from cmd_video.benchmark.report import markdown, plot_costs, training_markdown

        if self.quiet:
            print(encoder.dumps({**self.protocol, "systems": self.rows, "training": self.training}, indent=1))
        else:
            if self.rows:
                print("\n" + markdown(self.rows))
            if self.training:
                print("\n" + training_markdown(self.training))
            self._write()
            if self.json is not None:
                print(self.json)
        if self.plot is not None:
            plot_costs(self.rows, self.plot)
            if not self.quiet:
                print(self.plot)

    def _write(self) -> None:
        from cmd_video.evaluation.protocol.results import write_result

        if self.json is not None:
            write_result(self.json, "benchmark", {"systems": self.rows, "training": self.training}, self.protocol)
