"""Memory per card of a training run, computed before it is started: `cmd-video train RECIPE --dry-run`.

    for line in memory_lines(load_config(path), path):
        print(line)

The recipe's own stage runs on the meta device, forward and backward, with the clips that a process computes at once:
what is alive at once is counted, in half precision where autocast computes in it. Weights, gradients, moments and
averages are added, as they lie in each process. Not counted: the context of CUDA (half a gigabyte), buffers of
communication other than DDP's, workspaces of kernels and fragmentation, so that a card should have a tenth to spare.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from cmd_video.benchmark.cost import weight_bytes
from cmd_video.benchmark.memory import NoValues, peak_bytes
from cmd_video.denoisers.references import told_frames
from cmd_video.diffusion.condition import Condition
from cmd_video.training.build import build_stage
from cmd_video.training.config import TrainConfig, VideoData
from cmd_video.training.data import collate
from cmd_video.training.parallel import blocks_of, has_half_teacher, networks_of
from cmd_video.training.stage import Batch, Stage, compute_again
from cmd_video.training.stages import DiffusionStage

from .planned import planned_components, slices_alike

GB = 2**30
PROCESSES = (1, 8, 64)
CARDS = (24, 80, 141)  # GB
USABLE = 0.9  # of a card
_ON_DISK = (*get_args(VideoData.model_fields["kind"].annotation), "latents")
TOGETHER = 8  # processes of a machine, which share a copy where a recipe shards


@dataclass(frozen=True)
class CardMemory:
    """Bytes on one card.

    Attributes:
        processes: of the run.
        clips: that a process computes at once.
        shard: processes that hold one copy of the model together; 1 = each holds all of it.
        weights: of what learns, float32.
        gradients: of them; with several processes that share nothing, also DDP's buckets, which are as large.
        moments: Adam's two.
        average: the averaged weights.
        frozen: weights of what does not learn, in the type they are held in.
        copies: in half precision of weights that learn, which autocast keeps for a step; where a copy is shared, the
            blocks that are whole at a time.
        activations: most that is alive at once in a forward and backward pass beside these, encoding included.
        validation: most that is alive at once in a validation, with its samples.
    """

    processes: int
    clips: int
    shard: int
    weights: int
    gradients: int
    moments: int
    average: int
    frozen: int
    copies: int
    activations: int
    validation: int

    @property
    def peak(self) -> int:
        """In training or validation, whichever takes more; gradients are gone when a validation begins."""
        held = self.weights + self.moments + self.average + self.frozen
        return held + max(self.gradients + self.copies + self.activations, self.validation)

    @property
    def fits(self) -> list[int]:
        """Which of CARDS are large enough, with a tenth to spare."""
        return [size for size in CARDS if self.peak <= USABLE * size * GB]


Card = CardMemory | str  # str: why so many processes cannot run it


def recipe_memory(config: TrainConfig, recipe: Path, processes: Sequence[int] = PROCESSES) -> list[Card]:
    """Memory per card for numbers of processes; a sentence where a number cannot be.

    Args:
        config: the run. Where `loop.parallel` is set, up to eight processes share a copy, and with more there are
            several copies.
        recipe: its file; recipes beside it say what earlier runs are made of.
        processes: how many there are.

    Raises:
        ValueError: what a component is made of is not known here; one line names it.
    """
    with NoValues(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of autocast, which the meta device does not know
        stage = _stage(config, recipe)
        validation = _validation(stage)
        cards: list[Card] = []
        for number in processes:
            try:
                clips = config.loop.batch_size // (config.loop.parts(number) * number)
            except ValueError as error:
                cards.append(str(error))
                continue
            card = replace(_held(stage, min(number, TOGETHER) if config.loop.parallel else 1, number), clips=clips)
            cards.append(replace(card, validation=validation + (card.copies if card.shard > 1 else 0)))
        for sharded in (False, True):
            _pass_through(stage, cards, sharded)
        return cards


def _pass_through(stage: Stage, cards: list[Card], sharded: bool) -> None:
    """Fill in the activations of cards where a copy is shared, or where none is: counted for the fewest and the most
    clips at once. What is between them lies on a line, or a little below: of several peaks, which grow with the clips,
    the highest counts.
    """
    known = {number: card for number, card in enumerate(cards) if isinstance(card, CardMemory)}
    chosen = {number: card for number, card in known.items() if (card.shard > 1) == sharded}
    if not chosen:
        return
    turns = (0, 1) if getattr(stage.config.objective, "takes_turns", False) else (0,)
    few, many = (pick(card.clips for card in chosen.values()) for pick in (min, max))
    low, turn = max((_activations(stage, few, sharded, turn), turn) for turn in turns)
    high = low if many == few else _activations(stage, many, sharded, turn)
    for number, card in chosen.items():
        share = (card.clips - few) / max(many - few, 1)
        cards[number] = replace(card, activations=round(low + share * (high - low)))


def memory_lines(config: TrainConfig, recipe: Path) -> list[str]:
    """A table in lines; one line where the memory is not known, or the recipe's components do not fit each other."""
    try:
        return lines_of(recipe_memory(config, recipe))
    except (ValueError, OSError) as error:
        return [f"memory per card: not known; {' '.join(str(error).split())}"]


