"""VideoCrafter2's UNet: published names and sizes, what it is told, and that it saves as other models do."""

from pathlib import Path

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from cmd_video.models import VideoCrafterUNet
from cmd_video.models.unet_videocrafter import _sinusoids, load_videocrafter, renamed

TINY = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 6}
TINY |= {
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}
SMALL = {"channels": 8, "widths": (8, 16), "layers": 1, "attended": 1, "context": 6, "head": 4}
PUBLISHED = {
    "channels": 320,
    "widths": (320, 640, 1280, 1280),
    "layers": 2,
    "attended": 3,
    "context": 1024,
    "head": 64,
}


def published(channels, widths, layers, attended, context, head, guidance=None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published UNet, block by block as it is built."""
    shapes: dict[str, tuple[int, ...]] = {}

    def weight(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = (shape[0],)

    def residual(name, wide, out):
        weight(f"{name}.in_layers.0", wide)
        weight(f"{name}.in_layers.2", out, wide, 3, 3)
        weight(f"{name}.emb_layers.1", out, 4 * channels)
        weight(f"{name}.out_layers.0", out)
        weight(f"{name}.out_layers.3", out, out, 3, 3)
        if wide != out:
            weight(f"{name}.skip_connection", out, wide, 1, 1)
        for number, last in ((1, 2), (2, 3), (3, 3), (4, 3)):
            weight(f"{name}.temopral_conv.conv{number}.0", out)
            weight(f"{name}.temopral_conv.conv{number}.{last}", out, out, 3, 1, 1)

    def attention(name, width, other, inner=None, kernel=()):
        inner = inner or width
        weight(f"{name}.norm", width)
        weight(f"{name}.proj_in", inner, width, *kernel)
        block = f"{name}.transformer_blocks.0"
        for part, source in (("attn1", inner), ("attn2", other or inner)):
            for leaf, size in (("to_q", inner), ("to_k", source), ("to_v", source)):
                weight(f"{block}.{part}.{leaf}", inner, size, bias=False)
            weight(f"{block}.{part}.to_out.0", inner, inner)
        weight(f"{block}.ff.net.0.proj", 8 * inner, inner)
        weight(f"{block}.ff.net.2", inner, 4 * inner)
        for number in (1, 2, 3):
            weight(f"{block}.norm{number}", inner)
        weight(f"{name}.proj_out", width, inner, *kernel)

    for name in ("time_embed", "fps_embedding"):
        weight(f"{name}.0", 4 * channels, channels)
        weight(f"{name}.2", 4 * channels, 4 * channels)
    if guidance:
        weight("time_cond_proj", channels, guidance, bias=False)
    weight("input_blocks.0.0", channels, 4, 3, 3)
    attention("init_attn.0", channels, None, 8 * head, (1,))
    number, now, skips = 1, channels, [channels]
    for stage, width in enumerate(widths):
        for _ in range(layers):
            residual(f"input_blocks.{number}.0", now, width)
            if stage < attended:
                attention(f"input_blocks.{number}.1", width, context)
                attention(f"input_blocks.{number}.2", width, None)
            number, now = number + 1, width
            skips.append(now)
        if stage < len(widths) - 1:
            weight(f"input_blocks.{number}.0.op", now, now, 3, 3)
            number += 1
            skips.append(now)
    residual("middle_block.0", now, now)
    attention("middle_block.1", now, context)
    attention("middle_block.2", now, None)
    residual("middle_block.3", now, now)
    number = 0
    for stage, width in reversed(list(enumerate(widths))):
        for layer in range(layers + 1):
            residual(f"output_blocks.{number}.0", now + skips.pop(), width)
            if stage < attended:
                attention(f"output_blocks.{number}.1", width, context)
                attention(f"output_blocks.{number}.2", width, None)
            if stage and layer == layers:
                weight(f"output_blocks.{number}.{3 if stage < attended else 1}.conv", width, width, 3, 3)
            number, now = number + 1, width
    weight("out.0", channels)
    weight("out.2", 4, channels, 3, 3)
    return shapes


def draw(shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("guidance", [None, 256])
def test_it_has_the_published_names_and_sizes(guidance):
    with torch.device("meta"):
        unet = VideoCrafterUNet(cross_attention_dim=1024, attention_head_dim=64, time_cond_proj_dim=guidance)
        found = {name: torch.empty(shape) for name, shape in published(**PUBLISHED, guidance=guidance).items()}
    names = {name: tuple(value.shape) for name, value in renamed(found, 4, 2).items()}
    assert names == {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    parameters = sum(weight.numel() for weight in unet.parameters())
    assert parameters / 1e6 == pytest.approx(1413.3 + (guidance or 0) * 320 / 1e6, abs=0.1)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": {f"model.diffusion_model.{n}": s[n] for n in s}}]
)
def test_a_published_file_loads(wrap, tmp_path):
    state = draw(published(**SMALL))
    torch.save(wrap(state), tmp_path / "model.ckpt")
    unet = load_videocrafter(tmp_path / "model.ckpt", **TINY)
    for name, module, leaf in (
        ("input_blocks.1.0.temopral_conv.conv2.3.weight", "down_blocks.0.temp_convs.0.conv2.3", "weight"),
        ("input_blocks.2.0.op.bias", "down_blocks.0.downsamplers.0.conv", "bias"),
        ("middle_block.3.out_layers.3.weight", "mid_block.resnets.1.conv2", "weight"),
        ("output_blocks.1.1.conv.weight", "up_blocks.0.upsamplers.0.conv", "weight"),
        ("output_blocks.3.2.proj_in.weight", "up_blocks.1.temp_attentions.1.proj_in", "weight"),
        ("fps_embedding.2.bias", "time_embedding.frame_rate.linear_2", "bias"),
    ):
        assert torch.equal(getattr(unet.get_submodule(module), leaf), state[name]), name
    assert torch.equal(unet.transformer_in.proj_in.weight, state["init_attn.0.proj_in.weight"][..., 0])


def test_other_files_are_refused(tmp_path):
    state = draw(published(**SMALL))
    del state["out.2.bias"]
    torch.save(state, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="does not fit VideoCrafterUNet: .*conv_out.bias"):
        load_videocrafter(tmp_path / "model.ckpt", **TINY)
    torch.save({"state_dict": state, "args": Path("code")}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="holds more than weights"):
        load_videocrafter(tmp_path / "model.ckpt", **TINY)
    with pytest.raises(ValueError, match="weights: no file"):
        load_videocrafter(tmp_path / "nothing.ckpt")


def test_it_is_told_the_frame_rate_and_guidance(tmp_path):
    torch.manual_seed(0)
    unet = VideoCrafterUNet(**TINY, time_cond_proj_dim=32).eval()
    generator = torch.Generator().manual_seed(0)
    clip, text = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 3, 8, 8), (2, 5, 6)))
    told = clip, torch.tensor([5, 900]), text
    with torch.no_grad():
        usual, slow, both = (unet(*told, fps=fps).sample for fps in (16, 8, torch.tensor([16.0, 8.0])))
        guided = unet(*told, guidance_scale=1.0).sample
        assert not torch.allclose(usual, slow) and not torch.allclose(usual, guided)
        torch.testing.assert_close(both, torch.stack([usual[0], slow[1]]), atol=1e-5, rtol=1e-4)
        unet.save_pretrained(tmp_path)
        assert torch.equal(VideoCrafterUNet.from_pretrained(tmp_path).eval()(*told).sample, usual)


def test_guidance_is_embedded_as_latent_consistency_models_do():
    scale = torch.tensor([7.5, 1.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale, 256)
    torch.testing.assert_close(_sinusoids(scale * 1000, 256), theirs, atol=2e-3, rtol=0)
