"""Checks that need no tool: check_sources.py CHECK [--root DIR] [FILE...].

CHECK is headers, words, ascii, sizes or shell; without FILEs it reads every file of the project.
Prints `FILE:LINE: reason` and exits with 1; `long` lists long files and functions, exit 0.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from sources import CPP_SUFFIXES, ROOT, project_files

CODE_SUFFIXES = CPP_SUFFIXES | {".py", ".sh"}
TEXT_SUFFIXES = CODE_SUFFIXES | {".pyi", ".cmake", ".txt", ".md", ".toml", ".yml", ".in"}
MAX_BYTES = 1 << 20
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# Each word with a bracket around one letter, so that this file passes its own check.
UNFINISHED = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X]|HAC[K])\b|\bplaceholde[r]\b|\bfor no[w]\b")
HOME_PATH = re.compile(r"(?<![\w.}])/(home/\w|root/|Users/\w|work/)")


def is_text(path: Path) -> bool:
    return path.suffix in TEXT_SUFFIXES or path.name == "paperlab"


def lines(root: Path, path: Path) -> list[str]:
    return (root / path).read_text(encoding="utf-8", errors="replace").splitlines()


def check_headers(root: Path, paths: Iterable[Path]) -> Iterator[str]:
    """Every header starts with #pragma once and a comment of at least one sentence."""
    for path in paths:
        if path.suffix not in {".h", ".cuh"}:
            continue
        text = lines(root, path)
        if not text or text[0] != "#pragma once":
            yield f"{path}:1: a header starts with #pragma once"
            continue
        comment = " ".join(leading_comment(text[1:]))
        if not re.search(r"[A-Za-z].*[.:]", comment):
            yield f"{path}:2: a sentence that says what the header holds follows #pragma once"


def leading_comment(text: list[str]) -> Iterator[str]:
    for line in text:
        if line.startswith("//"):
            yield line.lstrip("/ ").removeprefix("\\file")
        elif line:
            return


def check_words(root: Path, paths: Iterable[Path]) -> Iterator[str]:
    """No unfinished work and no path of one machine."""
    for path in filter(is_text, paths):
        for number, line in enumerate(lines(root, path), start=1):
            if match := UNFINISHED.search(line):
                yield f"{path}:{number}: '{match[0]}': what is missing is an error with a reason"
            if match := HOME_PATH.search(line):
                yield f"{path}:{number}: '{match[0]}': a path of one machine"


def check_ascii(root: Path, paths: Iterable[Path]) -> Iterator[str]:
    for path in filter(is_text, paths):
        for number, line in enumerate(lines(root, path), start=1):
            if not line.isascii():
                yield f"{path}:{number}: sources and pages are plain ASCII"


def check_sizes(root: Path, paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        size = (root / path).stat().st_size
        if size > MAX_BYTES:
            yield f"{path}:1: {size} bytes; files of the project have at most 1 MiB"


def check_shell(root: Path, paths: Iterable[Path]) -> Iterator[str]:
    """Shell scripts parse."""
    for path in paths:
        if path.suffix != ".sh" and path.as_posix() not in {"paperlab", ".ci/run"}:
            continue
        parsed = subprocess.run(
            ["bash", "-n", str(root / path)], capture_output=True, text=True, check=False
        )
        if parsed.returncode != 0:
            yield f"{path}:1: {parsed.stderr.strip()}"


def list_long(root: Path, paths: Iterable[Path]) -> Iterator[str]:
    """Places to stop and think; never an error."""
    for path in paths:
        if path.suffix not in CODE_SUFFIXES:
            continue
        text = lines(root, path)
        if len(text) > MAX_FILE_LINES:
            yield f"{path}:1: {len(text)} lines"
        for name, start, length in functions(path, text):
            if length > MAX_FUNCTION_LINES:
                yield f"{path}:{start}: {name} has {length} lines"


def functions(path: Path, text: list[str]) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length of each function."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse("\n".join(text))):
            if isinstance(node, ast.FunctionDef):
                yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1
        return
    # In formatted code the body of a function at namespace level ends with a brace in column 0.
    start = name = None
    for number, line in enumerate(text, start=1):
        if match := re.match(r"[A-Za-z_].*?([\w:~]+)\(", line):
            start, name = number, match[1]
        elif line.startswith("}") and start is not None:
            yield str(name), start, number - start + 1
            start = None


CHECKS = {
    "headers": check_headers,
    "words": check_words,
    "ascii": check_ascii,
    "sizes": check_sizes,
    "shell": check_shell,
    "long": list_long,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=sorted(CHECKS))
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    paths = arguments.files or project_files(arguments.root)
    found = list(CHECKS[arguments.check](arguments.root, paths))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found and arguments.check != "long" else 0


if __name__ == "__main__":
    sys.exit(main())
