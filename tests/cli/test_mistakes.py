"""A user's mistake is one line that names what is wrong, exit code 2, and nothing half-written."""

import pytest
from PIL import Image

# name: arguments (with {placeholders}), words that the line must hold
MISTAKES = {
    "no prompt": (["generate", "--model", "{model}", "-o", "{out}/a.mp4"], ["prompt"]),
    "unknown format": (["generate", "x", "--model", "{model}", "-o", "{out}/a.avi"], [".avi", ".mp4"]),
    "one file for two clips": (["generate", "x", "y", "--model", "{model}", "-o", "{out}/a.mp4"], ["folder"]),
    "sheet of a file": (
        ["generate", "x", "--model", "{model}", "-o", "{out}/a.mp4", "--contact-sheet"],
        ["--contact-sheet"],
    ),
    "no such model": (["generate", "x", "--model", "{out}/none", "-o", "{out}/a.mp4"], ["--model", "none"]),
    "not a model": (["generate", "x", "--model", "{empty}", "-o", "{out}/a.mp4"], ["model_index.json"]),
    "another model": (
        ["generate", "x", "--model", "{other}", "-o", "{out}/a.mp4"],
        ["StableDiffusionPipeline", "CMDPipeline"],
    ),
    "damaged model": (["generate", "x", "--model", "{damaged}", "-o", "{out}/a.mp4"], ["damaged"]),
    "two conditions": (
        ["generate", "x", "--class", "1", "--model", "{model}", "-o", "{out}/a.mp4"],
        ["prompt", "--class"],
    ),
    "class without classes": (
        ["generate", "--class", "1", "--model", "{model}", "-o", "{out}/a.mp4"],
        ["--class"],
    ),
    "no such image": (
        ["generate", "x", "--image", "{out}/i.png", "--model", "{model}", "-o", "{out}/a.mp4"],
        ["i.png"],
    ),
    "not an image": (["generate", "x", "--image", "{text}", "--model", "{model}", "-o", "{out}/a.mp4"], ["--image"]),
    "image size": (
        ["generate", "x", "--image", "{image}", "--model", "{model}", "-o", "{out}/a.mp4"],
        ["20x24", "16x16"],
    ),
    "height": (["generate", "x", "--height", "17", "--model", "{model}", "-o", "{out}/a.mp4"], ["height", "17", "16"]),
    "frames": (
        ["generate", "x", "--num-frames", "3", "--model", "{model}", "-o", "{out}/a.mp4"],
        ["--num-frames", "3"],
    ),
    "steps": (
        ["generate", "x", "--steps", "0", "--model", "{model}", "-o", "{out}/a.mp4"],
        ["--steps", "0"],
    ),
    "guidance": (
        ["generate", "x", "--guidance", "0.5", "--model", "{model}", "-o", "{out}/a.mp4"],
        ["--guidance", "0.5"],
    ),
    "prompts file": (["generate", "--prompts-file", "{out}/p.txt", "--model", "{model}", "-o", "{out}/d"], ["p.txt"]),
    "empty prompts": (["generate", "--prompts-file", "{blank}", "--model", "{model}", "-o", "{out}/d"], ["no prompt"]),
    "device": (["generate", "x", "--device", "abacus", "--model", "{model}", "-o", "{out}/a.mp4"], ["abacus"]),
    "no such clip": (["reconstruct", "{out}/c.mp4", "--model", "{model}", "-o", "{out}/a.mp4"], ["c.mp4"]),
    "unreadable clip": (["reconstruct", "{text}", "--model", "{model}", "-o", "{out}/a.mp4"], ["text.mp4"]),
    "short clip": (
        ["reconstruct", "{clip}", "--stride", "9", "--model", "{model}", "-o", "{out}/a.mp4"],
        ["clip.mp4"],
    ),
    "clip size": (
        ["reconstruct", "{clip}", "--height", "17", "--model", "{model}", "-o", "{out}/a.mp4"],
        ["height", "17"],
    ),
    "reconstruct format": (["reconstruct", "{clip}", "--model", "{model}", "-o", "{out}/a.png"], [".png"]),
    "no such config": (["train", "{out}/none.yaml"], ["none.yaml"]),
    "not yaml": (["train", "{blank}"], ["mapping"]),
    "unknown field": (["train", "{config}", "--set", "loop.stepps=3"], ["loop.stepps", "steps"]),
    "wrong type": (["train", "{config}", "--set", "loop.steps=many"], ["loop.steps", "many"]),
    "wrong stage": (["train", "{config}", "--set", "stage=video"], ["stage", "video"]),
    "no equals": (["train", "{config}", "--set", "loop.steps"], ["loop.steps"]),
    "no component folder": (
        ["train", "{config}", "--set", "components.vae={{path: {out}/none}}"],
        ["components.vae", "none"],
    ),
    "export nothing": (["export", "{empty}", "-o", "{out}/m"], ["no trained components"]),
    "export over": (["export", "{model}", "-o", "{model}"], ["exists"]),
    "latents missing": (["train", "{config}", "--set", "data={{kind: sprites, size: 3}}"], ["data", "size"]),
    "unknown verb": (["generat"], ["generate"]),
}


@pytest.fixture
def places(tmp_path, tiny_pipeline, clip):
    """Paths by placeholder name; `out` is empty and must stay so."""
    import shutil

    for name in ("out", "empty", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "text.mp4").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "blank.txt").write_text("\n")
    Image.new("RGB", (24, 20)).save(tmp_path / "image.png")
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_pipeline, damaged)
    weights = damaged / "autoencoder" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    config = tmp_path / "config.yaml"
    config.write_text(f"""
stage: autoencoder
output_dir: {tmp_path}/out/run
components:
  autoencoder:
    class: CMDAutoencoder
    config: {{in_channels: 3, dim: 16, encoder_depth: 1, decoder_depth: 1, num_heads: 2}}
data: {{kind: sprites, height: 16, width: 16, num_frames: 4}}
validation: {{data: {{kind: sprites, height: 16, width: 16, num_frames: 4}}}}
loop: {{steps: 2, batch_size: 2}}
""")
    names = ("out", "empty", "other", "damaged")
    return {name: tmp_path / name for name in names} | {
        "model": tiny_pipeline,
        "text": tmp_path / "text.mp4",
        "blank": tmp_path / "blank.txt",
        "image": tmp_path / "image.png",
        "config": config,
        "clip": clip,
    }


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_and_nothing_written(run, places, name):
    arguments, words = MISTAKES[name]
    code, _, err = run(*(argument.format(**places) for argument in arguments))
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2, err
    assert len(lines) == 1 and "Traceback" not in err, err
    assert all(word in lines[0] for word in words), lines[0]
    assert not [path for path in places["out"].rglob("*") if path.is_file()]


def test_no_space_is_one_line(run, places, monkeypatch):
    """A device without space: the line names the file, and no temporary file stays."""
    import errno
    import os

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(places["out"] / "a.mp4"))

    monkeypatch.setattr("cmd_video.data.video_file._write_encoded", full)
    code, _, err = run("generate", "x", "--model", places["model"], "-o", places["out"] / "a.mp4", "--steps", 1)
    assert code == 2
    assert "a.mp4" in err and "No space" in err
    assert not [path for path in places["out"].rglob("*") if path.is_file()]
