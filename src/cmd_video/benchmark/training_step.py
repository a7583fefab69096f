"""What one training step costs: CMD's three stages beside ModelScope, as in the paper's table 8.

for row in paper_training(Size(512, 512)):
    print(row.name, row.forward.layer_macs, row.step.flops, row.memory_bytes)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

from .cmd_system import STABLE_DIFFUSION, paper_pipeline
from .cost import Cost, count
from .memory import peak_bytes
from .system import Size, place
from .timing import time_call

BYTES_PER_PARAMETER = 12  # float32 weights and the two moments of Adam; gradients come with the backward pass


@dataclass
class TrainingStep:
    """A step to be counted or timed.

    Attributes:
        name: of the stage.
        modules: that learn.
        loss: runs the model on a batch of one clip and returns the loss.
    """

    name: str
    modules: list[nn.Module]
    loss: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class TrainingCost:
    """What a step of batch 1 costs.

    Attributes:
        name: of the stage.
        parameters: that learn.
        forward: operations of the forward pass; the paper prints its `layer_macs`.
        step: of forward and backward pass together.
        memory_bytes: weights, gradients and Adam's moments in float32, and activations; without checkpointing.
        seconds: median of a measured step, on a real device.
    """

    name: str
    parameters: int
    forward: Cost
    step: Cost
    memory_bytes: int
    seconds: float | None = None


def measure_training(step: TrainingStep) -> TrainingCost:
    """Count a step whose modules lie on the meta device."""
    learning = [value for module in step.modules for value in module.parameters() if value.requires_grad]
    parameters = sum(value.numel() for value in learning)
    forward, backward = count(step.loss), count(step.loss, backward=True)
    for value in learning:
        value.grad = None
    return TrainingCost(
        name=step.name,
        parameters=parameters,
        forward=forward,
        step=backward,
        memory_bytes=parameters * BYTES_PER_PARAMETER + peak_bytes(step.loss, backward=True),
    )


def time_training(step: TrainingStep, device: str, runs: int) -> float:
    """Median seconds of forward and backward pass and Adam's update on a real device."""
    parameters = [parameter for module in step.modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def run() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            step.loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return time_call(run, device, runs).median


def paper_training(size: Size, device: str = "meta", dtype: torch.dtype = torch.float32) -> list[TrainingStep]:
    """The paper's three stages on Stable Diffusion 2.1's latents, and ModelScope's denoiser, one clip each."""
    pipe = paper_pipeline("sd21", "XL", device, dtype)
    text = STABLE_DIFFUSION["sd21"]["text"]["hidden_size"]
    height, width = size.height // 8, size.width // 8
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    frame, clip = torch.zeros(1, 4, height, width, **options), torch.zeros(1, 4, size.frames, height, width, **options)
    tokens, timestep = torch.zeros(1, 77, text, **options), torch.zeros(1, device=device)
    motion = torch.zeros(1, 8, size.frames, (height + width) // 2, **options)
    unet3d = place(
        lambda: diffusers.UNet3DConditionModel(cross_attention_dim=1024, attention_head_dim=64), device, dtype
    )
    wide = torch.zeros(1, 77, 1024, **options)
    steps = [
        TrainingStep("ModelScope", [unet3d], lambda: unet3d(clip, timestep, wide).sample.square().mean()),
        TrainingStep("CMD autoencoder", [pipe.autoencoder], lambda: pipe.autoencoder(clip).sample.square().mean()),
        TrainingStep("CMD content", [pipe.unet], lambda: pipe.unet(frame, timestep, tokens).sample.square().mean()),
        TrainingStep(
            "CMD motion", [pipe.motion_transformer],
            lambda: pipe.motion_transformer(motion, timestep, frame, tokens[:, 0]).sample.square().mean(),
        ),
    ]  # fmt: skip
    for step in steps:
        for module in step.modules:
            module.requires_grad_(True).train()
    return steps
