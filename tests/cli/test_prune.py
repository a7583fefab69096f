"""`cmd-video prune`: a folder that loads as the model did, and mistakes in one line."""

import json
import shutil
import subprocess
import sys

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DConditionModel
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

from cmd_video.models import CMDAutoencoder, CMDMotionTransformer
from cmd_video.pipelines import CMDPipeline
from cmd_video.pruning.importance import LeaveOut


@pytest.fixture
def motion_model(tmp_path):
    CMDMotionTransformer(num_layers=4, dim=16, num_heads=2).save_pretrained(tmp_path / "motion")
    return tmp_path / "motion"


def selection_file(tmp_path, removed, model_class="CMDMotionTransformer"):
    path = tmp_path / "selection.json"
    path.write_text(json.dumps({"model_class": model_class, "removed": removed, "reason": "test"}))
    return path


def test_a_single_model(run, motion_model, tmp_path):
    selection = selection_file(tmp_path, ["blocks.1", "blocks.2"])
    code, out, _ = run("prune", motion_model, "--selection", selection, "-o", tmp_path / "small")
    assert code == 0 and "left out: blocks.1, blocks.2" in out
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["_class_name"] == "PrunedCMDMotionTransformer" and config["removed_blocks"] == [
        "blocks.1",
        "blocks.2",
    ]
    assert json.loads((tmp_path / "small" / "selection.json").read_text())["removed"] == ["blocks.1", "blocks.2"]


def test_a_part_of_a_pipeline_which_then_loads_and_runs(run, tiny_pipeline, tmp_path):
    selection = selection_file(tmp_path, ["mid_block"], "UNet2DConditionModel")
    code, _, error = run("prune", tiny_pipeline, "--selection", selection, "-o", tmp_path / "small")
    assert code == 0, error
    pipe = CMDPipeline.from_pretrained(tmp_path / "small")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.unet).__name__ == "PrunedUNet2DConditionModel"
    assert type(pipe.unet.mid_block).__name__ == "Skip"
    frames = pipe("a red circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
    assert frames.frames.isfinite().all()
    load = "import sys, cmd_video as c; print(type(c.CMDPipeline.from_pretrained(sys.argv[1]).unet).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", load, tmp_path / "small"], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "PrunedUNet2DConditionModel", done.stderr  # where nothing imported the class before


def test_a_budget(run, motion_model, tmp_path):
    importance = tmp_path / "importance.json"
    importance.write_text(json.dumps({f"blocks.{n}": {"importance": 4 - n, "cost": 0.2} for n in range(4)}))
    code, out, _ = run("prune", motion_model, "--budget", "0.7", "--importance", importance, "-o", tmp_path / "small")
    assert code == 0 and "left out: blocks.2, blocks.3" in out


def test_a_budget_alone_and_a_second_round(run, motion_model, tmp_path):
    code, out, _ = run("prune", motion_model, "--budget", "0.9", "-o", tmp_path / "small")
    assert code == 0 and "chosen by the weights alone" in out
    first = json.loads((tmp_path / "small" / "selection.json").read_text())
    assert len(first["removed"]) == 1 and "magnitude" in first["reason"]
    code, out, error = run("prune", tmp_path / "small", "--budget", "0.9", "-o", tmp_path / "smaller")
    assert code == 0, error
    config = json.loads((tmp_path / "smaller" / "config.json").read_text())
    assert config["_class_name"] == "PrunedCMDMotionTransformer" and len(set(config["removed_blocks"])) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "vdmini"], "rule: 'vdmini' is for UNets and decoders of at least 3 stages"),
        (["--rule", "random"], "rule: 'random' is none of vdmini"),
        ([], "--rule, --selection, --budget: give one of them"),
        (["--rule", "vdmini", "--budget", "0.5"], "--rule, --selection, --budget: give one of them"),
        (["--rule", "middle", "--importance", "x.json"], "--importance: it belongs to --budget"),
        (["--budget", "0.01"], "budget: 0.01 cannot be met"),
        (["--budget", "1.5"], "budget: 1.5 is not a share in (0, 1]"),
        (["--rule", "vdmini", "--component", "unet"], "--component:"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, motion_model, tmp_path, arguments, message):
    code, _, error = run("prune", motion_model, *arguments, "-o", tmp_path / "small")
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "small").exists()


