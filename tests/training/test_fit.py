"""Components and clips that do not fit each other: one line that names the field, before anything is written."""

import json
import re

import pytest
from diffusers import DDIMScheduler

from cmd_video.cli import main
from cmd_video.training.config import TrainConfig, load_config

C = "components"
MISFITS = [  # stage, field, value, how the message begins
    # clips
    ("autoencoder", "data.height", 17, "data.height: 17 is no multiple"),
    ("autoencoder", "validation.data.width", 18, "validation.data.width: 18 is no multiple"),
    ("image", "data.width", 15, "data.width: 15 is no multiple"),
    ("motion", "data.num_frames", 3, "data.num_frames: 3 is no multiple"),
    ("motion", "data.height", 20, "data.height in latents: 10 is no multiple"),
    # between components
    ("autoencoder", f"{C}.vae.config.patch_size", 5, "components.autoencoder.config.in_channels: 12, must be 75"),
    ("image", f"{C}.vae.config.patch_size", 4, "components.unet.config.in_channels: 12, must be 48"),
    ("autoencoder", f"{C}.autoencoder.config.in_channels", 4, "components.autoencoder.config.in_channels: 4"),
    ("image", f"{C}.unet.config.in_channels", 4, "components.unet.config.in_channels: 4, must be 12"),
    ("content", f"{C}.unet.config.out_channels", 4, "components.unet.config.out_channels: 4, must be 12"),
    (
        "image",
        f"{C}.unet.config.cross_attention_dim",
        32,
        "components.unet.config.cross_attention_dim: 32, must be 16",
    ),
    ("motion", f"{C}.motion_transformer.config.latent_channels", 8, "components.motion_transformer.config.latent_ch"),
    ("motion", f"{C}.motion_transformer.config.content_channels", 4, "components.motion_transformer.config.content_"),
    ("motion", f"{C}.motion_transformer.config.text_dim", 8, "components.motion_transformer.config.text_dim: 8"),
    (
        "motion",
        f"{C}.motion_transformer.config.autoencoder_patch_size",
        4,
        "components.motion_transformer.config.auto",
    ),
    ("motion", f"{C}.motion_transformer.config.content_patch_size", 3, "data.height in latents: 8 is no multiple"),
    ("motion", f"{C}.motion_transformer.config.patch_size", 3, "data.num_frames: 4 is no multiple"),
    ("content", "validation.num_inference_steps", 1001, "validation.num_inference_steps: 1001"),
    ("content", f"{C}.content_scheduler.config.beta_end", 3.0, "components.content_scheduler.config: betas from"),
    # numbers that no component can have
    *(
        (stage, f"{C}.{part}.config.{name}", value, f"components.{part}.config.{name}: ")
        for stage, part, name, value in [
            ("autoencoder", "autoencoder", "dim", 0),
            ("autoencoder", "autoencoder", "dim", -8),
            ("autoencoder", "autoencoder", "num_heads", 0),
            ("autoencoder", "autoencoder", "encoder_depth", -1),
            ("autoencoder", "autoencoder", "num_frames", "x"),
            ("autoencoder", "autoencoder", "sample_size", 8),
            ("autoencoder", "autoencoder", "dim", 10**30),
            ("autoencoder", "vae", "patch_size", 0),
            ("autoencoder", "vae", "scaling_factor", float("nan")),
            ("motion", "motion_transformer", "num_heads", 0),
            ("motion", "motion_transformer", "dim", -8),
            ("motion", "motion_scheduler", "num_train_timesteps", 0),
            ("motion", "motion_scheduler", "num_train_timesteps", -3),
            ("image", "unet", "block_out_channels", []),
            ("image", "unet", "block_out_channels", 16),
            ("image", "unet", "layers_per_block", 0),
            ("image", "unet", "layers_per_blok", 1),
            ("image", "text_encoder", "hidden_siz", 16),
            ("image", "text_encoder", "num_attention_heads", 0),
            ("image", "text_encoder", "hidden_size", "x"),
            ("image", "tokenizer", "vocab", 600),
            ("classifier", "classifier", "widths", []),
        ]
    ),
    # what a library says of its own arguments
    *(
        (stage, f"{C}.{part}.config.{name}", value, f"components.{part}.config")
        for stage, part, name, value in [
            ("image", "content_scheduler", "beta_schedule", "round"),
            ("image", "content_scheduler", "prediction_type", "noise"),
            ("image", "text_encoder", "num_attention_heads", 3),
            ("image", "unet", "down_block_types", ["DownBlock2D"]),
            ("image", "unet", "down_block_types", ["DownBlock7D", "DownBlock2D"]),
            ("image", "unet", "norm_num_groups", 7),
            ("motion", "motion_transformer", "num_heads", 5),
        ]
    ),
]


