"""A pipeline knows its classes by name, keeps the names, and takes either."""

import json

import pytest
import torch

from cmd_video import CMDPipeline

NAMES = {0: "run", 1: "jump", 2: "caf\u00e9", 3: "10", 4: "left turn"}


@pytest.fixture
def named(class_pipeline, tmp_path):
    parts = class_pipeline.components
    CMDPipeline(**parts, sampling=class_pipeline.sampling, id2label=NAMES).save_pretrained(tmp_path / "model")
    pipe = CMDPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_names_are_saved_with_the_pipeline(named, tmp_path, caplog):
    assert named.class_names == list(NAMES.values())
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["id2label"] == {str(number): name for number, name in NAMES.items()}
    named.save_pretrained(tmp_path / "again")
    assert CMDPipeline.from_pretrained(tmp_path / "again").class_names == named.class_names
    assert "id2label" not in caplog.text  # diffusers warns of a value of another type


def test_a_model_without_names_is_as_before(class_pipeline, tmp_path):
    class_pipeline.save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "model_index.json").read_text())
    assert CMDPipeline.from_pretrained(tmp_path).class_names == []


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [("jump", 1), (["run", 4], [0, 4]), ("cafe\u0301", 2), ("10", 3), (("left turn", "run"), [4, 0])],
)
def test_a_name_is_its_number(named, generate, asked, numbers):
    one, other = (generate(named, class_labels=labels, seed=3).frames for labels in (asked, numbers))
    assert torch.equal(one, other)


@pytest.mark.parametrize("labels", ["zebra", ["run", "zebra"], "Jump", "2"])
def test_an_unknown_name_says_what_is_known(named, labels):
    with pytest.raises(
        ValueError, match="class_labels: class .* is none of run, jump, caf\u00e9, 10, left turn"
    ) as error:
        named(class_labels=labels)
    assert ("did you mean 'jump'" in str(error.value)) == (labels == "Jump")


def test_names_must_be_of_classes_that_there_are(class_pipeline, text_pipeline):
    with pytest.raises(ValueError, match="id2label: 5, the content model knows 5 classes"):
        CMDPipeline(**class_pipeline.components, id2label={5: "x"})
    with pytest.raises(ValueError, match="id2label: 0, the content model knows 0 classes"):
        CMDPipeline(**text_pipeline.components, id2label={0: "x"})


@pytest.mark.parametrize("text", ["bad \ud83d end", "caf\udce9 a red circle", "\udfff"])
@pytest.mark.parametrize("argument", ["prompt", "negative_prompt"])
def test_half_a_character_is_named(text_pipeline, argument, text):
    asked = {"prompt": "a red ball", argument: text}
    with pytest.raises(ValueError, match=f"^{argument}: no valid text at character") as error:
        text_pipeline(**asked)
    str(error.value).encode()  # can be printed