def lines_of(cards: Sequence[Card], processes: Sequence[int] = PROCESSES) -> list[str]:
    """A table in lines, a column for each number of processes."""
    rows: list[tuple[str, Callable[[CardMemory], str]]] = [
        ("clips at once", lambda card: str(card.clips)),
        ("processes that share a copy", lambda card: str(card.shard)),
        *((name, lambda card, name=name: _gb(getattr(card, name))) for name in _PARTS),  # type: ignore[misc]
        ("peak", lambda card: _gb(card.peak)),
        (f"fits {', '.join(map(str, CARDS))} GB", lambda card: ", ".join(map(str, card.fits)) or "none"),
    ]
    lines = [_row("memory per card, computed", [f"{number} GPU{'s' * (number > 1)}" for number in processes])]
    for title, value in rows:
        lines.append(_row(f"  {title}", [value(card) if isinstance(card, CardMemory) else "-" for card in cards]))
    return lines + [card for card in cards if isinstance(card, str)]


_PARTS = ("weights", "gradients", "moments", "average", "frozen", "copies", "activations", "validation")


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 2**20:.1f} MB"


def _row(title: str, values: Iterable[str]) -> str:
    return f"{title:32}" + "".join(f"{value:>14}" for value in values)


def _stage(config: TrainConfig, recipe: Path) -> Stage:
    """The recipe's stage on the meta device."""
    components = planned_components(config, recipe)
    nameless = {name: part.model_copy(update={"path": None}) for name, part in config.components.items()}
    stage = build_stage(config.model_copy(update={"components": nameless}), components)
    stage.to("meta").place(torch.device("meta"))
    if config.loop.gradient_checkpointing:
        compute_again(stage)
    return stage


