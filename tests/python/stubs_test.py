"""The committed stub of the compiled core is what pybind11-stubgen makes of it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_stub_is_up_to_date(run_python, tmp_path):
    pytest.importorskip("pybind11_stubgen")
    run = run_python(["-m", "pybind11_stubgen", "paperlab._core", "-o", str(tmp_path)])
    assert run.returncode == 0, run.stderr
    generated = (tmp_path / "paperlab/_core.pyi").read_text(encoding="utf-8")
    committed = (ROOT / "bindings/python/paperlab/_core.pyi").read_text(encoding="utf-8")
    assert generated == committed, (
        "python -m pybind11_stubgen paperlab._core -o DIR, then copy it to bindings/python/paperlab"
    )
