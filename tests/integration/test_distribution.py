"""What is given away: a tree that is light to carry, and a small wheel that works outside the repository."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEEL_BYTES, TREE_BYTES, SPRITES_BYTES = 2_000_000, 40 * 2**20, 30 * 2**20


@pytest.fixture(scope="module")
def tracked():
    """Every file under version control."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("this is no git checkout")
    return [path for path in map(ROOT.joinpath, listing.stdout.split("\0")[:-1]) if path.is_file()]


@pytest.fixture(scope="module")
def wheels(tracked, tmp_path_factory):
    """Wheels of the library and of the weights, built from copies of the tracked files."""
    work = tmp_path_factory.mktemp("build")
    for path in tracked:
        copy = work / "tree" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for place in (".", "packages/cmd-video-sprites"):
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*command, "-w", work / "wheels", "."], cwd=work / "tree" / place, check=True)
    return {path.name.partition("-")[0]: path for path in (work / "wheels").glob("*.whl")}


def test_the_tree_is_light(tracked):
    assert sum(path.stat().st_size for path in tracked) <= TREE_BYTES


def test_the_wheels_are_small(wheels):
    assert set(wheels) == {"cmd_video", "cmd_video_sprites"}
    assert wheels["cmd_video"].stat().st_size < WHEEL_BYTES
    assert wheels["cmd_video_sprites"].stat().st_size <= SPRITES_BYTES


def test_the_wheels_work_in_an_environment_outside_the_repository(wheels, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    # the packages of this environment; its own .pth files, such as that of an editable install, are not read
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*arguments):
        return subprocess.run([python, *arguments], cwd=tmp_path, capture_output=True, text=True)

    def install(wheel):
        options = ["--no-deps", "--no-index", "--target", str(site)]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, wheel], check=True)

    install(wheels["cmd_video"])
    assert run("-m", "cmd_video.cli", "--help").returncode == 0
    for script in (ROOT / "src" / "cmd_video" / "launch").iterdir():
        assert run("-m", "cmd_video.cli", "launch", "show", script.name).stdout == script.read_text()
    generate = ["-m", "cmd_video.cli", "generate", "a red circle moves to the right", "--model", "turbo"]
    bare = run(*generate, "-o", "bare.gif")
    assert bare.returncode == 2
    assert bare.stderr.count("\n") == 1
    assert "pip install 'cmd-video[sprites]'" in bare.stderr
    install(wheels["cmd_video_sprites"])
    out = run(*generate, "-o", "clip.gif")
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "clip.gif").stat().st_size > 1000
    place = run("-c", "import cmd_video, cmd_video_sprites as w; print(cmd_video.__file__, w.__file__)").stdout
    assert str(ROOT) not in place
