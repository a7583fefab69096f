"""`cmd-video generate` and `reconstruct` on a tiny real pipeline: files, records, determinism."""

import json

import av
import numpy as np
import pytest
from PIL import Image

STEPS = ("--steps", 2)


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_one_prompt_writes_the_video_and_its_record(run, tiny_pipeline, tmp_path):
    code, out, _ = run(
        "generate", "a red circle", "--model", tiny_pipeline, "-o", tmp_path / "a.mp4", *STEPS, "--seed", 3
    )
    assert code == 0
    assert str(tmp_path / "a.mp4") in out
    assert frames_of(tmp_path / "a.mp4").shape == (4, 16, 16, 3)
    record = json.loads((tmp_path / "a.json").read_text())
    expected = {
        "prompt": "a red circle",
        "seed": 3,
        "truncated": None,
    }
    assert {key: record[key] for key in expected} == expected
    sampling = record["sampling"]
    assert sampling["content"]["num_inference_steps"] == sampling["motion"]["num_inference_steps"] == 2
    assert [sampling[part]["guidance"]["scale"] for part in ("content", "motion")] == [2, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.mp4"]


def test_shortcuts_and_type_are_used_and_recorded(run, tiny_pipeline, tmp_path):
    common = ("generate", "a red circle", "--model", tiny_pipeline, "--steps", 4)
    variants = {
        "plain": (),
        "interval": ("--guidance-interval", 0.0, 0.5),
        "reuse": ("--reuse-interval", 2),
        "bf16": ("--dtype", "bfloat16"),
    }
    frames, records = {}, {}
    for name, options in variants.items():
        assert run(*common, *options, "-o", tmp_path / f"{name}.gif")[0] == 0
        frames[name] = frames_of(tmp_path / f"{name}.gif")
        records[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert all((frames[name] != frames["plain"]).any() for name in ("interval", "reuse", "bf16"))
    guidance, wraps = (records[name]["sampling"]["content"] for name in ("interval", "reuse"))
    assert guidance["guidance"] == {"kind": "guidance_interval", "scale": 2.0, "low": 0.0, "high": 0.5}
    assert [wrap["interval"] for wrap in wraps["wraps"]] == [2] and records["bf16"]["dtype"] == "bfloat16"


def test_a_structure_is_taken_and_recorded(run, tiny_pipeline, tmp_path):
    edges = tmp_path / "edges.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(edges)
    common = ("generate", "a red circle", "--model", tiny_pipeline, *STEPS)
    assert run(*common, "-o", tmp_path / "plain.gif")[0] == 0
    assert run(*common, "--structure", edges, "-o", tmp_path / "edges.gif")[0] == 0
    assert (frames_of(tmp_path / "edges.gif") != frames_of(tmp_path / "plain.gif")).any()
    assert json.loads((tmp_path / "edges.json").read_text())["structure_image"] == str(edges)
    code, _, err = run(*common, "--structure", edges, "--image", edges, "-o", tmp_path / "both.gif")
    assert code == 2 and err.count("\n") == 1 and "--structure: given beside image" in err
    assert not (tmp_path / "both.gif").exists()


def test_several_prompts_write_a_folder_and_a_contact_sheet(run, tiny_pipeline, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n\na blue star / ../../x\n")
    folder = tmp_path / "out"
    code, _, _ = run(
        "generate", "--prompts-file", prompts, "--num-videos", 2, "--model", tiny_pipeline, "-o", folder, *STEPS,
        "--contact-sheet",
    )  # fmt: skip
    assert code == 0
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 4 * 3 + 1
    assert "02-a-blue-star-x.mp4" in names and "contact_sheet.png" in names
    assert Image.open(folder / "contact_sheet.png").height > 4 * 16
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out",
        "prompts.txt",
    ]  # the prompt named no other folder


def test_same_seed_same_bytes_and_every_clip_can_be_made_again_alone(run, tiny_pipeline, tmp_path):
    run(
        "generate",
        "a blue star",
        "--num-videos",
        2,
        "--seed",
        5,
        "--model",
        tiny_pipeline,
        "-o",
        tmp_path / "both",
        *STEPS,
    )
    run("generate", "a blue star", "--seed", 6, "--model", tiny_pipeline, "-o", tmp_path / "second.mp4", *STEPS)
    run("generate", "a blue star", "--seed", 7, "--model", tiny_pipeline, "-o", tmp_path / "third.mp4", *STEPS)
    second = (tmp_path / "second.mp4").read_bytes()
    assert (tmp_path / "both" / "01-a-blue-star.mp4").read_bytes() == second
    assert (tmp_path / "third.mp4").read_bytes() != second


def test_each_flag_changes_the_clip(run, tiny_pipeline, tmp_path):
    """Guidance, steps, sizes, negative prompt and image all reach the pipeline."""
    picture = tmp_path / "picture.png"
    Image.new("RGB", (16, 16), (200, 30, 30)).save(picture)
    mask = tmp_path / "mask.png"
    Image.linear_gradient("L").resize((16, 16)).save(mask)
    variants = {
        "plain": (),
        "guidance": ("--guidance", 6),
        "motion_guidance": ("--motion-guidance", 5),
        "steps": ("--steps", 3),
        "motion_steps": ("--motion-steps", 4),
        "negative": ("--negative-prompt", "a blue star"),
        "image": ("--image", picture),
        "last image": ("--last-image", picture),
        "both": ("--image", picture, "--last-image", picture),
        "region": ("--image", picture, "--motion-region", mask),
        "longer": ("--num-clips", 2),
        "content frame": ("--content-frame", picture),
        "rolled only": ("--image", picture, "--sampling", "given_frames: {kind: roll_forward, refine_steps: 0}"),
        "size": ("--height", 32),
        "frames": ("--num-frames", 6),
        "scale": ("--scale", 2),
    }
    clips = {}
    for name, flags in variants.items():
        arguments = ("--steps", 2, *flags) if name != "steps" else flags
        code, _, err = run(
            "generate", "a red circle", "--model", tiny_pipeline, "-o", tmp_path / f"{name}.gif", *arguments
        )
        assert code == 0, err
        clips[name] = (tmp_path / f"{name}.gif").read_bytes()
    assert len(set(clips.values())) == len(variants)


def test_a_long_prompt_is_cut_and_recorded(run, tiny_pipeline, tmp_path):
    prompt = "a red circle " * 8 + "a blue star"
    assert run("generate", prompt, "--model", tiny_pipeline, "-o", tmp_path / "a.mp4", *STEPS)[0] == 0
    assert json.loads((tmp_path / "a.json").read_text())["truncated"].endswith("a blue star")


def test_reconstruct_shows_four_panels_and_measures(run, tiny_pipeline, tmp_path, clip):
    code, out, _ = run("reconstruct", clip, "--model", tiny_pipeline, "-o", tmp_path / "r.mp4", "--stride", 2)
    assert code == 0
    assert "PSNR" in out
    assert frames_of(tmp_path / "r.mp4").shape == (4, 16, 4 * 16, 3)
    record = json.loads((tmp_path / "r.json").read_text())
    assert 0 < record["reconstruction"]["psnr"] < 100
    assert record["reconstruction"]["clips"] == 1


def test_a_clip_is_edited(run, tiny_pipeline, tmp_path):
    """Drawn anew by words, and with its content frame taken out, painted over and put back."""
    clip, frame = tmp_path / "clip.mp4", tmp_path / "frame.png"
    assert run("generate", "a red circle", "--model", tiny_pipeline, "-o", clip, *STEPS)[0] == 0
    code, out, err = run("edit", clip, "--keep", frame, "--model", tiny_pipeline)
    assert code == 0, err
    assert out.strip() == str(frame)
    picture = Image.open(frame)
    assert picture.size == (16, 16)
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(frame)
    ways = {
        "words": ("a blue star", "--strength", 0.8),
        "more": ("a blue star", "--strength", 1),
        "motion": ("a blue star", "--strength", 0, "--motion-strength", 0.9),
        "picture": ("--content-frame", frame),
    }
    clips = {}
    for name, flags in ways.items():
        output = tmp_path / f"{name}.gif"
        code, _, err = run("edit", clip, *flags, "--model", tiny_pipeline, "--steps", 4, "-o", output)
        assert code == 0, err
        clips[name] = output.read_bytes()
        record = json.loads(output.with_suffix(".json").read_text())
        assert record["sampling"]["content"]["num_inference_steps"] == 4
    assert len(set(clips.values())) == len(ways)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ["nothing to edit by"]),
        (("a", "--strength", 2), ["--strength"]),
        (("a", "--strength", 0.01), ["--strength", "0.01", "last step"]),
        (("--content-frame", "{clip}"), ["--content-frame"]),
        (("--class", "cat"), ["--class"]),
    ],
)
def test_what_cannot_be_edited(run, tiny_pipeline, tmp_path, flags, words):
    clip = tmp_path / "clip.mp4"
    assert run("generate", "a red circle", "--model", tiny_pipeline, "-o", clip, *STEPS)[0] == 0
    given = [str(flag).replace("{clip}", str(clip)) for flag in flags]
    code, _, err = run("edit", clip, *given, "--model", tiny_pipeline, "--steps", 4, "-o", tmp_path / "out.mp4")
    said = err.splitlines()[-1]
    assert code == 2 and said.startswith("error: ") and all(word in said for word in words), said
    assert not (tmp_path / "out.mp4").exists()


