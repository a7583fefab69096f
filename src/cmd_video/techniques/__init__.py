"""Techniques: one file for each method of a paper, one row each here. A file is imported when its row is asked for.

    settings = technique("consistency").settings           # its section: fields, checks, and what builds it

What the section of each seam has: an objective `build(denoiser, model, teacher, seed)`; a process `process(scheduler)`
and `source(denoiser, condition, like, x_0)`; guidance what `diffusion.guidance.Guidance` says; a solver
`solver(process, scheduler, steps, x_1)`; a wrap `check(model, denoiser, sampling)`, `steps(steps, guidance)`,
`ask_under(ask_under, denoiser, model)` and `rows`, what it takes of a condition beside what the network is told; a
disturbance `disturb(told, times, rng)`, times as shares of diffusion time; a search `search(...)`; given frames
`passes(...)`, `refine(...)`, and `frames(...)` unless it `tells` the networks; a control `control(...)`; a resampling
`around(...)`; a restoration `restore(...)`; an edit `edit(model, seed)`, `finish(model)` and `save(...)`; a merge
`edit(base, tuned)`. The neutral setting of a section changes nothing, to the bit.
"""

from importlib import import_module
from typing import Any, Literal, NamedTuple

Seam = Literal[
    "process", "guidance", "solver", "wrap", "objective", "disturbance", "search", "frames", "control", "resampling",
    "restoration", "edit", "merge",
]  # fmt: skip


class Technique(NamedTuple):
    """One row of the table.

    Attributes:
        module: dotted path of its file.
        title: in a few words.
        seam: where it plugs in.
        denoisers: which it is for.
        paper: what it is written from.
        section: name of its section in the file.
    """

    module: str
    title: str
    seam: Seam
    denoisers: tuple[str, ...]
    paper: str
    section: str = "Settings"

    @property
    def settings(self) -> Any:
        """Its section, a `cmd_video.section.Section`."""
        return getattr(import_module(self.module), self.section)


def _row(file: str, title: str, seam: Seam, denoisers: str, paper: str, section: str = "Settings") -> Technique:
    return Technique(f"cmd_video.techniques.{file}", title, seam, tuple(denoisers.split()), paper, section)


TECHNIQUES: dict[str, Technique] = {
    "feature_reuse": _row("feature_reuse", "deep features used again", "wrap", "content motion", "arXiv 2312.00858"),
    "guidance_interval": _row(
        "guidance_interval", "guidance at some noise levels", "guidance", "content motion", "arXiv 2404.07724"
    ),
    "guidance_distillation": _row("few_steps", "guidance built in", "objective", "content motion", "arXiv 2210.03142"),
    "consistency": _row("few_steps", "consistency distillation", "objective", "content motion", "arXiv 2403.06807"),
    "backward": _row("few_steps", "backward distillation", "objective", "content motion", "arXiv 2405.05224"),
    "distribution_matching": _row(
        "distribution_matching", "distribution matching", "objective", "content motion", "arXiv 2405.14867"
    ),
    "vdmini_recovery": _row(
        "vdmini_recovery", "recovery of pruned models", "objective", "content motion video", "arXiv 2411.18375"
    ),
    "lora": _row("lora", "low-rank adapters", "edit", "content", "arXiv 2106.09685"),
    "bridge": _row("bridge", "bridge from the still clip", "process", "motion", "arXiv 2410.15371"),
    "image_leakage": _row(
        "image_leakage", "noise on the frame that grows with t", "disturbance", "motion", "arXiv 2406.15735"
    ),
    "later_start": _row(
        "image_leakage", "a later start of sampling", "solver", "motion", "arXiv 2406.15735", "LaterStart"
    ),
    "joint_guidance": _row(
        "joint_guidance", "text and frame guided together", "guidance", "content motion", "arXiv 2412.07730"
    ),
    "frame_dropout": _row(
        "joint_guidance", "the frame left out in training", "disturbance", "motion", "arXiv 2412.07730", "FrameDropout"
    ),
    "cfg_plus_plus": _row(
        "cfg_plus_plus", "guidance on the manifold", "guidance", "content motion", "arXiv 2406.08070"
    ),
    "reward_particles": _row("reward_particles", "reward-guided particles", "search", "content", "arXiv 2503.19385"),
    "roll_forward": _row(
        "roll_forward", "first and last frames that are given", "frames", "motion", "arXiv 2403.14148"
    ),
    "reference_frames": _row(
        "reference_frames", "channels for given frames", "edit", "content motion", "arXiv 2412.07730"
    ),
    "reference_attention": _row(
        "reference_attention", "attention to a given frame", "edit", "content", "arXiv 2312.16693"
    ),
    "task_mix": _row(
        "reference_frames",
        "several tasks in one training",
        "disturbance",
        "content motion",
        "arXiv 2506.01758",
        "TaskMix",
    ),
    "told_frames": _row(
        "reference_frames",
        "networks told the given frames",
        "frames",
        "content motion",
        "arXiv 2412.07730",
        "ToldFrames",
    ),
    "frame_timesteps": _row(
        "frame_timesteps", "a time of its own for each frame", "objective", "motion video", "arXiv 2410.03160"
    ),
    "known_frames": _row(
        "frame_timesteps", "a part of a clip drawn anew", "resampling", "motion", "arXiv 2410.03160", "Resample"
    ),
    "structure_injection": _row(
        "structure_injection", "structure of a given picture", "wrap", "content", "arXiv 2507.02857"
    ),
    "tracks": _row("tracks", "points dragged along paths", "control", "motion", "arXiv 2401.15977"),
    "variational": _row(
        "variational_restoration", "variational restoration", "restoration", "content motion", "arXiv 2305.04391"
    ),
    "bidirectional": _row("bidirectional", "between two frames, both ways", "solver", "video", "arXiv 2410.05651"),
    "two_models": _row("two_models", "other weights at cleaner levels", "wrap", "content motion", "arXiv 2503.00948"),
    "weight_extrapolation": _row(
        "weight_extrapolation", "weights beyond a fine-tuning", "merge", "content motion video", "arXiv 2503.00948"
    ),
}


def of_seam(seam: Seam | None = None) -> list[str]:
    """Kinds of the techniques of a seam; None = all."""
    return [name for name, row in TECHNIQUES.items() if seam in (None, row.seam)]


def technique(kind: str, seam: Seam | None = None) -> Technique:
    """The row of a kind.

    Raises:
        ValueError: there is none, or it is for another seam.
    """
    allowed = of_seam(seam)
    if kind not in allowed:
        raise ValueError(f"kind: {kind!r} is none of {', '.join(allowed)}")
    return TECHNIQUES[kind]
