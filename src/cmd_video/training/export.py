"""Finished runs -> one pipeline folder.

export_pipeline([Path("runs/sprites/content"), Path("runs/sprites/motion")], Path("my-model"))
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmd_video.data.files import new_folder, whole_folder
from cmd_video.diffusion.timesteps import check_starts
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.older import upgrade_schedulers
from cmd_video.pipelines.presets import is_distilled
from cmd_video.pipelines.sampling import PARTS as MODELS
from cmd_video.pipelines.sampling import ModelSampling, Sampling

from .classes import read_names
from .components import build_components, load_component
from .config import ComponentConfig
from .digests import digest_of
from .stage import LATENTS
from .stages import SAMPLING

REQUIRED = ("autoencoder", "unet", "motion_transformer", "content_scheduler", "motion_scheduler")
PARTS = (*REQUIRED, "vae", "text_encoder", "tokenizer", "motion_text_encoder", "motion_tokenizer")
PARTNERS = {  # a network -> what it learned to understand
    "unet": ("vae", "autoencoder", "text_encoder", "tokenizer"),
    "motion_transformer": (
        *("vae", "autoencoder", "text_encoder", "tokenizer", "motion_text_encoder", "motion_tokenizer"),
    ),
}


def export_pipeline(
    runs: list[Path],
    output: Path,
    guidance_scale: float = 7.5,
    motion_guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    motion_starts: Sequence[int] | None = None,
) -> Path:
    """Collect the components of runs into a folder for `CMDPipeline.from_pretrained`.

    Args:
        runs: run folders (or folders of components); for a component that several hold, the last counts.
        output: folder to write; appears complete or not at all.
        guidance_scale: default guidance of the content model; models distilled for few steps have none.
        motion_guidance_scale: default guidance of the motion model.
        dtype: of the weights in the files; torch.float16 halves them.
        motion_starts: timesteps at which an undistilled motion model's steps start, beside a distilled content model:
            (999,) is one step. Where prompt and content frame leave the motion no choice, that is enough.

    Raises:
        ValueError: a run is not finished, a component is missing, `output` holds something, only one of the two models
            is distilled for few steps, they number classes differently, or one was trained with another autoencoder or
            text encoder than is exported.
    """
    new_folder(output)
    found: dict[str, ComponentConfig] = {}
    folders: dict[str, Path] = {}
    for run in runs:
        folder = run / "pipeline" if (run / "pipeline").is_dir() else run
        names = [name for name in PARTS if (folder / name).is_dir()]
        if not names:
            raise ValueError(f"{run}: no trained components; is the run finished?")
        found.update({name: ComponentConfig(path=str(folder / name)) for name in names})
        folders.update(dict.fromkeys(names, folder))
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        raise ValueError(f"runs: no {', '.join(missing)} in {', '.join(map(str, runs))}")
    sampling = Sampling.model_validate({
        "content": {"guidance": {"scale": guidance_scale}}, "motion": {"guidance": {"scale": motion_guidance_scale}},
        **_own_sampling(found),
    })  # fmt: skip
    parts = build_components(found)
    _check_partners(folders, parts)
    pipeline = CMDPipeline(**parts, sampling=sampling, id2label=_class_names(found))
    upgrade_schedulers(pipeline)
    distilled = [
        is_distilled(getattr(pipeline.sampling, part), getattr(pipeline, f"{part}_scheduler")) for part in MODELS
    ]
    if motion_starts is not None:
        if distilled != [True, False]:
            raise ValueError("motion_starts: for an undistilled motion model beside a distilled content model only")
        check_starts("motion_starts", motion_starts, pipeline.motion_scheduler.config.num_train_timesteps)
        jumps = ModelSampling(starts=tuple(motion_starts))
        pipeline.sampling = pipeline.sampling.model_copy(update={"motion": jumps})
    elif distilled in ([True, False], [False, True]):
        which = "content" if distilled[0] else "motion"
        raise ValueError(f"runs: only the {which} model is distilled for few steps; give both, or motion_starts")
    if any(distilled):
        pipeline.use_preset("turbo")
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, dtype)  # diffusers' own warns of layers to be kept in float32, of which there are none
    with whole_folder(output) as temporary:
        pipeline.save_pretrained(temporary)
    return output


def _class_names(found: dict[str, ComponentConfig]) -> dict[int, str] | None:
    """Names of the classes by their numbers, from the runs of both networks; None where they are not known.

    Raises:
        ValueError: the networks learned other classes, or in another order.
    """
    both = [read_names(Path(str(found[name].path)).parent) for name in ("unet", "motion_transformer")]
    known = [names for names in both if names]
    if len(known) == 2 and known[0] != known[1]:
        raise ValueError(f"runs: classes of the content model are {known[0]}, of the motion model {known[1]}")
    return dict(enumerate(known[0])) if known else None


def _check_partners(folders: dict[str, Path], parts: dict[str, Any]) -> None:
    """Whether what each network was trained with, which its run has beside it, is what is exported with it.

    Args:
        folders: where each component is from, by name.
        parts: the components.
    """
    for network, partners in PARTNERS.items():
        beside = folders[network]
        told = json.loads((beside / LATENTS).read_text()) if (beside / LATENTS).is_file() else {}
        for name in partners:
            own = told.get(name)
            if (beside / name).is_dir() and folders.get(name) != beside:
                own = digest_of(load_component(name, str(beside / name)))
            if own is not None and (name not in parts or digest_of(parts[name]) != own):
                raise ValueError(
                    f"runs: {network} of {beside} was trained with another {name} than that of {folders.get(name)}, "
                    "which would be exported; train it with that one, or name its run last"
                )


def _own_sampling(found: dict[str, ComponentConfig]) -> dict[str, Any]:
    """How the networks are sampled where their runs, or the pipelines they are from, say that they need it."""
    how: dict[str, Any] = {}
    for part, name in (("content", "unet"), ("motion", "motion_transformer")):
        folder = Path(str(found[name].path)).parent
        if (folder / SAMPLING).is_file():
            how |= {key: value for key, value in json.loads((folder / SAMPLING).read_text()).items() if key == part}
        elif (folder / "model_index.json").is_file():
            own = json.loads((folder / "model_index.json").read_text()).get("sampling", {}).get(part, {})
            how |= {part: own} if own.get("starts") or own.get("process") else {}
    return how
