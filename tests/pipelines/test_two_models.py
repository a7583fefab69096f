"""Pipelines with second models: sampled, saved, loaded, offloaded; and what is refused."""

import copy

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

from cmd_video.pipelines import CMDPipeline

PARTS = {"content": "unet", "motion": "motion_transformer"}


def shifted(model):
    """The same layout, other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(1.3)
    return other


def with_second(pipeline, **seconds):
    parts = {**pipeline.components, **seconds}
    pair = CMDPipeline(**parts, sampling=pipeline.sampling)
    pair.set_progress_bar_config(disable=True)
    return pair


def at(pipeline, part, ratio, **others):
    return pipeline.sampling.laid_over({part: {"wraps": [{"kind": "two_models", "boundary_ratio": ratio}], **others}})


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("guided", [1.0, 2.5])
def test_at_the_ends_it_is_either_model_to_the_bit(make_text_pipeline, generate, part, guided):
    pipeline, name = make_text_pipeline(), PARTS[part]
    scale = {"guidance": {"scale": guided}}
    plain = pipeline.sampling.laid_over({part: scale})
    pair = with_second(pipeline, **{f"{name}_2": shifted(getattr(pipeline, name))})
    first = generate(pipeline, "a red ball", sampling=plain)
    alone = with_second(pipeline, **{name: getattr(pair, f"{name}_2")})
    second = generate(alone, "a red ball", sampling=plain)
    assert torch.equal(generate(pair, "a red ball", sampling=at(pair, part, 0.0, **scale)).frames, first.frames)
    assert torch.equal(generate(pair, "a red ball", sampling=at(pair, part, 1.0, **scale)).frames, second.frames)
    between = generate(pair, "a red ball", sampling=at(pair, part, 0.5, **scale)).frames
    assert not torch.equal(between, first.frames) and not torch.equal(between, second.frames)


def test_it_is_saved_and_loaded_with_the_pipeline(make_text_pipeline, generate, tmp_path):
    pipeline = make_text_pipeline()
    pipeline.save_pretrained(tmp_path / "first")
    seconds = {f"{name}_2": shifted(getattr(pipeline, name)) for name in PARTS.values()}
    pair = CMDPipeline.from_pretrained(tmp_path / "first", **seconds)
    pair.set_progress_bar_config(disable=True)
    for part in PARTS:
        pair.sampling = at(pair, part, 0.5)
    pair.save_pretrained(tmp_path / "pair")
    loaded = CMDPipeline.from_pretrained(tmp_path / "pair")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.sampling == pair.sampling
    expected = generate(pair, "a red ball")
    assert torch.equal(generate(loaded, "a red ball").frames, expected.frames)
    assert not torch.equal(generate(pipeline, "a red ball").frames, expected.frames)
    (tmp_path / "pair" / "unet_2" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises((ValueError, OSError), match="unet_2"):
        CMDPipeline.from_pretrained(tmp_path / "pair")


class Ready(ModelHook):
    """Notes which module is brought to the device."""

    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def pre_forward(self, module, *arguments, **named):
        self.seen.append(self.name)
        return arguments, named


def test_each_model_is_brought_to_the_device_when_it_is_asked(make_text_pipeline, generate):
    pipeline = make_text_pipeline()
    names = [name for part in PARTS.values() for name in (part, f"{part}_2")]
    pair = with_second(pipeline, **{f"{name}_2": shifted(getattr(pipeline, name)) for name in PARTS.values()})
    order = pair.model_cpu_offload_seq.split("->")
    assert [name for name in order if name in names] == names
    seen: list[str] = []
    for name in names:
        add_hook_to_module(getattr(pair, name), Ready(name, seen))
    how = pair.sampling
    for part in PARTS:
        how = at(pair, part, 0.5) if part == "content" else how.laid_over({part: at(pair, part, 0.5).motion})
    generate(pair, "a red ball", sampling=how)
    for name in names:
        remove_hook_from_module(getattr(pair, name))
    assert [name for number, name in enumerate(seen) if number == 0 or seen[number - 1] != name] == names


def test_a_preset_keeps_the_second_model(make_text_pipeline):
    pipeline = make_text_pipeline()
    pair = with_second(pipeline, motion_transformer_2=shifted(pipeline.motion_transformer))
    pair.sampling = at(pair, "motion", 0.5)
    for name in ("fast", "quality"):
        pair.use_preset(name)
        assert [wrap.kind for wrap in pair.sampling.motion.wraps] == ["two_models"]
    pair.use_preset("fast")
    assert [wrap.kind for wrap in pair.sampling.content.wraps] == ["feature_reuse"]


def test_what_does_not_fit_is_refused_in_one_line(make_text_pipeline, make_class_pipeline, generate):
    pipeline = make_text_pipeline()
    from cmd_video.models import CMDMotionTransformer

    config = {key: value for key, value in pipeline.motion_transformer.config.items() if not key.startswith("_")}
    deeper = CMDMotionTransformer(**{**config, "num_layers": 2})
    alike = shifted(pipeline.motion_transformer)
    reuse = [{"kind": "two_models", "boundary_ratio": 0.5}, {"kind": "feature_reuse", "interval": 2}]
    for second, how, message in (
        (None, at(pipeline, "motion", 0.5), "motion_transformer_2: not given, but below boundary_ratio = 0.5 it is"),
        (deeper, at(pipeline, "motion", 0.5), "motion_transformer_2: num_layers is 2, that of the first model 1"),
        (alike, pipeline.sampling.laid_over({"motion": {"wraps": reuse}}), "two_models asks two networks, feature_r"),
    ):
        with pytest.raises(ValueError, match=message) as found:
            generate(with_second(pipeline, motion_transformer_2=second), "a red ball", sampling=how)
        assert "\n" not in str(found.value)
    other = with_second(pipeline, unet_2=make_class_pipeline().unet)
    with pytest.raises(ValueError, match="unet_2: a DiTTransformer2DModel, the first model is a UNet2DConditionModel"):
        generate(other, "a red ball", sampling=at(other, "content", 0.5))
