"""Inception-v3 for FID: published size and names, and the pools that tell it from the paper's network."""

import hashlib
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cmd_video.evaluation.networks.extractors import build_extractor
from cmd_video.evaluation.networks.inception import InceptionV3
from cmd_video.evaluation.networks.weights import WEIGHT_FILES


def test_inception_has_the_published_size_and_names():
    """Parameters and multiply-adds of torchvision's inception_v3 without its side branch, but for 1008 classes."""
    with torch.device("meta"):
        model = InceptionV3().eval()
        pictures = torch.empty(1, 3, 299, 299)
    shapes = {}
    for name in (
        "Conv2d_2b_3x3",
        "Conv2d_4a_3x3",
        "Mixed_5b",
        "Mixed_5d",
        "Mixed_6a",
        "Mixed_6e",
        "Mixed_7a",
        "Mixed_7c",
    ):
        hook = lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:]))  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model(pictures).shape == (1, 2048)
    assert sum(parameter.numel() for parameter in model.parameters()) == 23_834_568 + 8 * 2049
    assert counter.get_total_flops() / 2 == pytest.approx(5.71e9, rel=0.005)
    assert shapes == {  # arXiv 1512.00567, table 1; the published code has other sizes around the second pool
        "Conv2d_2b_3x3": (64, 147, 147), "Conv2d_4a_3x3": (192, 71, 71), "Mixed_5b": (256, 35, 35),
        "Mixed_5d": (288, 35, 35), "Mixed_6a": (768, 17, 17), "Mixed_6e": (768, 17, 17), "Mixed_7a": (1280, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }  # fmt: skip
    names = set(model.state_dict())
    assert len([name for name in names if name.endswith("conv.weight")]) == 94 and "fc.bias" in names
    some = "Mixed_5b.branch5x5_2 Mixed_6a.branch3x3 Mixed_6e.branch7x7dbl_5 Mixed_7a.branch7x7x3_4"
    assert {
        f"{unit}.bn.running_var" for unit in [*some.split(), "Mixed_7b.branch_pool", "Mixed_7c.branch3x3dbl_3b"]
    } <= names


@torch.no_grad()
def test_inception_pools_as_the_graph_of_2015(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = InceptionV3().eval()
    for name, spread in (("Mixed_5b", "mean"), ("Mixed_7b", "mean"), ("Mixed_7c", "max")):
        block = model.get_submodule(name)
        x = torch.rand(1, block.branch_pool.conv.in_channels, 5, 5)
        corner = getattr(x[:, :, :2, :2].flatten(2), spread)(dim=2)  # of four, not of nine with zeros
        corner = corner.values if spread == "max" else corner
        torch.testing.assert_close(
            block(x)[:, -block.branch_pool.conv.out_channels :, 0, 0],
            block.branch_pool(corner[..., None, None])[..., 0, 0],
        )
    torch.save(model.state_dict(), tmp_path / WEIGHT_FILES["inception"].file)
    digest = hashlib.sha256((tmp_path / WEIGHT_FILES["inception"].file).read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHT_FILES, "inception", replace(WEIGHT_FILES["inception"], sha256=digest))
    extractor = build_extractor("inception", tmp_path)
    frames = torch.randint(0, 256, (1, 2, 299, 299, 3), dtype=torch.uint8)
    torch.testing.assert_close(extractor(frames), model(frames[0].permute(0, 3, 1, 2).float() / 127.5 - 1))
