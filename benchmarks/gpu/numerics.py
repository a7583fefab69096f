"""How far bf16 is from float32: relative error of each part's output, with the same random weights and inputs.

python benchmarks/gpu/numerics.py -o benchmarks/results/gpu/numerics.json [--rehearse] [--device cuda] [--seconds 30]
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rows import DTYPE, Results, Row, fill_zeros, parse

from cmd_video.benchmark.cmd_system import paper_pipeline
from cmd_video.benchmark.system import Place, Size
from cmd_video.models import CMDMotionTransformer

ALLOWED = 0.05
Call = Callable[[Any], torch.Tensor]


def parts(at: Place, clip: Size) -> dict[str, tuple[torch.nn.Module, Call]]:
    """Each part, in float32, and a call that takes the part in any type."""
    pipe = paper_pipeline("sd21", "XL", at.device, torch.float32, changes=at.changes)
    for module in (pipe.unet, pipe.motion_transformer, pipe.autoencoder, pipe.vae):
        fill_zeros(module)
    exact = replace(at, dtype=torch.float32)
    height, width = clip.height // 8, clip.width // 8
    frame, latents = exact.noise(1, 4, height, width), exact.noise(1, 8, clip.frames, (height + width) // 2)
    tokens, timestep = exact.noise(1, 77, pipe.text_encoder.config.hidden_size), torch.tensor([500], device=at.device)

    def motion(model: CMDMotionTransformer) -> torch.Tensor:
        kind = model.dtype
        return model(latents.to(kind), timestep, frame.to(kind), tokens[:, 0].to(kind)).sample

    return {
        "content": (pipe.unet, lambda model: model(frame.to(model.dtype), timestep, tokens.to(model.dtype)).sample),
        "motion": (pipe.motion_transformer, motion),
        "autoencoder": (
            pipe.autoencoder,
            lambda model: model.decode(frame.to(model.dtype), latents.to(model.dtype)).sample,
        ),
        "image decoder": (pipe.vae, lambda model: model.decode(frame.to(model.dtype)).sample),
    }


@torch.inference_mode()
def compare(model: torch.nn.Module, call: Call) -> dict[str, Any]:
    """The part is left in bf16."""
    exact = call(model).float()
    rounded = call(model.to(DTYPE)).float()
    error = ((rounded - exact).norm() / exact.norm()).item()
    row: dict[str, Any] = {"relative_error": error}
    return row if error <= ALLOWED else {**row, "failure": f"bf16 is {error:.3f} off, {ALLOWED} is allowed"}


def main() -> None:
    arguments = parse(__doc__)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    clip = replace(arguments.clip, height=arguments.clip.height // 2, width=arguments.clip.width // 2)
    results = Results("bf16 against float32", arguments, {"clip": str(clip)}, shown=("relative_error",))
    tried = parts(arguments.place, clip)
    raise SystemExit(results.run([Row(name, partial(compare, *part)) for name, part in tried.items()]))


if __name__ == "__main__":
    main()
