"""Low-rank adapters in place of all weights (LoRA, arXiv 2106.09685), on the attention of the content model's UNet.

    edit: {kind: lora, rank: 16}

Trains a fraction of the weights and memory of a fine-tuning; the run holds the adapters as a LoRA file that
`load_lora_weights` reads, and merged into the UNet. Differs from paper: none; rank and scale are equal.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from pydantic import Field
from torch import Tensor

from cmd_video.section import Section

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class Settings(Section):
    """How many directions each adapted layer gains."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=0)
    """Of the adapters; 0 = none, all weights learn."""

    def edit(self, model: Any, seed: int = 0) -> Any:
        """Freeze a UNet and give it adapters, whose first weights are a function of the seed.

        Raises:
            ValueError: it is no UNet2DConditionModel.
        """
        if not self.rank:
            return model
        if not isinstance(model, UNet2DConditionModel):
            raise ValueError(f"edit.rank: {type(model).__name__} is no UNet2DConditionModel")
        from peft import LoraConfig

        model.requires_grad_(False)
        torch.manual_seed(seed)
        model.add_adapter(LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=TARGETS))
        return model

    def finish(self, model: Any) -> dict[str, Tensor]:
        """Merge the adapters into their UNet, and return them."""
        if not self.rank:
            return {}
        from peft import get_peft_model_state_dict

        adapters = get_peft_model_state_dict(model)
        model.fuse_lora()
        model.unload_lora()
        return adapters

    def save(self, adapters: dict[str, Tensor], folder: Path) -> None:
        """The adapters as a LoRA file, in a folder `lora`."""
        if adapters:
            StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=adapters)
