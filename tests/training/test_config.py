"""Configurations: the shipped ones load, every mistake is named, and no field is without effect."""

import ast
import inspect
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from cmd_video.diffusion.guidance import ClassifierFree
from cmd_video.pipelines.sampling import ModelSampling, Sampling
from cmd_video.section import Section, by_kind
from cmd_video.sprites.section import SpritesData
from cmd_video.techniques import TECHNIQUES, technique
from cmd_video.training import config as config_module
from cmd_video.training.components import build_components
from cmd_video.training.config import (
    DATA,
    PLAIN_OBJECTIVES,
    STAGES,
    ComponentConfig,
    TrainConfig,
    VideoData,
    find_data,
    find_objective,
    load_config,
)

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
    ("autoencoder", "objective.snr_power", 1, "objective.snr_power"),  # of another kind of objective
    ("image", "objective.reconstruction", "l2", "objective.reconstruction"),
    ("classifier", "objective.condition_dropout", 0.1, "objective.condition_dropout"),
    ("autoencoder", "validation.clips", 3, "validation.clips"),
    ("autoencoder", "data.frames", 3, "data.frames"),
    ("autoencoder", "validation.data.frames", 3, "validation.data.frames"),
    ("autoencoder", "components.vae.folder", "x", "components.vae.folder"),
    ("autoencoder", "components.decoder", {"class": "CMDAutoencoder"}, "'decoder' is none of vae, autoencoder"),
    # wrong types
    ("autoencoder", "loop.steps", "many", "loop.steps"),
    ("autoencoder", "loop.steps", 1.5, "loop.steps"),
    ("autoencoder", "loop", 3, "loop"),
    ("autoencoder", "optimizer.lr", None, "optimizer.lr"),
    ("autoencoder", "optimizer.betas", [0.9], "optimizer.betas"),
    ("image", "objective.train_text_encoder", "maybe", "objective.train_text_encoder"),
    ("image", "objective", 3, "objective"),
    ("image", "data", "sprites", "data"),
    ("autoencoder", "components", [], "components"),
    ("autoencoder", "components.vae", "AutoencoderKL", "components.vae"),
    ("autoencoder", "components.vae.config", [1], "components.vae.config"),
    ("autoencoder", "output_dir", None, "output_dir"),
    ("autoencoder", "data.motion_weights", {"jump": 2.0}, "unknown motion 'jump'; known: left, right"),
    # out of range
    ("autoencoder", "data.motion_weights", {"orbit": 0}, "data.motion_weights.orbit"),
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
    ("image", "objective.snr_power", -0.5, "objective.snr_power"),
    ("image", "objective.logit_normal", [0.0, 0.0], "objective.logit_normal"),
    ("image", "validation.guidance_scale", 0.5, "validation.guidance_scale"),
    ("image", "seed", -1, "seed"),
    ("image", "data.num_frames", 0, "data.num_frames"),
    ("image", "data.split", "test", "data.split"),
    ("image", "data.kind", "sprite", "'sprite' is none of manifest, captioned_folder"),
    ("image", "objective.kind", "denoise", "'denoise' is none of"),
    ("image", "objective.disturb", {"kind": "lora"}, "objective.disturb"),
    ("motion", "objective.process", {"kind": "consistency"}, "objective.process"),
    ("motion", "objective.process", {"kind": "bridge", "kappa": 0}, "objective.process.kappa"),
    ("image", "stage", "distil", "stage"),
    ("autoencoder", "output_dir", "", "output_dir"),
    ("autoencoder", "seed", 10**30, "seed"),
    ("autoencoder", "data.seed", 10**30, "data.seed"),
    ("autoencoder", "data.seed", -1, "data.seed"),
    ("autoencoder", "validation.data.length", 10**30, "validation.data.length"),
    ("autoencoder", "validation.num_clips", 10**30, "validation.num_clips"),
    ("autoencoder", "loop.batch_size", 10**30, "loop.batch_size"),
    ("autoencoder", "loop.batch_size", 10**9, "loop.batch_size"),
    ("autoencoder", "components.vae.revision", "main", "`revision` is of a hub id"),
    ("autoencoder", "loop.steps", 10**30, "loop.steps"),
    ("autoencoder", "loop.timeout_s", 0, "loop.timeout_s"),
    ("autoencoder", "optimizer.lr", float("inf"), "optimizer.lr"),
    ("autoencoder", "optimizer.lr", 1e20, "optimizer.lr"),
    ("autoencoder", "optimizer.weight_decay", float("inf"), "optimizer.weight_decay"),
    ("autoencoder", "optimizer.max_grad_norm", float("nan"), "optimizer.max_grad_norm"),
    ("autoencoder", "optimizer.betas", [0.9, 1.0], "optimizer.betas"),
    ("autoencoder", "optimizer.betas", [-0.1, 0.9], "optimizer.betas"),
    ("autoencoder", "objective.anchor_weight", float("inf"), "objective.anchor_weight"),
    ("image", "objective.log_sigma_normal", [float("nan"), 1], "objective.log_sigma_normal"),
    ("image", "validation.guidance_scale", float("inf"), "validation.guidance_scale"),
    ("autoencoder", "data", {"kind": "captioned_folder", "path": "x", "height": 10**9}, "data.height"),
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
    ("content", "objective.kind", "reconstruction", "'reconstruction' is not for the stage 'content'"),
    ("autoencoder", "objective.kind", "denoising", "'denoising' is not for the stage 'autoencoder'"),
    ("image", "objective.content_frame_noise", 0.1, "objective.content_frame_noise: only the motion model"),
    ("content", "objective.content_frame_noise", 0.1, "objective.content_frame_noise: only the motion model"),
    (
        "motion",
        "objective",
        {"logit_normal": [0, 1], "log_sigma_normal": [0, 1]},
        "log_sigma_normal: not together with logit_normal",
    ),
    ("content", "components.teacher", {"path": "x"}, "components.teacher: it belongs to"),
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
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                found |= {argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)}
    return frozenset(found)


