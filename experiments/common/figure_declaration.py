"""The "figures" of a config.json: what may be declared, and its checks. Nothing is drawn here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from result_file import InputError, Json, Result, brief, number, require_keys, suggestion

KINDS = ("line", "bar", "heatmap")
SCALES = ("linear", "log")
STYLES = ("solid", "dashed", "dotted", "points")
FIGURE_KEYS = (
    *("name", "title", "caption", "kind", "x_label", "y_label", "value_label"),
    *("x_scale", "y_scale", "lines", "vlines"),
)
LINE_KEYS = ("series", "x", "y", "value", "label", "style")
VLINE_KEYS = ("x", "label")


@dataclass(frozen=True)
class Line:
    """Columns of one series: a curve, a group of bars or, with `value`, one heat map."""

    series: str
    x: str
    y: str
    value: str
    label: str
    style: str

    def columns(self) -> list[str]:
        return [self.x, self.y] + ([self.value] if self.value else [])


@dataclass(frozen=True)
class VLine:
    """A marked abscissa."""

    x: float
    label: str


@dataclass(frozen=True)
class Figure:
    """One declared figure."""

    name: str
    title: str
    caption: str
    kind: str
    x_label: str
    y_label: str
    value_label: str
    x_scale: str
    y_scale: str
    lines: tuple[Line, ...]
    vlines: tuple[VLine, ...]

    def present(self, result: Result) -> list[Line]:
        """The lines that have something to show: a series with at least one visible point."""
        return [line for line in self.lines if self._visible(line, result)]

    def missing(self, result: Result) -> list[Line]:
        return [line for line in self.lines if not self._visible(line, result)]

    def _visible(self, line: Line, result: Result) -> bool:
        columns = result.series.get(line.series)
        if columns is None:
            return False
        if self.kind != "line":
            return any(self.shows(y, self.y_scale) for y in columns[line.value or line.y])
        points = zip(columns[line.x], columns[line.y], strict=True)
        return any(self.shows(x, self.x_scale) and self.shows(y, self.y_scale) for x, y in points)

    @staticmethod
    def shows(value: object, scale: str) -> bool:
        """Whether an axis of this scale has a place for `value`."""
        x = number(value)
        return x is not None and (scale == "linear" or x > 0)


def paper_of(path: Path, config: Json) -> Json:
    """The "paper" object of a config, its name checked: it names folders."""
    paper = config.get("paper")
    if not isinstance(paper, dict):
        raise InputError(f'{path}: "paper" must be an object')
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(paper.get("name"))):
        raise InputError(f'{path}: "paper"."name" must be lower-case words joined by hyphens')
    return paper


def read_figures(path: Path, config: Json) -> list[Figure]:
    """The declared figures, all of them checked; InputError on the first mistake."""
    declared = config.get("figures", [])
    if not isinstance(declared, list):
        raise InputError(f'{path}: "figures" must be a list')
    figures = [_figure(f"{path}: figure {index + 1}", item) for index, item in enumerate(declared)]
    names = [figure.name for figure in figures]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: figure {brief(name)} is declared twice")
    return figures


def overridden(declared: object, changes: object) -> object:
    """`changes` put over the declared figures as the drivers do it: by name, then key by key."""
    if not changes or not (_all_named(declared) and _all_named(changes)):
        return changes
    merged: dict[str, Json] = {}
    for figure in [*declared, *changes]:
        name = str(figure["name"])
        merged[name] = merged.get(name, {}) | figure
    return list(merged.values())


def _all_named(figures: object) -> TypeGuard[list[Json]]:
    return isinstance(figures, list) and all(
        isinstance(figure, dict) and isinstance(figure.get("name"), str) for figure in figures
    )


def _figure(where: str, item: object) -> Figure:
    if not isinstance(item, dict):
        raise InputError(f"{where} must be an object, got {brief(item)}")
    name = _text(where, item, "name")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"{where}: name must be letters, digits, - and _, got {brief(name)}")
    where = where.rsplit("figure", 1)[0] + f"figure {brief(name)}"
    require_keys(where, item, FIGURE_KEYS)
    kind = _choice(where, item, "kind", KINDS, None)
    figure = Figure(
        name=name,
        title=_text(where, item, "title"),
        kind=kind,
        x_scale=_choice(where, item, "x_scale", SCALES, "linear"),
        y_scale=_choice(where, item, "y_scale", SCALES, "linear"),
        lines=tuple(_line(where, kind, line) for line in _list(where, item, "lines")),
        vlines=tuple(_vline(where, vline) for vline in _list(where, item, "vlines")),
        **{k: _text(where, item, k, "") for k in ("caption", "x_label", "y_label", "value_label")},
    )
    _refuse_misfits(where, figure)
    return figure


def _refuse_misfits(where: str, figure: Figure) -> None:
    """What a kind would ignore is a mistake."""
    if not figure.lines:
        raise InputError(f"{where}: lines must name at least one series")
    if figure.kind != "line" and (figure.vlines or figure.x_scale == "log"):
        raise InputError(f"{where}: vlines and a log x_scale belong to kind line")
    if figure.kind == "heatmap" and figure.y_scale == "log":
        raise InputError(f"{where}: a heatmap has no log y_scale")
    if figure.kind != "heatmap" and figure.value_label:
        raise InputError(f"{where}: value_label belongs to kind heatmap")


def _line(where: str, kind: str, item: object) -> Line:
    if not isinstance(item, dict):
        raise InputError(f"{where}: a line must be an object, got {brief(item)}")
    where = f"{where}: line {brief(item.get('series'))}"
    require_keys(where, item, LINE_KEYS)
    if (kind == "heatmap") != ("value" in item):
        raise InputError(f"{where}: value is the third column of a heatmap and of nothing else")
    if kind != "line" and "style" in item:
        raise InputError(f"{where}: style belongs to kind line")
    series = _text(where, item, "series")
    return Line(
        series=series,
        x=_text(where, item, "x"),
        y=_text(where, item, "y"),
        value=_text(where, item, "value", ""),
        label=_text(where, item, "label", series),
        style=_choice(where, item, "style", STYLES, "solid"),
    )


def _vline(where: str, item: object) -> VLine:
    if not isinstance(item, dict):
        raise InputError(f"{where}: a vline must be an object, got {brief(item)}")
    require_keys(f"{where}: vline", item, VLINE_KEYS)
    x = number(item.get("x"))
    if x is None:
        raise InputError(f"{where}: vline: x must be a number, got {brief(item.get('x'))}")
    return VLine(x, _text(f"{where}: vline", item, "label", ""))


def _text(where: str, item: Json, key: str, default: str | None = None) -> str:
    value = item.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise InputError(f"{where}: {key} must be a text, got {brief(value)}")
    return value


def _list(where: str, item: Json, key: str) -> list[object]:
    value = item.get(key, [])
    if not isinstance(value, list):
        raise InputError(f"{where}: {key} must be a list, got {brief(value)}")
    return value


def _choice(where: str, item: Json, key: str, known: tuple[str, ...], default: str | None) -> str:
    value = item.get(key, default)
    if value not in known:
        hint = suggestion(str(value), known)
        raise InputError(f"{where}: {key} must be {' | '.join(known)}, got {brief(value)}{hint}")
    return str(value)


def check_columns(figure: Figure, result: Result) -> None:
    """InputError if a line asks for a column that its series lacks or that holds no numbers."""
    for line in figure.lines:
        columns = result.series.get(line.series)
        if columns is None:
            continue
        where = f"figure {brief(figure.name)}: series {brief(line.series)}"
        for name in line.columns():
            if name not in columns:
                has = ", ".join(columns)
                raise InputError(f"{result.path}: {where} has no column {brief(name)} (has: {has})")
            names = figure.kind == "heatmap" and name != line.value
            if names or (figure.kind == "bar" and name == line.x):
                continue
            for value in columns[name]:
                if value is not None and (isinstance(value, bool | str | list | dict)):
                    raise InputError(f"{result.path}: {where}: column {brief(name)} is not numeric")
