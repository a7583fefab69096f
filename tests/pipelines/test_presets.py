"""Presets, the plan of a denoising loop, guidance in an interval, and deep features used again between steps."""

import re
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, UNet2DConditionModel

from cmd_video.diffusion.guidance import ClassifierFree
from cmd_video.diffusion.plan import Step, steps_at
from cmd_video.diffusion.solvers import SchedulerSolver, ddim, jumps, multistep, with_schedule
from cmd_video.models import CMDMotionTransformer
from cmd_video.pipelines.presets import PRESETS, is_distilled, lcm
from cmd_video.pipelines.sampling import ModelSampling
from cmd_video.techniques.feature_reuse import Settings as Reuse
from cmd_video.techniques.feature_reuse import check_reusable, motion_step, unet_step
from cmd_video.techniques.guidance_interval import Settings as Interval


def test_a_plan_guides_inside_the_interval_only_and_starts_each_stretch_afresh():
    guidance = Interval(scale=2.0, low=0.15, high=0.8)
    plan = Reuse(interval=2).steps(steps_at([900, 700, 500, 300, 200, 100, 0], 1000), guidance)
    assert [len(guidance.passes(step)) == 2 for step in plan] == [False, True, True, True, True, False, False]
    assert [step.fresh for step in plan] == [True, True, False, True, False, True, False]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_plan_without_shortcuts_computes_everything(scale):
    steps = steps_at(range(9, -1, -1), 10)
    assert steps == [Step(t, t / 10) for t in range(9, -1, -1)] and all(step.fresh for step in steps)
    assert Reuse().steps(steps, ClassifierFree(scale=scale)) == steps


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
def test_every_nth_step_is_full(interval):
    plan = Reuse(interval=interval).steps(steps_at(range(10, 0, -1), 11), ClassifierFree(scale=2.0))
    assert [step.fresh for step in plan] == [number % interval == 0 for number in range(10)]
    assert [step.t for step in plan] == list(range(10, 0, -1))


LAYOUTS = {
    "sprites": {"addition_embed_type": "text", "addition_embed_type_num_heads": 2, "time_embedding_dim": 24},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "attention outside": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "use_linear_projection": True,
    },
    "no mid block": {"mid_block_type": None},
    "odd sides": {},
}


def make_unet(**changes):
    torch.manual_seed(0)
    config = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        **changes,
    }
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8,
        **config,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shallow_step_with_its_own_deep_features_is_the_full_step(layout):
    unet = make_unet(**LAYOUTS[layout])
    sample = torch.randn(2, 4, 7 if layout == "odd sides" else 8, 8)
    timestep, tokens = torch.tensor([500, 500]), torch.randn(2, 5, 16)
    with torch.no_grad():
        plain = unet(sample, timestep, tokens).sample
        full, deep = unet_step(unet, sample, timestep, tokens)
        shallow, same = unet_step(unet, sample, timestep, tokens, deep)
        other, _ = unet_step(unet, sample, timestep, tokens, torch.zeros_like(deep))
    assert torch.equal(full, plain) and same is deep
    torch.testing.assert_close(shallow, plain)
    assert not torch.allclose(other, plain, atol=1e-3)  # the deep features do matter


UNUSUAL = {
    "center_input_sample": {"center_input_sample": True},
    "time_embedding_act_fn": {"time_embedding_act_fn": "silu"},
    "AttnUpBlock2D": {"up_block_types": ("CrossAttnUpBlock2D", "AttnUpBlock2D")},
}


@pytest.mark.parametrize("part", UNUSUAL)
def test_a_unet_with_more_in_it_than_a_step_knows_is_refused(part):
    with pytest.raises(ValueError, match=f"reuse_interval: must be 1 for a UNet with {part}"):
        check_reusable(make_unet(**UNUSUAL[part]))


@pytest.mark.slow
def test_compiled_denoisers_give_what_plain_ones_give(text_pipeline, generate):
    plain = generate(text_pipeline, "a red ball", num_inference_steps=4, reuse_interval=2).frames
    text_pipeline.compile_denoisers(fullgraph=True)
    compiled = generate(text_pipeline, "a red ball", num_inference_steps=4, reuse_interval=2).frames
    torch.testing.assert_close(compiled, plain, atol=1e-3, rtol=1e-3)


def test_motion_transformer_with_its_own_deep_residual_is_the_full_one():
    torch.manual_seed(0)
    model = CMDMotionTransformer(num_layers=4, dim=16, num_heads=2, text_dim=6).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, timestep, pooled = torch.randn(2, 8, 4, 8), torch.tensor([500, 500]), torch.randn(2, 6)
    frame = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        plain = model(x, timestep, frame, pooled).sample
        step = partial(motion_step, model, x, timestep, model.embed_content_frame(x, frame), pooled, None)
        full, residual = step()
        again, same = step(residual)
        without, _ = step(torch.zeros_like(residual))
    assert torch.equal(full, plain) and same is residual
    torch.testing.assert_close(again, plain)
    assert not torch.allclose(without, plain, atol=1e-3)  # the inner blocks do matter


