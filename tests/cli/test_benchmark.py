"""`cmd-video benchmark`: what it counts is what the pipeline runs; files, tables, mistakes."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cmd_video.benchmark.cmd_system import cmd_system
from cmd_video.benchmark.system import Size, measure_cost
from cmd_video.cli import main
from cmd_video.pipelines import CMDPipeline


def test_the_count_of_a_pipeline_is_what_it_runs(tiny_pipeline):
    """Everything a real call computes but attention, which counts as nothing on a CPU."""
    pipe = CMDPipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    for preset in ("quality", "fast"):
        pipe.use_preset(preset)
        rows, columns = pipe.autoencoder.config.sample_size
        size = Size(rows * pipe.ratio, columns * pipe.ratio, pipe.autoencoder.config.num_frames)
        expected = measure_cost(cmd_system(pipe, size))
        with FlopCounterMode(display=False) as counter:
            pipe("a red ball", generator=torch.Generator().manual_seed(0), output_type="pt")
        assert expected.end_to_end.flops == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_folder_is_counted_and_timed(tiny_pipeline, tmp_path, capsys):
    target, picture = tmp_path / "b.json", tmp_path / "b.png"
    arguments = ["--device", "cpu", "--runs", "1", "--preset", "fast", "--json", str(target), "--plot", str(picture)]
    assert main(["benchmark", str(tiny_pipeline), *arguments]) == 0
    (row,) = json.loads(target.read_text())["values"]["systems"]
    timing = row["timing"]
    assert 0 < timing["denoiser"] < sum(timing["parts"].values()) and 0 < timing["end_to_end"] <= timing["p95"]
    assert row["denoiser_flops"] < row["end_to_end_flops"]
    assert picture.stat().st_size > 1000
    assert "| end to end |" in capsys.readouterr().out


def test_a_system_that_does_not_fit_loses_only_its_own_timing(tiny_pipeline, tmp_path, monkeypatch):
    from cmd_video.benchmark import measure

    time_system = measure.time_system

    def too_large(system, device, runs):
        if system.size.width == 32:
            raise torch.OutOfMemoryError("out of memory.\nand much more")
        return time_system(system, device, runs)

    monkeypatch.setattr(measure, "time_system", too_large)
    target = tmp_path / "b.json"
    arguments = ["--device", "cpu", "--runs", "1", "--json", str(target)]
    sizes = ["--resolution", "16x32", "--resolution", "16x16"]
    assert main(["benchmark", str(tiny_pipeline), *arguments, *sizes]) == 0
    wide, narrow = json.loads(target.read_text())["values"]["systems"]
    assert wide["failure"] == "out of memory." and wide["timing"] is None and wide["end_to_end_flops"] > 0
    assert narrow["failure"] is None and narrow["timing"]["end_to_end"] > 0


def test_json_on_standard_output_is_nothing_but_json(tiny_pipeline, capsys):
    assert (
        main(["benchmark", str(tiny_pipeline), "--json", "-", "--resolution", "16x16", "--resolution", "32x16"]) == 0
    )
    rows = json.loads(capsys.readouterr().out)["systems"]
    assert [(row["height"], row["width"]) for row in rows] == [(16, 16), (32, 16)]
    assert rows[0]["end_to_end_flops"] < rows[1]["end_to_end_flops"]


def test_a_batch_costs_its_clips(tiny_pipeline, capsys):
    costs = []
    for batch in (1, 3):
        assert main(["benchmark", str(tiny_pipeline), "--json", "-", "--batch", str(batch)]) == 0
        costs.append(json.loads(capsys.readouterr().out)["systems"][0])
    for name in ("denoiser_flops", "end_to_end_flops", "paper_layer_macs"):
        assert costs[1][name] == 3 * costs[0][name]
    assert costs[1]["batch"] == 3 and costs[1]["parameters"] == costs[0]["parameters"]


def test_a_recipe_is_counted_at_its_own_size(tiny_config, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tiny_config("image", tmp_path / "run")))  # JSON is YAML
    rows = []
    for arguments in ([], ["--resolution", "32x32", "--frames", "1"], ["--device", "cpu", "--runs", "1"]):
        assert main(["benchmark", str(path), "--json", "-", *arguments]) == 0
        rows += json.loads(capsys.readouterr().out)["training"]
    assert "1x16x16" in rows[0]["name"] and rows[0]["seconds"] is None and rows[2]["seconds"] > 0
    assert rows[0]["step"] == rows[2]["step"]
    assert rows[0]["forward"]["flops"] < rows[1]["forward"]["flops"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sora"], "error: system: 'sora' is no folder"),
        (["default", "--resolution", "big"], "error: --resolution: 'big' is not of the form HxW"),
        (["default", "--dtype", "int4"], "error: --dtype: 'int4' is none of float32, bfloat16, float16"),
        (["default", "--preset", "warp"], "error: --preset: 'warp' is none of quality, fast, turbo"),
        (["cmd-sd21", "--motion-size", "XXL"], "error: motion: 'XXL' is none of S, B, L, XL"),
        (["missing.yaml"], "error: missing.yaml"),
        (["default", "--device", "tpu"], "error: --device: 'tpu' cannot be used here"),
        (["default", "--frames", "8"], "error: --frames: give a --resolution with it"),
        (["ltx-video-2b", "--preset", "fast"], "error: --preset: of CMD only"),
        (["--peers", "--preset", "fast"], "error: --preset: of CMD only"),
        (["default", "--motion-size", "S"], "error: --motion-size: of cmd-sd15 and cmd-sd21 only"),
        (["--training", "--batch", "2"], "error: --batch: of training steps it is always 1"),
        (["--training", "--resolution", "64x64", "--resolution", "32x32"], "error: --resolution: one only"),
        (["missing.yaml", "--dtype", "float16"], "error: --dtype: a recipe trains in its own precision"),
        (["default", "--compile"], "error: --compile: needs a system to time"),
        (["default", "--runs", "3"], "error: --runs: nothing is timed on the device meta"),
        (["default", "--resolution", "66x64"], "error: height: 66 is not a positive multiple of"),
        (["animatediff", "--resolution", "64x64", "--frames", "48"], "error: --frames: 48, but AnimateDiff has"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert sum(line.startswith("error:") for line in error) == 1 and "Traceback" not in "".join(error)
