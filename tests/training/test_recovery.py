"""Recovery of pruned denoisers: what each step trains, what comes out, and that a stopped run goes on unchanged.

Over 400 lines: the tiny parts of every kind of denoiser that is recovered are listed here.
"""

import json

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, T5Config, T5EncoderModel

from cmd_video.pruning.importance import measure_importance, removable_units
from cmd_video.pruning.pruned_models import PRUNED_CLASSES, prune
from cmd_video.pruning.selection import BlockSelection
from cmd_video.training.build import build_stage
from cmd_video.training.components import build_components, load_autoencoder
from cmd_video.training.config import ComponentConfig, TrainConfig
from cmd_video.training.encode import encode_run

REMOVED = {  # component, and which class of it
    "unet": ("down_blocks.0.layers.1", "up_blocks.1.layers.1"),
    "motion_transformer": ("blocks.1",),
    "video_model": ("down_blocks.0.layers.1", "up_blocks.1.layers.1"),
    "video_model/animatediff": ("down_blocks.0.layers.1", "up_blocks.1.layers.1"),
    "video_model/videocrafter": ("down_blocks.0.layers.1", "up_blocks.1.layers.1"),
    "video_model/wan": ("blocks.1",),
    "video_model/wan-flow": ("blocks.1",),
    "video_model/ltx": ("transformer_blocks.1",),
    "video_model/hunyuan": ("transformer_blocks.1", "single_transformer_blocks.0"),
    "video_model/svd": ("down_blocks.0.layers.1", "up_blocks.1.layers.1"),
}
CHANGES = {"unet": {"layers_per_block": 2}, "motion_transformer": {"num_layers": 3}}
TEXT = ("tokenizer", "text_encoder")
PARTS = {
    "unet": ("vae", "autoencoder", "content_scheduler", *TEXT),
    "motion_transformer": ("vae", "autoencoder", "motion_scheduler", "motion_tokenizer", "motion_text_encoder"),
    "video_model": ("vae", "video_scheduler", *TEXT),
    "video_model/svd": ("svd/vae", "svd/image_encoder", "svd/video_scheduler"),
}
FLOW = ("video_model/wan-flow", "video_model/ltx", "video_model/hunyuan")
VIDEO_UNET = {
    "class": "UNet3DConditionModel",
    "config": {
        "in_channels": 12, "out_channels": 12, "block_out_channels": [16, 32], "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
        "cross_attention_dim": 16, "attention_head_dim": 4, "norm_num_groups": 8,
    },
}  # fmt: skip
ANIMATEDIFF = {
    "class": "UNetMotionModel",
    "config": {
        **VIDEO_UNET["config"], "down_block_types": ["CrossAttnDownBlockMotion", "DownBlockMotion"],
        "up_block_types": ["UpBlockMotion", "CrossAttnUpBlockMotion"], "motion_max_seq_length": 8,
        "num_attention_heads": 2, "motion_num_attention_heads": 2,
    },
}  # fmt: skip
del ANIMATEDIFF["config"]["attention_head_dim"]
WAN = {
    "class": "WanTransformer3DModel",
    "config": {
        "patch_size": [1, 2, 2], "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 12,
        "out_channels": 12, "text_dim": 16, "freq_dim": 8, "ffn_dim": 32, "num_layers": 3, "rope_max_seq_len": 32,
    },
}  # fmt: skip
LTX = {
    "class": "LTXVideoTransformer3DModel",
    "config": {
        "in_channels": 12, "out_channels": 12, "num_attention_heads": 2, "attention_head_dim": 8,
        "cross_attention_dim": 16, "num_layers": 3, "caption_channels": 16,
    },
}  # fmt: skip
HUNYUAN = {
    "class": "HunyuanVideoTransformer3DModel",
    "config": {
        "in_channels": 12, "out_channels": 12, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 2,
        "num_single_layers": 2, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "guidance_embeds": True,
        "text_embed_dim": 16, "pooled_projection_dim": 16, "rope_axes_dim": [2, 4, 4],
    },
}  # fmt: skip
SVD = {
    "class": "UNetSpatioTemporalConditionModel",
    "config": {
        "in_channels": 8, "out_channels": 4, "block_out_channels": [32, 64], "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"], "cross_attention_dim": 16,
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24, "num_attention_heads": [2, 4],
    },
}  # fmt: skip
EDM = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "use_karras_sigmas": True,
    "sigma_min": 0.002, "sigma_max": 700.0, "timestep_type": "continuous", "prediction_type": "v_prediction",
}  # fmt: skip