def test_more_mistakes(run, motion_model, tiny_pipeline, tmp_path):
    wrong = selection_file(tmp_path, ["blocks.9"])
    for arguments, message in (
        ((motion_model, "--selection", wrong), "CMDMotionTransformer has no block 'blocks.9'"),
        (
            (tiny_pipeline, "--selection", wrong),
            "it is for CMDMotionTransformer, the teacher is a UNet2DConditionModel",
        ),
        ((tiny_pipeline, "--component", "head", "--selection", wrong), "--component: 'head' is none of"),
        (
            (tiny_pipeline, "--component", "text_encoder", "--selection", wrong),
            "model: CLIPTextModel cannot be pruned",
        ),
        ((tmp_path, "--selection", wrong), "holds neither a pipeline"),
        (("/nowhere", "--selection", wrong), "MODEL: no folder /nowhere"),
    ):
        code, _, error = run("prune", *arguments, "-o", tmp_path / "small")
        assert code == 2 and message in error, error
    code, _, error = run("prune", motion_model, "--rule", "vdmini", "-o", motion_model)
    assert code == 2 and "exists; choose a new folder" in error


@pytest.mark.parametrize(
    ("stage", "name", "measure"),
    [
        ("content", "unet", "loss"),
        ("content", "unet", "frechet"),
        ("motion", "motion_transformer", "frechet"),
        ("motion", "motion_transformer", "magnitude"),
        ("content", "unet", "taylor"),
        ("autoencoder", "autoencoder", "frechet"),
    ],
)
def test_measured_importance_prunes(run, stage, name, measure, tiny_config, tiny_pipeline, tmp_path):
    config = tiny_config(stage, tmp_path / "run")
    kind, larger = {
        "unet": (UNet2DConditionModel, {"layers_per_block": 2}),
        "motion_transformer": (CMDMotionTransformer, {"num_layers": 3}),
        "autoencoder": (CMDAutoencoder, {"decoder_depth": 3}),
    }[name]
    model = kind.from_config({**kind.load_config(tiny_pipeline / name), **larger})
    for weight in model.parameters():  # a fresh motion model outputs zero
        torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "model")
    config["components"] = {part: {"path": str(tiny_pipeline)} for part in config["components"]}
    config["components"][name] = {"path": str(tmp_path / "model")}
    recipe, measured, picture = tmp_path / "recipe.yaml", tmp_path / "importance.json", tmp_path / "plot.png"
    recipe.write_text(json.dumps(config))  # JSON is YAML
    options = ("--cost", "parameters", "--num-clips", 4, "--plot", picture, "--measure", measure)
    code, out, error = run("evaluate", "importance", recipe, "-o", measured, *options)
    assert code == 0, error
    rows = json.loads(measured.read_text())["values"]
    assert len(rows) >= 2 and all(block in out for block in rows) and picture.stat().st_size > 1000
    assert all(row["content"] > 0 and (row["motion"] > 0) == (stage != "content") for row in rows.values())
    if measure == "frechet":
        whole = json.loads(measured.read_text())["protocol"]["frechet_of_the_whole_model"]
        assert set(whole) == ({"content"} if stage == "content" else {"content", "motion"})
        for row in rows.values():
            growth = [row["frechet"][kind] / whole[kind] - 1 for kind in whole]
            assert row["importance"] == pytest.approx(sum(growth) / len(growth)) and row["importance"] != row["loss"]
    elif measure == "loss":
        assert all(row["importance"] == row["loss"] for row in rows.values())
    else:
        assert all(0 < row["importance"] < 1 and row["importance"] != row["loss"] for row in rows.values())
    least = min(row["cost"] for row in rows.values())
    budget = ("--budget", 1 - least, "--importance", measured)
    code, out, error = run("prune", tmp_path / "model", *budget, "-o", tmp_path / "small")
    assert code == 0, error
    assert json.loads((tmp_path / "small" / "config.json").read_text())["removed_blocks"]


