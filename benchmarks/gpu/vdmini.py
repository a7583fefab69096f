"""VDMini at the published shapes: a denoising step, the decoder and a clip, before and after pruning; random weights.

python benchmarks/gpu/vdmini.py -o benchmarks/results/gpu/vdmini.json [--rehearse] [--device cuda] [--seconds 75]

A clip's seconds are steps x denoiser + decoder, each the median of a call. The paper (arXiv 2411.18375) is 2.5 times
as fast with SF-V, which is Stable Video Diffusion in one step, 1.4 times with T2V-Turbo-v2, which has VideoCrafter2's
layout, and 1.25 times with HunyuanVideo; its decoder of Stable Video Diffusion takes 70% less time.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from rows import Results, Row, free, parse

from cmd_video.benchmark.cmd_system import IMAGE_AUTOENCODER
from cmd_video.benchmark.cost import num_parameters
from cmd_video.benchmark.peers import TEMPORAL_AUTOENCODER
from cmd_video.benchmark.system import Place, Size
from cmd_video.benchmark.timing import peak_memory, reset_peak_memory, time_call
from cmd_video.models import VideoCrafterUNet
from cmd_video.pruning.pruned_models import prune
from cmd_video.pruning.selection import select_blocks

RUNS, RUNS_REHEARSED = 5, 2
Call = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """A published model.

    Attributes:
        clip: what it makes.
        rule: of `select_blocks`, for the denoiser.
        paper: how many times as fast VDMini is.
        sampling: name -> steps, and rows of the batch in each (2 with guidance).
        denoiser: builds it.
        denoise: the call with a number of rows.
        decoder: builds it.
        decode: the call, of all frames.
        prune_decoder: whether the paper does.
    """

    clip: Size
    rule: str
    paper: float
    sampling: dict[str, tuple[int, int]]
    denoiser: Callable[[Place], Any]
    denoise: Callable[[Place, Size, int], Call]
    decoder: Callable[[Place], Any]
    decode: Callable[[Place, Size], Call]
    prune_decoder: bool = False


def svd_denoise(at: Place, clip: Size, rows: int) -> Call:
    latents = at.noise(rows, clip.frames, 8, clip.height // 8, clip.width // 8)  # (B, F, C, H, W)
    inputs = latents, at.ones(rows), at.noise(rows, 1, 1024), at.zeros(rows, 3)
    return lambda model: model(*inputs)


def svd_decode(at: Place, clip: Size) -> Call:
    latents = at.noise(clip.frames, 4, clip.height // 8, clip.width // 8)  # (F, C, H, W)
    return lambda model: model.decode(latents, num_frames=clip.frames)


def videocrafter_denoise(at: Place, clip: Size, rows: int) -> Call:
    latents = at.noise(rows, 4, clip.frames, clip.height // 8, clip.width // 8)  # (B, C, F, H, W)
    inputs = latents, at.ones(rows), at.noise(rows, 77, 1024)
    return lambda model: model(*inputs)


def videocrafter_decode(at: Place, clip: Size) -> Call:
    frame = at.noise(1, 4, clip.height // 8, clip.width // 8)
    return lambda model: [model.decode(frame) for _ in range(clip.frames)]


def hunyuan_denoise(at: Place, clip: Size, rows: int) -> Call:
    latents = at.noise(rows, 16, (clip.frames - 1) // 4 + 1, clip.height // 8, clip.width // 8)  # (B, C, F, H, W)
    text, mask, pooled = at.noise(rows, 256, 4096), at.ones(rows, 256), at.noise(rows, 768)
    guidance = 6000 * torch.ones(rows, device=at.device, dtype=at.dtype)
    return lambda model: model(latents, at.ones(rows), text, mask, pooled, guidance)


def hunyuan_decode(at: Place, clip: Size) -> Call:
    latents = at.noise(1, 16, (clip.frames - 1) // 4 + 1, clip.height // 8, clip.width // 8)  # (B, C, F, H, W)
    return lambda model: model.decode(latents)


CASES = {
    "Stable Video Diffusion": Case(
        Size(576, 1024, 14), "vdmini", 2.5, {"1 step": (1, 1), "25 guided steps": (25, 2)},
        lambda at: at.build(
            diffusers.UNetSpatioTemporalConditionModel, num_attention_heads=(5, 10, 20, 20), num_frames=14
        ),
        svd_denoise, lambda at: at.build(diffusers.AutoencoderKLTemporalDecoder, **TEMPORAL_AUTOENCODER), svd_decode,
        prune_decoder=True,
    ),
    "VideoCrafter2": Case(
        Size(320, 512, 16), "vdmini", 1.4, {"4 steps": (4, 1), "16 steps": (16, 1), "50 guided steps": (50, 2)},
        lambda at: at.build(VideoCrafterUNet, cross_attention_dim=1024, attention_head_dim=64),
        videocrafter_denoise, lambda at: at.build(diffusers.AutoencoderKL, **IMAGE_AUTOENCODER), videocrafter_decode,
    ),
    "HunyuanVideo": Case(
        Size(512, 1024, 17), "middle", 1.25, {"50 steps": (50, 1)},
        lambda at: at.build(diffusers.HunyuanVideoTransformer3DModel),
        hunyuan_denoise, lambda at: at.build(diffusers.AutoencoderKLHunyuanVideo), hunyuan_decode,
    ),
}  # fmt: skip
SMALL_CLIPS = {
    "Stable Video Diffusion": Size(64, 64, 2), "VideoCrafter2": Size(64, 64, 2), "HunyuanVideo": Size(64, 64, 5),
}  # fmt: skip


def before_and_after(
    build: Callable[[Place], Any], calls: dict[str, Call], rule: str | None, at: Place, runs: int
) -> dict[str, Any]:
    """Seconds of each call, parameters and memory of a model and, given a rule, of what is left of it."""
    model = build(at)
    row = {"before": _time(model, calls, at.device, runs)}
    if rule is not None:
        model = prune(model, select_blocks(model, rule))  # the teacher's weights are not needed any more
        free(at.device)
        row["after"] = _time(model, calls, at.device, runs)
        row["times_as_fast"] = {name: row["before"][name] / row["after"][name] for name in calls}
    return row


def _time(model: Any, calls: dict[str, Call], device: str, runs: int) -> dict[str, Any]:
    reset_peak_memory(device)
    seconds = {name: time_call(partial(call, model), device, runs).median for name, call in calls.items()}
    return {**seconds, "parameters": num_parameters([model]), "peak_bytes": peak_memory(device)}


def measure(case: Case, clip: Size, at: Place, runs: int) -> dict[str, Any]:
    rows = {f"{count} rows": case.denoise(at, clip, count) for _, count in case.sampling.values()}
    denoiser = before_and_after(case.denoiser, rows, case.rule, at, runs)
    free(at.device)
    decoding = {"clip": case.decode(at, clip)}
    decoder = before_and_after(case.decoder, decoding, "vdmini" if case.prune_decoder else None, at, runs)
    whole = {}
    for name, (steps, count) in case.sampling.items():
        before, after = (
            steps * denoiser[when][f"{count} rows"] + decoder.get(when, decoder["before"])["clip"]
            for when in ("before", "after")
        )
        whole[name] = {"before": before, "after": after, "times_as_fast": before / after}
    return {
        "size": str(clip), "rule": case.rule, "denoiser": denoiser, "decoder": decoder, "end_to_end": whole,
        "times_as_fast": {name: round(row["times_as_fast"], 3) for name, row in whole.items()},
        "of_the_paper": case.paper,
    }  # fmt: skip


def main() -> None:
    arguments: Namespace = parse(__doc__)
    clips = SMALL_CLIPS if arguments.rehearse else {name: case.clip for name, case in CASES.items()}
    runs = RUNS_REHEARSED if arguments.rehearse else RUNS
    results = Results("VDMini", arguments, {"runs": runs}, ("times_as_fast", "of_the_paper"))
    rows = [Row(name, partial(measure, case, clips[name], arguments.place, runs)) for name, case in CASES.items()]
    raise SystemExit(results.run(rows))


if __name__ == "__main__":
    main()
