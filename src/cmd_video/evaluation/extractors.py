"""What features are compared in: named extractors, each with its own resizing and the digest of its weights.

    extractor = build_extractor("i3d", weights_dir)
    features = extractor(frames)               # uint8 (B, F, H, W, 3) -> (B, d) per clip or (B * F, d) per frame

B batch, F frames, H, W.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from cmd_video.sprites.classifier import SpriteClassifier
from cmd_video.models.published import load_exactly, read_weights
from cmd_video.pipelines.shipped import sprites_folder

from .flow import flow_features
from .inception import InceptionV3
from .networks import C3D, I3D, SqueezeNet
from .pixel_features import content_features, motion_features
from .videomae2 import load_videomae2
from .weights import WEIGHT_FILES, digest_weights, find_weights

Classify = Callable[[torch.Tensor], torch.Tensor]  # features (N, d) -> logits (N, classes)
RESIZE = "bilinear, align_corners=False, no antialias"  # StyleGAN-V's
C3D_RESIZE = f"{RESIZE}, shorter side to 128, middle 112x112"


@dataclass(frozen=True)
class Extractor:
    """Features of clips or of single frames.

    Attributes:
        name: its kind, such as "videomae"; of weights that lie at a path the digest says which.
        per: "clip" or "frame", what a feature belongs to.
        min_frames: shortest clip it takes.
        resize: how frames come to the network's size, in words.
        sha256: digest of the weights; None where there are none.
        run: uint8 (B, F, H, W, 3) -> (B, d) or (B * F, d).
        classify: features (N, d) to logits of exclusive classes, for the Inception score; None where there are none.
    """

    name: str
    per: Literal["clip", "frame"]
    min_frames: int
    resize: str
    sha256: str | None
    run: Callable[[torch.Tensor], torch.Tensor]
    classify: Classify | None = None

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Features in float32 on the CPU.

        Raises:
            ValueError: not uint8 (B, F, H, W, 3), or too few frames.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
            raise ValueError(f"frames: expected uint8 (B, F, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
        if frames.shape[1] < self.min_frames:
            raise ValueError(f"frames: {self.name} needs {self.min_frames} or more, got {frames.shape[1]}")
        return self.run(frames).float().cpu()


EXTRACTORS = (
    "i3d", "i3d-torchscript", "c3d", "videomaev2", "videomae", "vjepa2", "inception", "squeezenet",
    "sprites-action", "sprites-appearance", "flow", "pixels", "pixel-motion",
)  # fmt: skip
WITH_PATH = {
    "videomaev2": "the file vit_g_hybrid_pt_1200e_ssv2_ft.pth", "videomae": "a folder or hub id",
    "vjepa2": "a folder or hub id",
}  # fmt: skip


def build_extractor(name: str, weights_dir: Path | None = None, device: str = "cpu") -> Extractor:
    """An extractor by name; `videomae:PATH` and `vjepa2:PATH` load a folder or hub id through transformers,
    `videomaev2:FILE` the published weights of its ViT-g.

    Raises:
        ValueError: there is no such extractor, or its weights are not there; the message says where to get them.
    """
    kind, _, path = name.partition(":")
    if kind not in EXTRACTORS or (path and kind not in WITH_PATH):
        raise ValueError(f"extractor: {name!r} is none of {', '.join(EXTRACTORS)}")
    if kind == "pixels":
        return Extractor(name, "frame", 1, "mean over an 8x8 grid", None, lambda x: content_features(_to_video(x)))
    if kind == "pixel-motion":
        return Extractor(name, "clip", 2, "mean over an 8x8 grid", None, lambda x: motion_features(_to_video(x)))
    if kind == "flow":
        return Extractor(name, "clip", 3, "none", None, lambda x: torch.stack([flow_features(clip) for clip in x]))
    if kind.startswith("sprites-"):
        return _of_sprites(name, device)
    if kind in WITH_PATH:
        if not path:
            raise ValueError(f"extractor: {kind} needs {WITH_PATH[kind]}, such as {kind}:path/to/model")
        return _of_videomae2(path, device) if kind == "videomaev2" else _from_transformers(kind, path, device)
    weights = find_weights(kind, weights_dir)
    digest = WEIGHT_FILES[kind].sha256
    if kind == "i3d-torchscript":
        script = torch.jit.load(weights, map_location=device).eval()  # its digest has been compared
        options = {"rescale": True, "resize": True, "return_features": True}
        return Extractor(
            name, "clip", 10, RESIZE, digest, lambda x: script(_to_video(x, False).to(device), **options), _same
        )
    state = read_weights(weights)
    if kind == "i3d":
        i3d = load_exactly(I3D(), state, weights).to(device)
        return Extractor(name, "clip", 10, RESIZE, digest, lambda x: i3d(_resize(_to_video(x).to(device), 224)), _same)
    if kind == "c3d":
        c3d = load_exactly(C3D(), _names_of_c3d(state), weights).to(device)
        return Extractor(
            name, "clip", 16, C3D_RESIZE, digest, lambda x: c3d(_frames_of_c3d(_to_video(x, False)).to(device)), _same
        )
    if kind == "inception":
        inception = load_exactly(InceptionV3(), state, weights).to(device)
        return Extractor(
            name, "frame", 1, f"{RESIZE}, to 299",
            digest, lambda x: _of_frames(inception, x, 299, device, lambda part: part / 127.5 - 1),
        )  # fmt: skip
    named = {key.replace("/", "."): value for key, value in state.items()}
    squeezenet = load_exactly(SqueezeNet(), named, weights).to(device)
    return Extractor(
        name, "frame", 1, RESIZE, digest, lambda x: _of_frames(squeezenet, x, 227, device, lambda part: part)
    )


def _of_frames(
    network: Callable[[torch.Tensor], torch.Tensor],
    frames: torch.Tensor,
    size: int,
    device: str,
    scale: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Features of single frames: uint8 (B, F, H, W, 3) -> (B * F, d)."""
    pictures = frames.flatten(0, 1).permute(0, 3, 1, 2)  # (B * F, 3, H, W) in [0, 255]
    found = []
    for part in pictures.split(64):
        resized = F.interpolate(part.to(device).float(), (size, size), mode="bilinear", align_corners=False)
        found.append(network(scale(resized)))
    return torch.cat(found)


