"""Video models are told here what the pipelines of diffusers tell them, and sampled as those sample."""

from dataclasses import replace

import diffusers
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from cmd_video.cli import main
from cmd_video.denoisers.video_conditions import frame_condition, text_condition
from cmd_video.denoisers.video_models import (
    SVD_NOISE,
    call_video_model,
    check_clips,
    check_video_model,
    kind_of,
    patch_of,
)
from cmd_video.denoisers.video_space import encode_clip
from cmd_video.sprites.section import SpritesData
from cmd_video.training.components import build_components
from cmd_video.training.config import ComponentConfig

PROMPT = "a dog runs to the left"
WORDS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", *PROMPT.split()]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def t5(kind, config):
    sizes = {"vocab_size": 16, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    return kind(config(**sizes)).eval()


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def ltx():
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
    )  # fmt: skip
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=16,
    )  # fmt: skip
    text = t5(T5EncoderModel, T5Config)
    return diffusers.LTXPipeline(flow(), vae, text, tokenizer(), model), {"frame_rate": 12, "num_frames": 9}


def wan():
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    text = t5(UMT5EncoderModel, UMT5Config)
    return diffusers.WanPipeline(tokenizer(), text, vae, flow(), model), {"num_frames": 9}


def hunyuan():
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=16, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    llama = LlamaModel(LlamaConfig(vocab_size=16, **WORDS)).eval()
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=16, eos_token_id=1, bos_token_id=0, **WORDS)).eval()
    parts = llama, tokenizer(), model, vae, flow(), clip, tokenizer()
    return diffusers.HunyuanVideoPipeline(*parts), {"num_frames": 9}


def svd():
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), num_attention_heads=(2, 4), cross_attention_dim=16, addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24, layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2
    )
    vision = CLIPVisionConfig(**WORDS, image_size=224, patch_size=112, projection_dim=16)
    scheduler = diffusers.EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, timestep_type="continuous",
        prediction_type="v_prediction",
    )  # fmt: skip
    parts = vae, CLIPVisionModelWithProjection(vision), unet, scheduler, CLIPImageProcessor()
    return diffusers.StableVideoDiffusionPipeline(*parts), {"num_frames": 3}


def awake(model):
    """With no weight left at zero, which would hide what it multiplies."""
    for parameter in model.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def first_call(pipe, model, **call):
    """Arguments and output of a pipeline's first call of its model."""
    seen = []

    def keep(module, arguments, named, output):
        seen.append((arguments, named, output))

    handle = model.register_forward_hook(keep, with_kwargs=True)
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    pipe(**size, **call, generator=torch.Generator().manual_seed(0))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("make", [ltx, wan, hunyuan])
def test_a_text_model_is_told_what_its_pipeline_tells_it(make, monkeypatch):
    monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan.prompt_clean", lambda text: text)  # needs ftfy
    torch.manual_seed(0)
    pipe, call = make()
    model = awake(pipe.transformer)
    unguided = {} if make is hunyuan else {"guidance_scale": 1.0}
    _, named, expected = first_call(pipe, model, prompt=[PROMPT], max_sequence_length=most(make), **unguided, **call)
    noisy, fps = named["hidden_states"], call.get("frame_rate")
    if make is ltx:
        shape = [named[side] for side in ("num_frames", "height", "width")]
        noisy = noisy.transpose(1, 2).unflatten(2, shape)
    components = {**pipe.components, "video_model": model}
    check_video_model(model, components)
    with torch.no_grad():
        condition = text_condition(components, [PROMPT])
        prediction = call_video_model(model, noisy, named["timestep"], condition, fps)
        half = replace(condition, text=condition.text.bfloat16())  # a large text encoder's
        close = call_video_model(model, noisy, named["timestep"], half, fps)
    torch.testing.assert_close(close, prediction, atol=0.05, rtol=0.05)
    if make is ltx:
        prediction = prediction.flatten(2).transpose(1, 2)
    torch.testing.assert_close(prediction, expected[0])


def most(make):
    return {ltx: 128, wan: 512, hunyuan: 256}[make]


