"""A recipe of the paper, with small networks, takes its first step on a table of a million rows within a minute."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_first_step_on_a_million_rows_comes_within_a_minute(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    assert import_module("scale").first_step()["seconds"] < 60
