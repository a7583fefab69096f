"""How far bf16 on a GPU is from float32: relative error of each part's output, with the same random weights.

python benchmarks/gpu_numerics.py -o benchmarks/results/gpu/numerics.json
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cmd_video.benchmark.cmd_system import paper_pipeline
from cmd_video.evaluation.results import write_result
from cmd_video.models import CMDMotionTransformer


def parts(device: str, motion: str) -> dict[str, tuple[torch.nn.Module, Callable[[Any], torch.Tensor]]]:
    """Each part and a call that takes the part in any type."""
    torch.manual_seed(0)
    pipe = paper_pipeline("sd21", motion, device=device, dtype=torch.float32)
    for parameter in pipe.motion_transformer.parameters():  # a fresh one outputs zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    draw = torch.Generator(device).manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, device=device)

    frame, tokens, time = noise(1, 4, 32, 64), noise(1, 77, 1024), torch.tensor([500], device=device)
    latents = noise(1, 8, 16, 48)

    def motion_call(model: CMDMotionTransformer) -> torch.Tensor:
        kind = model.dtype
        return model(latents.to(kind), time, frame.to(kind), tokens[:, 0].to(kind)).sample

    return {
        "content": (pipe.unet, lambda model: model(frame.to(model.dtype), time, tokens.to(model.dtype)).sample),
        "motion": (pipe.motion_transformer, motion_call),
        "autoencoder": (
            pipe.autoencoder,
            lambda model: model.decode(frame.to(model.dtype), latents.to(model.dtype)).sample,
        ),
        "image decoder": (pipe.vae, lambda model: model.decode(frame.to(model.dtype)).sample),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--motion-size", default="XL")
    arguments = parser.parse_args()
    errors = {}
    for name, (model, call) in parts(arguments.device, arguments.motion_size).items():
        exact = call(model).float()
        rounded = call(model.to(torch.bfloat16)).float()
        errors[name] = ((rounded - exact).norm() / exact.norm()).item()
        print(f"{name:14s} {errors[name]:.4f}")
        model.to("cpu")
    write_result(
        arguments.output, "bf16 against float32", errors, {"device": arguments.device, "clip": [16, 256, 512]}
    )
    if max(errors.values()) > 0.05:
        raise SystemExit("a part is more than 5% off")


if __name__ == "__main__":
    main()
