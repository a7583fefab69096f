"""What reading latents shard by shard costs, against holding all of them: memory, and clips a second of one process.

python benchmarks/scale.py latents -o scale-latents.json

Clips of random numbers are written once. Each way reads in a process of its own: in block order, as training does; at
random over the whole set; and from memory. The first pass also compares each shard with its digest. The disk's cache
is warm, so this is what reading computes.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from cmd_video.data.latent_shards import TENSORS, read_shard
from cmd_video.data.latents import LatentsDataset, write_latents
from cmd_video.data.order import BlockOrder

CONTENT_FRAME, MOTION_LATENTS = (12, 32, 32), (4, 16, 64)  # 64x64 pixels folded by 2, 16 frames
PROTOCOL = {"content_frame": CONTENT_FRAME, "motion_latents": MOTION_LATENTS}
Read = Callable[[int], dict[str, Any]]


def batches(shards: int, clips: int) -> Iterator[dict[str, Any]]:
    """Random numbers in the form that an autoencoder would give."""
    for number in range(shards):
        draw = torch.Generator().manual_seed(number)
        yield {
            "content_frame": torch.randn(clips, *CONTENT_FRAME, generator=draw),
            "motion_latents": torch.randn(clips, *MOTION_LATENTS, generator=draw),
            "prompt": [
                f"clip {place} of shard {number}, in which a ball rolls to the right" for place in range(clips)
            ],
            "class_label": torch.zeros(clips),
        }


def in_blocks(folder: Path) -> Read:
    """As training reads."""
    return LatentsDataset(folder).__getitem__


def at_random(folder: Path) -> Read:
    """The same, every clip from anywhere."""
    dataset = LatentsDataset(folder)
    dataset._order = BlockOrder([shard.clips for shard in dataset._shards], key=[0], window=10**9)
    return dataset.__getitem__


def from_memory(folder: Path) -> Read:
    """All tensors held, as versions before this one did."""
    shards = [read_shard(path) for path in sorted(folder.glob("shard-*.safetensors"))]
    tensors = {name: torch.cat([shard.tensors[name] for shard in shards]) for name in TENSORS}
    prompts = [prompt for shard in shards for prompt in shard.prompts]
    del shards
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()

    def read(number: int) -> dict[str, Any]:
        clip = order[number % len(order)]
        return {name: tensor[clip].float() for name, tensor in tensors.items()} | {"prompt": prompts[clip]}

    return read


WAYS = {"blocks": in_blocks, "random": at_random, "memory": from_memory}


def measure(way: str, folder: Path, clips: int, answer: Any) -> None:
    """Seconds to open, memory that two passes take, clips a second of each; sent to `answer`."""
    torch.set_num_threads(1)
    before, start = memory(), time.perf_counter()
    read = WAYS[way](folder)
    found: dict[str, float] = {"open_s": time.perf_counter() - start}
    for turn, name in enumerate(("first_pass", "second_pass")):
        start, worked = time.perf_counter(), time.process_time()
        for number in range(turn * clips, (turn + 1) * clips):
            read(number)
        found[f"clips_per_s_{name}"] = clips / (time.perf_counter() - start)
        found[f"clips_per_cpu_s_{name}"] = clips / (time.process_time() - worked)
    found["memory_mib"] = (memory() - before) / 2**20
    answer.send({name: round(value, 2) for name, value in found.items()})


def memory() -> int:
    """Resident bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def measure_all(shards: int = 80, clips: int = 256) -> dict[str, Any]:
    """What each way takes for so many shards of so many clips."""
    context, values = get_context("fork"), {}
    with tempfile.TemporaryDirectory() as place:
        write = context.Process(target=write_latents, args=(place, batches(shards, clips), {}))
        write.start()  # beside this process, whose memory the others begin with
        write.join()
        for way in WAYS:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=measure, args=(way, Path(place), shards * clips, sender))
            process.start()
            values[way] = receiver.recv()
            process.join()
    return {"shards": shards, "clips_of_a_shard": clips, **values}