def with_value(config: dict, dotted: str, value: object) -> dict:
    *parents, leaf = dotted.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section[leaf] = value
    return config


@pytest.mark.parametrize(
    ("stage", "field", "value", "message"), MISFITS, ids=[f"{s}-{f}-{str(v)[:12]}" for s, f, v, _ in MISFITS]
)
def test_a_misfit_is_one_line_and_leaves_nothing(stage, field, value, message, tiny_config, capsys, tmp_path):
    config = with_value(tiny_config(stage, tmp_path / "run"), field, value)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert main(["train", str(path)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].removeprefix("error: ").startswith(message), lines
    assert not (tmp_path / "run").exists()


def test_what_no_check_knows_is_found_by_the_first_clips(tiny_config, run_train, monkeypatch, tmp_path):
    from cmd_video.training.autoencoder_stage import AutoencoderStage

    def broken(self, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 5x6)")

    for name in ("forward", "validate"):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="components: they, .* mat1 and mat2"):
            patch.setattr(AutoencoderStage, name, broken)
            run_train(tiny_config("autoencoder", tmp_path / "run"))
        assert not (tmp_path / "run").exists()


def test_sizes_of_validation_that_are_others_are_said(tiny_config, build_tiny, caplog):
    build_tiny("autoencoder", data__height=32)
    assert "validation.data: height, width, num_frames are [16, 16, 4], those of data [32, 16, 4]" in caplog.messages
    caplog.clear()
    build_tiny("autoencoder")
    assert not caplog.messages


# --- the noise a network knows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", ["content_scheduler", "scheduler"])
@pytest.mark.parametrize(("before", "now"), [("v_prediction", "epsilon"), ("epsilon", "v_prediction")])
def test_a_network_goes_on_with_what_it_predicts(before, now, beside, tiny_config, tiny_components, tmp_path):
    from cmd_video.training.build import build_stage
    from cmd_video.training.components import build_components

    tiny_components("unet")["unet"].save_pretrained(tmp_path / "model" / "unet")
    DDIMScheduler(prediction_type=before).save_pretrained(tmp_path / "model" / beside)

    def build(kind: str):
        config = tiny_config("image", tmp_path / "run")
        config["components"]["unet"] = {"path": str(tmp_path / "model")}
        config["components"]["content_scheduler"] = {"class": "DDIMScheduler", "config": {"prediction_type": kind}}
        config = TrainConfig.model_validate(config)
        return build_stage(config, build_components(config.components, ["a red ball"] * 3))

    build(before)
    message = rf"components\.content_scheduler\.config\.prediction_type: '{now}', but components\.unet .* '{before}'"
    with pytest.raises(ValueError, match=message):
        build(now)


# --- files -----------------------------------------------------------------------------------------------------------

FILES = {
    "a key twice": ("stage: image\nloop: {steps: 3}\nloop: {steps: 4}\n", "line 3: 'loop' is given twice"),
    "a key twice, inside": ("stage: image\nloop: {steps: 3, steps: 4}\n", "line 2: 'steps' is given twice"),
    "JSON, a key twice": ('{"stage": "image",\n "stage": "motion"}', "line 2: 'stage' is given twice"),
    "YAML, deep": ("[" * 20_000, "nested too deep"),
    "JSON, deep": ("[" * 20_000 + "]" * 20_000, "nested too deep"),
    "mappings, deep": ('{"a":' * 20_000 + "1" + "}" * 20_000, "nested too deep"),
    "not UTF-8": ("stage: \xe9", "not valid YAML"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_say_too_much(kind, tmp_path, capsys):
    text, message = FILES[kind]
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="latin-1")
    assert main(["train", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ") and re.search(message, line)


def test_what_is_merged_into_a_section_may_be_given_anew(tiny_config, tmp_path):
    text = "a: &a {x: 1, y: 2}\nb: {c: &c {<<: *a, y: 3}}\nd: {<<: *c, x: 4}\n"
    from cmd_video.training.config import read_yaml

    (tmp_path / "x.yaml").write_text(text)
    assert read_yaml(tmp_path / "x.yaml") == {
        "a": {"x": 1, "y": 2}, "b": {"c": {"x": 1, "y": 3}}, "d": {"x": 4, "y": 3},
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config("image", tmp_path)))
    assert load_config(path, ["loop.steps=5"]).loop.steps == 5
    with pytest.raises(ValueError, match="given twice"):
        load_config(path, ["loop={steps: 5, steps: 6, batch_size: 4}"])
