"""Prints the papers' names, one a line, cheapest first in the given preset: papers.py PRESET."""

import json
import math
import sys
from pathlib import Path


def expected_seconds(config_file: Path, preset: str) -> float:
    """The preset's expected time; a file that cannot be read comes last: its driver says why."""
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        return float(config["presets"][preset]["expected_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf


def main() -> None:
    preset = sys.argv[1]
    experiments = Path(__file__).resolve().parent.parent / "experiments"
    configs = sorted(experiments.glob("*/config.json"))
    configs.sort(key=lambda config: expected_seconds(config, preset))
    for config in configs:
        print(config.parent.name.replace("_", "-"))


if __name__ == "__main__":
    main()
