"""What is not a number stops a run before it does harm: losses, gradients, validation, weights, checkpoints."""

import json
import math

import pytest

from cmd_video.data.files import sha256
from cmd_video.sprites.section import SpritesData
from cmd_video.training.autoencoder_stage import AutoencoderStage
from cmd_video.training.checkpoint import load_latest


class NanAt:
    """A dataset with one broken clip."""

    def __init__(self, dataset, number):
        self.dataset, self.number = dataset, number

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, number):
        item = self.dataset[number]
        if number == self.number:
            item["video"][0, 0, 0, 0] = math.nan
        return item


@pytest.mark.parametrize("name", ["autoencoder", "image"])
def test_a_loss_that_is_no_number_stops_before_the_update(name, tiny_config, run_train, monkeypatch, tmp_path):
    opened = SpritesData.open
    monkeypatch.setattr(SpritesData, "open", lambda self, **how: NanAt(opened(self, **how), 4 * 4 + 2))
    with pytest.raises(ValueError, match="step 5: the loss is nan"):
        run_train(tiny_config(name, tmp_path / "broken", loop__log_every=50))
    monkeypatch.undo()
    run_train(tiny_config(name, tmp_path / "whole", loop__log_every=50, loop__checkpoint_every=4))
    step, tensors, _ = load_latest(tmp_path / "broken" / "checkpoints")
    assert step == 4 and all(t.isfinite().all() for named in tensors.values() for t in named.values())
    whole = (tmp_path / "whole" / "checkpoints" / "step-00000004" / "ema.safetensors").read_bytes()
    assert (tmp_path / "broken" / "checkpoints" / "step-00000004" / "ema.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_stops_both(tiny_config, forked_train, tmp_path):
    config = tiny_config("autoencoder", tmp_path)
    assert forked_train(config, processes=2, nan=[1, 4]).codes == [2, 2]
    step, tensors, _ = load_latest(tmp_path / "checkpoints")
    assert step == 4 and all(t.isfinite().all() for named in tensors.values() for t in named.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_that_is_no_number_stops_the_run(value, tiny_config, run_train, monkeypatch, tmp_path):
    """It would be the best checkpoint never, or for ever; the clips are named."""
    validate = AutoencoderStage.validate

    def broken(self, batch):
        found = validate(self, batch)
        return {**found, "loss": found["loss"] * value} if 2 in batch["number"] and len(batch["number"]) > 1 else found

    monkeypatch.setattr(AutoencoderStage, "validate", broken)
    with pytest.raises(
        ValueError, match=rf"step 4: the validation loss is {value}, of samples 2 '.*', 3 '.*'; stopped"
    ):
        run_train(tiny_config("autoencoder", tmp_path))
    step, _, state = load_latest(tmp_path / "checkpoints")
    assert step == 2 and state["best"]["step"] is None


def test_weights_that_are_no_numbers_are_neither_saved_nor_gone_on_with(tiny_config, run_train, tmp_path):
    from safetensors.torch import load_file, save_file

    config = tiny_config("autoencoder", tmp_path / "wild", optimizer__lr=1000.0, optimizer__warmup_steps=0)
    config["optimizer"]["weight_decay"] = 1000.0  # weights times a million at each step
    config["loop"] |= {"steps": 60, "checkpoint_every": 60, "validate_every": 60}
    with pytest.raises(ValueError, match="not a number|not numbers|is nan|is inf"):
        run_train(config)
    assert not list((tmp_path / "wild").glob("checkpoints/*"))
    config = tiny_config("autoencoder", tmp_path / "run")
    run_train(config)
    for name in ("ema", "model"):
        path = tmp_path / "run" / "checkpoints" / "step-00000008"
        tensors = load_file(path / f"{name}.safetensors")
        next(iter(tensors.values())).view(-1)[0] = math.nan
        save_file(tensors, path / f"{name}.safetensors")
        files = [file for file in path.iterdir() if file.name != "manifest.json"]
        manifest = {file.name: {"sha256": sha256(file), "bytes": file.stat().st_size} for file in files}
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(
            ValueError, match="the checkpoint of step 8 holds values that are not numbers in .*; remove"
        ):
            run_train(config)


def test_a_gradient_that_is_no_number_stops_before_the_update(tiny_config, run_train, monkeypatch, tmp_path):
    forward = AutoencoderStage.forward

    def steep(self, batch):
        loss = forward(self, batch)  # a finite loss; the derivative of the root at 0 is not
        return loss + (0 * self.autoencoder.patch_embed.weight.sum()).sqrt() if 8 in batch["number"] else loss

    monkeypatch.setattr(AutoencoderStage, "forward", steep)
    with pytest.raises(ValueError, match="step 3: the gradient norm is"):
        run_train(tiny_config("autoencoder", tmp_path))
    assert load_latest(tmp_path / "checkpoints")[0] == 2
