"""What a denoiser is: which x_0 it is for, what its network is told, how it is called, how x_0 becomes pixels.

    denoiser = MotionDenoiser(components)                          # components by name, of a pipeline or of a run
    x_0, condition = denoiser.example(batch)
    prediction = denoiser.predict(model, x_t, t, denoiser.encode(condition))

The network itself is an argument, so that student, teacher and fake score are asked alike. B batch, N rows asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import Ask
from cmd_video.diffusion.plan import Step
from cmd_video.diffusion.process import Process, process_of

Batch = dict[str, Any]  # video (B, 3, F, H, W) in [-1, 1], or latents; prompt, class_label, number


class Denoiser(ABC):
    """Base of the denoisers.

    Args:
        components: by name, as in a pipeline; which of them are needed each denoiser says.
        learns_text: whether gradients reach the text encoder.

    Attributes:
        component: name of the network in `components`.
        scheduler: name of the scheduler whose process it learns.
        droppable: rows of a condition that guidance leaves out.
        guidance_built_in: whether the network needs no guidance.
        text_encoder: name of the encoder whose text it is told.
        remembers: whether `ask` computes something at its first call that the others take.
    """

    component: str
    scheduler: str
    droppable: tuple[str, ...] = ("prompt", "class")
    guidance_built_in = False
    text_encoder = "text_encoder"
    remembers = False

    def __init__(self, components: Mapping[str, Any], learns_text: bool = False) -> None:
        self.components, self.learns_text = components, learns_text
        self.learns: Any = None  # section of a technique whose process takes the place of the scheduler's
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._compile_options: dict[str, Any] | None = None

    @property
    def process(self) -> Process:
        """What the network undoes: the scheduler's noise, or what `learns` says."""
        scheduler = self.components[self.scheduler]
        return process_of(scheduler) if self.learns is None else self.learns.process(scheduler)

    @abstractmethod
    def example(self, batch: Batch) -> tuple[Tensor, Condition]:
        """Clean sample x_0 and condition of a batch, which stays as it is."""

    @abstractmethod
    def encode(self, condition: Condition) -> Condition:
        """What the network is told of a condition: tensors, nulls where rows are absent."""

    @abstractmethod
    def told(self, model: Any) -> tuple[str, ...]:
        """Names of the rows of an encoded condition that this network takes."""

    @abstractmethod
    def call(self, model: Any, x: Tensor, timestep: Tensor, told: Condition) -> Tensor:
        """The network's output for x (N, ...), scaled as it takes it, at timesteps (N,) as it is told; or at timesteps
        (N, F), of each frame its own, where the network takes such.
        """

    @abstractmethod
    def pixels(self, x_0: Tensor, condition: Condition) -> Tensor:
        """x_0 as clips (B, 3, F, H, W) in about [-1, 1]; F = 1 for pictures."""

    def predict(self, model: Any, x_t: Tensor, t: Tensor, told: Condition, x_1: Tensor | None = None) -> Tensor:
        """The prediction at levels (B,) or (B, F) of the process; see `diffusion.process`."""
        return self.call(model, *self.process.see(x_t, t, x_1), told)

    def ask(self, model: Any, told: Condition) -> Ask:
        """What a sampling loop calls: like `call`, with what does not change from step to step computed once."""

        def ask(x: Tensor, step: Step) -> Tensor:
            return self.call(model, x, timesteps(x, step), told)

        return ask

    def compile(self, options: Mapping[str, Any] | None) -> None:
        """Run what a sampling loop calls besides whole networks through `torch.compile`, with these options; None = as
        it is.
        """
        self._compile_options = None if options is None else dict(options)
        self._compiled.clear()

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled if `compile` said so."""
        if self._compile_options is None:
            return function
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, **self._compile_options)
        return self._compiled[function]

    def frames_dim(self, x_0: Tensor) -> int | None:
        """Dimension of x_0 that counts frames; None for single frames."""
        return 2


def timesteps(x: Tensor, step: Step) -> Tensor:
    """The step's timestep for each row of x: (N,)."""
    return torch.full((len(x),), step.t, device=x.device)


def without_autocast(device: torch.device) -> torch.autocast:
    """Compute in the types that tensors have. The meta device has no autocast; there that of the CPU stands for it."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
