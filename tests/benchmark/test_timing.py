"""Timing on a CPU with small models: presets on one pipeline, one compilation for parts and whole, estimates."""

import runpy
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from cmd_video.benchmark.cmd_system import (
    cmd_system,
    compile_denoisers,
    compile_surroundings,
    paper_pipeline,
    set_preset,
    uncompile,
)
from cmd_video.benchmark.system import Part, Place, Size, System
from cmd_video.benchmark.timing import time_system
from cmd_video.benchmark.training_step import PAPER_STAGES, paper_training_step, time_training
from cmd_video.pipelines.presets import PRESETS

SMALL = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "gpu" / "rows.py"))["SMALL"]
CLIP = Size(32, 32, 4)


@pytest.fixture(scope="module")
def pipe():
    return paper_pipeline(device="cpu", tiny_decoder=True, changes=SMALL)


def system_of(pipe, preset):
    set_preset(pipe, preset)
    return cmd_system(pipe, CLIP)


def test_a_pipeline_goes_from_preset_to_preset(pipe):
    """Nothing is left of the one before, such as turbo's lack of guidance."""
    words = {preset: system_of(pipe, preset).sampling for preset in PRESETS}
    assert {preset: system_of(pipe, preset).sampling for preset in ("turbo", "quality", "fast")} == words
    assert words["quality"] == "50+50 steps, guidance 7.5 / 1" and words["turbo"] == "4+4 steps"


def test_parts_run_what_was_compiled_for_the_whole(pipe):
    """Or each would be compiled twice, and another thing would be timed."""
    system = system_of(pipe, "turbo")
    compile_denoisers(pipe, backend="eager")
    try:
        with torch.inference_mode():
            system.run()
            before = counters["stats"]["unique_graphs"]
            for part in system.parts:
                part.run()
            assert counters["stats"]["unique_graphs"] == before > 0
            compile_surroundings(pipe, backend="eager")
            system.run()
        assert counters["stats"]["unique_graphs"] == before + 3  # text encoder and two decoders
    finally:
        uncompile(pipe)
    with torch.inference_mode():
        system_of(pipe, "fast").run()
    assert counters["stats"]["unique_graphs"] == before + 3


def test_what_would_take_long_is_the_sum_of_its_parts():
    calls = []
    part = Part("a", "denoiser", [], lambda: calls.append("part"), calls=1000)
    system = System("s", CLIP, "", "", [part], whole=lambda batch: calls.append("whole"))
    timing = time_system(system, "cpu", 3, longest=0)
    assert timing["estimated_from_steps"] and "whole" not in calls and timing["p95"] is None
    assert timing["end_to_end"] == timing["denoiser"] == timing["parts"]["a"] > 0
    timing = time_system(system, "cpu", 3, longest=3600)
    assert not timing["estimated_from_steps"] and "whole" in calls and timing["end_to_end"] <= timing["p95"]


@pytest.mark.parametrize("name", PAPER_STAGES)
def test_a_stage_learns_in_bf16_from_a_batch(name):
    step = paper_training_step(name, CLIP, Place("cpu", changes=SMALL), batch=2)
    types = []
    loss = step.loss
    step.loss = lambda: types.append(torch.is_autocast_enabled("cpu")) or loss()
    assert time_training(step, "cpu", 1, autocast=torch.bfloat16) > 0
    assert all(types) and all(weight.dtype == torch.float32 for weight in step.modules[0].parameters())
