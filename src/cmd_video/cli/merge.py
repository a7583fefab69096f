"""`cmd-video merge BASE TUNED -o OUT`: weights along a fine-tuning and beyond it."""

from typing import Annotated

import typer

from .options import NewFolder


def command(
    base: Annotated[str, typer.Argument(help="Pipeline folder, hub id or shipped model that was fine-tuned.")],
    tuned: Annotated[str, typer.Argument(help="What it became.")],
    output: NewFolder,
    scale: Annotated[float, typer.Option(help="0 = the base, 1 = the tuned model; any number goes.")],
    keep: Annotated[float, typer.Option(help="Share of the difference's entries that stay, in (0, 1] (DARE).")] = 1.0,
    part: Annotated[str, typer.Option(help="content, motion or both.")] = "both",
    seed: Annotated[int, typer.Option(min=0, help="Of which entries stay.")] = 0,
) -> None:
    """Write BASE + scale * DARE(TUNED - BASE) as a pipeline; all else, also how it is sampled, is TUNED's.

    Example: cmd-video merge default my-fine-tuning -o merged --scale 0.5
    """
    parts = {"content": ["unet"], "motion": ["motion_transformer"], "both": ["unet", "motion_transformer"]}
    if part not in parts:
        raise ValueError(f"part: {part!r} is none of {', '.join(parts)}")
    from cmd_video.data.files import whole_folder, write_json
    from cmd_video.evaluation.protocol.results import digest_model
    from cmd_video.pipelines.loading import load_pipeline
    from cmd_video.techniques import technique

    settings = technique("weight_extrapolation").settings(scale=scale, keep=keep, seed=seed)
    old, new = load_pipeline(base), load_pipeline(tuned)
    if old.class_names and new.class_names and old.class_names != new.class_names:
        raise ValueError(f"base: its classes are {old.class_names}, those of tuned {new.class_names}")
    for name in parts[part]:
        setattr(new, name, settings.edit(getattr(old, name), getattr(new, name)))
    with whole_folder(output) as temporary:
        new.save_pretrained(temporary)
        made_of = {
            "base": base,
            "base_sha256": digest_model(base),
            "tuned": tuned,
            "tuned_sha256": digest_model(tuned),
        }
        write_json(temporary / "merge.json", {**made_of, "part": part, **settings.model_dump()})
    print(output)
