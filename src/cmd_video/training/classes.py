"""Which number each class has in a run: by the names that its network knows already, else by its training data's.

    classes = settle_classes(config, stage.num_classes, dataset, validation_dataset)
    classes.names, classes.training, classes.validation            # in order; a set's numbers -> the network's

The names stand in `class_names.json` in the run's folder and beside its components, and `export` puts them into the
pipeline. Models older than that have numbers only.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter

from cmd_video.data.classes import translate
from cmd_video.data.files import write_whole
from cmd_video.pipelines.class_names import names_by_number
from cmd_video.pipelines.shipped import model_folder

from .config import TrainConfig

logger = logging.getLogger(__name__)
CLASS_NAMES = "class_names.json"
CONDITIONED = ("unet", "motion_transformer", "classifier", "video_model", "teacher")  # components that know classes


_NAMES = TypeAdapter(list[str])


class _Index(BaseModel):
    """What of a pipeline's model_index.json is about classes."""

    id2label: dict[str, str] | None = None


class Classes(NamedTuple):
    """Classes of a run.

    Attributes:
        names: in the order of their numbers; empty where they have none, or the network knows none.
        training: number in the training data -> number in the network, of those that differ.
        validation: the same of the validation data.
    """

    names: list[str]
    training: dict[int, int]
    validation: dict[int, int]


def settle_classes(config: TrainConfig, num_classes: int, dataset: Any, validation: Any) -> Classes:
    """Names and numbers of a run's classes.

    Args:
        config: the run.
        num_classes: how many classes the network knows that learns; 0 = it is told none, and nothing is compared.
        dataset: its training data.
        validation: its validation data.

    Raises:
        ValueError: the data have a class that the network, or the training data, do not.
    """
    if not num_classes:
        return Classes([], {}, {})
    known = known_names(config)
    where = "the model's classes" if known else "the classes of data"
    names = known or names_of(dataset)
    found: list[dict[int, int]] = []
    for place, data in (("data", dataset), ("validation.data", validation)):
        own = names_of(data)
        if names is None or own is None:
            logger.warning("%s: its latents are older than names of classes; numbers are taken as they are", place)
            found.append({})
            continue
        try:
            numbers = translate(own, names, _labels(data), place)
        except ValueError as error:
            raise ValueError(f"{error} ({where})") from error
        found.append({number: other for number, other in numbers.items() if number != other})
    return Classes(list(names or []), *found)


def validation_numbers(config: TrainConfig, num_classes: int, validation: Any) -> dict[int, int]:
    """As `settle_classes` for validation data alone; training data are opened only where the model knows no names.

    Raises:
        ValueError: the data have a class that the network, or the training data, do not.
    """
    if not num_classes:
        return {}
    dataset = validation if known_names(config) else config.data.open()
    return settle_classes(config, num_classes, dataset, validation).validation


def names_of(dataset: Any) -> Sequence[str] | None:
    """Names of a dataset's classes: none of them where labels are numbers, None where they are not known."""
    names: Sequence[str] | None = getattr(dataset, "class_names", ())
    return names


def read_names(folder: Path) -> list[str]:
    """Names of classes that a run's folder, its folder of components, or a pipeline's says; none where none does.

    Raises:
        ValueError: the file holds something else.
    """
    path, index = folder / CLASS_NAMES, folder / "model_index.json"
    try:
        if path.is_file():
            return _NAMES.validate_json(path.read_bytes())
        return names_by_number(_Index.model_validate_json(index.read_bytes()).id2label) if index.is_file() else []
    except ValueError as error:
        raise ValueError(f"{path if path.is_file() else index}: holds no names of classes") from error


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Write the names of classes into a folder, if there are any."""
    if names:
        write_whole(folder / CLASS_NAMES, json.dumps(list(names), indent=1, ensure_ascii=False))


def known_names(config: TrainConfig) -> list[str]:
    """Names that were settled before: when this run began, or by the model that it goes on from.

    Raises:
        ValueError: components that know classes know others, or in another order.
    """
    known: dict[str, list[str]] = {}
    for name in CONDITIONED:
        component = config.components.get(name)
        if component is not None and component.path is not None and model_folder(component.path).is_dir():
            folder = model_folder(component.path)
            names = read_names(folder) or read_names(folder.parent)
            known |= {name: names} if names else {}
    for name, names in known.items():
        first = next(iter(known))
        if names != known[first]:
            raise ValueError(f"components: classes of {first} are {known[first]}, of {name} {names}")
    return read_names(Path(config.output_dir)) or next(iter(known.values()), [])


def _labels(dataset: Any) -> Iterable[int]:
    """Numbers that occur: of the clips, or where a dataset does not list them, of all its names."""
    labels = getattr(dataset, "class_labels", None)
    return range(len(dataset.class_names)) if labels is None else {int(label) for label in labels}