@pytest.mark.parametrize("measure", ["loss", "frechet"])
def test_importance_goes_on_and_goes_by_shares(run, measure, tiny_config, tiny_pipeline, tmp_path, monkeypatch):
    config = tiny_config("motion", tmp_path / "run")
    larger = {**CMDMotionTransformer.load_config(tiny_pipeline / "motion_transformer"), "num_layers": 4}
    model = CMDMotionTransformer.from_config(larger)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "model")
    config["components"] = {part: {"path": str(tiny_pipeline)} for part in config["components"]}
    config["components"]["motion_transformer"] = {"path": str(tmp_path / "model")}
    recipe, asked = tmp_path / "recipe.yaml", ("--num-clips", 4, "--measure", measure)
    recipe.write_text(json.dumps(config))
    assert run("evaluate", "importance", recipe, "-o", tmp_path / "whole.json", *asked)[0] == 0
    shared = ("evaluate", "importance", recipe, "-o", tmp_path / "shared.json", *asked)
    assert [run(*shared, *more)[0] for more in (("--shard", "0/2"), ("--shard", "1/2"), ())] == [0, 0, 0]
    calls, call = [], LeaveOut.__call__

    def stop_once(self, unit):
        calls.append(unit)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, unit)

    monkeypatch.setattr(LeaveOut, "__call__", stop_once)
    stopped = ("evaluate", "importance", recipe, "-o", tmp_path / "stopped.json", *asked)
    assert run(*stopped)[0] != 0 and not (tmp_path / "stopped.json").exists()
    code, _, error = run(*stopped[:-1], "loss" if measure == "frechet" else "frechet")
    assert code == 2 and "holds an interrupted evaluation of something else" in error
    shutil.copytree(tiny_pipeline / "motion_scheduler", tmp_path / "other" / "motion_scheduler")
    settings = json.loads((tmp_path / "other" / "motion_scheduler" / "scheduler_config.json").read_text())
    changed = {**settings, "beta_end": 0.03}
    (tmp_path / "other" / "motion_scheduler" / "scheduler_config.json").write_text(json.dumps(changed))
    recipe.write_text(
        json.dumps(
            {**config, "components": {**config["components"], "motion_scheduler": {"path": str(tmp_path / "other")}}}
        )
    )
    code, _, error = run(*stopped)
    assert code == 2 and "holds an interrupted evaluation of something else" in error
    recipe.write_text(json.dumps(config))
    assert run(*stopped)[0] == 0 and len(calls) == len(set(calls)) + 1 == 5  # two before the stop, two after it
    records = [json.loads((tmp_path / name).read_text()) for name in ("whole.json", "stopped.json", "shared.json")]
    for record in records:
        for row in record["values"].values():
            del row["seconds"]  # measured
    for record in records[1:]:
        assert records[0]["values"] == record["values"] and records[0]["protocol"] == record["protocol"]
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderKLTemporalDecoder"])
def test_importance_of_a_decoder(run, kind, tiny_config, tmp_path):
    torch.manual_seed(0)
    sizes = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    up = {"up_block_types": ("UpDecoderBlock2D",) * 2} if kind == "AutoencoderKL" else {}
    getattr(diffusers, kind)(**sizes, **up).save_pretrained(tmp_path / "vae")
    config = tiny_config("decoder", tmp_path / "run")
    config["components"] = {name: {"path": str(tmp_path / "vae")} for name in ("vae", "teacher")}
    recipe, measured = tmp_path / "recipe.yaml", tmp_path / "importance.json"
    recipe.write_text(json.dumps(config))
    code, out, error = run("evaluate", "importance", recipe, "-o", measured, "--num-clips", 2, "--measure", "taylor")
    assert code == 0, error
    assert any(row["importance"] > 0 for row in json.loads(measured.read_text())["values"].values())
    code, out, error = run("evaluate", "importance", recipe, "-o", measured, "--num-clips", 2)
    assert code == 0, error
    rows = json.loads(measured.read_text())["values"]
    assert "decoder.mid_block" in rows and "decoder.up_blocks.1.resnets.1" in rows
    assert all(row["content"] > 0 and row["loss"] != 0 and 0 < row["flops"] < 1 for row in rows.values())
    code, _, error = run(
        "prune", tmp_path / "vae", "--budget", 0.9, "--importance", measured, "-o", tmp_path / "small"
    )
    assert code == 0, error
    config["components"]["vae"] = {"class": "AutoencoderKL"}
    recipe.write_text(json.dumps(config))
    code, _, error = run("evaluate", "importance", recipe, "-o", measured)
    assert code == 2 and "components.vae: has fresh weights" in error


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "[]", "config.json holds a list, an object is needed"),
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", '{"_class_name": "Nope"}', "holds a 'Nope', which is not known"),
        ("config.json", '{"_class_name": "__name__"}', "holds a '__name__', which is not known"),
        ("model_index.json", "[]", "model_index.json holds a list, an object is needed"),
        ("model_index.json", '{"_class_name": "Nope", "unet": ["diffusers", "X"]}', "of the class 'Nope'"),
    ],
)
def test_folders_that_hold_something_else(run, tmp_path, file, text, message):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / file).write_text(text)
    code, _, error = run("prune", tmp_path / "model", "--rule", "vdmini", "-o", tmp_path / "small")
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1


