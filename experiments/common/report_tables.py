"""Tables of the report page: declared ones, names with values, series."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TypeVar

from result_file import Result, format_value
from table_declaration import Table

DASH = "\u2013"
SHOWN_POINTS = 12  # of a series; all of them are in result.json
Value = TypeVar("Value")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def table_block(table: Table, result: Result) -> str:
    """A declared table; it scrolls in its box where it is too wide for the page."""
    heads = "".join(f"<th scope=col>{escape(head)}</th>" for head in table.heads())
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(text) or DASH}</td>" for text in row) + "</tr>\n"
        for row in table.rows(result)
    )
    caption = f'<p class="note">{escape(table.caption)}</p>\n' if table.caption else ""
    return (
        f'<div data-table="{escape(table.name)}"><p><b>{escape(table.title)}</b></p>\n{caption}'
        f'<div class="card"><div class="scroll"><table class="number">\n<thead><tr>{heads}</tr>'
        f"</thead>\n<tbody>\n{rows}</tbody>\n</table></div></div></div>\n"
    )


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts F2 before F10."""
    parts = re.split(r"([0-9]+)", name)  # text and number in turn, text first
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def by_name(items: Mapping[str, Value]) -> list[tuple[str, Value]]:
    return sorted(items.items(), key=lambda item: natural(item[0]))


def facts_table(title: str, facts: Iterable[tuple[str, object]], is_open: bool = False) -> str:
    """A collapsible table of names and values."""
    rows = [
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(format_value(value)) or DASH}</td></tr>"
        for name, value in facts
    ]
    if not rows:
        return ""
    return (
        f'<details{" open" if is_open else ""}><summary>{title} <span class="note">'
        f'({len(rows)})</span></summary>\n<table class="facts">\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody>\n</table></details>\n"
    )


def series_block(result: Result) -> str:
    if not result.series:
        return ""
    tables = "".join(series_table(name, columns) for name, columns in by_name(result.series))
    count = len(result.series)
    return (
        f'<details class="long"><summary>Series <span class="note">({count})</span></summary>\n'
        f"{tables}</details>\n"
    )


def series_table(name: str, columns: Mapping[str, Sequence[object]]) -> str:
    points = max(map(len, columns.values()), default=0)
    shown = thinned(points, SHOWN_POINTS)
    heads = "".join(f"<th scope=col>{escape(column)}</th>" for column in columns)
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{escape(format_value(v[i])) or DASH}</td>" for v in columns.values())
        + "</tr>\n"
        for i in shown
    )
    note = f"{len(shown)} of {points} points" if len(shown) < points else plural(points, "point")
    return (
        f'<details><summary>{escape(name)} <span class="note">({note})</span></summary>\n'
        f'<div class="scroll"><table class="number">\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div></details>\n"
    )


def thinned(count: int, limit: int) -> list[int]:
    """At most `limit` indices below `count`, evenly spread, the first and the last included."""
    if count <= limit:
        return list(range(count))
    return [round(i * (count - 1) / (limit - 1)) for i in range(limit)]
