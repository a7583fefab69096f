"""Metrics of pairs: closed forms, SSIM by its definition, and LPIPS in the layout of its published weights."""

import math

import pytest
import torch
from torch import nn

from cmd_video.evaluation.metrics.paired import flicker, paired_metrics, ssim
from cmd_video.evaluation.networks.lpips import LPIPS, build_lpips, published_names


def clips(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_of_a_known_error():
    target = clips(2, 3, 4, 32, 32) * 0.5
    values = paired_metrics(target + 0.1, target)
    assert values["psnr"] == pytest.approx([10 * math.log10(4 / 0.01)] * 2, rel=1e-4)
    same = paired_metrics(target, target)
    assert same["psnr"] == pytest.approx([60, 60]) and same["ssim"] == pytest.approx([1, 1])
    assert same["flicker_ratio"] == pytest.approx([1, 1]) and "ms_ssim" not in same and "lpips" not in same


def test_a_batch_is_its_clips_one_by_one():
    made, true = clips(3, 3, 2, 176, 180), clips(3, 3, 2, 176, 180, seed=1)
    network = LPIPS("alex").eval()
    together = paired_metrics(made, true, network)
    assert set(together) == {"psnr", "ssim", "ms_ssim", "lpips", "flicker_ratio"}
    for number in range(3):
        alone = paired_metrics(made[number : number + 1], true[number : number + 1], network)
        assert {name: float(value[number]) for name, value in together.items()} == pytest.approx(
            {name: float(value) for name, value in alone.items()}, rel=1e-4, abs=1e-5
        )


def test_ms_ssim_begins_where_its_scales_fit():
    assert "ms_ssim" not in paired_metrics(clips(1, 3, 2, 175, 200), clips(1, 3, 2, 175, 200))


def test_flicker_is_the_mean_change_between_frames():
    video = torch.zeros(1, 3, 3, 8, 8)
    video[:, :, 1] = 0.3  # up by 0.3 and down again
    assert flicker(video) == pytest.approx(0.3)
    noise = 0.2 * clips(1, 3, 8, 16, 16)
    smooth = torch.linspace(-0.5, 0.5, 8).view(1, 1, 8, 1, 1).expand(1, 3, 8, 16, 16)
    assert paired_metrics(smooth + noise, smooth)["flicker_ratio"] > 1.2


def published(network, model):
    """Weights as they are published: a classifier that goes on behind the features, and five heads."""
    backbone = {name: value for name, value in model.state_dict().items() if name.startswith("features.")}
    backbone |= {"features.99.weight": torch.zeros(1), "classifier.6.bias": torch.zeros(1000)}
    heads = {f"lin{n}.model.1.weight": torch.rand(1, len(head), 1, 1) for n, head in enumerate(model.heads)}
    return backbone, heads


@pytest.mark.parametrize(("network", "layers"), [("alex", 5), ("vgg", 13)])
def test_lpips_is_its_definition_on_published_names(network, layers):
    torch.manual_seed(0)
    model = LPIPS(network).eval()
    assert sum(isinstance(layer, nn.Conv2d) for layer in model.features) == layers
    backbone, heads = published(network, model)
    model.load_state_dict(published_names(model, backbone, heads))
    first, second = clips(2, 3, 64, 48), clips(2, 3, 64, 48, seed=1)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, y = (((pictures + 1) / 2 - mean) / deviation for pictures in (first, second))
    expected, head = torch.zeros(2), 0
    with torch.no_grad():
        for number, layer in enumerate(model.features):
            x, y = layer(x), layer(y)
            if number in model.taps:
                unit = [f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y)]
                expected += ((unit[0] - unit[1]) ** 2 * heads[f"lin{head}.model.1.weight"]).sum(1).mean((1, 2))
                head += 1
        assert head == 5
        assert torch.allclose(model(first, second), expected, rtol=2e-2)  # its shift and scale are rounded
        assert torch.equal(model(first, first), torch.zeros(2))
        assert torch.allclose(model(first, second), model(second, first))


