"""Memory per card before a run: the count is what a run holds, and what is not known is said in a line."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cmd_video.benchmark.memory import peak_bytes
from cmd_video.cli.train import command
from cmd_video.studies.planned import planned_components
from cmd_video.studies.training_memory import CardMemory, lines_of, memory_lines, recipe_memory
from cmd_video.training.config import LoopConfig, TrainConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def recipe(tiny_config, tmp_path):
    """`recipe("motion", loop__batch_size=8)`: a recipe's file."""

    def write(stage, **changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tiny_config(stage, tmp_path / "run", **changes)))
        return path

    return write


def card_of(path, processes=1):
    (card,) = recipe_memory(load_config(path), path, [processes])
    assert isinstance(card, CardMemory), card
    return card


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("stage", ["autoencoder", "motion"])
def test_what_is_held_is_what_a_run_holds(stage, recipe, build_tiny, batch_of):
    card = card_of(recipe(stage))
    real, dataset = build_tiny(stage)
    learning = list(real.learning().values())
    optimizer, average = torch.optim.AdamW(learning), EMAModel(learning)
    real(batch_of(dataset, range(2))).backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert card.weights == size(learning) and card.gradients == size(weight.grad for weight in learning)
    assert card.moments == size(moments) and card.average == size(average.shadow_params)
    assert card.frozen == sum(size([*part.parameters(), *part.buffers()]) for part in real.frozen.values())


def test_activations_are_those_of_the_real_stage(recipe, build_tiny, batch_of):
    card = card_of(recipe("autoencoder", loop__batch_size=4))
    stage, dataset = build_tiny("autoencoder")
    for weight in stage.parameters():
        weight.grad = torch.zeros_like(weight)
    batch = batch_of(dataset, range(4))
    given = batch["video"].nbytes + batch["class_label"].nbytes
    peak = peak_bytes(lambda: stage.train()(batch), backward=True) + given
    assert card.clips == 4 and card.activations == pytest.approx(peak, rel=0.03)
    assert card.peak >= card.weights + card.gradients + card.moments + card.average + card.activations


def test_more_clips_at_once_take_more_and_those_between_lie_between(recipe):
    path = recipe("motion", loop__batch_size=16)
    cards = recipe_memory(load_config(path), path, [1, 2, 8])
    one, two, eight = cards
    assert [card.clips for card in cards] == [16, 8, 2]
    assert one.activations > two.activations > eight.activations
    exact = card_of(path, 2)  # counted, not on the line between the others
    assert exact.activations == pytest.approx(two.activations, rel=0.02) and exact.activations <= two.activations
    assert two.gradients == 2 * one.gradients  # DDP's buckets


def test_a_shared_copy_is_an_eighth(recipe):
    whole = card_of(recipe("motion", loop__batch_size=64))
    path = recipe("motion", loop__batch_size=64, loop__parallel={"shard": 8})
    alone, shared, more = recipe_memory(load_config(path), path)
    assert alone == whole and (shared.shard, more.shard) == (8, 8)
    for name in ("weights", "gradients", "moments", "average"):
        assert getattr(shared, name) == getattr(more, name) == pytest.approx(getattr(whole, name) / 8, abs=32)
    assert shared.copies > 0 and shared.clips == 8 and more.clips == 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        hidden = self.conv(x).mean(dim=(2, 3))
        return self.last(self.first(hidden).relu()).float().square().mean()


def test_half_precision_takes_what_autocast_takes():
    net, x = Net(), torch.zeros(64, 3, 8, 8)

    def real():
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    expected = peak_bytes(real, backward=True)
    net, x = Net().to("meta"), x.to("meta")
    assert peak_bytes(lambda: net(x), backward=True, half=[]) == pytest.approx(expected, rel=0.02)
    assert peak_bytes(lambda: net(x), backward=True) > expected
    layers = [weight for weight in net.parameters() if weight.requires_grad]
    held = peak_bytes(lambda: net(x), backward=True, half=layers)
    assert 0 < expected - held <= 1000 + 2 * sum(weight.numel() for weight in layers)


def test_norms_stay_in_single_precision_as_on_a_gpu():
    x = torch.zeros(2, 8, 16, device="meta", dtype=torch.bfloat16)
    seen = []
    peak_bytes(lambda: seen.append(functional.layer_norm(x, (16,)).dtype), half=[])
    peak_bytes(lambda: seen.append(functional.linear(x.float(), torch.zeros(4, 16, device="meta")).dtype), half=[])
    assert seen == [torch.float32, torch.bfloat16]


def test_what_is_computed_again_has_no_scores_either():
    layer = nn.Linear(8, 8, device="meta")
    x = torch.zeros(1, 1, 1000, 8, device="meta", requires_grad=True)

    def attend(x):
        return functional.scaled_dot_product_attention(layer(x), x, x)

    def twice():
        return checkpoint(attend, checkpoint(attend, x, use_reentrant=False), use_reentrant=False).sum()

    assert peak_bytes(twice, backward=True) < 1000 * 1000 * 4 / 4


