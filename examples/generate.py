"""Clips from prompts, as files: python examples/generate.py "a red circle moves up" -o out.mp4 [--model FOLDER]."""

import argparse
from pathlib import Path

import torch

from cmd_video import CMDPipeline
from cmd_video.data.video_file import write_video


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.mp4"))
    parser.add_argument("--model", help="folder or hub id; default: the model that ships")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)

    pipe = CMDPipeline.from_pretrained(asked.model)
    generator = torch.Generator().manual_seed(asked.seed)
    out = pipe(asked.prompt, generator=generator, output_type="np")
    write_video((out.frames[0] * 255).round().astype("uint8"), asked.output, fps=8)  # (F, H, W, 3)


if __name__ == "__main__":
    main()
