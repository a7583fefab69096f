"""Channels of decoders: what is superfluous leaves without a trace, shapes fit, files reload, mistakes are named."""

import diffusers
import pytest
import torch

from cmd_video.pruning.channels import kept_channels
from cmd_video.pruning.pruned_models import PrunedAutoencoderKL, prune
from cmd_video.pruning.selection import BlockSelection, select_by_rule

LATENTS = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
KINDS = ["AutoencoderKL", "AutoencoderKLTemporalDecoder"]
HALF = dict.fromkeys(["decoder.mid_block", "decoder.up_blocks.0", "decoder.up_blocks.1", "decoder.up_blocks.2"], 0.5)


@pytest.fixture(params=KINDS)
def vae(request):
    torch.manual_seed(0)
    if request.param == "AutoencoderKL":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
        model = diffusers.AutoencoderKL(
            block_out_channels=(8, 16, 16), norm_num_groups=4, layers_per_block=1, **blocks
        )
    else:
        model = diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(64, 128, 128), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 3
        )
    return model.eval()


@torch.no_grad()
def decode(model):
    if "Temporal" in type(model).__name__:
        return model.decode(LATENTS, num_frames=3).sample
    return model.decode(LATENTS).sample


def selection(model, widths, removed=()):
    return BlockSelection(type(model).__name__, tuple(removed), "test", widths)


@torch.no_grad()
def repeat_channels(model):
    """Make every second channel a copy of the one before that nobody reads."""
    for name, weight in model.decoder.named_parameters():
        inside = "to_q" in name or "to_k" in name or "to_v" in name
        if "conv_out" not in name and not inside and "mix_factor" not in name:
            weight[1::2] = weight[0::2]
        if weight.ndim > 1 and not name.startswith("conv_in.") and "to_out" not in name and "time_conv" not in name:
            weight[:, 1::2] = 0


def test_copies_that_nobody_reads_leave_without_a_trace(vae):
    repeat_channels(vae)
    student = prune(vae, selection(vae, HALF))
    assert torch.allclose(decode(student), decode(vae), atol=1e-4)
    before, after = (sum(weight.numel() for weight in model.decoder.parameters()) for model in (vae, student))
    assert after < 0.4 * before


def test_magnitudes_choose(vae):
    """Without the weights the first channels of each group stay, copies among them; with the weights no copy does."""
    repeat_channels(vae)
    blind = kept_channels(vae, HALF)
    seeing = kept_channels(vae, HALF, dict(vae.named_parameters()))
    assert set(blind) == set(seeing)
    assert all(not (kept % 2).any() for name in seeing for kept in seeing[name].values())
    assert any((kept % 2).any() for name in blind for kept in blind[name].values())


def test_full_width_is_the_teacher(vae):
    student = prune(vae, selection(vae, dict.fromkeys(HALF, 1.0)))
    assert torch.equal(decode(student), decode(vae))


@pytest.mark.parametrize("widths", [{"decoder.up_blocks.2": 0.5}, {**HALF, "decoder.up_blocks.1": 0.5}])
def test_narrow_models_reload_bit_equal(vae, widths, tmp_path):
    student = prune(vae, selection(vae, widths, ["decoder.up_blocks.2.resnets.1"]))
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    assert torch.equal(decode(student), decode(again))
    assert [w.shape for w in again.parameters()] == [w.shape for w in student.parameters()]
    assert student.config.widths == widths


def test_narrow_models_train(vae):
    student = prune(vae, selection(vae, HALF)).train()
    frames = {"num_frames": 3} if "Temporal" in type(vae).__name__ else {}
    student.decode(LATENTS, **frames).sample.square().mean().backward()
    assert not [name for name, weight in student.decoder.named_parameters() if weight.grad is None]


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"decoder.up_blocks.7": 0.5}, "widths: 'decoder.up_blocks.7' is none of decoder.mid_block"),
        ({"decoder.up_blocks.2": 0.0}, "widths: decoder.up_blocks.2 = 0.0 is not a share"),
        ({"decoder.up_blocks.2": 1.5}, "widths: decoder.up_blocks.2 = 1.5 is not a share"),
        ({"decoder.up_blocks.0": 0.5}, "widths: these share their features and need one share"),
        ({"decoder.up_blocks.2": 0.99}, "widths: decoder.up_blocks.2 = 0.99 takes nothing"),
    ],
)
def test_mistakes_are_named(vae, widths, message):
    with pytest.raises(ValueError, match=message):
        prune(vae, selection(vae, widths))


def test_decoders_that_cannot_be_cut():
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "block_out_channels": (8, 16, 16), "norm_num_groups": 4}
    blocks = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D")
    model = diffusers.AutoencoderKL(**kinds, up_block_types=blocks)
    with pytest.raises(ValueError, match="widths: decoder.up_blocks.1 has attention"):
        prune(model, selection(model, {"decoder.up_blocks.2": 0.5}))
    model = diffusers.AutoencoderKL(**kinds, up_block_types=("UpDecoderBlock2D",) * 3)
    with pytest.raises(ValueError, match="rule: 'vdmini' does not fit this decoder: .*give a .selection."):
        select_by_rule(model)
    with pytest.raises(ValueError, match="widths: 'decoder.mid_block' is none of decoder.up_blocks.0"):
        prune(model, selection(model, {"decoder.mid_block": 0.5}, ["decoder.mid_block"]))


def test_widths_of_other_models_are_refused(denoiser_example, awake):
    model = awake(denoiser_example)
    with pytest.raises(ValueError, match="keeps its channels; decoders can lose some"):
        prune(model, selection(model, {"decoder.mid_block": 0.5}))


def test_the_rule_gives_the_published_size_of_stable_video_diffusion():
    model = diffusers.AutoencoderKLTemporalDecoder.from_config(
        {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
         "down_block_types": ("DownEncoderBlock2D",) * 4}
    )  # fmt: skip
    chosen = select_by_rule(model)
    assert BlockSelection.from_json(chosen.to_json()) == chosen
    sizes = [sum(weight.numel() for weight in one.decoder.parameters()) / 1e6 for one in (model, prune(model, chosen))]
    assert sizes == pytest.approx([63.58, 39.17], rel=0.005)


def test_stable_diffusions_decoder_gets_narrow():
    with torch.device("meta"):
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        config = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, **kinds}
        teacher = diffusers.AutoencoderKL(**config)
        chosen = select_by_rule(teacher)
        student = PrunedAutoencoderKL(removed_blocks=chosen.removed, widths=chosen.widths, **config)
        assert student.decode(torch.empty(1, 4, 64, 64)).sample.shape == (1, 3, 512, 512)
