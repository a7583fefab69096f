"""What each distance sees: true sprites, damaged more and more, against other true sprites.

python benchmarks/sensitivity.py -o benchmarks/results/sensitivity.json --plot docs/images/sensitivity.png
    [--extractor squeezenet --weights-dir FOLDER]

Noise and blur damage frames, shuffling and freezing their order. A distance on frames must see the first two and
not the third; one on motion must see the last two.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from cmd_video.data.transforms import to_uint8
from cmd_video.evaluation.metrics.distribution import frechet_estimate
from cmd_video.evaluation.networks.extractors import Extractor, build_extractor
from cmd_video.evaluation.protocol.results import write_result
from cmd_video.sprites.scenes import SpritesDataset

FRAMES, SIDE, BATCH = 16, 64, 16
LEVELS = ("slight", "medium", "strong")


def noise(clips: torch.Tensor, level: int) -> torch.Tensor:
    """White noise of 8, 20 or 50 of 255."""
    draw = torch.Generator().manual_seed(level)
    return (clips + (8, 20, 50)[level] * torch.randn(clips.shape, generator=draw)).clamp(0, 255).to(torch.uint8)


def blur(clips: torch.Tensor, level: int) -> torch.Tensor:
    """Down to a half, a quarter or an eighth of the size, and up again."""
    frames = clips.flatten(0, 1).permute(0, 3, 1, 2).float()
    small = F.interpolate(frames, scale_factor=1 / 2 ** (level + 1), mode="bilinear", antialias=True)
    large = F.interpolate(small, frames.shape[-2:], mode="bilinear").round().to(torch.uint8)
    return large.permute(0, 2, 3, 1).unflatten(0, clips.shape[:2])


def shuffle(clips: torch.Tensor, level: int) -> torch.Tensor:
    """Frames in random order within windows of 2, 4 or all 16."""
    draw = torch.Generator().manual_seed(0)
    window = (2, 4, FRAMES)[level]
    orders = [
        torch.cat([start + torch.randperm(window, generator=draw) for start in range(0, FRAMES, window)])
        for _ in clips
    ]
    return torch.stack([clip[order] for clip, order in zip(clips, orders, strict=True)])


def freeze(clips: torch.Tensor, level: int) -> torch.Tensor:
    """The last quarter, three quarters or all of a clip stand still."""
    first = (12, 4, 0)[level]
    numbers = torch.arange(FRAMES).clamp(max=first)
    return clips[:, numbers]


DAMAGES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "noise": noise,
    "blur": blur,
    "shuffle": shuffle,
    "freeze": freeze,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--extractor", action="append", help="one more, beside pixels, pixel-motion and flow")
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--num-clips", type=int, default=400, help="on each side")
    arguments = parser.parse_args()
    names = ["pixels", "pixel-motion", "flow", *(arguments.extractor or [])]
    dataset = SpritesDataset(2 * arguments.num_clips, SIDE, SIDE, FRAMES, seed=5)
    clips = torch.stack([to_uint8(dataset[number]["video"]) for number in range(len(dataset))])
    real, others = clips[::2], clips[1::2]
    values: dict[str, dict[str, Any]] = {}
    digests: dict[str, str | None] = {}
    for name in names:
        extractor = build_extractor(name, arguments.weights_dir)
        digests[name] = extractor.sha256
        known = features(extractor, real)
        rows = len(known) // len(real)  # of a clip
        floor = frechet_estimate(known, features(extractor, others), rows)
        values[name], errors = {"undamaged": [floor.value]}, {"undamaged": [floor.error]}
        for kind, damage in DAMAGES.items():
            found = [frechet_estimate(known, features(extractor, damage(others, level)), rows) for level in range(3)]
            values[name][kind] = [estimate.value for estimate in found]
            errors[kind] = [estimate.error for estimate in found]
            print(name, kind, " ".join(f"{value / floor.value:.2f}" for value in values[name][kind]), flush=True)
        values[name]["standard_error"] = errors
    protocol = {
        "clips": arguments.num_clips,
        "size": [FRAMES, SIDE, SIDE],
        "levels": list(LEVELS),
        "seed": 5,
        "extractor_sha256": digests,
    }
    write_result(arguments.output, "sensitivity", values, protocol)
    if arguments.plot:
        plot(values, arguments.plot)


def features(extractor: Extractor, clips: torch.Tensor) -> torch.Tensor:
    """Of all clips, in batches."""
    return torch.cat([extractor(batch.contiguous()) for batch in clips.split(BATCH)])


def plot(values: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each extractor: distance over that of undamaged clips, by level."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(3 * len(values), 3.2), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True):
        for kind, marker in zip(DAMAGES, "os^D", strict=True):
            axes.plot(LEVELS, [value / rows["undamaged"][0] for value in rows[kind]], marker=marker, label=kind)
        axes.axhline(1, color="gray", linewidth=0.8)
        axes.set(title=name, yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("Fréchet distance / that of true clips")
    figure.axes[-1].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
