r"""Clips that start or end at given pictures: how near they come, how well they follow prompts, what they cost.

python benchmarks/given_frames.py -o benchmarks/results/sprites-given-frames.json --num-scenes 200 --rows default
python benchmarks/given_frames.py -o benchmarks/results/sprites-given-presets.json --num-scenes 40 --rows presets
python benchmarks/given_frames.py -o benchmarks/results/sprites-both-ends.json --num-scenes 60 --rows ends
python benchmarks/given_frames.py -o benchmarks/results/sprites-told-frames.json --num-scenes 60 --rows told \
    --model runs/sprites/reference-model
python benchmarks/given_frames.py -o benchmarks/results/sprites-both-ways.json --num-scenes 16 --rows ways

Held-out scenes, of which the first frame, or the first and the last, are given as they are drawn; each row makes a
batch by turns. PSNR is to the true clip; its middle frames are all but the first and the last. "reconstruction" is
what the autoencoder makes of the true clip, "cross-fade" one given frame faded into the other. "Both ways" samples the
motion latents as ViBiDSampler does (techniques/bidirectional.py): each step down with the words and up again by new
noise, then down turned round in time without words; what puts a frame in place there is a descent on the latents. The
model of the rows "told" comes of reference-content.yaml and reference-motion.yaml, joined by `cmd-video export`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from by_turns import BATCH, PLAIN, encode_scenes, protocol_of

from cmd_video.denoisers.latent_space import decode_video
from cmd_video.denoisers.motion import motion_shape
from cmd_video.diffusion.guidance import ALL, ClassifierFree
from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.pipeline_cmd import TOLD
from cmd_video.pipelines.sampling import conditions_for
from cmd_video.sprites.adherence import choose_scenes, evaluate_adherence
from cmd_video.sprites.scenes import SpriteScene, render
from cmd_video.techniques import bidirectional
from cmd_video.techniques.roll_forward import Settings

Maker = Callable[[list[str], list[int], torch.Tensor], torch.Tensor]  # prompts, seeds, true clips -> clips
ENDS = {"image": 0, "last_image": -1}


def pipeline(model: str | None, preset: str | None = None) -> CMDPipeline:
    """A shipped model; the default without a preset with PLAIN sampling."""
    pipe = CMDPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    if preset is not None:
        pipe.use_preset(preset)
    elif model != "turbo":
        pipe.sampling = PLAIN
    return pipe


def told(
    pipe: CMDPipeline, given: dict[str, int], kind: str = "roll_forward", joint: bool = False, **settings: Any
) -> Maker:
    """Clips that are told some frames of the true ones, by the name of the argument; with joint guidance, if asked."""
    how = pipe.sampling.laid_over({"given_frames": {"kind": kind, **settings}})
    if joint:
        guidance = {"kind": "joint_guidance", "scale": how.content.guidance_scale}
        how = how.laid_over({"content": {"guidance": guidance}})

    def make(prompts: list[str], seeds: list[int], truth: torch.Tensor) -> torch.Tensor:
        pictures: dict[str, Any] = {name: truth[:, :, number] / 2 + 0.5 for name, number in given.items()}
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        out: Any = pipe(prompts, generator=sources, output_type="pt", sampling=how, **pictures)
        return out.frames.transpose(1, 2) * 2 - 1

    return make


def rows_of(which: str, scenes: dict[int, SpriteScene], model: str | None) -> dict[str, Maker]:
    """The rows of a table; some are of another model."""
    plain = pipeline(None)

    def reconstruction(prompts: list[str], seeds: list[int], truth: torch.Tensor) -> torch.Tensor:
        content_frame, motion_latents = encode_scenes(plain, scenes, seeds)
        return decode_video(plain.vae, plain.autoencoder.decode(content_frame, motion_latents).sample).clamp(-1, 1)

    def cross_fade(prompts: list[str], seeds: list[int], truth: torch.Tensor) -> torch.Tensor:
        share = torch.linspace(0, 1, truth.shape[2]).view(1, 1, -1, 1, 1)
        return truth[:, :, :1] * (1 - share) + truth[:, :, -1:] * share

    first = {"image": 0}
    if which == "default":
        return {
            "text": told(plain, {}),
            "reconstruction": reconstruction,
            "picture as content frame": told(plain, {"content_frame": 0}),
            "first frame, rolled": told(plain, first, refine_steps=0),
            "first frame, rolled and refined": told(plain, first),
        }
    if which == "presets":
        rows: dict[str, Maker] = {}
        pipes = {"quality": pipeline(None, "quality"), "fast": pipeline(None, "fast"), "turbo": pipeline("turbo")}
        for name, pipe in pipes.items():
            rows |= {f"{name}, text": told(pipe, {}), f"{name}, first frame": told(pipe, first)}
        return rows
    if which == "told":
        assert model is not None
        other, kind = pipeline(model), "told_frames"
        return {
            "text": told(plain, {}),
            "text, of the model that is told": told(other, {}),
            "first frame, rolled and refined": told(plain, first),
            "first frame, told": told(other, first, kind),
            "first frame, told, joint guidance": told(other, first, kind, joint=True),
            "first frame, told and refined": told(other, first, kind, refine_steps=5),
            "both, rolled and refined": told(plain, ENDS),
            "both, told": told(other, ENDS, kind),
            "both, told and refined": told(other, ENDS, kind, refine_steps=5),
        }
    if which == "ways":
        return {
            "both, rolled": told(plain, ENDS, refine_steps=0),
            "both, rolled and refined": told(plain, ENDS),
            "both, 15 steps": told(plain, ENDS, refine_steps=15),
            "both ways": both_ways(plain, descent=0, refine_steps=0),
            "both ways, frames in place by 1 step each": both_ways(plain, descent=1, refine_steps=0),
            "... and refined": both_ways(plain, descent=1, refine_steps=5),
            "both ways, refined": both_ways(plain, descent=0, refine_steps=5),
        }
    return {
        "text": told(plain, {}),
        "reconstruction": reconstruction,
        "cross-fade": cross_fade,
        "both, rolled": told(plain, ENDS, refine_steps=0),
        "both, motion refined": told(plain, ENDS, content_rate=0.0),
        "both, rolled and refined": told(plain, ENDS),
        "both, 15 steps": told(plain, ENDS, refine_steps=15),
        "last frame, rolled and refined": told(plain, {"last_image": -1}),
    }


def both_ways(pipe: CMDPipeline, descent: int, refine_steps: int) -> Maker:
    """Clips between first and last frames, the motion latents sampled in both directions.

    Args:
        pipe: a pipeline whose content frame is nearly one frame.
        descent: steps of Adam on each clean estimate towards the frame that the direction does not begin at; 0 = none.
        refine_steps: as `roll_forward`'s, at the end.
    """
    how, inside = pipe.sampling, Settings(refine_steps=descent, content_rate=0.0)
    weights, patch = pipe.autoencoder.config.frame_weights, pipe.motion_transformer.config.patch_size

    def make(prompts: list[str], seeds: list[int], truth: torch.Tensor) -> torch.Tensor:
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        words, nothing, _ = pipe.encode(prompts, None, None, len(prompts), 1)
        given = {at % 16: pipe.encode_image(truth[:, :, at] / 2 + 0.5, 1) for at in ENDS.values()}
        first, last = ({number: given[number]} for number in (0, 15))

        def draw(
            x_c: torch.Tensor, frames: int, steps: int | None, shown: int | None = None, given: Any = None
        ) -> torch.Tensor:
            if given is None:  # the first pass, which only rolls
                return pipe.motion_latents(nothing, how.motion, sources, None, words, x_c, frames, steps)
            told = words.having(content_frame=x_c).only(pipe.motion.told(pipe.motion_transformer))
            conditions = conditions_for(how.motion, told, nothing, TOLD)
            forward = how.motion.denoise(pipe.motion, pipe.motion_transformer, conditions)
            plain = how.motion.model_copy(update={"guidance": ClassifierFree()})
            wordless = {ALL: told.having(pooled=nothing["pooled"])}
            backward = plain.denoise(pipe.motion, pipe.motion_transformer, wordless)
            solver, steps_down = how.motion.model_copy(update={"solver": bidirectional.Settings()}).ready(pipe.motion)
            z = pipe.prepare_latents(motion_shape(pipe.autoencoder, x_c, frames), sources)
            for step in steps_down:
                t, until = solver.level(step, z)
                x_0, noise = solver.estimate(forward, z, step)
                x_0 = inside.refine(last, x_c, x_0, pipe.latents_of)[1]
                z = solver.up(solver.move(x_0, noise, step, None), until, t, sources).flip(2)
                x_0, noise = solver.estimate(backward, z, step)
                x_0 = inside.refine(first, x_c, x_0.flip(2), pipe.latents_of)[1].flip(2)
                z = solver.move(x_0, noise, step, None).flip(2)
            return z

        with torch.no_grad():
            x_c, z = Settings(refine_steps=refine_steps).frames(given, 16, weights, patch, draw, pipe.latents_of)
            return decode_video(pipe.vae, pipe.latents_of(x_c, z)).clamp(-1, 1)

    return make


@torch.inference_mode()
def measure(makers: dict[str, Maker], scenes: dict[int, SpriteScene]) -> dict[str, Any]:
    """A row for each maker."""
    indices = list(scenes)
    clips: dict[str, list[torch.Tensor]] = {name: [] for name in makers}
    seconds = dict.fromkeys(makers, 0.0)
    truths = []
    for start in range(0, len(indices), BATCH):
        batch = indices[start : start + BATCH]
        truth = torch.stack([render(scenes[index], 16, 64, 64) for index in batch])  # (B, 3, F, H, W)
        truths.append(truth)
        for name, make in makers.items():
            begin = time.perf_counter()
            clips[name].append(make([scenes[index].prompt for index in batch], batch, truth))
            seconds[name] += time.perf_counter() - begin
        print(f"{start + len(batch)} of {len(indices)} clips", flush=True)
    true, values = torch.cat(truths), {}
    for name, parts in clips.items():
        order, made = iter(parts), torch.cat(parts)
        adherence = evaluate_adherence(lambda prompts, seeds, order=order: next(order), len(indices), batch_size=BATCH)
        values[name] = {
            "psnr": {
                "first": psnr(made[:, :, :1], true[:, :, :1]),
                "last": psnr(made[:, :, -1:], true[:, :, -1:]),
                "middle": psnr(made[:, :, 1:-1], true[:, :, 1:-1]),
                "clip": psnr(made, true),
            },
            "adherence": adherence["accuracy"],
            "seconds_per_clip": seconds[name] / len(indices),
        }
        decibels = ", ".join(f"{place} {found['mean']:.2f}" for place, found in values[name]["psnr"].items())
        rates = ", ".join(f"{kind} {score['rate']:.1%}" for kind, score in adherence["accuracy"].items())
        print(f"{name:34s} {decibels}   {rates}   {values[name]['seconds_per_clip']:.2f} s", flush=True)
    return values


def psnr(made: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
    """Mean over clips of their PSNR in dB, at most 60, and its standard error."""
    error = ((made.clamp(-1, 1) - true) / 2).square().flatten(1).mean(dim=1)
    found = -10 * error.clamp(min=1e-6).log10()
    return {"mean": float(found.mean()), "standard_error": float(found.std() / len(found) ** 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=200)
    parser.add_argument("--rows", choices=("default", "presets", "ends", "told", "ways"), default="default")
    parser.add_argument("--model", help="For the rows `told`: a folder.")
    arguments = parser.parse_args()
    scenes = choose_scenes(arguments.num_scenes)
    if (arguments.model is None) == (arguments.rows == "told"):
        parser.error("--model: for the rows `told`, and needed there")
    values = measure(rows_of(arguments.rows, scenes, arguments.model), scenes)
    others = ("turbo",) if arguments.rows == "presets" else (arguments.model,) if arguments.model else ()
    models = {name: digest_model(name) for name in (None, *others)}
    protocol = {**protocol_of(arguments.num_scenes), "plain": PLAIN, "rows": arguments.rows}
    protocol["model_sha256"] = {name or "default": found for name, found in models.items()}
    write_result(arguments.output, "given frames", values, protocol, "cpu")


if __name__ == "__main__":
    main()
