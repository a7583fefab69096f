"""One contract for every technique: a file with a page, a section that refuses what it does not know, a row in the
documentation, and nothing in the core that names it.
"""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import cmd_video.techniques
from cmd_video.pipelines.sampling import ModelSampling, Sampling
from cmd_video.section import Section
from cmd_video.techniques import TECHNIQUES, Technique, technique
from cmd_video.training.config import STAGES, TrainConfig

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "cmd_video"
NEUTRAL = {  # settings that change nothing
    "feature_reuse": {"interval": 1},
    "guidance_interval": {"scale": 1.0},
    "joint_guidance": {"scale": 1.0},
    "image_leakage": {"maximum": 0.0},
    "frame_dropout": {"share": 0.0},
    "lora": {"rank": 0},
    "reference_frames": {"count": 0},
    "reference_attention": {"count": 0},
    "task_mix": {"first_last": 1.0},
    "weight_extrapolation": {"scale": 0.0},
    "reward_particles": {"budget": 1},
    "structure_injection": {"share": 0.0},
    "two_models": {"boundary_ratio": 0.0},
}


@pytest.mark.parametrize("kind", TECHNIQUES)
def test_a_technique_is_a_page_and_a_section(kind):
    row = technique(kind)
    module = importlib.import_module(row.module)
    page = ast.get_docstring(ast.parse(Path(module.__file__).read_text()))
    assert row.paper.removeprefix("arXiv ") in page
    assert "differs from" in page.lower()
    assert row.settings.__doc__
    assert issubclass(row.settings, Section)
    fields = {name: field for name, field in row.settings.model_fields.items() if name != "kind"}
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        row.settings.model_validate({"kind": kind, "no_such_field": 1})
    source = Path(module.__file__).read_text()
    for name in fields:
        if name in row.settings.__annotations__:
            after = source.split(f"\n    {name}: ", 1)[1].split("\n    ", 2)[1]
            assert after.startswith('"""'), f"{kind}.{name} has no docstring"


@pytest.mark.parametrize("kind", TECHNIQUES)
def test_it_is_one_row_of_the_documentation(kind):
    lines = (ROOT / "docs" / "techniques.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith(f"| `{kind}` |")]
    assert len(rows) == 1
    assert TECHNIQUES[kind].paper.removeprefix("arXiv ") in rows[0]
    assert TECHNIQUES[kind].seam in rows[0]


def test_the_documentation_has_no_others():
    lines = (ROOT / "docs" / "techniques.md").read_text().splitlines()
    assert {found[1] for line in lines if (found := re.match(r"\| `(\w+)` \|", line))} == set(TECHNIQUES)


def test_unknown_kinds_and_other_seams_are_refused():
    with pytest.raises(ValueError, match="kind: 'no_such' is none of feature_reuse, guidance_interval"):
        technique("no_such")
    with pytest.raises(ValueError, match="kind: 'lora' is none of feature_reuse"):
        technique("lora", "wrap")
    with pytest.raises(ValidationError, match="kind: 'feature_reuse' is none of guidance_interval"):
        ModelSampling(guidance={"kind": "feature_reuse"})


@pytest.mark.parametrize("kind", NEUTRAL)
def test_the_neutral_setting_is_the_default_or_known(kind):
    settings = technique(kind).settings(**NEUTRAL[kind])
    assert settings.model_dump().items() >= NEUTRAL[kind].items()


def test_techniques_that_train_fit_a_stage():
    stages = {stage.denoiser for stage in STAGES.values()}
    for kind, row in TECHNIQUES.items():
        if row.seam == "objective":
            assert set(row.denoisers) <= stages, kind
            assert {"build", "check_run"} <= set(dir(row.settings)), kind


def test_the_core_names_no_technique():
    """But for the arguments that a call of the pipeline has had for long."""
    both = {"guidance_interval", "feature_reuse"}
    allowed = {f"pipelines/{name}.py": both for name in ("sampling", "presets", "pipeline_cmd", "older")}
    found = []
    for folder in ("diffusion", "denoisers", "pipelines", "training", "benchmark"):
        for path in (SOURCE / folder).glob("*.py"):
            names = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            place = path.relative_to(SOURCE).as_posix()
            found += [(place, name) for name in names & TECHNIQUES.keys() - allowed.get(place, set())]
    assert not [entry for entry in found if entry[1] not in ("backward", "consistency", "bridge")], found


DUMMY = '''"""A technique of nobody (arXiv 0000.00000). Differs from paper: there is none."""

from typing import Literal

from cmd_video.diffusion.objective import DenoisingSettings


class Settings(DenoisingSettings):
    """The plain loss, doubled."""

    kind: Literal["doubled"] = "doubled"

    def build(self, denoiser, model, teacher=None, seed=0):
        """The objective of a run."""
        from cmd_video.diffusion.objective import Denoising

        class Doubled(Denoising):
            def at(self, *arguments):
                return 2 * super().at(*arguments)

        return Doubled(self, denoiser)
'''


def test_a_thirty_first_technique_is_one_file_and_one_row(tmp_path, monkeypatch, tiny_config, run_train, read_log):
    (tmp_path / "doubled_loss.py").write_text(DUMMY)
    monkeypatch.syspath_prepend(str(tmp_path))
    row = Technique("doubled_loss", "nothing", "objective", ("motion",), "arXiv 0000.00000")
    monkeypatch.setitem(cmd_video.techniques.TECHNIQUES, "doubled", row)
    first = []
    for kind in ("denoising", "doubled"):
        config = tiny_config(
            "motion", tmp_path / kind, loop__steps=2, loop__validate_every=2, objective={"kind": kind}
        )
        config["validation"]["num_samples"] = 0
        run_train(config)
        first.append(read_log(tmp_path / kind, "train")[0]["loss"])
    assert first[1] == pytest.approx(2 * first[0])
    assert TrainConfig.model_validate(config).objective.kind == "doubled"
    with pytest.raises(ValidationError, match="'doubled' is not for the stage 'content'"):
        TrainConfig.model_validate(tiny_config("content", tmp_path / "x", objective={"kind": "doubled"}))
    sys.modules.pop("doubled_loss")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"content": {"process": {"kind": "bridge"}}}, "content.process: 'bridge' is not for"),
        ({"motion": {"search": {"kind": "reward_particles"}}}, "motion.search: 'reward_particles' is not for"),
        ({"motion": {"eta": 0.5, "process": {"kind": "bridge"}}}, "motion.eta: 0.5, but its solver or process"),
    ],
)
def test_sampling_refuses_what_would_do_nothing(given, message):
    with pytest.raises(ValidationError, match=message):
        Sampling.model_validate(given)
