"""CLIPSIM on a tiny CLIP: batches, order of frames, cut captions, and the command."""

import json
import shutil
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from cmd_video.cli import main
from cmd_video.data.transforms import to_uint8
from cmd_video.evaluation.metrics.clipsim import ClipSim, measure_captions
from cmd_video.evaluation.protocol.clips import ClipSource
from cmd_video.sprites.make import write_sprites
from cmd_video.techniques.reward_particles import reward_named
from cmd_video.training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red circle moves", "a blue star"], vocab_size=540, model_max_length=12)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **shape, vocab_size=len(tokenizer), max_position_embeddings=12, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(**shape, image_size=32, patch_size=8)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def frames(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 40, 48, 3), dtype=torch.uint8, generator=generator)


def test_a_batch_is_its_clips_and_order_does_not_matter(tiny_clip):
    judge = ClipSim(str(tiny_clip))
    clips, prompts = frames(2), ["a red circle moves", "a blue star"]
    together = judge(clips, prompts)
    assert together.shape == (2,) and (together.abs() <= 1).all() and judge.num_cut(prompts) == 0
    for number in range(2):
        alone = judge(clips[number : number + 1].flip(1), prompts[number : number + 1])
        assert torch.allclose(alone, together[number], atol=1e-5)
    assert not torch.allclose(judge(clips, prompts[::-1]), together, atol=1e-5)
    assert judge.num_cut(["a red circle moves " * 20, "a blue star"]) == 1


def test_the_score_is_the_cosine_of_the_models_own_embeddings(tiny_clip):
    judge = ClipSim(str(tiny_clip))
    clip = torch.full((1, 1, 32, 32, 3), 128, dtype=torch.uint8)
    tokens = judge.tokenizer(["a blue star"], padding="max_length", max_length=12, return_tensors="pt")
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((128 / 255 - mean) / std).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    with torch.no_grad():
        out = judge.model(pixel_values=pixels, **tokens)
    cosine = (out.image_embeds * out.text_embeds).sum() / out.image_embeds.norm() / out.text_embeds.norm()
    assert judge(clip, ["a blue star"]).item() == pytest.approx(cosine.item(), abs=1e-5)


def test_the_command(tiny_clip, tmp_path, capsys):
    write_sprites(tmp_path / "clips", 3, 32, 32, 4)
    manifest = tmp_path / "clips" / "manifest.jsonl"
    arguments = ["evaluate", "clipsim", str(manifest), "-o", str(tmp_path / "out.json"), "--frames", "4"]
    assert main([*arguments, "--clip", str(tiny_clip)]) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["protocol"]["clips"] == 3 and len(record["protocol"]["clip_sha256"]) == 64
    assert -1 <= record["values"]["clipsim"]["value"] <= 1
    shared = [*arguments, "-o", str(tmp_path / "shared.json"), "--clip", str(tiny_clip)]
    assert [main([*shared, *more]) for more in (["--shard", "0/2"], ["--shard", "1/2"], [])] == [0, 0, 0]
    assert json.loads((tmp_path / "shared.json").read_text())["values"] == record["values"]
    capsys.readouterr()
    assert main([*arguments, "--clip", str(tmp_path / "clips")]) == 2
    assert "clip: " in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["evaluate", "clipsim", str(tmp_path / "empty.jsonl"), "--clip", str(tiny_clip)]) == 2


def test_the_other_caption_is_another_one(tiny_clip):
    """Samples of one prompt stand next to each other: the next clip's caption would be the clip's own."""
    judge = ClipSim(str(tiny_clip))
    asked = []

    class Watched:
        sha256, size, num_cut = judge.sha256, judge.size, judge.num_cut

        def __call__(self, clips, prompts):
            asked.append(prompts)
            return judge(clips, prompts)

    prompts = ["a red circle moves"] * 2 + ["a blue star"] * 2
    values, _ = measure_captions(Clips(4), prompts, Watched())
    assert all(own != other for own, other in asked) and len(values) == 2
    values, _ = measure_captions(Clips(2), ["a blue star"] * 2, judge)
    assert list(values) == ["clipsim"]


class Clips(ClipSource):
    """As many clips of noise."""

    recipe: ClassVar = {}

    def __init__(self, count):
        self.clips = frames(count)

    def __len__(self):
        return len(self.clips)

    def read(self, numbers):
        return [self.clips[number] for number in numbers]


def test_a_model_without_some_weights_is_refused(tiny_clip, tmp_path):
    shutil.copytree(tiny_clip, tmp_path / "part")
    (file,) = (tmp_path / "part").glob("*.safetensors")
    weights = {name: value for name, value in load_file(file).items() if not name.startswith("visual_projection")}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 of the model.s, such as visual_projection"):
        ClipSim(str(tmp_path / "part"))
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="clip: "):
        ClipSim(str(tmp_path / "part"))


def test_the_reward_of_pictures_is_the_score_of_clips_of_one_frame(tiny_clip):
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompts = ["a red circle", "a blue star", "a red star"]
    frames = torch.stack([to_uint8(picture[:, None]) for picture in pictures])  # (3, 1, 32, 32, 3)
    rewards = reward_named(f"clip:{tiny_clip}")(pictures, prompts)
    torch.testing.assert_close(rewards, ClipSim(str(tiny_clip))(frames, prompts))
