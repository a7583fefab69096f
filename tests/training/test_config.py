"""Configurations: the shipped ones load, every mistake is named, and no field is without effect."""

import ast
import inspect
import json
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from cmd_video.training import config as config_module
from cmd_video.training.components import build_components
from cmd_video.training.config import ComponentConfig, Section, SpritesData, TrainConfig, VideoData, load_config

ROOT = Path(__file__).parents[2]
SOURCE = Path(config_module.__file__).parents[1]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
ABSENT = object()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_configurations_load(path):
    config = load_config(path)
    assert config == TrainConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json", by_alias=True))))


def test_there_are_shipped_configurations():
    assert len(SHIPPED) >= 2


def change(config: dict, dotted: str, value: object) -> dict:
    *parents, leaf = dotted.split(".")
    section = config
    for parent in parents:
        section = section.setdefault(parent, {})
    if value is ABSENT:
        del section[leaf]
    else:
        section[leaf] = value
    return config


MISTAKES = [  # stage, field, value, what the message says
    # unknown keys, at every level
    ("autoencoder", "stages", "image", "stages"),
    ("autoencoder", "loop.step", 3, "loop.step"),
    ("autoencoder", "optimizer.learning_rate", 1e-3, "optimizer.learning_rate"),
    ("autoencoder", "objective.loss", "l2", "objective.loss"),
    ("autoencoder", "validation.clips", 3, "validation.clips"),
    ("autoencoder", "data.frames", 3, "data.sprites.frames"),
    ("autoencoder", "validation.data.frames", 3, "validation.data.sprites.frames"),
    ("autoencoder", "components.vae.folder", "x", "components.vae.folder"),
    ("autoencoder", "components.decoder", {"class": "CMDAutoencoder"}, "'decoder' is none of vae, autoencoder"),
    # wrong types
    ("autoencoder", "loop.steps", "many", "loop.steps"),
    ("autoencoder", "loop.steps", 1.5, "loop.steps"),
    ("autoencoder", "loop", 3, "loop"),
    ("autoencoder", "optimizer.lr", None, "optimizer.lr"),
    ("autoencoder", "optimizer.betas", [0.9], "optimizer.betas"),
    ("autoencoder", "objective.train_text_encoder", "maybe", "objective.train_text_encoder"),
    ("autoencoder", "components", [], "components"),
    ("autoencoder", "components.vae", "AutoencoderKL", "components.vae"),
    ("autoencoder", "components.vae.config", [1], "components.vae.config"),
    ("autoencoder", "output_dir", None, "output_dir"),
    ("autoencoder", "data.motion_weights", {"jump": 2.0}, "unknown motion 'jump'; known: left, right"),
    # out of range
    ("autoencoder", "data.motion_weights", {"orbit": 0}, "data.sprites.motion_weights.orbit"),
    ("autoencoder", "loop.steps", 0, "loop.steps"),
    ("autoencoder", "loop.batch_size", -4, "loop.batch_size"),
    ("autoencoder", "loop.num_workers", -1, "loop.num_workers"),
    ("autoencoder", "loop.ema_decay", 1.0, "loop.ema_decay"),
    ("autoencoder", "loop.keep_last", 0, "loop.keep_last"),
    ("autoencoder", "loop.precision", "fp16", "loop.precision"),
    ("autoencoder", "optimizer.lr", 0, "optimizer.lr"),
    ("autoencoder", "optimizer.schedule", "linear", "optimizer.schedule"),
    ("autoencoder", "optimizer.max_grad_norm", 0, "optimizer.max_grad_norm"),
    ("autoencoder", "objective.reconstruction", "lpips", "objective.reconstruction"),
    ("autoencoder", "objective.motion_latents_noise", -0.1, "objective.motion_latents_noise"),
    ("image", "objective.condition_dropout", 1.0, "objective.condition_dropout"),
    ("image", "objective.min_snr_gamma", 0, "objective.min_snr_gamma"),
    ("image", "validation.guidance_scale", 0.5, "validation.guidance_scale"),
    ("image", "seed", -1, "seed"),
    ("image", "data.num_frames", 0, "data.sprites.num_frames"),
    ("image", "data.split", "test", "data.sprites.split"),
    ("image", "data.kind", "sprite", "data"),
    ("image", "stage", "distil", "stage"),
    # missing
    ("image", "stage", ABSENT, "stage"),
    ("image", "data", ABSENT, "data"),
    ("image", "data.kind", ABSENT, "data"),
    ("image", "validation.data", ABSENT, "validation.data"),
    ("image", "loop.batch_size", ABSENT, "loop.batch_size"),
    ("autoencoder", "components.autoencoder", ABSENT, "'autoencoder' needs 'autoencoder'"),
    ("image", "components.unet", ABSENT, "'image' needs 'unet'"),
    ("content", "components.autoencoder", ABSENT, "'content' needs 'autoencoder'"),
    ("motion", "components.motion_scheduler", ABSENT, "'motion' needs 'motion_scheduler'"),
    # what does not go together
    ("image", "components.unet.class", "CMDAutoencoder", "components.unet.class"),
    ("image", "components.content_scheduler.class", "PNDMScheduler", "components.content_scheduler.class"),
    ("image", "components.unet", {"path": "a", "class": "UNet2DConditionModel"}, "components.unet"),
    ("image", "components.unet", {}, "either `path` or `class`"),
    ("image", "components.unet", {"path": "a", "config": {"in_channels": 3}}, "`config` belongs to a fresh component"),
    ("image", "components.tokenizer", ABSENT, "tokenizer and text_encoder come together"),
    ("motion", "components.motion_tokenizer", ABSENT, "motion_tokenizer and motion_text_encoder come together"),
    ("image", "loop.gradient_accumulation_steps", 3, "loop.batch_size: 4 is not divisible"),
    ("autoencoder", "data", {"kind": "latents", "path": "x"}, "data.kind"),
    ("autoencoder", "validation.data", {"kind": "latents", "path": "x"}, "data.kind"),
]