PLAN = {
    "objects": [{"id": "ball", "keyframes": [{"frame": 0, "box": [1, 2, 6, 6]}, {"frame": 3, "box": [9, 8, 6, 6]}]}]
}


@pytest.fixture
def planned(tiny_pipeline, tmp_path):
    """Arguments that follow a plan from a picture with a red square; both files are beside the output."""
    pixels = np.full((16, 16, 3), 120, np.uint8)
    pixels[2:8, 1:7] = (200, 30, 30)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    common = ("generate", "--model", tiny_pipeline, "--steps", 4, "-o", tmp_path / "out" / "a.gif")
    return (*common, "--plan", tmp_path / "plan.json", "--image", tmp_path / "first.png")


def test_a_plan_is_followed_and_recorded(run, planned, tmp_path):
    code, _, err = run(*planned)
    assert code == 0, err
    assert frames_of(tmp_path / "out" / "a.gif").shape == (4, 16, 16, 3)
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["plan"] == PLAN and record["motion_strength"] == 0 and record["prompt"] == ""
    variants = {
        "again": (),
        "drawn anew": ("--motion-strength", 0.5),
        "words": ("a red circle", "--motion-strength", 0.5),
    }
    variants |= {"seed": ("--motion-strength", 0.5, "--seed", 1), "frames": ("--num-frames", 6)}
    clips = {"": (tmp_path / "out" / "a.gif").read_bytes()}
    for name, more in variants.items():
        assert run(*planned, *more)[0] == 0
        clips[name] = (tmp_path / "out" / "a.gif").read_bytes()
    assert clips[""] == clips.pop("again") and len(set(clips.values())) == len(clips)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--last-image", "{tmp}/first.png"), ["--last-image", "first.png", "plan"]),
        (("--content-frame", "{tmp}/first.png"), ["--content-frame", "plan"]),
        (("--reward", "sprites"), ["--reward", "sprites", "plan"]),
        (("--guidance", "3"), ["--guidance", "3", "plan"]),
        (("--class", "1"), ["--class"]),
        (("--height", "32"), ["--image", "16x16", "32x16"]),
        (("--num-frames", "2"), ["--plan", "'ball'", "keyframe 1", "frame 3"]),
        (("--motion-strength", "1.5"), ["--motion-strength", "1.5", "0..1"]),
        (("--motion-strength", "0.1"), ["--motion-strength", "0.1", "0.249"]),
        (("--plan", "{tmp}/none.json"), ["none.json"]),
        (("--plan", "{tmp}/first.png"), ["--plan", "first.png", "JSON"]),
        (("--plan", "{tmp}/wrong.json"), ["--plan", "wrong.json", "objects.0.keyframes.0.bok", "did you mean box"]),
    ],
)
def test_what_does_not_go_with_a_plan_is_one_line(run, planned, tmp_path, more, words):
    (tmp_path / "wrong.json").write_text(
        '{"objects": [{"id": "a", "keyframes": [{"frame": 0, "bok": [1, 2, 3, 4]}]}]}'
    )
    code, _, err = run(*planned, *(each.format(tmp=tmp_path) for each in more))
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert all(word in lines[0] for word in words), lines[0]
    assert not (tmp_path / "out").exists()


