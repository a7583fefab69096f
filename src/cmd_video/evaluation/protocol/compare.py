"""Whether two results say the same thing about two models, and if not, which part of the protocol differs.

found = compare(read_result(a), read_result(b));  found.comparable, found.different
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_video.data.files import read_json

SUBJECT = (
    "model", "model_sha256", "pixels_sha256", "unreadable", "sampling", "turbo_sha256", "preset", "content_sampler",
    "motion_sampler", "content_frame", "chosen", "weights_sha256", "source_fps", "reconstructed", "left_out",
)  # fmt: skip
OF_FEATURES = ("extractor", "extractor_sha256", "extractor_resize", "per", "features", "numbers")
PLACES = ("source", "path", "video_root", "clip_model")  # where things lay; digests say what they were


@dataclass(frozen=True)
class Comparison:
    """What differs between two results.

    Attributes:
        different: fields of the protocol that decide what a number means -> their two values.
        versions: packages -> their two versions; these seldom matter.
    """

    different: dict[str, tuple[Any, Any]]
    versions: dict[str, tuple[Any, Any]]

    @property
    def comparable(self) -> bool:
        """Whether nothing differs but what was measured, and perhaps versions."""
        return not self.different


def read_result(path: Path) -> dict[str, Any]:
    """A file of `write_result`.

    Raises:
        ValueError: it is none.
    """
    try:
        record = read_json(path, dict)
        if not {"name", "protocol", "values"} <= set(record):
            raise ValueError("it lacks name, protocol or values")
        for field, kind in (("name", str), ("protocol", dict), ("values", dict), ("versions", dict)):
            if not isinstance(record.get(field, kind()), kind):
                raise ValueError(f"{field} is no {'text' if kind is str else 'object'}")
    except ValueError as error:
        raise ValueError(f"{path}: no result file: {str(error).removeprefix(f'{path} ')}") from error
    return record


def compare(first: dict[str, Any], second: dict[str, Any]) -> Comparison:
    """Compare the protocols of two results.

    What was measured may differ: the model, how it was sampled, the made clips and where they lay. Everything else
    must be equal: the metric, real clips by the digest of their pixels, numbers of clips and frames, sizes, resizing,
    extractor, seeds. Of real clips with the same pixels it does not matter how they were stored and read.
    """
    fields = [{"metric": record["name"], **_flat(record["protocol"])} for record in (first, second)]
    names = sorted(set(fields[0]) | set(fields[1]))
    pixels = [each.get("real.pixels_sha256") for each in fields]
    same = pixels[0] is not None and pixels[0] == pixels[1]
    different = {
        name: (fields[0].get(name), fields[1].get(name))
        for name in names
        if fields[0].get(name) != fields[1].get(name)
        and not _is_subject(name)
        and not (same and name.startswith("real.") and name.rpartition(".")[2] not in OF_FEATURES)
    }
    packages = [record.get("versions", {}) for record in (first, second)]
    versions = {
        name: (packages[0].get(name), packages[1].get(name))
        for name in sorted(set(packages[0]) | set(packages[1]))
        if packages[0].get(name) != packages[1].get(name)
    }
    return Comparison(different, versions)


def _is_subject(name: str) -> bool:
    parts = name.split(".")
    if parts[-1] in PLACES:
        return True
    return parts[0] != "real" and any(part in SUBJECT for part in parts)


def _flat(protocol: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in protocol.items():
        if key == "made_by":  # when and where a reference was made: `versions` are compared, these are for reading
            continue
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