@pytest.mark.parametrize(("stage", "field", "value", "message"), MISTAKES)
def test_a_mistake_is_named(stage, field, value, message, tiny_config, tmp_path):
    config = tiny_config(stage, tmp_path)
    TrainConfig.model_validate(config)
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(change(config, field, value))
    assert message in str(caught.value) and caught.value.error_count() == 1


@pytest.mark.parametrize(("stage", "prefix"), [("image", ""), ("motion", "motion_")])
def test_training_a_text_encoder_needs_one(stage, prefix, tiny_config, tmp_path):
    config = tiny_config(stage, tmp_path)
    del config["components"][f"{prefix}tokenizer"], config["components"][f"{prefix}text_encoder"]
    with pytest.raises(ValidationError, match=rf"objective\.train_text_encoder.*{prefix}text_encoder"):
        TrainConfig.model_validate(config)


def test_a_configuration_cannot_be_changed(tiny_config, tmp_path):
    config = TrainConfig.model_validate(tiny_config("image", tmp_path))
    with pytest.raises(ValidationError, match="frozen"):
        config.loop.steps = 3


@pytest.mark.parametrize(
    ("name", "component", "message"),
    [
        ("autoencoder", {"class": "CMDAutoencoder", "config": {"width": 3}}, r"\.autoencoder\.config.*width"),
        ("autoencoder", {"class": "CMDAutoencoder", "config": {"dim": 30}}, "dim: 30"),
        ("tokenizer", {"class": "CLIPTokenizer", "config": {"vocab_size": 100}}, r"components\.tokenizer.*vocab_size"),
        ("tokenizer", {"class": "CLIPTokenizer"}, r"components\.tokenizer.*no captions"),
        ("unet", {"path": "/no/such/folder"}, r"components\.unet\.path"),
        ("unet", {"path": "no-such-folder"}, r"components\.unet\.path"),
    ],
)
def test_a_component_that_cannot_be_built(name, component, message):
    captions = None if component == {"class": "CLIPTokenizer"} else ["a ball"]
    with pytest.raises(ValueError, match=message):
        build_components({name: ComponentConfig.model_validate(component)}, captions)


