"""LPIPS (arXiv 1801.03924), version 0.1: distance of two pictures in features of an ImageNet network.

distance = build_lpips("alex", weights_dir)(made, true)      # (N, 3, H, W) in [-1, 1] twice -> (N,)
"""

from pathlib import Path

import torch
from torch import nn

from cmd_video.evaluation.networks.weights import find_weights
from cmd_video.models.published import load_exactly, read_weights

# layers whose rectified output is compared, by their numbers in torchvision's `features`
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for [-1, 1]


class LPIPS(nn.Module):
    """Features of each tap are brought to length one, their squared differences weighed by channel and averaged.

    Args:
        network: "alex" or "vgg".
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, network: str) -> None:
        super().__init__()
        self.taps = TAPS[network]
        layers = _alexnet() if network == "alex" else _vgg16()
        self.features = nn.Sequential(*layers[: self.taps[-1] + 1])
        self.heads = nn.ParameterList(torch.ones(width) for width in WIDTHS[network])
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Distances (N,) of pictures (N, 3, H, W) in [-1, 1], H and W at least 32.

        Raises:
            ValueError: pictures of different shapes, or too small.
        """
        if first.shape != second.shape or first.ndim != 4 or min(first.shape[-2:]) < 32:
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise ValueError(f"pictures: expected two (N, 3, H, W) with H and W at least 32, got {shapes}")
        x, y = ((pictures - self.shift) / self.scale for pictures in (first, second))
        total = torch.zeros(len(x), device=x.device)
        taps = iter(self.heads)
        for number, layer in enumerate(self.features):
            x, y = layer(x), layer(y)  # (N, C, h, w)
            if number in self.taps:
                difference = (nn.functional.normalize(x, eps=1e-10) - nn.functional.normalize(y, eps=1e-10)).square()
                total = total + (difference * next(taps).view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        return total


def build_lpips(network: str, weights_dir: Path | None = None, device: str = "cpu") -> LPIPS:
    """LPIPS with the published backbone of torchvision and the published heads.

    Raises:
        ValueError: there is no such network, or its files are not there.
    """
    if network not in TAPS:
        raise ValueError(f"lpips: {network!r} is none of {', '.join(TAPS)}")
    names = {"alex": "alexnet", "vgg": "vgg16"}[network], f"lpips-{network}"
    paths = [find_weights(name, weights_dir) for name in names]
    files = [read_weights(path) for path in paths]
    return load_exactly(LPIPS(network), published_names(LPIPS(network), *files), paths[0]).to(device)


def published_names(
    model: LPIPS, backbone: dict[str, torch.Tensor], heads: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The model's own names for published weights; layers behind the last tap are left out.

    Raises:
        ValueError: a head is missing.
    """
    own = set(model.state_dict())
    state = {name: value for name, value in backbone.items() if name in own}
    try:
        return state | {f"heads.{n}": heads[f"lin{n}.model.1.weight"].flatten() for n in range(len(model.heads))}
    except KeyError as error:
        raise ValueError(f"weights: the heads of LPIPS lack {error}") from error


def _alexnet() -> list[nn.Module]:
    def unit(channels: int, out: int, kernel: int, stride: int = 1, padding: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]

    pool = nn.MaxPool2d(3, 2)
    large = [*unit(3, 64, 11, 4, 2), pool, *unit(64, 192, 5, 1, 2), pool]
    return [*large, *unit(192, 384, 3), *unit(384, 256, 3), *unit(256, 256, 3)]


def _vgg16() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return layers
