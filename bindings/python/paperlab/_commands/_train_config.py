"""The config of `./paperlab train`: keys, defaults, types; `--set`; errors of one line."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paperlab._commands._line import UsageError, unknown
from paperlab.data._recipes import SPLITS

Config = dict[str, Any]
Check = Callable[[Any], str | None]  # what is required, if it is not met

REQUIRED = object()

_MOST_COUNT, _MOST_SEED = 2**53, 2**64 - 1
_MOST_ROWS = 2**40  # of a run, as data.Sampler counts them


def _whole(low: int, high: int = _MOST_COUNT) -> Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            return f"a whole number >= {low}"
        return None if value <= high else f"a whole number <= {high}"

    return check


def _number(value: Any) -> str | None:
    is_right = isinstance(value, int | float) and not isinstance(value, bool)
    return None if is_right and math.isfinite(value) else "a number"


def _numbers(value: Any) -> str | None:
    is_right = isinstance(value, dict) and not any(map(_number, value.values()))
    return None if is_right else "numbers by name"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _texts(value: Any) -> str | None:
    is_right = isinstance(value, list) and value and not any(map(_text, value))
    return None if is_right else "a list of texts"


def _patterns(value: Any) -> str | None:
    return None if value == [] or _texts(value) is None else "a list of texts"


def _switch(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _object(value: Any) -> str | None:
    return None if isinstance(value, dict) else "an object"


def _mark(value: Any) -> str | None:
    return None if _text(value) is None or _whole(0)(value) is None else "a token's id or text"


def _pair(value: Any) -> str | None:
    is_right = isinstance(value, list) and len(value) == 2 and not any(map(_number, value))
    return None if is_right else "two numbers"


def _choice(*names: str) -> Check:
    def check(value: Any) -> str | None:
        return None if value in names else f"one of {', '.join(names)}"

    return check


def _or_none(check: Check) -> Check:
    def check_or_none(value: Any) -> str | None:
        required = None if value is None else check(value)
        return f"{required} or null" if required else None

    return check_or_none


# Section -> key -> default, check. A section of None is absent unless given.
_FIELDS: dict[str, dict[str, tuple[Any, Check]]] = {
    "model": {
        "from": (None, _or_none(_text)),
        "config": (None, _or_none(_object)),
        "init": ("normal", _choice("normal", "gpt_neox", "gpt2", "xavier")),
        "seed": (0, _whole(0, _MOST_SEED)),
        "dtype": ("float32", _choice("float32", "float64", "bfloat16")),
    },
    "data": {
        "recipe": (None, _or_none(_text)),
        "files": (None, _or_none(_texts)),
        "domains": (None, _or_none(_texts)),
        "weights": (None, _or_none(_numbers)),
        "tokenizer": ("bytes", _text),
        "separator": (None, _or_none(_mark)),
        "length": (REQUIRED, _whole(1)),
    },
    "training": {
        "steps": (REQUIRED, _whole(0)),
        "batch_size": (REQUIRED, _whole(1)),
        "learning_rate": (REQUIRED, _number),
        "optimizer": ("adamw", _choice("adamw", "sgd", "adafactor")),
        "betas": ([0.9, 0.95], _pair),
        "eps": (1e-8, _number),
        "momentum": (0.0, _number),
        "weight_decay": (0.0, _number),
        "no_decay": ([], _patterns),
        "schedule": ("constant", _choice("constant", "cosine", "wsd")),
        "warmup_steps": (0, _whole(0)),
        "decay_steps": (0, _whole(0)),
        "min_learning_rate": (0.0, _number),
        "clip_norm": (None, _or_none(_number)),
        "precision": (None, _or_none(_choice("bfloat16"))),
        "accumulate": (1, _whole(1)),
        "checkpoint_every": (None, _or_none(_whole(1))),
        "keep": (2, _whole(1)),
        "shard_optimizer": (False, _switch),
        "seed": (0, _whole(0, _MOST_SEED)),
    },
    "eval": {
        "every": (None, _or_none(_whole(1))),
        "split": ("valid", _choice(*SPLITS)),
        "domains": (None, _or_none(_texts)),
        "files": (None, _or_none(_texts)),
        "documents": (None, _or_none(_whole(1))),
        "tokens": (None, _or_none(_whole(2))),
        "prompt": (None, _or_none(_text)),
        "sample_tokens": (64, _whole(1)),
    },
}
_OPTIONAL = {"eval": None, "licence": "unknown"}

# What may change between the parts of a run.
_CHANGEABLE = (
    "eval",
    "licence",
    "training.checkpoint_every",
    "training.keep",
    "training.shard_optimizer",
)


def read(path: Path, settings: Sequence[str]) -> Config:
    """The config of a file with `--set` values over it, complete; UsageError names file and key."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"'{path}': {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}: line {line}: not UTF-8") from None
    try:
        given = json.loads(text, object_pairs_hook=_object_of, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError):  # no error of syntax
        raise UsageError(f"{path}: {_fault(text)}") from None
    if not isinstance(given, dict):
        raise UsageError(f"{path}: must be an object, got {json.dumps(given):.60}")
    for setting in settings:
        _set(given, setting)
    return _complete(str(path), given)


