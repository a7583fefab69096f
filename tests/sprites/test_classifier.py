"""Classifiers of sprites: what they look at, what the stage teaches them, and that they learn it."""

import pytest
import torch

from cmd_video.sprites.classifier import SpriteClassifier
from cmd_video.sprites.scenes import COLORS, SHAPES, SpritesDataset
from cmd_video.training.build import build_stage
from cmd_video.training.components import build_components
from cmd_video.training.config import TrainConfig
from cmd_video.training.data import collate

KINDS = {"action": 16, "appearance": 18}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_clips(kind):
    torch.manual_seed(0)
    model = SpriteClassifier(kind, KINDS[kind], widths=(8, 16)).eval()
    clips = torch.rand(3, 3, 4, 16, 24) * 2 - 1
    with torch.no_grad():
        logits, features = model(clips)
        singles = torch.cat([model(clip[None])[1] for clip in clips])
        backwards = model(clips.flip(2))[1]
    rows = 3 if kind == "action" else 12
    assert logits.shape == (rows, KINDS[kind]) and features.shape == (rows, 16)
    torch.testing.assert_close(features, singles)
    by_clip = features.view(3, -1, 16).mean(dim=1) - backwards.view(3, -1, 16).mean(dim=1)
    assert (by_clip.abs().max() < 1e-6) == (kind == "appearance")  # frames one by one know no order


def test_the_appearance_names_shapes_and_colors():
    dataset = SpritesDataset(40, 16, 16, 2, pairs=0.5)
    for number in range(40):
        names = {name for item in dataset.scene(number).objects for name in (item.shape, item.color)}
        marked = dataset[number]["appearance"]
        assert {name for name, mark in zip((*SHAPES, *COLORS), marked, strict=True) if mark} == names


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_a_few_clips(kind, tiny_config, tmp_path):
    config = tiny_config("classifier", tmp_path / "unused")
    stage = build(config, kind=kind, num_classes=KINDS[kind], widths=[16, 16, 16])
    dataset = TrainConfig.model_validate(config).data.open()
    batch = collate([{**dataset[number], "number": number} for number in range(6)])
    before = stage.validate(batch)
    optimizer = torch.optim.Adam(stage.parameters(), 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        stage(batch).backward()
        optimizer.step()
    after = stage.validate(batch)
    assert before["accuracy"] < 0.7 and after["accuracy"] > 0.9 and after["loss"] < before["loss"] / 5
    assert stage.sample_grid(batch).shape == (3, 6 * 16, 6 * 16)


def test_it_needs_ground_truth(tiny_config, tmp_path):
    config = tiny_config("classifier", tmp_path / "run", data={"kind": "class_folder", "path": "clips"})
    with pytest.raises(ValueError, match=r"data\.kind: 'class_folder', appearance is learned from sprites"):
        build(config, kind="appearance", num_classes=18)
    stage = build(config, kind="action", num_classes=3)
    with pytest.raises(ValueError, match="class_label: 3 in the data, the model knows 0 to 2"):
        stage({"video": torch.zeros(2, 3, 4, 16, 16), "class_label": torch.tensor([0, 3])})


def build(config, **classifier):
    config["components"]["classifier"]["config"] = {"widths": [8, 8], **classifier}
    checked = TrainConfig.model_validate(config)
    return build_stage(checked, build_components(checked.components))


def test_a_run_leaves_a_classifier(tiny_config, tmp_path, run_train, read_log):
    run_train(tiny_config("classifier", tmp_path / "run"))
    assert any("accuracy" in row for row in read_log(tmp_path / "run", "validation"))
    model = SpriteClassifier.from_pretrained(tmp_path / "run" / "pipeline" / "classifier")
    assert model.config.kind == "action"
