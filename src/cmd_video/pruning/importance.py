"""How much each block of a model matters: leave out one at a time, and see what becomes of known clips.

    batches = [NoisyBatch(call=lambda model: model(noisy, t, text).sample, target=noise, frames=2)]
    rows = measure_importance(unet, batches)
    selection = select_by_importance(unet, *importance_and_cost(rows), budget=0.6)

VDMini (arXiv 2411.18375, figure 1) reads a block's importance off the quality of clips made without it, and finds that
shallow blocks carry what frames look like and deep ones how they change. Both can be seen here on one's own model.
`weight_importance` is the cheaper kind that it is compared with: by the weights alone, or with their gradient.

B batch, C channels, F frames, H, W.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cmd_video.data.files import whole_file

from .blocks import fits, is_unet, list_blocks, without_blocks

TIMED_CALLS = 3


@dataclass
class NoisyBatch:
    """Clips at a fixed noise level, with everything a denoiser is told; or as they are, for an autoencoder.

    Attributes:
        call: runs a model on them and returns its prediction, or its reconstruction.
        target: what the prediction should be.
        frames: dimension of the prediction that counts frames; None for single frames.
    """

    call: Callable[[Any], torch.Tensor]
    target: torch.Tensor
    frames: int | None = None


@dataclass(frozen=True)
class BlockImportance:
    """What a model loses without some blocks, and what it saves. Shares are of the whole model, in 0..1.

    Attributes:
        block: name; blocks that leave only together are joined by "+".
        loss: increase of the denoising loss (an autoencoder's squared error), divided by the whole model's.
        content: mean square of the change of the prediction that all frames of a clip share, divided by the target's.
        motion: mean square of what of the change differs from frame to frame, divided by the target's; 0 for single
            frames.
        parameters: share saved.
        flops: share saved.
        seconds: share saved, measured.
    """

    block: str
    loss: float
    content: float
    motion: float
    parameters: float
    flops: float
    seconds: float


def removable_units(model: Any) -> list[tuple[str, ...]]:
    """What can leave a model by itself, as names of `list_blocks`.

    For a UNet layers in pairs, with their skip connection, then the middle, then the innermost stages with it; for
    everything else single blocks.
    """
    if not is_unet(model):
        return [(name,) for name in list_blocks(model) if fits(model, (name,))]
    depth = len(model.down_blocks)
    candidates: list[tuple[str, ...]] = [
        (f"down_blocks.{number}.layers.{layer}", f"up_blocks.{depth - 1 - number}.layers.{layer}")
        for number in range(depth)
        for layer in range(len(model.down_blocks[number].resnets))
    ]
    middle = ("mid_block",) if "mid_block" in list_blocks(model) else ()
    candidates += [middle, (f"down_blocks.{depth - 1}", *middle, "up_blocks.0")]
    return [unit for unit in candidates if unit and fits(model, unit)]


class LeaveOut:
    """What a model loses without some of its blocks, on the same noisy clips each time.

    Args:
        model: the denoiser, in evaluation mode.
        batches: clips at fixed timesteps.
    """

    @torch.no_grad()
    def __init__(self, model: Any, batches: Sequence[NoisyBatch]) -> None:
        self.model, self.batches = model, batches
        self._whole = [batch.call(model).float() for batch in batches]
        self._loss = _loss(self._whole, batches)
        self._scale = _mean_square(batch.target.float() for batch in batches)
        self._parameters, self._flops = _count_parameters(model), _count_flops(model, batches[0])

    @torch.no_grad()
    def __call__(self, unit: tuple[str, ...]) -> tuple[BlockImportance, Any]:
        """Leave out a unit of `removable_units`: what that does, and the model without it."""
        view = without_blocks(self.model, unit)
        predictions = [batch.call(view).float() for batch in self.batches]
        changes = [p - before for p, before in zip(predictions, self._whole, strict=True)]
        still = [_mean_over_frames(change, batch.frames) for change, batch in zip(changes, self.batches, strict=True)]
        row = BlockImportance(
            block="+".join(unit),
            loss=(_loss(predictions, self.batches) - self._loss) / self._loss,
            content=_mean_square(still) / self._scale,
            motion=_mean_square(c - s for c, s in zip(changes, still, strict=True)) / self._scale,
            parameters=1 - _count_parameters(view) / self._parameters,
            flops=1 - _count_flops(view, self.batches[0]) / self._flops,
            seconds=1 - _relative_seconds(view, self.model, self.batches[0]),
        )
        return row, view


def measure_importance(
    model: Any, batches: Sequence[NoisyBatch], units: Sequence[tuple[str, ...]] | None = None
) -> list[BlockImportance]:
    """Leave out one unit at a time.

    Args:
        model: the denoiser, in evaluation mode.
        batches: clips at fixed timesteps, the same for every unit.
        units: what to try; default all `removable_units`.

    Returns:
        a row for each unit, in the order in which they run.
    """
    leave_out = LeaveOut(model, batches)
    return [leave_out(unit)[0] for unit in (units if units is not None else removable_units(model))]


def weight_importance(
    model: Any,
    batches: Sequence[NoisyBatch],
    measure: Literal["magnitude", "taylor"],
    units: Sequence[tuple[str, ...]] | None = None,
) -> dict[str, float]:
    """Importance by the weights W that leave with a unit: sum |W|, or sum |W dL/dW| with the denoising loss L (the
    block scores "Mag" and "Taylor" of arXiv 2402.02834), as shares of the whole model's.

    Args:
        model: the denoiser, in evaluation mode.
        batches: clips at fixed timesteps, which only "taylor" looks at; L is the mean of their losses.
        measure: which of the two.
        units: what to score; default all `removable_units`.

    Returns:
        block -> importance in 0..1; blocks that leave only together are joined by "+".
    """
    weights = dict(model.named_parameters())
    if measure == "taylor":
        with torch.enable_grad():
            losses = [(batch.call(model).float() - batch.target.float()).square().mean() for batch in batches]
            learning = [
                name for name, weight in weights.items() if weight.requires_grad
            ]  # a decoder's, not its encoder's
            asked = [weights[name] for name in learning]
            gradients = dict(
                zip(learning, torch.autograd.grad(torch.stack(losses).mean(), asked, allow_unused=True), strict=True)
            )
        scores = dict.fromkeys(weights, 0.0)
        for name, gradient in gradients.items():
            if gradient is not None:
                scores[name] = (weights[name].detach() * gradient).abs().double().sum().item()
    else:
        scores = {name: weight.detach().abs().double().sum().item() for name, weight in weights.items()}
    total, found = sum(scores.values()), {}
    for unit in units if units is not None else removable_units(model):
        staying = {id(weight) for weight in without_blocks(model, unit).parameters()}
        leaving = sum(scores[name] for name, weight in weights.items() if id(weight) not in staying)
        found["+".join(unit)] = leaving / total
    return found


def importance_and_cost(
    rows: Sequence[BlockImportance],
    cost: Literal["parameters", "flops", "seconds"] = "flops",
) -> tuple[dict[str, float], dict[str, float]]:
    """What `select_by_importance` takes: increase of the loss, and share of a cost, by block."""
    return {row.block: row.loss for row in rows}, {row.block: getattr(row, cost) for row in rows}


def plot_importance(rows: Sequence[BlockImportance], path: Path) -> None:
    """A bar of content and one of motion for each block, beside its share of operations.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("plot: needs matplotlib: pip install 'cmd-video[plot]'") from error
    figure = matplotlib.figure.Figure(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    left.barh([place - 0.2 for place in places], [row.content for row in rows], height=0.4, label="content")
    left.barh([place + 0.2 for place in places], [row.motion for row in rows], height=0.4, label="motion")
    right.barh(places, [row.flops for row in rows], color="gray")
    left.set(xlabel="change of the prediction without it", xscale="log", yticks=places)
    left.set_yticklabels([row.block.replace("+", " +\n") for row in rows], fontsize="small")
    left.invert_yaxis()
    left.legend(fontsize="small")
    right.set(xlabel="share of operations")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _loss(predictions: Sequence[torch.Tensor], batches: Sequence[NoisyBatch]) -> float:
    return _mean_square(p - batch.target.float() for p, batch in zip(predictions, batches, strict=True))


def _mean_square(tensors: Iterable[torch.Tensor]) -> float:
    values = [(tensor.double().square().sum().item(), tensor.numel()) for tensor in tensors]
    return sum(value for value, _ in values) / sum(count for _, count in values)


def _mean_over_frames(change: torch.Tensor, frames: int | None) -> torch.Tensor:
    return change if frames is None else change.mean(dim=frames, keepdim=True).expand_as(change)


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _count_flops(model: Any, batch: NoisyBatch) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # attention written out: counted
        batch.call(model)
    return counter.get_total_flops()


def _relative_seconds(view: Any, model: Any, batch: NoisyBatch) -> float:
    """Time of one model over the other's, by turns, so that a busy machine is busy for both."""
    ratios = []
    for _ in range(TIMED_CALLS):
        seconds = []
        for candidate in (view, model):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            batch.call(candidate)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
