"""Which blocks are left out: by VDMini's rule, by hand, or by measured importance within a budget.

selection = select_blocks(unet, "vdmini");  print(selection.to_json())
selection = select_blocks(unet, measure_importance(unet, batches), budget=0.6)
student = PrunedUNetSpatioTemporalConditionModel.from_teacher(unet, selection)
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from .blocks import TRANSFORMER_LISTS, fits, is_unet, list_blocks, without_blocks
from .channels import kept_channels, stage_names
from .importance import BlockImportance, importance_and_cost, removable_units, weight_importance

RULES = ("vdmini", "middle")
MIDDLE_SHARE = 0.2


@dataclass(frozen=True)
class BlockSelection:
    """A decision, as a file: what leaves a model, and why.

    Attributes:
        model_class: the class that the names belong to.
        removed: names of blocks, see `list_blocks`.
        reason: the rule, or how it was measured.
        widths: for decoders, stage -> share of its channels that stays, see `channels.kept_channels`.
    """

    model_class: str
    removed: tuple[str, ...]
    reason: str
    widths: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The selection as text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "BlockSelection":
        """The inverse of `to_json`.

        Raises:
            ValueError: the text is not a selection.
        """
        try:
            values = json.loads(text)
            widths = {str(stage): float(share) for stage, share in values.get("widths", {}).items()}
            removed, unknown = values["removed"], sorted(set(values) - {entry.name for entry in fields(cls)})
            if not isinstance(removed, list):
                raise ValueError(f"removed: {removed!r} is no list")
            if unknown:
                raise ValueError(f"{unknown[0]}: unknown name")
            return cls(str(values["model_class"]), tuple(map(str, removed)), str(values.get("reason", "")), widths)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"selection: not of the form {{model_class, removed, reason, widths}}: {error}"
            ) from error

    @classmethod
    def load(cls, path: Path) -> "BlockSelection":
        """Read a file that holds `to_json`.

        Raises:
            ValueError: it holds something else; the message names it.
        """
        try:
            return cls.from_json(path.read_text())
        except UnicodeDecodeError as error:
            raise ValueError(f"selection: {path} is no text: {error}") from error


def select_blocks(
    model: Any,
    by: str | Sequence[BlockImportance],
    budget: float | None = None,
    cost: Literal["parameters", "flops", "seconds"] = "flops",
) -> BlockSelection:
    """Choose what leaves a model: by a rule, by what was measured, or by the size of the weights.

    Args:
        model: the teacher.
        by: one of RULES, see `select_by_rule`; what `measure_importance` returned; or "magnitude", the sum of what the
            weights of a block weigh, which asks for no clips and is a poor guide.
        budget: share of the cost that may stay, in (0, 1]; a rule has none.
        cost: what the budget counts, of what was measured; "magnitude" counts parameters.

    Raises:
        ValueError: there is no such rule, it is not for such a model, or the budget cannot be met.
    """
    if isinstance(by, str) and by != "magnitude":
        if budget is not None:
            raise ValueError(f"budget: {budget}, but the rule {by!r} has none")
        return select_by_rule(model, by)
    if budget is None:
        raise ValueError("budget: give the share of the cost that may stay")
    if not isinstance(by, str):
        return select_by_importance(model, *importance_and_cost(by, cost), budget)
    units = removable_units(model)
    total = sum(weight.numel() for weight in model.parameters())
    left = {"+".join(unit): without_blocks(model, unit).parameters() for unit in units}
    saved = {name: 1 - sum(weight.numel() for weight in weights) / total for name, weights in left.items()}
    chosen = select_by_importance(model, weight_importance(model, [], "magnitude", units), saved, budget)
    return replace(chosen, reason=f"least magnitude per parameter: {chosen.reason.partition(', ')[2]}")


def select_by_rule(model: Any, rule: str = "vdmini") -> BlockSelection:
    """Choose by a rule that needs no measurement.

    "vdmini", for UNets (arXiv 2411.18375, figure 2): shallow blocks carry content, deep ones motion. The second layer
    of every down and up stage leaves, except in the second last down stage and the up stage that mirrors it, which
    carry motion; the innermost down stage, the middle and the innermost up stage leave altogether. On Stable Video
    Diffusion this takes 38% of the parameters, on VideoCrafter2 42%, which is what the paper says. Of an autoencoder's
    decoder the middle leaves, the last stage's layers but the first, and channels: the paper does not say how many
    where; with 15/16 of them kept, 1/2 in the second last stage and 1/4 in the last, Stable Video Diffusion's decoder
    has the published number of parameters.

    "middle", for transformers: a fifth of the blocks, every other one around the middle of their sequence, which makes
    HunyuanVideo 1.25 times as fast, as the paper's is; which blocks the paper takes there is not published, and others
    found the first and the last to matter most.

    Raises:
        ValueError: there is no such rule, or it is not for such a model.
    """
    if rule not in RULES:
        raise ValueError(f"rule: {rule!r} is none of {', '.join(RULES)}")
    widths: dict[str, float] = {}
    if rule == "middle":
        removed = _middle_blocks(model)
    elif hasattr(getattr(model, "decoder", None), "up_blocks"):
        removed, widths = _vdmini_decoder(model)
    else:
        removed = _vdmini_blocks(model)
    order = list_blocks(model)
    reason = {"vdmini": "VDMini's rule", "middle": "every other block around the middle, a fifth of all"}[rule]
    return BlockSelection(type(model).__name__, tuple(sorted(removed, key=order.index)), reason, widths)


def _vdmini_decoder(model: Any) -> tuple[list[str], dict[str, float]]:
    stages = [name for name in stage_names(model) if "up_blocks" in name]
    if len(stages) < 3:
        raise ValueError(f"rule: 'vdmini' is for decoders of at least 3 stages, this one has {len(stages)}")
    widths = {**dict.fromkeys(stages[:-2], 0.9375), stages[-2]: 0.5, stages[-1]: 0.25}
    removed = ["decoder.mid_block", *(name for name in list_blocks(model) if name.startswith(f"{stages[-1]}."))]
    try:
        kept_channels(without_blocks(model, removed), widths)
    except ValueError as error:
        reason = str(error).removeprefix("selection: widths: ")
        raise ValueError(f"rule: 'vdmini' does not fit this decoder: {reason}; give a `selection`") from error
    return removed, widths


def _vdmini_blocks(model: Any) -> list[str]:
    if not is_unet(model) or len(model.down_blocks) < 3:
        raise ValueError(
            f"rule: 'vdmini' is for UNets and decoders of at least 3 stages, not for {type(model).__name__}; "
            "select by importance"
        )
    depth = len(model.down_blocks)
    removed = []
    for number in range(depth - 2):
        mirrored = depth - 1 - number
        if len(model.down_blocks[number].resnets) < 2:
            raise ValueError(f"rule: 'vdmini' takes the second of two layers, but down_blocks.{number} has one")
        removed += [f"down_blocks.{number}.layers.1", f"up_blocks.{mirrored}.layers.1"]
    known = list_blocks(model)
    return [name for name in (*removed, f"down_blocks.{depth - 1}", "mid_block", "up_blocks.0") if name in known]


def _middle_blocks(model: Any) -> list[str]:
    known = [] if is_unet(model) else [name for name in list_blocks(model) if not name.startswith("encoder.")]
    blocks = [name for name in known if name.rpartition(".")[0].split(".")[-1] in TRANSFORMER_LISTS]
    count = round(len(blocks) * MIDDLE_SHARE)
    if not count:
        raise ValueError(
            f"rule: 'middle' is for transformers of at least 3 blocks, not for {type(model).__name__} "
            f"with {len(blocks)}"
        )
    first = (len(blocks) - (2 * count - 1)) // 2
    return blocks[first : first + 2 * count - 1 : 2]


def select_by_importance(
    model: Any, importance: Mapping[str, float], cost: Mapping[str, float], budget: float
) -> BlockSelection:
    """Leave out the least important blocks per unit of cost, until the model is within the budget.

    Args:
        model: the teacher.
        importance: block -> how much worse the model becomes without it. What leaves only together has one name, with
            its parts joined by "+", such as "down_blocks.0.layers.1+up_blocks.3.layers.1".
        cost: the same names -> share of the whole model's cost, in 0..1.
        budget: share of the cost that may stay, in (0, 1].

    Raises:
        ValueError: the budget or a cost is not a share, an importance not a number, the budget cannot be met, or the
            model has no such blocks.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget: {budget} is not a share in (0, 1]")
    order: dict[str, Any] = {name: number for number, name in enumerate(list_blocks(model))}
    unknown = [part for name in importance for part in name.split("+") if part not in order]
    if unknown:
        raise ValueError(f"importance: {type(model).__name__} has no block {unknown[0]!r}")
    for name, value in importance.items():
        if not math.isfinite(value):
            raise ValueError(f"importance: {name}: {value} is not a finite number")
        if not 0 <= cost[name] <= 1:
            raise ValueError(f"cost: {name}: {cost[name]} is not a share in [0, 1]")
    left = 1.0
    gone: dict[tuple[str, ...], float] = {}  # units that left, with their cost
    for name in sorted(importance, key=lambda name: importance[name] / max(cost[name], 1e-12)):
        if left <= budget + 1e-9:
            break
        parts = tuple(name.split("+"))
        removed = [part for unit in gone for part in unit]
        if all(_within(part, removed) for part in parts) or not fits(model, {*removed, *parts}):
            continue  # it has left already, or is such as the last layer of a stage
        inside = [unit for unit in gone if all(_within(part, parts) for part in unit)]
        left -= cost[name] - sum(gone.pop(unit) for unit in inside)
        gone[parts] = cost[name]
    removed = [part for unit in gone for part in unit]
    if left > budget + 1e-9:
        raise ValueError(f"budget: {budget} cannot be met; with every block that may leave, {left:.3f} would stay")
    reason = f"least important per cost, {left:.3f} of the cost stays"
    return BlockSelection(type(model).__name__, tuple(sorted(set(removed), key=order.__getitem__)), reason)


def _within(part: str, others: Iterable[str]) -> bool:
    """Whether a block is one of others, or a layer of a stage among them."""
    return any(part == other or part.startswith(f"{other}.") for other in others)
