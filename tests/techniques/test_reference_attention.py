"""Adapters that look at a reference: fresh ones say nothing, the model under them stays, rows stay apart."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from cmd_video.denoisers.content import ContentDenoiser
from cmd_video.denoisers.references import ROW, reference_row, unet_references
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.objective import DenoisingSettings
from cmd_video.techniques.reference_attention import FILE, FOLDER, Settings, attach, detach

CONFIG = {  # as Stable Diffusion's
    "block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 8, "norm_num_groups": 4,
    "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "in_channels": 4, "out_channels": 4,
}  # fmt: skip


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(**CONFIG).eval()


def inputs(count=2):
    draw = torch.Generator().manual_seed(1)
    x, reference = (torch.randn(count, 4, 8, 8, generator=draw) for _ in range(2))
    return x, reference, torch.arange(count) * 300, torch.randn(count, 5, 8, generator=draw)


def asked(unet, x, reference, t, text):
    row = torch.zeros(len(x), 5, *x.shape[2:]) if reference is None else reference_row({0: reference}, 1)[:, 0]
    with torch.no_grad():
        return unet(torch.cat([x, row], dim=1), t, text).sample


def awake(unet):
    for name, value in unet.named_parameters():
        if ".processor.to_out" in name:
            torch.nn.init.normal_(value, std=0.3)
    return unet


def test_fresh_adapters_are_the_base_and_taken_off_it_is_itself_again(unet):
    x, reference, t, text = inputs()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    with torch.no_grad():
        base = unet(x, t, text).sample
    assert unet_references(Settings().edit(unet)) == 1
    torch.testing.assert_close(asked(unet, x, reference, t, text), base, rtol=0, atol=1e-6)
    learns = {name for name, value in unet.named_parameters() if value.requires_grad}
    assert learns == {name for name, _ in unet.named_parameters() if ".processor." in name}
    changed = asked(awake(unet), x, reference, t, text)
    assert (changed - base).abs().max() > 1e-3
    torch.testing.assert_close(asked(unet, x, None, t, text), base, rtol=0, atol=1e-6)  # no reference, no difference
    assert len(detach(unet)) == 2 * sum(name.endswith("attn1") for name, _ in unet.named_modules())
    with torch.no_grad():
        assert torch.equal(unet(x, t, text).sample, base)
    assert unet.config.in_channels == 4
    after = unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_rows_stay_apart_and_references_count(unet):
    x, reference, t, text = inputs()
    awake(Settings().edit(unet))
    both = asked(unet, x, reference, t, text)
    for number in range(2):
        one = slice(number, number + 1)
        alone = asked(unet, x[one], reference[one], t[one], text[one])
        torch.testing.assert_close(both[one], alone, rtol=0, atol=1e-5)
    assert (both - asked(unet, x, reference.flip(0), t, text)).abs().max() > 1e-3


def test_a_few_steps_learn_and_leave_the_base_as_it_is(tiny_components):
    torch.manual_seed(0)
    components = tiny_components()
    unet = components["unet"]
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    Settings().edit(unet)
    denoiser = ContentDenoiser(components)
    objective = DenoisingSettings(condition_dropout=0.0).build(denoiser, unet)
    clips = torch.rand(4, 3, 4, 16, 16) * 2 - 1
    batch = {"video": clips, "prompt": ["a red circle moves up"] * 4, "class_label": torch.full((4,), -1)}
    with torch.no_grad():
        x_0, condition = denoiser.example(batch)
    assert condition[ROW].shape == (4, 1, 13, *x_0.shape[2:])
    optimizer = torch.optim.AdamW([value for value in unet.parameters() if value.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        loss = objective.loss(unet, x_0, condition, Draws.of(0, torch.arange(4)), 0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert detach(unet)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_a_run_leaves_the_base_and_a_file_that_fits_any_such_unet(tmp_path, tiny_config, run_train, unet):
    folder = run_train(tiny_config("content", tmp_path / "run", edit={"kind": "reference_attention"},
                                   loop__steps=2, loop__validate_every=2))  # fmt: skip
    assert (folder / FOLDER / FILE).is_file()
    assert json.loads((folder / "unet" / "config.json").read_text())["in_channels"] == 12
    base = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert unet_references(attach(base, folder / FOLDER)) == 1
    with pytest.raises(ValueError, match="the UNet takes 25 channels, of given frames already"):
        attach(base, folder / FOLDER)
    with pytest.raises(ValueError, match=r"adapters.safetensors: .* is not in both|adapters of another UNet"):
        attach(unet, folder / FOLDER)
    assert unet.config.in_channels == 4
    with pytest.raises(ValueError, match="folder: no adapters.safetensors in"):
        attach(unet, tmp_path)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="'reference_attention' is for UNets, not for a Linear"):
        Settings().edit(torch.nn.Linear(1, 1))
    plain = {**CONFIG, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    with pytest.raises(ValueError, match="the UNet has no self-attention"):
        Settings().edit(UNet2DConditionModel(**plain, mid_block_type=None))
    assert Settings(count=0).finish(None) == {}
