"""The command line of `./paperlab convert`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from paperlab._commands import _line
from paperlab.convert._checkpoint import checkpoint
from paperlab.convert._gguf import DTYPES, gguf


class _Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"paperlab convert: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m paperlab convert",
        description="A GGUF file or a model of another dtype to a Hugging Face directory.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE.gguf|MODEL_DIR")
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--dtype", default="float32", help=", ".join(DTYPES))
    parser.add_argument("--force", action="store_true", help="replace a model that is there")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Converts; returns the exit code."""
    options = _parser().parse_args(arguments)
    return _line.run("convert", lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    if options.dtype not in DTYPES:
        raise _line.UsageError(_line.unknown("dtype", options.dtype, DTYPES))
    function = checkpoint if os.path.isdir(options.file) else gguf
    directory = function(
        options.file,
        options.directory,
        dtype=options.dtype,
        force=options.force,
        notice=lambda line: print(f"convert: {line}", flush=True),
    )
    print(directory)
