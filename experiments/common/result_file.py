"""Result and config files as figures, report and tables read them; numbers as they print them.

Standard library only: the report is rewritten after each paper and must start at once.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

SCHEMA = 1
VERDICTS = ("holds", "fails", "not tested at this scale")
KEYS = (
    *("schema", "paper", "preset", "config", "commit", "environment", "seconds"),
    *("series", "scalars", "claims"),
)
CLAIM_TEXTS = ("id", "statement", "source", "relation", "why")
CLAIM_KEYS = (*CLAIM_TEXTS, "published", "measured", "bound", "verdict")

Json = dict[str, object]


class InputError(Exception):
    """A file that cannot be used; the message is one line and names the file."""


@dataclass(frozen=True)
class Claim:
    """One row of a claims table."""

    id: str
    statement: str
    source: str
    published: object
    measured: object
    relation: str
    bound: object
    verdict: str
    why: str


@dataclass(frozen=True)
class Result:
    """One result.json of the schema that this version reads."""

    path: Path
    paper: str
    preset: str
    config: Json
    commit: str
    environment: Json
    seconds: float | None
    series: dict[str, dict[str, list[object]]]
    scalars: Json
    claims: list[Claim]

    def count(self, verdict: str) -> int:
        return sum(claim.verdict == verdict for claim in self.claims)


def read_object(path: Path) -> Json:
    """The JSON object in `path`; InputError "FILE: line N: ..." where it is malformed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: line 1: a JSON object is required")
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def read_result(path: Path) -> Result:
    """The result in `path`; InputError if it is malformed or of another schema."""
    value = read_object(path)
    schema = value.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise InputError(f"{path}: schema must be an integer, got {brief(schema)}")
    if schema != SCHEMA:
        age = "newer" if schema > SCHEMA else "older"
        raise InputError(f"{path}: schema {schema} is {age} than {SCHEMA}, the one read here")
    for key in KEYS:
        if key not in value:
            raise InputError(f"{path}: key {brief(key)} is missing")
    return Result(
        path=path,
        paper=_text(path, value, "paper"),
        preset=_text(path, value, "preset"),
        config=_object(path, value, "config"),
        commit=_text(path, value, "commit"),
        environment=_object(path, value, "environment"),
        seconds=number(value["seconds"]),
        series=_series(path, _object(path, value, "series")),
        scalars=_object(path, value, "scalars"),
        claims=_claims(path, value["claims"]),
    )


def _text(path: Path, value: Json, key: str) -> str:
    text = value[key]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"{path}: {key} must be a string, got {brief(text)}")
    return text


def _object(path: Path, value: Json, key: str) -> Json:
    item = value[key]
    if not isinstance(item, dict):
        raise InputError(f"{path}: {key} must be an object, got {brief(item)}")
    return item


def _series(path: Path, value: Json) -> dict[str, dict[str, list[object]]]:
    series: dict[str, dict[str, list[object]]] = {}
    for name, columns in value.items():
        where = f"{path}: series {brief(name)}"
        if not isinstance(columns, dict):
            raise InputError(f"{where} must be an object of columns, got {brief(columns)}")
        for column, values in columns.items():
            if not isinstance(values, list):
                raise InputError(f"{where}: column {brief(column)} must be a list")
        if len({len(values) for values in columns.values()}) > 1:
            raise InputError(f"{where}: the columns differ in length")
        series[name] = columns
    return series


def _claims(path: Path, value: object) -> list[Claim]:
    if not isinstance(value, list):
        raise InputError(f"{path}: claims must be a list, got {brief(value)}")
    claims = []
    for item in value:
        if not isinstance(item, dict):
            raise InputError(f"{path}: a claim must be an object, got {brief(item)}")
        for key in CLAIM_KEYS:
            if key not in item:
                raise InputError(f"{path}: claim {brief(item.get('id'))}: {key} is missing")
        if item["verdict"] not in VERDICTS:
            raise InputError(
                f"{path}: claim {brief(item['id'])}: unknown verdict {brief(item['verdict'])}"
            )
        texts = {key: _text(path, item, key) for key in CLAIM_TEXTS}
        claims.append(
            Claim(
                published=item["published"],
                measured=item["measured"],
                bound=item["bound"],
                verdict=item["verdict"],
                **texts,
            )
        )
    return claims


def number(value: object) -> float | None:
    """`value` as a finite float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with contextlib.suppress(OverflowError):
        if math.isfinite(value):
            return float(value)
    return None


def format_number(value: float, beside: Iterable[float] = (), digits: int = 6) -> str:
    """`value` in as few digits (at least `digits`) as keep its order to each of `beside`.

    A measured 0.98499999 against a bound of 0.985 must not print as 0.985.
    """
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    others = list(beside)
    for precision in range(digits, 18):
        text = f"{value:.{precision}g}"
        rounded = float(text)
        if all((rounded > o, rounded < o) == (value > o, value < o) for o in others):
            break
    return re.sub(r"e([+-])0*(\d)", lambda m: "e" + m[1].replace("+", "") + m[2], text)


def format_value(value: object, beside: Iterable[float] = (), digits: int = 6) -> str:
    """A number, a text or a list of them as printed; "" if there is none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return format_number(value, beside, digits) if math.isfinite(value) else ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "[" + ", ".join(format_value(item, beside, digits) for item in value) + "]"
    return json.dumps(value, sort_keys=True)


def bounds_of(claim: Claim) -> list[float]:
    """The finite numbers of a claim's bound."""
    items: Sequence[object] = claim.bound if isinstance(claim.bound, list) else [claim.bound]
    return [limit for limit in map(number, items) if limit is not None]


def format_measured(claim: Claim) -> str:
    return format_value(claim.measured, bounds_of(claim))


def format_criterion(claim: Claim) -> str:
    """The relation and the bound: ">= 0.985", "within [0.22, 0.25]"."""
    bound = format_value(claim.bound, digits=15)
    return f"{claim.relation} {bound}".strip() if bound else ""


def format_seconds(seconds: float | None) -> str:
    """A duration as people say it; "" if there is none."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def brief(value: object) -> str:
    """`value` as JSON on one line, cut to 60 characters, for messages."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggestion(word: str, known: Iterable[str]) -> str:
    """' (did you mean "x"?)' if a known word is near, else ''."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def require_keys(where: str, value: Mapping[str, object], known: Sequence[str]) -> None:
    """InputError if `value` has a key that is not `known`."""
    for key in value:
        if key not in known:
            raise InputError(f"{where}: unknown key {brief(key)}{suggestion(key, known)}")


def one_line(text: object) -> str:
    """`text` without line breaks or control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def write_whole(path: Path, data: bytes) -> bool:
    """Writes `data` to `path` by rename, unless the file has these bytes; True if written."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return True


def folder_of(paper: str) -> str:
    """The folder of a paper under experiments/: hyphens are underscores there."""
    return paper.replace("-", "_")


def describe(error: InputError | OSError) -> str:
    """One line for stderr: the file first, then what is wrong."""
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{error.filename}: {error.strerror}")
    return one_line(error)
