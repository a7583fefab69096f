"""The first twenty losses of every stage and objective, to the bit: what no rebuilding may change unsaid."""

import pytest

from cmd_video.techniques import TECHNIQUES
from cmd_video.training.config import PLAIN_OBJECTIVES, STAGES, find_objective

WARP = {
    "components__autoencoder__class": "CMDWarpAutoencoder",
    "components__autoencoder__config__fold": 2,
    "components__autoencoder__config__head_channels": 8,
    "components__autoencoder__config__stem_channels": 8,
    "components__autoencoder__config__anchor_bias": 2.0,
}
CUT = {"num_timesteps": 10, "num_segments": 2}
METHODS = {
    "guidance": {"kind": "guidance_distillation", "guidance_scale": 3.0},
    "consistency": {"kind": "consistency", **CUT},
    "backward": {"kind": "backward", **CUT},
    "backward from starts": {"kind": "backward", **CUT, "starts": [999, 699]},
    "distribution_matching": {"kind": "distribution_matching", **CUT, "starts": [999, 699], "fake_score_steps": 2},
}
RUNS = {
    "autoencoder": ("autoencoder", {}),
    "autoencoder, l1 and noise": (
        "autoencoder",
        {"objective__reconstruction": "l1", "objective__motion_latents_noise": 0.1},
    ),
    "autoencoder, warp": (
        "autoencoder",
        {
            **WARP,
            "components__autoencoder__config__base": "warp",
            "objective__anchor_weight": 0.5,
            "objective__coarse_warp_weight": 0.5,
        },
    ),
    "autoencoder, layers": ("autoencoder", {**WARP, "components__autoencoder__config__base": "layers"}),
    "classifier, appearance": (
        "classifier",
        {"components__classifier__config": {"widths": [8, 8, 8, 16], "kind": "appearance", "num_classes": 18}},
    ),
    "classifier, action": ("classifier", {"components__classifier__config__kind": "action"}),
    "image": ("image", {}),
    "image, lora": ("image", {"edit": {"kind": "lora", "rank": 2}, "objective__train_text_encoder": False}),
    "content": ("content", {}),
    "content, snr and logit-normal": (
        "content",
        {"objective__snr_power": 0.25, "objective__logit_normal": [1.4, 1.2]},
    ),
    "content, log-sigma-normal": ("content", {"objective__log_sigma_normal": [0.7, 1.6]}),
    "content, accumulated": ("content", {"loop__gradient_accumulation_steps": 2}),
    "motion": ("motion", {}),
    "motion, noise on the content frame": ("motion", {"objective__content_frame_noise": 0.2}),
    **{
        f"{stage}, {name}": (
            stage,
            {"objective": {"guidance_scale": 2.0, **method}, "validation__num_inference_steps": 2},
        )
        for stage in ("content", "motion")
        for name, method in METHODS.items()
    },
}
ALL_KINDS = {"epsilon", "sample", "v_prediction"}


def losses_of(run, read_log):
    return [line["loss"] for line in read_log(run, "train")]


@pytest.mark.parametrize("name", RUNS)
def test_golden_losses(name, golden, tiny_config, run_train, read_log, tmp_path):
    stage, changes = RUNS[name]
    config = tiny_config(
        stage, tmp_path, loop__steps=20, loop__validate_every=20, loop__checkpoint_every=20, **changes
    )
    config["validation"]["num_samples"] = 0
    run_train(config)
    losses = losses_of(tmp_path, read_log)
    assert len(losses) == 20
    golden(f"losses/{name}", [*losses, read_log(tmp_path, "validation")[-1]["loss"]])


@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
@pytest.mark.parametrize("stage", ["content", "motion"])
def test_golden_losses_of_every_prediction_type(stage, kind, golden, tiny_config, run_train, read_log, tmp_path):
    scheduler = f"components__{stage}_scheduler__config__prediction_type"
    config = tiny_config(stage, tmp_path, loop__steps=20, loop__validate_every=20, **{scheduler: kind})
    config["validation"]["num_samples"] = 0
    run_train(config)
    golden(f"losses/{stage}, {kind}", losses_of(tmp_path, read_log))


# --- no setting without a golden run ---------------------------------------------------------------------------------

COMMON = (  # set for one kind at least, whose code the others share
    "content_frame_noise", "logit_normal", "log_sigma_normal", "num_timesteps", "num_segments", "starts",
)  # fmt: skip
ELSEWHERE = {  # what no run above sets -> why
    "condition_dropout": "its default drops some conditions and keeps others in every run",
    "disturb": "a technique, tested in tests/techniques",
    "process": "a technique, tested in tests/techniques",
    "decoding": "test_decoder has golden runs of both kinds of autoencoder",
    "frame_timesteps": "a technique, tested in tests/techniques",
    "vdmini_recovery": "test_recovery has golden runs of every kind of denoiser",
}


def test_every_setting_of_every_objective_has_a_golden_run_or_a_reason():
    kinds = {*PLAIN_OBJECTIVES, *(kind for kind, row in TECHNIQUES.items() if row.seam == "objective")}
    given: dict[str, set[str]] = {kind: set() for kind in kinds}
    for stage, changes in (*RUNS.values(), ("motion", {"objective__train_text_encoder": True})):  # as tiny_config does
        whole = changes.get("objective", {})
        kind = whole.get("kind", STAGES[stage].objective)
        given[kind] |= whole.keys() | {key.split("__")[1] for key in changes if key.startswith("objective__")}
    somewhere = set().union(*given.values())
    assert set(COMMON) <= somewhere and not somewhere & ELSEWHERE.keys()
    fields = {kind: find_objective(kind).model_fields.keys() - {"kind"} for kind in kinds}
    assert ELSEWHERE.keys() <= kinds | set().union(*fields.values())
    for kind in kinds - ELSEWHERE.keys():
        assert fields[kind] - given[kind] - ELSEWHERE.keys() - set(COMMON) == set(), kind
