"""Tiny components and configurations for every test: 16x16 pixels, 4 frames, some 10,000 weights."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SLOW = Path(__file__).with_name("slow.txt")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that slow.txt lists: of many kinds of one test some are slow, and times are no part of a test."""
    listed = set(SLOW.read_text().splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)


NOISE = {
    "beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "clip_sample": False,
    "timestep_spacing": "trailing",
}  # fmt: skip
TINY_COMPONENTS: dict[str, dict[str, Any]] = {
    "vae": {"class": "AutoencoderPixelUnshuffle", "config": {"patch_size": 2, "scaling_factor": 2.0}},
    "autoencoder": {
        "class": "CMDAutoencoder",
        "config": {
            "in_channels": 12,
            "sample_size": [8, 8],
            "num_frames": 4,
            "patch_size": 2,
            "dim": 24,
            "encoder_depth": 1,
            "decoder_depth": 1,
            "num_heads": 2,
            "latent_channels": 4,
            "frame_weights": [0.1, 0.1, 0.6, 0.2],
        },
    },
    "tokenizer": {"class": "CLIPTokenizer", "config": {"vocab_size": 540, "model_max_length": 12}},
    "text_encoder": {
        "class": "CLIPTextModel",
        "config": {
            "vocab_size": 540,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 12,
            "projection_dim": 16,
        },
    },
    "unet": {
        "class": "UNet2DConditionModel",
        "config": {
            "sample_size": 8,
            "in_channels": 12,
            "out_channels": 12,
            "block_out_channels": [16, 32],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
    },
    "motion_transformer": {
        "class": "CMDMotionTransformer",
        "config": {
            "latent_channels": 4,
            "content_channels": 12,
            "autoencoder_patch_size": 2,
            "patch_size": 2,
            "content_patch_size": 4,
            "num_layers": 2,
            "dim": 32,
            "num_heads": 2,
            "text_dim": 16,
        },
    },
    "classifier": {"class": "SpriteClassifier", "config": {"widths": [8, 8, 8, 16]}},
    "content_scheduler": {"class": "DDIMScheduler", "config": NOISE},
    "motion_scheduler": {"class": "DDIMScheduler", "config": NOISE},
}
TINY_COMPONENTS["motion_tokenizer"] = TINY_COMPONENTS["tokenizer"]
TINY_COMPONENTS["motion_text_encoder"] = TINY_COMPONENTS["text_encoder"]
TEXT = ("tokenizer", "text_encoder")
STAGE_PARTS = {
    "autoencoder": ("vae", "autoencoder"),
    "classifier": ("classifier",),
    "decoder": (),  # a teacher and what is left of it: a test's own
    "image": ("vae", "unet", "content_scheduler", *TEXT),
    "content": ("vae", "autoencoder", "unet", "content_scheduler", *TEXT),
    "motion": (
        "vae",
        "autoencoder",
        "motion_transformer",
        "motion_scheduler",
        "motion_tokenizer",
        "motion_text_encoder",
    ),  # fmt: skip
}


def make_tiny_config(stage: str, output_dir: str | Path, /, **changes: Any) -> dict[str, Any]:
    """A configuration of a run of a second or two; `changes` are dotted paths with __ for the dot (loop__steps=4)."""
    frames = 1 if stage == "image" else 4
    data = {"kind": "sprites", "height": 16, "width": 16, "num_frames": frames, "length": 24}
    config: dict[str, Any] = {
        "stage": stage,
        "output_dir": str(output_dir),
        "seed": 3,
        "components": {name: TINY_COMPONENTS[name] for name in STAGE_PARTS[stage]},
        "data": data,
        "validation": {
            "data": {**data, "split": "held_out", "length": 4},
            "num_clips": 4,
            "batch_size": 2,
            "num_samples": 2,
            "num_inference_steps": 2,
        },
        "objective": {"train_text_encoder": True} if stage in ("image", "motion") else {},
        "optimizer": {"lr": 2e-3, "warmup_steps": 3, "schedule": "cosine", "weight_decay": 0.01},
        "loop": {
            "steps": 8,
            "batch_size": 4,
            "ema_decay": 0.9,
            "log_every": 1,
            "validate_every": 4,
            "checkpoint_every": 2,
        },
    }
    config = copy.deepcopy(config)
    for dotted, value in changes.items():
        *parents, leaf = dotted.split("__")
        section = config
        for parent in parents:
            section = section[parent]
        section[leaf] = value
    return config


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., dict[str, Any]]:
    """`tiny_config(stage, output_dir, loop__steps=4)`: a configuration as a dict."""
    return make_tiny_config


