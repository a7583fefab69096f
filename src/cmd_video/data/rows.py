"""Rows of text files that list something, each with the line it ends at, read as a stream.

for line, row in csv_rows(path): ...
"""

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def text_of(path: Path) -> str:
    """A whole text.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, columns) of a csv file with a header.

    Raises:
        ValueError: it is not UTF-8 or no csv, or a row has not the columns of the header.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            names = list(reader.fieldnames or ())
            double = next((name for name in names if names.count(name) > 1), None)
            if double is not None:
                raise ValueError(f"{path}: column {double!r} is there twice")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}: line {reader.line_num} does not have the {len(names)} columns of the header"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, fields) of a file with a JSON object on each line.

    Raises:
        ValueError: it is not UTF-8, or a line is something else.
    """
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_each_once)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number} is {type(row).__name__}, must be an object")
            yield number, row


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which may not say two things of one name."""
    names = [name for name, _ in pairs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"{double!r} is there twice")
    return dict(pairs)


def _not_utf8(path: Path) -> ValueError:
    """The error with the place in the file; a decoder of streams knows that in its last piece only."""
    decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            waiting = len(decoder.getstate()[0])
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                return ValueError(f"{path}: not UTF-8 at byte {place - waiting + error.start}")
            place += len(piece)
    return ValueError(f"{path}: not UTF-8 at byte {place - len(decoder.getstate()[0])}")
