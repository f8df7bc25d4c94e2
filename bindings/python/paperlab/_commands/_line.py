"""What command lines share: options that are checked, errors of one line, Ctrl-C, closed pipes."""

import argparse
import contextlib
import difflib
import math
import os
import select
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

DTYPES = ("float32", "float64", "bfloat16", "float16")

T = TypeVar("T")


class UsageError(Exception):
    """A command line that cannot be meant: exit 2."""


class Parser(argparse.ArgumentParser):
    """Options only; errors are one line, with the nearest name for an unknown one."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"python -m paperlab {verb}", description=description, allow_abbrev=False
        )
        self._verb = verb

    def error(self, message: str) -> NoReturn:
        print(f"paperlab {self._verb}: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)

    def parse(self, arguments: Sequence[str], *required: str) -> Any:
        """The options; exit 2 for unknown arguments and where a required option is missing."""
        options, rest = self.parse_known_args(arguments)
        for word in rest:
            if not word.startswith("-"):
                self.error(f"takes no argument, got {word!a:.60}")
            known = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(unknown("option", word.split("=")[0], known))
        for name in required:
            if getattr(options, name) is None:
                self.error(f"needs --{name}")
        return options


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """The message with the nearest name, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    choice = f"'{near[0]}'" if near else f"one of {', '.join(names)}"
    return f"unknown {kind} {word!a:.60}; did you mean {choice}?"


def choice_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    """Reads one of the names."""

    def read(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(unknown(kind, word, known))
        return word

    return read


def whole(low: int, high: int = 2**40) -> Callable[[str], int]:
    """Reads a whole number in low..high."""

    def read(word: str) -> int:
        if not (word.isascii() and word.isdecimal() and low <= int(word[:30]) <= high):
            raise argparse.ArgumentTypeError(
                f"must be a whole number in {low}..{high}, got {word!a:.60}"
            )
        return int(word)

    return read


def number(required: str, is_right: Callable[[float], bool]) -> Callable[[str], float]:
    """Reads a finite number; `required` says which, for the message."""

    def read(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and is_right(value)):
            raise argparse.ArgumentTypeError(f"must be {required}, got {word!a:.60}")
        return value

    return read


def run(verb: str, work: Callable[[], None]) -> int:
    """Does the work and returns the exit code; an error is one line on stderr."""
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        work()
        sys.stdout.flush()
        return 0
    except UsageError as error:
        return _fail(verb, error, 2)
    except BrokenPipeError:
        return 0  # the reader has seen enough
    except (OSError, ValueError, TypeError, ImportError, MemoryError, RuntimeError) as error:
        return _fail(verb, error, 1)
    except KeyboardInterrupt:
        return 130
    finally:
        _settle()


def _fail(verb: str, error: Exception, code: int) -> int:
    print(f"paperlab {verb}: {one_line(error)}", file=sys.stderr)
    return code


def _settle() -> None:
    """What stdout did not take is dropped; the interpreter would complain about it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    if isinstance(error, OSError) and error.strerror:
        place = f"'{os.fsdecode(error.filename)}': " if error.filename else ""
        return " ".join(f"{place}{error.strerror}".split())
    return " ".join(str(error).split()) or type(error).__name__


def counted(count: int, what: str) -> str:
    """As in `1 token` and `2 tokens`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def interruptible(work: Callable[[], T], on_interrupt: Callable[[], None]) -> T:
    """Returns work(), done in a thread: Ctrl-C need not wait until a call of the model returns.

    Ctrl-C calls on_interrupt and ends the process with 130, so the work must have nothing to undo.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        on_interrupt()
        os._exit(130)
    if errors:
        raise errors[0]
    return results[0]


def write_now(descriptor: int, text: bytes) -> None:
    """Writes past all buffers, unless the reader takes nothing now."""
    with contextlib.suppress(OSError):
        if select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, text)


def decoded(name: str, text: bytes) -> str:
    """UTF-8 as text; ValueError that names the first wrong byte."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: not UTF-8: byte 0x{text[error.start]:02x} at position {error.start}"
        ) from None


def model_directory(path: str) -> Path:
    """The path, if a model may be in it; OSError or ValueError otherwise."""
    directory = Path(path)
    directory.stat()
    if not directory.is_dir():
        raise NotADirectoryError(20, "Not a directory", path)
    if not (directory / "config.json").is_file():
        raise ValueError(f"'{path}': not a model: it has no config.json")
    return directory
