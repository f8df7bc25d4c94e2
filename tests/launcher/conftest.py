"""Fixtures of the launcher's tests: copies of the launcher over stubs."""

import os
import shutil
from pathlib import Path

import pytest
from stub_checkout import CORPORA, FIGURES, REPORT, ROOT, STUBS, Checkout, write_script


@pytest.fixture
def bare(tmp_path: Path) -> Checkout:
    """Launcher and stubs on a machine where nothing was set up."""
    root = tmp_path / "check out"  # paths with spaces work
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__py*"))
    shutil.copy(ROOT / "paperlab", root / "paperlab")
    (root / "CMakePresets.json").write_text("{}", encoding="utf-8")
    for name, text in STUBS.items():
        write_script(root / "stubs" / name, text)
    keep = {key: value for key, value in os.environ.items() if not key.startswith("PAPERLAB_")}
    path = f"{root / 'stubs'}:{os.environ['PATH']}"
    return Checkout(root, keep | {"PATH": path, "STUB_LOG": str(root / "stub.log")})


@pytest.fixture
def checkout(bare: Checkout) -> Checkout:
    """A checkout with two papers where everything but the build is done."""
    common = bare.root / "experiments/common"
    common.mkdir(parents=True)
    (common / "corpora.py").write_text(CORPORA, encoding="utf-8")
    (common / "figures.py").write_text(FIGURES, encoding="utf-8")
    (common / "report.py").write_text(REPORT, encoding="utf-8")
    bare.add_paper("slow-paper", expected_seconds=100)
    bare.add_paper("zippy", expected_seconds=1)
    bare.fake_environment()
    return bare
