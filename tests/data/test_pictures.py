"""One reader of pictures: frames of clips, content frames and masks come out alike, however they are stored."""

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from cmd_video.cli import EXIT_USER_ERROR, main
from cmd_video.data.clip import ClipError
from cmd_video.data.frame_folders import probe_frame_folder, read_frame_folder
from cmd_video.data.picture_file import read_picture, upright_rgb

RED, GRAY = (230, 40, 40), (128, 128, 128)
TURNS = {  # EXIF orientation -> what was done to the upright picture before it was stored
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def marked(background: tuple[int, int, int] = GRAY) -> np.ndarray:
    """Uint8 (48, 64, 3) with a red square at the upper left."""
    pixels = np.full((48, 64, 3), background, np.uint8)
    pixels[8:24, 8:24] = RED
    return pixels


def transparent(mode: str) -> Image.Image:
    """A red (or white) square; the rest is transparent, and green (or gray) where that is not heeded."""
    rgba = np.dstack([marked((0, 255, 0)), np.zeros((48, 64), np.uint8)])
    rgba[8:24, 8:24, 3] = 255
    picture = Image.fromarray(rgba)
    if mode == "RGB":  # one colour is transparent
        picture = Image.fromarray(rgba[..., :3])
        picture.info["transparency"] = (0, 255, 0)
    elif mode == "L":
        gray = np.full((48, 64), 200, np.uint8)
        gray[8:24, 8:24] = 255
        picture = Image.fromarray(gray)
        picture.info["transparency"] = 200
    elif mode == "P":
        picture = Image.fromarray(rgba[..., :3]).quantize(2, dither=Image.Dither.NONE)
        picture.info["transparency"] = int(np.asarray(picture)[40, 40])
    elif mode == "I;16":
        picture = Image.fromarray(np.full((48, 64), 40000, np.uint16))
        picture.putpixel((16, 16), 65535)
        picture.info["transparency"] = 40000
    elif mode == "LA":
        picture = picture.convert("LA")
    return picture


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(marked())
    stored = stored if TURNS[orientation] is None else stored.transpose(TURNS[orientation])
    options = {} if suffix == ".png" else {"quality": 98, "subsampling": 0}
    for number in range(2):
        stored.save(tmp_path / f"{number}{suffix}", exif=exif, **options)
    pixels = read_picture(tmp_path / f"0{suffix}")
    assert pixels.shape == (48, 64, 3) and abs(pixels.float() - torch.from_numpy(marked()).float()).mean() < 1
    assert torch.equal(read_frame_folder(tmp_path, 2)[1], pixels)
    info = probe_frame_folder(tmp_path)
    assert (info.height, info.width) == (48, 64)


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "LA", "L", "P", "I;16"])
def test_transparency_lies_on_black_however_it_is_stored(tmp_path, mode):
    picture = transparent(mode)
    options = {"transparency": picture.info["transparency"]} if mode != "RGBA" and mode != "LA" else {}
    picture.save(tmp_path / "0.png", **options)
    for pixels in (np.asarray(upright_rgb(picture)), read_picture(tmp_path / "0.png").numpy()):
        assert pixels[40, 40].tolist() == [0, 0, 0] and pixels[16, 16].max() > 90
    assert probe_frame_folder(tmp_path).has_alpha


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I;16B"])
def test_every_kind_of_pixel_keeps_its_brightness(mode):
    white = np.zeros((16, 16), np.uint8)
    white[:, 8:] = 255
    if mode.startswith("I;16"):
        picture = Image.frombytes(mode, (16, 16), (white.astype(np.uint16) * 257).tobytes())
    else:
        picture = Image.fromarray(white).convert("RGB").convert(mode)
    pixels = np.asarray(upright_rgb(picture)).astype(int)
    assert pixels.shape == (16, 16, 3) and pixels[:, :8].max() < 3 and pixels[:, 8:].min() > 250


def test_sixteen_bits_are_scaled_in_files_too(tmp_path):
    values = (np.linspace(0, 255, 64).round().astype(np.uint16) * 257)[None].repeat(48, 0)
    Image.fromarray(values).save(tmp_path / "0.png")
    assert torch.equal(read_picture(tmp_path / "0.png")[..., 0], torch.from_numpy((values >> 8).astype(np.uint8)))
    assert probe_frame_folder(tmp_path).bits == 16


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_refused(tmp_path, mode):
    Image.new(mode, (16, 16), 7).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="whose range is not known"):
        upright_rgb(Image.new(mode, (16, 16), 7))
    with pytest.raises(ClipError, match=r"a.tiff: .* whose range is not known"):
        read_picture(tmp_path / "a.tiff")


def bomb(path):
    """A PNG of a few hundred bytes that says it has 60000 x 60000 pixels."""
    header = (60000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", header)
        PngImagePlugin.putchunk(file, b"IEND", b"")


def large(path):
    Image.new("1", (9000, 9000)).save(path)  # below Pillow's limit, above ours


def text(path):
    path.write_text("no picture")


def half(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("make", "problem"), [(bomb, "too large"), (large, "too large"), (text, "damaged"), (half, "damaged")]
)
def test_what_is_no_picture_is_one_line_everywhere(tmp_path, capsys, make, problem):
    (tmp_path / "frames").mkdir()
    path = tmp_path / "frames" / "0.png"
    make(path)
    for read in (lambda: read_picture(path), lambda: read_frame_folder(tmp_path / "frames", 1)):
        with pytest.raises(ClipError, match="0.png: ") as error:
            read()
        assert error.value.problem == problem and "\n" not in str(error.value)
    assert main(["generate", "a red circle", "--image", str(path), "-o", str(tmp_path / "a.mp4")]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("error: --image: ") and said.count("\n") == 1 and not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("kind", ["exif", "alpha", "palette", "sixteen bits"])
def test_the_command_line_and_the_pipeline_read_alike(tmp_path, kind):
    from pathlib import Path

    from cmd_video.cli.options import open_picture
    from cmd_video.pipelines.pictures import read_image

    path, exif = Path(tmp_path / "a.png"), Image.Exif()
    exif[0x0112] = 6
    if kind == "exif":
        Image.fromarray(marked()).transpose(TURNS[6]).save(path, exif=exif)
    elif kind == "sixteen bits":
        Image.fromarray(np.full((48, 64), 40000, np.uint16)).save(path)
    else:
        picture = transparent("P" if kind == "palette" else "RGBA")
        picture.save(path, **({"transparency": picture.info["transparency"]} if kind == "palette" else {}))
    expected = read_picture(path).permute(2, 0, 1).float() / 255
    with Image.open(path) as picture:
        assert torch.equal(read_image(picture), expected)
    assert torch.equal(read_image(open_picture(path, "image")), expected) and expected.shape == (3, 48, 64)
