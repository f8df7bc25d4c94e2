"""Settings in the texts of declared figures and tables, so that labels follow the preset.

{recall_window}          the setting of that name in the result
{recall_groups[0]}       an element of a list; [-1] is the last one
{recall_window - 4}      more or less a whole number
"""

from __future__ import annotations

import dataclasses
import re
from typing import TypeVar, cast

from result_file import InputError, Result, brief, format_value, number, suggestion

SETTING = re.compile(r"\{([a-z][a-z0-9_]*)(?:\[(-?[0-9]+)\])?(?: ([+-] [0-9]+))?\}")
Declared = TypeVar("Declared")


def filled(item: Declared, result: Result) -> Declared:
    """A text, or a figure or table with all its texts; InputError if the result lacks a setting."""
    if isinstance(item, str):
        return cast(Declared, SETTING.sub(lambda match: _value(match, result), item))
    if isinstance(item, tuple):
        return cast(Declared, tuple(filled(part, result) for part in item))
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        names = [field.name for field in dataclasses.fields(item)]
        return dataclasses.replace(
            item, **{name: filled(getattr(item, name), result) for name in names}
        )
    return item


def _value(match: re.Match[str], result: Result) -> str:
    name, index, change = match.groups()
    where = f"{result.path}: {match[0]}"
    if name not in result.config:
        raise InputError(f"{where}: no setting {brief(name)}{suggestion(name, result.config)}")
    value = result.config[name]
    if index is not None:
        if not isinstance(value, list) or not -len(value) <= int(index) < len(value):
            raise InputError(
                f"{where}: {name} must be a list with this element, got {brief(value)}"
            )
        value = value[int(index)]
    if change is not None:
        plain = number(value)
        if plain is None:
            raise InputError(f"{where}: {name} must be a number, got {brief(value)}")
        value = plain + int(change.replace(" ", ""))
    return format_value(value)