def test_a_plan_needs_a_picture_and_motion_strength_a_plan(run, planned, tmp_path):
    for left_out, words in ((planned[:-2], ["--plan", "image"]), (planned[:-4], ["--motion-strength", "plan"])):
        code, _, err = run(*left_out, "--motion-strength", 0.5)
        assert code == 2 and all(word in err for word in words), err
    assert not (tmp_path / "out").exists()


TRACKS = {"tracks": [{"points": [[0, 3.5, 4.5], [3, 11.5, 6.5]]}]}


@pytest.fixture(scope="session")
def warping_pipeline(tiny_pipeline, tmp_path_factory):
    """The tiny pipeline with an autoencoder that predicts a flow."""
    import torch

    from cmd_video import CMDPipeline
    from cmd_video.models import CMDWarpAutoencoder

    pipe = CMDPipeline.from_pretrained(tiny_pipeline)
    fields = {name: value for name, value in pipe.autoencoder.config.items() if not name.startswith("_")}
    torch.manual_seed(0)
    autoencoder = CMDWarpAutoencoder(**{**fields, "fold": 2, "head_channels": 8, "base": "warp"})
    torch.nn.init.normal_(autoencoder.head.conv_out.weight, std=0.1)
    pipe.register_modules(autoencoder=autoencoder.eval())
    folder = tmp_path_factory.mktemp("warping") / "tiny"
    pipe.save_pretrained(folder)
    return folder


