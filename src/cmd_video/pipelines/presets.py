"""Presets: solver, steps and shortcuts of both models at once.

pipe.use_preset("fast")  # or cmd-video generate --preset fast
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffusers import LCMScheduler

from cmd_video.diffusion.guidance import ClassifierFree
from cmd_video.diffusion.solvers import ddim, multistep, with_schedule

from .sampling import PARTS, ModelSampling, Sampling, with_setting


@dataclass(frozen=True)
class Preset:
    """A trade of quality for speed.

    Attributes:
        sampler: "ddim" as in the paper; "multistep": DPM-Solver++ of second order (arXiv 2211.01095); "distilled":
            what a model that was distilled for few steps came with, and only for such.
        num_inference_steps: of both models; of distilled ones as many as they know.
        interval: guide only in this interval of diffusion time.
        reuse_interval: compute deep features at every n-th step.
        decode_content_frame: decode the content frame to look at, too.
    """

    sampler: Literal["ddim", "multistep", "distilled"]
    num_inference_steps: int
    interval: tuple[float, float] = (0.0, 1.0)
    reuse_interval: int = 1
    decode_content_frame: bool = True


PRESETS: dict[str, Preset] = {
    "quality": Preset("ddim", 50),
    "fast": Preset("multistep", 20, interval=(0.2, 1.0), reuse_interval=2, decode_content_frame=False),
    "turbo": Preset("distilled", 4, decode_content_frame=False),
}


def is_distilled(sampling: ModelSampling, scheduler: Any) -> bool:
    """Whether a model is for few steps: it knows where they start, or is a Latent Consistency Model."""
    return sampling.starts is not None or isinstance(scheduler, LCMScheduler)


def preset_of(
    name: str, sampling: Sampling, schedulers: Mapping[str, Any], reusable: Mapping[str, bool]
) -> tuple[Sampling, dict[str, Any]]:
    """Settings and schedulers of a preset, from those of a pipeline, whose guidance scales stay.

    Args:
        name: of PRESETS.
        sampling: the pipeline's.
        schedulers: its schedulers, by part.
        reusable: whether a part's network can use deep features again.

    Raises:
        ValueError: there is no preset of that name, or it does not suit the model.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r} is none of {', '.join(PRESETS)}")
    preset, parts, samplers = PRESETS[name], {}, {}
    for part in PARTS:
        own, scheduler = getattr(sampling, part), schedulers[part]
        wraps = tuple(wrap for wrap in own.wraps if wrap.kind != "feature_reuse")  # of the model, no shortcuts
        distilled = is_distilled(own, scheduler)
        if distilled != (preset.sampler == "distilled"):
            fits = "only the preset turbo fits" if distilled else "turbo needs one that is, such as the model 'turbo'"
            raise ValueError(f"preset: this model was {'' if distilled else 'not '}distilled for few steps; {fits}")
        if distilled:
            samplers[part] = scheduler
            steps = len(own.starts) if own.starts is not None else preset.num_inference_steps
            parts[part] = ModelSampling(num_inference_steps=steps, starts=own.starts, process=own.process, wraps=wraps)
            continue
        samplers[part] = ddim(scheduler) if preset.sampler == "ddim" else multistep(scheduler)
        fresh = ModelSampling(
            num_inference_steps=preset.num_inference_steps,
            spacing="linspace" if preset.sampler == "multistep" else None,
            guidance=ClassifierFree(scale=max(1.0, own.guidance_scale)),
            process=own.process,
            wraps=wraps,
        )
        if preset.interval != (0.0, 1.0):
            fresh = with_setting(fresh, "guidance_interval", preset.interval, "guidance_interval")
        if preset.reuse_interval > 1 and reusable[part] and not wraps:
            fresh = with_setting(fresh, "reuse_interval", preset.reuse_interval, "reuse_interval")
        parts[part] = fresh
    return Sampling(**parts, decode_content_frame=preset.decode_content_frame), samplers


def lcm(scheduler: Any, original_inference_steps: int) -> LCMScheduler:
    """The sampler of a Latent Consistency Model (arXiv 2310.04378): any number of steps, with new noise between."""
    return with_schedule(LCMScheduler, scheduler, original_inference_steps=original_inference_steps)