_MOST_DEPTH, _MOST_DIGITS = 64, 300
_WORDS = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*")(?=\s*:)|"(?:[^"\\]|\\.)*"|(?P<open>[{[])|(?P<close>[]}])'
    rf"|(?P<constant>-?(?:NaN|Infinity))|(?P<long>\d{{{_MOST_DIGITS},}})"
)


def _fault(text: str) -> str:
    """Where the first thing stands that JSON's syntax allows and a config does not."""
    objects: list[set[str]] = []
    for match in _WORDS.finditer(text):
        place, word = f"line {text.count(chr(10), 0, match.start()) + 1}: ", match[0]
        if match["key"] and objects:
            key = json.loads(word, strict=False)
            if key in objects[-1]:
                return f"{place}the key {key!a:.60} comes twice"
            objects[-1].add(key)
        elif match["constant"]:
            return f"{place}{word} is no JSON value"
        elif match["long"]:
            return f"{place}a number of {len(word)} digits"
        elif match["open"]:
            objects.append(set())
            if len(objects) > _MOST_DEPTH:
                return f"{place}nested more than {_MOST_DEPTH} deep"
        elif match["close"] and objects:
            objects.pop()
    return "not a config"


def _object_of(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key comes twice")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _set(config: Config, setting: str) -> None:
    """Puts KEY=VALUE in; VALUE is JSON, or a text as it is."""
    key, equals, word = setting.partition("=")
    *sections, last = key.split(".")
    if not equals or not all([*sections, last]):
        raise UsageError(f"--set needs KEY=VALUE, got {setting!a:.60}")
    try:
        value = json.loads(word, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        value = word
    place: Any = config
    for section in sections:
        if place.get(section) is None:
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise UsageError(f"--set {key}: {section} is no object")
    place[last] = value


def _complete(source: str, given: Config) -> Config:
    known = [*_FIELDS, *(key for key in _OPTIONAL if key not in _FIELDS)]
    _check_keys(source, given, known)
    config: Config = {}
    for section, fields in _FIELDS.items():
        values: Any = given.get(section, _OPTIONAL.get(section, {}))
        if values is None and section in _OPTIONAL:
            config[section] = None
            continue
        _require(f"{source}: {section}", _object(values), values)
        _check_keys(f"{source}: {section}", values, fields)
        config[section] = {
            key: _value(f"{source}: {section}.{key}", values, key, *field)
            for key, field in fields.items()
        }
    licence = given.get("licence", _OPTIONAL["licence"])
    _require(f"{source}: licence", _text(licence), licence)
    config["licence"] = licence
    _check_choices(source, config)
    return config


def _check_keys(where: str, given: Mapping[str, Any], known: Mapping[str, Any] | list[str]) -> None:
    for key in given:
        if key not in known:
            raise UsageError(f"{where}: {unknown('key', key, known)}")


def _value(where: str, given: Mapping[str, Any], key: str, default: Any, check: Check) -> Any:
    if key not in given:
        if default is REQUIRED:
            raise UsageError(f"{where} must be given")
        return default
    _require(where, check(given[key]), given[key])
    return given[key]


def _require(where: str, required: str | None, got: Any) -> None:
    if required:
        raise UsageError(f"{where} must be {required}, got {json.dumps(got):.60}")


def _check_choices(source: str, config: Config) -> None:
    model, data, held_out = config["model"], config["data"], config["eval"]
    _one_of(source, "model", model, "from", "config")
    _one_of(source, "data", data, "recipe", "files")
    if data["files"] is not None and data["domains"] is not None:
        raise UsageError(f"{source}: data.domains goes with data.recipe")
    num_rows = config["training"]["steps"] * config["training"]["batch_size"]
    if num_rows > _MOST_ROWS:
        raise UsageError(
            f"{source}: training.steps times training.batch_size must be at most {_MOST_ROWS}, "
            f"got {num_rows}"
        )
    if data["tokenizer"] == "model" and model["from"] is None:
        raise UsageError(f"{source}: data.tokenizer 'model' goes with model.from")
    if held_out is None:
        return
    if data["files"] is not None and held_out["domains"] is not None:
        raise UsageError(f"{source}: eval.domains goes with data.recipe")
    if data["files"] is None and held_out["files"] is not None:
        raise UsageError(f"{source}: eval.files goes with data.files")
    if held_out["documents"] is not None and held_out["tokens"] is not None:
        raise UsageError(f"{source}: eval.documents and eval.tokens exclude each other")


def _one_of(source: str, section: str, values: Config, one: str, other: str) -> None:
    if (values[one] is None) == (values[other] is None):
        raise UsageError(f"{source}: {section} needs either {one} or {other}")


def check_unchanged(place: str, before: Config, now: Config) -> None:
    """Raises UsageError naming the first value that must not change between parts of a run."""
    old, new = _flat(before), _flat(now)
    is_constant = now["training"]["schedule"] == "constant"
    free = (*_CHANGEABLE, *(["training.steps"] if is_constant else []))
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key) and not key.startswith(free):
            raise UsageError(
                f"{place} holds a run with {key} {json.dumps(old.get(key)):.60}, here it is "
                f"{json.dumps(new.get(key)):.60}; --resume never begins anew"
            )


def _flat(config: Config, prefix: str = "") -> Config:
    result: Config = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