@pytest.fixture(scope="session")
def tiny_components() -> Callable[..., dict[str, Any]]:
    """`tiny_components("unet", "vae")`: fresh components by name; without names all of them, text included."""

    def build(*names: str, seed: int = 0) -> dict[str, Any]:
        from cmd_video.sprites.scenes import SpritesDataset
        from cmd_video.training.components import build_components
        from cmd_video.training.config import ComponentConfig

        chosen = names or tuple(TINY_COMPONENTS)
        captions = [SpritesDataset(24).scene(number).prompt for number in range(24)]
        configs = {name: ComponentConfig.model_validate(TINY_COMPONENTS[name]) for name in chosen}
        return build_components(configs, captions, seed)

    return build


@pytest.fixture(scope="session")
def run_train() -> Callable[[dict[str, Any]], Path]:
    """`run_train(config_dict)`: train in this process; accelerate's process-wide state is forgotten first."""

    def run(config: dict[str, Any]) -> Path:
        from accelerate.state import AcceleratorState, GradientState

        from cmd_video.training.config import TrainConfig
        from cmd_video.training.loop import train

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        return train(TrainConfig.model_validate(config))

    return run


@pytest.fixture(scope="session")
def read_log() -> Callable[..., list[dict[str, Any]]]:
    """`read_log(run, "train")`: the lines of log.jsonl of one kind, without the time."""

    def read(run: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
        import json

        lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("seconds")
        return [line for line in lines if kind in (None, line["kind"])]

    return read


GOLDEN = Path(__file__).with_name("golden.json")


def machine() -> dict[str, str]:
    """What decides the last bit of a result on a CPU."""
    import diffusers
    import torch
    import transformers

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    first = lines[: lines.index("") if "" in lines else None]
    about = dict(map(str.strip, line.split(":", 1)) for line in first if ":" in line)
    keys = ("model name", "cpu family", "model", "stepping")
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": " / ".join(about.get(key, "unknown") for key in keys),
    }


@pytest.fixture
def golden() -> Iterator[Callable[..., None]]:
    """`golden("motion", losses)`: numbers, and the bits of tensors, as tests/golden.json has them.

    On machines and versions that wrote into the file they are equal to the bit; elsewhere numbers are close. A commit
    that changes them says which and why, and takes the names it changes out of the other machines' lists. To write
    them anew: `CMD_VIDEO_WRITE_GOLDEN=1 pytest -n 0 -k golden`.
    """
    import hashlib
    import json

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def check(name: str, numbers: list[float], *tensors: torch.Tensor) -> None:
        digest = hashlib.sha256(b"".join(each.detach().contiguous().numpy().tobytes() for each in tensors)).hexdigest()
        found = {"numbers": numbers, **({"sha256": digest} if tensors else {})}
        books = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else []
        own = next((book["values"] for book in books if book["machine"] == machine()), None)
        if os.environ.get("CMD_VIDEO_WRITE_GOLDEN"):
            if own is None:
                own = {}
                books.append({"machine": machine(), "values": own})
            own[name] = found
            GOLDEN.write_text(json.dumps(books, indent=1, sort_keys=True) + "\n")
        elif own is not None and name in own:
            assert found == own[name]
        else:
            others = [book["values"][name]["numbers"] for book in books if name in book["values"]]
            assert others, f"{name} is not in {GOLDEN.name}"
            assert found["numbers"] == pytest.approx(others[0], rel=2e-2, abs=1e-4)

    yield check
    torch.set_num_threads(threads)
