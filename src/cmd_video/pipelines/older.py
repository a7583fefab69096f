"""What older versions of this library saved, read as today's: the only place that knows their words.

index = upgrade_index(json.loads(Path("model_index.json").read_text()))
"""

from typing import Any

SETTINGS = {  # of a model_index.json before there was `sampling` -> their defaults
    "guidance_scale": 7.5,
    "motion_guidance_scale": 1.0,
    "num_inference_steps": 50,
    "motion_num_inference_steps": 50,
    "guidance_from": 0.0,
    "guidance_until": 1.0,
    "reuse_interval": 1,
    "decode_content_frame": True,
}
STARTS, SPACING = "_distilled_timesteps", "_own_timestep_spacing"  # of a scheduler's configuration


def upgrade_index(index: Any) -> Any:
    """A pipeline's configuration with eight settings -> one with `sampling`."""
    if not isinstance(index, dict) or "sampling" in index or not SETTINGS.keys() & index.keys():
        return index
    old = {name: index.get(name, default) for name, default in SETTINGS.items()}
    interval = {"low": old["guidance_from"], "high": old["guidance_until"]}
    wraps = [{"kind": "feature_reuse", "interval": old["reuse_interval"]}] if old["reuse_interval"] > 1 else []

    def part(prefix: str) -> dict[str, Any]:
        guidance: dict[str, Any] = {"kind": "classifier_free", "scale": old[f"{prefix}guidance_scale"]}
        if interval != {"low": 0.0, "high": 1.0}:
            guidance = {**guidance, **interval, "kind": "guidance_interval"}
        steps = old[f"{prefix}num_inference_steps"]
        return {"num_inference_steps": steps, "guidance": guidance, "wraps": wraps}

    sampling = {"content": part(""), "motion": part("motion_"), "decode_content_frame": old["decode_content_frame"]}
    return {**{name: value for name, value in index.items() if name not in SETTINGS}, "sampling": sampling}


def starts_of(scheduler: Any) -> tuple[int, ...] | None:
    """Where the steps of a few-step model start, as its scheduler's configuration said."""
    found = scheduler.config.get(STARTS)
    return None if found is None else tuple(found)


def upgrade_schedulers(pipe: Any) -> None:
    """Move what schedulers' configurations said of few steps and spacings into a pipeline's `sampling`."""
    sampling = pipe.sampling
    for part in ("content", "motion"):
        scheduler = getattr(pipe, f"{part}_scheduler")
        starts, spacing = starts_of(scheduler), scheduler.config.get(SPACING)
        config = {name: value for name, value in scheduler.config.items() if name not in (STARTS, SPACING)}
        changed: dict[str, Any] = {}
        if starts is not None:
            changed |= {"starts": starts, "num_inference_steps": len(starts)}
        if spacing is not None:
            changed["spacing"], config["timestep_spacing"] = config["timestep_spacing"], spacing
        if changed:
            sampling = sampling.model_copy(update={part: getattr(sampling, part).model_copy(update=changed)})
            setattr(pipe, f"{part}_scheduler", type(scheduler).from_config(config))
    if sampling != pipe.sampling:
        pipe.sampling = sampling
