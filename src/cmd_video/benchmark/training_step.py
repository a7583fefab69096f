"""What one training step costs: CMD's three stages beside ModelScope, as in the paper's table 8.

for row in paper_training(Size(512, 512)):
    print(row.name, row.forward.layer_macs, row.step.flops, row.memory_bytes)
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import diffusers
import torch
from torch import nn

from cmd_video.models import CMDAutoencoder

from .cmd_system import STABLE_DIFFUSION, paper_motion_transformer
from .cost import Cost, count
from .memory import peak_bytes
from .system import Place, Size
from .timing import time_call

BYTES_PER_PARAMETER = 12  # float32 weights and the two moments of Adam; gradients come with the backward pass


@dataclass
class TrainingStep:
    """A step to be counted or timed.

    Attributes:
        name: of the stage.
        modules: that learn.
        loss: runs the model on a batch and returns the loss.
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


def time_training(step: TrainingStep, device: str, runs: int, autocast: torch.dtype | None = None) -> float:
    """Median seconds of forward and backward pass and Adam's update on a real device.

    Args:
        step: its modules lie on the device.
        device: the device.
        runs: how many steps, after the warm-up.
        autocast: in which type to compute with weights that are kept in float32; None = in the weights' own.
    """
    parameters = [parameter for module in step.modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    cast = nullcontext() if autocast is None else torch.autocast(torch.device(device).type, autocast)

    def run() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            with cast:
                loss = step.loss()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return time_call(run, device, runs).median


def paper_training(size: Size, device: str = "meta", dtype: torch.dtype = torch.float32) -> list[TrainingStep]:
    """The paper's three stages on Stable Diffusion 2.1's latents, and ModelScope's denoiser, one clip each."""
    return [paper_training_step(name, size, Place(device, dtype)) for name in PAPER_STAGES]


def paper_training_step(name: str, size: Size, at: Place, batch: int = 1) -> TrainingStep:
    """One of PAPER_STAGES; the latents and text features that it learns from are made up."""
    module, loss = PAPER_STAGES[name](_Inputs(at, size, batch))
    module.requires_grad_(True).train()
    return TrainingStep(name, [module], loss)


@dataclass(frozen=True)
class _Inputs:
    """What a stage sees of a batch in Stable Diffusion 2.1's latent space."""

    at: Place
    size: Size
    batch: int

    @property
    def frame(self) -> torch.Tensor:
        """(B, C, H, W)."""
        return self.at.noise(self.batch, 4, self.size.height // 8, self.size.width // 8)

    @property
    def clip(self) -> torch.Tensor:
        """(B, C, F, H, W)."""
        return self.at.noise(self.batch, 4, self.size.frames, self.size.height // 8, self.size.width // 8)

    @property
    def motion(self) -> torch.Tensor:
        """(B, D, F, H' + W')."""
        return self.at.noise(self.batch, 8, self.size.frames, (self.size.height // 8 + self.size.width // 8) // 2)

    @property
    def timestep(self) -> torch.Tensor:
        """(B,)."""
        return torch.zeros(self.batch, device=self.at.device)

    def tokens(self, width: int) -> torch.Tensor:
        """Text, (B, S, width)."""
        return self.at.noise(self.batch, 77, width)


Stage = tuple[nn.Module, Callable[[], torch.Tensor]]


def _modelscope(inputs: _Inputs) -> Stage:
    unet = inputs.at.build(diffusers.UNet3DConditionModel, cross_attention_dim=1024, attention_head_dim=64)
    clip, timestep, tokens = inputs.clip, inputs.timestep, inputs.tokens(unet.config.cross_attention_dim)
    return unet, lambda: unet(clip, timestep, tokens).sample.square().mean()


def _autoencoder(inputs: _Inputs) -> Stage:
    autoencoder, clip = inputs.at.build(CMDAutoencoder), inputs.clip
    return autoencoder, lambda: autoencoder(clip).sample.square().mean()


def _content(inputs: _Inputs) -> Stage:
    unet = inputs.at.build(diffusers.UNet2DConditionModel, **STABLE_DIFFUSION["sd21"]["unet"])
    frame, timestep, tokens = inputs.frame, inputs.timestep, inputs.tokens(unet.config.cross_attention_dim)
    return unet, lambda: unet(frame, timestep, tokens).sample.square().mean()


def _motion(inputs: _Inputs) -> Stage:
    model = paper_motion_transformer("sd21", "XL", inputs.at)
    motion, timestep, frame = inputs.motion, inputs.timestep, inputs.frame
    pooled = inputs.tokens(model.config.text_dim)[:, 0]
    return model, lambda: model(motion, timestep, frame, pooled).sample.square().mean()


PAPER_STAGES: dict[str, Callable[[_Inputs], Stage]] = {
    "ModelScope": _modelscope,
    "CMD autoencoder": _autoencoder,
    "CMD content": _content,
    "CMD motion": _motion,
}
