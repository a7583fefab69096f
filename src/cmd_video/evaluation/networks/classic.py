"""Networks whose features are compared, with the parameter names of their published weights.

    logits = I3D()(video)                # (B, 3, F, H, W) in [-1, 1] -> (B, 400): what FVD is measured on
    features = SqueezeNet()(pictures)    # (N, 3, H, W) in [0, 255] -> (N, 512)
    logits = C3D()(video)                # (B, 3, 16, 112, 112) in [0, 255] -> (B, 101): for the Inception score

B batch, F frames, H, W, N pictures.
"""

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cmd_video.evaluation.networks.extractors import (
    RESIZE,
    Extractor,
    as_video,
    features_of_frames,
    resized,
    unchanged,
)
from cmd_video.evaluation.networks.weights import WEIGHT_FILES
from cmd_video.models.published import load_exactly, read_weights

# channels of the branches: 1x1x1; 1x1x1 -> 3x3x3; 1x1x1 -> 3x3x3; pool -> 1x1x1 (arXiv 1409.4842, table 1)
INCEPTIONS: dict[str, tuple[int, ...]] = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def _pad_same(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """Zeros around (B, C, F, H, W) so that sizes are divided by the stride, rounded up; the odd one goes behind."""
    pads: list[int] = []
    for size, width, step in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        pads = [total // 2, total - total // 2, *pads]  # `pad` wants the last dimension first
    return F.pad(x, pads)


class _Unit3D(nn.Module):
    """Convolution, batch norm, ReLU: (B, C, F, H, W) -> (B, C', F / s, H / s, W / s)."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=0.001, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv3d(_pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))))


class _MaxPool3d(nn.Module):
    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool3d(_pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Inception(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit3D(channels, widths[0])
        self.b1a, self.b1b = _Unit3D(channels, widths[1]), _Unit3D(widths[1], widths[2], 3)
        self.b2a, self.b2b = _Unit3D(channels, widths[3]), _Unit3D(widths[3], widths[4], 3)
        self.b3a, self.b3b = _MaxPool3d((3, 3, 3), (1, 1, 1)), _Unit3D(channels, widths[5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))]
        return torch.cat(branches, dim=1)


class _Logits(nn.Module):
    """Linear layer as a convolution with bias, named as in the published weights."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3d(x)


class I3D(nn.Sequential):
    """Inception-v1 inflated to three dimensions, for the 400 classes of Kinetics (arXiv 1705.07750)."""

    def __init__(self) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            Conv3d_1a_7x7=_Unit3D(3, 64, 7, 2),
            MaxPool3d_2a_3x3=_MaxPool3d((1, 3, 3), (1, 2, 2)),
            Conv3d_2b_1x1=_Unit3D(64, 64),
            Conv3d_2c_3x3=_Unit3D(64, 192, 3),
            MaxPool3d_3a_3x3=_MaxPool3d((1, 3, 3), (1, 2, 2)),
        )
        channels = 192
        for name, widths in INCEPTIONS.items():
            if name == "4b":
                layers["MaxPool3d_4a_3x3"] = _MaxPool3d((3, 3, 3), (2, 2, 2))
            if name == "5b":
                layers["MaxPool3d_5a_2x2"] = _MaxPool3d((2, 2, 2), (2, 2, 2))
            layers[f"Mixed_{name}"] = _Inception(channels, widths)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        layers["avg_pool"] = nn.AvgPool3d((2, 7, 7), stride=1)
        layers["logits"] = _Logits(channels, 400)
        super().__init__(layers)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Logits, a mean over time: (B, 3, F, 224, 224) in [-1, 1], F >= 9 -> (B, 400)."""
        return super().forward(video).mean(dim=(2, 3, 4))


class C3D(nn.Module):
    """Eight 3x3x3 convolutions and three linear layers, for the 101 classes of UCF-101 (arXiv 1412.0767, figure 3).

    Mean color and names are those of MMAction2's weights.
    """

    MEAN = (104.0, 117.0, 128.0)  # of red, green and blue
    WIDTHS: dict[str, int] = {
        "conv1a": 64, "conv2a": 128, "conv3a": 256, "conv3b": 256,
        "conv4a": 512, "conv4b": 512, "conv5a": 512, "conv5b": 512,
    }  # fmt: skip
    POOLED = ("conv1a", "conv2a", "conv3b", "conv4b", "conv5b")  # halved behind these

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, width in self.WIDTHS.items():
            self.add_module(name, nn.Conv3d(channels, width, 3, padding=1))
            channels = width
        self.fc6, self.fc7 = nn.Linear(8192, 4096), nn.Linear(4096, 4096)
        self.fc_cls = nn.Linear(4096, 101)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Logits: RGB (B, 3, 16, 112, 112) in [0, 255] -> (B, 101)."""
        x = video - torch.tensor(self.MEAN, device=video.device).view(3, 1, 1, 1)
        for name in self.WIDTHS:
            x = F.relu(self.get_submodule(name)(x))
            if name in self.POOLED:  # the first pool keeps all frames; the last one pads 7x7 to 8x8
                over_time, edge = 1 if name == "conv1a" else 2, 1 if name == "conv5b" else 0
                x = F.max_pool3d(x, (over_time, 2, 2), padding=(0, edge, edge))
        x = F.relu(self.fc6(x.flatten(1)))  # (B, 512 * 1 * 4 * 4) -> (B, 4096)
        return self.fc_cls(F.relu(self.fc7(x)))


class _Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.conv1x1_1 = nn.Conv2d(channels, squeezed, 1)
        self.conv1x1_2 = nn.Conv2d(squeezed, expanded, 1)
        self.conv3x3_2 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1x1_1(x))
        return F.relu(torch.cat([self.conv1x1_2(x), self.conv3x3_2(x)], dim=1))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 (arXiv 1602.07360), ImageNet weights, names of its first release."""

    MEAN = (104.0, 117.0, 123.0)  # of blue, green and red

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        channels, sizes = 96, {2: (16, 64), 4: (32, 128), 6: (48, 192), 8: (64, 256)}
        for number in range(2, 10):
            squeezed, expanded = sizes[number - number % 2]
            self.add_module(f"fire{number}", _Fire(channels, squeezed, expanded))
            channels = 2 * expanded
        self.conv10 = nn.Conv2d(channels, 1000, 1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Mean of the last features: RGB (N, 3, H, W) in [0, 255], H and W at least 32 -> (N, 512)."""
        x = pictures.flip(1) - torch.tensor(self.MEAN, device=pictures.device).view(3, 1, 1)
        x = F.relu(self.conv1(x))
        for number in range(2, 10):
            if number in (2, 5, 9):  # behind conv1, fire4 and fire8
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = self.get_submodule(f"fire{number}")(x)
        return x.mean(dim=(2, 3))


