"""Joins what the parts of gpu-check left in a folder into one JSON: join_gpu_check.py FOLDER.

FOLDER/plan.json names the parts; a part that has begun has NAME.part.json (outcome, seconds), and
what it wrote: NAME.log, or NAME.json for a benchmark. Any folder can be joined at any time.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

Json = dict[str, Any]

# "    2/12 Test  #7: name ........   Passed    0.01 sec", "...***Failed  0.01 sec",
# "...***Exception: SegFault  0.01 sec", "...Subprocess aborted***Exception:   0.01 sec"
CTEST = re.compile(
    r"^\s*\d+/\d+ Test\s+#\d+: (\S+) \.*\s*(?:.*\*\*\*)?(\w+)(?::(?: \w+)?)?\s+([\d.]+) sec"
)
# "[       OK ] Suite.Name (12 ms)" and "[  FAILED  ] Suite.Name (12 ms)"
GTEST = re.compile(r"^\[\s+(OK|FAILED|SKIPPED)\s+\] (\S+)(?: \((\d+) ms\))?\s*$")
PYTEST = re.compile(r"^(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
# "========= ERROR SUMMARY: 3 errors", "========= RACECHECK SUMMARY: 1 hazard displayed (...)"
SANITIZER = re.compile(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)")


def test_results(log: str) -> list[Json]:
    """Name, outcome and seconds of each test of a ctest log."""
    matches = filter(None, map(CTEST.match, log.splitlines()))
    return [{"name": m[1], "outcome": m[2], "seconds": float(m[3])} for m in matches]


def pytest_results(log: str) -> list[Json]:
    """Name and outcome of each test of the log of pytest -v."""
    matches = filter(None, map(PYTEST.match, log.splitlines()))
    return [{"name": m[1], "outcome": m[2].capitalize()} for m in matches]


def doubt(reads: str, log: str) -> str:
    """Why a part whose exit code is 0 has not passed: its tests did not all run. Else nothing."""
    if reads == "ctest":
        return "tests were skipped" if "Skipped)" in log else ""
    if reads != "pytest":
        return ""
    outcomes = {test["outcome"] for test in pytest_results(log)}
    if not outcomes:
        return "no tests ran"
    return "" if outcomes == {"Passed"} else "tests were skipped"


def sanitizer_results(log: str) -> Json:
    """What a tool of compute-sanitizer found, and the tests that it saw to their end."""
    lines = log.splitlines()
    tests = {m[2]: m[1] for m in filter(None, map(GTEST.match, lines)) if m[3] is not None}
    counts = [int(m[1]) for m in filter(None, map(SANITIZER.match, lines))]
    return {
        "errors": sum(counts) if counts else None,  # none: it was stopped before it could say
        "tests": [name for name, outcome in tests.items() if outcome == "OK"],
        "failed": [name for name, outcome in tests.items() if outcome == "FAILED"],
    }


def read_json(path: Path) -> Any:
    """The JSON of a file, or nothing if it is absent or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def outcome_of(parts: list[Json]) -> str:
    """passed: all parts that are required passed. incomplete: some did not end, none failed."""
    required = [part["outcome"] for part in parts if part.get("required")]
    if "failed" in required:
        return "failed"
    return "passed" if all(outcome == "passed" for outcome in required) else "incomplete"


def join(folder: Path) -> Json:
    plan: Json = read_json(folder / "plan.json") or {"parts": []}
    report: Json = {"outcome": "", **{k: v for k, v in plan.items() if k != "parts"}}
    report |= {"machine": None, "parts": [], "tests": [], "sanitizers": {}, "benchmarks": {}}
    for planned in plan["parts"]:
        name, reads = planned["name"], planned["reads"]
        part = read_json(folder / f"{name}.part.json") or {"outcome": "not run"}
        report["parts"].append(planned | part)
        log = folder / f"{name}.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        if reads == "machine":
            report["machine"] = read_json(log)
        elif reads == "ctest":
            report["tests"] += test_results(text)
        elif reads == "pytest":
            report["tests"] += pytest_results(text)
        elif reads == "sanitizer" and text:
            report["sanitizers"][name] = sanitizer_results(text)
        elif reads == "bench" and (found := read_json(folder / f"{name}.json")) is not None:
            report["benchmarks"][name] = found
    report["outcome"] = outcome_of(report["parts"])
    return report


def bench_file(report: Json) -> Json | None:
    """The rows of all benchmarks as one file of bench/results/<machine>/, if there are any."""
    found = list(report["benchmarks"].values())
    if not found:
        return None
    rows = [row for each in found for row in each.get("rows", [])]
    return {key: value for key, value in found[0].items() if key != "rows"} | {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(json.dumps(join(parser.parse_args().folder), indent=2))


if __name__ == "__main__":
    main()
