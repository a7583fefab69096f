"""What the pipeline's loops save, against the plainest correct implementation of algorithm 1, on this machine.

python benchmarks/hot_path.py -o benchmarks/results/hot-path.json

The plain one runs condition and negative one after the other, embeds positions and content frame at every step and
decodes frame by frame. Both must make the same clip. They take turns, so that a busy machine is busy for both.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cmd_video.denoisers.latent_space import decode_images
from cmd_video.denoisers.prompts import encode_prompts
from cmd_video.evaluation.protocol.results import write_result
from cmd_video.pipelines import CMDPipeline


def plain(pipe: CMDPipeline, prompt: str, seed: int, steps: int) -> torch.Tensor:
    """Algorithm 1, line by line: a clip (1, F, 3, H, W) in [0, 1]."""
    draw = torch.Generator().manual_seed(seed)
    shape = pipe.autoencoder.config.in_channels, *pipe.autoencoder.config.sample_size
    x = torch.randn(1, *shape, generator=draw)
    texts = ["", prompt]
    tokens = [encode_prompts(pipe.tokenizer, pipe.text_encoder, [text]).hidden_states for text in texts]
    pooled = [encode_prompts(pipe.motion_tokenizer, pipe.motion_text_encoder, [text]).pooled for text in texts]
    pipe.content_scheduler.set_timesteps(steps)
    for t in pipe.content_scheduler.timesteps:
        without, with_text = (pipe.unet(x, t.expand(1), text).sample for text in tokens)
        guided = without + pipe.sampling.content.guidance_scale * (with_text - without)
        x = pipe.content_scheduler.step(guided, t, x).prev_sample
    content_frame = x  # (1, C, h, w)
    places = sum(pipe.autoencoder.config.sample_size) // pipe.autoencoder.config.patch_size
    config = pipe.autoencoder.config
    z = torch.randn(1, config.latent_channels, config.num_frames, places, generator=draw)
    pipe.motion_scheduler.set_timesteps(steps)
    for t in pipe.motion_scheduler.timesteps:
        without, with_text = (pipe.motion_transformer(z, t.expand(1), content_frame, text).sample for text in pooled)
        guided = without + pipe.sampling.motion.guidance_scale * (with_text - without)
        z = pipe.motion_scheduler.step(guided, t, z).prev_sample
    latents = pipe.autoencoder.decode(content_frame, pipe.autoencoder.denormalize_latents(z)).sample
    frames = [decode_images(pipe.vae, latents[:, :, number]) for number in range(config.num_frames)]
    return (torch.stack(frames, dim=1).clamp(-1, 1) + 1) / 2


def piped(pipe: CMDPipeline, prompt: str, seed: int, steps: int) -> torch.Tensor:
    """The same by the pipeline."""
    draw = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=steps, generator=draw, output_type="pt").frames


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    wide = CMDPipeline.from_pretrained()
    wide.set_progress_bar_config(disable=True)
    wide.unet.to(memory_format=torch.channels_last)
    ways: dict[str, tuple[Callable[..., torch.Tensor], CMDPipeline]] = {
        "plain": (plain, pipe),
        "pipeline": (piped, pipe),
        "pipeline, UNet channels-last": (piped, wide),
    }
    clips = {name: make(model, "a red ring moves up", 0, arguments.steps) for name, (make, model) in ways.items()}
    for name, clip in clips.items():
        torch.testing.assert_close(clip, clips["plain"], atol=2e-3, rtol=0, msg=f"{name} makes another clip")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.runs):
        for name, (make, model) in ways.items():
            start = time.perf_counter()
            make(model, "a red ring moves up", number, arguments.steps)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    values = {
        name: {"seconds": median, "times_as_fast_as_plain": medians["plain"] / median}
        for name, median in medians.items()
    }
    for name, row in values.items():
        print(f"{name:30s} {row['seconds']:.2f} s   {row['times_as_fast_as_plain']:.2f} times as fast as plain")
    protocol = {"steps": arguments.steps, "runs": arguments.runs, "clips": 1, "threads": torch.get_num_threads()}
    write_result(arguments.output, "hot path", values, protocol)


if __name__ == "__main__":
    main()
