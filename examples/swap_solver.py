"""The same clip by three solvers, one below the other: python examples/swap_solver.py PROMPT -o solvers.png.

A solver of diffusers takes the place of the pipeline's scheduler. DDIM with `eta`, and what techniques bring, are
settings of `sampling`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from cmd_video import CMDPipeline


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, default=Path("solvers.png"))
    parser.add_argument("--model", help="folder or hub id; default: the model that ships")
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args(arguments)

    pipe = CMDPipeline.from_pretrained(asked.model)
    plain = pipe.sampling
    ways = {"ddim": plain, "ddim, eta 1": plain.laid_over({"content": {"eta": 1.0}})}
    rows = [clip(pipe, asked.prompt, asked.steps, way) for way in ways.values()]
    pipe.content_scheduler = DPMSolverMultistepScheduler.from_config(pipe.content_scheduler.config)
    rows.append(clip(pipe, asked.prompt, asked.steps, plain))
    Image.fromarray(np.concatenate(rows)).save(asked.output)  # (3 H, F W, 3)


def clip(pipe: CMDPipeline, prompt: str, steps: int, sampling: object) -> np.ndarray:
    """Frames side by side: uint8 (H, F W, 3)."""
    generator = torch.Generator().manual_seed(0)
    out = pipe(prompt, num_inference_steps=steps, sampling=sampling, generator=generator, output_type="np")
    return np.concatenate([*(out.frames[0] * 255).round().astype("uint8")], axis=1)


if __name__ == "__main__":
    main()
