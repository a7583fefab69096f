"""Captions of a run: those that a fresh tokenizer learns, and those that are cut, for a text encoder is too short.

for line in caption_remarks(components, dataset, "data"):
    logger.warning(line)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cmd_video.denoisers.prompts import cut_off
from cmd_video.denoisers.video_conditions import TOKENS

from .components import build_components
from .config import TEXT_PAIRS, TrainConfig

CAPTIONS_FOR_TOKENIZER = 5_000
CAPTIONS_READ = 100_000  # of a larger set; a second for 20,000
_PAIRS = [pair for pair in TEXT_PAIRS if pair[0] != "tokenizer_2"]  # that one is only told what a sentence is about


def caption_remarks(components: Mapping[str, Any], dataset: Any, place: str) -> list[str]:
    """What `cut_by` says of a dataset; nothing of one that does not list its `prompts`."""
    captions = getattr(dataset, "prompts", ())
    return cut_by(components, captions, place, len(dataset)) if captions else []


def cut_by(components: Mapping[str, Any], captions: Sequence[str], place: str, clips: int) -> list[str]:
    """How many captions are cut, a line for each tokenizer that cuts some.

    Args:
        components: by name; tokenizers, and where they are at hand their text encoders.
        captions: of all clips, or of a sample of them.
        place: what they are of, for the lines.
        clips: how many there are.
    """
    captions = list(captions[:CAPTIONS_READ])
    sampled = f" in a sample of {clips}" if len(captions) < clips else ""
    lines = []
    for name, encoder in _PAIRS:
        tokenizer = components.get(name)
        if tokenizer is None or not captions:
            continue
        if not any(captions):
            lines.append(f"{place}: none of {len(captions)} clips{sampled} has a caption, {encoder} is told nothing")
            continue
        most = TOKENS.get(type(components.get(encoder)).__name__, tokenizer.model_max_length)
        lost = [(text, rest) for text, rest in zip(captions, cut_off(tokenizer, captions, most), strict=True) if rest]
        if lost:
            caption, rest = lost[0]
            lines.append(
                f"{place}: {len(lost)} of {len(captions)} captions{sampled} are longer than the {most} tokens of "
                f"{name} and are cut, such as {_short(caption)}, which loses {_short(rest)}"
            )
    return lines


def tokenizers_of(config: TrainConfig) -> dict[str, Any]:
    """The tokenizers that a run would have, fresh ones included."""
    chosen = {name: part for name, part in config.components.items() if name in dict(_PAIRS)}
    captions = captions_of(config.data.open()) if any(part.path is None for part in chosen.values()) else None
    return build_components(chosen, captions, config.seed)


def captions_of(dataset: Any) -> list[str]:
    """Captions for a fresh tokenizer, without decoding clips where the dataset can name them."""
    count = min(CAPTIONS_FOR_TOKENIZER, len(dataset))
    if hasattr(dataset, "prompt"):
        return [dataset.prompt(index) for index in range(count)]
    return [dataset[index]["prompt"] for index in range(count)]


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:76]!r}..."
