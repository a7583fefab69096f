"""A decoder made smaller learns its teacher's latents: what learns and what stays, losses in closed form, resume."""

import json
from pathlib import Path

import diffusers
import pytest
import torch

from cmd_video.data.sealed import LIST
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.pruning import pruned_models
from cmd_video.pruning.pruned_models import prune
from cmd_video.pruning.selection import BlockSelection
from cmd_video.training.decoder import decode, perceptual_distance
from cmd_video.training.export import export_pipeline

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "layers_per_block": 1}
KINDS = {
    "AutoencoderKL": lambda: diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, up_block_types=("UpDecoderBlock2D",) * 2, **BLOCKS
    ),
    "AutoencoderKLTemporalDecoder": lambda: diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(64, 128), **BLOCKS
    ),
}


@pytest.fixture(params=KINDS)
def parts(request, tmp_path):
    """Components of a run: a teacher and what is left of it, in files."""
    torch.manual_seed(0)
    teacher = KINDS[request.param]()
    blocks = ("decoder.mid_block", "decoder.up_blocks.1.resnets.1")
    student = prune(teacher, BlockSelection(request.param, blocks, "test", {"decoder.up_blocks.1": 0.5}))
    for name, model in (("teacher", teacher), ("vae", student)):
        model.save_pretrained(tmp_path / name)
    return {name: {"path": str(tmp_path / name)} for name in ("teacher", "vae")}


def test_the_decoder_learns_and_everything_else_stays(parts, tiny_config, run_train, read_log, tmp_path):
    changes = {"components": parts, "loop__steps": 24, "optimizer__lr": 5e-3, "loop__validate_every": 8}
    folder = run_train(tiny_config("decoder", tmp_path / "run", **changes))
    losses = [line["loss"] for line in read_log(tmp_path / "run", "validation")]
    assert losses[-1] < 0.95 * losses[0]
    assert sorted(path.name for path in folder.iterdir()) == [LIST, "vae"]  # the teacher is not part of what comes out
    kind = getattr(pruned_models, f"Pruned{class_of(parts)}")
    trained, start = (kind.from_pretrained(path) for path in (folder / "vae", parts["vae"]["path"]))
    for key, value in trained.state_dict().items():
        if not key.startswith("decoder."):
            assert torch.equal(value, start.state_dict()[key]), key
    assert not torch.equal(trained.decoder.conv_in.weight, start.decoder.conv_in.weight)


def test_golden_losses(parts, golden, tiny_config, run_train, read_log, tmp_path):
    changes = {"components": parts, "loop__steps": 20, "loop__validate_every": 20, "objective__reconstruction": "l1"}
    run_train(tiny_config("decoder", tmp_path / "run", **changes))
    golden(f"losses/decoder, {class_of(parts)}", [line["loss"] for line in read_log(tmp_path / "run", "train")])


def class_of(parts):
    return json.loads((Path(parts["teacher"]["path"]) / "config.json").read_text())["_class_name"]


def test_what_comes_out_stands_in_a_pipeline(tiny_components, tmp_path):
    """`cmd-video export model run`: the run's small decoder in the place of the model's."""
    teacher = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=12,
        **BLOCKS,
    )
    student = prune(teacher, BlockSelection("AutoencoderKL", ("decoder.mid_block",), "test", {}))
    parts = tiny_components()
    del parts["classifier"]
    CMDPipeline(**{**parts, "vae": teacher}).save_pretrained(tmp_path / "model")
    student.save_pretrained(tmp_path / "run" / "pipeline" / "vae")
    pipe = load_pipeline(str(export_pipeline([tmp_path / "model", tmp_path / "run"], tmp_path / "out")))
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a red ball", num_inference_steps=2, output_type="pt").frames
    assert type(pipe.vae).__name__ == "PrunedAutoencoderKL" and frames.shape == (1, 4, 3, 16, 16)


def test_losses_in_closed_form(parts, build_tiny, batch_of):
    stage, dataset = build_tiny(
        "decoder", components=parts, objective={"reconstruction": "l1", "perceptual_weight": 2}
    )
    batch = batch_of(dataset, range(2))
    video, teacher = batch["video"], stage.frozen["teacher"]
    with torch.no_grad():
        latents = teacher.encode(video.transpose(1, 2).flatten(0, 1)).latent_dist.mode()
        extra = {"num_frames": 4} if "Temporal" in type(teacher).__name__ else {}
        made = [
            stage.vae.decode(latents.unflatten(0, (2, 4))[number], **extra).sample.transpose(0, 1)
            for number in range(2)
        ]
        decoded = torch.stack(made)  # each clip by itself
        features = [[], []]
        for found, clip in zip(features, (decoded, video), strict=True):
            hidden = teacher.encoder.conv_in(clip.transpose(1, 2).flatten(0, 1))
            for block in teacher.encoder.down_blocks:
                hidden = block(hidden)
                found.append(hidden)
        distance = perceptual_distance(*features)
        torch.testing.assert_close(stage(batch), (decoded - video).abs().mean() + 2 * distance)
    assert distance > 0


