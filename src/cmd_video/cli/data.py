"""`cmd-video data check|index|import|encode`: look over, list and unpack training data, precompute latents."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cmd_video.data.files import writable_file, writable_folder

from .options import Device

app = typer.Typer(help="Look over, list, unpack and encode training data: check, index, import, encode.")


@app.command("check")
def check_command(
    path: Annotated[Path, typer.Argument(help="Folder, manifest, video file or training configuration.")],
    kind: Annotated[
        str,
        typer.Option(
            help="auto, or how the set lies on disk: manifest, captioned_folder, class_folder, ucf101, webvid, "
            "frame_folders."
        ),
    ] = "auto",
    num_frames: Annotated[int, typer.Option(min=1, help="Frames that a training clip needs.")] = 16,
    stride: Annotated[int, typer.Option(min=1, help="Every stride-th frame is taken.")] = 1,
    video_root: Annotated[Path | None, typer.Option(help="Folder of the clips (ucf101, webvid).")] = None,
    split: Annotated[str | None, typer.Option(help="train1 ... test3 (ucf101).")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model whose tokenizer the captions are for: a folder, hub id or `default`.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every verdict to this file.")] = None,
    digests_file: Annotated[
        Path | None,
        typer.Option("--write-digests", help="Write a .jsonl manifest of the usable clips, with their sha256."),
    ] = None,
) -> None:
    """Decode every clip from end to end and say which can be used for training, and why the others cannot; what was
    found and is not used is counted and named.

    A file whose sha256 is not the one in its manifest is damaged.

    Of a table (.parquet) of more than 10,000 clips so many, evenly drawn, are looked at.

    Of a training configuration (.yaml) all its clips are looked at, as it reads them, and its captions.

    Example: cmd-video data check clips/ --num-frames 16 --stride 2
    """
    from rich.console import Console
    from rich.text import Text

    from cmd_video.data.check import Report, to_look_at
    from cmd_video.data.digests import write_digests
    from cmd_video.data.manifest import list_clips

    for option, file in (("--json", json_file), ("--write-digests", digests_file)):
        _check_writable(option, file)
    if digests_file is not None and digests_file.suffix != ".jsonl":
        raise ValueError(f"--write-digests: {digests_file} must end in .jsonl")
    if path.suffix in (".yaml", ".yml"):
        given = {"--kind": kind != "auto", "--video-root": video_root, "--split": split, "--tokenizer": tokenizer}
        if twice := [option for option, value in {**given, "--write-digests": digests_file}.items() if value]:
            raise ValueError(f"{', '.join(twice)}: {path} is a training configuration, which says that itself")
        sets = _sets_of(path)
    else:
        manifest = list_clips(path, kind, video_root=video_root, split=split)
        if digests_file is not None and to_look_at(manifest) is not manifest:
            raise ValueError(f"--write-digests: of the {len(manifest.records)} clips of {path} a sample is decoded")
        sets = [(str(path), manifest, num_frames, stride, _cut(manifest, tokenizer, str(path)))]
    console = Console(soft_wrap=True)
    reports = []
    for title, whole, frames, step, cut in sets:
        reports.append(_look_over(whole, frames, step))
        sampled = f", a sample of {len(whole.records)} clips" if reports[-1].unseen else ""
        _show(console, f"{title}: {frames} frames, stride {step}{sampled}", reports[-1], cut)
    if json_file is not None:
        verdicts = [verdict for report in reports for verdict in report.verdicts]
        left_out = [each for report in reports for each in report.left_out]
        Report(verdicts, left_out, sum(report.unseen for report in reports)).save(json_file)
        console.print(Text(str(json_file)))
    if digests_file is not None:
        write_digests(digests_file, sets[0][1], reports[0].usable())
        console.print(Text(str(digests_file)))


def _look_over(whole: Any, num_frames: int, stride: int) -> Any:
    """The report about the clips of a set, or a sample of a large table, with a progress bar."""
    from rich.console import Console
    from rich.progress import track

    from cmd_video.data.check import Report, check_clips, to_look_at
    from cmd_video.data.manifest import paths_of

    manifest = to_look_at(whole)
    progress = track(paths_of(manifest), "decoding", console=Console(stderr=True), transient=True)
    report = check_clips(progress, num_frames, stride, {each.path: each.sha256 for each in manifest.records})
    left_out = [each for each in manifest.left_out if each.path not in manifest.missing]
    return Report(report.verdicts, left_out, len(whole.records) - len(manifest.records))


def _check_writable(option: str, file: Path | None) -> None:
    if file is not None:
        writable_file(file)
        if not file.absolute().parent.is_dir():
            raise FileNotFoundError(2, f"{option}: no such folder", str(file.parent))


def _show(console: Any, title: str, report: Any, cut: list[str]) -> None:
    """A table of the verdicts, then each clip that is not simply usable, what was left out, and cut captions."""
    from rich.table import Table
    from rich.text import Text

    table = Table("verdict", "clips", title=title)
    for verdict, number in report.counts().items():
        table.add_row(verdict, str(number))
    table.add_section()
    table.add_row("total", str(len(report.verdicts)))
    if report.left_out:
        table.add_row("left out", str(len(report.left_out)))
    console.print(table)
    for found in report.verdicts:
        if found.verdict != "ok":
            console.print(Text(f"{found.verdict}: {found.path}: {found.reason}"))
    for left in report.left_out:
        console.print(Text(f"left out: {left.path}: {left.reason}"))
    for line in cut:
        console.print(Text(line))


def _cut(manifest: Any, tokenizer: str | None, title: str) -> list[str]:
    """Lines about clips without captions, and about captions that the tokenizer of a model cuts."""
    from cmd_video.data.listing import tell
    from cmd_video.data.records import as_clips

    lines = manifest.remarks()[len(tell(manifest.left_out)) :]
    if tokenizer is None:
        return lines
    captions = as_clips(manifest.records).prompts
    if not any(captions):
        raise ValueError(f"--tokenizer: {title} has no captions; --kind says where they are")
    from cmd_video.training.captions import cut_by
    from cmd_video.training.components import build_components
    from cmd_video.training.config import ComponentConfig

    parts = build_components({"tokenizer": ComponentConfig(path=tokenizer)})
    return lines + cut_by(parts, captions, title, len(manifest.records))


def _sets_of(path: Path) -> list[tuple[str, Any, int, int, list[str]]]:
    """Of a training configuration both sets of clips: title, manifest, frames, stride, lines about captions."""
    from cmd_video.data.manifest import list_clips
    from cmd_video.data.records import as_clips
    from cmd_video.training.captions import cut_by, tokenizers_of
    from cmd_video.training.config import VideoData, load_config

    config = load_config(path)
    named = {"data": config.data, "validation.data": config.validation.data}
    files = {place: data for place, data in named.items() if isinstance(data, VideoData)}
    if not files:
        raise ValueError(f"{path}: data.kind: {config.data.kind!r}, there are no clips to look over")
    manifests = {
        place: list_clips(data.path, data.kind, video_root=data.video_root, split=data.split)
        for place, data in files.items()
    }
    parts = tokenizers_of(config)
    return [
        (
            f"{place} of {path}",
            manifest,
            files[place].num_frames,
            files[place].stride,
            _cut(manifest, None, place)
            + cut_by(parts, as_clips(manifest.records).prompts, place, len(manifest.records)),
        )
        for place, manifest in manifests.items()
    ]


@app.command("index")
def index_command(
    path: Annotated[Path, typer.Argument(help="Folder or manifest.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Table to write, a .parquet file.", callback=writable_file)
    ],
    kind: Annotated[str, typer.Option(help="As of `data check`.")] = "auto",
    video_root: Annotated[Path | None, typer.Option(help="Folder of the clips (ucf101, webvid).")] = None,
    split: Annotated[str | None, typer.Option(help="train1 ... test3 (ucf101).")] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Read size, frames, rate and duration of every clip.")
    ] = True,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that look at clips.")] = 0,
) -> None:
    """List a set once and write a table of its clips, which opens at once however many they are. Its clips are read
    as any other set's: `kind: manifest` and its path.

    Clips that are not there are left out and counted. Paths in the table are relative to its folder.

    Example: cmd-video data index results_10M_train.csv --video-root videos/ -o clips.parquet --num-workers 16
    """
    from rich.progress import Progress

    from cmd_video.data.index import index_clips

    with Progress() as progress:
        task = progress.add_task("clips", total=None)
        facts = index_clips(
            path,
            output,
            kind,
            video_root=video_root,
            split=split,
            probe=probe,
            num_workers=num_workers,
            progress=lambda done: progress.update(task, completed=done),
        )
    for line in facts.remarks:
        print(line)
    print(f"{output}: {facts.rows} clips")


@app.command("import")
def import_command(
    shards: Annotated[list[str], typer.Argument(help="Tar files; {00000..00999}, {a,b} and * stand for several.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write; a second call goes on.", callback=writable_folder)
    ],
) -> None:
    """Unpack tar shards of others (key.mp4 with key.txt or key.json) into a folder of clips with captions, which
    `data check` and `data index` read as captioned_folder.

    What cannot be taken is named by shard and key. Nothing is written outside the folder.

    Example: cmd-video data import 'shards/{00000..00999}.tar' -o clips/
    """
    from rich.progress import Progress

    from cmd_video.data.listing import tell
    from cmd_video.data.tar_shards import import_shards

    with Progress() as progress:
        task = progress.add_task("shards", total=None)
        found = import_shards(shards, output, lambda done, total: progress.update(task, completed=done, total=total))
    for left in found.left_out:
        print(f"left out: {left.path}: {left.reason}")
    for line in tell(found.left_out):
        print(line)
    skipped = f", {found.skipped} shards were there" if found.skipped else ""
    print(f"{output}: {found.clips} clips{skipped}")


@app.command("encode")
def encode_command(
    run: Annotated[Path, typer.Argument(help="A finished run that holds an autoencoder.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write; a second call goes on.", callback=writable_folder)
    ],
    num_clips: Annotated[int, typer.Option(min=1, help="Clips; at most the whole set in each pass.")] = 10_000,
    passes: Annotated[
        int, typer.Option(min=1, help="Go through a small set of videos so often, at other places each time.")
    ] = 1,
    split: Annotated[str, typer.Option(help="The run's train or validation data.")] = "train",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 16,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the run's data: data.field=value.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: only the shards i, i + n, ...; other processes write the others.")
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="Write the index of shards that are all there.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes to start.")] = 1,
    end_frames: Annotated[
        bool, typer.Option("--end-frames", help="Keep first and last frames, for models that are told them.")
    ] = False,
    executor: Annotated[
        str, typer.Option(help="local: on this machine; or ray: where Ray has a place (RAY_ADDRESS).")
    ] = "local",
    device: Device = "cpu",
) -> None:
    """Write content frames and motion latents of a run's clips, so that the diffusion stages do not run the
    autoencoder.

    Example: cmd-video data encode runs/sprites/autoencoder -o latents/sprites/train
    """
    if split not in ("train", "validation"):
        raise ValueError(f"--split: {split!r} is neither train nor validation")
    if finish and (shard is not None or processes > 1):
        raise ValueError("--finish: writes the index alone, without --shard and --processes")
    if executor == "ray" and (finish or shard is not None):
        raise ValueError("--executor: ray deals out all shards and writes the index, without --shard and --finish")
    from rich.progress import Progress

    from cmd_video.data.shares import read_share
    from cmd_video.training.encode import encode_run
    from cmd_video.training.encoding import Encoding

    chosen: dict[str, Any] = {"run": run, "output": output, "num_clips": num_clips, "split": split}
    chosen |= {"batch_size": batch_size, "device": device, "overrides": overrides, "passes": passes}
    chosen["end_frames"] = end_frames
    if finish:
        Encoding(**chosen).finish()
        _tell_encoded(output)
        return

    with Progress() as progress:
        task = progress.add_task("clips", total=num_clips)
        encode_run(
            **chosen,
            share=None if shard is None else read_share(shard),
            processes=processes,
            executor=executor,  # type: ignore[arg-type]  # which says what is allowed
            progress=lambda done: progress.update(task, completed=done),
        )
    if shard is None:
        _tell_encoded(output)
    else:
        print(output)


def _tell_encoded(output: Path) -> None:
    """How many clips of a finished folder of latents could not be read, and where it is."""
    from cmd_video.data.files import read_json

    index = read_json(output / "index.json", dict)
    asked = index["recipe"]["clips"]
    if index["clips"] < asked:
        print(f"{asked - index['clips']} of {asked} clips could not be read")
    print(output)
