"""Joins what gpu-check measured into one JSON on stdout: machine, tests, benchmarks."""

import argparse
import json
import re
from pathlib import Path

# "    2/12 Test  #7: name ........   Passed    0.01 sec"
RESULT = re.compile(r"^\s*\d+/\d+ Test\s+#\d+: (\S+) \.*\s*(?:\*\*\*)?(\w+)\s+([\d.]+) sec")


def test_results(log: str) -> list[dict[str, str | float]]:
    """Name, outcome and seconds of each test of a ctest log."""
    matches = filter(None, map(RESULT.match, log.splitlines()))
    return [{"name": m[1], "outcome": m[2], "seconds": float(m[3])} for m in matches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", required=True, choices=["passed", "failed"])
    parser.add_argument("--log", required=True, type=Path)
    parser.add_argument("parts", type=Path, help="folder with machine and a JSON per benchmark")
    arguments = parser.parse_args()
    log = arguments.log.read_text(encoding="utf-8", errors="replace")
    benchmarks = {
        part.stem: json.loads(part.read_text(encoding="utf-8"))
        for part in sorted(arguments.parts.glob("*.json"))
    }
    report = {
        "machine": json.loads((arguments.parts / "machine").read_text(encoding="utf-8")),
        "outcome": arguments.tests,
        "tests": test_results(log),
        "benchmarks": benchmarks,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
