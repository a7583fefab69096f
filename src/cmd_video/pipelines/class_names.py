"""Names of a pipeline's classes: how they are kept, and asked for in place of numbers.

label_numbers(["jump", 0], names_by_number({"0": "run", "1": "jump"}), num_classes=5) == [1, 0]
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cmd_video.data.classes import find_class

from .inputs import as_list


def check_id2label(id2label: Mapping[Any, str], num_classes: int) -> dict[str, str]:
    """Names by numbers as JSON has them.

    Raises:
        ValueError: a number is none of the model's.
    """
    wrong = next((number for number in id2label if not 0 <= int(number) < num_classes), None)
    if wrong is not None:
        raise ValueError(f"id2label: {wrong}, the content model knows {num_classes} classes")
    return {str(number): name for number, name in id2label.items()}


def names_by_number(id2label: Mapping[str, str] | None) -> list[str]:
    """Names in the order of their numbers; empty where they are not known."""
    return [id2label[number] for number in sorted(id2label, key=int)] if id2label else []


def label_numbers(class_labels: Any, names: Sequence[str], num_classes: int) -> Any:
    """Class labels with numbers in place of names; what is no name stays, for `inputs.check_condition`.

    Args:
        class_labels: number or name, or a list of them, or None.
        names: of the model's classes by their numbers; empty where they are not known.
        num_classes: classes that the model knows; 0 = it has a text condition.

    Raises:
        ValueError: the model knows no class of that name.
    """
    if not num_classes or not any(isinstance(label, str) for label in as_list(class_labels)):
        return class_labels
    try:
        return [find_class(label, names) if isinstance(label, str) else label for label in as_list(class_labels)]
    except ValueError as error:
        allowed = "" if names else f" in 0..{num_classes - 1}"
        raise ValueError(f"class_labels: {error}{allowed}") from error
