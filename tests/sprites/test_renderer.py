"""The batched renderer of sprites draws what `sprites.render` draws, and its dataset has what `SpritesDataset` has."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from cmd_video.sprites.renderer import BACKGROUNDS, FIELDS, SceneDataset, pack_scene, render_scenes
from cmd_video.sprites.scenes import SpriteScene, SpritesDataset, render, sample_scene
from cmd_video.sprites.words import MOTIONS, SHAPES

TOLERANCE = 2e-4  # of float rounding; a byte's step in [-1, 1] is 8e-3


def pack(scenes: list[SpriteScene]) -> torch.Tensor:
    return torch.stack([pack_scene(scene) for scene in scenes])


def drawn_one_by_one(scenes: list[SpriteScene], *size: int) -> torch.Tensor:
    return torch.stack([render(scene, *size) for scene in scenes])


def every_kind() -> list[SpriteScene]:
    """A scene of two objects for every motion, shape and background; the second has the next shape."""
    scenes = []
    for number, (motion, shape, background) in enumerate(itertools.product(MOTIONS, range(len(SHAPES)), BACKGROUNDS)):
        scene = next(
            scene
            for scene in (sample_scene(index, pairs=1.0) for index in itertools.count(3 * number))
            if len(scene.objects) == 2
        )
        shapes = SHAPES[shape], SHAPES[(shape + 1) % len(SHAPES)]
        objects = tuple(dataclasses.replace(item, shape=name) for item, name in zip(scene.objects, shapes))
        scenes.append(dataclasses.replace(scene, motion=motion, background=background, objects=objects))
    return scenes


def test_every_motion_shape_and_background_is_drawn_as_on_the_cpu():
    scenes = every_kind()
    assert len(scenes) == 16 * 8 * 5
    expected = drawn_one_by_one(scenes, 5, 24, 32)
    torch.testing.assert_close(render_scenes(pack(scenes), 5, 24, 32), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize(
    ("count", "size"),
    [(100, (5, 24, 32)), (60, (1, 24, 32)), (40, (16, 32, 24)), (20, (3, 9, 7)), (4, (16, 64, 64))],
)
def test_sampled_scenes_are_drawn_as_on_the_cpu(split, count, size):
    scenes = [sample_scene(index, seed=1, split=split, pairs=0.5) for index in range(count)]
    assert {len(scene.objects) for scene in scenes} == {1, 2}
    videos = render_scenes(pack(scenes), *size)
    assert videos.shape == (count, 3, *size) and videos.dtype == torch.float32 and videos.is_contiguous()
    assert videos.min() >= -1 and videos.max() <= 1
    torch.testing.assert_close(videos, drawn_one_by_one(scenes, *size), atol=TOLERANCE, rtol=0)


def test_the_second_object_covers_the_first():
    scene = next(scene for scene in map(sample_scene, range(100)) if len(scene.objects) == 2)
    below, above = (dataclasses.replace(item, x=0.5, y=0.5, shape="square") for item in scene.objects)
    for objects in ((below, above), (above, below)):
        both = dataclasses.replace(scene, objects=objects, motion="still")
        video = render_scenes(pack_scene(both)[None], 1, 24, 24)[0]
        torch.testing.assert_close(video, render(both, 1, 24, 24), atol=TOLERANCE, rtol=0)
        alone = dataclasses.replace(both, objects=objects[1:])
        torch.testing.assert_close(video[..., 12, 12], render(alone, 1, 24, 24)[..., 12, 12], atol=TOLERANCE, rtol=0)


def test_a_part_of_a_clip_is_drawn_where_the_vector_says_so():
    scene = sample_scene(5)
    whole = render(scene, 16, 24, 32)  # frames 3, 5, ..., 11 of 16
    part = render_scenes(pack_scene(scene, (3 / 15, 11 / 15))[None], 5, 24, 32)[0]
    torch.testing.assert_close(part, whole[:, 3:12:2], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", [(5, 24, 32), (3, 9, 7), (1, 32, 32)])
def test_a_scene_looks_the_same_bit_for_bit_alone_in_a_batch_and_again(size):
    packed = pack(every_kind()[::21])
    together = render_scenes(packed, *size)
    assert torch.equal(together, render_scenes(packed, *size))
    for row, video in zip(packed, together):
        assert torch.equal(render_scenes(row[None], *size)[0], video)


def test_drawing_never_looks_at_a_value():
    """Tensors on "meta" have none, so this fails on `.item()`, boolean masks and everything else that would wait."""
    videos = render_scenes(torch.empty(64, len(FIELDS), device="meta"), 16, 128, 128)
    assert videos.shape == (64, 3, 16, 128, 128) and videos.device.type == "meta"


def test_drawing_compiles_into_one_graph():
    packed = pack([sample_scene(index) for index in range(4)])
    compiled = torch.compile(render_scenes, fullgraph=True, backend="eager")
    assert torch.equal(compiled(packed, 2, 16, 16), render_scenes(packed, 2, 16, 16))


@pytest.mark.parametrize("shape", [(2, len(FIELDS) + 1), (len(FIELDS),), (1, 2, len(FIELDS))])
def test_vectors_of_another_length_are_refused_by_name(shape):
    with pytest.raises(ValueError, match=rf"packed: shape .*{len(FIELDS)}"):
        render_scenes(torch.zeros(shape), 2, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_only_float32_is_drawn(dtype):
    with pytest.raises(ValueError, match="packed: torch"):
        render_scenes(torch.zeros(1, len(FIELDS), dtype=dtype), 2, 8, 8)


def test_scenes_that_do_not_fit_are_refused():
    scene = sample_scene(0)
    with pytest.raises(ValueError, match="scene.objects: 3"):
        pack_scene(dataclasses.replace(scene, objects=scene.objects[:1] * 3))
    with pytest.raises(ValueError, match="background: 'nebula'"):
        pack_scene(dataclasses.replace(scene, background="nebula"))
    with pytest.raises(ValueError, match="shape: 'blob'"):
        pack_scene(dataclasses.replace(scene, objects=(dataclasses.replace(scene.objects[0], shape="blob"),)))


@pytest.mark.parametrize(("num_frames", "split"), [(16, "train"), (1, "held_out"), (1, "train")])
def test_a_finished_batch_is_a_batch_of_sprites(num_frames, split):
    arguments = {
        "length": 24, "height": 24, "width": 32, "num_frames": num_frames, "seed": 3, "split": split, "start": 11,
        "pairs": 0.5, "motion_weights": {"orbit": 3},
    }  # fmt: skip
    scenes, sprites = SceneDataset(**arguments), SpritesDataset(**arguments)
    assert len(scenes) == len(sprites) and scenes.class_names == sprites.class_names
    numbers = range(30)  # from 24 on the scenes come again, a single frame at another moment
    batch = default_collate([scenes[number] for number in numbers])
    finished, expected = scenes.finish(batch), default_collate([sprites[number] for number in numbers])
    assert finished.keys() == expected.keys() and "scene" in batch
    torch.testing.assert_close(finished.pop("video"), expected.pop("video"), atol=TOLERANCE, rtol=0)
    for name, value in expected.items():
        assert np.array_equal(finished[name], value), name
        assert type(finished[name]) is type(value)


def test_a_loader_carries_vectors():
    dataset = SceneDataset(8, 16, 16, 2)
    batches = [dataset.finish({**batch, "number": 7}) for batch in DataLoader(dataset, batch_size=4)]
    assert [batch["video"].shape for batch in batches] == [(4, 3, 2, 16, 16)] * 2
    assert all(batch["number"] == 7 and "scene" not in batch for batch in batches)