def component_of(name):
    return name.partition("/")[0]


@pytest.fixture(scope="module")
def parts(tiny_config, tmp_path_factory):
    """Every component of the tiny configurations, and a video model's."""
    known = {**tiny_config("content", "-")["components"], **tiny_config("motion", "-")["components"]}
    videos = {
        "video_model": VIDEO_UNET, "video_model/videocrafter": {**VIDEO_UNET, "class": "VideoCrafterUNet"},
        "video_model/animatediff": ANIMATEDIFF, "video_model/wan": WAN,
        "video_model/wan-flow": WAN, "video_model/ltx": LTX, "video_model/hunyuan": HUNYUAN, "video_model/svd": SVD,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("svd")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=16)
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(vision).save_pretrained(folder)
    sizes = {"block_out_channels": (32, 32), "layers_per_block": 1, "down_block_types": ("DownEncoderBlock2D",) * 2}
    svd = {
        "svd/vae": {"class": "AutoencoderKLTemporalDecoder", "config": sizes},
        "svd/image_encoder": {"path": str(folder)},
        "svd/video_scheduler": {"class": "EulerDiscreteScheduler", "config": EDM},
        "flow": {"class": "FlowMatchEulerDiscreteScheduler", "config": {"shift": 3.0}},
    }
    return {**known, **videos, **svd, "video_scheduler": known["content_scheduler"]}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, parts):
    """Name of a denoiser -> folders of a tiny teacher with awake weights and its student."""
    made = {}
    for name in REMOVED:
        part = {**parts[name], "config": {**parts[name]["config"], **CHANGES.get(name, {})}}
        component = component_of(name)
        teacher = build_components({component: ComponentConfig.model_validate(part)})[component]
        torch.manual_seed(1)
        for parameter in teacher.parameters():
            if not parameter.detach().any():
                torch.nn.init.normal_(parameter, std=0.1)
        folder = tmp_path_factory.mktemp(name.replace("/", "-"))
        teacher.save_pretrained(folder / "teacher")
        for number, removed in enumerate((REMOVED[name], ())):
            selection = BlockSelection(type(teacher).__name__, removed, "test")
            prune(teacher, selection).save_pretrained(folder / ("student", "whole")[number])
        made[name] = folder
    return made


@pytest.fixture
def distill_config(pruned, parts, tiny_config):
    """`distill_config("unet", output, student="whole", content_weight=0.0)`: a configuration as a dict."""

    def make(name, output, student="student", **recovery):
        component = component_of(name)
        chosen = {part.rpartition("/")[2]: parts[part] for part in PARTS.get(name, PARTS[component])}
        if name in FLOW:
            chosen["video_scheduler"] = parts["flow"]
        chosen |= {
            component: {"path": str(pruned[name] / student)},
            "teacher": {"path": str(pruned[name] / "teacher")},
        }
        objective = {"kind": "vdmini_recovery", **recovery}
        stage = {"unet": "content", "motion_transformer": "motion", "video_model": "video"}[component]
        return {**tiny_config("content", output), "stage": stage, "components": chosen, "objective": objective}

    return make


