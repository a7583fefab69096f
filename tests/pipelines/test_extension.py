"""Clips that go on from given frames, by a small Wan: the given ones stay, mistakes are named."""

import diffusers
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from cmd_video.pipelines.extension import extend_video


@pytest.fixture
def wan():
    """Components of a pipeline, under the names that `extend_video` asks for."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2, "dog": 3, "runs": 4}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    text = UMT5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return {
        "video_model": model.eval(), "vae": vae.eval(), "text_encoder": UMT5EncoderModel(text).eval(),
        "video_scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "tokenizer": PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>"),
    }  # fmt: skip


def drawn(components, begun, prompt="a dog", seeds=(0,), **changes):
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    settings = {"num_frames": 9, "num_inference_steps": 2, "guidance_scale": 2.0, "generator": sources, **changes}
    return extend_video(components, prompt, begun, **settings)


@pytest.mark.parametrize("given", [1, 5])
def test_given_frames_are_kept_in_the_latents(wan, given):
    begun = torch.rand(1, given, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    clips = drawn(wan, begun if given > 1 else begun[:, 0])
    assert clips.shape == (1, 3, 9, 16, 32)
    with torch.no_grad():  # the decoder does not look ahead
        latents = wan["vae"].encode(begun.transpose(1, 2) * 2 - 1).latent_dist.mode()
        alone = wan["vae"].decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(clips[:, :, :given], alone, rtol=0, atol=1e-4)
    other = drawn(wan, begun if given > 1 else begun[:, 0], seeds=(1,))
    assert (clips[:, :, given:] - other[:, :, given:]).abs().max() > 1e-3


def test_a_batch_equals_its_clips(wan):
    begun = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    both = drawn(wan, begun, ["a dog", "a dog runs"], seeds=(0, 1))
    for number, prompt in enumerate(["a dog", "a dog runs"]):
        alone = drawn(wan, begun[number : number + 1], prompt, seeds=(number,))
        torch.testing.assert_close(both[number : number + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("begun", "changes", "message"),
    [
        ((1, 3, 16, 16), {"num_frames": 8}, "num_frames: 8 frames; it must be 1 more than a multiple of 4"),
        ((1, 2, 3, 16, 16), {}, "begun: 2 frames; it must be 1 more than a multiple of 4"),
        ((1, 9, 3, 16, 16), {}, "num_frames: 9, but 9 are given"),
        ((1, 3, 16, 20), {}, "begun, width: 20"),
        ((1, 3, 16, 16), {"prompt": ["a", "b"]}, "prompt: 2 texts for 1 clips"),
    ],
)
def test_mistakes_are_named(wan, begun, changes, message):
    with pytest.raises(ValueError, match=message):
        drawn(wan, torch.zeros(begun), **changes)


def test_other_models_are_refused(wan):
    with pytest.raises(ValueError, match="components: tokenizer is missing; needed are video_model"):
        drawn({**wan, "tokenizer": None}, torch.zeros(1, 3, 16, 16))
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock3D",) * 2, up_block_types=("UpBlock3D",) * 2,
        layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
    )  # fmt: skip
    with pytest.raises(ValueError, match="components.video_model: a UNet3DConditionModel with a AutoencoderKLWan"):
        drawn({**wan, "video_model": unet}, torch.zeros(1, 3, 16, 16))
