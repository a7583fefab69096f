"""A class has one number in a run: that of its name in the training data, or in the model that it goes on from."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cmd_video.data.latents import LatentsDataset
from cmd_video.data.video_file import write_video
from cmd_video.training import loop
from cmd_video.training.classes import known_names, validation_numbers
from cmd_video.training.config import ComponentConfig, TrainConfig
from cmd_video.training.encode import encode_run
from cmd_video.training.export import export_pipeline

CLASSES = ("a_up", "b_right", "c_down", "d_left")
SIZE = {"height": 16, "width": 16, "num_frames": 4}


def write_set(folder: Path, names: tuple[str, ...], kind: str) -> dict:
    """A set of a clip of each class, as the `data` of a run."""
    rows = []
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        frames = np.random.default_rng(number).integers(0, 256, (4, 16, 16, 3), np.uint8)
        write_video(frames, folder / name / "x.mp4", 8)
        rows.append(json.dumps({"path": f"{name}/x.mp4", "prompt": f"the class {name}", "label": name}))
    (folder / "m.jsonl").write_text("\n".join(rows))
    path = folder / "m.jsonl" if kind == "manifest" else folder
    return {"kind": kind, "path": str(path), **SIZE}


@pytest.fixture
def classifier(tiny_config, tmp_path):
    """`classifier(data, validation)`: configuration of a run that tells four classes."""

    def make(data: dict, validation: dict, run: str = "run", **changes):
        config = tiny_config(
            "classifier", tmp_path / run, data=data, validation__data=validation, loop__steps=2, **changes
        )
        config["components"]["classifier"] = {
            "class": "SpriteClassifier",
            "config": {"widths": [8, 8, 8, 16], "num_classes": 4},
        }
        return config

    return make


@pytest.fixture
def batches(monkeypatch):
    """Label of each class in the validation batches of the runs that follow."""
    seen: dict[str, int] = {}
    plain = loop.fixed_batches

    def watched(*arguments, **named):
        found = plain(*arguments, **named)
        for batch in found:
            if len(arguments) > 3:  # those of validation
                seen.update(zip(batch["prompt"], batch["class_label"].tolist(), strict=True))
        return found

    monkeypatch.setattr(loop, "fixed_batches", watched)
    return seen


@pytest.mark.parametrize(
    "kinds", [("class_folder", "class_folder"), ("manifest", "manifest"), ("class_folder", "manifest")]
)
@pytest.mark.parametrize("held", [CLASSES, CLASSES[1:], CLASSES[2:3]])
def test_validation_goes_by_the_names_of_training(classifier, run_train, batches, tmp_path, held, kinds):
    data = write_set(tmp_path / "train", CLASSES, kinds[0])
    validation = write_set(tmp_path / "held", held, kinds[1])
    folder = run_train(classifier(data, validation))
    assert len(batches) == len(held)
    for prompt, number in batches.items():
        name = prompt.removeprefix("the class ").replace(" ", "_")
        assert number == CLASSES.index(name)
    for place in (tmp_path / "run", folder):
        assert json.loads((place / "class_names.json").read_text()) == list(CLASSES)


def test_a_class_that_training_lacks_is_an_error(classifier, run_train, tmp_path):
    data = write_set(tmp_path / "train", CLASSES[:3], "class_folder")
    validation = write_set(tmp_path / "held", CLASSES, "class_folder")
    with pytest.raises(ValueError, match="validation.data: class 'd_left' is none of a_up, b_right, c_down") as error:
        run_train(classifier(data, validation))
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "checkpoints").exists()


def test_a_text_model_is_told_no_classes(tiny_config, run_train, tmp_path):
    data = write_set(tmp_path / "train", CLASSES[:3], "class_folder")
    validation = write_set(tmp_path / "held", CLASSES[1:], "class_folder")
    folder = run_train(tiny_config("image", tmp_path / "run", data={**data, "num_frames": 1}, loop__steps=1,
                                   validation__data={**validation, "num_frames": 1}))  # fmt: skip
    assert not (folder / "class_names.json").exists()


def test_a_run_that_goes_on_from_a_model_takes_its_numbers(classifier, run_train, batches, tmp_path):
    whole = write_set(tmp_path / "train", CLASSES, "class_folder")
    first = run_train(classifier(whole, whole))
    part = write_set(tmp_path / "part", CLASSES[2:], "manifest")
    config = classifier(part, part, "second")
    config["components"]["classifier"] = {"path": str(first)}
    batches.clear()
    second = run_train(config)
    assert batches == {"the class c_down": 2, "the class d_left": 3}
    assert json.loads((second / "class_names.json").read_text()) == list(CLASSES)
    other = write_set(tmp_path / "other", ("e_new",), "class_folder")
    config = classifier(other, part, "third")
    config["components"]["classifier"] = {"path": str(first / "classifier")}
    with pytest.raises(ValueError, match=r"^data: class 'e_new' is none of .* \(the model's classes\)"):
        run_train(config)


def test_sprites_and_their_files_are_the_same_classes(tiny_config, run_train, batches, tmp_path):
    from cmd_video.sprites.make import write_sprites
    from cmd_video.sprites.words import MOTIONS

    path = write_sprites(tmp_path / "sprites", 6, 16, 16, 4)
    held = {"kind": "manifest", "path": str(path), **SIZE, "train": False}
    run_train(
        tiny_config("classifier", tmp_path / "run", validation__data=held, validation__num_clips=6, loop__steps=1)
    )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert batches == {row["prompt"]: MOTIONS.index(row["label"]) for row in rows}
    assert json.loads((tmp_path / "run" / "class_names.json").read_text()) == list(MOTIONS)


def test_parts_that_know_other_classes_are_refused(tmp_path):
    for name, text in (("a", '["x", "y"]'), ("b", '["y", "x"]'), ("c", "{}")):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "class_names.json").write_text(text)

    def known(unet: str, teacher: str) -> list[str]:
        parts = {"unet": unet, "teacher": teacher}
        components = {name: ComponentConfig(path=str(tmp_path / path)) for name, path in parts.items()}
        return known_names(SimpleNamespace(output_dir=str(tmp_path / "run"), components=components))

    assert known("a", "a/unet") == ["x", "y"]
    with pytest.raises(ValueError, match="components: classes of unet are .*, of teacher"):
        known("a", "b/unet")
    with pytest.raises(ValueError, match="c/class_names.json: holds no names of classes"):
        known("a", "c")


def test_pruning_measures_by_the_same_numbers(classifier, run_train, tmp_path):
    data = write_set(tmp_path / "train", CLASSES, "class_folder")
    held = write_set(tmp_path / "held", CLASSES[1:], "class_folder")
    config = TrainConfig.model_validate(classifier(data, held))
    opened = config.validation.data.open()
    assert validation_numbers(config, 4, opened) == {0: 1, 1: 2, 2: 3}  # of training data, for no model knows names
    assert validation_numbers(config, 0, opened) == {}
    folder = run_train(classifier(data, held))
    changed = classifier({**data, "path": str(tmp_path / "gone")}, held, "another")
    changed["components"]["classifier"] = {"path": str(folder)}
    assert validation_numbers(TrainConfig.model_validate(changed), 4, opened) == {0: 1, 1: 2, 2: 3}


def test_numbers_stay_numbers(classifier, run_train, batches, tmp_path):
    data = write_set(tmp_path / "train", CLASSES, "manifest")
    path = tmp_path / "train" / "m.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps({**row, "label": 3 - number}) for number, row in enumerate(rows)))
    run_train(classifier(data, data))
    assert sorted(batches.values()) == [0, 1, 2, 3] and batches["the class d_left"] == 0
    assert not (tmp_path / "run" / "class_names.json").exists()


# --- latents, export -------------------------------------------------------------------------------------------------

DIT = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 12, "out_channels": 12, "num_layers": 1,
    "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 4, "norm_num_groups": 1,
}  # fmt: skip


def class_config(tiny_config, stage: str, run: Path, autoencoder: Path, data: dict, validation: dict) -> dict:
    """A run of a model that is told classes alone."""
    config = tiny_config(stage, run, data=data, validation__data=validation, loop__steps=1, objective={})
    parts = {name: part for name, part in config["components"].items() if "text" not in name and "token" not in name}
    parts["vae"] = parts["autoencoder"] = {"path": str(autoencoder)}
    if stage == "content":
        parts["unet"] = {"class": "DiTTransformer2DModel", "config": DIT}
    else:
        changed = {**parts["motion_transformer"]["config"], "text_dim": 0, "num_classes": 4}
        parts["motion_transformer"] = {"class": "CMDMotionTransformer", "config": changed}
    return {**config, "components": parts}


@pytest.fixture
def autoencoder(tiny_config, run_train, tmp_path):
    data = write_set(tmp_path / "train", CLASSES, "class_folder")
    held = write_set(tmp_path / "held", CLASSES[1:], "class_folder")
    run_train(tiny_config("autoencoder", tmp_path / "ae", data=data, validation__data=held, loop__steps=1))
    return tmp_path / "ae", data, held


def test_latents_and_the_exported_model_keep_the_names(autoencoder, tiny_config, run_train, batches, tmp_path):
    ae, data, held = autoencoder
    for split, folder in (("train", "l/train"), ("validation", "l/held")):
        encode_run(ae, tmp_path / folder, 100, split)
    assert LatentsDataset(tmp_path / "l/held").class_names == list(CLASSES[1:])
    latents = [{"kind": "latents", "path": str(tmp_path / "l" / name)} for name in ("train", "held")]
    content = class_config(tiny_config, "content", tmp_path / "content", ae / "pipeline", *latents)
    run_train(content)
    assert batches == {"b right": 1, "c down": 2, "d left": 3}
    assert json.loads((tmp_path / "content/class_names.json").read_text()) == list(CLASSES)
    run_train(class_config(tiny_config, "motion", tmp_path / "motion", ae / "pipeline", data, latents[1]))
    runs = [ae, tmp_path / "content", tmp_path / "motion"]
    export_pipeline(runs, tmp_path / "model")
    from cmd_video import CMDPipeline

    assert CMDPipeline.from_pretrained(tmp_path / "model").class_names == list(CLASSES)

    (tmp_path / "motion/pipeline/class_names.json").write_text(json.dumps(sorted(CLASSES, reverse=True)))
    with pytest.raises(ValueError, match="runs: classes of the content model are .*, of the motion model"):
        export_pipeline(runs, tmp_path / "another")
    (tmp_path / "motion/pipeline/class_names.json").unlink()  # as a run of an older version
    export_pipeline(runs, tmp_path / "another")

    index = json.loads((tmp_path / "l/held/index.json").read_text())
    del index["class_names"]
    (tmp_path / "l/held/index.json").write_text(json.dumps(index))
    assert LatentsDataset(tmp_path / "l/held").class_names is None
    batches.clear()
    run_train({**content, "output_dir": str(tmp_path / "old")})
    assert batches == {"b right": 0, "c down": 1, "d left": 2}  # older latents have numbers only
