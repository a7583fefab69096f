"""Rows that are kept as they are made: a stopped evaluation goes on, and processes give what one gives."""

import json
import subprocess
import sys

import pytest
import torch

from cmd_video.data.clip import ClipError
from cmd_video.data.shares import Share, ShareDone
from cmd_video.evaluation.networks.extractors import build_extractor
from cmd_video.evaluation.protocol.clips import MadeClips
from cmd_video.evaluation.protocol.shared_work import NotOurs, SharedRows, discard, every_row, work_on
from cmd_video.evaluation.protocol.tables import extract, extract_share
from cmd_video.sprites.adherence import evaluate_adherence
from cmd_video.sprites.scenes import render, sample_scene


def squares(numbers):
    return [{"square": number**2 / 3} for number in numbers]


def test_rows_are_made_once_and_in_order(tmp_path):
    made, calls = [], []

    def make(numbers):
        made.extend(numbers)
        return squares(numbers)

    rows = SharedRows(tmp_path / "work", {"what": "squares"})(7, 3, make, lambda *call: calls.append(call))
    assert rows == every_row(7, 3, squares) == squares(range(7)) and made == list(range(7))
    assert calls == [(3, 7), (6, 7), (7, 7)]
    assert SharedRows(tmp_path / "work", {"what": "squares"})(7, 3, make) == rows and len(made) == 7
    discard(tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_stopped_work_goes_on(tmp_path):
    made = []

    def make(numbers):
        if numbers[0] >= 4 and not made.count("again"):
            raise KeyboardInterrupt
        made.extend(numbers)
        return squares(numbers)

    work = SharedRows(tmp_path / "work", {})
    with pytest.raises(KeyboardInterrupt):
        work(9, 2, make)
    assert made == [0, 1, 2, 3]
    file = tmp_path / "work" / "rows-0000.jsonl"
    file.write_text(file.read_text() + '{"number": 4, "row": {"squ')  # what a loss of power leaves
    made.append("again")
    assert work(9, 2, make) == squares(range(9))
    assert made[5:] == [4, 5, 6, 7, 8]


def test_a_first_failure_leaves_nothing_and_another_work_is_refused(tmp_path):
    def fail(numbers):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        SharedRows(tmp_path / "work", {})(3, 1, fail)
    assert not (tmp_path / "work").exists()
    SharedRows(tmp_path / "work", {"seed": 0})(3, 1, squares)
    for recipe, count in (({"seed": 1}, 3), ({"seed": 0}, 4)):
        with pytest.raises(ValueError, match="holds an interrupted evaluation of something else; remove it"):
            SharedRows(tmp_path / "work", recipe)(count, 1, squares)


@pytest.mark.parametrize("left", [[], [".recipe.tmp-host-4711.json"], [".recipe.tmp-4711.json", ".lock"]])
def test_a_kill_before_the_recipe_has_its_name_keeps_nothing_out(left, tmp_path):
    (tmp_path / "work").mkdir()
    for name in left:
        (tmp_path / "work" / name).write_text('{"see')
    assert SharedRows(tmp_path / "work", {"seed": 0})(3, 1, squares) == squares(range(3))


def test_a_folder_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "diary.txt").write_text("x")
    with pytest.raises(NotOurs, match="exists and holds no interrupted evaluation"), work_on(tmp_path / "work"):
        SharedRows(tmp_path / "work", {})(3, 1, squares)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["diary.txt"]


@pytest.mark.parametrize("error", [ValueError, ClipError])
def test_a_mistake_in_the_clips_leaves_nothing_but_work_of_others_stays(error, tmp_path):
    def fail(numbers):
        if numbers == [2]:
            raise error("a.mp4", "too small")
        return squares(numbers)

    with pytest.raises(error), work_on(tmp_path / "work"):
        SharedRows(tmp_path / "work", {})(3, 1, fail)
    assert not (tmp_path / "work").exists()
    SharedRows(tmp_path / "work", {"seed": 0})(3, 1, squares)
    with pytest.raises(NotOurs), work_on(tmp_path / "work"):
        SharedRows(tmp_path / "work", {"seed": 1})(3, 1, squares)
    assert (tmp_path / "work" / "rows-0000.jsonl").is_file()


