"""Brings the texts that a run reads, then becomes the driver: corpora.py DRIVER [ARGUMENT...].

The driver says which texts it needs; each is fetched and tokenised (bytes, 0 after each document)
unless it is there. "manual-pages:en@smollm2" is tokenised by a model of `./paperlab fetch`, which
comes into the same cache. What cannot be had is named to the driver, which leaves its rows out.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def needed(command: Sequence[str]) -> list[str]:
    """The texts that the driver's run would read; ends with its exit code where it refuses."""
    done = subprocess.run(
        [*command, "--list-corpora"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        sys.exit(done.returncode if done.returncode > 0 else 128 - done.returncode)
    return os.fsdecode(done.stdout).splitlines()


def options_for(corpora: Sequence[str], cache: Path | None = None) -> list[str]:
    """The driver's options for texts such as "manual-pages:en,de"; progress on stdout."""
    return [word for corpus in corpora for word in _option(corpus, cache)]


def _option(corpus: str, cache: Path | None) -> list[str]:
    data = importlib.import_module("paperlab.data")
    text, _, model = corpus.partition("@")
    name, _, words = text.partition(":")
    domains = words.split(",") if words else None
    try:
        missing = data.fetch(name, domains, cache=cache, notice=_say)
        if missing:
            raise OSError("; ".join(f"{domain}: {why}" for domain, why in missing.items()))
        encoder = _model(model, cache) if model else "bytes"
        tokens = data.tokenize(
            name, encoder, domains=domains, separator=0, cache=cache, notice=_say
        )
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        _say(f"{corpus} cannot be had: {reason}")
        return ["--no-corpus", f"{corpus}={reason}"]
    return ["--corpus", f"{corpus}={tokens.folder}"]


def _model(name: str, cache: Path | None) -> Path:
    models = importlib.import_module("paperlab.models")
    folder: Path = models.fetch(name, cache=cache, notice=_say)
    return folder


def _say(line: str) -> None:
    print(f"data: {line}", flush=True)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = sys.argv[1:]
    corpora = [] if "--help" in command else needed(command)
    if corpora:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # fetching cleans up
        # A driver lies in BUILD/bin, the package in BUILD/python.
        sys.path.insert(0, str(Path(command[0]).resolve().parent.parent / "python"))
        try:
            command += options_for(corpora)
        except KeyboardInterrupt:
            sys.exit(130)
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
