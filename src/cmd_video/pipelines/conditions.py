"""What both models are told: text or class of each clip, and what guidance leads away from.

condition, negative, truncated = encode_conditions(pipe, "a red ball", None, None, None, num_videos=1)
"""

from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import logging

from .inputs import as_list
from .prompt import encode_prompts

if TYPE_CHECKING:
    from .pipeline_cmd import CMDPipeline

logger = logging.get_logger(__name__)
Rows = dict[str, torch.Tensor]  # a condition: one row per clip


def encode_conditions(
    pipe: "CMDPipeline",
    prompt: Any,
    negative_prompt: Any,
    class_labels: Any,
    image: Any,
    num_videos: int,
    guided: bool = True,
) -> tuple[Rows, Rows, list[str | None]]:
    """Conditions of both models, their negatives, and what was cut off each prompt.

    Args:
        pipe: whose text encoders to use.
        prompt: as in the pipeline's call.
        negative_prompt: likewise.
        class_labels: likewise.
        image: only their number counts, where there is neither prompt nor class.
        num_videos: clips for each prompt, class or image.
        guided: whether negatives are needed; otherwise they are the conditions once more.

    Returns:
        `tokens` (B, S, D) and `pooled` (B, D'), or `labels` (B,), twice; per clip the text that was cut off or None.
    """
    device = pipe._execution_device
    if pipe.num_classes:
        labels = as_list(class_labels) or [pipe.num_classes] * len(as_list(image))
        row = torch.tensor(labels, device=device).repeat_interleave(num_videos)
        return {"labels": row}, {"labels": torch.full_like(row, pipe.num_classes)}, [None] * len(row)
    prompts = as_list(prompt) or [""] * len(as_list(image))
    negatives = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * len(prompts)
    encoded = []
    for texts in (prompts, negatives) if guided else (prompts,):
        features = encode_prompts(pipe.tokenizer, pipe.text_encoder, texts)
        for cut in features.truncated:
            if cut:
                limit = pipe.tokenizer.model_max_length
                logger.warning(f"the prompt is longer than {limit} tokens; cut off: {cut[:200]!r}")
        pooled = features.pooled
        if pipe.motion_text_encoder is not None:
            pooled = encode_prompts(pipe.motion_tokenizer, pipe.motion_text_encoder, texts).pooled
        encoded.append(
            {
                "tokens": features.hidden_states.repeat_interleave(num_videos, dim=0),
                "pooled": pooled.repeat_interleave(num_videos, dim=0),
            }
        )
        if texts is prompts:
            truncated = [cut for cut in features.truncated for _ in range(num_videos)]
    return encoded[0], encoded[-1], truncated