def test_weights_that_lack_some(run, motion_model, tmp_path):
    config = json.loads((motion_model / "config.json").read_text())
    (motion_model / "config.json").write_text(json.dumps({**config, "num_layers": config["num_layers"] + 1}))
    code, _, error = run("prune", motion_model, "--rule", "middle", "-o", tmp_path / "small")
    assert code == 2 and "lack" in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("small*"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"importance": float("nan"), "cost": 0.1}, "importance.json is not JSON: it holds NaN"),
        ({"importance": 1.0, "cost": -5}, "cost: blocks.1: -5.0 is not a share in [0, 1]"),
        ({"importance": 1.0, "cost": 50}, "cost: blocks.1: 50.0 is not a share in [0, 1]"),
    ],
)
def test_importance_must_be_numbers_and_costs_shares(run, motion_model, tmp_path, row, message):
    path = tmp_path / "importance.json"
    path.write_text(json.dumps({"blocks.1": row}))
    code, _, error = run("prune", motion_model, "--budget", 0.9, "--importance", path, "-o", tmp_path / "small")
    assert code == 2 and message in error


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": {}}, "width: unknown name"), ({"removed": "blocks.1"}, "removed: 'blocks.1' is no list")],
)
def test_a_selection_has_no_other_fields(run, motion_model, tmp_path, change, message):
    path = selection_file(tmp_path, ["blocks.1"])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    code, _, error = run("prune", motion_model, "--selection", path, "-o", tmp_path / "small")
    assert code == 2 and message in error


def test_the_type_of_the_weights_stays(run, motion_model, tmp_path):
    model = CMDMotionTransformer.from_pretrained(motion_model).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    assert run("prune", tmp_path / "half", "--rule", "middle", "-o", tmp_path / "small")[0] == 0
    (file,) = (tmp_path / "small").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


def test_a_hub_id_is_fetched(run, motion_model, monkeypatch, tmp_path):
    """Of the revision that is asked for, and of it only what loading reads."""
    asked = []

    def fetch(name, revision, allow_patterns):
        asked.append((name, revision))
        names = [
            "config.json",
            "unet/model.safetensors",
            "tokenizer/merges.txt",
            "model.bin",
            "a.ckpt",
            "a.py",
            "a.png",
        ]
        assert list(filter_repo_objects(names, allow_patterns=allow_patterns)) == names[:3]
        return str(motion_model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert run("prune", "owner/name", "--rule", "middle", "-o", tmp_path / "small")[0] == 0
    pinned = ("--rule", "middle", "--revision", "abc123")
    assert run("prune", "owner/name", *pinned, "-o", tmp_path / "pinned")[0] == 0
    assert asked == [("owner/name", None), ("owner/name", "abc123")]
    code, _, error = run("prune", motion_model, *pinned, "-o", tmp_path / "other")
    assert code == 2 and "--revision: abc123, but " in error


def test_a_pipeline_of_diffusers_loads_in_a_new_process(run, tmp_path):
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=2, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
    )  # fmt: skip
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "whole")
    path = selection_file(tmp_path, ["down_blocks.0.layers.1", "up_blocks.1.layers.1"], "UNet2DConditionModel")
    code, out, _ = run("prune", tmp_path / "whole", "--selection", path, "-o", tmp_path / "small")
    assert code == 0 and "import cmd_video.pruning.pruned_models" in out
    program = (
        "import cmd_video.pruning.pruned_models; from diffusers import DDIMPipeline; "
        f"print(type(DDIMPipeline.from_pretrained({str(tmp_path / 'small')!r}).unet).__name__)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "PrunedUNet2DConditionModel" in found.stdout
