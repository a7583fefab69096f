"""How a clip is sampled: one object for all of it.

    pipe(prompt, sampling=Sampling(content={"num_inference_steps": 20, "guidance": {"scale": 4.0}}))

A pipeline saves its own `Sampling` in its model_index.json; the usual arguments of a call override it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.correction import Correct, Corrected
from cmd_video.diffusion.guidance import ClassifierFree, Denoise, Guided
from cmd_video.diffusion.plan import Step, steps_at
from cmd_video.diffusion.process import process_of
from cmd_video.diffusion.sample import Watch, sample
from cmd_video.diffusion.solvers import EtaSolver, SchedulerSolver, jumps
from cmd_video.diffusion.timesteps import check_noise, check_starts, check_steps
from cmd_video.section import Section, by_kind, by_technique
from cmd_video.techniques import TECHNIQUES, of_seam, technique

PARTS = ("content", "motion")
ARGUMENTS = {  # of a pipeline's call -> (part, field); None = both parts
    "num_inference_steps": ("content", "num_inference_steps"),
    "motion_num_inference_steps": ("motion", "num_inference_steps"),
    "guidance_scale": ("content", "guidance_scale"),
    "motion_guidance_scale": ("motion", "guidance_scale"),
    "guidance_interval": (None, "guidance_interval"),
    "reuse_interval": (None, "reuse_interval"),
}
ALLOWED = {  # values of fields
    "guidance_scale": "a number of at least 1 (1 = none)",
    "guidance_interval": "a pair of rising numbers in 0..1",
    "reuse_interval": "a whole number of at least 1",
}


def _guidance(kind: str) -> type[Section]:
    return ClassifierFree if kind == "classifier_free" else technique(kind, "guidance").settings


class ModelSampling(Section):
    """How one of the two models is sampled."""

    num_inference_steps: int = Field(50, ge=1)
    """Steps of the sampler."""
    starts: tuple[int, ...] | None = None
    """Timesteps at which the steps start, of a model distilled for few steps, which knows no others; null = the
    sampler's own."""
    spacing: Literal["linspace", "leading", "trailing"] | None = None
    """How the sampler spaces its timesteps; null = as its scheduler says."""
    guidance: Annotated[Any, by_kind(_guidance, default="classifier_free")] = ClassifierFree()
    """What combines predictions with and without condition."""
    wraps: tuple[Annotated[Any, by_technique("wrap")], ...] = ()
    """Techniques around the network, the innermost first."""
    solver: Annotated[Any, by_technique("solver")] | None = None
    """What leads from one noise level to the next; null = the pipeline's scheduler."""
    eta: float | None = Field(None, ge=0, le=1)
    """Share of new noise at each step of DDIM, 0 = none, 1 = DDPM's amount; null = the pipeline's scheduler."""
    process: Annotated[Any, by_technique("process")] | None = None
    """What the model learned to undo, other than the scheduler's noise; null = that."""
    search: Annotated[Any, by_technique("search")] | None = None
    """A search around the loop, which needs a reward; null = one sample."""

    @model_validator(mode="after")
    def _as_many_steps(self) -> "ModelSampling":
        if self.starts is not None and len(self.starts) != self.num_inference_steps:
            if "num_inference_steps" in self.model_fields_set:
                raise ValueError(
                    f"num_inference_steps: {self.num_inference_steps}, but the model was distilled for "
                    f"{len(self.starts)} steps"
                )
            object.__setattr__(self, "num_inference_steps", len(self.starts))
        return self

    @property
    def guidance_scale(self) -> float:
        """Of whichever kind of guidance; 1 = none."""
        return float(getattr(self.guidance, "scale", 1.0))

    @property
    def reuse_interval(self) -> int:
        """Every how many steps deep features are computed."""
        return max([1, *(wrap.interval for wrap in self.wraps if wrap.kind == "feature_reuse")])

    def check(self, denoiser: Denoiser, model: Any, prefix: str = "") -> None:
        """Raise a ValueError that names the argument, with this before its name, its value and what is allowed."""
        scheduler, steps = self.scheduler(denoiser), self.num_inference_steps
        total = scheduler.config.num_train_timesteps
        if steps > total:
            raise ValueError(f"{prefix}num_inference_steps: {steps!r} is not a whole number in 1..{total}")
        if self.starts is not None:
            check_starts("starts", self.starts, total)
            if self.process is None:
                check_noise("starts", scheduler, self.starts[0])
        elif self.process is None:
            check_steps(f"{prefix}num_inference_steps", scheduler, steps)
        for wrap in self.wraps:
            wrap.check(model, denoiser, self)

    def scheduler(self, denoiser: Denoiser) -> Any:
        """The denoiser's scheduler, its timesteps spaced as it is said here."""
        scheduler = denoiser.components[denoiser.scheduler]
        if self.spacing in (None, scheduler.config.get("timestep_spacing")):
            return scheduler
        return type(scheduler).from_config(scheduler.config, timestep_spacing=self.spacing)

    def ready(
        self, denoiser: Denoiser, device: torch.device | None = None, x_1: Tensor | None = None, share: float = 1.0,
        pair: bool = False,
    ) -> tuple[Any, list[Step]]:  # fmt: skip
        """The solver, readied, and the steps of the loop.

        Args:
            denoiser: of which scheduler.
            device: where its timesteps lie.
            x_1: source of a process that has one.
            share: of diffusion time: steps that start above it are left out.
            pair: whether the solver must take clean estimate and noise from two predictions, as a guidance may say.
        """
        scheduler = self.scheduler(denoiser)
        process = process_of(scheduler) if self.process is None else self.process.process(scheduler)
        own = self.process if self.solver is None else self.solver
        if own is not None:
            solver = own.solver(process, scheduler, self.num_inference_steps, x_1)
        elif self.eta is not None or pair or getattr(self.guidance, "needs_eta", False):
            levels = self.starts or process.levels(SchedulerSolver(scheduler, self.num_inference_steps).timesteps)
            solver = EtaSolver(process, levels, self.eta or 0.0)
        elif self.starts is not None:
            solver = SchedulerSolver(jumps(scheduler), starts=self.starts, device=device)
        else:
            solver = SchedulerSolver(scheduler, self.num_inference_steps, device=device)
        steps = steps_at(solver.timesteps, scheduler.config.num_train_timesteps)
        steps = [step for step in steps if step.time <= share]
        for wrap in self.wraps:
            steps = wrap.steps(steps, self.guidance)
        return solver, steps

    def at_most(self, steps: int | None) -> "ModelSampling":
        """The same in no more steps than these; a model distilled for few steps keeps its own, None keeps any."""
        if steps is None or self.starts is not None or self.num_inference_steps <= steps:
            return self
        return self.model_copy(update={"num_inference_steps": steps})

    def asks_without(self, word: str, denoiser: Denoiser) -> bool:
        """Whether some step asks under a condition that lacks this; the words are those of a guidance."""
        names = {name for step in self.ready(denoiser)[1] for name in self.guidance.passes(step)}
        return any(word in self.guidance.leaves_out[name] for name in names)

    def denoise(self, denoiser: Denoiser, model: Any, conditions: Mapping[str, Condition]) -> Denoise:
        """What the loop calls at each step: network, wraps, guidance."""
        ask_under = partial(denoiser.ask, model)
        for wrap in self.wraps:
            ask_under = wrap.ask_under(ask_under, denoiser, model)
        return Guided(ask_under, conditions, self.guidance)

    def run(
        self,
        denoiser: Denoiser,
        model: Any,
        conditions: Mapping[str, Condition],
        z: Tensor,
        rng: Any = None,
        watch: Watch | None = None,
        steps_through: Callable[[list[Step]], Any] = list,
        x_1: Tensor | None = None,
        reward: Callable[[Tensor], Tensor] | None = None,
        begin: tuple[Tensor, float] | None = None,
        correct: Correct | None = None,
    ) -> Tensor:
        """Noise z (B, ...) to a clean sample of its shape.

        Args:
            denoiser: how the network is asked.
            model: the network.
            conditions: what the guidance's conditions tell, by name; see `conditions_for`.
            z: standard normal.
            rng: source of what noise the solver adds.
            watch: sees and may change x after each step.
            steps_through: goes through the steps, for a progress bar.
            x_1: source of a process that has one.
            reward: clean samples (B, ...) to how good they are (B,), for a search.
            begin: a clean sample (B, ...) to change, and the share of diffusion time from which on, 0 = not at all.
            correct: each step's clean estimate to the one to go on with.

        Raises:
            ValueError: a search without a reward, or a correction of a process with a source.
        """
        x_0, share = (None, 1.0) if begin is None else begin
        solver, steps = self.ready(denoiser, z.device, x_1, share, pair=correct is not None)
        if x_0 is not None and not steps:
            return x_0
        denoise = self.denoise(denoiser, model, conditions)
        if correct is not None:
            if self.process is not None:
                raise ValueError(f"process: clean estimates of {self.process.kind!r} are not corrected; leave one out")
            denoise = Corrected(denoise, denoiser.process, correct)
        if self.search is None:
            x = None if x_0 is None else solver.noised(x_0, z, steps[0])
            return sample(denoise, solver, steps_through(steps), z, rng, watch, x)
        if reward is None:
            raise ValueError("reward: a search needs one")
        return self.search.search(denoise, solver, list(steps_through(steps)), z, rng, reward)