def test_the_dry_run_is_still_a_recipe(recipe, capsys):
    path = recipe("motion", loop__batch_size=8)
    command(path, None, dry_run=True)
    printed = capsys.readouterr().out
    assert TrainConfig.model_validate(yaml.safe_load(printed)) == load_config(path)
    table = printed.partition("# memory per card")[2]
    assert "1 GPU " in table and "64 GPUs" in table and "24, 80, 141" in table
    assert "# loop.batch_size: 8 is not divisible by accumulation x processes = 64" in table
    assert all(line.startswith("# ") for line in table.splitlines()[1:])


def test_a_component_that_is_not_known_is_said_in_a_line(recipe, capsys):
    path = recipe("motion", components__autoencoder={"path": "somebody/something"})
    command(path, None, dry_run=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert len(lines) == 1
    assert "not known; components.autoencoder: somebody/something is not at hand" in lines[0]


def test_components_that_do_not_fit_are_said_in_a_line(recipe):
    path = recipe("motion", components__motion_transformer__config__content_channels=5)
    (line,) = memory_lines(load_config(path), path)
    assert line.startswith("memory per card: not known; components.")


def test_no_number_of_processes_fits(recipe):
    path = recipe("motion", loop__batch_size=3)
    assert lines_of(recipe_memory(load_config(path), path, [2]), [2])[-1].startswith("loop.batch_size: 3")


@pytest.mark.parametrize(
    ("name", "millions"),
    [  # published: VDMini's 939.9 M of 1524.6 M for Stable Video Diffusion, its decoder's 39.2 M of 63.6 M
        ("svd/recover", {"video_model": 939.9, "teacher": 1524.6}),
        ("wan/recover", {"teacher": 1418.9}),
        ("webvid-sd21/content", {"unet": 865.9}),
        ("sprites/pruned-motion", {"motion_transformer": 2.23}),
    ],
)
def test_components_of_a_shipped_recipe_have_their_published_sizes(name, millions):
    path = CONFIGS / f"{name}.yaml"
    components = planned_components(load_config(path), path)
    for component, expected in millions.items():
        weights = list(components[component].parameters())
        assert {weight.device.type for weight in weights} == {"meta"}
        assert sum(weight.numel() for weight in weights) / 1e6 == pytest.approx(expected, abs=0.06 + expected / 1000)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_components_of_every_shipped_recipe_are_known(path):
    config = load_config(path)
    assert planned_components(config, path).keys() == config.components.keys()


@pytest.mark.parametrize(
    ("batch", "most", "processes", "parts"),
    [(64, 1, 1, 64), (64, 1, 8, 8), (64, 1, 64, 1), (24, 5, 1, 6), (24, 3, 8, 1), (256, 16, 64, 1), (256, 16, 8, 2)],
)
def test_parts_of_a_batch_follow_from_the_processes(batch, most, processes, parts):
    loop = LoopConfig(steps=1, batch_size=batch, micro_batch_size=most)
    assert loop.parts(processes) == parts and batch // (parts * processes) <= most


def test_parts_are_said_in_one_way():
    with pytest.raises(ValueError, match="micro_batch_size: not together with gradient_accumulation_steps"):
        LoopConfig(steps=1, batch_size=8, micro_batch_size=2, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="loop.batch_size: 8 is not divisible by accumulation x processes = 3"):
        LoopConfig(steps=1, batch_size=8, micro_batch_size=2).parts(3)


def test_clips_at_once_are_the_same_run_as_parts(tiny_config, run_train, read_log, tmp_path):
    for name, loop in (("parts", {"gradient_accumulation_steps": 2}), ("clips", {"micro_batch_size": 2})):
        config = tiny_config("autoencoder", tmp_path / name, loop__steps=2, loop__batch_size=4)
        config["loop"] |= loop
        run_train(config)
    assert [line["loss"] for line in read_log(tmp_path / "parts", "train")] == [
        line["loss"] for line in read_log(tmp_path / "clips", "train")
    ]


def test_the_table_in_the_guide_is_the_result_file_and_every_recipe_fits_a_card():
    root = CONFIGS.parent
    rows = json.loads((root / "benchmarks" / "results" / "training-memory.json").read_text())["values"]
    assert rows.keys() == {path.relative_to(root).as_posix() for path in CONFIGS.glob("*/*.yaml")}
    guide = (root / "docs" / "guide" / "scale-training.md").read_text()
    for recipe, numbers in rows.items():
        cards = [card for card in numbers.values() if not isinstance(card, str)]
        assert any(card["fits"] for card in cards)
        line = next((line for line in guide.splitlines() if f"| `{recipe[8:-5]}` |" in line), None)
        if line is None:
            assert all(card["fits"][0] == 24 for card in cards)
            continue
        for cell, card in zip(line.split("|")[2:5], numbers.values(), strict=True):
            said = "-"
            if not isinstance(card, str):
                smallest = f"from {card['fits'][0]}" if card["fits"] else "none"
                said = f"{card['clips']}: {card['peak'] / 2**30:.1f} GB, {smallest}"
            assert cell.strip() == said