def test_perceptual_distance_is_of_directions():
    one, other = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    assert perceptual_distance([one], [3 * one]) < 1e-10
    torch.testing.assert_close(perceptual_distance([one], [-one]), torch.tensor(4.0))
    both = perceptual_distance([one, other], [other, one])
    torch.testing.assert_close(both, 2 * perceptual_distance([one], [other]))


def test_gradients_reach_the_decoder_alone(parts, build_tiny, batch_of):
    stage, dataset = build_tiny("decoder", components=parts)
    stage(batch_of(dataset, range(2))).backward()
    learning = stage.learning()
    assert learning and all(name.startswith("vae.decoder.") for name in learning)
    assert all(value.grad is not None for value in learning.values())
    others = [value for name, value in stage.named_parameters() if name not in learning]
    assert all(value.grad is None for value in (*others, *stage.frozen["teacher"].parameters()))


def test_clips_are_decoded_as_they_are_alone(parts, build_tiny):
    stage, _ = build_tiny("decoder", components=parts)
    latents = torch.randn(3, 4, 4, 8, 8)
    with torch.no_grad():
        together = decode(stage.vae, latents)
        apart = torch.cat([decode(stage.vae, one[None]) for one in latents])
    assert together.shape == (3, 3, 4, 16, 16)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_a_stopped_run_goes_on_as_if_it_had_not(parts, tiny_config, forked_train, differences, tmp_path):
    whole, stopped = (tiny_config("decoder", tmp_path / run, components=parts) for run in ("whole", "stopped"))
    assert forked_train(whole).codes == [0]
    assert forked_train(stopped, signal=[15, 3]).codes == [143]
    assert forked_train(stopped).codes == [0]
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []


def test_what_does_not_fit_is_named(parts, build_tiny, tmp_path):
    other = next(make for name, make in KINDS.items() if name != class_of(parts))()
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"components\.teacher: a .*, the student is a Pruned"):
        build_tiny("decoder", components={**parts, "teacher": {"path": str(tmp_path / "other")}})
    for field, value in (("latent_channels", 6), ("scaling_factor", 0.5)):
        changed = type(other).from_config(other.config, **{field: value})
        changed.save_pretrained(tmp_path / field)
        pair = {"vae": {"path": str(tmp_path / "other")}, "teacher": {"path": str(tmp_path / field)}}
        with pytest.raises(ValueError, match=rf"components\.teacher\.{field}: {value}, the student has"):
            build_tiny("decoder", components=pair)
    stranger = KINDS[class_of(parts)]()  # the same layout with other weights
    stranger.save_pretrained(tmp_path / "stranger")
    with pytest.raises(ValueError, match=r"components\.vae: its encoder is not the teacher's"):
        build_tiny("decoder", components={**parts, "teacher": {"path": str(tmp_path / "stranger")}})
    with pytest.raises(ValueError, match=r"validation\.data\.width: 17 is no multiple of the autoencoder's 2"):
        build_tiny("decoder", components=parts, validation__data__width=17)
    with pytest.raises(ValueError, match=r"components\.teacher\.path: some/model is no folder here"):
        build_tiny("decoder", components={**parts, "teacher": {"path": "some/model"}})
    with pytest.raises(ValueError, match="components: the stage 'decoder' needs 'teacher'"):
        build_tiny("decoder", components={"vae": parts["vae"]})
    folded = {"class": "AutoencoderPixelUnshuffle", "config": {"patch_size": 2}}
    with pytest.raises(ValueError, match=r"components\.vae: a AutoencoderPixelUnshuffle has no decoder"):
        build_tiny("decoder", components={**parts, "vae": folded})


def test_other_stages_refuse_such_decoders(parts, build_tiny, tmp_path):
    KINDS["AutoencoderKLTemporalDecoder"]().save_pretrained(tmp_path / "vae")
    for path in (str(tmp_path / "vae"), parts["vae"]["path"]):
        with pytest.raises(ValueError, match=r"components\.vae: a .* is for the stage 'decoder'"):
            build_tiny("autoencoder", components__vae={"path": path})
    with pytest.raises(ValueError, match=r"objective\.perceptual_weight\s+Extra inputs are not permitted"):
        build_tiny("autoencoder", objective={"perceptual_weight": 0.5})