class Sampling(Section):
    """How both models are sampled."""

    content: ModelSampling = ModelSampling(guidance=ClassifierFree(scale=7.5))
    """The content model; the paper: 50 steps, guidance 7.5 for text and 4.0 for classes."""
    motion: ModelSampling = ModelSampling()
    """The motion model; the paper: no guidance."""
    decode_content_frame: bool = True
    """Whether the output holds the content frame as a picture, which costs as much as a frame of the clip."""
    given_frames: Annotated[Any, by_technique("frames")] | None = None
    """How clips meet first and last frames that are given; null = the first technique for it."""
    control: Annotated[Any, by_technique("control")] | None = None
    """How clips follow what a user draws; null = the first technique for it."""
    resampling: Annotated[Any, by_technique("resampling")] | None = None
    """How a part of a clip is drawn anew; null = the first technique for it."""

    @model_validator(mode="after")
    def _of_their_models(self) -> "Sampling":
        for part in PARTS:
            own: ModelSampling = getattr(self, part)
            for field, section in (
                ("guidance", own.guidance), ("solver", own.solver), ("process", own.process), ("search", own.search),
                *(("wraps", wrap) for wrap in own.wraps),
            ):  # fmt: skip
                row = TECHNIQUES.get(getattr(section, "kind", ""))
                if row is not None and part not in row.denoisers:
                    raise ValueError(f"{part}.{field}: {section.kind!r} is not for the {part} model")
            if own.eta is not None and (own.solver or own.process) is not None:
                raise ValueError(f"{part}.eta: {own.eta}, but its solver or process has an eta of its own")
        return self

    @property
    def for_given_frames(self) -> Any:
        """The technique for given frames."""
        return technique(of_seam("frames")[0]).settings() if self.given_frames is None else self.given_frames

    @property
    def for_control(self) -> Any:
        """The technique for what a user draws."""
        return technique(of_seam("control")[0]).settings() if self.control is None else self.control

    @property
    def for_resampling(self) -> Any:
        """The technique for parts of clips that are drawn anew."""
        return technique(of_seam("resampling")[0]).settings() if self.resampling is None else self.resampling

    def laid_over(self, given: Mapping[str, Any]) -> "Sampling":
        """The same with these fields of the two parts in place of its own: {"content": {"eta": 1.0}}.

        Raises:
            ValueError: an unknown field, or a value that does not fit; the message names it.
        """
        own = self.model_dump()
        parts = {name: {**own[name], **value} if name in PARTS and isinstance(value, Mapping) else value
                 for name, value in given.items()}  # fmt: skip
        return Sampling.model_validate({**own, **parts})

    def changed(self, arguments: Mapping[str, Any]) -> "Sampling":
        """The same with what a caller gave, by the names of ARGUMENTS; None is not given.

        Raises:
            ValueError: a value does not fit; the message names the argument.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        if "num_inference_steps" in given:  # one number for both, if the other is not given
            given.setdefault("motion_num_inference_steps", given["num_inference_steps"])
            if self.motion.starts is not None and arguments.get("motion_num_inference_steps") is None:
                del given["motion_num_inference_steps"]
        parts: dict[str, Any] = {part: getattr(self, part) for part in PARTS}
        for name, value in given.items():
            where, field = ARGUMENTS[name]
            for part in PARTS if where is None else (where,):
                parts[part] = with_setting(parts[part], field, value, name)
        return self.model_copy(update=parts)


def with_setting(sampling: ModelSampling, field: str, value: Any, name: str) -> ModelSampling:
    """One setting of one model changed; guidance and wraps keep what else they say."""
    try:
        if field == "num_inference_steps":
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value!r} is not a whole number of at least 1")
            if sampling.starts is not None and value != len(sampling.starts):
                raise ValueError(f"{name}: {value}, but the model was distilled for {len(sampling.starts)} steps")
            return sampling.model_copy(update={field: value})
        if field == "guidance_scale":
            fields = {**sampling.guidance.model_dump(), "scale": value}
            return sampling.model_copy(update={"guidance": type(sampling.guidance).model_validate(fields)})
        if field == "guidance_interval":
            low, high = value
            interval = technique("guidance_interval").settings(scale=sampling.guidance_scale, low=low, high=high)
            return sampling.model_copy(update={"guidance": interval})
        others = tuple(wrap for wrap in sampling.wraps if wrap.kind != "feature_reuse")
        reuse = (technique("feature_reuse").settings(interval=value),)
        return sampling.model_copy(update={"wraps": (*reuse, *others) if value != 1 else others})
    except (ValueError, TypeError) as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: {value!r} is not {ALLOWED[field]}") from error


def conditions_for(
    sampling: ModelSampling, told: Condition, nothing: Mapping[str, Tensor], groups: Mapping[str, tuple[str, ...]]
) -> dict[str, Condition]:
    """The conditions that a guidance asks for, by name.

    Args:
        sampling: whose guidance.
        told: everything that the network is told.
        nothing: rows that stand for nothing, or for what guidance leads away from; as in `told`.
        groups: which rows each of a guidance's words leaves out: {"text": ("tokens", "pooled", "labels")}.
    """
    found = {}
    for name, words in sampling.guidance.leaves_out.items():
        rows = {row for word in words for row in groups.get(word, ()) if row in told}
        found[name] = told.having(**{row: nothing[row] for row in rows})
    return found