def sections() -> dict[str, type[Section]]:
    """Of a run, of its data, of every objective and technique, of sampling."""
    classes = [value for value in vars(config_module).values() if inspect.isclass(value)]
    found = {value.__name__: value for value in classes if issubclass(value, Section) and value is not Section}
    found |= {kind: PLAIN_OBJECTIVES[kind] for kind in PLAIN_OBJECTIVES} | {kind: find_data(kind) for kind in DATA}
    found |= {kind: technique(kind).settings for kind in TECHNIQUES}
    return found | {value.__name__: value for value in (Sampling, ModelSampling, ClassifierFree)}


@pytest.mark.parametrize("section", sections().values(), ids=sections())
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


# --- sections by kind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_an_objective_without_a_kind_is_the_stages_own(stage):
    assert find_objective(STAGES[stage].objective).model_fields["kind"].default == STAGES[stage].objective


def test_the_kind_of_an_objective_is_written_down(tiny_config, tmp_path):
    config = TrainConfig.model_validate(tiny_config("image", tmp_path))
    assert type(config.objective) is PLAIN_OBJECTIVES["denoising"] and config.objective.kind == "denoising"
    assert config.model_dump(mode="json")["objective"]["kind"] == "denoising"
    assert config.model_dump()["data"]["kind"] == "sprites"
    del (values := tiny_config("autoencoder", tmp_path))["objective"]
    assert TrainConfig.model_validate(values).objective == PLAIN_OBJECTIVES["reconstruction"]()


def test_every_kind_of_data_knows_its_own_kind_and_opens():
    for kind in DATA:
        section = find_data(kind)
        assert kind in str(section.model_fields["kind"].annotation) and callable(section.open)
    with pytest.raises(ValueError, match="kind: 'film' is none of manifest, captioned_folder"):
        find_data("film")


class Round(Section):
    kind: str = "round"
    radius: float = 1.0


class Flat(Section):
    kind: str = "flat"


class Holder(Section):
    shape: Annotated[Any, by_kind({"round": Round, "flat": Flat}.__getitem__, default="flat")]
    only_round: Annotated[Any, by_kind(lambda kind: {"round": Round}[kind])] | None = None


def test_a_section_is_looked_up_by_its_kind():
    assert Holder(shape={"kind": "round", "radius": 2}).shape == Round(radius=2.0)
    assert Holder(shape={}).shape == Flat()
    given = Round(radius=3.0)
    assert Holder(shape=given).shape is given
    held = Holder(shape=given)
    assert held.model_dump() == {"shape": {"kind": "round", "radius": 3.0}, "only_round": None}
    assert Holder.model_validate_json(held.model_dump_json()) == held
    with pytest.raises(ValidationError, match=r"shape\.radius"):
        Holder(shape={"kind": "round", "radius": "wide"})
    with pytest.raises(ValidationError, match=r"shape\.radius\s+Extra"):
        Holder(shape={"kind": "flat", "radius": 2})
    with pytest.raises(ValidationError, match="kind: not given"):
        Holder(shape=given, only_round={"radius": 2})


def test_a_section_of_another_kind_is_refused_as_an_object_too():
    with pytest.raises(ValidationError, match="kind: 'feature_reuse' is none of"):
        ModelSampling(guidance=technique("feature_reuse").settings(interval=2))
    with pytest.raises(ValidationError, match="kind: 'guidance_interval' is none of"):
        ModelSampling(wraps=(technique("guidance_interval").settings(),))
    with pytest.raises(ValidationError, match="Flat is no"):
        Holder(shape=Flat(kind="round"))
