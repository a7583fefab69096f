"""`cmd-video evaluate generate`: files and manifest, going on, VBench's names, one-line mistakes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from PIL import Image

from cmd_video import AutoencoderPixelUnshuffle, CMDAutoencoder, CMDMotionTransformer, CMDPipeline
from cmd_video.data.manifest import load_manifest

PROMPTS = "a red circle\n\na blue star moves up\n"


@pytest.fixture
def generate(run, tiny_pipeline, tmp_path):
    """`generate("out", "--num-samples", 2)`: the command on two prompts."""
    (tmp_path / "prompts.txt").write_text(PROMPTS)

    def call(output, *options):
        return run(
            "evaluate", "generate", tmp_path / "prompts.txt", "-o", tmp_path / output, "--model", tiny_pipeline,
            "--steps", 2, *options,
        )  # fmt: skip

    return call


def test_clips_have_seeds_of_their_own_and_batches_do_not_matter(generate, tmp_path):
    for output, batch in (("one", 1), ("many", 8)):
        code, _, error = generate(output, "--num-samples", 2, "--format", "png", "--batch-size", batch)
        assert code == 0, error
    rows = json.loads((tmp_path / "one" / "recipe.json").read_text())["clips"]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3] and rows[2]["prompt"] == "a blue star moves up"
    clips = {
        output: [
            np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / output / row["path"]).iterdir())])
            for row in rows
        ]
        for output in ("one", "many")
    }
    for one, many in zip(clips["one"], clips["many"], strict=True):
        assert one.shape == (4, 16, 16, 3) and np.abs(one.astype(int) - many).max() <= 1
    assert not np.array_equal(clips["one"][0], clips["one"][1])


def test_processes_share_the_clips(generate, tiny_pipeline, tmp_path):
    options = ("--num-samples", 2, "--format", "png", "--batch-size", 1)
    assert generate("one", *options)[0] == 0
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29587", "-m", "cmd_video.cli"]
    asked = ["evaluate", "generate", tmp_path / "prompts.txt", "-o", tmp_path / "two", "--model", tiny_pipeline]
    command = [sys.executable, *launch, *asked, "--steps", 2, *options]
    subprocess.run([str(part) for part in command], check=True, timeout=300)
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.png"))
        for name in ("one", "two")
    ]
    assert len(files[0]) == 16 and files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert (tmp_path / "one" / "recipe.json").read_bytes() == (tmp_path / "two" / "recipe.json").read_bytes()


def test_machines_make_a_share_each(generate, tmp_path):
    options = ("--num-samples", 2, "--format", "png", "--shard")
    assert generate("out", *options, "1/3")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["00000-1"]
    assert generate("out", *options, "0/3")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == [
        "00000-0",
        "00000-1",
        "00001-1",
    ]
    code, _, error = generate("new", *options, "3/3")
    assert code == 2 and "shard: '3/3', allowed: i/n with 0 <= i < n" in error and not (tmp_path / "new").exists()


def test_a_model_of_classes(run, tiny_pipeline, tmp_path):
    torch.manual_seed(0)
    parts = {
        "unet": DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=12, out_channels=12, num_layers=1, sample_size=8,
            patch_size=2, num_embeds_ada_norm=3, norm_num_groups=1,
        ),
        "motion_transformer": CMDMotionTransformer(4, 12, 2, 2, 4, num_layers=1, dim=16, num_heads=2, num_classes=3),
        "autoencoder": CMDAutoencoder.from_pretrained(tiny_pipeline / "autoencoder"),
        "vae": AutoencoderPixelUnshuffle.from_pretrained(tiny_pipeline / "vae"),
        "content_scheduler": DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        "motion_scheduler": DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
    }  # fmt: skip
    CMDPipeline(**parts).save_pretrained(tmp_path / "model")
    CMDPipeline(**parts, id2label={0: "run", 1: "jump", 2: "2"}).save_pretrained(tmp_path / "named")
    asked = ("-o", tmp_path / "out", "--model", tmp_path / "model", "--steps", 2, "--num-samples", 2)
    code, _, error = run("evaluate", "generate", "classes", *asked)
    assert code == 0, error
    records = load_manifest("manifest", tmp_path / "out" / "prompts.jsonl").records
    assert [record.class_label for record in records] == [0, 0, 1, 1, 2, 2]
    code, _, error = run("evaluate", "generate", "classes", "-o", tmp_path / "by-name", "--model", tmp_path / "named",
                         *asked[4:])  # fmt: skip
    assert code == 0, error
    rows = [json.loads(line) for line in (tmp_path / "by-name" / "prompts.jsonl").read_text().splitlines()]
    assert [row["class_label"] for row in rows] == ["run", "run", "jump", "jump", "2", "2"]
    for number in range(6):  # a name is asked for as its number is
        path = f"{number // 2:05d}-{number % 2}.mp4"
        assert (tmp_path / "by-name" / path).read_bytes() == (tmp_path / "out" / path).read_bytes()
    for label, number, name in (("jump", 1, "jump"), ("1", 1, "jump"), ("2", 2, "2"), ("run", 0, "run")):
        made = ("generate", "--class", label, "--steps", 1, "-o", tmp_path / "a.mp4", "--model")
        assert run(*made, tmp_path / "named")[0] == 0
        record = json.loads((tmp_path / "a.json").read_text())
        assert (record["class_label"], record["class_name"]) == (number, name)
    code, _, error = run(*made[:2], "zebra", *made[3:], tmp_path / "named")
    assert code == 2 and "class 'zebra' is none of run, jump, 2" in error
    code, _, error = run(*made[:2], "zebra", *made[3:], tmp_path / "model")
    assert code == 2 and "the names of this model's classes are not known; give a number in 0..2" in error
    code, _, error = run(*made[:2], "7", *made[3:], tmp_path / "named")
    assert code == 2 and "7 is not in 0..2" in error
    (tmp_path / "prompts.txt").write_text("a cat\n")
    code, _, error = run("evaluate", "generate", tmp_path / "prompts.txt", "-o", tmp_path / "new", *asked[2:])
    assert code == 2 and "the model knows 3 classes: give `classes`" in error and not (tmp_path / "new").exists()
    code, _, error = run("evaluate", "generate", "classes", "-o", tmp_path / "new", "--model", tiny_pipeline)
    assert code == 2 and "the model knows texts" in error and not (tmp_path / "new").exists()


def test_a_stopped_run_goes_on(generate, tmp_path):
    assert generate("out")[0] == 0
    kept, lost = sorted((tmp_path / "out").glob("*.mp4"))
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert generate("out")[0] == 0
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == stamp
    code, _, error = generate("out", "--guidance", 3)
    assert code == 2 and "holds clips of another command" in error


def test_what_was_generated_can_be_measured(generate, run, tmp_path):
    generate("out", "--num-samples", 4)
    options = ("--reference", tmp_path / "out", "--extractor", "pixels", "--frames", 4, "-o", tmp_path / "d.json")
    code, _, error = run("evaluate", "calc", tmp_path / "out" / "prompts.jsonl", *options)
    assert code == 0, error
    assert json.loads((tmp_path / "d.json").read_text())["protocol"]["made"]["clips"] == 8


def test_vbench_finds_its_file_names(generate, tmp_path):
    code, _, error = generate("bench", "--layout", "vbench", "--num-samples", 2)
    assert code == 0, error
    names = sorted(path.name for path in (tmp_path / "bench" / "videos").iterdir())
    assert names == [f"{prompt}-{n}.mp4" for prompt in ("a blue star moves up", "a red circle") for n in (0, 1)]
    script = (tmp_path / "bench" / "run_vbench.sh").read_text()
    assert "venv" in script and "--videos_path" in script


def test_mistakes(generate, run, tiny_pipeline, tmp_path):
    for options, message in (
        (("--layout", "flat"), "--layout: 'flat' is none of clips, vbench"),
        (("--format", "gif"), "--format: 'gif' is none of mp4, png"),
        (("--layout", "vbench", "--format", "png"), "--format: VBench reads mp4"),
        (("--preset", "slow"), "slow"),
    ):
        code, _, error = generate("out", *options)
        assert code == 2 and message in error.strip().splitlines()[-1]
        assert not (tmp_path / "out").exists()
    (tmp_path / "prompts.txt").write_text("a cat/dog\n")
    code, _, error = generate("out", "--layout", "vbench")
    assert code == 2 and "'a cat/dog' can be no file name" in error and not (tmp_path / "out" / "videos").exists()
    (tmp_path / "prompts.txt").write_text("\n")
    code, _, error = generate("new")
    assert code == 2 and "holds no prompt" in error
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    code, _, error = generate("full")
    assert code == 2 and "is not empty" in error
