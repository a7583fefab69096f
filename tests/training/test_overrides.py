"""Fields changed from outside: where they go, and what is wrong with them."""

from pathlib import Path

import pytest
import yaml

from cmd_video.training.config import load_config

ROOT = Path(__file__).parents[2]


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
            "objective.snr_power=0.5",
            "validation.data.length=7",
            "components.unet.config.block_out_channels=[8, 16]",
            "output_dir=a=b",
        ],
    )
    assert (config.loop.steps, config.optimizer.lr, config.optimizer.max_grad_norm) == (20, 1e-3, None)
    assert (config.objective.snr_power, config.validation.data.length) == (0.5, 7)
    assert config.components["unet"].config["block_out_channels"] == [8, 16]
    assert config.output_dir == "a=b" and config.loop.batch_size == 4


def both(config, field):
    return [getattr(data, field) for data in (config.data, config.validation.data)]


@pytest.mark.parametrize("recipe", ["webvid-sd21/content.yaml", "own-clips/autoencoder.yaml", "ucf101/motion.yaml"])
def test_an_override_of_what_both_sets_have_alike_holds_for_both(recipe):
    path = ROOT / "configs" / recipe
    before = load_config(path)
    config = load_config(path, ["data.height=128", "data.fps=6", "data.path=elsewhere", "data.seed=3"])
    assert both(config, "height") == [128, 128] and both(config, "fps") == [6, 6]
    assert config.data.path == "elsewhere" and config.data.seed == 3
    assert config.validation.data.seed == before.validation.data.seed
    if before.validation.data.path != before.data.path:
        assert config.validation.data.path == before.validation.data.path
    for overrides in (
        ["data.height=128", "validation.data.height=64"],
        ["validation.data.height=64", "data.height=128"],
    ):
        assert both(load_config(path, overrides), "height") == [128, 64]


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
