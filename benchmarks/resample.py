r"""Another second half for a clip: what stays of the first, and whether the object then goes where the words say.

python benchmarks/resample.py -o benchmarks/results/sprites-resample.json --num-scenes 60 \
    --motion runs/sprites/frame-timesteps-motion/pipeline --plain runs/sprites/longer-motion/pipeline

Held-out scenes of one object that moves in one of four directions; frames 8 to 15 are drawn anew under a direction at
a right angle to it, the one with more room. `--motion` was trained by frame_timesteps-motion.yaml, `--plain` as long
by the plain objective. "replaced" is the way without training, after RePaint (arXiv 2201.09865): known frames get
noise as the others have, at one time for all. The direction counts as right if the object's centre is moved from frame
7 to 15 by at least 3 pixels within 45 degrees of it. "kept" is the PSNR of frames 0 to 7 to those of the true clip.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from by_turns import BATCH, PLAIN, protocol_of
from given_frames import pipeline, psnr
from plan import centers

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.denoisers.latent_space import encode_video
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import Ask, AskUnder
from cmd_video.diffusion.plan import Step
from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.models import CMDMotionTransformer
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.adherence import wilson_interval
from cmd_video.sprites.scenes import SpriteScene, render, sample_scene
from cmd_video.sprites.words import DIRECTIONS, MOTION_WORDS
from cmd_video.techniques.frame_timesteps import KnownFrames
from cmd_video.training.digests import digest_of

HALF, FRAMES, SIDE, LEAST = 8, 16, 64, 3.0
SQUARE = {"left": ("up", "down"), "right": ("up", "down"), "up": ("left", "right"), "down": ("left", "right")}
Maker = Callable[[torch.Tensor, list[str], list[int]], torch.Tensor]  # true clips, prompts, seeds -> clips


class Replaced(KnownFrames):
    """Known frames with noise of the step's level, at one time for all frames."""

    def ask_under(self, ask_under: AskUnder, denoiser: Denoiser, model: Any) -> AskUnder:
        process, sources = denoiser.process, torch.Generator().manual_seed(0)
        noise = torch.randn(self.sample.shape, generator=sources)

        def asked_under(told: Condition) -> Ask:
            plain = ask_under(told)

            def ask(x: torch.Tensor, step: Step) -> torch.Tensor:
                level = torch.full((len(self.sample),), process.levels([step.t])[0])
                noised = KnownFrames(process.marginal(self.sample, noise, level), self.known)
                return plain(noised.put_into(x), step)

            return ask

        return asked_under


def choose(count: int) -> list[tuple[int, SpriteScene, str, str]]:
    """Number, scene, prompt and direction of the second half."""
    found: list[tuple[int, SpriteScene, str, str]] = []
    index = 0
    while len(found) < count:
        scene = sample_scene(index, split="held_out", pairs=0)
        if scene.motion in SQUARE:
            item, video = scene.objects[0], render(scene, FRAMES, SIDE, SIDE)
            place = centers(video, item.color)[HALF - 1]
            axis = 1 if scene.motion in ("left", "right") else 0
            ways = SQUARE[scene.motion]
            new = ways[0] if place[axis] > SIDE / 2 else ways[1]
            if place.isfinite().all():
                words = MOTION_WORDS[new][0][0]
                found.append((index, scene, f"a {item.color} {item.shape} {words}", new))
        index += 1
    return found


