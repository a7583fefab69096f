"""The adherence evaluation, fed with perfect clips and with the perfect clips of other prompts."""

import json

import pytest
import torch

from cmd_video.sprites.adherence import choose_scenes, evaluate_adherence, wilson_interval
from cmd_video.sprites.scenes import all_combinations, render, sample_scene


def perfect(prompts: list[str], seeds: list[int]) -> torch.Tensor:
    return torch.stack([render(sample_scene(seed, 0, "held_out"), 16, 64, 64) for seed in seeds])


def test_perfect_clips_reach_the_readers_floor() -> None:
    calls: list[tuple[int, int]] = []
    results = evaluate_adherence(perfect, num_scenes=48, batch_size=20, progress=lambda *call: calls.append(call))
    assert results["accuracy"] == results["reader_on_ground_truth"]
    assert all(entry["rate"] >= 0.98 for entry in results["accuracy"].values())
    assert calls == [(20, 48), (40, 48), (48, 48)]
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert sum(sum(row.values()) for row in results["confusion"]["motion"].values()) == 48
    assert set(results["by"]["shape"]) == {row["expected"]["objects"][0]["shape"] for row in results["scenes"]}


def test_clips_of_other_prompts_score_near_chance() -> None:
    order = sorted(choose_scenes(48))
    shuffled = dict(zip(order, order[23:] + order[:23], strict=True))
    results = evaluate_adherence(lambda prompts, seeds: perfect(prompts, [shuffled[s] for s in seeds]), num_scenes=48)
    assert all(entry["rate"] < 0.25 for entry in results["accuracy"].values())
    assert results["accuracy"]["all"]["rate"] < 0.05
    assert results["reader_on_ground_truth"]["all"]["rate"] >= 0.98


def test_empty_clips_are_all_wrong_and_still_json() -> None:
    results = evaluate_adherence(lambda prompts, seeds: torch.zeros(len(prompts), 3, 16, 64, 64), num_scenes=5)
    assert all(entry["correct"] == 0 for entry in results["accuracy"].values())
    json.dumps(results, allow_nan=False)


def test_scenes_cover_every_held_out_combination_once() -> None:
    scenes = list(choose_scenes(200).values())
    single = [scene.combinations()[0] for scene in scenes if len(scene.objects) == 1]
    assert sorted(single) == sorted(all_combinations("held_out"))
    assert sum(len(scene.objects) == 2 for scene in scenes) == 200 - len(single)
    assert choose_scenes(200) == choose_scenes(200) != choose_scenes(200, seed=1)


def test_few_scenes_are_spread_over_the_motions() -> None:
    scenes = choose_scenes(40).values()
    assert len(scenes) == 40
    assert len({scene.motion for scene in scenes}) >= 14


@pytest.mark.parametrize(("correct", "total", "low", "high"), [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433)])
def test_wilson_interval(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-4)


def test_wrong_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="generate: expected clips"):
        evaluate_adherence(lambda prompts, seeds: torch.zeros(1, 3, 16, 64, 64), num_scenes=2)
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_adherence(perfect, num_scenes=0)