def test_a_folder_with_another_component(tiny_components, tmp_path):
    tiny_components("autoencoder")["autoencoder"].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"components\.unet\.path: .* holds CMDAutoencoder"):
        build_components({"unet": ComponentConfig(path=str(tmp_path))})
    assert build_components({"autoencoder": ComponentConfig(path=str(tmp_path))})["autoencoder"].config.dim == 24


def test_a_model_that_ships_is_named():
    vae = build_components({"vae": ComponentConfig(path="default")})["vae"]
    assert vae.config.patch_size == 4


def test_weights_stay_when_their_file_is_overwritten(tiny_components, tmp_path):
    tiny_components("autoencoder")["autoencoder"].save_pretrained(tmp_path)
    model = build_components({"autoencoder": ComponentConfig(path=str(tmp_path))})["autoencoder"]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(b"\xff" * file.stat().st_size)  # in place, as cp does
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 515), ("max_position_embeddings", 11)])
def test_a_text_encoder_too_small_for_its_tokenizer(field, value, tiny_config, tmp_path):
    config = TrainConfig.model_validate(
        change(tiny_config("image", tmp_path), f"components.text_encoder.config.{field}", value)
    )
    with pytest.raises(ValueError, match=rf"components\.text_encoder\.config\.{field}: {value} is less than"):
        build_components(config.components, ["a red ball"] * 3)


def write(folder: Path, config: dict) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_overrides(tiny_config, tmp_path):
    path = write(tmp_path, tiny_config("image", tmp_path))
    config = load_config(
        path,
        [
            "loop.steps=20",
            "optimizer.lr=1e-3",
            "optimizer.max_grad_norm=null",
            "objective.min_snr_gamma=5",
            "validation.data.length=7",
            "components.unet.config.block_out_channels=[8, 16]",
            "output_dir=a=b",
        ],
    )
    assert (config.loop.steps, config.optimizer.lr, config.optimizer.max_grad_norm) == (20, 1e-3, None)
    assert (config.objective.min_snr_gamma, config.validation.data.length) == (5.0, 7)
    assert config.components["unet"].config["block_out_channels"] == [8, 16]
    assert config.output_dir == "a=b" and config.loop.batch_size == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.steps", "expected section.field=value"),
        ("loop.steps.more=3", "steps is not a section"),
        ("loop.stepz=3", r"loop\.stepz"),
        ("loop.steps=[3", "not valid YAML"),
        ("loop.steps=", r"loop\.steps"),
        ("lop.steps=3", "lop"),
    ],
)
def test_overrides_that_are_wrong(override, message, tiny_config, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, tiny_config("image", tmp_path)), [override])


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "3", "\t"])
def test_files_that_are_no_configuration(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_config(path)
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "none.yaml")


@cache
def names_read() -> frozenset[str]:
    """Attributes that the source reads anywhere, the definitions of the configuration aside."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
    return frozenset(found)


def sections() -> list[type[Section]]:
    classes = [value for value in vars(config_module).values() if inspect.isclass(value)]
    return [value for value in classes if issubclass(value, Section) and value is not Section]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_is_read(section):
    fields = set(section.model_fields)
    if section is SpritesData:
        from cmd_video.sprites.scenes import SpritesDataset

        assert fields - {"kind", "render"} == inspect.signature(SpritesDataset).parameters.keys()
    elif section is VideoData:
        from cmd_video.data.datasets import VideoDataset, open_video_dataset

        parameters = [inspect.signature(function).parameters.keys() for function in (open_video_dataset, VideoDataset)]
        assert fields <= parameters[0] | parameters[1] and "fps" in fields
    else:
        assert fields - names_read() == set()


def test_the_check_of_the_fields_can_fail():
    assert "learning_rate_of_nothing" not in names_read() and "gradient_accumulation_steps" in names_read()
