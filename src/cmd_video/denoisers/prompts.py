"""Prompts to text features, the same way in training and in the pipeline.

features = encode_prompts(tokenizer, text_encoder, ["a red ball rolls to the right"])
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from cmd_video.data.classes import check_text
from cmd_video.diffusion.condition import Condition


@dataclass
class PromptFeatures:
    """Text features of B prompts.

    Attributes:
        hidden_states: (B, S, D), one vector per token, for the content model's cross-attention.
        pooled: (B, D), mean over the tokens of each prompt, for the motion model.
        mask: (B, S), 1 for the tokens of a prompt, 0 for the padding.
        truncated: for each prompt the part that was cut off because the text encoder is not longer, or None.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor
    mask: torch.Tensor
    truncated: list[str | None]


def encode_prompts(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> PromptFeatures:
    """Tokenize (padded to the encoder's length, as Stable Diffusion does) and encode, on the encoder's device.

    Raises:
        ValueError: a prompt is no valid text.
    """
    for prompt in prompts:
        check_text("prompt", prompt)
    limit = tokenizer.model_max_length
    tokens = tokenizer(prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    truncated = cut_off(tokenizer, prompts, limit)
    device = text_encoder.device
    hidden_states = text_encoder(tokens.input_ids.to(device))[0]  # (B, S, D)
    mask = tokens.attention_mask.to(hidden_states)  # its device: an offloaded encoder's differs
    pooled = (hidden_states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return PromptFeatures(hidden_states, pooled, mask, truncated)


def cut_off(tokenizer: Any, prompts: list[str], limit: int) -> list[str | None]:
    """Of each prompt what does not fit into `limit` tokens, begin and end included; None where all does."""
    whole = tokenizer(prompts, verbose=False).input_ids
    return [
        tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True) if len(ids) > limit else None for ids in whole
    ]


TOKENIZERS = {"text_encoder": "tokenizer", "motion_text_encoder": "motion_tokenizer"}


def encode_prompt_rows(
    components: Mapping[str, Any], text_encoder: str, condition: Condition, learns: bool
) -> PromptFeatures:
    """Features of a condition's prompts, the empty one where they are absent.

    Args:
        components: with the text encoder and its tokenizer.
        text_encoder: its name among them.
        condition: with the row "prompt".
        learns: whether gradients reach the text encoder.
    """
    absent = condition.is_absent("prompt").tolist()
    prompts = ["" if left_out else prompt for prompt, left_out in zip(condition["prompt"], absent, strict=True)]
    with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
        return encode_prompts(components[TOKENIZERS[text_encoder]], components[text_encoder], prompts)