def test_stable_video_diffusion_is_told_what_its_pipeline_tells_it():
    torch.manual_seed(0)
    pipe, call = svd()
    model = awake(pipe.unet)
    frame = 0.5 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    frame = torch.nn.functional.avg_pool2d(frame, 9, 1, 4)  # what kernels of resizing agree on
    eight_bit = ((frame + 1) * 127.5).round()
    frame, picture = eight_bit / 127.5 - 1, Image.fromarray(eight_bit[0].permute(1, 2, 0).byte().numpy())
    call |= {"min_guidance_scale": 1.0, "max_guidance_scale": 1.0, "image": picture, "fps": 12}
    arguments, named, expected = first_call(pipe, model, **call)
    clip, timestep = arguments
    noisy, first = clip.transpose(1, 2).chunk(2, dim=1)
    noise = SVD_NOISE * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    condition = frame_condition(pipe.components, frame, noise)
    torch.testing.assert_close(condition.first_frame, first[:, :, 0], atol=1e-4, rtol=1e-3)
    embedded = named["encoder_hidden_states"]
    assert (condition.image - embedded).norm() < 0.05 * embedded.norm()
    with torch.no_grad():
        prediction = call_video_model(model, noisy, timestep.expand(1), condition, 12).transpose(1, 2)
    torch.testing.assert_close(prediction, expected[0], atol=2e-2, rtol=2e-2)
    dropped = condition.without_image(torch.tensor([True]))
    assert not dropped.image.any() and not dropped.first_frame.any()


@pytest.mark.parametrize("make", [ltx, wan, hunyuan])
def test_clips_are_encoded_as_the_pipelines_decode_them(make):
    pipe, _ = make()
    clip = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = encode_clip(pipe.vae, clip)
        raw = pipe.vae.encode(clip).latent_dist.mode()
    if make is wan:
        expected = (raw - torch.tensor([0.1, 0.2, 0.3, 0.4]).view(-1, 1, 1, 1)) / torch.arange(1, 5).view(-1, 1, 1, 1)
    elif make is ltx:
        expected = pipe._normalize_latents(raw, pipe.vae.latents_mean, pipe.vae.latents_std)
    else:
        expected = raw * pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents, expected)
    with pytest.raises(ValueError, match="num_frames: 8; AutoencoderKL.* takes 1 more than a multiple of"):
        encode_clip(pipe.vae, clip[:, :, :8])


def test_what_a_model_cannot_be_told_is_refused():
    frames, texts, llama = (make()[0].components for make in (svd, wan, hunyuan))
    unet, transformer, large = frames["unet"], texts["transformer"], llama["transformer"]
    for model, components, message in (
        (unet, {}, "a UNetSpatioTemporalConditionModel needs 'image_encoder'"),
        (unet, {**frames, **texts}, "text_encoder: a UNetSpatioTemporalConditionModel is told a first frame and no"),
        (unet, {**frames, "vae": texts["vae"]}, "vae: a AutoencoderKLWan; a UNet.* needs an autoencoder of single"),
        (transformer, {}, "a WanTransformer3DModel needs 'text_encoder'"),
        (transformer, {**texts, "image_encoder": None}, "image_encoder: a Wan.* is told a text and no first frame"),
        (transformer, {**texts, "vae": None}, "components.vae: 3 channels, the WanTransformer3DModel has 4"),
        (transformer, {**texts, "text_encoder": wide_t5()}, "features of 24 numbers, the video model takes 16"),
        (
            large,
            {**llama, "text_encoder": texts["text_encoder"], "text_encoder_2": texts["text_encoder"]},
            "no features",
        ),
        (large, {"text_encoder": llama["text_encoder"], "vae": llama["vae"]}, "needs 'text_encoder_2'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_video_model(model, components)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 8, "ffn_dim": 32}
    continuing = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), in_channels=9, out_channels=4, num_layers=1, **sizes
    )
    with pytest.raises(ValueError, match="9 channels in, 4 out"):
        check_video_model(continuing, texts)
    large.register_to_config(image_condition_type="token_replace")
    with pytest.raises(ValueError, match="image_condition_type token_replace, 4 out"):
        check_video_model(large, llama)
    assert kind_of(torch.nn.DataParallel(transformer)) is diffusers.WanTransformer3DModel
    assert (patch_of(transformer), patch_of(unet)) == ((1, 2), (1, 1))