def test_tracks_are_followed_and_the_flow_is_written(run, warping_pipeline, tmp_path):
    (tmp_path / "tracks.json").write_text(json.dumps(TRACKS))
    common = ("generate", "a red circle", "--model", warping_pipeline, "--num-videos", 2, "--steps", 4)
    assert run(*common, "-o", tmp_path / "plain")[0] == 0
    dragged = ("--tracks", tmp_path / "tracks.json", "--flow", tmp_path / "flows" / "flow.npz")
    code, out, err = run(*common, *dragged, "-o", tmp_path / "dragged")
    assert code == 0, err
    assert str(tmp_path / "flows" / "flow.npz") in out
    with np.load(tmp_path / "flows" / "flow.npz", allow_pickle=False) as file:
        assert file["flow"].shape == (2, 4, 16, 16, 2) and file["flow"].dtype == np.float32
        assert (file["flow"][0] != file["flow"][1]).any()
    name = "00-a-red-circle"
    plain, other = (frames_of(tmp_path / folder / f"{name}.mp4") for folder in ("plain", "dragged"))
    assert (plain != other).any()
    assert json.loads((tmp_path / "dragged" / f"{name}.json").read_text())["tracks"] == TRACKS["tracks"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--tracks", "{tmp}/none.json"), ["none.json"]),
        (("--tracks", "{tmp}/wrong.json"), ["--tracks", "wrong.json", "tracks.0.point", "did you mean points"]),
        (("--tracks", "{tmp}/outside.json"), ["--tracks", "track 0, point 1", "(11.5, 60)", "x 0 to 16, y 0 to 16"]),
        (("--tracks", "{tmp}/good.json", "--num-clips", "2"), ["--num-clips", "tracks are of one clip"]),
        (("--tracks", "{tmp}/good.json", "--model", "{tiny}"), ["--tracks", "no flow", "'none'"]),
        (("--flow", "{tmp}/flow.npz", "--model", "{tiny}"), ["--flow", "no flow", "'none'"]),
        (("--flow", "{tmp}/flow.pkl"), ["flow.pkl", "'.pkl'", ".npz"]),
        (("--plan", "{tmp}/good.json", "--image", "{tmp}/no.png", "--tracks", "{tmp}/good.json"), ["no.png"]),
    ],
)
def test_tracks_that_do_not_fit_are_one_line(run, warping_pipeline, tiny_pipeline, tmp_path, more, words):
    (tmp_path / "good.json").write_text(json.dumps(TRACKS))
    (tmp_path / "wrong.json").write_text('{"tracks": [{"point": [[0, 1, 2], [3, 4, 5]]}]}')
    (tmp_path / "outside.json").write_text('{"tracks": [{"points": [[0, 3, 4], [3, 11.5, 60]]}]}')
    model = () if "{tiny}" in more else ("--model", warping_pipeline)
    asked = [each.format(tmp=tmp_path, tiny=tiny_pipeline) for each in more]
    code, _, err = run("generate", "a ball", "--steps", 2, "-o", tmp_path / "out" / "a.gif", *model, *asked)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert all(word in lines[0] for word in words), lines[0]
    assert not (tmp_path / "out").exists() and not (tmp_path / "flow.npz").exists()


def test_tracks_and_flow_do_not_go_with_a_plan(run, planned, tmp_path):
    (tmp_path / "tracks.json").write_text(json.dumps(TRACKS))
    for more, word in (
        (("--tracks", tmp_path / "tracks.json"), "--tracks"),
        (("--flow", tmp_path / "f.npz"), "--flow"),
    ):
        code, _, err = run(*planned, *more)
        assert code == 2 and word in err and "beside a plan it does nothing" in err, err
