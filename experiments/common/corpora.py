"""Brings what a run reads, then becomes the driver: corpora.py DRIVER [ARGUMENT...].

The driver says what it needs, a line each:

- a text, such as "manual-pages:en": fetched and tokenised (bytes, 0 after each document) unless it
  is there; "manual-pages:en@smollm2" is tokenised by a model of `./paperlab fetch`, which comes to
  the same cache;
- the pictures of a recipe, such as "digits": fetched unless they are there;
- a product, NAME, PROGRAM and REQUEST with tabs between: the Python file PROGRAM has a function

      make(requests, cache, notice) -> list of Path or str

  which gets all requests of a run (parsed JSON), the cache (None: the usual one) and a function for
  lines of progress, and returns the folder of each, whose manifest.json has recipe.sha256 and
  perhaps made_by (versions), or why it cannot be had.

What cannot be had is named to the driver, which leaves its rows out.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FAILURES = (ImportError, OSError, ValueError)


def needed(command: Sequence[str]) -> list[str]:
    """What the driver's run would read; ends with its exit code where it refuses."""
    done = subprocess.run(
        [*command, "--list-corpora"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        sys.exit(done.returncode if done.returncode > 0 else 128 - done.returncode)
    return os.fsdecode(done.stdout).splitlines()


def options_for(needs: Sequence[str], cache: Path | None = None) -> list[str]:
    """The driver's options for what it needs; progress on stdout."""
    options = [_option(need, cache) for need in needs if "\t" not in need]
    products: dict[str, list[tuple[str, Any]]] = {}
    for need in needs:
        if "\t" in need:
            name, program, request = need.split("\t")
            products.setdefault(program, []).append((name, json.loads(request)))
    for program, requests in products.items():
        options += _made(Path(program), requests, cache)
    return [word for option in options for word in option]


def _option(corpus: str, cache: Path | None) -> list[str]:
    try:
        data = importlib.import_module("paperlab.data")
        name = corpus.partition("@")[0].partition(":")[0]
        is_images = "images" in data.recipes().get(name, ())
        folder = _images(name, cache) if is_images else _tokens(corpus, cache)
    except FAILURES as error:
        return _missing(corpus, str(error))
    return ["--corpus", f"{corpus}={folder}"]


def _images(name: str, cache: Path | None) -> Path:
    data = importlib.import_module("paperlab.data")
    _fetch(name, None, cache)
    folder: Path = data.load_images(name, cache=cache).folder
    return folder


def _tokens(corpus: str, cache: Path | None) -> Path:
    data = importlib.import_module("paperlab.data")
    text, _, model = corpus.partition("@")
    name, _, words = text.partition(":")
    domains = words.split(",") if words else None
    _fetch(name, domains, cache)
    encoder = _model(model, cache) if model else "bytes"
    tokens = data.tokenize(name, encoder, domains=domains, separator=0, cache=cache, notice=_say)
    folder: Path = tokens.folder
    return folder


def _fetch(name: str, domains: Sequence[str] | None, cache: Path | None) -> None:
    data = importlib.import_module("paperlab.data")
    missing = data.fetch(name, domains, cache=cache, notice=_say)
    if missing:
        raise OSError("; ".join(f"{domain}: {why}" for domain, why in missing.items()))


def _model(name: str, cache: Path | None) -> Path:
    models = importlib.import_module("paperlab.models")
    folder: Path = models.fetch(name, cache=cache, notice=_say)
    return folder


def _made(
    program: Path, requests: Sequence[tuple[str, Any]], cache: Path | None
) -> list[list[str]]:
    try:
        folders = _maker(program)([request for _, request in requests], cache, _say)
    except FAILURES as error:
        folders = [str(error)] * len(requests)
    return [
        ["--corpus", f"{name}={folder}"] if isinstance(folder, Path) else _missing(name, folder)
        for (name, _), folder in zip(requests, folders, strict=True)
    ]


def _maker(program: Path) -> Callable[..., list[Path | str]]:
    spec = importlib.util.spec_from_file_location(program.stem, program)
    if spec is None or spec.loader is None:
        raise ImportError(f"{program} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[..., list[Path | str]] = module.make
    return make


def _missing(name: str, why: str) -> list[str]:
    reason = " ".join(why.split()).rstrip(".")
    _say(f"{name} cannot be had: {reason}")
    return ["--no-corpus", f"{name}={reason}"]


def _say(line: str) -> None:
    print(f"data: {line}", flush=True)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = sys.argv[1:]
    needs = [] if "--help" in command else needed(command)
    if needs:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # fetching cleans up
        # A driver lies in BUILD/bin, the package in BUILD/python.
        sys.path.insert(0, str(Path(command[0]).resolve().parent.parent / "python"))
        try:
            command += options_for(needs)
        except KeyboardInterrupt:
            sys.exit(130)
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
