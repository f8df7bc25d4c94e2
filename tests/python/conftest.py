"""Running Python code in a process of its own, with the package that is under test."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import paperlab
import pytest
from fake_archive import archive  # noqa: F401, a fixture
from train_command_cases import train_cache, train_thread, write_config  # noqa: F401, fixtures

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def package_path() -> Path:
    """The folder from which paperlab was imported."""
    return Path(paperlab.__file__).parent.parent


@pytest.fixture
def run_python(package_path: Path) -> Run:
    """run_python("code" or [arguments], env): the finished process, its output as text."""

    def run(
        what: str | list[str], env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        arguments = ["-c", what] if isinstance(what, str) else what
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(package_path), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run
