"""`restore`, `merge`, `techniques`, and techniques in `generate`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cmd_video import CMDPipeline
from cmd_video.techniques import TECHNIQUES


@pytest.mark.parametrize("task", ["superres", "interpolate", "predict", "deblur", "inpaint"])
def test_restore(task, clip, tiny_pipeline, run, tmp_path):
    out = tmp_path / "out.gif"
    asked = ["restore", clip, "--task", task, "--factor", 2, "--model", tiny_pipeline, "--iterations", 3, "-o", out]
    if task == "inpaint":
        Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
        asked += ["--mask", tmp_path / "mask.png"]
    code, printed, _ = run(*asked)
    assert code == 0 and printed.strip() == str(out)
    with Image.open(out) as shown:
        assert shown.size == (2 * 16, 16) and shown.n_frames == 4
    assert json.loads(out.with_suffix(".json").read_text())["settings"] == {"iterations": 3}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "no_such"], "error: --task: 'no_such' is none of superres, inpaint"),
        (["--task", "inpaint"], "error: --mask: goes with the task 'inpaint'"),
        (["--task", "superres", "-o", "out.txt"], "error: --output: out.txt ends in '.txt'"),
    ],
)
def test_mistakes_of_restore_are_one_line(more, message, clip, tiny_pipeline, run):
    code, printed, errors = run("restore", str(clip), "--model", str(tiny_pipeline), *more)
    assert code == 2 and not printed and errors.splitlines()[-1].startswith(message)


def test_merge(tiny_pipeline, run, tmp_path):
    tuned = CMDPipeline.from_pretrained(tiny_pipeline)
    with torch.no_grad():
        for weight in tuned.unet.parameters():
            weight.add_(1)
    tuned.save_pretrained(tmp_path / "tuned")
    out = tmp_path / "merged"
    asked = ["merge", tiny_pipeline, tmp_path / "tuned", "-o", out, "--scale", 0.25, "--part", "content"]
    assert run(*asked)[0] == 0
    base, merged = (CMDPipeline.from_pretrained(path) for path in (tiny_pipeline, out))
    for mine, its in zip(base.unet.parameters(), merged.unet.parameters(), strict=True):
        torch.testing.assert_close(its, mine + 0.25)
    assert json.loads((out / "merge.json").read_text())["scale"] == 0.25
    code, _, errors = run(*asked)
    assert code == 2 and errors.splitlines()[-1] == f"error: --output: {out} exists; choose a new folder"


def test_techniques_lists_all_and_shows_one(run):
    code, printed, _ = run("techniques")
    assert code == 0 and [line.split()[0] for line in printed.splitlines()] == list(TECHNIQUES)
    code, printed, _ = run("techniques", "bridge")
    assert code == 0 and "arXiv 2410.15371" in printed and "kappa: 25.005" in printed
    code, _, errors = run("techniques", "no_such")
    assert code == 2 and errors.startswith("error: kind: 'no_such' is none of feature_reuse")


def test_generate_lays_sampling_over_the_models_own(tiny_pipeline, run, tmp_path):
    asked = ["generate", "a red circle", "--model", str(tiny_pipeline), "--steps", "3"]
    (tmp_path / "how.yaml").write_text("content: {guidance: {kind: cfg_plus_plus, scale: 0.6}}\n")
    pictures = []
    for name, more in (("plain", []), ("file", ["--sampling", str(tmp_path / "how.yaml")])):
        out = tmp_path / f"{name}.gif"
        assert run(*asked, "-o", str(out), *more)[0] == 0
        pictures.append(out.read_bytes())
    assert pictures[0] != pictures[1]
    record = json.loads((tmp_path / "file.json").read_text())
    assert record["sampling"]["content"]["guidance"] == {"kind": "cfg_plus_plus", "scale": 0.6}
    code, _, errors = run(*asked, "--sampling", "content: {no_such: 1}")
    assert code == 2 and "no_such" in errors.splitlines()[-1]
    code, _, errors = run(*asked, "--budget", "4")
    assert code == 2 and errors.splitlines()[-1] == "error: --budget: 4, but there is no reward to search for"
    code, _, errors = run(*asked, "--reward", "beauty")
    assert code == 2 and errors.splitlines()[-1] == "error: --reward: 'beauty' is none of sprites, clip"