@pytest.fixture
def tiny_stage(distill_config, tmp_path, batch_of):
    """`tiny_stage("unet", first=4)`: the stage, and the batch that begins with sample 4."""

    def make(name, student="student", first=0, **recovery):
        config = TrainConfig.model_validate(distill_config(name, tmp_path, student, **recovery))
        stage = build_stage(config, build_components(config.components, ["a red ball"] * 3))
        return stage, {**batch_of(config.data.open(), range(first, first + 4)), "step": first // 4}

    return make


@pytest.mark.parametrize("name", REMOVED)
def test_golden_losses(name, golden, distill_config, run_train, read_log, tmp_path):
    config = distill_config(name, tmp_path / "run", content_weight=0.1, adversarial_weight=0.5)
    config["loop"] |= {"steps": 20, "validate_every": 20, "checkpoint_every": 20}
    config["validation"]["num_samples"] = 0
    run_train(config)
    golden(f"losses/distill, {name}", [line["loss"] for line in read_log(tmp_path / "run", "train")])


@pytest.mark.parametrize("name", [name for name in REMOVED if component_of(name) == "video_model"])
def test_golden_losses_of_whole_video_models(name, golden, distill_config, run_train, read_log, tmp_path):
    config = distill_config(name, tmp_path / "run", student="whole")
    config |= {"stage": "video", "objective": {}}
    config["loop"] |= {"steps": 20, "validate_every": 20, "checkpoint_every": 20}
    config["validation"]["num_samples"] = 0
    del config["components"]["teacher"]
    run_train(config)
    golden(f"losses/video, {name}", [line["loss"] for line in read_log(tmp_path / "run", "train")])


@pytest.mark.parametrize("name", REMOVED)
def test_steps_alternate_between_student_and_discriminator(name, tiny_stage):
    for first, learns in ((0, "student"), (4, "discriminator"), (8, "student")):
        stage, batch = tiny_stage(name, first=first)
        stage(batch).backward()
        touched = {
            "discriminator" if key.startswith("discriminator.") else "student"
            for key, value in stage.named_parameters()
            if value.grad is not None and value.grad.any()
        }
        assert touched == {learns}
        assert stage.frozen["teacher"] is stage.objective.teacher
        assert not any(value.requires_grad for value in stage.frozen["teacher"].parameters())
        groups = stage.parameter_groups()
        assert [group["lr_scale"] for group in groups] == [1.0, 10.0]
        assert sum(len(group["params"]) for group in groups) == len(list(stage.parameters()))


@pytest.mark.parametrize("name", REMOVED)
def test_a_whole_student_has_nothing_to_recover(name, tiny_stage):
    stage, batch = tiny_stage(name, "whole", adversarial_weight=0.0)
    task, _ = tiny_stage(name, "whole", adversarial_weight=0.0, content_weight=0.0)
    assert stage.objective.discriminator is None and not stage.objective.modules
    with torch.no_grad():
        assert stage.eval().validate(batch)["distance_to_teacher"] == 0
        torch.testing.assert_close(stage(batch), task.eval()(batch))  # ICD is zero
        pruned_stage, _ = tiny_stage(name, adversarial_weight=0.0)
        pruned_task, _ = tiny_stage(name, adversarial_weight=0.0, content_weight=0.0)
        assert pruned_stage.eval()(batch) > pruned_task.eval()(batch)
        assert pruned_stage.validate(batch)["distance_to_teacher"] > 0


@pytest.mark.parametrize("name", REMOVED)
def test_blocks_are_measured_and_clips_are_drawn(name, tiny_stage):
    stage, batch = tiny_stage(name, "whole", adversarial_weight=0.0)
    stage.config = stage.config.model_copy(
        update={"validation": stage.config.validation.model_copy(update={"num_inference_steps": 2})}
    )
    model = stage.eval().model
    (row,) = measure_importance(model, [stage.noisy_batch(batch)], removable_units(model)[:1])
    assert row.loss != 0 and row.content > 0 and (row.motion > 0) == (name != "unet") and 0 < row.flops < 1
    with torch.no_grad():
        first, again = (stage.draw_samples(batch) for _ in range(2))
        few = stage.draw_samples({key: value[:2] for key, value in batch.items() if key != "step"})
        taught = stage.draw_samples(batch, stage.objective.teacher)  # the same weights
    assert torch.equal(first, taught)
    assert (
        first.shape == stage.denoiser.example(batch)[0].shape and first.isfinite().all() and torch.equal(first, again)
    )
    torch.testing.assert_close(first[:2], few, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", REMOVED)
def test_a_run_keeps_the_student_and_resumes_bit_for_bit(name, distill_config, tmp_path, run_train, differences):
    config = distill_config(name, tmp_path / "whole")
    folder = run_train(config)
    saved = json.loads((folder / component_of(name) / "config.json").read_text())
    assert saved["_class_name"] in {cls.__name__ for cls in PRUNED_CLASSES.values()}
    assert saved["removed_blocks"] == list(REMOVED[name])
    assert not (folder / "teacher").exists() and not (folder / "discriminator").exists()
    config["optimizer"] = {**config["optimizer"], "schedule": "constant", "warmup_steps": 0}
    run_train({**config, "output_dir": str(tmp_path / "one")})
    for steps in (3, 8):
        run_train({**config, "output_dir": str(tmp_path / "two"), "loop": {**config["loop"], "steps": steps}})
    different = differences(tmp_path / "one", tmp_path / "two")
    assert [key for key in different if key.startswith(("model/", "ema/", "optimizer/", "pipeline/"))] == []


def test_the_distance_of_features_keeps_a_student_near_its_teacher(distill_config, tmp_path, run_train, read_log):
    distances = []
    for weight in (0.0, 50.0):
        run = tmp_path / f"weight {weight}"
        config = distill_config("motion_transformer", run, content_weight=weight, adversarial_weight=0.0)
        config["loop"] = {**config["loop"], "steps": 40, "validate_every": 40, "checkpoint_every": 40}
        run_train(config)
        distances.append(read_log(run, "validation")[-1]["distance_to_teacher"])
    assert distances[1] < 0.9 * distances[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("other class", "components.teacher: a CMDMotionTransformer, the student needs a UNet2DConditionModel"),
        ("other size", "components.teacher.norm_num_groups: 4, the student has 8"),
    ],
)
def test_a_teacher_that_does_not_fit(change, message, pruned, parts, distill_config, tmp_path):
    config = distill_config("unet", tmp_path)
    if change == "other class":
        config["components"]["teacher"] = {"path": str(pruned["motion_transformer"] / "teacher")}
    else:
        part = parts["unet"]
        options = {**part["config"], "norm_num_groups": 4, "layers_per_block": 2}
        config["components"]["teacher"] = {"class": part["class"], "config": options}
    config = TrainConfig.model_validate(config)
    with pytest.raises(ValueError, match=message):
        build_stage(config, build_components(config.components, ["a"]))


def test_a_teacher_of_the_same_configuration_fits_however_it_was_made(parts, distill_config, tmp_path):
    config = distill_config("unet", tmp_path)
    part = parts["unet"]
    config["components"]["teacher"] = {"class": part["class"], "config": {**part["config"], "layers_per_block": 2}}
    config = TrainConfig.model_validate(config)
    build_stage(config, build_components(config.components, ["a"]))


def test_what_would_do_nothing_is_refused(distill_config, tiny_config, tmp_path):
    for stage, field, value in (
        ("autoencoder", "snr_power", 0.3),
        ("content", "anchor_weight", 1.0),
        ("content", "content_weight", 0.2),
    ):
        with pytest.raises(ValueError, match=rf"objective\.{field}\s+Extra inputs are not permitted"):
            TrainConfig.model_validate(tiny_config(stage, tmp_path, **{f"objective__{field}": value}))
    with pytest.raises(ValueError, match=r"objective\.content_frame_noise: only the motion model"):
        TrainConfig.model_validate(tiny_config("image", tmp_path, objective__content_frame_noise=0.1))
    with pytest.raises(ValueError, match=r"objective\.train_text_encoder\s+Extra inputs are not permitted"):
        TrainConfig.model_validate(distill_config("unet", tmp_path, train_text_encoder=True))
    config = distill_config("unet", tmp_path)
    with pytest.raises(ValueError, match=r"components\.teacher: it belongs to"):
        TrainConfig.model_validate({**config, "objective": {}})
    latents = {"kind": "latents", "path": "-"}
    with pytest.raises(ValueError, match=r"data\.kind: the stage 'video' trains on clips here"):
        TrainConfig.model_validate({**distill_config("video_model", tmp_path), "data": latents})


@pytest.mark.parametrize("stage", ["image", "autoencoder", "classifier", "decoder"])
def test_what_is_recovered_is_a_denoiser_of_clips(stage, distill_config, tmp_path):
    with pytest.raises(ValueError, match=rf"objective\.kind: 'vdmini_recovery' is not for the stage '{stage}'"):
        TrainConfig.model_validate({**distill_config("unet", tmp_path), "stage": stage})


@pytest.mark.parametrize("kind", ["consistency", "distribution_matching"])
def test_few_steps_are_not_learned_by_video_models(kind, distill_config, tmp_path):
    config = {**distill_config("video_model", tmp_path), "objective": {"kind": kind, "num_segments": 2}}
    with pytest.raises(ValueError, match=rf"objective\.kind: '{kind}' is not for the stage 'video'"):
        TrainConfig.model_validate(config)


@pytest.mark.parametrize(("name", "stage"), [("unet", "content"), ("video_model", "video")])
def test_what_is_recovered_and_from_what_must_be_there(name, stage, distill_config, tmp_path):
    for missing in (name, "teacher"):
        config = distill_config(name, tmp_path)
        del config["components"][missing]
        with pytest.raises(ValueError, match=f"components: the stage '{stage}' needs '{missing}'"):
            TrainConfig.model_validate(config)


def test_the_log_has_each_loss_by_itself(distill_config, tmp_path, run_train, read_log):
    run_train(distill_config("motion_transformer", tmp_path / "run"))
    lines = read_log(tmp_path / "run", "train")
    student, discriminator = lines[0::2], lines[1::2]
    assert all({"task", "content", "adversarial"} <= set(line) and "r1" not in line for line in student)
    assert all({"discriminator", "r1"} <= set(line) and "task" not in line for line in discriminator)
    for line in student:
        assert line["loss"] == pytest.approx(line["task"] + 0.1 * line["content"] + line["adversarial"], rel=1e-4)


def test_settings_of_a_discriminator_that_is_not_there(distill_config, tmp_path):
    config = distill_config("unet", tmp_path, adversarial_weight=0.0, r1_weight=5.0)
    with pytest.raises(ValueError, match="r1_weight: it belongs to the discriminator"):
        TrainConfig.model_validate(config)
    with pytest.raises(ValueError, match="noise_mean"):
        TrainConfig.model_validate(distill_config("unet", tmp_path, noise_mean=float("nan")))


def test_a_pruned_autoencoder_learns_on_and_encodes(tiny_config, run_train, tmp_path):
    part = tiny_config("autoencoder", tmp_path / "run")["components"]["autoencoder"]
    part = ComponentConfig.model_validate({**part, "config": {**part["config"], "decoder_depth": 2}})
    teacher = build_components({"autoencoder": part})["autoencoder"]
    student = prune(teacher, BlockSelection("CMDAutoencoder", ("decoder.blocks.0",), "by hand"))
    student.save_pretrained(tmp_path / "small")
    config = tiny_config("autoencoder", tmp_path / "run")
    config["components"]["autoencoder"] = {"path": str(tmp_path / "small")}
    folder = run_train(config)
    autoencoder, _ = load_autoencoder(folder)
    assert type(autoencoder).__name__ == "PrunedCMDAutoencoder"
    assert encode_run(tmp_path / "run", tmp_path / "latents", 2) == 2


def test_a_video_model_with_half_precision_resumes_bit_for_bit(distill_config, tmp_path, run_train, differences):
    """Conditions that a step remembers are the same in training, in validation and after a stop."""
    config = distill_config("video_model/wan-flow", tmp_path / "one", adversarial_weight=0.0)
    config["optimizer"] = {**config["optimizer"], "schedule": "constant", "warmup_steps": 0}
    config["loop"] = {**config["loop"], "precision": "bf16", "batch_size": 1, "steps": 6, "validate_every": 2}
    config["loop"]["checkpoint_every"] = 2
    config["objective"] = {**config["objective"], "condition_dropout": 0.5}
    run_train(config)
    for steps in (2, 4, 6):
        run_train({**config, "output_dir": str(tmp_path / "two"), "loop": {**config["loop"], "steps": steps}})
    different = differences(tmp_path / "one", tmp_path / "two", 6)
    assert [key for key in different if key.startswith(("model/", "ema/", "optimizer/", "pipeline/"))] == []


def test_text_encoders_that_are_not_trained_here(distill_config, tiny_config, tmp_path):
    t5 = T5EncoderModel(T5Config(vocab_size=600, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    t5.save_pretrained(tmp_path / "t5")
    for config, message in (
        (distill_config("unet", tmp_path), "text_encoder: a T5EncoderModel belongs to a video_model"),
        (
            {**distill_config("video_model", tmp_path), "stage": "video", "objective": {"train_text_encoder": True}},
            "train_text_encoder: only a CLIPTextModel is trained here",
        ),
    ):
        config["components"] = {**config["components"], "text_encoder": {"path": str(tmp_path / "t5")}}
        if config["stage"] == "video":
            del config["components"]["teacher"]
        config = TrainConfig.model_validate(config)
        with pytest.raises(ValueError, match=message):
            build_stage(config, build_components(config.components, ["a red ball"] * 3))


@pytest.mark.parametrize("name", ["unet", "motion_transformer", "video_model/wan"])
def test_gradient_checkpointing_computes_the_same_again(
    name, distill_config, run_train, assert_close_logs, monkeypatch, tmp_path
):
    calls, checkpoint = [], torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    for on in (False, True):
        config = distill_config(name, tmp_path / str(on))
        config["loop"] |= {"steps": 3, "gradient_checkpointing": on}
        run_train(config)
        assert bool(calls) is on
    assert_close_logs(tmp_path / "False", tmp_path / "True", 1e-3)


@pytest.mark.parametrize("name", ["video_model/wan", "video_model/hunyuan"])
def test_a_teacher_in_half_precision(name, distill_config, run_train, read_log, tmp_path):
    losses = []
    for dtype in ("float32", "bfloat16"):
        config = distill_config(name, tmp_path / dtype)
        config["components"]["teacher"] |= {"dtype": dtype}
        config["loop"] |= {"steps": 2, "precision": "bf16"}
        run_train(config)
        losses.append(read_log(tmp_path / dtype, "train")[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("change", ["precision", "component", "stage"])
def test_half_precision_where_it_may_not_be(change, distill_config, tmp_path):
    config = distill_config("motion_transformer" if change == "stage" else "video_model/wan", tmp_path)
    config["components"]["vae" if change == "component" else "teacher"] |= {"dtype": "bfloat16"}
    config["loop"] |= {"precision": "fp32" if change == "precision" else "bf16"}
    with pytest.raises(ValueError, match=r"components\.\w+\.dtype: bfloat16 is for teacher, text_encoder"):
        TrainConfig.model_validate(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["video_model/wan", "video_model/hunyuan"])
def test_processes_share_a_teacher_in_half_precision(name, distill_config, forked_train, read_log, tmp_path):
    logs = []
    for processes in (1, 2):
        config = distill_config(name, tmp_path / str(processes))
        config["components"]["teacher"] |= {"dtype": "bfloat16"}
        parallel = {"shard": 2} if processes == 2 else None
        config["loop"] |= {"steps": 2, "precision": "bf16", "parallel": parallel, "gradient_checkpointing": True}
        assert forked_train(config, processes=processes).codes == [0] * processes
        logs.append([line["loss"] for line in read_log(tmp_path / str(processes), "train")])
    assert logs[0] == pytest.approx(logs[1], rel=0.05)
