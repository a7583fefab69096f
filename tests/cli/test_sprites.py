"""`cmd-video sprites make|adherence`: what is written, going on after a stop, one line for a mistake."""

import json

import pytest

from cmd_video.data.manifest import load_manifest
from cmd_video.sprites import adherence
from cmd_video.sprites.adherence import measure_adherence


def test_clips_come_with_a_manifest_and_their_scenes(run, tmp_path):
    asked = ("sprites", "make", "-o", tmp_path / "clips", "--num-clips", 3, "--height", 16, "--width", 24)
    code, out, error = run(*asked)
    assert code == 0 and out.strip().endswith("manifest.jsonl"), error
    names = ["000000.mp4", "000001.mp4", "000002.mp4"]
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == [*names, "manifest.jsonl", "scenes.jsonl"]
    records = load_manifest("manifest", tmp_path / "clips" / "manifest.jsonl").records
    scenes = [json.loads(line) for line in (tmp_path / "clips" / "scenes.jsonl").read_text().splitlines()]
    assert [record.path.name for record in records] == names == [scene["path"] for scene in scenes]
    assert [record.prompt for record in records] == [scene["prompt"] for scene in scenes]
    code, _, error = run(*asked)
    assert code == 2 and f"error: --output: {tmp_path / 'clips'} is not empty\n" in error


def test_adherence_is_the_same_from_python_and_after_a_stop(run, tiny_pipeline, tmp_path, monkeypatch):
    output = tmp_path / "a.json"
    asked = ("--model", tiny_pipeline, "--num-scenes", 4, "--batch-size", 1, "--steps", 1, "--guidance", 1)
    called, read = [], adherence.read_scene

    def stop_once(video):
        called.append(tuple(video.shape))
        if len(called) == 5:  # each scene is read twice, as it was made and as it should be
            raise KeyboardInterrupt
        return read(video.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))  # the tiny model's are too small

    monkeypatch.setattr(adherence, "read_scene", stop_once)
    assert run("sprites", "adherence", "-o", output, *asked)[0] == 130 and not output.exists()
    code, out, error = run("sprites", "adherence", "-o", output, *asked)
    assert code == 0 and "color" in out and "95% interval" in out and str(output) in out, error
    assert called == [(3, 4, 16, 16)] * 9  # the fifth twice, and none before it
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    record = json.loads(output.read_text())
    assert record["name"] == "adherence" and record["protocol"]["clips"] == 4
    assert record["protocol"]["sampling"]["content"]["num_inference_steps"] == 1
    assert record["protocol"]["sampling"]["content"]["guidance"]["scale"] == 1
    values = measure_adherence(str(tiny_pipeline), 4, batch_size=2, num_inference_steps=1, guidance_scale=1)
    assert values == record["values"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("make", "-o", "{0}/new", "--split", "test"), "--split: 'test' is none of train, held_out"),
        (("make", "-o", "{0}/new", "--num-clips", "0"), "--num-clips"),
        (("adherence", "-o", "{0}"), "--output: {0} is a folder, a file is needed"),
        (("adherence", "-o", "/dev/null/a.json"), "nothing can be written below /dev/null"),
        (("adherence", "-o", "{0}/a.json", "--model", "{0}/none"), "--model: no folder {0}/none"),
        (("adherence", "-o", "{0}/a.json", "--model", "{1}", "--device", "abacus"), "--device: "),
        (("adherence", "-o", "{0}/a.json", "--model", "{1}", "--preset", "slow"), "--preset: 'slow' is none of"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(run, tiny_pipeline, tmp_path, arguments, message):
    code, _, error = run("sprites", *(argument.format(tmp_path, tiny_pipeline) for argument in arguments))
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and message.format(tmp_path) in lines[0] and "Traceback" not in error, error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("former", [("data", "make"), ("evaluate", "adherence")])
def test_former_verbs_are_gone(run, former):
    code, _, error = run(*former)
    assert code == 2 and f"'{former[1]}'" in error and len(error.strip().splitlines()) == 1
