"""Runs `train` in forks of one process that has imported everything, and kills them where a request says so.

Reads a JSON request per line: {"config": {...}} and at most one of
    "kill_after_cpu": s      SIGKILL from outside once the run has used s seconds of CPU time
    "kill_at_write": n       SIGKILL right before the n-th file operation of saving (and removing) checkpoints
    "kill_in_file": n        SIGKILL when half of the n-th safetensors file of the checkpoints is written
    "kill_in_parts": [rank, n] SIGKILL of that process in its n-th sharded checkpoint, when one of the files is written
    "signal": [number, step] the signal arrives during that step (counted from 0), at process "signal_rank" and, with
                             "signal_group", at its loading processes
    "signal_during": [...]   SIGTERM arrives when half of the first "save" is written, or with the averaged weights in
                             place in the first "validation"
    "nan": [rank, step]      the loss of that process is no number at that step
and optionally "processes": how many (gloo), "forget": what a broken resume would forget (data, ema, optimizer), or
"overwrite": checkpoints that are written over the last one, in place and without digests, "without_dropout": of
ModelScope's network, which has it built in, "end_with_the_first": what is left once one process ended by itself is
killed.
Answers a JSON line: exit codes (-9 = killed), CPU seconds, file operations of checkpoints, whether a save was on.
"""

import json
import math
import mmap
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

WRITES = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}  # audit events
DEADLINE = 240.0  # seconds for one run of a second or two: processes that wait for each other end too


def serve(request: dict[str, Any]) -> dict[str, Any]:
    shared = mmap.mmap(-1, 16)  # byte 0: inside a save; bytes 4 to 8: file operations so far
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(request.get("processes", 1)):
        child = os.fork()
        if child == 0:
            run(request, rank, port, shared)
        children.append(child)
    codes: dict[int, int] = {}
    cpu, limit, deadline = 0.0, request.get("kill_after_cpu"), time.monotonic() + DEADLINE
    while len(codes) < len(children):
        for child in children:
            if child in codes:
                continue
            done, status, usage = os.wait4(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                cpu += usage.ru_utime + usage.ru_stime
                continue
            alone = request.get("end_with_the_first") and any(code >= 0 for code in codes.values())
            if alone or time.monotonic() > deadline or (limit is not None and cpu_seconds(child) >= limit):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    writes = struct.unpack_from("<I", shared, 4)[0]
    return {"codes": [codes[child] for child in children], "cpu": cpu, "writes": writes, "in_save": bool(shared[0])}


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(request: dict[str, Any], rank: int, port: int, shared: mmap.mmap) -> NoReturn:
    code = 1
    try:
        import torch

        from cmd_video.training import loop
        from cmd_video.training.config import TrainConfig

        if request.get("signal_group"):
            os.setpgrp()
        if request.get("processes", 1) > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(request["processes"]),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
            )  # fmt: skip
        watch_saves(request, shared)
        kill_in_parts(request.get("kill_in_parts"), rank)
        send_signal(request, rank)
        signal_during(request.get("signal_during", []))
        spoil_loss(request, rank)
        if request.get("without_dropout"):
            torch.nn.functional.dropout = lambda values, *args, **kwargs: values
        forget(request.get("forget"))
        loop.train(TrainConfig.model_validate(request["config"]))
        code = 0
    except SystemExit as stop:
        code = stop.code
    except (ValueError, OSError) as error:  # what the command line says in one line
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def watch_saves(request: dict[str, Any], shared: mmap.mmap) -> None:
    from cmd_video.training import checkpoint, loop, run_state

    def marked(function):
        def call(*args, **kwargs):
            shared[0] = 1
            try:
                return function(*args, **kwargs)
            finally:
                shared[0] = 0

        return call

    count = 0

    def audit(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if shared[0] and event in WRITES:
            count += 1
            struct.pack_into("<I", shared, 4, count)
            if count == request.get("kill_at_write"):
                os.kill(os.getpid(), signal.SIGKILL)

    files, save_file = 0, checkpoint.save_file

    def save_half(tensors, path, *args, **kwargs) -> None:
        nonlocal files
        files += 1
        save_file(tensors, path, *args, **kwargs)
        if files == request.get("kill_in_file"):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = save_half
    run_state.save_checkpoint = marked(run_state.save_checkpoint)
    loop.remove_old_checkpoints = run_state.remove_old_checkpoints = marked(loop.remove_old_checkpoints)
    sys.addaudithook(audit)


def kill_in_parts(when: list[int] | None, rank: int) -> None:
    from cmd_video.training import sharded_checkpoint

    write_parts, calls = sharded_checkpoint.write_parts, 0

    def write_one(tensors, folder) -> None:
        nonlocal calls
        calls += 1
        if when == [rank, calls]:
            write_parts({"model": tensors["model"]}, folder)
            os.kill(os.getpid(), signal.SIGKILL)
        write_parts(tensors, folder)

    sharded_checkpoint.write_parts = write_one


def send_signal(request: dict[str, Any], rank: int) -> None:
    from cmd_video.training import loop

    number, when = request.get("signal", (None, None))
    learning_rate = loop.learning_rate

    def called_once_per_step(step: int, *args) -> float:
        if step == when and rank == request.get("signal_rank", 0):
            (os.killpg if request.get("signal_group") else os.kill)(os.getpid(), number)
        return learning_rate(step, *args)

    loop.learning_rate = called_once_per_step


def signal_during(places: list[str]) -> None:
    from cmd_video.training import checkpoint, loop

    def ill(function):
        def call(*args, **kwargs):
            nonlocal sent
            found = function(*args, **kwargs)
            if not sent:
                sent = True
                os.kill(os.getpid(), signal.SIGTERM)
            return found

        sent = False
        return call

    if "save" in places:
        checkpoint.save_file = ill(checkpoint.save_file)
    if "validation" in places:
        loop.EMAModel.copy_to = ill(loop.EMAModel.copy_to)


def spoil_loss(request: dict[str, Any], rank: int) -> None:
    from cmd_video.training.autoencoder_stage import AutoencoderStage

    where, when = request.get("nan", (None, None))
    forward = AutoencoderStage.forward

    def spoiled(self, batch):
        loss = forward(self, batch)
        return loss * math.nan if (rank, batch["step"]) == (where, when) and torch.is_grad_enabled() else loss

    import torch

    AutoencoderStage.forward = spoiled


def overwrite() -> None:
    from cmd_video.training import checkpoint

    @contextmanager
    def in_place(path: Path, replace: bool = False) -> Iterator[Path]:
        for last in checkpoint.list_checkpoints(path.parent)[-1:]:
            last.rename(path)
        path.mkdir(parents=True, exist_ok=True)
        yield path

    checkpoint.whole_folder = in_place
    checkpoint.verify_checkpoint = lambda path: None


def forget(what: str | None) -> None:
    from cmd_video.training import loop, run_state

    if what == "ema":
        loop.EMAModel.load_state_dict = lambda self, state: None
    elif what == "optimizer":
        run_state.unpack_optimizer = lambda *args: None
    elif what == "overwrite":
        overwrite()
    elif what == "data":
        sampler = loop.StepSampler
        loop.StepSampler = lambda first, last, *rest: sampler(0, last, *rest[:4])


def main() -> None:
    import PIL.Image  # noqa: F401
    import rich.progress  # noqa: F401
    import torch
    import torch.utils.tensorboard

    import cmd_video.training.loop  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # progress bars belong elsewhere
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
