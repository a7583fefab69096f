"""Results as a page: those that may stand together in one table, with the protocol below it, ready to paste.

text = write_up({"mine": record, "theirs": other})        # markdown
"""

import html
from typing import Any

from .compare import SUBJECT, compare

Record = dict[str, Any]


def write_up(results: dict[str, Record]) -> str:
    """Markdown with a table for every set of comparable results.

    Args:
        results: name in the table -> what `write_result` wrote.

    Returns:
        tables in the order of the results, each with its protocol; between two tables of one metric the fields of the
        protocol that keep them apart.
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
    """A row for each result, a column for each of its numbers."""
    columns = list(dict.fromkeys(name for record in group.values() for name in _numbers(record)))
    lines = [
        f"| | {' | '.join(_plain(column.replace('_', ' ')) for column in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, record in group.items():
        cells = _numbers(record)
        lines.append(f"| {_plain(name)} | " + " | ".join(cells.get(column, "") for column in columns) + " |")
    floors = {
        column: row["real_against_real"]
        for record in group.values()
        for column, row in record["values"].items()
        if isinstance(row, dict) and row.get("real_against_real") is not None
    }
    if floors:
        cells = {column: f"{value:.4g}" for column, value in floors.items()}
        lines.append("| real against real | " + " | ".join(cells.get(column, "") for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _numbers(record: Record) -> dict[str, str]:
    """What of a result's values is a number, with its standard error or interval."""
    found: dict[str, str] = {}
    for name, row in record["values"].get("accuracy", record["values"]).items():
        if isinstance(row, int | float) and not isinstance(row, bool):
            found[name] = f"{row:.4g}"
        elif isinstance(row, dict) and all(isinstance(row.get(key), float) for key in ("rate", "low", "high")):
            found[name] = f"{row['rate']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
        elif isinstance(row, dict) and isinstance(row.get("value"), int | float):
            error = row.get("standard_error")
            found[name] = f"{row['value']:.4g}" + (f" ± {error:.2g}" if error is not None else "")
        elif isinstance(row, dict):
            errors = row.get("standard_error") or {}
            found |= {
                f"{name} {key}": f"{value:.4g}" + (f" ± {errors[key]:.2g}" if errors.get(key) is not None else "")
                for key, value in row.items()
                if isinstance(value, float)
            }
    return found


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
