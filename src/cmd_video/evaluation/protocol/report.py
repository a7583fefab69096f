"""Results as a page: those that may stand together in one table, with the protocol below it, ready to paste.

text = write_up({"mine": record, "theirs": other})        # markdown
"""

import html
from collections.abc import Iterator
from typing import Any

from cmd_video.evaluation.protocol.compare import SUBJECT, compare

Record = dict[str, Any]
MAX_TOGETHER = 5  # numbers in one cell


def write_up(results: dict[str, Record]) -> str:
    """Markdown with a table for every set of comparable results.

    Args:
        results: name in the table -> what `write_result` wrote.

    Returns:
        tables in the order of the results, each with its protocol; between two tables of one metric the fields of the
        protocol that keep them apart.

    Raises:
        ValueError: a result holds no number.
    """
    groups: list[dict[str, Record]] = []
    for name, record in results.items():
        for group in groups:
            if compare(next(iter(group.values())), record).comparable:
                group[name] = record
                break
        else:
            groups.append({name: record})
    parts = []
    for number, group in enumerate(groups):
        first = next(iter(group.values()))
        parts.append(f"## {_plain(first['name'].capitalize())}\n")
        for other in groups[:number]:
            previous = next(iter(other.values()))
            if previous["name"] == first["name"]:
                apart = ", ".join(compare(previous, first).different)
                parts.append(f"Not comparable with {' and '.join(map(_plain, other))}: {_plain(apart)}.\n")
        parts += [_table(group), _protocol(first), _made_by(group)]
    return "\n".join(parts)


def _table(group: dict[str, Record]) -> str:
    """A row for each result, or for each of its parts, and a column for each number."""
    rows = {title: cells for name, record in group.items() for title, cells in _rows(name, record).items()}
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [
        f"| | {' | '.join(_plain(column.replace('_', ' ')) for column in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    floors = {
        column: f"{row['real_against_real']:.4g}"
        for record in group.values()
        for column, row in record["values"].items()
        if isinstance(row, dict) and row.get("real_against_real") is not None
    }
    if floors:
        rows["real against real"] = floors
    lines += [
        f"| {_plain(name)} | " + " | ".join(row.get(column, "") for column in columns) + " |"
        for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def _rows(name: str, record: Record) -> dict[str, dict[str, str]]:
    """Title -> cells: one row, or one for each part where a result holds nothing but parts.

    Raises:
        ValueError: it holds no number.
    """
    values = dict(_parts(record["values"]))
    if "accuracy" in values:  # adherence: the rest is about single scenes
        rows = {name: _cells(values["accuracy"])}
        if values.get("reader_on_ground_truth"):
            rows[f"{name}: true clips"] = _cells(values["reader_on_ground_truth"])
    elif values and all(isinstance(part, dict) and not _cell(part) for part in values.values()):
        rows = {f"{name}: {part}": _cells(inside) for part, inside in values.items()}
    else:
        rows = {name: _cells(values)}
    if not any(rows.values()):
        raise ValueError(f"{name}: its values hold no number to show")
    return rows


def _parts(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A result's values, where a list of named parts counts as these parts."""
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(part, dict) and "name" in part for part in value):
            yield from ((f"{key} {part['name']}", part) for part in value)
        else:
            yield key, value


def _cells(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Column -> text for every number, however deep; a column is named by the way to it."""
    beside = values.get("standard_error")
    errors = beside if isinstance(beside, dict) else {}
    found: dict[str, str] = {}
    for name, value in values.items():
        if value is errors:
            continue
        text = _cell(value, errors.get(name))
        if text:
            found[prefix + name] = text
        elif isinstance(value, dict):
            found |= _cells(value, f"{prefix}{name} ")
    return found


def _cell(value: Any, error: Any = None) -> str:
    """A number with its standard error or interval, or some numbers; "" for what is neither."""
    if isinstance(value, dict) and all(isinstance(value.get(key), int | float) for key in ("rate", "low", "high")):
        return f"{value['rate']:.1%} ({value['low']:.1%} to {value['high']:.1%})"
    if isinstance(value, dict):
        return _cell(value.get("value"), value.get("standard_error"))
    if isinstance(value, list) and value and len(value) <= MAX_TOGETHER:
        errors = error if isinstance(error, list) and len(error) == len(value) else [None] * len(value)
        parts = [_cell(one, other) for one, other in zip(value, errors, strict=True)]
        return " / ".join(parts) if all(parts) else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:.4g}" + (f" ± {error:.2g}" if isinstance(error, int | float) else "")


def _protocol(record: Record) -> str:
    lines = ["<details><summary>Protocol</summary>\n"]
    fields = _lines(record["protocol"]).items()
    lines += [f"- {_plain(key)}: {_plain(value)}" for key, value in fields if value not in (None, [], {})]
    return "\n".join([*lines, "\n</details>\n"])


def _lines(protocol: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of a protocol but those that say what was measured."""
    result: dict[str, Any] = {}
    for key, value in protocol.items():
        if key in SUBJECT and not prefix.startswith("real"):
            continue
        result |= _lines(value, f"{prefix}{key} ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def _made_by(group: dict[str, Record]) -> str:
    """A line for each result: what was measured, and how it was called."""
    lines = []
    for name, record in group.items():
        facts = [f"<code>{_plain(record.get('command', '?'))}</code>"]
        facts += [_plain(record.get(field, "?")) for field in ("hardware", "date")]
        facts += [_plain(f"{key} {value}") for key, value in _subject(record["protocol"]).items()]
        lines.append(f"- {_plain(name)}: " + ", ".join(facts))
    return "\n".join(lines) + "\n"


def _subject(protocol: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of a protocol that say what was measured, which may differ within a table."""
    result: dict[str, Any] = {}
    for key, value in protocol.items():
        if key in SUBJECT and not prefix.startswith("real"):
            result |= {} if value in (None, [], {}) else {f"{prefix}{key}": value}
        elif isinstance(value, dict):
            result |= _subject(value, f"{prefix}{key} ")
    return result


def _plain(value: Any) -> str:
    """Text that means nothing to markdown's tables or to HTML, in one line."""
    return " ".join(html.escape(str(value), quote=False).replace("|", "&#124;").split())
