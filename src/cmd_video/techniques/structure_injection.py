"""Content frames with the structure of a given picture, such as edges or a silhouette, without training (AnyI2V, arXiv
2507.02857, its first part).

    cmd-video generate "a red star moves up" --structure edges.png -o out.mp4
    pipe(prompt, structure_image=edges)
    sampling: {content: {wraps: [{kind: structure_injection, share: 0.15}]}}       # only to change a setting

The picture is taken back towards noise by DDIM, told nothing and without guidance (`ddim_invert`), and there the UNet
is asked once more: of its way up the outputs of residual blocks and the queries of self-attentions are kept. The
first steps of the generation get them in place of their own, queries as they are, residual features f after patch
AdaIN: each patch p of a channel takes mean and deviation of the generated features h there,

    f_p <- (f_p - mean(f_p)) / std(f_p) * std(h_p) + mean(h_p),

which leaves what is where in a patch and removes what the picture looks like. The rest of the steps is as ever.

Costs `inversion_steps` + 1 evaluations of the UNet for each picture, without guidance. Differs from paper: into the
content frame instead of the first of several frames, so that no keys and values are shared; layers are chosen by their
depth, an interval that holds the paper's in Stable Diffusion 1.5 (residual blocks 3 to 7 of 12 where the paper has 3,
4, 6, 7, self-attentions 0 to 4 of 9 where it has 0, 1, 3, 4); steps by diffusion time. The second part, trajectories,
is not here.

N rows asked for, C channels, h, w sides of a feature map.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from diffusers import UNet2DConditionModel
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import Ask, AskUnder, Guidance
from cmd_video.diffusion.plan import Step
from cmd_video.diffusion.process import Process
from cmd_video.section import Section

Depths = tuple[float, float] | None
Hook = Callable[[Any, Any, Tensor], Tensor | None]  # of a layer's output, see torch's register_forward_hook


class Settings(Section):
    """How long, and where, features of the picture are put in."""

    kind: Literal["structure_injection"] = "structure_injection"
    share: float = Field(0.15, ge=0, le=1)
    """Of diffusion time, from noise on, in which steps get the features; 0 = none, which changes nothing."""
    level: float = Field(0.2, gt=0, lt=1)
    """Share of diffusion time up to which the picture is taken towards noise."""
    inversion_steps: int = Field(5, ge=1)
    """Steps on that way."""
    resnets: Depths = (0.25, 0.6)
    """Residual blocks whose outputs are put in: from which depth to which of the way up, 0 = innermost, 1 = outermost;
    null = none."""
    queries: Depths = (0.25, 0.6)
    """The same of self-attentions and their queries."""
    patch: int = Field(4, ge=1)
    """Side of the patches of AdaIN, in pixels of a feature map."""
    rows: ClassVar[tuple[str, ...]] = ("structure",)

    def check(self, model: Any, denoiser: Denoiser, sampling: Any) -> None:
        """Raise a ValueError unless every step asks all layers of a UNet, and there are layers at these depths."""
        if not self.share:
            return
        if not isinstance(model, UNet2DConditionModel):
            raise ValueError(f"structure_image: features of a {type(model).__name__} are not known, only of UNets")
        if sampling.starts is not None:
            raise ValueError(
                f"structure_image: the content model was distilled for {len(sampling.starts)} steps, too few to put a "
                "structure in; allowed: a model that was not"
            )
        if sampling.reuse_interval > 1:
            raise ValueError(f"reuse_interval: {sampling.reuse_interval}, but with structure_image only 1 is allowed")
        if not self.layers(model):
            raise ValueError(f"structure_injection: no layers at depths {self.resnets} and {self.queries}")

    def steps(self, steps: Sequence[Step], guidance: Guidance) -> list[Step]:
        """The plan, as it is."""
        return list(steps)

    def ask_under(self, ask_under: AskUnder, denoiser: Denoiser, model: Any) -> AskUnder:
        """Ask a network that gets the features of the row `structure` (N, C, h, w), where it is told one."""

        def under(told: Condition) -> Ask:
            plain = ask_under(told)
            if not self.share or "structure" not in told:
                return plain
            kept: dict[Any, Tensor] = {}

            def ask(x: Tensor, step: Step) -> Tensor:
                if step.time < 1 - self.share:
                    return plain(x, step)
                if not kept:
                    kept.update(self.features(ask_under, denoiser, model, told["structure"]))
                with hooked({layer: self._inject(layer, kept[layer]) for layer in kept}):
                    return plain(x, step)

            return ask

        return under

    def features(self, ask_under: AskUnder, denoiser: Denoiser, model: Any, x_0: Tensor) -> dict[Any, Tensor]:
        """What layers give for clean samples x_0 (N, C, h, w) that were taken towards noise: (N, ...) by layer."""
        different, place = x_0.unique(dim=0, return_inverse=True)  # the rows of guidance tell the same picture
        nothing = denoiser.encode(Condition({"prompt": [""] * len(different)}))
        ask, process = ask_under(nothing.only(denoiser.told(model))), denoiser.process
        top = max(1, round(self.level * len(process)) - 1)
        levels = torch.linspace(-1, top, self.inversion_steps + 1)[1:].round().long().unique().tolist()

        def predict(x: Tensor, level: int) -> Tensor:
            return ask(x, Step(float(process.timestep[level]), level / len(process)))

        x = ddim_invert(process, predict, different, levels)
        kept: dict[Any, Tensor] = {}

        def keep(layer: Any) -> Hook:
            return lambda module, inputs, output: kept.__setitem__(layer, output)

        with hooked({layer: keep(layer) for layer in self.layers(model)}):
            predict(x, levels[-1])
        return {layer: found[place] for layer, found in kept.items()}

    def layers(self, model: Any) -> list[Any]:
        """Residual blocks, and projections to queries of self-attentions, of the way up at the depths asked for."""
        found, blocks = [], model.up_blocks
        for number, block in enumerate(blocks):
            resnets = getattr(block, "resnets", [])
            for place, resnet in enumerate(resnets):
                depth = (number + place / len(resnets)) / len(blocks)
                if _within(depth, self.resnets):
                    found.append(resnet)
                if _within(depth, self.queries) and getattr(block, "has_cross_attention", False):
                    found += [each.attn1.to_q for each in block.attentions[place].transformer_blocks]
        return found

    def _inject(self, layer: Any, found: Tensor) -> Hook:
        if isinstance(layer, torch.nn.Linear):
            return lambda module, inputs, output: found.to(output)
        return lambda module, inputs, output: patch_adain(found.to(output), output, self.patch)


def _within(depth: float, between: Depths) -> bool:
    return between is not None and between[0] <= depth <= between[1]


def ddim_invert(
    process: Process, predict: Callable[[Tensor, int], Tensor], x_0: Tensor, levels: Sequence[int], rounds: int = 1
) -> Tensor:
    """The x at the last of rising levels from which DDIM's steps lead back to clean samples x_0 (B, ...).

    From level s to t (arXiv 2010.02502, section 4.3): x_t = a_t / a_s x_s + (g_t - a_t / a_s g_s) e, with the noise e
    that is predicted at x_t, which is not known yet: x_s stands for it in the first round, what the round before found
    in each further one. The rounds come to a fixed point, the exact inverse, where steps are small.

    Args:
        process: without a source.
        predict: x (B, ...) and a level to a prediction.
        x_0: where the way begins.
        levels: of the process, where its steps end.
        rounds: evaluations for each step; 1 = the usual approximation.
    """
    x, before = x_0, -1
    for level in levels:
        t, s = (torch.full((len(x),), each, device=x.device) for each in (level, before))
        (a, g), (a_s, g_s) = process.at(t, x), process.at(s, x)
        reached = x
        for _ in range(rounds):
            x_t = reached
            noise = process.noise_of(process.clean(predict(x_t, level), x_t, t), x_t, t)
            reached = a / a_s * x + (g - a / a_s * g_s) * noise
        x, before = reached, level
    return x


@contextmanager
def hooked(hooks: Mapping[Any, Hook]) -> Iterator[None]:
    """Layers that see, or change, their outputs, and no longer do after an error either.

    Meanwhile nothing runs compiled: a network that was compiled before would not call them.
    """
    handles = [layer.register_forward_hook(hook) for layer, hook in hooks.items()]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def patch_adain(features: Tensor, like: Tensor, patch: int) -> Tensor:
    """Features (N, C, h, w) with mean and standard deviation of others of that shape in each patch of each channel.

    Patches at the right and lower border are smaller where the sides are no multiples.
    """
    mean, deviation = _statistics(features, patch)
    other_mean, other_deviation = _statistics(like, patch)
    return (features - mean) / deviation.clamp(min=1e-6) * other_deviation + other_mean


def _statistics(x: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of its patch for each value of (N, C, h, w)."""

    def averaged(values: Tensor) -> Tensor:
        means = F.avg_pool2d(values, patch, ceil_mode=True, count_include_pad=False)
        whole = means.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
        return whole[:, :, : x.shape[2], : x.shape[3]]

    mean = averaged(x)
    return mean, averaged((x - mean).square()).sqrt()