RIVAL = """
import sys
from pathlib import Path
from cmd_video.evaluation.protocol.shared_work import claim
claim(Path(sys.argv[1]), {"seed": 0})
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("which", ["rows", "features"])
def test_of_two_at_the_same_work_the_second_is_told(which, tmp_path):
    """Not that a file of the first one, which it removes at its end, cannot be read."""
    clips = MadeClips(lambda numbers: torch.zeros(len(numbers), 3, 4, 16, 16), 3, {"frames": 4})
    begin = {
        "rows": lambda: SharedRows(tmp_path / "work", {"seed": 0})(3, 1, squares),
        "features": lambda: extract(clips, build_extractor("pixels"), tmp_path / "work"),
    }[which]
    command = [sys.executable, "-c", RIVAL, str(tmp_path / "work")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rival:
        assert rival.stdout.readline() == "held\n"
        with pytest.raises(NotOurs, match="is in use by process .*; wait for it, or choose another output"):
            begin()
        assert (tmp_path / "work" / "recipe.json").is_file()
        rival.kill()
    discard(tmp_path / "work")
    begin()


def test_adherence_goes_on_with_the_same_numbers(tmp_path):
    asked = []

    def generate(prompts, seeds):
        if len(asked) == 2:
            asked.append(None)
            raise KeyboardInterrupt
        asked.append(seeds)
        return torch.stack([render(sample_scene(seed, 0, "held_out"), 16, 64, 64) for seed in seeds])

    options = {"num_scenes": 6, "batch_size": 2}
    rows_of = SharedRows(tmp_path / "work", {})
    with pytest.raises(KeyboardInterrupt):
        evaluate_adherence(generate, **options, rows_of=rows_of)
    values = evaluate_adherence(generate, **options, rows_of=rows_of)
    assert len([seeds for seeds in asked if seeds]) == 3  # none twice
    assert values == json.loads(json.dumps(evaluate_adherence(generate, **options)))


SHARED = """
import json, sys
from pathlib import Path
from cmd_video.evaluation.protocol.shared_work import PartialState, SharedRows
rank = PartialState(cpu=True).process_index
made = []
def make(numbers):
    made.extend(numbers)
    return [{"square": number ** 2 / 3} for number in numbers]