def rows_of(pipe: CMDPipeline, told: CMDMotionTransformer, longer: CMDMotionTransformer) -> dict[str, Maker]:
    """The rows of the table."""
    own = pipe.motion_transformer

    def make(model: CMDMotionTransformer, settings: dict[str, Any]) -> Maker:
        def edit(clips: torch.Tensor, prompts: list[str], seeds: list[int]) -> torch.Tensor:
            pipe.register_modules(motion_transformer=model)
            sources = [torch.Generator().manual_seed(seed) for seed in seeds]
            shown = clips.transpose(1, 2) / 2 + 0.5
            out: Any = pipe.edit(shown, prompts, generator=sources, output_type="pt", strength=0.0, **settings)
            return out.frames.transpose(1, 2) * 2 - 1

        return edit

    def replaced(clips: torch.Tensor, prompts: list[str], seeds: list[int]) -> torch.Tensor:
        pipe.register_modules(motion_transformer=own)
        x_c, z = pipe.autoencoder.encode(encode_video(pipe.vae, clips), return_dict=False)
        z = pipe.autoencoder.normalize_latents(z)
        known = Replaced(z, torch.arange(FRAMES) < HALF)
        told_, nothing, _ = pipe.encode(prompts, None, None, len(prompts), 1)
        how = pipe.sampling.motion.model_copy(update={"wraps": (known,)})
        noise = torch.cat([torch.randn(z[:1].shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        z = known.put_into(pipe.generate("motion", noise, told_.having(content_frame=x_c), nothing, how))
        frames, _ = pipe.decode(x_c, z, "pt", False)
        return frames.transpose(1, 2) * 2 - 1

    part = {"resample_frames": (HALF, FRAMES)}
    drawn, longer_drawn = (
        {**part, "sampling": pipe.sampling.laid_over({"resampling": {"kind": "known_frames", "refine_steps": steps}})}
        for steps in (0, 15)
    )
    return {
        "true clip": lambda clips, prompts, seeds: clips,
        "own latents": make(own, {}),
        "replaced, one time": replaced,
        "times of frames, default": make(own, drawn),
        "times of frames, trained plainly": make(longer, drawn),
        "times of frames, trained for them": make(told, drawn),
        "... default, refined": make(own, part),
        "... trained for them, refined": make(told, part),
        "... trained for them, 15 steps": make(told, longer_drawn),
    }


@torch.inference_mode()
def measure(makers: dict[str, Maker], chosen: list[tuple[int, SpriteScene, str, str]]) -> dict[str, Any]:
    """A row for each maker."""
    true = torch.stack([render(scene, FRAMES, SIDE, SIDE) for _, scene, _, _ in chosen])
    values: dict[str, Any] = {}
    for name, make in makers.items():
        parts = []
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            prompts, seeds = [entry[2] for entry in batch], [entry[0] for entry in batch]
            parts.append(make(true[start : start + BATCH], prompts, seeds))
        made = torch.cat(parts)
        right = sum(
            turned(clip, scene.objects[0].color, new) for clip, (_, scene, _, new) in zip(made, chosen, strict=True)
        )
        low, high = wilson_interval(right, len(chosen))
        values[name] = {
            "kept": psnr(made[:, :, :HALF], true[:, :, :HALF]),
            "direction_right": {"rate": right / len(chosen), "low": low, "high": high},
        }
        print(f"{name:36s} kept {values[name]['kept']['mean']:.2f} dB   right {right}/{len(chosen)}", flush=True)
    return values


def turned(clip: torch.Tensor, color: str, direction: str) -> bool:
    """Whether the object goes in this direction in the second half."""
    places = centers(clip, color)
    moved = places[-1] - places[HALF - 1]
    wanted = torch.tensor(DIRECTIONS[direction], dtype=torch.float32)
    length = float(moved.norm())
    return length >= LEAST and float(moved @ wanted) / length >= 2**-0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=60)
    parser.add_argument(
        "--motion", required=True, help="Folder with the motion_transformer trained for times of frames."
    )
    parser.add_argument("--plain", required=True, help="Folder with the one trained as long without.")
    arguments = parser.parse_args()
    pipe = pipeline(None)
    trained = [
        CMDMotionTransformer.from_pretrained(folder, subfolder="motion_transformer").eval()
        for folder in (arguments.motion, arguments.plain)
    ]
    values = measure(rows_of(pipe, *trained), choose(arguments.num_scenes))
    protocol = {**protocol_of(arguments.num_scenes), "plain": PLAIN, "half": HALF, "least_pixels": LEAST}
    protocol["model_sha256"] = digest_model(None)
    protocol["motion_digests"] = dict(zip(("times of frames", "plain"), map(digest_of, trained), strict=True))
    write_result(arguments.output, "another second half", values, protocol, "cpu")


if __name__ == "__main__":
    main()
