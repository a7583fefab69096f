"""CMD as a list of parts: however it is sampled, the parts cost what a call costs, and are the steps of its loop."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmd_video.benchmark.cmd_system import cmd_system
from cmd_video.benchmark.cost import count
from cmd_video.benchmark.system import Size, measure_cost
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.sampling import Sampling

CLIP = Size(16, 16, 4)
PLAIN = {"num_inference_steps": 4}
WAYS = {
    "plain": {"content": PLAIN, "motion": PLAIN},
    "guided": {"content": {**PLAIN, "guidance": {"scale": 3.0}}, "motion": {**PLAIN, "guidance": {"scale": 2.0}}},
    "guided in an interval, features reused": {
        part: {
            **PLAIN, "guidance": {"kind": "guidance_interval", "scale": 3.0, "low": 0.3, "high": 0.8},
            "wraps": [{"kind": "feature_reuse", "interval": 2}],
        }
        for part in ("content", "motion")
    },
    "few steps": {"content": {"starts": [999, 499]}, "motion": {"starts": [999]}, "decode_content_frame": False},
    "on the manifold": {"content": {**PLAIN, "guidance": {"kind": "cfg_plus_plus"}}, "motion": PLAIN},
    "text and frame": {
        "content": PLAIN, "motion": {**PLAIN, "guidance": {"kind": "joint_guidance", "scale": 2.0, "frame": 1.5}},
    },
    "new noise": {"content": {**PLAIN, "eta": 1.0}, "motion": {**PLAIN, "eta": 0.5}},
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe(tiny_components):
    parts = tiny_components()
    del parts["classifier"]
    pipe = CMDPipeline(**{name: part.eval() if hasattr(part, "eval") else part for name, part in parts.items()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("way", WAYS)
@torch.inference_mode()
def test_the_parts_cost_what_a_call_costs(pipe, way):
    how = Sampling.model_validate(WAYS[way])
    with sdpa_kernel(SDPBackend.MATH):  # attention written out: counted
        system = cmd_system(pipe, CLIP, how)
        whole = count(lambda: system.whole(1))
        called = count(lambda: pipe("a red ball", sampling=how, output_type="pt"))
        assert measure_cost(system).end_to_end == whole == measure_cost(system.with_batch(1)).end_to_end
        three = measure_cost(system.with_batch(3)).end_to_end
    assert called == whole
    assert three.layer_macs == 3 * whole.layer_macs


@pytest.mark.parametrize("way", WAYS)
def test_the_parts_are_called_as_often_as_the_loop_steps(pipe, way):
    how = Sampling.model_validate(WAYS[way])
    for name, steps in (("content", how.content), ("motion", how.motion)):
        parts = [part for part in cmd_system(pipe, CLIP, how).parts if part.name == name]
        assert sum(part.calls for part in parts) == steps.num_inference_steps


def test_sizes_and_settings_that_do_not_fit_are_named(pipe):
    with pytest.raises(ValueError, match="height: 15 is not a positive multiple of"):
        cmd_system(pipe, Size(15, 16, 4))
    with pytest.raises(ValueError, match="frames: 5 is not a positive multiple of 2"):
        cmd_system(pipe, Size(16, 16, 5))
    with pytest.raises(ValueError, match="motion_num_inference_steps: 2000"):
        cmd_system(pipe, CLIP, Sampling.model_validate({"motion": {"num_inference_steps": 2000}}))
