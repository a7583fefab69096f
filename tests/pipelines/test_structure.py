"""Pictures whose structure content frames get, through the whole pipeline."""

from typing import Any

import pytest
import torch

WRAP: dict[str, Any] = {"kind": "structure_injection", "share": 0.6, "resnets": (0, 1), "queries": (0, 1)}


def strong(pipe: Any) -> Any:
    return pipe.sampling.laid_over({"content": {"wraps": [WRAP]}})


def test_a_structure_changes_the_clip_and_another_one_otherwise(text_pipeline, generate, make_image):
    plain = generate(text_pipeline, "a red ball").frames
    found = [
        generate(
            text_pipeline, "a red ball", structure_image=make_image(seed=n), sampling=strong(text_pipeline)
        ).frames
        for n in range(2)
    ]
    assert not torch.equal(found[0], plain) and not torch.equal(found[0], found[1])


def test_without_settings_the_default_is_taken(text_pipeline, generate, make_image):
    given = {"structure_image": make_image()}
    default = generate(text_pipeline, "a red ball", **given).frames
    how = text_pipeline.sampling.laid_over({"content": {"wraps": [{"kind": "structure_injection"}]}})
    assert torch.equal(default, generate(text_pipeline, "a red ball", sampling=how, **given).frames)
    assert not torch.equal(default, generate(text_pipeline, "a red ball").frames)
    assert torch.equal(
        generate(text_pipeline, "a red ball", sampling=how).frames, generate(text_pipeline, "a red ball").frames
    )


def test_a_batch_equals_its_clips(text_pipeline, generate, make_image):
    pictures, prompts, how = (
        [make_image(seed=n) for n in range(2)],
        ["a red ball", "a blue square"],
        strong(text_pipeline),
    )
    both = generate(text_pipeline, prompts, structure_image=pictures, sampling=how, seed=[0, 1]).frames
    shared = generate(text_pipeline, prompts, structure_image=pictures[0], sampling=how, seed=[0, 1]).frames
    for number, prompt in enumerate(prompts):
        alone = generate(text_pipeline, prompt, structure_image=pictures[number], sampling=how, seed=[number]).frames
        torch.testing.assert_close(both[number : number + 1], alone, rtol=0, atol=1e-3)
    torch.testing.assert_close(shared[:1], both[:1], rtol=0, atol=1e-3)
    assert (shared[1] - both[1]).abs().max() > 1e-3


def test_a_search_sees_the_structure(text_pipeline, generate, make_image):
    search = {"kind": "reward_particles", "budget": 4, "starts": 2}
    how = strong(text_pipeline).laid_over({"content": {"eta": 1.0, "search": search}})
    asked = {"reward": lambda pictures, prompts: pictures.mean((1, 2, 3)), "sampling": how}
    plain = generate(text_pipeline, "a red ball", **asked).frames
    assert not torch.equal(generate(text_pipeline, "a red ball", structure_image=make_image(), **asked).frames, plain)


@pytest.mark.slow
def test_compiled_denoisers_get_it_too(text_pipeline, generate, make_image):
    asked = {"structure_image": make_image(), "sampling": strong(text_pipeline)}
    expected = generate(text_pipeline, "a red ball", **asked).frames
    text_pipeline.compile_denoisers(backend="eager")
    generate(text_pipeline, "a red ball")
    torch.testing.assert_close(generate(text_pipeline, "a red ball", **asked).frames, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("beside", ["image", "last_image", "content_frame"])
def test_pictures_that_take_the_place_of_the_content_frame_are_refused(text_pipeline, generate, make_image, beside):
    with pytest.raises(ValueError, match=f"structure_image: given beside {beside}"):
        generate(text_pipeline, "a red ball", structure_image=make_image(), **{beside: make_image()})


def test_what_does_not_fit_is_refused(text_pipeline, class_pipeline, generate, make_image):
    with pytest.raises(ValueError, match="structure_image: 8x16 .height x width., the clip is 16x16"):
        generate(text_pipeline, "a red ball", structure_image=make_image(8, 16))
    with pytest.raises(ValueError, match="structure_image: 3 pictures for 1 clips"):
        generate(text_pipeline, "a red ball", structure_image=[make_image()] * 3)
    with pytest.raises(ValueError, match="reuse_interval: 2, but with structure_image only 1"):
        generate(text_pipeline, "a red ball", structure_image=make_image(), reuse_interval=2)
    with pytest.raises(ValueError, match="structure_image: features of a DiTTransformer2DModel"):
        generate(class_pipeline, class_labels=1, structure_image=make_image(8, 8))
