"""A video model as a list of parts: what each is, what a call of it does, and how many calls make a clip.

    system = build_peer("ltx-video-2b", Size(512, 512, 16), device="meta")
    cost = measure_cost(system);  cost.denoiser.layer_macs, cost.end_to_end.flops

Inputs are made up: only their shapes matter. On the meta device nothing is computed and a 13-billion-parameter model
costs no memory; on a real device the same parts are timed, with random weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from .cost import Cost, count, num_parameters, weight_bytes

Role = Literal["condition", "denoiser", "decoder"]


@dataclass(frozen=True)
class Size:
    """A clip: H and W in pixels, F frames."""

    height: int
    width: int
    frames: int = 16

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass
class Part:
    """One part of a system.

    Attributes:
        name: what it is, such as "content".
        role: "condition" encoders run before the loop, "denoiser" parts in it, "decoder" parts after it.
        modules: whose weights it holds; a module that several parts hold counts once.
        run: one call of it.
        calls: how many calls a clip takes.
        paper_run: what the papers count of it: one pass without guidance; None = nothing.
        paper_calls: how many of those: one per step.
        batched: makes the call for several clips at once, and counts for nothing itself; None = one after the other.
    """

    name: str
    role: Role
    modules: list[nn.Module]
    run: Callable[[], Any]
    calls: int = 1
    paper_run: Callable[[], Any] | None = None
    paper_calls: int = 0
    batched: Callable[[int], Callable[[], Any]] | None = None


@dataclass
class System:
    """A whole model at one size.

    Attributes:
        name: for tables.
        size: what it generates; peers take the frame count nearest to the one asked for.
        sampling: steps and guidance in words.
        source: where the configuration is published.
        parts: in the order in which they run.
        batch: clips at once.
        whole: makes a number of clips as a user would, in one go; None = all calls of all parts, one after the other.
        compile: compiles what runs in the loops; None = the modules of the denoiser parts.
    """

    name: str
    size: Size
    sampling: str
    source: str
    parts: list[Part] = field(default_factory=list)
    batch: int = 1
    whole: Callable[[int], Any] | None = None
    compile: Callable[[], None] | None = None

    def with_batch(self, batch: int) -> "System":
        """The same for several clips at once: denoisers take them in one batch, what is around them one by one."""

        def scale(part: Part) -> Part:
            paper_calls = part.paper_calls * batch
            if part.batched is None:
                return replace(part, calls=part.calls * batch, paper_calls=paper_calls)
            return replace(part, run=part.batched(batch), paper_calls=paper_calls)

        return replace(self, parts=[scale(part) for part in self.parts], batch=batch)

    def run(self) -> None:
        """Make the clips, end to end."""
        if self.whole is not None:
            self.whole(self.batch)
            return
        for part in self.parts:
            for _ in range(part.calls):
                part.run()

    def modules(self) -> list[nn.Module]:
        """Every module once."""
        return list({id(module): module for part in self.parts for module in part.modules}.values())


@dataclass(frozen=True)
class SystemCost:
    """Operations of a clip.

    Attributes:
        parameters: of all parts.
        denoiser_parameters: of what runs in the loops.
        weight_bytes: of all parts, in the type they are held in.
        parts: by name, all calls of a clip together.
        denoiser: the loops, guidance included.
        end_to_end: everything from the prompt to pixels.
        paper: the papers' counting: one pass per step, no guidance, no text encoder, no image decoder.
    """

    parameters: int
    denoiser_parameters: int
    weight_bytes: int
    parts: dict[str, Cost]
    denoiser: Cost
    end_to_end: Cost
    paper: Cost


def measure_cost(system: System) -> SystemCost:
    """Count a system whose models lie on the meta device."""
    parts: dict[str, Cost] = {}
    denoiser, paper = Cost(), Cost()
    for part in system.parts:
        cost = count(part.run) * part.calls
        parts[part.name] = parts.get(part.name, Cost()) + cost
        denoiser = denoiser + cost if part.role == "denoiser" else denoiser
        if part.paper_run is not None:
            paper = paper + count(part.paper_run) * part.paper_calls
    in_loop = {id(module): module for part in system.parts if part.role == "denoiser" for module in part.modules}
    return SystemCost(
        parameters=num_parameters(system.modules()),
        denoiser_parameters=num_parameters(in_loop.values()),
        weight_bytes=weight_bytes(system.modules()),
        parts=parts,
        denoiser=denoiser,
        end_to_end=sum(parts.values(), Cost()),
        paper=paper,
    )


Changes = Mapping[str, Mapping[str, Any]]  # class -> values of its configuration in place of the published ones


@dataclass(frozen=True)
class Place:
    """Where models of published configurations are built.

    Attributes:
        device: to build them on.
        dtype: of their weights.
        changes: what makes them smaller, for a try.
    """

    device: str = "meta"
    dtype: torch.dtype = torch.float32
    changes: Changes = field(default_factory=dict)

    def build(self, kind: Any, **config: Any) -> Any:
        """A model of diffusers by its arguments, or one of transformers by those of its configuration."""
        settings = {**config, **self.changes.get(kind.__name__, {})}
        configuration = getattr(kind, "config_class", None)
        build = partial(kind, **settings) if configuration is None else lambda: kind(configuration(**settings))
        return place(build, self.device, self.dtype)

    def noise(self, *shape: int) -> torch.Tensor:
        """What a model is timed on: on zeros a device is faster."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device=self.device, dtype=self.dtype)

    def ones(self, *shape: int) -> torch.Tensor:
        return torch.ones(*shape, device=self.device, dtype=torch.long)


def place(build: Callable[[], Any], device: str, dtype: torch.dtype) -> Any:
    """Build a model where it shall live, in evaluation mode, without ever holding it elsewhere or in another type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = build()
    finally:
        torch.set_default_dtype(before)
    return model.to(device).eval().requires_grad_(False)  # a few parameters are made on the CPU in any case