def _of_sprites(name: str, device: str) -> Extractor:
    """Features of one of the classifiers that ship with the package, at the 64 pixels they know."""
    folder = sprites_folder() / "classifiers" / name.removeprefix("sprites-")
    model = SpriteClassifier.from_pretrained(folder).to(device).eval()

    def features(frames: torch.Tensor) -> torch.Tensor:
        return model(_resize(_to_video(frames).to(device), 64))[1]

    def classify(features: torch.Tensor) -> torch.Tensor:
        return model.classify(features.to(device)).detach().cpu()

    resize, digest = f"{RESIZE}, to 64", digest_weights(model)
    if name == "sprites-action":
        return Extractor(name, "clip", 2, resize, digest, features, classify)
    return Extractor(name, "frame", 1, resize, digest, features)  # several shapes and colors at once: no classes


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


def _same(features: torch.Tensor) -> torch.Tensor:
    """Of networks whose features are logits."""
    return features


def _from_transformers(kind: str, path: str, device: str) -> Extractor:
    """Mean of the last tokens of a video transformer; frames normalised by ImageNet's mean and deviation, as both
    families were trained.
    """
    from transformers import AutoModel

    try:
        model, loading = AutoModel.from_pretrained(path, output_loading_info=True, trust_remote_code=False)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"extractor: {kind} at {path}: {str(error).splitlines()[0]}") from error
    lost = sorted(loading["missing_keys"])
    if model.config.model_type != kind or lost:
        found = f"a {model.config.model_type}" + (f" without {lost[0]}" if lost else "")
        raise ValueError(f"extractor: {path} holds {found}, allowed: {kind}")
    model = model.to(device).eval()
    size = getattr(model.config, "image_size", None) or model.config.crop_size
    frames_wanted = getattr(model.config, "num_frames", None) or model.config.frames_per_clip
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    fixed = kind == "videomae"  # its position table has one length

    def clip_features(frames: torch.Tensor) -> torch.Tensor:
        video = (_resize(frames.permute(0, 4, 1, 2, 3).float(), size) / 255 - mean) / std  # (B, 3, F, size, size)
        if fixed and video.shape[2] != frames_wanted:
            numbers = torch.linspace(0, video.shape[2] - 1, frames_wanted).round().long()
            video = video[:, :, numbers]
        out = model(video.transpose(1, 2).to(device))
        return out.last_hidden_state.mean(dim=1)

    return Extractor(kind, "clip", 2, f"{RESIZE}, to {size}", digest_weights(model), clip_features)


def _of_videomae2(path: str, device: str) -> Extractor:
    """The features of content-debiased FVD: 16 frames in [0, 1] at 224 pixels; longer clips evenly thinned out."""
    if not Path(path).is_file():
        raise ValueError(
            f"weights: no file {path}; {WITH_PATH['videomaev2']} is listed in OpenGVLab/VideoMAEv2's MODEL_ZOO"
        )
    model = load_videomae2(Path(path)).to(device)

    def clip_features(frames: torch.Tensor) -> torch.Tensor:
        numbers = torch.linspace(0, frames.shape[1] - 1, 16).round().long()
        return model(_resize(_to_video(frames[:, numbers], False).to(device) / 255, 224))

    return Extractor("videomaev2", "clip", 16, f"{RESIZE}, to 224", digest_weights(model), clip_features)


def _to_video(frames: torch.Tensor, scaled: bool = True) -> torch.Tensor:
    """uint8 (B, F, H, W, 3) -> float (B, 3, F, H, W) in [-1, 1], or in [0, 255]."""
    video = frames.permute(0, 4, 1, 2, 3).float()
    return video / 127.5 - 1 if scaled else video


def _resize(video: torch.Tensor, size: int) -> torch.Tensor:
    """(B, C, F, H, W) -> (B, C, F, size, size), each frame by itself."""
    frames = video.transpose(1, 2)  # (B, F, C, H, W)
    small = F.interpolate(frames.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
    return small.unflatten(0, frames.shape[:2]).transpose(1, 2)
