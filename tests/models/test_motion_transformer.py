"""The motion transformer: zero at the start, positions on any grid, patches, conditions."""

import math

import pytest
import torch
from torch import nn

CONDITIONS = {"num_classes": 3, "text_dim": 5}


def first_tokens(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What enters the first block: (B, S_z + S_c, dim)."""
    caught = []
    handle = model.blocks[0].register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0].clone()))
    model(**inputs)
    handle.remove()
    return caught[0]


def test_a_fresh_model_is_zero_and_its_blocks_the_identity(make_motion_transformer, motion_inputs):
    model = make_motion_transformer(fresh=True, **CONDITIONS)
    sample = model(**motion_inputs(model)).sample
    assert torch.equal(sample, torch.zeros_like(motion_inputs(model)["hidden_states"]))
    x, condition = torch.randn(2, 7, 32), torch.randn(2, 32)
    assert all(torch.equal(block(x, condition), x) for block in model.blocks)
    assert first_tokens(model, motion_inputs(model)).std() > 0.1  # only the gates and the output are shut


@pytest.mark.parametrize(("frames", "height", "width"), [(6, 12, 20), (2, 8, 24), (10, 16, 16), (4, 20, 4)])
def test_positions_by_an_independent_computation(make_motion_transformer, motion_inputs, frames, height, width):
    model = make_motion_transformer()
    for embed in (model.latent_embed, model.content_embed):
        embed.weight.zero_()
        embed.bias.zero_()
    table = first_tokens(model, motion_inputs(model, frames, height, width))[0]

    def sines(first: int, second: int) -> list[float]:
        angles = [[position / 10_000 ** (i / 8) for i in range(8)] for position in (first, second)]
        return [function(angle) for axis in angles for function in (math.sin, math.cos) for angle in axis]

    expected = []
    for frame in range(frames // 2):  # patches of 2; a row of a plane is 2 pixels of the content frame
        for plane, side in enumerate((height, width)):
            for place in range(side // 4):
                expected.append(torch.tensor(sines(frame, place)) + model.plane_embedding[plane])
    for row in range(height // 4):
        for column in range(width // 4):
            expected.append(torch.tensor(sines(row, column)))
    torch.testing.assert_close(table, torch.stack(expected), rtol=1e-4, atol=1e-5)
    latent = table[: frames // 2 * (height + width) // 4]
    distances = torch.cdist(latent, latent) + 10 * torch.eye(len(latent))
    assert distances.min() > 0.05, "two tokens of different frame, place or plane share a position"


def test_the_two_planes_differ_by_their_embedding(make_motion_transformer, motion_inputs):
    model = make_motion_transformer(fresh=True)
    with torch.no_grad():
        for embed in (model.latent_embed, model.content_embed):
            embed.weight.zero_()
    tokens = first_tokens(model, motion_inputs(model, frames=4, height=8, width=8))[
        0, :4
    ]  # frame 0: 2 rows, 2 columns
    difference = model.plane_embedding[1] - model.plane_embedding[0]
    torch.testing.assert_close(tokens[2:] - tokens[:2], difference.expand(2, -1))
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize(("frame", "place"), [(0, 0), (3, 5), (5, 6), (2, 15), (4, 9)])
def test_a_latent_enters_the_token_of_its_frame_and_place(make_motion_transformer, motion_inputs, frame, place):
    model = make_motion_transformer()
    inputs = motion_inputs(model, frames=6, height=12, width=20)  # planes of 6 and 10 places: 3 + 5 tokens per frame
    before = first_tokens(model, inputs)
    inputs["hidden_states"][:, 1, frame, place] += 1
    change = (first_tokens(model, inputs) - before).abs().amax(dim=(0, 2))
    assert (change > 1e-6).nonzero().flatten().tolist() == [frame // 2 * 8 + place // 2]


def test_content_frame_tokens_follow_the_latent_tokens(make_motion_transformer, motion_inputs):
    model = make_motion_transformer()
    inputs = motion_inputs(model, frames=2, height=8, width=12)  # 5 latent tokens, 2 x 3 content tokens
    before = first_tokens(model, inputs)
    inputs["content_frame"][:, 0, 5, 9] += 1
    change = (first_tokens(model, inputs) - before).abs().amax(dim=(0, 2))
    assert before.shape[1] == 5 + 6
    assert (change > 1e-6).nonzero().flatten().tolist() == [5 + 1 * 3 + 2]


@pytest.mark.parametrize(
    ("patch", "frames", "height", "width"), [(1, 3, 4, 8), (2, 6, 12, 20), (2, 2, 8, 8), (4, 8, 8, 24)]
)
def test_unpatchify_undoes_the_patches(make_motion_transformer, motion_inputs, patch, frames, height, width):
    """With layers that only reorder the numbers of a patch, the model is the identity."""
    channels, dim = 4, 4 * patch**2
    model = make_motion_transformer(fresh=True, patch_size=patch, dim=dim, num_heads=1, num_layers=1)
    model.requires_grad_(False)
    model.norm_out = nn.Identity()
    embed = model.embed_content_frame
    model.embed_content_frame = lambda *inputs: torch.zeros_like(embed(*inputs))
    model.latent_embed.weight.copy_(torch.eye(dim).view(dim, channels, patch, patch))  # (channel, row, column)
    order = torch.arange(dim).view(channels, patch, patch).permute(1, 2, 0).flatten()  # (row, column, channel)
    model.proj_out.weight.copy_(torch.eye(dim)[order])
    inputs = motion_inputs(model, frames, height, width)
    torch.testing.assert_close(model(**inputs).sample, inputs["hidden_states"])


@pytest.mark.parametrize("name", ["timestep", "content_frame", "pooled_text", "class_labels", "hidden_states"])
def test_each_input_changes_the_output_of_its_sample_alone(make_motion_transformer, motion_inputs, name):
    model = make_motion_transformer(**CONDITIONS)
    inputs = motion_inputs(model)
    before = model(**inputs).sample
    inputs[name] = inputs[name].clone()
    inputs[name][1] += 1
    change = (model(**inputs).sample - before).abs()
    assert change[0].max() == 0 and change[1].max() > 1e-4


def test_conditions_matter_after_a_few_steps_of_training(make_motion_transformer, motion_inputs):
    model = make_motion_transformer(fresh=True, **CONDITIONS)
    inputs = motion_inputs(model)
    target = torch.randn_like(inputs["hidden_states"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (model(**inputs).sample - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        before = model(**inputs).sample
        for name in ("timestep", "content_frame", "pooled_text", "class_labels"):
            changed = {**inputs, name: inputs[name].flip(0)}
            assert (model(**changed).sample - before).abs().max() > 1e-5, name


def test_every_latent_channel_is_read_and_predicted(make_motion_transformer, motion_inputs):
    model = make_motion_transformer(latent_channels=7)
    inputs = motion_inputs(model)
    before = model(**inputs).sample
    flat = before.transpose(0, 1).flatten(1)
    assert (flat.std(dim=1) > 1e-3).all()
    assert (torch.pdist(flat) > 1e-2).all(), "two channels have one prediction"
    for channel in range(7):
        changed = inputs["hidden_states"].clone()
        changed[:, channel] += 1
        change = (model(**{**inputs, "hidden_states": changed}).sample - before).abs().amax(dim=(0, 2, 3))
        assert (change > 1e-5).all(), f"channel {channel} reaches only {change}"


def test_every_content_channel_is_read(make_motion_transformer, motion_inputs):
    model = make_motion_transformer(content_channels=6)
    inputs = motion_inputs(model)
    before = model(**inputs).sample
    for channel in range(6):
        changed = inputs["content_frame"].clone()
        changed[:, channel] += 1
        assert (model(**{**inputs, "content_frame": changed}).sample - before).abs().max() > 1e-5


def test_the_null_label_is_a_class_of_its_own(make_motion_transformer, motion_inputs):
    model = make_motion_transformer(num_classes=3)
    inputs = motion_inputs(model)
    samples = [model(**{**inputs, "class_labels": torch.full((2,), label)}).sample for label in range(4)]
    assert model.class_embed.num_embeddings == 4
    for i in range(4):
        for j in range(i):
            assert (samples[i] - samples[j]).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        ({}, {"pooled_text": torch.zeros(2, 5)}, "pooled_text: given, .* no such a? ?condition"),
        ({}, {"class_labels": torch.zeros(2, dtype=torch.long)}, "class_labels: given"),
        ({"text_dim": 5}, {"pooled_text": None}, "pooled_text: missing"),
        ({"num_classes": 3}, {"class_labels": None}, "class_labels: missing"),
        ({"text_dim": 5, "num_classes": 3}, {"class_labels": None}, "class_labels: missing"),
        ({}, {"hidden_states": torch.zeros(2, 4, 4, 13)}, r"hidden_states: width 13 is not H' \+ W' = 4 \+ 8"),
        ({}, {"hidden_states": torch.zeros(2, 4, 3, 12)}, "frames: 3 is not divisible by its patch size 2"),
        ({"patch_size": 8}, {"hidden_states": torch.zeros(2, 4, 8, 12)}, "H': 4 is not divisible .* 8"),
        ({"content_patch_size": 16}, {}, "content height: 8 is not divisible .* 16"),
        ({"content_patch_size": 8}, {"content_frame": torch.zeros(2, 3, 8, 12),
                                     "hidden_states": torch.zeros(2, 4, 4, 10)}, "content width: 12"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(make_motion_transformer, motion_inputs, config, change, words):
    model = make_motion_transformer(**config)
    inputs = {**motion_inputs(model), **change}
    with pytest.raises(ValueError, match=words):
        model(**inputs)


@pytest.mark.parametrize("changes", [{"dim": 30}, {"dim": 32, "num_heads": 3}])
def test_a_width_that_does_not_fit(make_motion_transformer, changes):
    with pytest.raises(ValueError, match=f"dim: {changes['dim']} is not divisible"):
        make_motion_transformer(**changes)


def test_the_output_as_a_tuple(make_motion_transformer, motion_inputs):
    model = make_motion_transformer()
    inputs = motion_inputs(model)
    (sample,) = model(**inputs, return_dict=False)
    assert torch.equal(sample, model(**inputs).sample) and sample.shape == inputs["hidden_states"].shape


def test_its_parts_make_its_forward_pass_and_the_fixed_ones_do_not_see_the_latents(
    make_motion_transformer, motion_inputs
):
    """What a sampling loop calls: the content frame's tokens once, the others at each step."""
    model = make_motion_transformer(**CONDITIONS)
    inputs = motion_inputs(model)
    x, frame = inputs["hidden_states"], inputs["content_frame"]
    fixed = model.embed_content_frame(x, frame)
    assert torch.equal(fixed, model.embed_content_frame(torch.zeros_like(x), frame))
    condition = model.embed_condition(inputs["timestep"], inputs["pooled_text"], inputs["class_labels"])
    tokens = model.embed_latents(x, fixed)
    for block in range(len(model.blocks)):
        tokens = model.run(model.blocks[block : block + 1], tokens, condition)
    assert torch.equal(model.project(tokens, condition, x), model(**inputs).sample)