@pytest.mark.parametrize("layers", [1, 2])
def test_a_motion_transformer_without_inner_blocks_has_nothing_to_reuse(layers):
    torch.manual_seed(0)
    model = CMDMotionTransformer(num_layers=layers, dim=16, num_heads=2).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, timestep, frame = torch.randn(2, 8, 4, 8), torch.tensor([500, 500]), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        fixed = model.embed_content_frame(x, frame)
        full, residual = motion_step(model, x, timestep, fixed, None, None)
        again, _ = motion_step(model, x, timestep, fixed, None, None, residual)
    assert not residual.any() and torch.equal(again, full) and torch.equal(full, model(x, timestep, frame).sample)


def test_reuse_with_interval_one_changes_nothing_and_larger_ones_do(text_pipeline, generate):
    plain = generate(text_pipeline, "a red ball", num_inference_steps=4).frames
    same = generate(text_pipeline, "a red ball", num_inference_steps=4, reuse_interval=1).frames
    reused = generate(text_pipeline, "a red ball", num_inference_steps=4, reuse_interval=2).frames
    assert torch.equal(plain, same)
    assert not torch.equal(plain, reused)
    assert (plain - reused).abs().mean() < 0.1


def count_rows(module, calls):
    return module.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))


def test_outside_the_interval_a_step_runs_the_condition_only(text_pipeline, generate):
    content, motion = [], []
    hooks = [
        count_rows(text_pipeline.unet, content),
        count_rows(text_pipeline.motion_transformer.latent_embed, motion),
    ]
    generate(text_pipeline, "a red ball", num_inference_steps=4, guidance_interval=(0.4, 0.8))
    for hook in hooks:
        hook.remove()
    assert content == motion == [1, 2, 2, 1]  # timesteps 999, 749, 499, 249


@pytest.mark.parametrize(("scales", "expected"), [((1.0, 1.0), 1), ((3.0, 1.0), 2), ((1.0, 2.0), 2)])
def test_the_negative_prompt_is_encoded_only_where_it_counts(text_pipeline, generate, scales, expected):
    calls = []
    hook = text_pipeline.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    generate(text_pipeline, "a red ball", guidance_scale=scales[0], motion_guidance_scale=scales[1])
    hook.remove()
    assert len(calls) == expected


def test_an_empty_interval_is_no_guidance(text_pipeline, generate):
    arguments = {"num_inference_steps": 3}
    never = generate(text_pipeline, "a red ball", guidance_interval=(1.0, 1.0), **arguments).frames
    none = generate(text_pipeline, "a red ball", guidance_scale=1.0, motion_guidance_scale=1.0, **arguments).frames
    assert torch.equal(never, none)


def test_a_batch_equals_its_singles_with_all_shortcuts(text_pipeline, generate):
    text_pipeline.use_preset("fast")
    arguments = {"num_inference_steps": 5, "guidance_interval": (0.3, 0.9)}
    both = generate(text_pipeline, ["a red ball", "a blue square"], seed=[3, 4], **arguments).frames
    for number, prompt in enumerate(["a red ball", "a blue square"]):
        single = generate(text_pipeline, [prompt], seed=[3 + number], **arguments).frames
        torch.testing.assert_close(both[number], single[0], atol=1e-5, rtol=1e-4)


def distil(pipeline):
    """What a distillation run exports, but for the weights."""
    for part in ("content_scheduler", "motion_scheduler"):
        setattr(pipeline, part, LCMScheduler.from_config(getattr(pipeline, part).config))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_saved_with_the_pipeline(pipeline, name, generate, condition, tmp_path):
    if name == "turbo":
        distil(pipeline)
    pipeline.use_preset(name)
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.content_scheduler) is type(pipeline.content_scheduler)
    steps = []
    hook = count_rows(loaded.motion_transformer.latent_embed, steps)
    first = generate(pipeline, **condition, num_inference_steps=None)
    second = generate(loaded, **condition, num_inference_steps=None)
    hook.remove()
    torch.testing.assert_close(first.frames, second.frames, atol=1e-6, rtol=0)
    assert loaded.sampling == pipeline.sampling
    assert len(steps) == PRESETS[name].num_inference_steps
    assert (second.content_frames is not None) == PRESETS[name].decode_content_frame


@pytest.mark.parametrize("name", ["quality", "fast"])
def test_a_preset_keeps_what_the_weights_learned_to_undo(text_pipeline, generate, name):
    bridge = {"kind": "bridge", "kappa": 2.0}
    text_pipeline.sampling = text_pipeline.sampling.laid_over({"motion": {"process": bridge}})
    text_pipeline.use_preset(name)
    assert text_pipeline.sampling.motion.process.kappa == 2.0 and text_pipeline.sampling.content.process is None
    frames = generate(text_pipeline, "a red ball").frames
    plain = text_pipeline.sampling.laid_over({"motion": {"process": None}})
    assert frames.isfinite().all() and not torch.equal(
        generate(text_pipeline, "a red ball", sampling=plain).frames, frames
    )


