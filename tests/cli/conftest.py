"""A tiny text-to-video pipeline on disk, made from configurations, a way to call the command line in-process, and
every command that writes: a test with the argument `writing` runs for each.
"""

import json
import tarfile
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
            latent_channels=4, frame_weights=[0.1, 0.1, 0.7, 0.1],
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


WRITING = {  # what writes -> its arguments
    "generate": ["generate", "a red circle", "--model", "{m}", "--steps", "1", "-o", "{out}/a.mp4"],
    "generate many": [
        "generate", "a red circle", "a star", "--model", "{m}", "--steps", "1", "--contact-sheet", "-o", "{out}/many",
    ],
    "reconstruct": ["reconstruct", "{clips}/0.mp4", "--model", "{m}", "-o", "{out}/a.gif"],
    "restore": [
        "restore", "{clips}/0.mp4", "--model", "{m}", "--task", "deblur", "--factor", "1", "--iterations", "1",
        "-o", "{out}/a.mp4",
    ],
    "data check": ["data", "check", "{clips}", "--num-frames", "4", "--json", "{out}/a.json"],
    "data index": ["data", "index", "{clips}", "-o", "{out}/a.parquet"],
    "data import": ["data", "import", "{shard}", "-o", "{out}/unpacked"],
    "export": ["export", "{m}", "-o", "{out}/model"],
    "prune": ["prune", "{m}", "--budget", "0.9", "--importance", "{importance}", "-o", "{out}/model"],
    "merge": ["merge", "{m}", "{m}", "--scale", "0.5", "-o", "{out}/model"],
    "evaluate reference": [
        "evaluate", "reference", "{clips}", "--frames", "4", "--extractor", "pixels", "-o", "{out}/table",
    ],
    "evaluate calc": [
        "evaluate", "calc", "{clips}", "--reference", "{clips}", "--frames", "4", "--extractor", "pixels",
        "--neighbours", "2", "-o", "{out}/a.json",
    ],
    "evaluate paired": ["evaluate", "paired", "{clips}", "{clips}", "--frames", "4", "-o", "{out}/a.json"],
    "evaluate reconstruction": [
        "evaluate", "reconstruction", "--run", "{run}", "--config", "{config}", "-o", "{out}/a.json",
    ],
    "evaluate report": ["evaluate", "report", "{result}", "--samples", "{clips}", "-o", "{out}/report"],
    "evaluate generate": ["evaluate", "generate", "{prompts}", "--model", "{m}", "--steps", "1", "-o", "{out}/made"],
    "evaluate generate png": [
        "evaluate", "generate", "{prompts}", "--model", "{m}", "--steps", "1", "--format", "png", "-o", "{out}/made",
    ],
    "train": ["train", "{config}", "--set", "output_dir={out}/run"],
    "data encode": ["data", "encode", "{run}", "-o", "{out}/latents", "--num-clips", "8"],
    "sprites make": [
        "sprites", "make", "--num-clips", "2", "--height", "32", "--width", "32", "--num-frames", "4",
        "-o", "{out}/made",
    ],
}  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "writing" in metafunc.fixturenames:
        metafunc.parametrize("writing", WRITING, indirect=True)


@pytest.fixture
def writing(request: pytest.FixtureRequest, writing_places: dict[str, Path], tmp_path: Path) -> list[str]:
    """Arguments of a command that writes below `tmp_path`."""
    return [word.format(out=tmp_path, **writing_places) for word in WRITING[request.param]]


@pytest.fixture(scope="session")
def writing_places(tmp_path_factory, tiny_pipeline, tiny_config, run_train):
    """What the commands read: a model, a finished run, clips, and files."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "clips").mkdir()
    from cmd_video.data.video_file import write_video

    for number in range(4):
        frames = np.random.default_rng(number).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
        write_video(frames, folder / "clips" / f"{number}.mp4", fps=8)
    config = tiny_config("autoencoder", folder / "run", loop__steps=2, loop__validate_every=2)
    run_train(config)
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "prompts.txt").write_text("a red circle\na star\n")
    (folder / "importance.json").write_text(json.dumps({"mid_block": {"importance": 0.0, "cost": 0.3}}))
    (folder / "result.json").write_text(
        json.dumps({"name": "paired", "protocol": {}, "values": {"psnr": {"value": 1.0}}})
    )
    (folder / "a.txt").write_text("a caption")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        tar.add(folder / "clips" / "0.mp4", "a.mp4")
        tar.add(folder / "a.txt", "a.txt")
    return {
        "m": tiny_pipeline, "shard": folder / "shard.tar",
        "clips": folder / "clips", "run": folder / "run", "config": folder / "config.yaml",
        "prompts": folder / "prompts.txt", "importance": folder / "importance.json", "result": folder / "result.json",
    }  # fmt: skip
