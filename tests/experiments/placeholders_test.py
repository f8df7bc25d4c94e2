"""Settings in the texts of declared figures and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from figure_declaration import read_figures
from placeholders import filled
from result_file import InputError, Result, read_result
from table_declaration import read_tables

if TYPE_CHECKING:
    from conftest import Sample

SETTINGS: dict[str, Any] = {"window": 16, "groups": [4, 8, 32], "rate": 0.003, "text": "en"}


@pytest.fixture
def result(sample: Sample, tmp_path: Path) -> Result:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(sample.result | {"config": SETTINGS}), encoding="utf-8")
    return read_result(path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("window {window}", "window 16"),
        ("g {groups[0]} to {groups[-1]}", "g 4 to 32"),
        ("4 + {window - 4}, {groups[1] + 1}", "4 + 12, 9"),
        ("rate {rate}, {text}", "rate 0.003, en"),
        ("{} {Base > Static} {window} {", "{} {Base > Static} 16 {"),
    ],
)
def test_settings_stand_in_texts(result: Result, text: str, wanted: str) -> None:
    assert filled(text, result) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{windo}", 'no setting "windo" (did you mean "window"?)'),
        ("{groups[3]}", "groups must be a list with this element"),
        ("{groups[-4]}", "groups must be a list with this element"),
        ("{window[0]}", "window must be a list"),
        ("{text - 1}", "text must be a number"),
    ],
)
def test_settings_that_are_not_there_are_named(result: Result, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        filled(text, result)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{result.path}: {text}")


def test_all_texts_of_tables_and_figures(result: Result, tmp_path: Path) -> None:
    columns: list[dict[str, Any]] = [
        {"label": "at {window}", "values": ["g={groups[0]}", 3, None]},
        {"label": "ours", "scalars": ["t{groups[0]}", "t2", ""]},
    ]
    table = {"name": "t", "title": "s = {window}", "columns": columns}
    line = {"series": "F{groups[0]}", "x": "step", "y": "loss", "label": "g={groups[0]}"}
    figure = {"name": "f", "title": "{window}", "kind": "line", "lines": [line]}
    config: dict[str, Any] = {"tables": [table], "figures": [figure]}
    (read,) = (filled(t, result) for t in read_tables(tmp_path, config))
    assert (read.title, read.heads()) == ("s = 16", ["at 16", "ours"])
    assert read.rows(result) == [["g=4", ""], ["3", "576"], ["", ""]]
    (drawn,) = (filled(f, result) for f in read_figures(tmp_path, config))
    assert (drawn.title, drawn.lines[0].series, drawn.lines[0].label) == ("16", "F4", "g=4")
