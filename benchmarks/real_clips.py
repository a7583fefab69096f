r"""CMD's stages on real clips: what the autoencoder loses, what the motion model adds, and everything generated.

python benchmarks/real_clips.py --model runs/own-clips/model --classifier runs/own-clips/classifier \
    --config configs/own-clips/autoencoder.yaml -o benchmarks/results/weizmann-stages.json

The true clips are the validation data of the configuration, that no model has seen, at random places. Each row shows
as many clips of the same actions. Beside the distances: how often a classifier, trained on the same clips as
the models, sees the action; and how far clips are from the nearest clip of the training data, for copies have 0.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from cmd_video.data.transforms import to_uint8
from cmd_video.denoisers.latent_space import decode_video, encode_video
from cmd_video.evaluation.metrics.distribution import frechet_estimate, nearest_distance
from cmd_video.evaluation.networks.extractors import build_extractor
from cmd_video.evaluation.protocol.results import digest, digest_model, write_result
from cmd_video.evaluation.protocol.tables import digest_all, digest_of
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.adherence import wilson_interval
from cmd_video.sprites.classifier import SpriteClassifier
from cmd_video.training.config import VideoData, load_config
from cmd_video.training.data import collate

EXTRACTORS = ("pixels", "pixel-motion", "flow")
BATCH = 8


@dataclass
class Clips:
    """Clips of known actions.

    Attributes:
        videos: (N, 3, F, H, W) in [-1, 1].
        labels: number of each clip's action, (N,).
        prompts: name of each clip's action.
    """

    videos: torch.Tensor
    labels: torch.Tensor
    prompts: list[str]


def draw_clips(data: VideoData, num_clips: int) -> Clips:
    """Clips of a set at random places, the set several times over."""
    dataset = data.model_copy(update={"train": True, "flip": False}).open()
    batch = collate([dataset[number] for number in range(num_clips)])
    return Clips(batch["video"], batch["class_label"], batch["prompt"])


def rows_of(pipe: CMDPipeline, real: Clips) -> dict[str, torch.Tensor]:
    """The clips of each row, (N, 3, F, H, W) in [-1, 1]."""
    rows: dict[str, list[torch.Tensor]] = {
        "reconstruction": [], "motion on true content frames": [], "everything generated": []
    }  # fmt: skip
    for start in range(0, len(real.prompts), BATCH):
        videos, prompts = (part[start : start + BATCH] for part in (real.videos, real.prompts))
        content_frame, motion = pipe.autoencoder.encode(encode_video(pipe.vae, videos), return_dict=False)
        rows["reconstruction"].append(decode_video(pipe.vae, pipe.autoencoder.decode(content_frame, motion).sample))
        still = decode_video(pipe.vae, content_frame[:, :, None])[:, :, 0].clamp(-1, 1) / 2 + 0.5
        for name, image in (("motion on true content frames", still), ("everything generated", None)):
            sources = [torch.Generator().manual_seed(start + number) for number in range(len(videos))]
            made: Any = pipe(prompts, content_frame=image, generator=sources, output_type="pt").frames
            rows[name].append(made.transpose(1, 2) * 2 - 1)
        print(f"{start + len(videos)} of {len(real.prompts)} clips", flush=True)
    return {name: torch.cat(parts).clamp(-1, 1) for name, parts in rows.items()}


def features_of(videos: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features of clips by extractor."""
    frames = torch.stack([to_uint8(clip) for clip in videos])
    return {name: build_extractor(name)(frames).flatten(0, -2) for name in EXTRACTORS}


def judge(
    made: Clips, real: dict[str, torch.Tensor], seen: dict[str, torch.Tensor], classify: Callable[..., Any]
) -> dict[str, Any]:
    """A row of the table."""
    logits = torch.cat([classify(part)[0] for part in made.videos.split(BATCH)])
    right = (logits.argmax(dim=1) == made.labels).float()
    found = features_of(made.videos)
    rows = {name: len(table) // len(made.videos) for name, table in found.items()}  # of a clip
    frechet = {name: frechet_estimate(real[name], found[name], rows[name]) for name in EXTRACTORS}
    return {
        "action_right": right.mean().item(),
        "action_right_by_action": {
            made.prompts[int((made.labels == label).nonzero()[0])]: right[made.labels == label].mean().item()
            for label in made.labels.unique()
        },
        "action_right_interval": wilson_interval(int(right.sum()), len(right)),
        "frechet": {name: estimate.value for name, estimate in frechet.items()},
        "frechet_standard_error": {name: estimate.error for name, estimate in frechet.items()},
        "nearest_training_clip": nearest_distance(seen["pixels"], found["pixels"]).value,
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="what `cmd-video export` wrote")
    parser.add_argument("--classifier", type=Path, required=True, help="run of the stage classifier")
    parser.add_argument("--config", type=Path, required=True, help="of a stage that trains on real clips")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-clips", type=int, default=96)
    parser.add_argument("--samples", type=Path, help="a picture of the first clips of each row")
    arguments = parser.parse_args()
    pipe = CMDPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    classify = SpriteClassifier.from_pretrained(arguments.classifier / "pipeline" / "classifier").eval()
    config = load_config(arguments.config)
    if not (isinstance(config.data, VideoData) and isinstance(config.validation.data, VideoData)):
        parser.error(f"--config {arguments.config}: data of kind {config.data.kind!r}, videos are needed")
    real, seen = (draw_clips(data, arguments.num_clips) for data in (config.validation.data, config.data))
    known, training = features_of(real.videos), features_of(seen.videos)
    rows = rows_of(pipe, real)
    if arguments.samples is not None:
        draw({"truth": real.videos, **rows}, arguments.samples)
    table = {"true clips": real, **{name: replace(real, videos=videos) for name, videos in rows.items()}}
    table["true clips of the training set"] = seen
    values = {name: judge(clips, known, training, classify) for name, clips in table.items()}
    for name, row in values.items():
        print(name, row)
    protocol = {
        "clips": arguments.num_clips,
        "data": config.validation.data.model_dump(mode="json", include={"num_frames", "height", "width", "stride"}),
        "sampling": pipe.sampling.model_dump(mode="json", exclude_none=True),
        "model_sha256": digest_model(str(arguments.model)),
        "real": {"pixels_sha256": digest_all([digest_of(to_uint8(clip)) for clip in real.videos])},
        "extractors": {name: build_extractor(name).sha256 for name in EXTRACTORS},
        "classifier_sha256": digest(arguments.classifier / "pipeline"),
    }
    write_result(arguments.output, "stages on Weizmann actions", values, protocol)


def draw(rows: dict[str, torch.Tensor], path: Path) -> None:
    """Three frames of the first eight clips of each row, enlarged twice."""
    from PIL import Image

    strips = [
        torch.cat([frame for clip in videos[:8] for frame in clip[:, [2, 8, 13]].unbind(1)], dim=2)
        for videos in rows.values()
    ]
    pixels = F.interpolate(torch.cat(strips, dim=1)[None], scale_factor=2)[0]
    Image.fromarray((pixels.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    main()
