"""Denoisers that are told a class: it reaches them, is left out for guidance, and a fresh DiT begins as it should."""

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import LabelEmbedding

from cmd_video.diffusion.condition import Condition

DIT = {
    "class": "DiTTransformer2DModel",
    "config": {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 12, "out_channels": 12,
        "sample_size": 8, "patch_size": 2, "norm_num_groups": 4,
    },
}  # fmt: skip


def class_conditional(name, num_classes):
    """Changes to a tiny configuration: a denoiser told classes, here sprites' 16 motions."""
    if name == "content":
        parts = {"class": DIT["class"], "config": {**DIT["config"], "num_embeds_ada_norm": num_classes}}
        return {"components__unet": parts}
    return {"components__motion_transformer__config__num_classes": num_classes}


@pytest.mark.parametrize("name", ["content", "motion"])
def test_classes_reach_the_model(name, build_tiny, batch_of):
    stage, dataset = build_tiny(name, weights=0.2, **class_conditional(name, 16))
    x, condition = stage.denoiser.example(batch_of(dataset, range(3)))
    labels, denoiser = condition["class"], stage.denoiser
    null = {"class": torch.full_like(labels, 16)}
    asked = {
        "told": condition, "other": condition.having(**{"class": (labels + 1) % 16}),
        "none": condition.without("class"), "prompt": condition.without("prompt"), "null": condition.having(**null),
    }  # fmt: skip
    stage.eval()
    with torch.no_grad():
        found = {
            name: denoiser.predict(stage.model, x, torch.tensor([500] * 3), denoiser.encode(given))
            for name, given in asked.items()
        }
    assert min((found["told"] - found[name]).abs().max() for name in ("other", "none")) > 1e-3
    assert torch.equal(found["none"], found["null"])
    assert torch.equal(found["prompt"], found["told"]) == (name == "content")  # the DiT knows classes alone


@pytest.mark.parametrize("name", ["content", "motion"])
def test_a_class_that_the_model_does_not_know(name, tiny_config, run_train, tmp_path):
    with pytest.raises(ValueError, match=r"class_label: \d+ in the data, the model knows 0 to 1$"):
        run_train(tiny_config(name, tmp_path / "run", **class_conditional(name, 2)))


def test_a_dit_is_told_no_label_at_all_as_often_as_a_prompt_is_dropped(build_tiny, monkeypatch):
    """Its own dropping would be another one in each block: what guidance asks for would never be learned."""
    stage, _ = build_tiny("content", **class_conditional("content", 16), objective__condition_dropout=0.3)
    stage.train()
    embeddings = [module for module in stage.model.modules() if isinstance(module, LabelEmbedding)]
    seen = []
    for module in embeddings:
        table = module.embedding_table
        table.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].clone()))
    frames = torch.zeros(400, 12, 8, 8)
    rows = Condition({"prompt": [""] * 400, "class": torch.ones(400, dtype=torch.long)})
    monkeypatch.setattr(stage.denoiser, "example", lambda batch: (frames, rows))
    with torch.no_grad():
        stage({"number": torch.arange(400)})
    assert len(seen) > len(embeddings) > 1
    assert all(torch.equal(labels, seen[0]) for labels in seen)
    assert (seen[0] == 16).float().mean().item() == pytest.approx(0.3, abs=0.1)


def test_a_fresh_dit_begins_as_the_paper_says(tiny_config, build_tiny, batch_of):
    """Each block is the identity, the whole says zero: the first loss of noise is its variance."""
    stage, dataset = build_tiny(
        "content",
        **class_conditional("content", 16),
        components__content_scheduler__config__prediction_type="epsilon",
    )
    x = torch.randn(2, 12, 8, 8)
    with torch.no_grad():
        out = stage.model(x, torch.tensor([3, 900]), class_labels=torch.tensor([0, 16])).sample
        tokens = stage.model.pos_embed(x)
        block = stage.model.transformer_blocks[0]
        kept = block(tokens, timestep=torch.tensor([3, 900]), class_labels=torch.tensor([0, 16]))
        losses = [stage(batch_of(dataset, range(4 * n, 4 * n + 4))).item() for n in range(6)]
    assert out.abs().max() == 0 and torch.equal(kept, tokens)
    assert np.mean(losses) == pytest.approx(1.0, abs=0.05)
    assert stage.model.pos_embed.proj.weight.abs().max() > 0
