"""What a component is, in a line: so that one that was put in another's place under the same name is noticed.

digests = digests_of(stage.components, without=stage.trained)      # {"vae": "0c4f...", "autoencoder": "91aa...", ...}
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

SCALES = ("latents_mean", "latents_std", "scaling_factor", "shift_factor", "prediction_type")


def digests_of(components: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, str]:
    """Digest of each component by name, but of those that learn."""
    return {name: digest_of(component) for name, component in sorted(components.items()) if name not in without}


def digest_of(component: Any) -> str:
    """sha256 of what a component does to what it is given.

    Weights count rounded to float16, so that a model saved in half precision is the same; of an image autoencoder
    those of the encoder, which make the latents; of a scheduler its noise; of a tokenizer its words.
    """
    total = hashlib.sha256()
    for name, value in sorted(_tensors(component).items()):
        total.update(name.encode())
        total.update(str(tuple(value.shape)).encode())
        value = value.detach().cpu()
        value = value.half() if value.is_floating_point() else value
        total.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    config = getattr(component, "config", {})
    scales = {name: config.get(name) for name in SCALES} if isinstance(config, Mapping) else {}
    total.update(json.dumps(scales, sort_keys=True, default=list).encode())
    if hasattr(component, "get_vocab"):
        total.update(json.dumps(component.get_vocab(), sort_keys=True).encode())
    return total.hexdigest()


def _tensors(component: Any) -> dict[str, torch.Tensor]:
    if isinstance(component, nn.Module):
        weights = component.state_dict()
        encoder = {name: value for name, value in weights.items() if name.startswith("encoder.")}
        return encoder if hasattr(component, "quant_conv") and encoder else weights
    tables = {name: getattr(component, name, None) for name in ("betas", "sigmas")}
    return {name: value for name, value in tables.items() if isinstance(value, torch.Tensor)}