# --- as extractors, see `extractors.EXTRACTORS` ----------------------------------------------------------------------


def build_i3d(name: str, weights: Path, device: str) -> Extractor:
    """Logits of the I3D paper's network."""
    model = load_exactly(I3D(), read_weights(weights), weights).to(device)

    def run(frames: torch.Tensor) -> torch.Tensor:
        return model(resized(as_video(frames).to(device), 224))

    return Extractor(name, "clip", 10, RESIZE, WEIGHT_FILES[name].sha256, run, unchanged)


def build_i3d_torchscript(name: str, weights: Path, device: str) -> Extractor:
    """Logits of StyleGAN-V's I3D, which resizes by itself: those of FVD."""
    script = torch.jit.load(weights, map_location=device).eval()  # its digest has been compared

    def run(frames: torch.Tensor) -> torch.Tensor:
        return script(as_video(frames, False).to(device), rescale=True, resize=True, return_features=True)

    return Extractor(name, "clip", 10, RESIZE, WEIGHT_FILES[name].sha256, run, unchanged)


def build_c3d(name: str, weights: Path, device: str) -> Extractor:
    """Logits of C3D."""
    model = load_exactly(C3D(), _names_of_c3d(read_weights(weights)), weights).to(device)

    def run(frames: torch.Tensor) -> torch.Tensor:
        return model(_frames_of_c3d(as_video(frames, False)).to(device))

    resize = f"{RESIZE}, shorter side to 128, middle 112x112"
    return Extractor(name, "clip", 16, resize, WEIGHT_FILES[name].sha256, run, unchanged)


def _names_of_c3d(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """MMAction2's names without the parts they belong to: backbone.conv1a.conv.weight -> conv1a.weight."""
    named = {key.removeprefix("backbone.").removeprefix("cls_head."): value for key, value in state.items()}
    return {key.replace(".conv.", "."): value for key, value in named.items()}


def _frames_of_c3d(video: torch.Tensor) -> torch.Tensor:
    """The middle of the first 16 frames, as MMAction2 tests: (B, 3, F, H, W) -> (B, 3, 16, 112, 112)."""
    height, width = (round(128 * size / min(video.shape[-2:])) for size in video.shape[-2:])
    frames = video[:, :, :16].transpose(1, 2).flatten(0, 1)
    small = F.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
    top, left = (height - 112) // 2, (width - 112) // 2
    return small[:, :, top : top + 112, left : left + 112].unflatten(0, (len(video), 16)).transpose(1, 2)


def build_squeezenet(name: str, weights: Path, device: str) -> Extractor:
    """SqueezeNet's features of frames."""
    state = {key.replace("/", "."): value for key, value in read_weights(weights).items()}
    model = load_exactly(SqueezeNet(), state, weights).to(device)

    def run(frames: torch.Tensor) -> torch.Tensor:
        return features_of_frames(model, frames, 227, device)

    return Extractor(name, "frame", 1, RESIZE, WEIGHT_FILES[name].sha256, run)
