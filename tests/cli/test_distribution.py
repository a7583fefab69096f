"""`cmd-video evaluate reference|calc|compare` and `weights`: files, models, configurations, one-line errors."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cmd_video.cli.sources import _conditions
from cmd_video.evaluation.metrics import reconstruction


@pytest.fixture
def folders(tmp_path, run):
    for name, seed in (("real", 0), ("made", 1)):
        code, _, error = run(
            "sprites", "make", "-o", tmp_path / name, "--num-clips", 12, "--seed", seed, "--height", 32, "--width", 32
        )
        assert code == 0, error
    return tmp_path / "real", tmp_path / "made"


def calc(run, made, reference, output, *options):
    return run("evaluate", "calc", made, "--reference", reference, "-o", output, "--extractor", "pixels", *options)


def test_from_folders_to_comparable_results(run, folders, tmp_path):
    real, made = folders
    options = ("--extractor", "pixels", "--size", "16x16", "--frames", 8)
    code, out, error = run("evaluate", "reference", real, "-o", tmp_path / "reference", *options)
    assert code == 0 and "48 features of 12 clips" in out, error
    again = run("evaluate", "reference", real / "manifest.jsonl", "-o", tmp_path / "listed", *options)
    assert again[0] == 0  # what `sprites make` lists can be read
    results = []
    for number, (clips, known) in enumerate(((made, tmp_path / "reference"), (real, real))):
        output = tmp_path / f"{number}.json"
        code, out, error = calc(run, clips, known, output, "--size", "16x16", "--frames", 8)
        assert code == 0 and "frechet" in out and "too large" in error
        results.append(json.loads(output.read_text()))
    different, same = (result["values"]["frechet"] for result in results)
    assert different["value"] > 0.1 and same["value"] == pytest.approx(0, abs=1e-3)
    assert different["real_against_real"] == same["real_against_real"] > 0 and different["standard_error"] > 0
    protocol = results[0]["protocol"]["made"]
    expected = {"clips": 12, "frames": 8, "stride": 1, "size": [16, 16], "sizes": ["16x16"], "codecs": ["h264"]}
    assert expected.items() <= protocol.items()
    assert not list(tmp_path.glob("*.parts"))
    code, out, _ = run("evaluate", "compare", tmp_path / "0.json", tmp_path / "1.json")
    assert code == 0 and "comparable" in out
    calc(run, made, real, tmp_path / "2.json", "--size", "16x16", "--frames", 8, "--stride", 2)
    code, out, _ = run("evaluate", "compare", tmp_path / "0.json", tmp_path / "2.json")
    assert code == 1 and "made.stride: 1 and 2" in out
    as_stylegan_v = ("--size", "16x16", "--frames", 4, "--span", "random", "--correction", 0, "--num-clips", 10)
    code, _, error = calc(run, made, real, tmp_path / "3.json", *as_stylegan_v)
    record = json.loads((tmp_path / "3.json").read_text())["protocol"]
    assert code == 0 and record["covariance_correction"] == 0, error
    assert [record[side]["chosen"] for side in ("made", "real")] == ["drawn with seed 0 among 12"] * 2
    assert [record[side]["span"] for side in ("made", "real")] == ["drawn with seed 0"] * 2
    calc(run, made, real, tmp_path / "4.json", *as_stylegan_v, "--draw-seed", 1)
    code, out, _ = run("evaluate", "compare", tmp_path / "3.json", tmp_path / "4.json")
    assert code == 1 and "made.span: drawn with seed 0 and drawn with seed 1" in out and "pixels_sha256" in out


def test_models_and_configurations(run, tiny_pipeline, tiny_config, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    config = tiny_config("motion", tmp_path / "run")
    config["validation"] = {**config["validation"], "data": {**config["validation"]["data"], "length": 10}}
    recipe.write_text(json.dumps(config))
    code, out, error = calc(
        run, tiny_pipeline, recipe, tmp_path / "model.json", "--frames", 4, "--num-clips", 10, "--steps", 2
    )
    assert code == 0, error
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["protocol"]["made"]["sampling"]["content"]["num_inference_steps"] == 2
    assert record["protocol"]["made"]["clips"] == record["protocol"]["real"]["clips"] == 10

    asked = tmp_path / "prompts.txt"
    asked.write_text("\n".join(["a red ball rests", "a blue star", *["a green ring grows"] * 8, ""]))
    options = ("--frames", 4, "--steps", 2, "--prompts", asked)
    code, out, error = calc(run, tiny_pipeline, recipe, tmp_path / "asked.json", *options)
    assert code == 0, error
    made = json.loads((tmp_path / "asked.json").read_text())["protocol"]["made"]
    assert made["clips"] == made["prompts"]["lines"] == 10
    assert made["pixels_sha256"] != record["protocol"]["made"]["pixels_sha256"]
    code, out, _ = run("evaluate", "compare", tmp_path / "model.json", tmp_path / "asked.json")
    assert code == 1 and "made.prompts" in out


def test_mistakes(run, folders, tiny_pipeline, tmp_path):
    real, made = folders
    np.savez(tmp_path / "clips.npz", videos=np.zeros((4, 8, 16, 16, 3), dtype=np.uint8))
    (tmp_path / "text.json").write_text("{}")
    for arguments, message in (
        ((made, tmp_path / "nothing"), "no such file or folder"),
        ((made, tmp_path / "text.json"), "text: no table of features"),
        ((made, real, "--extractor", "vgg"), "extractor: 'vgg' is none of i3d"),
        ((made, real, "--extractor", "i3d", "--weights-dir", tmp_path), "weights: no i3d_rgb_imagenet.pt in"),
        ((made, real, "--steps", 3), "--steps:"),
        ((made, real, "--prompts", tmp_path / "text.json"), "--prompts:"),
        ((tiny_pipeline, real, "--prompts", tmp_path / "text.json"), "text.json holds 1 prompts, at least 2"),
        ((made, real, "--size", "big"), "--size: 'big', expected such as 256x256"),
        ((made, real, "--size", "0x8"), "--size: '0x8', expected such as 256x256"),
        ((made, real, "--fps", 0), "fps: 0.0, must be more than 0"),
        ((made, real, "--fps", 4, "--stride", 2), "stride: 2 together with fps"),
        ((tmp_path / "clips.npz", real, "--frames", 16), "arrays are taken as they are"),
        ((tiny_pipeline, tiny_pipeline, "--size", "16x16", "--frames", 4), "they say how files are read"),
        ((tiny_pipeline, tiny_pipeline, "--span", "random", "--frames", 4), "--span: it says how files are read"),
        ((made, real, "--span", "end"), "--span: 'end' is none of start, middle, random"),
        ((made, real, "--split", "train"), "are no training configurations"),
        ((made, real, "--draw-seed", 1), "--draw-seed: nothing is drawn without"),
        ((made, real, "--reconstruct", tmp_path / "nothing"), "nothing"),
    ):
        code, _, error = calc(run, arguments[0], arguments[1], tmp_path / "out.json", *arguments[2:])
        assert code == 2 and message in error.strip().splitlines()[-1], (arguments, error)
        assert not list(tmp_path.glob("out.*"))  # neither a result nor parts that would keep the right command out
    same = (tmp_path / "clips.npz", tmp_path / "clips.npz", tmp_path / "out.json", "--frames", 8, "--neighbours")
    code, _, error = calc(run, *same, 99)
    assert code == 2 and "99 neighbours" in error and not (tmp_path / "out.json").exists()
    assert calc(run, *same, 3)[0] == 0  # goes on with the features that are there
    code, _, error = run("evaluate", "compare", tmp_path / "text.json", tmp_path / "text.json")
    assert code == 2 and "no result file" in error


def test_clips_as_an_autoencoder_gives_them_back(run, folders, tiny_config, tiny_pipeline, tmp_path):
    """`paired --reconstruct` of clips with themselves is `evaluate reconstruction` of them."""
    real, _ = folders
    options = ("--size", "16x16", "--frames", 4, "--reconstruct", tiny_pipeline)
    code, _, error = run("evaluate", "paired", real, real, *options, "-o", tmp_path / "paired.json")
    assert code == 0, error
    record = json.loads((tmp_path / "paired.json").read_text())
    recipe = tmp_path / "recipe.yaml"
    files = {"kind": "manifest", "path": str(real / "manifest.jsonl"), "num_frames": 4, "height": 16, "width": 16}
    recipe.write_text(json.dumps(tiny_config("autoencoder", tmp_path / "run", validation__data=files)))
    asked = ("--model", tiny_pipeline, "--config", recipe, "-o", tmp_path / "reconstruction.json")
    code, _, error = run("evaluate", "reconstruction", *asked)
    assert code == 0, error
    expected = json.loads((tmp_path / "reconstruction.json").read_text())
    assert record["values"]["psnr"]["value"] == pytest.approx(
        expected["values"]["reconstruction"]["psnr_per_clip"], abs=0.05
    )
    assert record["protocol"]["real"]["pixels_sha256"] == expected["protocol"]["real"]["pixels_sha256"]
    made, true = (record["protocol"][side] for side in ("made", "real"))
    assert made["reconstructed"]["model"] == f".../{tiny_pipeline.name}" and made["codecs"] == true["codecs"] == [
        "h264"
    ]
    assert true["source_fps"] == [8.0] and made["of_pixels_sha256"] == true["pixels_sha256"] != made["pixels_sha256"]
    (tmp_path / "few").mkdir()
    for number, path in enumerate(sorted(real.glob("*.mp4"))):
        shutil.copy(path, tmp_path / "few" / f"{number}.mp4")
    code, _, error = run("evaluate", "paired", tmp_path / "few", real, *options, "-o", tmp_path / "other.json")
    assert code == 2 and "pairs go by name" in error
    (tmp_path / "few" / "0.mp4").unlink()
    some = ("--num-clips", 4, "-o", tmp_path / "other.json")
    code, _, error = run("evaluate", "paired", tmp_path / "few", real, *options[:4], *some)
    assert code == 2 and "drawn with seed 0 among 11" in error
    code, _, error = run("evaluate", "paired", real, real, "--size", "17x17", "--frames", 4, *options[4:], *some[2:])
    assert (
        code == 2
        and "--size: 17x17, the autoencoder takes multiples of" in error
        and not (tmp_path / "other.json").exists()
    )
    code, _, error = calc(run, real, real, tmp_path / "r.json", *options)
    assert code == 0, error
    assert json.loads((tmp_path / "r.json").read_text())["values"]["frechet"]["value"] > 1


def test_clips_of_a_training_split(run, tiny_config, tmp_path):
    config = tiny_config("autoencoder", tmp_path / "run", data__length=10)
    (tmp_path / "recipe.yaml").write_text(json.dumps(config))
    for split in ("train", "validation"):
        options = ("--split", split, "--extractor", "pixels", "--frames", 4, "--num-clips", 8)
        code, _, error = run("evaluate", "reference", tmp_path / "recipe.yaml", "-o", tmp_path / split, *options)
        assert code == 0, error
    records = [json.loads((tmp_path / f"{split}.json").read_text()) for split in ("train", "validation")]
    assert records[0]["protocol"]["data"] == config["data"] | records[0]["protocol"]["data"]
    assert records[0]["protocol"]["pixels_sha256"] != records[1]["protocol"]["pixels_sha256"]
    assert records[0]["made_by"]["command"].startswith("cmd-video") and "torch" in records[0]["made_by"]["versions"]


def test_weights(run, tmp_path):
    code, out, _ = run("weights", "list", "--weights-dir", tmp_path)
    assert code == 0 and "i3d_torchscript.pt" in out and "not there" in out and "bec6519f" in out
    code, _, error = run("weights", "verify", "i3d", "--weights-dir", tmp_path)
    assert code == 2 and "weights: no i3d_rgb_imagenet.pt" in error
    code, _, error = run("weights", "get", "squeezenet", "--weights-dir", tmp_path)
    assert code == 2 and "no address" in error
    code, _, error = run("weights", "get", "resnet", "--weights-dir", tmp_path)
    assert code == 2 and "'resnet' is none of" in error


def test_pairs(run, folders, tmp_path):
    real, made = folders
    options = ("--size", "24x24", "--frames", 8, "-o", tmp_path / "paired.json")
    code, out, error = run("evaluate", "paired", real, real, *options)
    assert code == 0 and "psnr" in out, error
    values = json.loads((tmp_path / "paired.json").read_text())["values"]
    assert values["psnr"]["value"] == 60 and values["ssim"]["value"] == pytest.approx(1, abs=1e-4)
    same = (tmp_path / "paired.json").read_bytes()
    run("evaluate", "paired", made, made, *options)
    (tmp_path / "other.json").write_bytes(same)
    code, out, _ = run("evaluate", "compare", tmp_path / "paired.json", tmp_path / "other.json")
    assert code == 1 and "real.pixels_sha256" in out  # other true clips
    (made / sorted(path.name for path in made.glob("*.mp4"))[0]).write_bytes(b"damaged")
    code, out, error = run("evaluate", "paired", made, real, *options)
    assert code == 0 and "1 pairs left out" in error
    record = json.loads((tmp_path / "paired.json").read_text())
    assert record["protocol"]["clips"] == 11 and record["values"]["psnr"]["value"] < 30
    first = sorted(made.glob("*.mp4"))[0]
    first.rename(first.with_name("another.mp4"))
    code, _, error = run("evaluate", "paired", made, real, *options)
    assert code == 2 and "pairs go by name" in error
    (made / "another.mp4").unlink()
    code, _, error = run("evaluate", "paired", made, real, *options)
    assert code == 2 and "they must be pairs" in error
    code, _, error = run("evaluate", "paired", real, real, *options, "--lpips", "alex", "--weights-dir", tmp_path)
    assert code == 2 and "weights: no alexnet" in error


def test_a_report_has_a_table_for_what_is_comparable(run, folders, tmp_path):
    real, made = folders
    for name, clips, options in (("a", made, ()), ("b", real, ()), ("c", made, ("--stride", 2))):
        assert calc(run, clips, real, tmp_path / f"{name}.json", "--frames", 8, *options)[0] == 0
    files = [tmp_path / f"{name}.json" for name in "abc"]
    shown = ("--samples", real, "--samples", made, "--num-samples", 2, "--difference")
    code, out, error = run("evaluate", "report", *files, "-o", tmp_path / "report", *shown)
    assert code == 0, error
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("| | frechet |") == 2  # a and b in one table, c in another
    assert "Not comparable with a and b: made.stride, real.pixels_sha256, real.stride." in text
    values = json.loads(files[0].read_text())["values"]
    assert f"{values['frechet']['value']:.4g}" in text and "real against real" in text and "pixels_sha256" in text
    assert len(list((tmp_path / "report").glob("samples-*.png"))) == 3
    for name in "ab":  # what each was of stands with it, for their table has one protocol
        digest = json.loads((tmp_path / f"{name}.json").read_text())["protocol"]["made"]["pixels_sha256"]
        assert f"made pixels_sha256 {digest}" in text
    first = sorted(made.glob("*.mp4"))[0]
    first.rename(first.with_name("000another.mp4"))
    code, _, error = run("evaluate", "report", *files, "-o", tmp_path / "third", *shown)
    assert code == 2 and "--difference: clips named" in error and "pairs go by name" in error
    code, _, error = run("evaluate", "report", *files, "-o", tmp_path / "other", "--difference")
    assert code == 2 and "--difference: needs --samples twice" in error and not (tmp_path / "other").exists()


def test_a_model_of_classes_is_asked_for_one_after_the_other(tmp_path):
    pipe = SimpleNamespace(num_classes=3)
    asked, conditions, count = _conditions(pipe, None, 0)
    assert asked == "classes in turn" and count == 256
    assert conditions([0, 1, 5, 6]) == {"class_labels": [0, 1, 2, 0]}
    with pytest.raises(ValueError, match="--prompts: the model knows classes"):
        _conditions(pipe, tmp_path / "prompts.txt", 0)


def test_a_report_shows_names_as_they_are(run, tmp_path):
    record = {"name": "x", "protocol": {"field": "<b>|"}, "values": {"a": 1.0, "b": {"rate": 0.5}}}
    path = tmp_path / "a|<img src=x>.json"
    path.write_text(json.dumps(record))
    assert run("evaluate", "report", path, "-o", tmp_path / "report")[0] == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "<img" not in text and "<b>" not in text and "a&#124;&lt;img src=x&gt;" in text


@pytest.mark.parametrize("change", [{"values": [1]}, {"name": 3}, {"versions": [1]}])
def test_damaged_results(run, tmp_path, change):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "x", "protocol": {}, "values": {}, **change}))
    code, _, error = run("evaluate", "compare", path, path)
    assert code == 2 and "no result file" in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reconstruction", "-o", "."), "--output: . is a folder"),
        (("reconstruction", "-o", "/dev/null/a.json"), "--output: /dev/null/a.json: nothing can be written below"),
        (("reconstruction", "--device", "abacus"), "--device: 'abacus' cannot be used here"),
        (("calc", "x", "--reference", "y", "--device", "abacus"), "--device: 'abacus' cannot be used here"),
    ],
)
def test_output_and_device_are_tried_before_the_work(run, arguments, message):
    code, _, error = run("evaluate", *arguments)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1


def test_reconstruction_knows_its_clips(run, tiny_config, tiny_pipeline, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tiny_config("autoencoder", tmp_path / "run")))
    output = tmp_path / "a.json"
    asked = ("evaluate", "reconstruction", "--model", tiny_pipeline, "--config", config, "-o", output)
    assert run(*asked)[0] == 0
    first = json.loads(output.read_text())
    config.write_text(json.dumps(tiny_config("autoencoder", tmp_path / "run", validation__data__seed=9)))
    assert run(*asked)[0] == 0
    digests = [record["protocol"]["real"]["pixels_sha256"] for record in (first, json.loads(output.read_text()))]
    assert digests[0] != digests[1]
    latents = {"kind": "latents", "path": "nowhere"}
    config.write_text(json.dumps(tiny_config("content", tmp_path / "run", data=latents, validation__data=latents)))
    code, _, error = run(*asked)
    assert code == 2 and "encoded latents, clips are needed" in error


def test_reconstruction_goes_on_after_a_stop(run, folders, tiny_config, tiny_pipeline, tmp_path, monkeypatch):
    files = {
        "kind": "manifest",
        "path": str(folders[0] / "manifest.jsonl"),
        "num_frames": 4,
        "height": 16,
        "width": 16,
    }
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tiny_config("autoencoder", tmp_path / "run", validation__data=files)))
    sorted(folders[0].glob("*.mp4"))[1].write_bytes(b"damaged")
    asked = ("evaluate", "reconstruction", "--model", tiny_pipeline, "--config", config, "--batch-size", 2)
    code, _, error = run(*asked, "-o", tmp_path / "whole.json")
    assert code == 0, error
    batches, rows = [], reconstruction.reconstruction_rows

    def stop_once(autoencoder, vae, video):
        batches.append(len(video))
        if len(batches) == 4:
            raise KeyboardInterrupt
        return rows(autoencoder, vae, video)

    monkeypatch.setattr(reconstruction, "reconstruction_rows", stop_once)
    assert run(*asked, "-o", tmp_path / "stopped.json")[0] != 0 and not (tmp_path / "stopped.json").exists()
    assert run(*asked, "-o", tmp_path / "stopped.json")[0] == 0
    assert batches == [1, 2, 2, 2, 2, 2, 2]  # the fourth twice
    whole, stopped = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "stopped"))
    assert whole["values"] == stopped["values"] and whole["protocol"] == stopped["protocol"]
    assert whole["protocol"]["clips"] == 11 and len(whole["protocol"]["unreadable"]) == 1
    values, error = (whole["values"]["mean_frame"][key] for key in ("psnr", "standard_error"))
    assert 0 < error["psnr"] < values and 0 < error["ssim"] < 0.2
    assert not list(tmp_path.glob("*.parts"))


def test_standard_error_of_psnr_is_that_of_repeated_draws():
    draw = torch.Generator().manual_seed(0)

    def rows():
        squared = 0.01 * (0.5 + torch.rand(100, generator=draw))
        one = [{"squared": float(value), "psnr": 20.0, "ssim": 0.5} for value in squared]
        return [dict.fromkeys(reconstruction.SHOWN, row) for row in one]

    found = [reconstruction.summarize_reconstruction(rows())["reconstruction"] for _ in range(200)]
    spread = float(torch.tensor([values["psnr"] for values in found]).std())
    assert found[0]["standard_error"]["psnr"] == pytest.approx(spread, rel=0.2)
    assert found[0]["psnr"] == pytest.approx(10 * math.log10(4 / 0.01), abs=0.1)


def test_a_report_shows_the_numbers_of_committed_results(run, tmp_path):
    """Rows for parts, columns for what they hold, however deep, with errors; what holds no number is refused."""
    results = [
        path
        for path in sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json"))
        if "protocol" in path.read_text()
    ]
    usable = [path for path in results if isinstance(json.loads(path.read_text())["protocol"], dict)]
    code, _, error = run("evaluate", "report", *usable, "-o", tmp_path / "report")
    assert code == 0, error
    text = (tmp_path / "report" / "report.md").read_text()
    assert "sprites-stages: everything generated | " in text and "| frechet content |" in text
    assert "sprites-adherence: true clips" in text and "sprites-reconstruction: content frame | " in text.replace(
        "_", " "
    )
    record = {
        "name": "x", "protocol": {},
        "values": {"a": {"deep": {"b": 2.0, "standard_error": {"b": 0.5}}}, "c": {"d": [1.0, 2.0, 3.0]}},
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(record))
    assert run("evaluate", "report", tmp_path / "x.json", "-o", tmp_path / "report")[0] == 0
    lines = (tmp_path / "report" / "report.md").read_text().splitlines()
    assert lines[4:8] == ["| | deep b | d |", "|---|---|---|", "| x: a | 2 ± 0.5 |  |", "| x: c |  | 1 / 2 / 3 |"]
    (tmp_path / "x.json").write_text(json.dumps({**record, "values": {"a": "text"}}))
    code, _, error = run("evaluate", "report", tmp_path / "x.json", "-o", tmp_path / "report")
    assert code == 2 and "x: its values hold no number to show" in error
    (tmp_path / "x.json").write_text(json.dumps({**record, "protocol": "text"}))
    code, _, error = run("evaluate", "report", tmp_path / "x.json", "-o", tmp_path / "report")
    assert code == 2 and "protocol is no object" in error