def wide_t5():
    return UMT5EncoderModel(UMT5Config(vocab_size=16, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 16}, "validation.data.num_frames: 16 is not 1 more than a multiple of 4"),
        ({"height": 72}, "validation.data.height: 72 is no multiple of 16 pixels"),
    ],
)
def test_clips_that_do_not_fit_are_refused_before_the_training(change, message):
    parts = wan()[0].components
    data = SpritesData(kind="sprites", num_frames=9)
    check_clips(parts["transformer"], parts["vae"], "validation.data", data)
    with pytest.raises(ValueError, match=message):
        check_clips(parts["transformer"], parts["vae"], "validation.data", data.model_copy(update=change))


def test_a_scheduler_that_is_not_known_is_refused(tmp_path):
    for scheduler in (diffusers.FlowMatchHeunDiscreteScheduler(), diffusers.EDMEulerScheduler()):
        scheduler.save_pretrained(tmp_path / type(scheduler).__name__)
        part = ComponentConfig.model_validate({"path": str(tmp_path / type(scheduler).__name__)})
        with pytest.raises(ValueError, match=f"video_scheduler.path: .* holds {type(scheduler).__name__}, allowed"):
            build_components({"video_scheduler": part})


def test_a_pair_of_experts_is_neither_pruned_nor_trained_by_half(tmp_path, capsys):
    pipe, _ = wan()
    pair = diffusers.WanPipeline(**{**pipe.components, "transformer_2": wan()[0].transformer, "boundary_ratio": 0.875})
    pair.save_pretrained(tmp_path / "pair")
    assert main(["prune", str(tmp_path / "pair"), "--budget", "0.9", "-o", str(tmp_path / "student")]) == 2
    assert "transformer and transformer_2 share the noise levels" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="video_model.path: .*transformer_2 share the noise levels"):
        build_components({"video_model": ComponentConfig(path=str(tmp_path / "pair"))})
    alone = build_components({"video_model": ComponentConfig(path=str(tmp_path / "pair" / "transformer_2"))})
    assert isinstance(alone["video_model"], diffusers.WanTransformer3DModel)


def test_components_of_a_published_pipeline_load(tmp_path, monkeypatch):
    pipe, _ = wan()
    pipe.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    pipe.save_pretrained(tmp_path)
    fetched = []
    monkeypatch.setattr(
        "cmd_video.training.components.snapshot_download", lambda name, **_: fetched.append(name) or str(tmp_path)
    )
    folder = {"path": str(tmp_path)}
    names = ("video_model", "vae", "text_encoder", "tokenizer", "video_scheduler")
    for path in (folder, {"path": "Wan-AI/Wan2.1"}):
        chosen = names if path is folder else ("video_model", "vae", "video_scheduler")
        parts = build_components({name: ComponentConfig.model_validate(path) for name in chosen})
        assert isinstance(parts["video_model"], diffusers.WanTransformer3DModel)
        assert isinstance(parts["vae"], diffusers.AutoencoderKLWan)
        assert isinstance(parts["video_scheduler"], diffusers.FlowMatchEulerDiscreteScheduler)
        assert parts["video_scheduler"].config.shift == 5.0
    assert fetched == ["Wan-AI/Wan2.1"] * 3
    monkeypatch.setattr(
        "cmd_video.training.components.snapshot_download",
        lambda name, revision, allow_patterns, **_: fetched.append((revision, *allow_patterns)) or str(tmp_path),
    )
    pinned = ComponentConfig.model_validate({"path": "Wan-AI/Wan2.1", "revision": "abc123"})
    assert isinstance(build_components({"text_encoder": pinned})["text_encoder"], UMT5EncoderModel)
    assert fetched[3:] == [("abc123", "model_index.json", "text_encoder/*")]
    with pytest.raises(ValueError, match=r"components.vae.revision: abc123, but .* is a folder here"):
        build_components({"vae": ComponentConfig.model_validate({**folder, "revision": "abc123"})})
    parts = build_components({name: ComponentConfig.model_validate(folder) for name in names[2:4]})
    assert isinstance(parts["text_encoder"], UMT5EncoderModel)
    assert parts["tokenizer"](PROMPT).input_ids == pipe.tokenizer(PROMPT).input_ids


def test_a_class_of_a_fresh_image_encoder_is_refused():
    with pytest.raises(ValueError, match="components.image_encoder: give a `path`"):
        part = ComponentConfig.model_validate({"class": "CLIPVisionModelWithProjection"})
        build_components({"image_encoder": part})
