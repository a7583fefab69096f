"""Rows that are kept as they are made: a stopped evaluation goes on, and processes give what one gives."""

import json
import subprocess
import sys

import pytest
import torch

from cmd_video.evaluation.protocol.shared_work import SharedRows, discard, every_row
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
