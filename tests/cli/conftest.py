"""A tiny text-to-video pipeline on disk, made from configurations, and a way to call the command line in-process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from cmd_video import AutoencoderPixelUnshuffle, CMDAutoencoder, CMDMotionTransformer, CMDPipeline
    from cmd_video.training.tokenizer import train_tokenizer

    torch.manual_seed(0)
    motion = CMDMotionTransformer(4, 12, 2, 2, 4, num_layers=1, dim=16, num_heads=2, text_dim=16)
    for weight in motion.parameters():  # a fresh one outputs zero
        torch.nn.init.normal_(weight, std=0.1)
    tokenizer = train_tokenizer(
        ["a red circle moves to the right", "a blue star"], vocab_size=540, model_max_length=16
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=12, out_channels=12, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    pipe = CMDPipeline(
        autoencoder=CMDAutoencoder(
            in_channels=12, sample_size=(8, 8), num_frames=4, dim=16, encoder_depth=1, decoder_depth=1, num_heads=2,
            latent_channels=4,
        ),
        unet=unet,
        motion_transformer=motion,
        content_scheduler=DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        motion_scheduler=DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        vae=AutoencoderPixelUnshuffle(patch_size=2),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        sampling={"content": {"guidance": {"scale": 2.0}}},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `cmd-video` with arguments: (exit code, stdout, stderr)."""
    from cmd_video.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video file of a square that moves, 8 frames of 16x16."""
    from cmd_video.data.video_file import write_video

    frames = np.full((8, 16, 16, 3), 90, np.uint8)
    for number in range(8):
        frames[number, 4:10, number : number + 6] = (230, 30, 40)
    path = tmp_path / "clip.mp4"
    write_video(frames, path, fps=8)
    return path
