"""What the CUDA kernels take, as tables in the READMEs: kernel_resources.py [--check] [BUILD-TREE].

The launcher of nvcc (nvcc_strict.sh) leaves OBJECT.resources beside each object of the build tree
(default build/release). A README has a table of the .cu files that its mark names:

    <!-- resources: kernels/one_layer_fold/cuda.cu -->
    <!-- /resources -->

Without --check the tables are rewritten. With it nothing is changed: exit code 1 if a table is
stale or kernels have none, 0 if all are current, and 0 with the reason where there is nothing to
compare: no kernels were built, or the tables are those of another release of nvcc.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sources import ROOT, project_files

OPEN = re.compile(r"<!-- resources:(.*)-->")
CLOSE = "<!-- /resources -->"
RELEASE = re.compile(r"^nvcc (\d+\.\d+)", re.MULTILINE)
BUDGET = re.compile(r"// ptxas-budget (\w+): (\d+) registers, (\d+) bytes")
DYNAMIC = re.compile(r"// dynamic-shared (\w+): (\d+) bytes")
LEAST_BUDGET = (128, 49152)  # as nvcc_strict.sh has it
HEADS = ("kernel", "registers", "shared memory", "constant memory", "budget")


class TableError(Exception):
    """One line for the user."""


@dataclass(frozen=True)
class Use:
    """What a kernel takes on one architecture; memory in bytes."""

    registers: int
    shared: int
    constant: int | None  # not told on every architecture


Uses = dict[str, dict[str, Use]]  # by kernel and architecture


@dataclass(frozen=True)
class Build:
    """What a build tree tells: the release of nvcc, and the kernels of each source."""

    release: str
    sources: dict[str, Uses]


def read_build(tree: Path, root: Path = ROOT) -> Build | None:
    """The tables of a build tree, or nothing if it was built without CUDA."""
    release = tree / "nvcc_release"
    if not release.is_file():
        return None
    sources: dict[str, Uses] = {}
    for path in sorted(tree.rglob("*.cu.o.resources")):
        source, *lines = path.read_text(encoding="utf-8").splitlines()
        name = source.removeprefix("# ")
        if path.with_suffix("").is_file() and (root / name).is_file():
            sources[name] = uses_of(lines)
    return Build(release.read_text(encoding="utf-8").strip(), sources)


def uses_of(lines: Iterable[str]) -> Uses:
    uses: Uses = {}
    for line in filter(None, lines):
        kernel, architecture, registers, shared, constant, *_ = line.split("\t")
        use = Use(int(registers), int(shared), None if constant == "-" else int(constant))
        uses.setdefault(kernel, {})[architecture] = use
    return uses


def declared(pattern: re.Pattern[str], text: str) -> dict[str, tuple[int, ...]]:
    """Numbers by kernel of the comments that match."""
    return {match[1]: tuple(map(int, match.groups()[1:])) for match in pattern.finditer(text)}


def table(build: Build, names: Iterable[str], root: Path = ROOT) -> list[str]:
    """The lines between the marks; a blank line keeps Markdown from joining them."""
    rows = []
    for name in names:
        text = (root / name).read_text(encoding="utf-8")
        budgets, dynamic = declared(BUDGET, text), declared(DYNAMIC, text)
        for kernel, uses in sorted(build.sources[name].items()):
            base = kernel.partition("<")[0]
            rows.append(row(kernel, uses, budgets.get(base, LEAST_BUDGET), dynamic.get(base, ())))
    note = f"nvcc {build.release}; registers of a thread, bytes of a block; a budget that is passed"
    lines = [f"{note} fails the build."]
    lines += ["", line(HEADS), line("---" for _ in HEADS), *map(line, rows)] if rows else []
    return ["", *lines, ""]


def row(
    kernel: str, uses: Mapping[str, Use], budget: tuple[int, ...], dynamic: tuple[int, ...]
) -> list[str]:
    shared = by_architecture({name: use.shared for name, use in uses.items()})
    if dynamic:
        shared += f" and {dynamic[0]} at the launch"
    return [
        f"`{kernel}`",
        by_architecture({name: use.registers for name, use in uses.items()}),
        shared,
        by_architecture({name: use.constant for name, use in uses.items()}),
        f"{budget[0]}, {budget[1]}",
    ]


def by_architecture(numbers: Mapping[str, int | None]) -> str:
    """One number where all architectures agree."""
    if len(set(numbers.values())) == 1:
        number = next(iter(numbers.values()))
        return "-" if number is None else str(number)
    told = sorted((name, number) for name, number in numbers.items() if number is not None)
    return ", ".join(f"{name} {number}" for name, number in told)


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def split(text: str, path: Path) -> Iterator[tuple[list[str], list[str] | None]]:
    """Runs of lines; after a mark the lines up to its end, with the sources that the mark names."""
    run: list[str] = []
    names: list[str] | None = None
    for each in text.splitlines():
        mark = OPEN.fullmatch(each.strip())
        if (mark is None) == (names is None) and (mark or each.strip() == CLOSE):
            raise TableError(f"{path}: marks of resources do not alternate")
        if mark:
            yield [*run, each], None
            run, names = [], mark[1].split()
        elif names is not None and each.strip() == CLOSE:
            yield run, names
            run, names = [each], None
        else:
            run.append(each)
    if names is not None:
        raise TableError(f"{path}: a mark of resources is not closed")
    yield run, None


def process(build: Build, root: Path, check: bool) -> tuple[list[str], list[str]]:
    """Rewrites, or with `check` only compares. A line for each stale table or kernel without one,
    and for each table that cannot be compared."""
    stale: list[str] = []
    others: list[str] = []
    shown: set[str] = set()
    for name in project_files(root):
        if name.name != "README.md":
            continue
        text = (root / name).read_text(encoding="utf-8")
        fresh: list[str] = []
        for lines, sources in split(text, name):
            shown.update(sources or [])
            unknown = [each for each in sources or [] if each not in build.sources]
            if unknown:
                stale.append(f"{name}: {unknown[0]} is not in the build tree")
                fresh += lines
                continue
            release = RELEASE.search("\n".join(lines))
            if sources and check and release and release[1] != build.release:
                others.append(f"{name} has the table of nvcc {release[1]}, not {build.release}")
                fresh += lines
                continue
            new = table(build, sources, root) if sources else lines
            stale += [f"{name}: the table of {' '.join(sources or [])}"] if new != lines else []
            fresh += new
        if not check and fresh != text.splitlines():
            (root / name).write_text("\n".join(fresh) + "\n", encoding="utf-8")
    missing = [name for name, uses in build.sources.items() if uses and name not in shown]
    return stale + [f"{name}: no README has its table" for name in missing], others


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tables of what the CUDA kernels take.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to work on")
    parser.add_argument("tree", type=Path, nargs="?", default=ROOT / "build/release")
    options = parser.parse_args(arguments)
    build = read_build(options.tree, options.root)
    if build is None:
        print("kernel_resources: the build tree has no CUDA kernels")
        return 0
    try:
        found, others = process(build, options.root, options.check)
    except TableError as problem:
        print(f"kernel_resources: {problem}", file=sys.stderr)
        return 1
    for other in others:
        print(f"kernel_resources: {other}")
    if options.check and found:
        advice = "stale, run python scripts/kernel_resources.py"
        print(f"kernel_resources: {'; '.join(found)}: {advice}", file=sys.stderr)
        return 1
    for each in found:
        print(each)
    return 0


if __name__ == "__main__":
    sys.exit(main())
