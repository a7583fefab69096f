"""Encodes by Ray (extra `ray`): actors that hold the autoencoder, and a queue of shards for whoever is free.

write_with_ray(settings, Encoding(**settings).shards, actors=8)

RAY_ADDRESS names a running cluster, otherwise one is started on this machine and ended again. Of Ray it is the core
alone. An actor that dies, or whose machine goes away, is started again, and the shard that it was at is done again.
"""

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from cmd_video.data.shares import Share

from .encoding import Encoding

MAX_STARTS = 4  # of an actor, at its beginning or at one shard
NUM_CPUS = 0.5  # of an actor: those that ask for whole ones leave none for others on a small machine (ray#44687)
Progress = Callable[[int], None]


class Encoder:
    """An actor.

    Args:
        settings: arguments of `Encoding`.
        folder: what relative paths in them, and in the run's configuration, are relative to.
        count: how many shards there are.
    """

    def __init__(self, settings: dict[str, Any], folder: Path, count: int) -> None:
        self.settings, self.folder, self.count = settings, folder, count

    @cached_property
    def encoding(self) -> Encoding:
        """Built once, by the first shard."""
        os.chdir(self.folder)
        return Encoding(**self.settings)

    def write(self, number: int | None) -> str | None:
        """Write a shard, or with None be ready to; why not, if so."""
        try:
            encoding = self.encoding
            if number is not None:
                encoding.write(Share(number, self.count))
        except (ValueError, OSError) as error:
            return str(error)
        return None


def write_with_ray(
    settings: dict[str, Any], shards: list[range], actors: int, progress: Progress | None = None
) -> None:
    """Write all shards of a folder. Actors for which there is no place yet begin when there is one.

    Args:
        settings: arguments of `Encoding`; with device "cuda" each actor has a GPU.
        shards: numbers of the clips of each.
        actors: how many to ask for.
        progress: called with the number of clips done.

    Raises:
        ValueError: Ray is not installed, or its cluster has no place for an actor; or what an actor says.
        ChildProcessError: actors died at one shard again and again.
        OSError: there is no cluster at RAY_ADDRESS.
    """
    needs = {"CPU": NUM_CPUS, "GPU": int(settings.get("device", "cpu").startswith("cuda"))}
    with cluster() as ray:
        there = ray.cluster_resources()
        for name, amount in needs.items():
            if there.get(name, 0) < amount:
                has = there.get(name, 0)
                raise ValueError(f"executor: an actor needs {amount} {name}, and Ray's cluster has {has}")
        actor = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"])(Encoder)
        folder = Path.cwd()
        _deal_out(ray, lambda: actor.remote(settings, folder, len(shards)), shards, actors, progress)


def _deal_out(ray: Any, begin: Callable[[], Any], shards: list[range], actors: int, progress: Progress | None) -> None:
    """Give each actor a shard whenever it is free, until all are written."""
    workers = [begin() for _ in range(min(actors, len(shards)))]
    working: dict[Any, tuple[int, int | None]] = {}  # what is waited for -> place of the worker, number of the shard
    left, idle, deaths, done = deque(range(len(shards))), list[int](), Counter[str](), 0

    def give(place: int, number: int | None) -> None:
        working[workers[place].write.remote(number)] = (place, number)

    for place in range(len(workers)):
        give(place, None)
    while left or any(number is not None for _, number in working.values()):
        (ended,), _ = ray.wait(list(working))
        place, number = working.pop(ended)
        try:
            message = ray.get(ended)
        except ray.exceptions.RayActorError as error:
            what = f"actor {place}" if number is None else f"shard {number}"
            deaths[what] += 1
            if deaths[what] >= MAX_STARTS:
                raise ChildProcessError(f"processes: {what}: died {MAX_STARTS} times") from error
            if number is not None:
                left.appendleft(number)
            workers[place] = begin()
            give(place, None)
            continue
        if message is not None:
            raise ValueError(message)
        if number is not None:
            done += len(shards[number])
            if progress is not None:
                progress(done)
        idle.append(place)
        while left and idle:
            give(idle.pop(), left.popleft())


@contextmanager
def cluster() -> Iterator[Any]:
    """The package ray, connected to a cluster; what is begun here ends here.

    Raises:
        ValueError: it is not installed.
        OSError: there is no cluster at RAY_ADDRESS.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("executor: ray needs the package of that name: pip install 'cmd-video[ray]'") from error
    begun = not ray.is_initialized()
    if begun:
        address = os.environ.get("RAY_ADDRESS") or "local"
        try:
            _knock(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except OSError as error:
            hint = "one with token authentication needs RAY_AUTH_MODE=token"
            raise ConnectionError(f"RAY_ADDRESS: {address!r}: no such cluster, or not for us: {hint}") from error
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()


def _knock(address: str) -> None:
    """See that somebody listens at host:port, where Ray would wait for ten minutes and more; an OSError if not."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
