"""Rewrites the marked tables of every README.md from the committed results.

    python experiments/common/tables.py [--check]

A mark stands alone on its line, and what lies between the two is ours:

    <!-- table: claims regular-language small -->   experiments/<p>/results/<preset>.json
    <!-- table: verdicts small -->                  a row for each paper's results/<preset>.json
    <!-- table: bench regular-language -->          bench/results/<machine>/<paper>.json
    <!-- table: bench cuda, if measured -->         the same, or a sentence if there is no file
    <!-- table: values mudd small table1 -->        config.json's table, results/<preset>.json
    <!-- /table -->
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from placeholders import filled
from result_file import (
    InputError,
    brief,
    describe,
    folder_of,
    format_criterion,
    format_measured,
    format_value,
    number,
    one_line,
    read_object,
    read_result,
    suggestion,
    write_whole,
)
from table_declaration import read_tables

OPEN = re.compile(r"<!-- table:(.*)-->")
CLOSE = "<!-- /table -->"
BUILT = ("build", "dist", "results", "node_modules")  # at the root: not sources
BENCH_COLUMNS = {
    "case": "case",
    "ours_us": "ours, us",
    "baseline_us": "baseline, us",
    "baseline_backend": "backend",
    "share": "share",
    "ours_tokens_s": "ours, tokens/s",
    "baseline_tokens_s": "baseline, tokens/s",
    "ratio": "ratio",
    "target": "target",
    "wall_ratio": "ratio of wall times",
    "ideal_ratio": "ideal ratio",
    "share_of_ideal": "share of it",
    "other_ratio": "ratio to other baseline",
    "other_share_of_ideal": "share of the ideal",
    "other_target": "other target",
    "extra_copies": "extra memory, copies of K and V",
    "ns_per_string": "ns per string",
    "gflops": "GFLOP/s",
    "share_of_fma_roof": "share of FMA roof",
    "gb_s": "GB/s",
    "share_of_read_roof": "share of read roof",
    "tflops": "TFLOP/s",
    "share_of_matmul_roof": "share of matmul roof",
    "memory_mib": "MiB",
    "baseline_memory_mib": "baseline, MiB",
    "share_of_copy_roof": "share of copy roof",
    "baseline_share_of_fma_roof": "baseline's share",
    "share_target": "least share",
    "shares": "where the time goes",
    "loss_difference": "losses differ by",
    "sm_mhz": "SM, MHz",
    "variants": "other paths of ours",
    "goals": "goals",
    "not_available": "not available",
    "spread_percent": "spread",
    "noisy": "noisy",
    "missed": "missed",
}


@dataclass(frozen=True)
class Roots:
    """Where results are looked for."""

    experiments: Path
    bench: Path


def readmes(root: Path) -> Iterator[Path]:
    """Every README.md of the tree, without what is built, fetched or hidden."""
    for folder, subfolders, files in os.walk(root):
        here = Path(folder)
        built = BUILT if here == root else ()
        subfolders[:] = sorted(s for s in subfolders if s[0] != "." and s not in built)
        if "README.md" in files:
            yield here / "README.md"


def rewritten(path: Path, text: str, roots: Roots) -> tuple[str, list[str]]:
    """The text with fresh tables, and the marks whose tables were stale."""
    output: list[str] = []
    stale: list[str] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for at, line in lines:
        output.append(line)
        mark = OPEN.fullmatch(line.strip())
        if mark is None:
            continue
        old = []
        for _, inner in lines:
            if inner.strip() == CLOSE:
                break
            if OPEN.fullmatch(inner.strip()):
                raise InputError(f"{path}: line {at}: the table has no {CLOSE}")
            old.append(inner)
        else:
            raise InputError(f"{path}: line {at}: the table has no {CLOSE}")
        try:
            new = table(mark[1].split(), roots)
        except InputError as error:
            raise InputError(f"{path}: line {at}: {error}") from error
        if new != old:
            stale.append(mark[1].strip())
        output += [*new, CLOSE]
    return "\n".join(output) + "\n" * text.endswith("\n"), stale


def table(words: Sequence[str], roots: Roots) -> list[str]:
    """The lines between the marks; a blank line keeps Markdown from joining them."""
    match words:
        case ["claims", paper, preset]:
            return ["", *claims_table(roots.experiments, paper, preset), ""]
        case ["verdicts", preset]:
            return ["", *verdicts_table(roots.experiments, preset), ""]
        case ["bench", paper]:
            return ["", *bench_tables(roots.bench, paper), ""]
        case ["bench", paper, "if", "measured"] if paper.endswith(","):
            if not any(roots.bench.glob(f"*/{paper[:-1]}.json")):
                return ["", "Not measured yet.", ""]
            return ["", *bench_tables(roots.bench, paper[:-1]), ""]
        case ["values", paper, preset, name]:
            return ["", *values_table(roots.experiments, paper, preset, name), ""]
    raise InputError(
        f"unknown table {brief(' '.join(words))}: claims PAPER PRESET, verdicts PRESET, "
        "bench PAPER or values PAPER PRESET NAME is required"
    )


def claims_table(experiments: Path, paper: str, preset: str) -> list[str]:
    result = read_result(experiments / folder_of(paper) / "results" / f"{preset}.json")
    rows = [
        [
            claim.id,
            claim.statement,
            format_value(claim.published, digits=15),
            format_measured(claim),
            format_criterion(claim),
            claim.verdict,
            claim.why,
        ]
        for claim in result.claims
    ]
    return markdown(["id", "claim", "published", "ours", "criterion", "verdict", "why"], rows)


def values_table(experiments: Path, paper: str, preset: str, name: str) -> list[str]:
    """A declared table: published values beside the committed ones."""
    folder = experiments / folder_of(paper)
    config = folder / "config.json"
    declared = {table.name: table for table in read_tables(config, read_object(config))}
    if name not in declared:
        raise InputError(f"{config}: no table {brief(name)}{suggestion(name, declared)}")
    result = read_result(folder / "results" / f"{preset}.json")
    table = filled(declared[name], result)
    return markdown(table.heads(), table.rows(result))


def verdicts_table(experiments: Path, preset: str) -> list[str]:
    """How the claims of each paper stand, and which fail."""
    verdicts = ("holds", "fails", "not tested at this scale")
    rows = []
    for path in sorted(experiments.glob(f"*/results/{preset}.json")):
        result = read_result(path)
        by_verdict = {v: [c.id for c in result.claims if c.verdict == v] for v in verdicts}
        counts = [str(len(by_verdict[verdict])) for verdict in verdicts]
        rows.append([result.paper, *counts, ", ".join(by_verdict["fails"])])
    return markdown(["paper", *verdicts, "that fail"], rows)


def bench_tables(bench: Path, paper: str) -> list[str]:
    """One table for each machine that has measured the paper."""
    paths = sorted(bench.glob(f"*/{paper}.json"))
    if not paths:
        raise InputError(f"{bench}/<machine>/{paper}.json: no such file")
    blocks = [bench_table(path) for path in paths]
    return [line for i, block in enumerate(blocks) for line in ([""] if i else []) + block]


def bench_table(path: Path) -> list[str]:
    value = read_object(path)
    rows = value.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: rows must be a list of objects")
    facts = [value.get(key) for key in ("cpu", "commit", "date")]
    where = ", ".join(
        escaped(f"{label}{fact}")
        for label, fact in zip(("", "commit ", ""), facts, strict=True)
        if fact
    )
    title = f"Machine {escaped(str(value.get('machine') or path.parent.name))}"
    lines = [f"{title}: {where}." if where else f"{title}."]
    if note := value.get("note"):
        lines += ["", escaped(str(note))]
    groups = [(name, list(group)) for name, group in groupby(rows, lambda row: row.get("table"))]
    for name, group in groups or [(None, [])]:
        lines += ["", f"{escaped(str(name)).capitalize()}:"] if name else []
        lines += ["", *bench_rows(group)]
    return lines


def bench_rows(rows: Sequence[dict[str, object]]) -> list[str]:
    """A table with the columns that any of the rows has."""
    present = [key for key in BENCH_COLUMNS if any(key in row for row in rows)]
    heads = [BENCH_COLUMNS[key] for key in present]
    return markdown(heads, [[bench_cell(key, row.get(key)) for key in present] for row in rows])


def bench_cell(key: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {bench_cell('share', part)}" for name, part in value.items())
    measured = number(value)
    if measured is None or key == "case":
        return format_value(value)
    if key == "share" or "share_of_" in key:
        return f"{100 * measured:.0f} %"
    if key == "share_target":
        return f">= {100 * measured:.0f} %"
    if key == "spread_percent":
        return f"{measured:.0f} %"
    if key in ("ratio", "wall_ratio", "other_ratio", "ideal_ratio"):
        return f"{measured:.3g}x"
    if key in ("target", "other_target"):
        return f">= {format_value(value)}x"
    return format_value(value, digits=3)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    lines += [" | ".join(escaped(cell) or "-" for cell in row) for row in rows]
    return [f"| {line} |" for line in lines]


def escaped(text: str) -> str:
    """One line that Markdown prints as it stands."""
    text = re.sub(r"([\\`*|])", r"\\\1", one_line(text))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def process(root: Path, check: bool) -> list[str]:
    """Rewrites, or with `check` only compares; one line for each stale table."""
    roots = Roots(root / "experiments", root / "bench" / "results")
    found = []
    for path in readmes(root):
        text = path.read_text(encoding="utf-8")
        fresh, stale = rewritten(path, text, roots)
        found += [f"{path.relative_to(root)}: table {brief(mark)}" for mark in stale]
        if stale and not check:
            write_whole(path, fresh.encode())
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tables.py", description="Rewrites the READMEs' tables.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[2], help="the checkout to work on"
    )
    options = parser.parse_args(arguments)
    try:
        found = process(options.root, options.check)
    except (InputError, OSError) as error:
        print(f"tables: {describe(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.check and found:
        advice = "stale, run ./paperlab report --tables"
        print(f"tables: {'; '.join(found)}: {advice}", file=sys.stderr)
        return 1
    for line in found:
        print(f"{line}: rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
