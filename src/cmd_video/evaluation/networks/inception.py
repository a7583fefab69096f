"""Inception-v3 as FID knows it: the network of TensorFlow's 2015 graph, with the names of its published PyTorch port.

    features = InceptionV3()(pictures)              # (N, 3, 299, 299) in [-1, 1] -> (N, 2048)

Three things differ from the network of the paper (arXiv 1512.00567) as torchvision has it: averages do not count what
lies outside the picture, the last block takes a maximum where the others average, and there are 1008 classes.

N pictures, C channels, h, w.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from cmd_video.evaluation.networks.extractors import RESIZE, Extractor, features_of_frames
from cmd_video.evaluation.networks.weights import WEIGHT_FILES
from cmd_video.models.published import load_exactly, read_weights

Kernel = int | tuple[int, int]
Spec = tuple[str, int, Kernel]  # name, channels, size of the kernel
Chain = list[Spec | list[Spec]]  # one after the other; what is in a list of its own stands side by side


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU: (N, C, h, w) -> (N, C', h / s, w / s); edges are padded where s is 1."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded and stride == 1 else 0
        self.conv = nn.Conv2d(channels, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Chains of convolutions side by side, and a pooled branch (arXiv 1512.00567, figures 5 to 7 and 10).

    Args:
        channels: C.
        chains: the convolutions; the last ones of a chain have the block's stride.
        pool: "average" or "maximum" over 3x3, followed by a convolution; "halve": a maximum with stride 2, without.
        pooled: channels of that convolution.
    """

    def __init__(
        self, channels: int, chains: list[Chain], pool: Literal["average", "maximum", "halve"], pooled: int = 0
    ) -> None:
        super().__init__()
        self.pool, self.chains = pool, [[_names(step) for step in chain] for chain in chains]
        self.out_channels = pooled or channels
        for chain in chains:
            before = channels
            for number, step in enumerate(chain):
                specs = step if isinstance(step, list) else [step]
                stride = 2 if pool == "halve" and number == len(chain) - 1 else 1
                for name, out, kernel in specs:
                    self.add_module(name, _Unit(before, out, kernel, stride))
                before = sum(out for _, out, _ in specs)
            self.out_channels += before
        if pooled:
            self.branch_pool = _Unit(channels, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = []
        for chain in self.chains:
            h = x
            for names in chain:
                h = torch.cat([self.get_submodule(name)(h) for name in names], dim=1)
            branches.append(h)
        if self.pool == "halve":
            return torch.cat([*branches, F.max_pool2d(x, 3, 2)], dim=1)
        around = (
            F.max_pool2d(x, 3, 1, 1) if self.pool == "maximum" else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        )
        return torch.cat([*branches, self.branch_pool(around)], dim=1)


def _names(step: Spec | list[Spec]) -> list[str]:
    return [name for name, _, _ in (step if isinstance(step, list) else [step])]


def _numbered(name: str, steps: Iterable[tuple[int, Kernel]]) -> Chain:
    return [(f"{name}_{number}", out, kernel) for number, (out, kernel) in enumerate(steps, 1)]


def _block_5(channels: int, pooled: int) -> _Mixed:
    double = _numbered("branch3x3dbl", [(64, 1), (96, 3), (96, 3)])
    return _Mixed(
        channels,
        [[("branch1x1", 64, 1)], _numbered("branch5x5", [(48, 1), (64, 5)]), double],
        "average",
        pooled,
    )


def _block_6(width: int) -> _Mixed:
    """7x7 convolutions in two parts, of a row and of a column."""
    row, column = (1, 7), (7, 1)
    once = _numbered("branch7x7", [(width, 1), (width, row), (192, column)])
    steps: list[tuple[int, Kernel]] = [(width, 1), (width, column), (width, row), (width, column), (192, row)]
    return _Mixed(768, [[("branch1x1", 192, 1)], once, _numbered("branch7x7dbl", steps)], "average", 192)


def _block_7(channels: int, pool: Literal["average", "maximum"]) -> _Mixed:
    row, column = (1, 3), (3, 1)
    once: Chain = [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column)]]
    double: Chain = [
        *_numbered("branch3x3dbl", [(448, 1), (384, 3)]),
        [("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)],
    ]
    return _Mixed(channels, [[("branch1x1", 320, 1)], once, double], pool, 192)


class InceptionV3(nn.Module):
    """What FID is measured on: the last features, averaged over the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3, padded=False)
        narrow = _numbered("branch3x3dbl", [(64, 1), (96, 3), (96, 3)])
        wide = _numbered("branch7x7x3", [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)])
        mixed = {
            **{
                f"5{letter}": _block_5(*sizes)
                for letter, sizes in zip("bcd", ((192, 32), (256, 64), (288, 64)), strict=True)
            },
            "6a": _Mixed(288, [[("branch3x3", 384, 3)], narrow], "halve"),
            **{f"6{letter}": _block_6(width) for letter, width in zip("bcde", (128, 160, 160, 192), strict=True)},
            "7a": _Mixed(768, [_numbered("branch3x3", [(192, 1), (320, 3)]), wide], "halve"),
            "7b": _block_7(1280, "average"),
            "7c": _block_7(2048, "maximum"),
        }
        self.mixed = [f"Mixed_{name}" for name in mixed]
        for name, block in mixed.items():
            self.add_module(f"Mixed_{name}", block)
        self.fc = nn.Linear(2048, 1008)  # among the published weights, and not used

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features: RGB (N, 3, 299, 299) in [-1, 1] -> (N, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pictures)))  # (N, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))  # (N, 192, 71, 71)
        x = F.max_pool2d(x, 3, 2)  # (N, 192, 35, 35)
        for name in self.mixed:
            x = self.get_submodule(name)(x)  # 35 x 35, 17 x 17 from 6a on, 8 x 8 from 7a on
        return x.mean(dim=(2, 3))


def build(name: str, weights: Path, device: str) -> Extractor:
    """The features of frames that FID is measured on; see `extractors.EXTRACTORS`."""
    model = load_exactly(InceptionV3(), read_weights(weights), weights).to(device)

    def run(frames: torch.Tensor) -> torch.Tensor:
        return features_of_frames(model, frames, 299, device, lambda pictures: pictures / 127.5 - 1)

    return Extractor(name, "frame", 1, f"{RESIZE}, to 299", WEIGHT_FILES[name].sha256, run)
