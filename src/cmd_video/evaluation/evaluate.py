"""Distances between two sets of clips in one call, with the protocol in the file it writes.

    found = evaluate("made/", "real/", "i3d-torchscript", Path("fvd.json"), Reading(size=(256, 256)))
    found.values["frechet"]["value"]                                                          # FVD

B clips, F frames, H, W.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cmd_video.data.shares import Share, ShareDone
from cmd_video.data.transforms import to_uint8
from cmd_video.evaluation.metrics.distances import check, measure
from cmd_video.evaluation.networks.extractors import Extractor, build_extractor
from cmd_video.evaluation.protocol.clips import ClipSource, MadeClips, Reading, open_clips
from cmd_video.evaluation.protocol.results import write_result
from cmd_video.evaluation.protocol.shared_work import Progress, discard, processes
from cmd_video.evaluation.protocol.tables import FeatureTable, digest_all, digest_of, extract, extract_share


class Evaluation(NamedTuple):
    """What came of an evaluation.

    Attributes:
        values: name -> `value`, `standard_error` and `real_against_real`, see `distances.measure`; of several
            processes only the first has them.
        real: features of the yardstick, with its protocol.
        made: of what was judged.
    """

    values: dict[str, dict[str, Any]]
    real: FeatureTable
    made: FeatureTable


Clips = ClipSource | torch.Tensor | str | Path


def evaluate(
    made: Clips,
    real: Clips | FeatureTable,
    extractor: str | Extractor = "i3d-torchscript",
    output: Path | None = None,
    reading: Reading | None = None,
    neighbours: int = 5,
    correction: int = 1,
    batch_size: int = 8,
    weights_dir: Path | None = None,
    device: str = "cpu",
    share: Share | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Fréchet and kernel distance, precision, recall and coverage of made clips against real ones.

    Args:
        made: what is judged: a folder, an array file, a tensor (B, 3, F, H, W) in [-1, 1], or a `ClipSource`.
        real: the yardstick: the same, or the table of features that `cmd-video evaluate reference` wrote.
        extractor: what features are compared in, a name of `extractors.EXTRACTORS` or one that was built.
        output: JSON file for values and protocol; work that was interrupted beside it goes on. None = no file.
        reading: which clips and frames of files are looked at; default 16 frames of the middle. Tensors and sources
            are taken as they are.
        neighbours: of precision, recall and coverage.
        correction: 1 = covariances over N - 1, 0 = over N, as StyleGAN-V's.
        batch_size: clips at a time.
        weights_dir: where the extractor's weights lie; None = the cache.
        device: where the extractor runs.
        share: the features to make here, where other processes make the others beside the same output; the call
            without a share then measures.
        progress: called with (clips done, all clips).

    Raises:
        ValueError: clips cannot be read or do not go together; the message names the argument.
        ShareDone: the features of a share are there.
    """
    if share is not None and output is None:
        raise ValueError(f"shard: {share} is kept beside an output; give one")
    state, device = processes(device)
    built = build_extractor(extractor, weights_dir, device) if isinstance(extractor, str) else extractor
    judged, work = as_source(made, "made", reading), ExitStack()
    with work:
        folder = Path(work.enter_context(tempfile.TemporaryDirectory())) / "work" if output is None else output
        parts = {kind: folder.with_name(f"{folder.name}.{kind}.parts") for kind in ("real", "made")}
        known = real
        if isinstance(known, str | Path) and is_table(known):
            known = FeatureTable.load(Path(known))
        if isinstance(known, FeatureTable):
            check(known, built, judged, neighbours)
        if share is not None:
            made_there = [
                extract_share(as_source(clips, kind, reading), built, parts[kind], share, batch_size, progress)
                for kind, clips in (("real", known), ("made", judged))
                if not isinstance(clips, FeatureTable)
            ]
            raise ShareDone("\n".join(made_there))
        if not isinstance(known, FeatureTable):
            known = extract(as_source(known, "real", reading), built, parts["real"], batch_size, progress)
        found = extract(judged, built, parts["made"], batch_size, progress)
        if not state.is_main_process:
            return Evaluation({}, known, found)
        values = measure(known, found, neighbours, built.classify, correction)
        if output is not None:
            protocol: dict[str, Any] = {"real": known.protocol, "made": found.protocol, "neighbours": neighbours}
            protocol["covariance_correction"] = correction
            if known.made_by:
                protocol["real"] = known.protocol | {"made_by": known.made_by}
            write_result(output, "distribution", values, protocol, device)
            for part in parts.values():
                discard(part)
    return Evaluation(values, known, found)


def is_table(path: str | Path) -> bool:
    """Whether a path names what `evaluate reference` wrote, with or without its suffix."""
    return str(path).endswith((".json", ".safetensors")) or (
        Path(f"{path}.json").is_file() and not Path(path).exists()
    )


def as_source(clips: Clips, name: str, reading: Reading | None = None) -> ClipSource:
    """Clips of any kind as a source.

    Raises:
        ValueError: a tensor of another shape, or no clips at a path.
    """
    if isinstance(clips, str | Path):
        return open_clips(Path(clips), reading or Reading())
    if not isinstance(clips, torch.Tensor):
        return clips
    if clips.ndim != 5 or clips.shape[1] != 3:
        raise ValueError(f"{name}: expected (B, 3, F, H, W) in [-1, 1], got {tuple(clips.shape)}")
    digest = digest_all([digest_of(to_uint8(clip).cpu()) for clip in clips])
    recipe = {"kind": "tensor", "frames": clips.shape[2], "size": list(clips.shape[3:]), "sha256": digest}
    return MadeClips(lambda numbers: clips[list(numbers)], len(clips), recipe)
