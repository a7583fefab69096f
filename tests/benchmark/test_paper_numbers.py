"""The paper's own numbers (tables 8, 9 and 10) on the meta device, and the peers' published sizes."""

import pytest
import torch

from cmd_video.benchmark.cmd_system import paper_system
from cmd_video.benchmark.cost import num_parameters
from cmd_video.benchmark.peers import PEERS, build_peer
from cmd_video.benchmark.system import Size, measure_cost
from cmd_video.benchmark.training_step import measure_training, paper_training

TERA = 1e12


@pytest.fixture(scope="module")
def quality():
    return paper_system("sd21", Size(512, 1024))


def test_parameters(quality):
    sizes = {part.name: num_parameters(part.modules) / 1e9 for part in quality.parts}
    assert sizes["content"] == pytest.approx(0.866, abs=0.001)
    assert sizes["motion"] == pytest.approx(0.675, rel=0.005)
    assert sizes["autoencoder"] == pytest.approx(0.047, abs=0.001)


def test_sampling_512x1024_at_50_and_100_steps(quality):
    assert measure_cost(quality).paper.layer_macs / TERA == pytest.approx(46.8, rel=0.01)
    for part in quality.parts:
        part.paper_calls *= 2 if part.role == "denoiser" else 1
    assert measure_cost(quality).paper.layer_macs / TERA == pytest.approx(92.1, rel=0.01)


def test_honest_cost_has_guidance_attention_and_all_decoders(quality):
    cost = measure_cost(quality)
    assert set(cost.parts) == {"text encoder", "content", "motion", "autoencoder", "image decoder"}
    assert cost.parts["image decoder"].flops / TERA == pytest.approx(82 * 17 / 16, rel=0.01)  # and the content frame
    assert cost.end_to_end.flops == sum(part.flops for part in cost.parts.values())
    content = cost.parts["content"]
    assert content.layer_macs / TERA == pytest.approx(2 * 50 * 0.34 * 2, rel=0.01)  # guided, twice 512x512
    assert content.flops > 2 * content.layer_macs  # attention


def test_fast_needs_at_least_four_times_fewer_operations(quality):
    fast = measure_cost(paper_system("sd21", Size(512, 1024), "fast"))
    assert measure_cost(quality).end_to_end.flops >= 4 * fast.end_to_end.flops
    assert fast.paper.layer_macs < measure_cost(quality).paper.layer_macs


def test_turbo_needs_at_most_17_and_at_the_least_10_tera_operations():
    turbo = paper_system("sd21", Size(512, 1024), "turbo", motion="L")
    assert "4+4 steps" in turbo.sampling and "guidance" not in turbo.sampling
    assert measure_cost(turbo).end_to_end.flops / TERA <= 17
    least = paper_system("sd21", Size(512, 1024), "turbo", motion="S")
    content = [part for part in least.parts if part.name == "content"]
    assert [part.calls for part in content] == [4]
    content[0].calls = 1  # --steps 1
    assert measure_cost(least).end_to_end.flops / TERA <= 10


def test_training_steps_of_table_8():
    expected = {"ModelScope": 9.41, "CMD autoencoder": 0.77, "CMD content": 0.34, "CMD motion": 0.14}
    costs = {step.name: measure_training(step) for step in paper_training(Size(512, 512))}
    assert list(costs) == list(expected)
    for name, tera in expected.items():
        cost = costs[name]
        assert cost.forward.layer_macs / TERA == pytest.approx(tera, rel=0.01 if tera > 0.2 else 0.025), name
        assert 2.5 * cost.forward.flops < cost.step.flops <= 3 * cost.forward.flops
        assert cost.memory_bytes > 16 * cost.parameters  # weights, gradients, two moments


def test_modelscope_at_512x1024():
    """939 T in table 9, for 50 steps."""
    assert measure_cost(build_peer("modelscope", Size(512, 1024))).paper.layer_macs / TERA == pytest.approx(
        939, rel=0.01
    )


PARAMETERS = {  # of the denoiser, in billions, as published
    "modelscope": 1.41, "svd": 1.525, "animatediff": 1.277, "i2vgen-xl": 1.42, "latte-1": 1.057, "cogvideox-2b": 1.694,
    "ltx-video-2b": 1.923, "wan2.1-1.3b": 1.419, "hunyuanvideo": 12.82,
}  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_peers_have_their_published_size_and_frames(name):
    system = build_peer(name, Size(256, 256))
    (denoiser,) = (part for part in system.parts if part.role == "denoiser")
    assert num_parameters(denoiser.modules) / 1e9 == pytest.approx(PARAMETERS[name], rel=0.001)
    assert system.size.frames == (17 if PEERS[name].time_factor > 1 else 16)
    assert {part.role for part in system.parts} == {"condition", "denoiser", "decoder"}


@pytest.mark.parametrize("name", ["ltx-video-2b"])
def test_a_peer_is_counted_from_prompt_to_pixels(name):
    cost = measure_cost(build_peer(name, Size(256, 256)))
    assert 0 < cost.denoiser.flops < cost.end_to_end.flops
    assert 0 < cost.paper.layer_macs < cost.denoiser.layer_macs


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_every_peer_is_counted_from_prompt_to_pixels(name):
    test_a_peer_is_counted_from_prompt_to_pixels(name)


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="peer: 'sora' is none of modelscope"):
        build_peer("sora", Size(256, 256))
    with pytest.raises(ValueError, match="250x256 is not divisible by 32"):
        build_peer("svd", Size(250, 256))
    with pytest.raises(ValueError, match="base: 'sdxl' is none of sd15, sd21"):
        paper_system("sdxl", Size(512, 512))


def test_memory_at_512x1024_is_below_the_papers():
    from cmd_video.benchmark.report import describe

    system = paper_system("sd21", Size(512, 1024), dtype=torch.bfloat16)
    assert describe(system, measure_cost(system), memory=True)["computed_peak_bytes"] < 5.56e9
