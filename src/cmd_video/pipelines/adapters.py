"""Loading LoRA files into a pipeline: each adapter goes to the layer it was trained for, or is refused by name."""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import logging

from cmd_video.pruning.adapters import renaming, unfit

logger = logging.get_logger(__name__)
PATTERNS = ("rank_pattern", "alpha_pattern")  # of a LoRA file's own configuration: layers by name


class LoraLoader(StableDiffusionLoraLoaderMixin):
    """The loader of diffusers, for content models that may be pruned."""

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: Any, adapter_name: str | None = None, hotswap: bool = False,
        trained_on: str | None = None, low_cpu_mem_usage: bool = True, **kwargs: Any,
    ) -> None:  # fmt: skip
        """As diffusers' own; adapters for blocks that a pruned content model lacks are left out, with a warning.

        Args:
            pretrained_model_name_or_path_or_dict: file, folder, hub id, or tensors by name.
            adapter_name: how it is called hereafter.
            hotswap: in place of the adapter of that name.
            trained_on: "whole" or "pruned": whether a pruned model's adapters are named by the layers that the model
                had before it was pruned; None = seen from the names and sizes.
            low_cpu_mem_usage: do not make up weights first.
            kwargs: see diffusers' `lora_state_dict`.

        Raises:
            ValueError: adapters do not fit; the message names one.
        """
        given = pretrained_model_name_or_path_or_dict
        given = dict(given) if isinstance(given, dict) else str(given) if isinstance(given, Path) else given
        state, alphas, metadata = self.lora_state_dict(given, return_lora_metadata=True, **kwargs)
        if not hasattr(self.unet, "load_lora_adapter"):
            raise ValueError(f"adapters: the content model is a {type(self.unet).__name__}, which takes none")
        unet = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
        text = {key: value for key, value in state.items() if key.startswith("text_encoder.")}
        others = [key for key in state if not key.startswith(("unet.", "text_encoder."))]
        if others or not state:
            found = f"such as {others[0]}" if others else "none"
            raise ValueError(f"adapters: {len(others)} are neither of unet nor of text_encoder, {found}")
        self._check_text(text)
        rename, lost = renaming(unet, self.unet, trained_on)
        if lost:
            shown = ", ".join(sorted(lost)[:3]) + (", ..." if len(lost) > 3 else "")
            logger.warning(f"{len(lost)} adapted layers are of blocks that this pruned model lacks, left out: {shown}")
        moved = {f"unet.{new}": value for key, value in unet.items() if (new := rename(key)) is not None}
        if unet and not moved:
            raise ValueError("adapters: all are for blocks that this pruned model lacks")
        if alphas:
            alphas = {new: value for key, value in alphas.items() if (new := _under_unet(key, rename)) is not None}
        if metadata:
            metadata = {key: _layers(value, rename) if key.removeprefix("unet.") in PATTERNS else value
                        for key, value in metadata.items()}  # fmt: skip
        common = {"network_alphas": alphas, "adapter_name": adapter_name, "metadata": metadata, "_pipeline": self,
                  "low_cpu_mem_usage": low_cpu_mem_usage, "hotswap": hotswap}  # fmt: skip
        try:
            if moved:
                self.load_lora_into_unet(moved, unet=self.unet, **common)
            if text:
                self.load_lora_into_text_encoder(
                    text, text_encoder=self.text_encoder, lora_scale=self.lora_scale, **common
                )
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"adapters: they do not fit: {str(error).splitlines()[0]}") from error

    def _check_text(self, adapters: dict[str, torch.Tensor]) -> None:
        if adapters and self.text_encoder is None:
            raise ValueError(f"adapters: {len(adapters)} are for a text encoder, which this pipeline has not")
        names = ("text_encoder.", "text_encoder.text_model.")  # versions of transformers differ in the second
        tried = [unfit({key.removeprefix(name): each for key, each in adapters.items()}, self.text_encoder)
                 for name in names if adapters]  # fmt: skip
        if tried and all(tried):
            raise ValueError(f"adapters: {len(tried[1])} do not fit the text encoder, such as {tried[1][0]}")


def _under_unet(key: str, rename: Any) -> str | None:
    if not key.startswith("unet."):
        return key
    new = rename(key.removeprefix("unet."))
    return None if new is None else f"unet.{new}"


def _layers(pattern: dict[str, Any], rename: Any) -> dict[str, Any]:
    moved = {(f"^{rename(key[1:])}" if key.startswith("^") else rename(key)): each for key, each in pattern.items()}
    return {key: each for key, each in moved.items() if key not in (None, "^None")}
