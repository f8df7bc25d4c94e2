"""Runs clang-tidy over compiled files: tidy.py BUILD-DIR [--all] [--jobs N] [FILE...].

Without --all only files whose command has no include folder of LibTorch are read, without the path
analyzer: the others take half a minute each, and the analyzer takes twice the time of all else. It
is left out in tests and benchmarks anyway: the macros there cost it ten seconds a file. A file that
passed is not read again until it, a header of the project that it includes, its command or
.clang-tidy changes.
"""

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from check_includes import included_file, includes
from sources import CPP_SUFFIXES, ROOT, tool_of_wheel

COMPILER = re.compile(r"(.*/)?(g\+\+|c\+\+|clang\+\+)(-\d+)?$")
TORCH_FOLDER = re.compile(r"/torch/include\b")
FINDING = re.compile(r"(\S[^:]*):\d+:\d+: (?:error|warning): .*\[([^\]]+)\]$")


@dataclass(frozen=True)
class Unit:
    """One file with the options that it is compiled with."""

    file: Path
    options: tuple[str, ...]
    is_analyzed: bool

    @property
    def extra(self) -> tuple[str, ...]:
        """Options of clang-tidy itself."""
        return () if self.is_analyzed else ("--checks=-clang-analyzer-*,-clang-diagnostic-*",)

    @property
    def uses_torch(self) -> bool:
        return any(TORCH_FOLDER.search(option) for option in self.options)


def units(build_dir: Path, analyze: bool) -> list[Unit]:
    """The project's files of compile_commands.json, each once per instruction set."""
    entries = json.loads((build_dir / "compile_commands.json").read_text(encoding="utf-8"))
    found: dict[tuple[Path, str], Unit] = {}
    for entry in entries:
        file = Path(entry["directory"], entry["file"]).resolve()
        if not file.is_relative_to(ROOT) or file.is_relative_to(build_dir) or file.suffix != ".cpp":
            continue
        options = clang_options(shlex.split(entry["command"]))
        isa = next((option for option in options if option.startswith("-DPAPERLAB_ISA")), "")
        path = file.relative_to(ROOT)
        is_analyzed = analyze and path.parts[0] not in {"tests", "bench"}
        found.setdefault((file, isa), Unit(path, options, is_analyzed))
    return sorted(found.values(), key=lambda unit: (unit.file, unit.options))


def clang_options(command: list[str]) -> tuple[str, ...]:
    """The options of a compile command without compiler, launcher, input and output."""
    start = next(i for i, word in enumerate(command) if COMPILER.match(word)) + 1
    options: list[str] = []
    words = iter(command[start:])
    for word in words:
        if word in {"-o", "-c", "-MF", "-MT", "-include"}:  # CMake includes precompiled headers
            next(words)
        # omp.h is the compiler's own.
        elif word.startswith("--param="):  # GCC's
            continue
        elif word not in {"-MD", "-MMD", "-fopenmp", "-fpch-preprocess", "-Winvalid-pch"}:
            options.append(word)
    return (
        *options,
        "-Wno-unknown-warning-option",
        "-Wno-deprecated-declarations",
        "-Qunused-arguments",
    )


def closure(file: str, seen: dict[str, str]) -> None:
    """Adds the file and the project's headers below it to `seen`, with their texts."""
    if file in seen:
        return
    seen[file] = (ROOT / file).read_text(encoding="utf-8")
    for _, name in includes(seen[file]):
        included = included_file(ROOT, file, name)
        if included and Path(included).suffix in CPP_SUFFIXES:
            closure(included, seen)


def key(unit: Unit) -> str:
    """What the verdict on a unit depends on."""
    seen: dict[str, str] = {}
    closure(unit.file.as_posix(), seen)
    pins = (ROOT / "scripts" / "requirements.txt").read_text(encoding="utf-8")
    config = (ROOT / ".clang-tidy").read_text(encoding="utf-8")
    text = json.dumps([sorted(seen.items()), unit.options, unit.extra, config, pins])
    return hashlib.sha256(text.encode()).hexdigest()


def tidy(unit: Unit, passed: Path) -> str:
    """What clang-tidy says about a unit; nothing if it passes."""
    mark = passed / key(unit)
    if mark.exists():
        return ""
    command = [
        str(tool_of_wheel("clang-tidy")),
        "--quiet",
        *unit.extra,
        str(ROOT / unit.file),
        "--",
        *unit.options,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == 0 or not concerns_us(run.stdout or run.stderr):
        mark.touch()
        return ""
    return run.stdout.strip() or run.stderr.strip()


def concerns_us(output: str) -> bool:
    """False if every finding stands in a foreign header, where the analyzer follows a call."""
    found = [match for match in map(FINDING.match, output.splitlines()) if match]
    ours = [m for m in found if Path(m[1]).resolve().is_relative_to(ROOT) or "diagnostic" in m[2]]
    return bool(ours) or not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build_dir", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    build_dir = arguments.build_dir.resolve()
    passed = build_dir / "tidy"
    passed.mkdir(exist_ok=True)
    found = units(build_dir, analyze=arguments.all)
    wanted = [unit for unit in found if arguments.all or not unit.uses_torch]
    if arguments.files:
        wanted = [unit for unit in wanted if unit.file in set(arguments.files)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        complaints = [text for text in pool.map(lambda unit: tidy(unit, passed), wanted) if text]
    print("\n".join(complaints), end="\n" if complaints else "")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
