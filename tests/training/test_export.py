"""Finished runs become a pipeline, of parts that know each other."""

import pytest
import torch

from cmd_video.models import CMDAutoencoder
from cmd_video.pipelines import CMDPipeline
from cmd_video.training.export import export_pipeline


@pytest.fixture(scope="module")
def three_runs(tiny_config, run_train, tmp_path_factory):
    """Folders of an autoencoder's run, and of a content and a motion model that were trained with it."""
    root = tmp_path_factory.mktemp("runs")
    runs = [root / name for name in ("autoencoder", "content", "motion")]
    for run in runs:
        config = tiny_config(run.name, run, loop__steps=2)
        if run.name != "autoencoder":
            config["components"]["autoencoder"] = {"path": str(runs[0] / "pipeline")}
        run_train(config)
    return runs


@pytest.mark.parametrize(
    ("part", "network"),
    [
        ("autoencoder", "unet"),
        ("vae", "unet"),
        ("text_encoder", "unet"),
        ("motion_text_encoder", "motion_transformer"),
    ],
)
def test_networks_are_not_exported_with_parts_that_they_do_not_know(
    part, network, three_runs, tiny_components, tmp_path
):
    names = (part.replace("text_encoder", "tokenizer"), part)
    other = tiny_components(*dict.fromkeys(names), seed=5)
    if part == "vae":
        other[part].register_to_config(scaling_factor=1.0)
    for name, component in other.items():
        component.save_pretrained(tmp_path / "other" / name)
    message = (
        rf"runs: {network} of .* was trained with another (motion_)?(vae|autoencoder|text_encoder|tokenizer) than"
    )
    with pytest.raises(ValueError, match=message):
        export_pipeline([*three_runs, tmp_path / "other"], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_runs_become_a_pipeline(three_runs, tmp_path):
    runs = [three_runs[1], three_runs[2], three_runs[0]]
    folder = export_pipeline(runs, tmp_path / "model", guidance_scale=2.0, motion_guidance_scale=1.5)
    pipe = CMDPipeline.from_pretrained(folder)
    assert (pipe.sampling.content.guidance_scale, pipe.sampling.motion.guidance_scale) == (2.0, 1.5)
    trained = CMDAutoencoder.from_pretrained(runs[2] / "pipeline" / "autoencoder")  # the last of three counts
    assert pipe.autoencoder.config.latents_std == trained.config.latents_std is not None
    assert all(torch.equal(a, b) for a, b in zip(pipe.autoencoder.parameters(), trained.parameters(), strict=True))
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a red circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
    assert out.frames.shape[-2:] == (16, 16) and out.frames.isfinite().all()

    with pytest.raises(ValueError, match="output.*exists"):
        export_pipeline(runs, tmp_path / "model")
    with pytest.raises(ValueError, match="no motion_transformer, motion_scheduler in"):
        export_pipeline([runs[0]], tmp_path / "other")
    (tmp_path / "begun").mkdir()
    with pytest.raises(ValueError, match="begun: no trained components"):
        export_pipeline([*runs, tmp_path / "begun"], tmp_path / "other")
    assert not list(tmp_path.glob("other*"))
