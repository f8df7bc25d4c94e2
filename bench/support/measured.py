"""What the benchmarks in Python have in common: times that take turns, the machine, the file."""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]

NOISY_PERCENT = 20.0


@dataclass
class Times:
    """Of one step of a contestant, in microseconds."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def median(self) -> float:
        return statistics.median(self.wall)

    def cpu_median(self) -> float:
        return statistics.median(self.cpu)

    def spread_percent(self) -> float:
        return spread_percent(self.wall)

    def cpu_spread_percent(self) -> float:
        return spread_percent(self.cpu)


def spread_percent(values: Sequence[float]) -> float:
    """Between the 10th and the 90th percentile, as a share of the median."""
    tenths = sorted(values)
    low, high = tenths[len(tenths) // 10], tenths[-1 - len(tenths) // 10]
    return 100.0 * (high - low) / statistics.median(values)


def threads_text(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def machine_and_roofs(program: str, machine: str) -> Row:
    """What roofs_bench finds: the beginning of a benchmark's file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "roofs.json"
        words = [program, "--out", str(out), "--machine", machine]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        found: Row = json.loads(out.read_text())
    return found


def write_result(path: Path, result: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(path)
