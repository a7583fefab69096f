"""Plans: boxes over time, the sketch that shows them, and clips that follow it."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cmd_video.pipelines.box_plan import Plan, boxes_at, filled, sketch

STILL = {"objects": [{"id": "ball", "keyframes": [{"frame": n, "box": [3, 5, 6, 4]} for n in (0, 3)]}]}


def plan_of(*keyframes, id="ball"):
    return {"objects": [{"id": id, "keyframes": [{"frame": frame, "box": box} for frame, box in keyframes]}]}


def square(height=16, width=20, x=4, y=6, w=4, h=4):
    """A grey picture with a red rectangle."""
    picture = torch.full((3, height, width), 0.5)
    picture[:, y : y + h, x : x + w] = torch.tensor([0.9, 0.1, 0.2])[:, None, None]
    return picture


def edit(pipe, clip, strength=0.0, seeds=(0,)):
    out = pipe.edit(
        clip, "", strength=0, motion_strength=strength, output_type="pt", sampling=pipe.sampling.changed(
            {"num_inference_steps": 4}
        ), generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    )  # fmt: skip
    return out.frames


def test_a_box_that_stays_is_a_still_clip_of_the_picture():
    picture = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(0))
    clip = sketch(STILL, picture, 4)
    assert clip.shape == (4, 3, 16, 20) and clip.dtype == torch.float32
    torch.testing.assert_close(clip, picture.expand(4, -1, -1, -1))
    assert torch.equal(clip, clip[:1].expand_as(clip))


def test_boxes_are_those_of_the_keyframes_and_linear_between():
    keys = (0, [1, 2, 4, 4]), (2, [5, 2, 4, 8]), (7, [10.5, 0.25, 6, 4])
    boxes = boxes_at(Plan.model_validate(plan_of(*keys)).objects[0], 10)
    for frame, box in keys:
        assert boxes[frame].tolist() == box
    assert boxes[1].tolist() == [3, 2, 4, 6]
    assert torch.equal(boxes[7:], boxes[7:8].expand(3, -1))


def test_the_object_lies_in_its_boxes_and_nothing_is_left_behind():
    clip = sketch(plan_of((0, [4, 6, 4, 4]), (3, [10, 0, 8, 8])), square(), 4)
    torch.testing.assert_close(clip[0], square())
    torch.testing.assert_close(clip[3], square(x=10, y=0, w=8, h=8))


def test_fractions_of_a_pixel_move_the_centre_as_far():
    clip = sketch(plan_of((0, [4, 6, 4, 4]), (8, [6, 6, 4, 4])), square(), 9)
    red = clip[:, 0] - 0.5  # (F, H, W)
    columns = (red.sum(1) @ (torch.arange(20) + 0.5)) / red.sum((1, 2))
    torch.testing.assert_close(columns, 6 + torch.arange(9) * 0.25, atol=1e-4, rtol=0)


def test_later_objects_lie_above_earlier_ones():
    picture = square()
    picture[1, 0:4, 0:4] = 1.0  # a second thing in the corner
    first, second = (
        {"id": name, "keyframes": [{"frame": 0, "box": box}, {"frame": 3, "box": [10, 10, 4, 4]}]}
        for name, box in (("a", [4, 6, 4, 4]), ("b", [0, 0, 4, 4]))
    )
    above = sketch({"objects": [first, second]}, picture, 4)[3, :, 10:14, 10:14]
    below = sketch({"objects": [second, first]}, picture, 4)[3, :, 10:14, 10:14]
    torch.testing.assert_close(above, picture[:, 0:4, 0:4])
    torch.testing.assert_close(below, picture[:, 6:10, 4:8])


def test_a_hole_is_filled_from_its_rim_alone():
    picture = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(1))
    hole = torch.zeros(12, 12, dtype=torch.bool)
    hole[0:7, 3:8] = True
    other = torch.where(hole, 9.0, picture)
    whole = filled(picture, hole)
    assert torch.equal(whole, filled(other, hole)) and torch.equal(whole[:, ~hole], picture[:, ~hole])
    rim = picture[:, 0:8, 2:9]
    assert (whole[:, hole] >= rim.amin((1, 2))[:, None]).all() and (whole[:, hole] <= rim.amax((1, 2))[:, None]).all()


def test_no_motion_strength_is_the_reconstruction_of_the_sketch(text_pipeline, make_image):
    clip = sketch(plan_of((0, [2, 2, 6, 6]), (3, [8, 9, 6, 6])), make_image(), 4)[None]
    made = edit(text_pipeline, clip)
    x = text_pipeline.vae.encode(clip[0] * 2 - 1).latents.transpose(0, 1)[None]  # (1, C, F, h, w)
    decoded = text_pipeline.autoencoder(x * text_pipeline.vae.config.scaling_factor).sample[0].transpose(0, 1)
    expected = text_pipeline.vae.decode(decoded / text_pipeline.vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(made[0], expected.detach().clamp(0, 1), atol=1e-5, rtol=0)


def test_a_batch_equals_its_clips_and_seeds_count(text_pipeline, make_image):
    plans = plan_of((0, [2, 2, 6, 6]), (3, [8, 9, 6, 6])), plan_of((0, [1, 8, 5, 5]), (2, [9, 1, 6, 7]))
    clips = torch.stack([sketch(plan, make_image(seed=n), 4) for n, plan in enumerate(plans)])
    both = edit(text_pipeline, clips, 0.5, (0, 1))
    for number in range(2):
        alone = edit(text_pipeline, clips[number : number + 1], 0.5, (number,))
        torch.testing.assert_close(both[number : number + 1], alone, rtol=0, atol=1e-3)
    assert torch.equal(alone, edit(text_pipeline, clips[1:], 0.5, (1,)))
    assert (alone - edit(text_pipeline, clips[1:], 0.5, (2,))).abs().max() > 1e-3
    assert (alone - edit(text_pipeline, clips[1:], 0.0, (1,))).abs().max() > 1e-3


HERE = [3, 5, 6, 4]
MISTAKES = {  # keyframes of the object "ball" in 4 frames of 16x20, and what the line says
    "one keyframe": ([(0, HERE)], "object 'ball': 1 keyframes; allowed: 2 or more"),
    "no first frame": ([(1, HERE), (3, HERE)], "object 'ball', keyframe 0: frame 1; allowed: 0 "),
    "order": ([(0, HERE), (2, HERE), (1, HERE)], "object 'ball', keyframe 2: frame 1; allowed: 3 "),
    "twice": ([(0, HERE), (0, HERE)], "object 'ball', keyframe 1: frame 0; allowed: 1 to 3 "),
    "after the end": ([(0, HERE), (4, HERE)], "object 'ball', keyframe 1: frame 4; allowed: 1 to 3 (a clip of 4"),
    "after the last": ([(0, HERE), (3, HERE), (4, HERE)], "keyframe 2: frame 4; allowed: no more of them"),
    "left": ([(0, HERE), (3, [-1, 5, 6, 4])], "keyframe 1: box [-1, 5, 6, 4] leaves the picture; allowed: x 0 to 20"),
    "below": ([(0, HERE), (3, [3, 12.5, 6, 4])], "box [3, 12.5, 6, 4] leaves the picture; allowed: x 0 to 20, y 0 to"),
    "thin": ([(0, HERE), (3, [3, 5, 6, 0.5])], "keyframe 1: box [3, 5, 6, 0.5] is 6 wide and 0.5 high; allowed: 1"),
    "everything": ([(0, [0, 0, 20, 16]), (3, HERE)], "the boxes of frame 0 cover the whole picture; allowed"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_object_keyframe_value_and_what_is_allowed(name):
    keyframes, said = MISTAKES[name]
    with pytest.raises(ValueError) as caught:
        sketch(plan_of(*keyframes), square(), 4)
    assert str(caught.value).startswith("plan: ") and said in str(caught.value) and "\n" not in str(caught.value)


def test_an_id_is_there_once():
    with pytest.raises(ValueError, match="plan: object 'ball' is there 2 times; allowed: once"):
        sketch({"objects": STILL["objects"] * 2}, square(), 4)


@pytest.mark.parametrize(
    "plan",
    [
        {"objects": []},
        {"objects": [{"id": "", "keyframes": []}]},
        {"objects": [{"id": "a", "keyframes": [], "name": "ball"}]},
        {**STILL, "size": [64, 64]},
        plan_of((0, [1, 2, 3]), (3, HERE)),
        plan_of((0, [1, 2, 3, np.nan]), (3, HERE)),
        plan_of((-1, HERE), (3, HERE)),
        plan_of((0.5, HERE), (3, HERE)),
    ],
)
def test_what_is_no_plan_is_refused(plan):
    with pytest.raises(ValidationError):
        Plan.model_validate(plan)
