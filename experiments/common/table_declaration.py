"""The "tables" of a config.json: published values beside those of a result, as texts.

A table is a list of columns, and a column is one of

    {"label": "model", "values": ["405M", "1.4B"]}                 stands in the config
    {"label": "ours", "scalars": ["loss of 405M", ""]}             scalars of the result, "": none
    {"label": "ours", "series": "Table 1", "column": "percent"}    a column of one of its series

What the result does not have stays empty. Texts may name settings (placeholders.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from result_file import InputError, Json, Result, brief, format_value, require_keys

TABLE_KEYS = ("name", "title", "caption", "columns")
COLUMN_KEYS = ("label", "values", "scalars", "series", "column", "digits")
SOURCES = ("values", "scalars", "series")
DIGITS = 4


@dataclass(frozen=True)
class Column:
    """One column: `items` are values or names of scalars; "" where it is a series'."""

    label: str
    source: str
    items: tuple[object, ...]
    series: str
    column: str
    digits: int

    def cells(self, result: Result) -> list[str]:
        return [format_value(value, digits=self.digits) for value in self._values(result)]

    def _values(self, result: Result) -> list[object]:
        if self.source == "values":
            return list(self.items)
        if self.source == "scalars":
            return [result.scalars.get(str(name)) for name in self.items]
        return result.series.get(self.series, {}).get(self.column, [])


@dataclass(frozen=True)
class Table:
    """One declared table."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]

    def heads(self) -> list[str]:
        return [column.label for column in self.columns]

    def rows(self, result: Result) -> list[list[str]]:
        """Texts; InputError if columns that the result has differ in length."""
        columns = [column.cells(result) for column in self.columns]
        lengths = sorted({len(cells) for cells in columns if cells})
        if len(lengths) > 1:
            counts = ", ".join(map(str, lengths))
            raise InputError(f"{result.path}: table {brief(self.name)}: columns of {counts} rows")
        count = lengths[0] if lengths else 0
        filled = [cells or [""] * count for cells in columns]
        return [[cells[i] for cells in filled] for i in range(count)]


def read_tables(path: Path, config: Json) -> list[Table]:
    """The declared tables, all of them checked; InputError on the first mistake."""
    declared = config.get("tables", [])
    if not isinstance(declared, list):
        raise InputError(f'{path}: "tables" must be a list')
    tables = [_table(f"{path}: table {index + 1}", item) for index, item in enumerate(declared)]
    names = [table.name for table in tables]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: table {brief(name)} is declared twice")
    return tables


def _table(where: str, item: object) -> Table:
    if not isinstance(item, dict):
        raise InputError(f"{where} must be an object, got {brief(item)}")
    require_keys(where, item, TABLE_KEYS)
    name = _text(where, item, "name")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"{where}: name must be letters, digits, - and _, got {brief(name)}")
    columns = item.get("columns")
    if not isinstance(columns, list) or not columns:
        raise InputError(f"{where}: columns must be a list of columns, got {brief(columns)}")
    return Table(
        name=name,
        title=_text(where, item, "title"),
        caption=_text(where, item, "caption") if "caption" in item else "",
        columns=tuple(_column(where, column) for column in columns),
    )


def _column(where: str, item: object) -> Column:
    if not isinstance(item, dict):
        raise InputError(f"{where}: a column must be an object, got {brief(item)}")
    label = _text(where, item, "label")
    where = f"{where}: column {brief(label)}"
    require_keys(where, item, COLUMN_KEYS)
    sources = [source for source in SOURCES if source in item]
    if len(sources) != 1 or ("column" in item) != (sources == ["series"]):
        raise InputError(f"{where} must have values, scalars, or a series and its column")
    items = item.get(sources[0], []) if sources[0] != "series" else []
    if not isinstance(items, list):
        raise InputError(f"{where}: {sources[0]} must be a list, got {brief(items)}")
    digits = item.get("digits", DIGITS)
    if not isinstance(digits, int) or isinstance(digits, bool) or not 1 <= digits <= 17:
        raise InputError(f"{where}: digits must be 1 to 17, got {brief(digits)}")
    is_series = sources == ["series"]
    return Column(
        label=label,
        source=sources[0],
        items=tuple(items),
        series=_text(where, item, "series") if is_series else "",
        column=_text(where, item, "column") if is_series else "",
        digits=digits,
    )


def _text(where: str, item: Json, key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {key} must be a text, got {brief(value)}")
    return value
