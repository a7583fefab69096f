"""Networks: shapes of their layers, names and number of their weights as published, padding as in TensorFlow."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cmd_video.evaluation.networks.classic import C3D, I3D, INCEPTIONS, SqueezeNet, _MaxPool3d, _pad_same, _Unit3D
from cmd_video.evaluation.networks.extractors import build_extractor
from cmd_video.evaluation.networks.videomae2 import VideoMAE2, load_videomae2, renamed
from cmd_video.evaluation.networks.weights import WEIGHT_FILES
from cmd_video.models.published import load_exactly
from cmd_video.pipelines.shipped import sprites_folder
from cmd_video.sprites.classifier import SpriteClassifier
from cmd_video.sprites.scenes import SpritesDataset


@pytest.fixture(scope="module")
def i3d():
    torch.manual_seed(0)
    return I3D().eval()


def test_i3d_has_the_shapes_of_the_paper(i3d):
    """Figure 3 of arXiv 1705.07750, for 16 frames."""
    expected = {
        "Conv3d_1a_7x7": (64, 8, 112, 112),
        "MaxPool3d_2a_3x3": (64, 8, 56, 56),
        "Conv3d_2c_3x3": (192, 8, 56, 56),
        "MaxPool3d_3a_3x3": (192, 8, 28, 28),
        "Mixed_3c": (480, 8, 28, 28),
        "MaxPool3d_4a_3x3": (480, 4, 14, 14),
        "Mixed_4f": (832, 4, 14, 14),
        "MaxPool3d_5a_2x2": (832, 2, 7, 7),
        "Mixed_5c": (1024, 2, 7, 7),
        "avg_pool": (1024, 1, 1, 1),
        "logits": (400, 1, 1, 1),
    }
    found = {}
    handles = [
        layer.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, tuple(out.shape[1:])))
        for name, layer in i3d.named_children()
    ]
    with torch.no_grad(), torch.device("meta"):
        assert I3D().eval()(torch.empty(2, 3, 16, 224, 224)).shape == (2, 400)
    with torch.no_grad():
        assert i3d(torch.zeros(1, 3, 16, 224, 224)).shape == (1, 400)
    for handle in handles:
        handle.remove()
    assert {name: found[name] for name in expected} == expected


def test_i3d_has_the_published_weights(i3d):
    names = set(i3d.state_dict())
    branches = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
    units = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    units += [f"Mixed_{block}.{branch}" for block in INCEPTIONS for branch in branches]
    leaves = ("conv3d.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    expected = {f"{unit}.{leaf}" for unit in units for leaf in leaves} | {"logits.conv3d.weight", "logits.conv3d.bias"}
    assert names == expected
    numbers = sum(value.numel() for value in i3d.state_dict().values() if value.is_floating_point())
    assert 0 < WEIGHT_FILES["i3d"].size - 4 * numbers < 100_000  # the published file holds little beside them


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (9, 7, 2), (5, 2, 2), (6, 3, 1)])
def test_padding_is_tensorflows(size, kernel, stride):
    x = torch.arange(1.0, size + 1).view(1, 1, 1, 1, size)
    padded = _pad_same(x, (1, 1, kernel), (1, 1, stride))[0, 0, 0, 0]
    outputs = -(-size // stride)
    assert len(padded.unfold(0, kernel, stride)) == outputs
    before, after = int((padded[: size // 2] == 0).sum()), int((padded[size // 2 :] == 0).sum())
    assert before in (after, after - 1)  # as many on both sides, the odd one behind


@torch.no_grad()
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),  # in front and behind, of frames, rows and columns
    [
        (7, 2, ((2, 3), (2, 3), (3, 3))),
        (3, 2, ((0, 1), (0, 1), (1, 1))),
        (3, 1, ((1, 1), (1, 1), (1, 1))),
        (1, 1, ((0, 0), (0, 0), (0, 0))),
    ],
)
@pytest.mark.parametrize("layer", ["convolution", "pool"])
def test_i3d_pads_as_tensorflow_does(layer, kernel, stride, pads):
    """Clips of 6 frames of 8x9, padded by hand: an even size gets the odd zero behind."""
    torch.manual_seed(0)
    clip = torch.randn(1, 3, 6, 8, 9) - 1.0  # a zero is more than most: a pool sees the border
    around = [side for pair in reversed(pads) for side in pair]
    if layer == "convolution":
        unit = _Unit3D(3, 4, kernel, stride).eval()
        expected = nn.functional.conv3d(F.pad(clip, around), unit.conv3d.weight, stride=stride)
        expected = F.relu(expected / (1 + unit.bn.eps) ** 0.5)
    else:
        unit = _MaxPool3d((kernel,) * 3, (stride,) * 3)
        expected = F.max_pool3d(F.pad(clip, around), kernel, stride)
    torch.testing.assert_close(unit(clip), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape[2:] == tuple(-(-size // stride) for size in (6, 8, 9))


@torch.no_grad()
def test_c3d_takes_its_mean_color_from_red_green_blue():
    """The mean color is what the first layer sees as nothing; in another order it would not be."""
    with torch.device("meta"):
        model = C3D().eval()  # only its first layer's input is looked at
    color = torch.tensor([104.0, 117.0, 128.0]).view(1, 3, 1, 1, 1)  # MMAction2's configuration, of RGB
    for video, nothing in ((color, True), (color.flip(1), False)):
        seen = []
        model.conv1a.forward = lambda x, seen=seen: seen.append(x) or torch.empty(1, 64, 16, 112, 112, device="meta")
        model(video.expand(1, 3, 16, 112, 112))
        assert bool((seen[0] == 0).all()) is nothing


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="weights: some.pt does not fit I3D"):
        load_exactly(I3D(), nn.Linear(1, 1).state_dict(), Path("some.pt"))


def test_c3d_has_the_published_size():
    """What MMAction2's metafile says: parameters, and multiply-adds of a clip of 16x112x112."""
    with torch.device("meta"):
        model = C3D().eval()
        video = torch.empty(1, 3, 16, 112, 112)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model(video).shape == (1, 101)
    assert sum(parameter.numel() for parameter in model.parameters()) == 78_409_573
    assert counter.get_total_flops() / 2 == pytest.approx(38_615_475_200, rel=0.005)


