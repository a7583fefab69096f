"""Classes by their names: a number is only a place in one list of names, and another list has another order.

names, numbers = name_classes(["cat", "dog", "cat"])                # ["cat", "dog"], {"cat": 0, "dog": 1}
translate(["dog"], ["cat", "dog"], [0], "validation.data")          # {0: 1}
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from difflib import get_close_matches

from .directions import in_mirror

MOST_CLASSES = 10_000  # numbers from here on are identifiers, unless there are more clips than that
_WHOLE = re.compile(r"0|[1-9][0-9]*")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def class_name(text: str) -> str:
    """A name as it is compared: without spaces around it, and one of the ways in which Unicode writes its letters."""
    return unicodedata.normalize("NFC", text).strip()


def check_text(what: str, text: str) -> None:
    """Raise a ValueError for halves of a pair of code units, such as JSON cut inside an emoji, or a byte that is no
    UTF-8, leaves: no tokenizer takes them.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what}: no valid text at character {error.start}: {ascii(text)[:80]}") from error


def name_classes(labels: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Names of classes in the order of their numbers, and the number of each label.

    Labels that are all whole numbers as one writes them ("0", "12") are the numbers, and there are no names. Any
    others are names, numbered in sorted order; names that are all numbers of a kind ("01", "2.0"), by their value.

    Args:
        labels: that of every clip that has one.

    Raises:
        ValueError: labels mix numbers and names, write one number in two ways, or are no classes but identifiers.
    """
    different = set(labels)
    whole = {label for label in different if _WHOLE.fullmatch(label)}
    if whole == different:
        largest = max(whole, key=lambda label: (len(label), label), default="0")
        if len(largest) > 9 or int(largest) >= max(MOST_CLASSES, len(labels)):
            raise ValueError(
                f"label {largest} among {len(labels)} clips is an identifier, no class; classes count from 0"
            )
        return [], {label: int(label) for label in different}
    values = {label: Decimal(label) for label in different if _NUMBER.fullmatch(label)}
    if len(values) < len(different):
        if whole:
            raise ValueError(f"labels mix numbers and names: {min(whole)}, {min(different - values.keys())}")
        names = sorted(different)
    else:
        names = sorted(different, key=lambda label: (values[label], label))
        if values[names[0]] < 0:
            raise ValueError(f"label {names[0]}: numbers of classes are 0 or more; leave it empty where there is none")
        for one, other in zip(names, names[1:]):
            if values[one] == values[other]:
                raise ValueError(f"labels {one!r} and {other!r} write one number in two ways")
    return names, {name: number for number, name in enumerate(names)}


def translate(own: Sequence[str], known: Sequence[str], labels: Iterable[int], what: str) -> dict[int, int]:
    """From one set's numbers of its classes to another's, by name.

    Args:
        own: names of the set; empty where its labels are numbers.
        known: names that count; empty where they are numbers.
        labels: numbers that occur in the set; -1, no class, stays.
        what: where the set is from, for messages.

    Returns:
        number -> number, of all that occur.

    Raises:
        ValueError: a class of the set is none of those known.
    """
    numbers = number_of(known)
    found = {}
    for label in sorted(set(labels) - {-1}):
        name = own[label] if own else str(label)
        if known and name not in numbers:
            raise ValueError(f"{what}: {unknown(name, known)}")
        if not known and not _WHOLE.fullmatch(name):
            raise ValueError(f"{what}: class {name!r} has a name, the classes that are known are numbers")
        found[label] = numbers[name] if known else int(name)
    return found


def number_of(names: Sequence[str]) -> dict[str, int]:
    """The number of each name."""
    return {class_name(name): number for number, name in enumerate(names)}


def find_class(label: str, names: Sequence[str]) -> int:
    """The number of a class by its name.

    Raises:
        ValueError: there is none of that name; the message says which there are.
    """
    if not names:
        raise ValueError(f"{label!r}, but the names of this model's classes are not known; give a number")
    numbers = number_of(names)
    if class_name(label) not in numbers:
        raise ValueError(unknown(label, names))
    return numbers[class_name(label)]


def unknown(label: str, names: Sequence[str]) -> str:
    """The message about a class that is none of those known."""
    near = get_close_matches(label, names, n=1)
    some = ", ".join(names[:20]) + (f" ... ({len(names)} in all)" if len(names) > 20 else "")
    return f"class {label!r} is none of {some}" + (f"; did you mean {near[0]!r}?" if near else "")


def mirror_classes(names: Sequence[str]) -> dict[int, int]:
    """The number of the class that each becomes in a mirror, of those whose names tell directions.

    Raises:
        ValueError: there is no class that is called so.
    """
    numbers, loosely = number_of(names), {_letters(name): number for number, name in enumerate(names)}
    found = {}
    for number, name in enumerate(names):
        other = in_mirror(name)
        if other == name:
            continue
        if class_name(other) not in numbers and _letters(other) not in loosely:
            raise ValueError(
                f"flip: class {name!r} is {other!r} in a mirror, and there is no such class; leave flip out"
            )
        found[number] = numbers.get(class_name(other), loosely.get(_letters(other), number))
    return found


def _letters(name: str) -> str:
    """A name without what joins its words, for CounterClockwise and anti_clockwise are one."""
    return re.sub(r"[\W_]+", "", name).casefold().replace("anticlockwise", "counterclockwise")
