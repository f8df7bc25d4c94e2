"""Drivers of the build tree as child processes, and their results without times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("PAPERLAB_BUILD_DIR") or ROOT / "build" / "release")
CACHE = BUILD / "test-cache"  # tokens of the sample

sys.path.insert(0, str(ROOT / "experiments" / "common"))


def _claim(number: int) -> dict[str, Any]:
    return {
        "id": f"C{number}",
        "statement": "The sum is positive",
        "source": "made up",
        "published": None,
        "relation": ">",
        "bound": 0,
    }


FIXTURE_CONFIG: dict[str, Any] = {
    "paper": {"name": "fixture-driver", "title": "Waves"},
    "scale": 1.5,
    "presets": {
        "smoke": {"rows": ["F1"], "row_ms": 20},
        "small": {"rows": ["F1", "F2", "F3", "F4"]},
    },
    "figures": [],
    "claims": [_claim(number) for number in range(1, 5)],
}


@dataclass
class Driver:
    """One driver with the configuration and the preset that a test runs."""

    paper: str
    binary: Path
    config: Path
    preset: str
    options: list[str] = field(default_factory=list)  # in every call

    def command(self, out: Path, *arguments: str) -> list[str]:
        options = {"--config": self.config, "--preset": self.preset, "--out": out}
        words = [str(word) for option in options.items() for word in option]
        return [str(self.binary), *words, *self.options, *arguments]

    def start(self, out: Path, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(out, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )

    def expect_refused(self, out: Path, setting: str, message: str) -> None:
        """A setting ends it in one line, before any work."""
        done = self.run(out, "--set", setting)
        assert done.returncode == 2
        assert message in done.stderr and done.stderr.count("\n") == 1
        assert not out.exists()

    def run(
        self, out: Path, *arguments: str, before_exec: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(out, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_environment(),
            preexec_fn=before_exec,
            timeout=300,
            check=False,
        )

    def result_file(self, out: Path) -> Path:
        return out / self.paper / "result.json"

    def result(self, out: Path) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.result_file(out).read_text())
        return content

    def is_done(self, out: Path, row: str) -> bool:
        """Whether a run into `out` has finished the row."""
        return self.result_file(out).exists() and row in self.result(out)["environment"]["rows_s"]

    def timeless(self, out: Path) -> str:
        """The result's text without times: what must have the same bits in every run."""
        result = self.result(out)
        del result["environment"]
        return json.dumps(_without_times(result), sort_keys=True)


def fixture_driver(folder: Path) -> Driver:
    """The driver of fixture_driver.cpp with a config file in `folder`."""
    config = folder / "config.json"
    config.write_text(json.dumps(FIXTURE_CONFIG, indent=1))
    return Driver("fixture-driver", BUILD / "bin" / "fixture_driver", config, "small")


def paper_driver(paper: str) -> Driver:
    """The driver of a paper in its smoke preset, with the texts that it needs."""
    import corpora

    config = ROOT / "experiments" / paper.replace("-", "_") / "config.json"
    driver = Driver(paper, BUILD / "bin" / paper, config, "smoke")
    names = corpora.needed(driver.command(BUILD / "no-results"))
    driver.options = corpora.options_for(names, CACHE)
    return driver


def leftovers(out: Path) -> list[Path]:
    return list(out.rglob("*.tmp"))


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PAPERLAB_")}


def _is_time(key: str) -> bool:
    return key == "seconds" or key.endswith(("_s", "_seconds"))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if not _is_time(key)}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value