@torch.no_grad()
def test_c3d_opens_the_published_layout_and_its_classes_are_scored(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = C3D().eval().half().float()
    parts = {"conv": "backbone.{}.conv", "fc6": "backbone.{}", "fc7": "backbone.{}", "fc_cls": "cls_head.{}"}
    state = {}
    for name, value in model.state_dict().items():
        layer, leaf = name.rsplit(".", 1)
        part = next(form for start, form in parts.items() if layer.startswith(start))
        state[f"{part.format(layer)}.{leaf}"] = value.half()
    assert {"backbone.conv1a.conv.weight", "backbone.fc6.bias", "cls_head.fc_cls.weight"} <= set(state)
    path = tmp_path / WEIGHT_FILES["c3d"].file
    torch.save({"meta": {"epoch": 45}, "state_dict": state}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(WEIGHT_FILES, "c3d", replace(WEIGHT_FILES["c3d"], sha256=digest))
    extractor = build_extractor("c3d", tmp_path)
    frames = torch.randint(0, 256, (1, 17, 128, 171, 3), dtype=torch.uint8)
    video = frames[:, :16, 8:120, 29:141].permute(0, 4, 1, 2, 3).float()
    logits = extractor(frames)
    torch.testing.assert_close(logits, model(video))
    assert torch.equal(extractor.classify(logits), logits)
    square = torch.randint(0, 256, (1, 16, 128, 128, 3), dtype=torch.uint8)
    video = square[:, :, 8:120, 8:120].permute(0, 4, 1, 2, 3).float()  # not stretched
    torch.testing.assert_close(extractor(square), model(video))
    with pytest.raises(ValueError, match="c3d needs 16 or more, got 8"):
        extractor(frames[:, :8])


def test_weights_with_code_in_them_are_refused(tmp_path, monkeypatch):
    path = tmp_path / WEIGHT_FILES["c3d"].file
    torch.save({"state_dict": C3D.WIDTHS, "meta": replace}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHT_FILES, "c3d", replace(WEIGHT_FILES["c3d"], sha256=digest))
    with pytest.raises(ValueError, match="holds more than weights"):
        build_extractor("c3d", tmp_path)


@torch.no_grad()
def test_squeezenet_sees_pictures_in_blue_green_red():
    """The mean color, in its own order of channels, is what the first layer sees as nothing."""
    torch.manual_seed(0)
    model, blind = SqueezeNet().eval(), SqueezeNet().eval()
    blind.load_state_dict(model.state_dict())
    blind.conv1.weight.zero_()
    blue_green_red = torch.tensor(SqueezeNet.MEAN).view(1, 3, 1, 1).expand(1, 3, 64, 48)
    mean = blue_green_red.flip(1)
    assert model(mean).shape == (1, 512)
    assert torch.allclose(model(mean), blind(mean), atol=1e-6)
    assert not torch.allclose(model(blue_green_red), blind(mean), atol=1e-6)


def test_published_squeezenet(shared_weights):
    extractor = build_extractor("squeezenet", shared_weights)
    frames = torch.randint(0, 256, (2, 3, 40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extractor(frames)
    assert features.shape == (6, 512) and features.dtype == torch.float32 and features.std() > 0.01
    assert torch.allclose(extractor(frames[1:]), features[3:], atol=1e-4)


@pytest.fixture(scope="module", params=["videomae", "vjepa2"])
def video_transformer(request, tmp_path_factory):
    from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16}
    if request.param == "videomae":
        model = VideoMAEModel(VideoMAEConfig(**shape, image_size=32, num_frames=4, intermediate_size=32))
    else:
        predictor = {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
        model = VJEPA2Model(VJEPA2Config(**shape, **predictor, crop_size=32, frames_per_clip=4))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return f"{request.param}:{folder}"


TINY = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "patch_size": 14,
    "image_size": 28, "num_frames": 4,
}  # fmt: skip


def published_videomae2(hidden=24, depth=2, inner=40, patch=14, classes=5) -> dict[str, torch.Tensor]:
    """Random weights under the names of VideoMAE-v2's files."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.2 * torch.randn(*shape, generator=generator)

    state = {"patch_embed.proj.weight": draw(hidden, 3, 2, patch, patch), "patch_embed.proj.bias": draw(hidden)}
    for number in range(depth):
        shapes = {
            "norm1.weight": (hidden,), "norm1.bias": (hidden,), "attn.q_bias": (hidden,), "attn.v_bias": (hidden,),
            "attn.qkv.weight": (3 * hidden, hidden), "attn.proj.weight": (hidden, hidden), "attn.proj.bias": (hidden,),
            "norm2.weight": (hidden,), "norm2.bias": (hidden,), "mlp.fc1.weight": (inner, hidden),
            "mlp.fc1.bias": (inner,), "mlp.fc2.weight": (hidden, inner), "mlp.fc2.bias": (hidden,),
        }  # fmt: skip
        state |= {f"blocks.{number}.{name}": draw(*shape) for name, shape in shapes.items()}
    shapes = {"fc_norm.weight": (hidden,), "fc_norm.bias": (hidden,), "head.weight": (classes, hidden)}
    return state | {name: draw(*shape) for name, shape in shapes.items()} | {"head.bias": draw(classes)}


def by_hand(state, video, heads=2, depth=2):
    """VideoMAE-v2 written out with plain functions: (B, 3, F, H, W) -> (B, D)."""
    x = F.conv3d(video, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=(2, 14, 14))
    x = x.flatten(2).transpose(1, 2)
    count, width = x.shape[1:]
    rate = 10000 ** (-2 * (torch.arange(width) // 2) / width)
    angle = torch.arange(count)[:, None] * rate
    x = x + torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())
    for number in range(depth):
        part = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"blocks.{number}.")}
        h = F.layer_norm(x, (width,), part["norm1.weight"], part["norm1.bias"], 1e-6)
        bias = torch.cat([part["attn.q_bias"], torch.zeros(width), part["attn.v_bias"]])
        qkv = F.linear(h, part["attn.qkv.weight"], bias).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        h = (qkv[0] @ qkv[1].transpose(2, 3) * (width // heads) ** -0.5).softmax(dim=-1) @ qkv[2]
        x = x + F.linear(h.transpose(1, 2).flatten(2), part["attn.proj.weight"], part["attn.proj.bias"])
        h = F.layer_norm(x, (width,), part["norm2.weight"], part["norm2.bias"], 1e-6)
        h = F.gelu(F.linear(h, part["mlp.fc1.weight"], part["mlp.fc1.bias"]))
        x = x + F.linear(h, part["mlp.fc2.weight"], part["mlp.fc2.bias"])
    return F.layer_norm(x.mean(dim=1), (width,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)


def test_videomae2_is_what_its_weights_say(tmp_path):
    state = published_videomae2()
    for wrapped in (state, {"module": state}, {"model": state}):
        torch.save(wrapped, tmp_path / "weights.pth")
        model = load_videomae2(tmp_path / "weights.pth", **TINY)
        video = torch.rand(2, 3, 4, 28, 28, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model(video), by_hand(state, video), atol=1e-5, rtol=1e-4)
    broken = {name: value for name, value in state.items() if name != "blocks.1.attn.v_bias"}
    torch.save(broken, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="does not fit VideoMAE2: .*value.bias"):
        load_videomae2(tmp_path / "weights.pth", **TINY)
    torch.save({"module": state, "args": Path("code")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds more than weights"):
        load_videomae2(tmp_path / "weights.pth", **TINY)
    torch.save(state, tmp_path / "weights.pth")
    whole = (tmp_path / "weights.pth").read_bytes()
    for other in (b"", b"no weights", whole[:500]):
        (tmp_path / "weights.pth").write_bytes(other)
        with pytest.raises(ValueError, match="weights"):
            load_videomae2(tmp_path / "weights.pth", **TINY)
    for other in ([1], torch.zeros(2), {"a": 1}):
        torch.save(other, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="holds other things than tensors by name"):
            load_videomae2(tmp_path / "weights.pth", **TINY)


def test_videomae2_at_its_published_size():
    with torch.device("meta"):
        model = VideoMAE2()
        state = renamed(published_shapes())
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: tuple(value.shape) for name, value in state.items()
    }
    assert sum(weight.numel() for weight in model.parameters()) == 1_011_610_752


def published_shapes() -> dict[str, torch.Tensor]:
    """ViT-g's layout, without numbers."""
    small = published_videomae2()
    sizes = {24: 1408, 72: 3 * 1408, 40: 6144}
    blocks = {name: value for name, value in small.items() if name.startswith("blocks.0.")}
    rest = {name: value for name, value in small.items() if not name.startswith("blocks.")}
    whole = rest | {
        name.replace("blocks.0.", f"blocks.{number}."): value for number in range(40) for name, value in blocks.items()
    }
    return {name: torch.empty([sizes.get(side, side) for side in value.shape]) for name, value in whole.items()}


def test_the_extractor_of_content_debiased_fvd(tmp_path, monkeypatch):
    torch.save(published_videomae2(), tmp_path / "weights.pth")
    monkeypatch.setattr(
        "cmd_video.evaluation.networks.videomae2.load_videomae2",
        lambda path: load_videomae2(path, **{**TINY, "image_size": 224, "num_frames": 16}),
    )
    extractor = build_extractor(f"videomaev2:{tmp_path / 'weights.pth'}")
    frames = torch.randint(0, 256, (2, 16, 40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extractor(frames)
    assert features.shape == (2, 24) and len(extractor.sha256) == 64 and extractor.per == "clip"
    small = F.interpolate(frames.flatten(0, 1).permute(0, 3, 1, 2) / 255, (224, 224), mode="bilinear")
    expected = by_hand(published_videomae2(), small.unflatten(0, (2, 16)).transpose(1, 2))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="videomaev2.* needs 16 or more, got 8"):
        extractor(frames[:, :8])
    with pytest.raises(ValueError, match="weights: no file /nowhere"):
        build_extractor("videomaev2:/nowhere")
    with pytest.raises(ValueError, match="videomaev2 needs the file vit_g_hybrid_pt_1200e_ssv2_ft.pth"):
        build_extractor("videomaev2")


def test_video_transformers_give_a_feature_per_clip(video_transformer):
    extractor = build_extractor(video_transformer)
    frames = torch.randint(0, 256, (2, 8, 40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extractor(frames)
    assert features.shape == (2, 24) and len(extractor.sha256) == 64 and extractor.per == "clip"
    assert torch.allclose(extractor(frames[1:]), features[1:], atol=1e-4)
    assert not torch.allclose(extractor(frames.flip(1)), features, atol=1e-3)  # it sees the order
    assert build_extractor(video_transformer).sha256 == extractor.sha256


def test_the_action_classifier_sees_order():
    dataset = SpritesDataset(24, seed=5, split="held_out")
    clips = torch.stack([((dataset[number]["video"] + 1) * 127.5).byte().permute(1, 2, 3, 0) for number in range(24)])
    extractor = build_extractor("sprites-action")
    features = extractor(clips)
    assert features.shape == (24, 96) and extractor.per == "clip" and len(extractor.sha256) == 64
    torch.testing.assert_close(
        features[:3], torch.cat([extractor(clip[None]) for clip in clips[:3]]), atol=1e-3, rtol=0
    )
    logits = SpriteClassifier.from_pretrained(sprites_folder() / "classifiers" / "action").classify(features)
    truth = torch.tensor([dataset[number]["class_label"] for number in range(24)])
    assert (logits.argmax(1) == truth).float().mean() > 0.9
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert (extractor(clips[:, order]) - features).norm() > 0.3 * features.norm()


def test_the_appearance_classifier_sees_frames_and_not_their_order():
    dataset = SpritesDataset(24, seed=5, split="held_out")
    clips = torch.stack([((dataset[number]["video"] + 1) * 127.5).byte().permute(1, 2, 3, 0) for number in range(24)])
    extractor = build_extractor("sprites-appearance")
    features = extractor(clips)
    assert features.shape == (24 * 16, 96) and extractor.per == "frame" and extractor.classify is None
    torch.testing.assert_close(features[:16], extractor(clips[:1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(extractor(clips.flip(1))[:16].flip(0), features[:16], atol=1e-3, rtol=0)
    logits = SpriteClassifier.from_pretrained(sprites_folder() / "classifiers" / "appearance").classify(features)
    truth = torch.stack([dataset[number]["appearance"] for number in range(24)]).repeat_interleave(16, dim=0)
    assert ((logits > 0) == (truth > 0)).float().mean() > 0.95


class Recorder(torch.nn.Module):
    """Takes what StyleGAN-V's TorchScript takes, and gives back what it was told."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        told = torch.tensor([float(rescale), float(resize), float(return_features), float(x.shape[1])])
        return torch.cat([told.expand(x.shape[0], -1), x.flatten(1)[:, :396]], dim=1)


def test_the_torchscript_of_fvd_is_told_what_stylegan_v_tells_it(tmp_path, monkeypatch):
    torch.jit.script(Recorder()).save(str(tmp_path / "i3d_torchscript.pt"))
    digest = hashlib.sha256((tmp_path / "i3d_torchscript.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHT_FILES, "i3d-torchscript", replace(WEIGHT_FILES["i3d-torchscript"], sha256=digest))
    extractor = build_extractor("i3d-torchscript", tmp_path)
    frames = torch.randint(0, 256, (2, 10, 16, 24, 3), dtype=torch.uint8)
    features = extractor(frames)
    assert features.shape == (2, 400) and features[:, :4].tolist() == [[1, 1, 1, 3]] * 2
    pixels = frames.permute(0, 4, 1, 2, 3).float().flatten(1)[:, :396]  # (B, 3, F, H, W) in [0, 255]
    assert torch.equal(features[:, 4:], pixels)
    assert extractor.classify is not None and extractor.sha256 == digest
