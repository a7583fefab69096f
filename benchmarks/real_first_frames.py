r"""Real clips from their first frame, or from first and last: how near they come, to each frame and to the whole.

python benchmarks/real_first_frames.py --autoencoder runs/own-clips/autoencoder --motion runs/own-clips/motion \
    --config configs/own-clips/autoencoder.yaml -o benchmarks/results/weizmann-first-frames.json

The true clips are the validation data of the configuration, that no model has seen, at random places; prompts are the
names of their actions. PSNR is to the true clip; "reconstruction" is what the autoencoder makes of it, "content frame"
the motion model's clip around the true content frame, "held" the given frame standing still. The content model is not
asked.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from given_frames import psnr
from real_clips import BATCH, Clips, draw, draw_clips
from transformers import CLIPTextModel, CLIPTokenizer

from cmd_video.data.transforms import to_uint8
from cmd_video.denoisers.latent_space import decode_video, encode_video
from cmd_video.evaluation.protocol.results import digest, write_result
from cmd_video.evaluation.protocol.tables import digest_all, digest_of
from cmd_video.models import CMDMotionTransformer
from cmd_video.pipelines import CMDPipeline
from cmd_video.training.components import load_autoencoder
from cmd_video.training.config import VideoData, load_config

ENDS = {"image": 0, "last_image": -1}
PLACES = {"first": slice(0, 1), "last": slice(-1, None), "between": slice(1, -1)}
MOTION = {"motion": {"num_inference_steps": 20, "guidance": {"scale": 1.5}}}
Maker = Callable[[torch.Tensor, list[str], list[torch.Generator]], torch.Tensor]


def load(autoencoder: Path, motion: Path) -> CMDPipeline:
    """The default model with the parts of two runs in place of its own."""
    folder = motion / "pipeline"
    parts, vae = load_autoencoder(autoencoder / "pipeline", "cpu")
    pipe = CMDPipeline.from_pretrained(
        None, autoencoder=parts, vae=vae,
        motion_transformer=CMDMotionTransformer.from_pretrained(folder, subfolder="motion_transformer").eval(),
        motion_text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="motion_text_encoder").eval(),
        motion_tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="motion_tokenizer"),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.sampling = pipe.sampling.laid_over(MOTION)
    return pipe


def rows_of(pipe: CMDPipeline) -> dict[str, Maker]:
    """The rows of the table."""

    def told(names: tuple[str, ...], **settings: Any) -> Maker:
        how = pipe.sampling.laid_over({"given_frames": {"kind": "roll_forward", **settings}})

        def make(clips: torch.Tensor, prompts: list[str], sources: list[torch.Generator]) -> torch.Tensor:
            given: dict[str, Any] = {name: clips[:, :, ENDS[name]] / 2 + 0.5 for name in names}
            out: Any = pipe(prompts, generator=sources, output_type="pt", sampling=how, **given)
            return out.frames.transpose(1, 2) * 2 - 1

        return make

    def reconstruction(clips: torch.Tensor, prompts: list[str], sources: list[torch.Generator]) -> torch.Tensor:
        return decode_video(pipe.vae, pipe.autoencoder(encode_video(pipe.vae, clips)).sample).clamp(-1, 1)

    def around(clips: torch.Tensor, prompts: list[str], sources: list[torch.Generator]) -> torch.Tensor:
        content_frame, _ = pipe.autoencoder.encode(encode_video(pipe.vae, clips), return_dict=False)
        still = decode_video(pipe.vae, content_frame[:, :, None])[:, :, 0].clamp(-1, 1) / 2 + 0.5
        out: Any = pipe(prompts, content_frame=still, generator=sources, output_type="pt")
        return out.frames.transpose(1, 2) * 2 - 1

    first, both = ("image",), ("image", "last_image")
    return {
        "reconstruction": reconstruction,
        "content frame": around,
        "held": lambda clips, prompts, sources: clips[:, :, :1].expand_as(clips),
        "first frame, rolled": told(first, refine_steps=0),
        "first frame, rolled and refined": told(first),
        "first frame, 15 steps": told(first, refine_steps=15),
        "both, rolled and refined": told(both),
        "both, 15 steps": told(both, refine_steps=15),
    }


@torch.inference_mode()
def measure(makers: dict[str, Maker], real: Clips) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A row for each maker, and its clips."""
    values, clips = {}, {}
    for name, make in makers.items():
        parts = []
        for start in range(0, len(real.prompts), BATCH):
            videos, prompts = (part[start : start + BATCH] for part in (real.videos, real.prompts))
            sources = [torch.Generator().manual_seed(start + number) for number in range(len(videos))]
            parts.append(make(videos, prompts, sources))
        made = clips[name] = torch.cat(parts)
        found = {place: psnr(made[:, :, where], real.videos[:, :, where]) for place, where in PLACES.items()}
        values[name] = {**found, "clip": psnr(made, real.videos), "movement": movement(made)}
        said = ", ".join(f"{place} {score['mean']:.2f}" for place, score in found.items())
        print(f"{name:32s} {said}   movement {values[name]['movement']:.4f}", flush=True)
    return {**values, "true": {"movement": movement(real.videos)}}, clips


def movement(clips: torch.Tensor) -> float:
    """Mean distance of a frame to the next, of values in [-1, 1]."""
    return float((clips[:, :, 1:] - clips[:, :, :-1]).abs().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True, help="a run of the stage autoencoder")
    parser.add_argument("--motion", type=Path, required=True, help="a run of the stage motion")
    parser.add_argument("--config", type=Path, required=True, help="of a stage that trains on real clips")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-clips", type=int, default=48)
    parser.add_argument("--samples", type=Path, help="a picture of the first clips of each row")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    if not isinstance(config.validation.data, VideoData):
        parser.error(f"--config {arguments.config}: data of kind {config.data.kind!r}, videos are needed")
    pipe, real = load(arguments.autoencoder, arguments.motion), draw_clips(config.validation.data, arguments.num_clips)
    values, clips = measure(rows_of(pipe), real)
    if arguments.samples is not None:
        draw({"truth": real.videos, **clips}, arguments.samples)
    steps = {
        run.name: load_config(run / "config.json").loop.steps for run in (arguments.autoencoder, arguments.motion)
    }
    protocol = {
        "clips": arguments.num_clips,
        "data": config.validation.data.model_dump(mode="json", include={"num_frames", "height", "width", "stride"}),
        "sampling": MOTION,
        "frame_weights": pipe.autoencoder.config.frame_weights,
        "steps": steps,
        "runs": {run.name: digest(run / "pipeline") for run in (arguments.autoencoder, arguments.motion)},
        "real": {"pixels_sha256": digest_all([digest_of(to_uint8(clip)) for clip in real.videos])},
    }
    write_result(arguments.output, "real clips from given frames", values, protocol, "cpu")


if __name__ == "__main__":
    main()
