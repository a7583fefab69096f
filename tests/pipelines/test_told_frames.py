"""Given frames told to the networks, through the whole pipeline."""

import pytest
import torch

from cmd_video.pipelines import CMDPipeline
from cmd_video.techniques.reference_frames import Settings

HOW = {"given_frames": {"kind": "told_frames"}}


@pytest.fixture
def told_pipeline(text_pipeline):
    """One whose networks were made for first and last frames, and listen."""
    torch.manual_seed(1)
    for model, layer in ((text_pipeline.unet, "conv_in"), (text_pipeline.motion_transformer, "content_embed")):
        Settings(count=2).edit(model)
        weight = getattr(model, layer).weight
        own = weight.shape[1] // 3
        with torch.no_grad():
            weight[:, own:].normal_(std=0.1)
    text_pipeline.sampling = text_pipeline.sampling.laid_over(HOW)
    return text_pipeline


def test_frames_are_told_and_asked_nothing_of_the_content_frames_weights(told_pipeline, generate, make_image):
    told_pipeline.autoencoder.register_to_config(frame_weights=None)
    pictures = [make_image(seed=number) for number in range(2)]
    plain = generate(told_pipeline, "a ball").frames
    first = generate(told_pipeline, "a ball", image=pictures[0]).frames
    both = generate(told_pipeline, "a ball", image=pictures[0], last_image=pictures[1]).frames
    last = generate(told_pipeline, "a ball", last_image=pictures[1]).frames
    clips = [plain, first, both, last]
    for number, one in enumerate(clips):
        assert one.shape == (1, 4, 3, 16, 16)
        for other in clips[:number]:
            assert (one - other).abs().max() > 1e-4
    assert torch.equal(first, generate(told_pipeline, "a ball", image=pictures[0]).frames)


def test_a_batch_equals_its_clips(told_pipeline, generate, make_image):
    pictures = [make_image(seed=number) for number in range(2)]
    prompts = ["a red ball", "a blue square"]
    both = generate(told_pipeline, prompts, image=pictures, seed=[0, 1]).frames
    for number in range(2):
        alone = generate(told_pipeline, prompts[number], image=pictures[number], seed=[number]).frames
        torch.testing.assert_close(both[number : number + 1], alone, rtol=0, atol=1e-3)


def test_refining_meets_the_frames_better_and_clips_go_on(told_pipeline, generate, make_image):
    picture = make_image()
    wanted = generate(told_pipeline, "a ball", content_frame=picture).content_frames[0]
    off = []
    for steps in (0, 15):
        how = told_pipeline.sampling.laid_over({"given_frames": {"kind": "told_frames", "refine_steps": steps}})
        frames = generate(told_pipeline, "a ball", image=picture, sampling=how).frames
        off.append(float((frames[0, 0] - wanted).square().mean()))
    assert off[1] < off[0], off
    assert generate(told_pipeline, "a ball", num_clips=2).frames.shape[1] == 7


def test_steps_are_counted_and_guidance_leaves_out_text_and_frames(told_pipeline, generate, make_image):
    seen = []  # numbers of steps, two of each model in each clip
    how = told_pipeline.sampling.laid_over({"content": {"guidance": {"kind": "joint_guidance", "scale": 2.0}}})

    def tell(pipe, number, t, latents):
        seen.append(number)
        return {}

    guided = generate(
        told_pipeline, "a ball", image=make_image(), num_clips=2, sampling=how, callback_on_step_end=tell
    ).frames
    assert len(seen) == told_pipeline.num_timesteps == 2 * (2 + 2)
    assert guided.isfinite().all()
    unguided = how.laid_over({"content": {"guidance": {"kind": "joint_guidance"}}})
    plain = generate(told_pipeline, "a ball", image=make_image(), num_clips=2, sampling=unguided).frames
    assert (guided - plain).abs().max() > 1e-4


def test_it_is_saved_with_the_pipeline(told_pipeline, generate, make_image, tmp_path):
    before = generate(told_pipeline, "a ball", image=make_image()).frames
    told_pipeline.save_pretrained(tmp_path / "model")
    again = CMDPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(generate(again, "a ball", image=make_image()).frames, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["image", "last_image", "num_clips"])
def test_a_model_that_is_told_none_says_so(text_pipeline, generate, make_image, name):
    given = {name: 2 if name == "num_clips" else make_image()}
    how = text_pipeline.sampling.laid_over(HOW)
    with pytest.raises(ValueError, match=f"{name}: sampling.given_frames tells the networks, but this content model"):
        generate(text_pipeline, "a ball", sampling=how, **given)
    Settings(count=1).edit(text_pipeline.unet)
    if name == "last_image":
        with pytest.raises(ValueError, match="can be told 1 frames, needed 2"):
            generate(text_pipeline, "a ball", sampling=how, **given)
    else:
        assert generate(text_pipeline, "a ball", sampling=how, **given).frames.isfinite().all()


def test_adapters_that_look_at_the_first_frame_are_told_it_and_not_saved(
    text_pipeline, generate, make_image, tmp_path
):
    from cmd_video.techniques.reference_attention import adapt, detach

    text_pipeline.sampling = text_pipeline.sampling.laid_over(HOW)
    plain = generate(text_pipeline, "a ball").frames
    for name, value in adapt(text_pipeline.unet).named_parameters():
        if ".processor.to_out" in name:
            torch.nn.init.normal_(value, std=0.3)
    torch.testing.assert_close(generate(text_pipeline, "a ball").frames, plain, rtol=0, atol=1e-4)
    first = generate(text_pipeline, "a ball", image=make_image()).frames
    assert (first - plain).abs().max() > 1e-4
    with pytest.raises(ValueError, match="can be told 1 frames, needed 2"):
        generate(text_pipeline, "a ball", last_image=make_image())
    with pytest.raises(ValueError, match="reuse_interval: must be 1 for a UNet with adapters that look at"):
        generate(text_pipeline, "a ball", image=make_image(), reuse_interval=2)
    with pytest.raises(ValueError, match="save_pretrained: unet holds adapters that look at a given frame"):
        text_pipeline.save_pretrained(tmp_path / "model")
    detach(text_pipeline.unet)
    text_pipeline.save_pretrained(tmp_path / "model")
