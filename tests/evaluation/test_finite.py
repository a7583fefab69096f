"""No score of NaN: wherever one could enter, it is one line and no number."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cmd_video import AutoencoderPixelUnshuffle, CMDAutoencoder
from cmd_video.data.files import sha256
from cmd_video.evaluation.evaluate import evaluate
from cmd_video.evaluation.metrics.clipsim import measure_captions
from cmd_video.evaluation.metrics.distances import measure
from cmd_video.evaluation.metrics.frechet import FeatureStatistics
from cmd_video.evaluation.metrics.paired import paired_metrics
from cmd_video.evaluation.metrics.pairs import measure_pairs
from cmd_video.evaluation.metrics.reconstruction import ReconstructedClips, measure_reconstruction
from cmd_video.evaluation.networks.extractors import Extractor, build_extractor
from cmd_video.evaluation.networks.lpips import LPIPS
from cmd_video.evaluation.protocol.clips import ArrayClips
from cmd_video.evaluation.protocol.finite import check_finite
from cmd_video.evaluation.protocol.results import write_result
from cmd_video.evaluation.protocol.tables import FeatureTable

NAN = float("nan")


def spoiled(shape, value=NAN):
    """Random numbers but one."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    values.view(-1)[len(values.view(-1)) // 2] = value
    return values


def broken(model):
    """A network with one weight that is NaN."""
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = NAN
    return model.eval()


@pytest.fixture
def clips(tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (12, 4, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "clips.npz", videos=videos)
    return ArrayClips(tmp_path / "clips.npz")


def autoencoder():
    torch.manual_seed(0)
    return broken(
        CMDAutoencoder(
            in_channels=12, sample_size=(8, 8), num_frames=4, dim=16, encoder_depth=1, decoder_depth=1, num_heads=2
        )
    )


class Judge:
    """What CLIPSIM sees of a CLIP model."""

    sha256, size, max_length = "", 224, 77

    def __call__(self, frames, prompts):
        return torch.full((len(prompts),), NAN)

    def num_cut(self, prompts):
        return 0


VAE = AutoencoderPixelUnshuffle(patch_size=2)
HALF = Extractor("half", "clip", 1, "none", None, lambda frames: frames.flatten(1)[:, :3].float() / 0)
TABLE = {"extractor": "a", "extractor_sha256": None, "extractor_resize": "", "frames": 4, "numbers": 3, "clips": 12}
SCORES = {
    "features of a network": lambda clips: HALF(torch.stack(clips.read([0, 1]))),
    "a distance": lambda clips: evaluate(clips, clips, HALF),
    "a distance of reconstructions": lambda clips: evaluate(
        ReconstructedClips(clips, autoencoder(), VAE, {}), clips, build_extractor("pixels")
    ),
    "features of a table": lambda clips: FeatureTable(spoiled((12, 3)), torch.zeros(12), TABLE),
    "infinite features": lambda clips: FeatureTable(spoiled((12, 3), float("inf")), torch.zeros(12), TABLE),
    "motion of a table": lambda clips: FeatureTable(torch.zeros(12, 3), spoiled(12), TABLE),
    "statistics": lambda clips: FeatureStatistics().update(spoiled((12, 3))),
    "a classifier": lambda clips: measure(
        *(FeatureTable(torch.rand(12, 3), torch.rand(12), TABLE) for _ in range(2)), classify=lambda x: x / 0 * 0
    ),
    "a prediction": lambda clips: paired_metrics(spoiled((1, 3, 2, 16, 16)), torch.zeros(1, 3, 2, 16, 16)),
    "a target": lambda clips: paired_metrics(torch.zeros(1, 3, 2, 16, 16), spoiled((1, 3, 2, 16, 16))),
    "pairs": lambda clips: measure_pairs(ReconstructedClips(clips, autoencoder(), VAE, {}), clips),
    "LPIPS": lambda clips: measure_pairs(ArrayClips(*large(clips)), ArrayClips(*large(clips)), broken(LPIPS("alex"))),
    "captions": lambda clips: measure_captions(clips, [str(number) for number in range(12)], Judge()),
    "a reconstruction": lambda clips: measure_reconstruction(clips, autoencoder(), VAE),
}


def large(clips):
    """The first two clips, as large as LPIPS wants them."""
    path = clips.path.with_name("large.npy")
    np.save(path, np.stack([clip.repeat_interleave(4, 1).repeat_interleave(4, 2) for clip in clips.read([0, 1])]))
    return (path,)


@pytest.mark.parametrize("name", SCORES)
def test_nan_is_refused_before_it_is_a_score(name, clips, tmp_path):
    clips.path = tmp_path / "clips.npz"
    with pytest.raises(ValueError, match=r"^\w[\w ]*: .*gives \d+ of \d+ values that are NaN or infinite$"):
        SCORES[name](clips)


def test_a_file_of_features_with_nan_is_no_table(tmp_path):
    FeatureTable(torch.rand(12, 3), torch.rand(12), TABLE).save(tmp_path / "a")
    tensors = load_file(tmp_path / "a.safetensors")
    save_file({**tensors, "features": spoiled((12, 3))}, tmp_path / "a.safetensors")
    record = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**record, "sha256": sha256(tmp_path / "a.safetensors")}))
    with pytest.raises(ValueError, match="a: no table of features: features: the table gives 1 of 36 values"):
        FeatureTable.load(tmp_path / "a")


def test_a_result_of_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"values\.fvd\.value: nan"):
        write_result(tmp_path / "a.json", "distribution", {"fvd": {"value": NAN}}, {})
    assert not list(tmp_path.iterdir())


def test_what_is_finite_passes_as_it_is():
    values = torch.rand(3, 4)
    assert check_finite("a", values) is values
    check_finite("a", torch.ones(2, dtype=torch.uint8))