@torch.no_grad()
@pytest.mark.parametrize(
    ("network", "groups"),
    [
        ("alex", [[(0, 4, 2)], "pool", [(3, 1, 2)], "pool", [(6, 1, 1)], [(8, 1, 1)], [(10, 1, 1)]]),
        (
            "vgg",
            [
                [(0, 1, 1), (2, 1, 1)], "pool", [(5, 1, 1), (7, 1, 1)], "pool", [(10, 1, 1), (12, 1, 1), (14, 1, 1)],
                "pool", [(17, 1, 1), (19, 1, 1), (21, 1, 1)], "pool", [(24, 1, 1), (26, 1, 1), (28, 1, 1)],
            ],
        ),
    ],
)  # fmt: skip
def test_lpips_looks_where_its_authors_look(network, groups):
    """By hand: number in torchvision's `features`, stride and padding of each convolution; a head behind a group."""
    torch.manual_seed(0)
    model = LPIPS(network).eval()
    state = {name: value * 1.5 for name, value in model.state_dict().items() if name.startswith("features.")}
    heads = [torch.rand(len(head)) for head in model.heads]
    model.load_state_dict({**state, **{f"heads.{number}": head for number, head in enumerate(heads)}})
    first, second = clips(2, 3, 64, 64), clips(2, 3, 64, 64, seed=1)
    x, y = (((p + 1) / 2 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) for p in (first, second))
    x, y = (p / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) for p in (x, y))
    kernel, expected, tap = 3 if network == "alex" else 2, torch.zeros(2), iter(heads)
    for group in groups:
        if group == "pool":
            x, y = (nn.functional.max_pool2d(p, kernel, 2) for p in (x, y))
            continue
        for number, stride, padding in group:
            weights = [state[f"features.{number}.{leaf}"] for leaf in ("weight", "bias")]
            x, y = (nn.functional.conv2d(p, *weights, stride, padding).relu() for p in (x, y))
        apart = nn.functional.normalize(x) - nn.functional.normalize(y)
        expected += (apart.square() * next(tap).view(-1, 1, 1)).sum(1).mean((1, 2))
    assert torch.allclose(model(first, second), expected, rtol=2e-2)  # its shift and scale are rounded


def test_published_heads_fit(shared_weights):
    for network in ("alex", "vgg"):
        file = next(shared_weights.glob(f"*/{network}_v0.1.pth"))
        model = LPIPS(network)
        backbone, _ = published(network, model)
        state = published_names(model, backbone, torch.load(file, weights_only=True, map_location="cpu"))
        model.load_state_dict(state)
        assert all((head >= 0).all() for head in model.heads)


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="lpips: 'squeeze' is none of alex, vgg"):
        build_lpips("squeeze", tmp_path)
    with pytest.raises(ValueError, match="weights: no alexnet-owt-7be5be79.pth in"):
        build_lpips("alex", tmp_path)
    with pytest.raises(ValueError, match="pictures: expected two"):
        LPIPS("alex")(clips(1, 3, 16, 64), clips(1, 3, 16, 64))
    with pytest.raises(ValueError, match="weights: the heads of LPIPS lack 'lin0"):
        published_names(LPIPS("alex"), {}, {})
    with pytest.raises(ValueError, match="clips: expected two"):
        paired_metrics(clips(1, 3, 2, 8, 8), clips(1, 3, 3, 8, 8))


def test_a_still_target_has_no_flicker_ratio():
    still = torch.zeros(1, 3, 4, 16, 16)
    noisy = still + 0.1 * torch.randn(still.shape, generator=torch.Generator().manual_seed(0))
    assert paired_metrics(noisy, still)["flicker_ratio"].isnan().all()


def test_frames_smaller_than_the_window_of_ssim():
    with pytest.raises(ValueError, match="frames of 4x4, SSIM's window needs 11x11 or more"):
        paired_metrics(torch.zeros(1, 3, 2, 4, 4), torch.zeros(1, 3, 2, 4, 4))


def by_definition(first, second, crop=0):
    """Wang et al. 2004, equation 13, with a Gaussian window of 11 and sigma 1.5, on pictures in [0, 255] with
    mirrored borders, of which `crop` pixels are left out at the end.
    """
    line = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2)).double()
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def blurred(x):
        padded = nn.functional.pad(x, (5, 5, 5, 5), mode="reflect")
        return nn.functional.conv2d(padded.flatten(0, 1)[:, None], window)

    x, y = ((video.double().transpose(1, 2).flatten(0, 1) + 1) * 127.5 for video in (first, second))
    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similar /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    inside = slice(crop, -crop or None)
    return similar[..., inside, inside].mean().item()


def test_ssim_is_its_definition():
    draw = torch.Generator().manual_seed(0)
    first = torch.rand(1, 3, 2, 32, 40, generator=draw) * 2 - 1
    second = (first + 0.3 * torch.randn(first.shape, generator=draw)).clamp(-1, 1)
    assert ssim(second, first).item() == pytest.approx(by_definition(second, first), abs=1e-4)


def test_ssim_counts_the_border_where_scikit_image_does_not():
    """One number, worked out by hand once: a wrong border moves it by far more than the rounding.

    A ramp against the ramp with a bright left edge, 32x40. scikit-image leaves five pixels on each side out, where
    here they are mirrored; other versions of torchmetrics may do as it does, and then this fails.
    """
    ramp = torch.linspace(-0.5, 0.5, 40).view(1, 1, 1, 1, 40).expand(1, 3, 1, 32, 40).clone()
    edge = ramp.clone()
    edge[..., :4] += 0.5
    everywhere, inside = (by_definition(edge, ramp, crop) for crop in (0, 5))
    assert abs(everywhere - inside) > 0.02
    assert ssim(edge, ramp).item() == pytest.approx(everywhere, abs=1e-4)