rows = SharedRows(Path(sys.argv[1]) / "work", {})(11, 2, make)
(Path(sys.argv[1]) / f"rank{rank}.json").write_text(json.dumps([rows, made]))
PartialState().destroy_process_group()
"""


def test_processes_share_the_rows(tmp_path):
    (tmp_path / "share.py").write_text(SHARED)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29583"]
    subprocess.run([sys.executable, *launch, tmp_path / "share.py", tmp_path], check=True, timeout=300)
    (rows, first), (others, second) = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert rows == others == squares(range(11))
    assert first and second and sorted(first + second) == list(range(11))


def test_shares_together_are_the_whole(tmp_path):
    """Each has every n-th batch, the same ones that one process makes."""
    asked = []

    def make(numbers):
        asked.append(numbers)
        return squares(numbers)

    for number, known in ((2, 3), (0, 9)):
        with pytest.raises(ShareDone) as done:
            SharedRows(tmp_path / "work", {}, Share(number, 3))(14, 3, make)
        assert str(done.value) == f"{tmp_path / 'work'}: share {number}/3 is done, {known} of 14 rows are there"
    assert asked == [[6, 7, 8], [0, 1, 2], [9, 10, 11]]
    assert SharedRows(tmp_path / "work", {})(14, 3, make) == squares(range(14))
    assert sorted(number for numbers in asked for number in numbers) == list(range(14))  # none twice
    assert all(numbers[0] % 3 == 0 for numbers in asked)


def test_a_stopped_share_goes_on(tmp_path):
    made, stop = [], [KeyboardInterrupt]

    def make(numbers):
        if numbers[0] >= 5 and stop:
            raise stop.pop()
        made.extend(numbers)
        return squares(numbers)

    share = SharedRows(tmp_path / "work", {}, Share(1, 2))
    with pytest.raises(KeyboardInterrupt):
        share(9, 1, make)
    with (tmp_path / "work" / "rows-1-of-2.jsonl").open("a") as file:
        file.write('{"number": 5, "row": {"squ')  # what a loss of power leaves
    with pytest.raises(ShareDone, match="4 of 9 rows are there"):
        share(9, 1, make)
    assert made == [1, 3, 5, 7]
    assert SharedRows(tmp_path / "work", {})(9, 1, make) == squares(range(9)) and made[4:] == [0, 2, 4, 6, 8]


def test_a_share_whose_clips_are_a_mistake_keeps_nothing_out_and_takes_nothing_away(tmp_path):
    def fail(numbers):
        raise ValueError("broken")

    work = tmp_path / "work"
    with pytest.raises(ValueError, match="broken"), work_on(work, Share(0, 2)):
        SharedRows(work, {}, Share(0, 2))(3, 1, fail)
    assert not work.exists()
    with pytest.raises(ShareDone):
        SharedRows(work, {"seed": 0}, Share(0, 2))(3, 1, squares)
    with pytest.raises(ValueError, match="broken"), work_on(work, Share(1, 2)):
        SharedRows(work, {"seed": 0}, Share(1, 2))(3, 1, fail)
    assert (work / "rows-0-of-2.jsonl").is_file()
    with pytest.raises(NotOurs, match="of something else"), work_on(work, Share(1, 2)):
        SharedRows(work, {"seed": 1}, Share(1, 2))(3, 1, squares)
    assert SharedRows(work, {"seed": 0})(3, 1, squares) == squares(range(3))


RIVAL_SHARE = """
import sys
from pathlib import Path
from cmd_video.data.shares import Share
from cmd_video.evaluation.protocol.shared_work import claim_share
with claim_share(Path(sys.argv[1]), {"count": 4}, Share(0, 2)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_keeps_whom_out(tmp_path):
    """A share its like and the whole, the whole every share; other shares go beside it."""
    work = tmp_path / "work"
    whole, first, second = (SharedRows(work, {}, share) for share in (None, Share(0, 2), Share(1, 2)))
    command = [sys.executable, "-c", RIVAL_SHARE, str(work)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rival:
        assert rival.stdout.readline() == "held\n"
        with pytest.raises(NotOurs, match="is in use by process .*; wait for it, or choose another output"):
            first(4, 1, squares)
        with pytest.raises(NotOurs, match="is in use by several processes"), work_on(work):
            whole(4, 1, squares)
        with pytest.raises(ShareDone, match="2 of 4 rows"):
            second(4, 1, squares)
        rival.kill()
    with pytest.raises(ShareDone, match="4 of 4 rows"):
        first(4, 1, squares)
    assert whole(4, 1, squares) == squares(range(4))
    with pytest.raises(NotOurs, match="is in use by process"):  # until `discard`
        second(4, 1, squares)
    discard(work)
    assert not work.exists()


def test_a_share_of_features(tmp_path):
    videos = torch.rand(7, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    read = []

    def make(numbers):
        read.extend(numbers)
        return videos[list(numbers)]

    clips, extractor = MadeClips(make, 7, {"frames": 4}), build_extractor("pixels")
    alone = extract(clips, extractor, tmp_path / "alone", 2)
    read.clear()
    for number, there in ((1, 2), (0, 4)):
        said = extract_share(clips, extractor, tmp_path / "work", Share(number, 2), 2)
        assert said == f"{tmp_path / 'work'}: share {number}/2 is done, {there} of 4 chunks are there"
    extract_share(clips, extractor, tmp_path / "work", Share(0, 2), 2)  # again: nothing is missing
    assert sorted(read) == list(range(7))
    together = extract(clips, extractor, tmp_path / "work", 2)
    assert torch.equal(alone.features, together.features) and alone.protocol == together.protocol
    assert len(read) == 7
