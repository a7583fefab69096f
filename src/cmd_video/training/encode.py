"""Runs a trained autoencoder over clips once, so that the diffusion stages do not have to; in one process, or several.

encode_run(Path("runs/sprites/autoencoder"), Path("latents/sprites/train"), num_clips=10_000, processes=4)

Each process has every n-th shard. One that is killed is started again, and does the shard again that it was at.
With `executor="ray"` the processes are actors of Ray, on any number of machines (`ray_encoding`).
"""

import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from cmd_video.data.shares import WHOLE, Share

from .children import end_with
from .encoding import Encoding
from .ray_encoding import write_with_ray

MAX_STARTS = 4  # of the process of a share
Executor = Literal["local", "ray"]
Progress = Callable[[int], None]


def encode_run(
    run: Path,
    output: Path,
    num_clips: int,
    split: str = "train",
    *,
    share: Share | None = None,
    processes: int = 1,
    executor: Executor = "local",
    progress: Progress | None = None,
    **options: Any,
) -> int | None:
    """Encode the first clips of a run's data with its autoencoder.

    Args:
        run: a finished run that holds an autoencoder.
        output: folder for the shards.
        num_clips: how many clips.
        split: the run's training or validation data.
        share: the shards to write, where others are written elsewhere; None = all, and the index.
        processes: how many to start; 1 = this one does it. A script that starts more must be guarded by
            `if __name__ == "__main__"`. They share the threads of this one and the GPUs that there are.
        executor: who starts them: this process, or Ray, which knows more machines.
        progress: called with the number of clips done.
        options: further arguments of `Encoding`.

    Returns:
        Number of clips in `output`; None for a share.

    Raises:
        ValueError: as of `Encoding` and its methods; or Ray is to write a share, is not installed, or has no place.
        ChildProcessError: a process was killed again and again.
    """
    if executor not in get_args(Executor):
        raise ValueError(f"executor: {executor!r} is none of {', '.join(get_args(Executor))}")
    if executor == "ray" and share is not None:
        raise ValueError(f"share: {share.first}/{share.step}, but Ray deals out all shards itself")
    settings = {"run": run, "output": output, "num_clips": num_clips, "split": split, **options}
    if executor == "ray":
        encoding = Encoding(**{**settings, "device": "cpu"})
        write_with_ray(settings, encoding.shards, processes, progress)
    elif processes == 1:
        encoding = Encoding(**settings)
        encoding.write(share or WHOLE, progress)
    else:
        encoding = Encoding(**{**settings, "device": "cpu"})
        write_in_processes(settings, (share or WHOLE).split(processes), progress)
    return encoding.finish() if share is None else None


def write_in_processes(settings: dict[str, Any], shares: list[Share], progress: Progress | None = None) -> None:
    """Write shares of a folder, each in a process of its own.

    Args:
        settings: arguments of `Encoding`.
        shares: one for each process.
        progress: called with the number of clips done, of all shares.

    Raises:
        ValueError: what one of them says.
        ChildProcessError: one was killed again and again, or ended as it must not.
    """
    threads, done, starts = max(1, torch.get_num_threads() // len(shares)), [0] * len(shares), [0] * len(shares)
    working: dict[Any, tuple[int, Any]] = {}  # by what is received from it: place of its share, and the process

    def start(place: int) -> None:
        receiver, sender = context.Pipe(duplex=False)
        device = _device(settings.get("device", "cpu"), place)
        arguments = ({**settings, "device": device}, shares[place], sender, os.getpid(), threads)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        sender.close()  # so that the end of the process is the end of what is received
        working[receiver], starts[place] = (place, process), starts[place] + 1

    context = get_context("spawn")
    try:
        for place in range(len(shares)):
            start(place)
        while working:
            for receiver in wait(list(working)):
                place, process = working[receiver]
                message = _received(receiver)
                if isinstance(message, str):
                    raise ValueError(message)
                if message is None:
                    del working[receiver]
                    if _was_killed(process, shares[place], starts[place]):
                        start(place)
                else:
                    done[place] = message
                    if progress is not None:
                        progress(sum(done))
    finally:
        for _, process in working.values():
            process.kill()
            process.join()


def _work(settings: dict[str, Any], share: Share, sender: Connection, parent: int, threads: int) -> None:
    """What a process does; it sends how many clips are done, or why it cannot go on."""
    end_with(parent)
    torch.set_num_threads(threads)
    try:
        Encoding(**settings).write(share, sender.send)
    except (ValueError, OSError) as error:
        sender.send(str(error))


def _received(receiver: Any) -> int | str | None:
    """A message; None where there will be no more."""
    try:
        message: int | str = receiver.recv()
    except (EOFError, OSError):
        return None
    return message


def _was_killed(process: Any, share: Share, starts: int) -> bool:
    """Whether the work of a process that has ended is to be begun again."""
    process.join()
    if not process.exitcode:
        return False
    if process.exitcode > 0 or starts >= MAX_STARTS:
        how = f"ended with status {process.exitcode}" if process.exitcode > 0 else f"was killed {starts} times"
        raise ChildProcessError(f"processes: the one of shard {share.first}/{share.step} {how}")
    return True


def _device(device: str, place: int) -> str:
    """The device of a process: of several GPUs each has its own."""
    return f"cuda:{place % torch.cuda.device_count()}" if device == "cuda" else device
