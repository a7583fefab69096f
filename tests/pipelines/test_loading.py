"""Folders with missing, damaged or foreign parts: one line, never a video, and no code of theirs runs."""

import json
import os
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmd_video.data.sealed import LIST, seal
from cmd_video.models.whole import load_whole, only_variant
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.training.components import build_components
from cmd_video.training.config import ComponentConfig

MODELS = ("text_encoder", "motion_text_encoder", "unet", "autoencoder", "motion_transformer")
DAMAGE = ("renamed", "half", "other shape", "not safetensors", "gone", "a pickle", "nan")


@pytest.fixture
def folder(make_text_pipeline, tmp_path):
    make_text_pipeline(own_motion_text=True).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / LIST).unlink()  # as in folders of other programs: the loaders themselves must notice
    return tmp_path / "model"


def weights_of(part):
    (file,) = part.glob("*.safetensors")
    return file


def damage(part, how):
    file = weights_of(part)
    weights = load_file(file)
    match how:
        case "renamed":
            save_file({f"other.{name}": weight for name, weight in weights.items()}, file)
        case "half":
            save_file(dict(list(weights.items())[::2]), file)
        case "other shape":
            save_file({**weights, list(weights)[-1]: torch.zeros(3, 5)}, file)
        case "nan":
            weights[list(weights)[-1]].view(-1)[0] = torch.nan
            save_file(weights, file)
        case "not safetensors":
            file.write_bytes(b"nothing of the kind" * 20)
        case "gone":
            file.unlink()
        case "a pickle":
            file.unlink()
            names = {"model.safetensors": "pytorch_model.bin"}
            torch.save({"run": os.getcwd}, file.with_name(names.get(file.name, f"{file.stem}.bin")))


def one_line(error, *words):
    text = str(error.value)
    assert all(word in text for word in words), text
    assert "weights_only" not in text and "trust" not in text, text


@pytest.mark.parametrize("part", MODELS)
def test_one_flipped_bit_of_weights_is_noticed(folder, part):
    seal(folder)
    file = weights_of(folder / part)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="changed") as error:
        load_pipeline(str(folder))
    one_line(error, str(file), LIST)
    with pytest.raises(ValueError, match="changed") as error:
        build_components({part: ComponentConfig(path=str(folder))})
    one_line(error, f"components.{part}.path", str(file))
    (folder / LIST).unlink()
    load_pipeline(str(folder))  # it is a number like any other


def test_what_saves_models_seals_them(make_text_pipeline, tmp_path):
    pipeline = make_text_pipeline(own_motion_text=True)
    pipeline.save_pretrained(tmp_path)
    listed = json.loads((tmp_path / LIST).read_text())
    assert {file.split("/")[0] for file in listed} == {*MODELS, "vae"}
    pipeline.save_pretrained(tmp_path)  # again, over it
    load_pipeline(str(tmp_path))


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("part", MODELS)
def test_a_part_with_missing_or_damaged_weights_makes_no_pipeline(folder, part, how):
    damage(folder / part, how)
    with pytest.raises((ValueError, OSError)) as error:
        load_pipeline(str(folder))
    one_line(error, part, *(["holds values that are not numbers"] if how == "nan" else []))


@pytest.mark.parametrize("how", ["renamed", "half", "other shape", "gone", "a pickle", "nan"])
@pytest.mark.parametrize("part", ["text_encoder", "unet", "autoencoder"])
def test_training_refuses_the_same(folder, part, how):
    damage(folder / part, how)
    configs = {part: ComponentConfig(path=str(folder))}
    if part == "text_encoder":
        configs["tokenizer"] = ComponentConfig(path=str(folder))
    with pytest.raises(ValueError, match=f"components.{part}.path") as error:
        build_components(configs)
    one_line(error)


def test_weights_are_not_made_up_where_the_caller_wants_no_empty_ones(folder):
    damage(folder / "unet", "half")
    with pytest.raises(ValueError, match="low_cpu_mem_usage"):
        CMDPipeline.from_pretrained(folder, low_cpu_mem_usage=False)


ODD = [7, [], {}, "diffusers", ["diffusers"], ["diffusers", 7], [7, 7], ["transformers", "pipeline"], ["os", "system"],
       ["cmd_video.nothing", "X"], ["cmd_video.cli.__main__", "main"], ["diffusers", "NothingOfTheKind"],
       ["evil_module", "Evil"], ["diffusers", "DDIMScheduler"], ["builtins", "dict"], [None, "X"]]  # fmt: skip


@pytest.mark.parametrize("entry", ODD, ids=str)
@pytest.mark.parametrize("part", ["unet", "text_encoder", "autoencoder"])
def test_odd_entries_of_the_index_are_one_line_and_run_nothing(folder, part, entry, monkeypatch):
    ran = folder.parent / "ran"
    for place in (folder, folder / part):
        (place / "evil_module.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, part: entry}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(ValueError, match=f"model_index.json: {part}: "):
        load_pipeline(str(folder))
    with pytest.raises(ValueError, match=f"model_index.json: {part}: "):
        CMDPipeline.from_pretrained(folder)
    assert not ran.exists()


@pytest.mark.parametrize("text", ["[]", "7", "null", "{", '"x"'])
def test_an_index_or_a_configuration_that_is_no_object_is_one_line(folder, text):
    before = (folder / "unet" / "config.json").read_text()
    (folder / "unet" / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        load_pipeline(str(folder))
    (folder / "unet" / "config.json").write_text(before)
    (folder / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match="model"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_code_that_a_folder_names_is_never_asked_for(folder, part, monkeypatch):
    """auto_map in a configuration: transformers would ask on a terminal whether to run it."""
    ran = folder.parent / "ran"
    config = folder / part / ("config.json" if part == "text_encoder" else "tokenizer_config.json")
    (folder / part / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    odd = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "evil.Evil")}
    odd |= {"model_type": "evil"} if part == "text_encoder" else {"tokenizer_class": "Evil"}
    config.write_text(json.dumps({**json.loads(config.read_text()), **odd}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    names = ("tokenizer", "text_encoder")
    with suppress(ValueError, OSError):
        build_components({name: ComponentConfig(path=str(folder)) for name in names})
    assert not ran.exists()


@pytest.mark.parametrize("part", MODELS)
def test_a_part_that_is_there_as_one_variant_only_is_that_variant(folder, part):
    file = weights_of(folder / part)
    assert only_variant(folder / part) is None
    file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    assert only_variant(folder / part) == "fp16"
    if part in ("unet", "text_encoder"):
        configs = {name: ComponentConfig(path=str(folder)) for name in {part, "tokenizer"}}
        assert build_components(configs)[part].dtype == torch.float32


def test_load_whole_names_the_argument_and_the_place(folder):
    from diffusers import UNet2DConditionModel

    damage(folder / "unet", "half")
    with pytest.raises(ValueError, match=r"^my argument: the weights in .*unet lack \d+ of the model's, such as "):
        load_whole(UNet2DConditionModel, folder, "my argument", subfolder="unet")