def _batch(config: TrainConfig, stage: Stage, data: Any, clips: int) -> Batch:
    """Made-up clips, or made-up latents where the data are latents."""
    batch: Batch = {
        "prompt": ["a"] * clips,
        "class_label": torch.zeros(clips, dtype=torch.long, device="meta"),
        "number": torch.arange(clips),
        "step": 0,
    }
    if data.kind != "latents":
        if data.kind not in _ON_DISK:  # it makes its clips, and with them what only its own stages know
            made = collate([data.open()[0]] * clips)
            tensors = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
            batch |= {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}
        size = (clips, 3, data.num_frames, data.height, data.width)
        return {**batch, "video": torch.zeros(size, device="meta")}
    sides, channels, latents, frames, patch = _latents(stage)
    if told_frames(stage.components.get("motion_transformer", stage.components.get("unet"))):
        batch["end_frames"] = torch.zeros(clips, 2, channels, *sides, device="meta")
    return {
        **batch,
        "content_frame": torch.zeros(clips, channels, *sides, device="meta"),
        "motion_latents": torch.zeros(clips, latents, frames, sum(sides) // patch, device="meta"),
    }


def _latents(stage: Stage) -> tuple[tuple[int, int], int, int, int, int]:
    """Sides and channels of a content frame; channels, frames and patch of motion latents."""
    if "autoencoder" in stage.components:
        config = stage.components["autoencoder"].config
        height, width = config.sample_size
        return (height, width), config.in_channels, config.latent_channels, config.num_frames, config.patch_size
    config = stage.components["unet"].config
    sides = config.sample_size if not isinstance(config.sample_size, int) else (config.sample_size,) * 2
    channels = config.out_channels if told_frames(stage.components["unet"]) else config.in_channels
    return (int(sides[0]), int(sides[1])), channels, 1, 1, 1


def _held(stage: Stage, shard: int, processes: int) -> CardMemory:
    """What is there all the time."""
    learning = list(stage.learning().values())
    numbers = sum(weight.numel() for weight in learning)
    teacher = stage.frozen.get("teacher")
    others = [network for network in stage.frozen.values() if network is not teacher]
    fixed = [weight for network in stage.children() for weight in network.parameters() if not weight.requires_grad]
    frozen = weight_bytes(others) + -(-weight_bytes([] if teacher is None else [teacher]) // shard)
    frozen += sum(weight.nbytes for weight in fixed) // shard
    own = -(-numbers // shard)
    buckets = 2 if processes > 1 and shard == 1 else 1
    return CardMemory(
        processes=processes, clips=0, shard=shard,
        weights=4 * own, gradients=4 * own * buckets, moments=8 * own, average=4 * own, frozen=frozen,
        copies=_whole_at_once(stage) if shard > 1 else _copies(stage), activations=0, validation=0,
    )  # fmt: skip


def _copies(stage: Stage) -> int:
    return 2 * sum(weight.numel() for weight in _matrices(stage)) if _half(stage) else 0


def _matrices(stage: Stage) -> list[nn.Parameter]:
    """Weights that learn and that autocast has copies of: those of linear layers and convolutions."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [module for module in stage.modules() if isinstance(module, kinds)]
    return [weight for layer in layers for weight in layer.parameters() if weight.requires_grad]


def _whole_at_once(stage: Stage) -> int:
    """Where a copy is shared: of the largest network what lies outside of its blocks, and its largest block twice, as
    the next is fetched while one is passed through; with the gradients of one, in the type it is computed in and in
    that in which they are added up.
    """
    found = []
    for network in networks_of(stage):
        learns, size = any(weight.requires_grad for weight in network.parameters()), 2 if _half(stage) else 4
        blocks = [_numbers(block) for block in blocks_of(network)]
        largest = max(blocks, default=0)
        outside = max(_numbers(network) - sum(blocks), 0)
        found.append(size * (outside * (1 + learns) + largest * (2 + learns)) + 4 * largest * learns)
    return max(found)


def _numbers(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _half(stage: Stage) -> bool:
    return stage.config.loop.precision == "bf16"


def _activations(stage: Stage, clips: int, sharded: bool, turn: int) -> int:
    """Of a step of so many clips."""
    stage.train()
    weights = list(stage.parameters()) if sharded else _matrices(stage)
    if sharded and "teacher" in stage.frozen:
        weights += stage.frozen["teacher"].parameters()
    for weight in stage.learning().values():  # as it is from the second micro-batch on
        weight.grad = torch.zeros_like(weight)
    batch = {**_batch(stage.config, stage, stage.config.data, clips), "step": turn}
    with slices_alike(stage.components.get("vae")):
        peak = peak_bytes(lambda: stage(batch), True, weights if _half(stage) else None, "meta")
    for weight in stage.learning().values():
        weight.grad = None
    own = [value for value in batch.values() if isinstance(value, torch.Tensor) and value.device.type == "meta"]
    return peak + sum(value.nbytes for value in own)


def _validation(stage: Stage) -> int:
    """Of the metrics and of the picture of samples. Held-out clips wait on the CPU."""
    stage.eval()
    validation = stage.config.validation
    in_half = stage.config.loop.parallel is not None or has_half_teacher(stage)
    half = list(stage.parameters()) if _half(stage) and in_half else None
    clips = min(validation.batch_size, validation.num_clips)
    batch = _batch(stage.config, stage, validation.data, clips)
    few = min(validation.num_samples, clips)
    with slices_alike(stage.components.get("vae")):
        peaks = [peak_bytes(lambda: stage.validate(batch), False, half, "meta")]
    if few:
        batch = _batch(stage.config, stage, validation.data, few)
        with slices_alike(stage.components.get("vae")):
            peaks.append(peak_bytes(lambda: _samples(stage, batch), False, half, "meta"))
    return max(peaks)


def _samples(stage: Stage, batch: Batch) -> Any:
    """A picture of samples, of which one step is taken, since the others take no more."""
    if not isinstance(stage, DiffusionStage):
        return None if stage.config.stage == "classifier" else stage.sample_grid(batch)
    denoiser, validation = stage.denoiser, stage.config.validation
    x_0, condition = denoiser.example(batch)
    rows = 1 if denoiser.guidance_built_in or validation.guidance_scale == 1 else 2
    told = denoiser.encode(condition)
    every = Condition({name: torch.cat([row] * rows) for name, row in told.rows.items()})
    t = torch.zeros(len(x_0) * rows, dtype=torch.long, device=x_0.device)
    x_1 = stage.objective.source(condition, x_0)
    source = None if x_1 is None else torch.cat([x_1] * rows)
    denoiser.predict(stage.model, torch.cat([x_0] * rows), t, every, source)
    return [denoiser.pixels(x_0, condition) for _ in range(2)]  # of the clips and of the samples