def test_quality_after_fast_is_quality(text_pipeline, generate):
    before = generate(text_pipeline, "a red ball").frames
    text_pipeline.use_preset("fast")
    assert isinstance(text_pipeline.motion_scheduler, DPMSolverMultistepScheduler)
    text_pipeline.use_preset("quality")
    assert isinstance(text_pipeline.motion_scheduler, DDIMScheduler)
    assert torch.equal(generate(text_pipeline, "a red ball").frames, before)


def test_turbo_is_for_distilled_models_and_the_others_are_not(text_pipeline, generate):
    with pytest.raises(ValueError, match="this model was not distilled for few steps; turbo needs one that is"):
        text_pipeline.use_preset("turbo")
    distil(text_pipeline)
    for name in ("quality", "fast"):
        with pytest.raises(ValueError, match="this model was distilled for few steps; only the preset turbo fits"):
            text_pipeline.use_preset(name)
    text_pipeline.use_preset("turbo")
    rows = []
    hook = count_rows(text_pipeline.unet, rows)
    one = generate(text_pipeline, ["a red ball"], seed=[3], num_inference_steps=None).frames
    hook.remove()
    assert rows == [1] * 4  # no guidance
    both = generate(text_pipeline, ["a blue square", "a red ball"], seed=[4, 3], num_inference_steps=None).frames
    torch.testing.assert_close(both[1], one[0], atol=1e-5, rtol=1e-4)


SAMPLERS = {
    "ddim": ddim,
    "multistep": multistep,
    "jumps": jumps,
    "lcm": partial(lcm, original_inference_steps=20),
    "distilled": partial(with_schedule, LCMScheduler),
}


@pytest.mark.parametrize("config", [{"beta_schedule": "scaled_linear", "beta_end": 0.013}, {}])
def test_samplers_keep_schedule_and_prediction_type_also_on_disk(config, tmp_path):
    plain = DDIMScheduler(**config, prediction_type="sample", clip_sample=False, timestep_spacing="leading")
    for name, make in SAMPLERS.items():
        sampler = make(plain)
        sampler.save_pretrained(tmp_path / name)
        loaded = type(sampler).from_pretrained(tmp_path / name)
        for each in (sampler, loaded):
            each.set_timesteps(10)
            assert torch.equal(each.alphas_cumprod, plain.alphas_cumprod)
            assert each.config.prediction_type == "sample" and each.config.timestep_spacing == "leading"
        assert torch.equal(sampler.timesteps, loaded.timesteps)


def test_the_fast_preset_asks_for_noise_as_noise(text_pipeline):
    """From the last timestep on, whatever spacing the scheduler came with, which stays."""
    for part in ("content_scheduler", "motion_scheduler"):
        setattr(
            text_pipeline,
            part,
            DDIMScheduler.from_config(text_pipeline.content_scheduler.config, timestep_spacing="leading"),
        )
    text_pipeline.use_preset("fast")
    for part in (text_pipeline.content, text_pipeline.motion):
        own = text_pipeline.components[part.scheduler]
        assert isinstance(own, DPMSolverMultistepScheduler) and own.config.timestep_spacing == "leading"
        solver, steps = text_pipeline.sampling.content.ready(part)
        assert isinstance(solver, SchedulerSolver) and steps[0].t == 999 and len(steps) == 20
    text_pipeline.use_preset("quality")
    assert text_pipeline.sampling.content.spacing is None
    assert text_pipeline.sampling.content.ready(text_pipeline.content)[1][0].t == 980


def test_the_steps_of_a_model_that_knows_its_starts_start_there(text_pipeline):
    how = ModelSampling(starts=(999, 849, 399))
    solver, steps = how.ready(text_pipeline.content)
    assert how.num_inference_steps == 3 and [step.t for step in steps] == [999, 849, 399]
    assert solver.scheduler.config.solver_order == 1
    assert is_distilled(how, text_pipeline.content_scheduler)
    with pytest.raises(ValueError, match="num_inference_steps: 4, but the model was distilled for 3 steps"):
        ModelSampling(starts=(999, 849, 399), num_inference_steps=4)
    with pytest.raises(ValueError, match=r"starts: \[399, 999\] are not falling timesteps in 0\.\.999"):
        ModelSampling(starts=(399, 999)).check(text_pipeline.content, text_pipeline.unet)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval: (0.8, 0.2) is not a pair of rising numbers in 0..1"),
        ({"guidance_interval": (0.0, 1.5)}, "guidance_interval: (0.0, 1.5)"),
        ({"guidance_interval": 0.5}, "guidance_interval: 0.5 is not a pair"),
        ({"reuse_interval": 0}, "reuse_interval: 0 is not a whole number of at least 1"),
    ],
)
def test_wrong_shortcuts_are_refused(text_pipeline, generate, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(text_pipeline, "a red ball", **arguments)


def test_unknown_preset_and_reuse_in_a_dit_are_refused(text_pipeline, class_pipeline, generate):
    with pytest.raises(ValueError, match="preset: 'warp' is none of quality, fast, turbo"):
        text_pipeline.use_preset("warp")
    with pytest.raises(ValueError, match="reuse_interval: 2, but a DiTTransformer2DModel allows only 1"):
        generate(class_pipeline, class_labels=1, reuse_interval=2)
