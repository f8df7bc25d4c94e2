"""The checks of lint find what they look for."""

import subprocess
import sys
from pathlib import Path

import pytest
from stub_checkout import ROOT

FILES = {
    "libpaperlab/paperlab/core/error.h": "#pragma once\n// Errors.\n",
    "libpaperlab/paperlab/mudd/decoder.h": "#pragma once\n// Decoder.\n",
    "libpaperlab/paperlab/cca/group.h": "#pragma once\n// Groups.\n",
    "libpaperlab/paperlab/ops/fold.h": "#pragma once\n// Fold.\n",
    "kernels/common/view.h": "#pragma once\n// Views.\n",
    "kernels/fold/fold.h": "#pragma once\n// Fold.\n",
    "kernels/loop/loop.h": "#pragma once\n// Loop.\n",
    "experiments/common/run.h": "#pragma once\n// Runs.\n",
    "experiments/mudd/main.cpp": "int main() {}\n",
    "tests/support/nan_fill.h": "#pragma once\n// NaN.\n",
}

ALLOWED = [
    ("kernels/fold/cpu.cpp", '"kernels/fold/fold.h"'),
    ("kernels/fold/cpu.cpp", '"kernels/common/view.h"'),
    ("kernels/fold/cpu.cpp", '"paperlab/core/error.h"'),
    ("libpaperlab/paperlab/ops/fold.cpp", '"kernels/fold/fold.h"'),
    ("libpaperlab/paperlab/ops/fold.cpp", "<torch/library.h>"),
    ("libpaperlab/paperlab/mudd/decoder.cpp", '"paperlab/ops/fold.h"'),
    ("bindings/src/mudd.cpp", "<pybind11/pybind11.h>"),
    ("bindings/src/mudd.cpp", '"paperlab/mudd/decoder.h"'),
    ("bench/mudd_bench.cpp", '"tests/support/nan_fill.h"'),
    ("tests/experiments/run_test.cpp", '"experiments/common/run.h"'),
]

REFUSED = [
    ("kernels/fold/cpu.cpp", "<ATen/core/Tensor.h>", "knows nothing of LibTorch"),
    ("kernels/fold/cpu.cpp", "<Python.h>", "only bindings/ knows Python"),
    ("kernels/fold/cpu.cpp", "<omp.h>", "knows nothing of OpenMP"),
    ("kernels/fold/cpu.cpp", '"kernels/loop/loop.h"', "its own folder"),
    ("kernels/common/view.cpp", '"kernels/loop/loop.h"', "knows none"),
    ("kernels/fold/cpu.cpp", '"paperlab/ops/fold.h"', "kernels may include core"),
    ("libpaperlab/paperlab/core/json.cpp", '"kernels/fold/fold.h"', "may include nothing"),
    ("libpaperlab/paperlab/core/json.cpp", "<torch/library.h>", "knows nothing of LibTorch"),
    ("libpaperlab/paperlab/ops/fold.cpp", "<torch/torch.h>", "half a minute"),
    ("bindings/src/mudd.cpp", "<torch/extension.h>", "half a minute"),
    ("libpaperlab/paperlab/ops/fold.cpp", "<pybind11/pybind11.h>", "only bindings/"),
    ("libpaperlab/paperlab/ops/fold.cpp", '"paperlab/mudd/decoder.h"', "ops may include"),
    ("libpaperlab/paperlab/mudd/decoder.cpp", '"paperlab/cca/group.h"', "mudd may include"),
    ("libpaperlab/paperlab/mudd/decoder.cpp", '"experiments/common/run.h"', "mudd may include"),
    ("experiments/cca/main.cpp", '"experiments/mudd/main.cpp"', "nothing includes a driver"),
    ("tests/experiments/mudd_test.cpp", '"experiments/mudd/main.cpp"', "nothing includes a driver"),
    ("bench/mudd_bench.cpp", '"experiments/common/run.h"', "bench may not include experiments"),
]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("file", "header", "reason"), REFUSED)
def test_a_planted_include_is_found(tmp_path: Path, file: str, header: str, reason: str) -> None:
    write(tmp_path, {**FILES, file: f"\n#include {header}\n"})
    checked = run("check_includes.py", "--root", tmp_path)
    assert checked.returncode == 1
    assert checked.stdout.startswith(f"{file}:2: ") and reason in checked.stdout


def test_allowed_includes_pass(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    lines: dict[str, str] = {}
    for file, header in ALLOWED:
        lines[file] = lines.get(file, "") + f"#include {header}\n"
    write(tmp_path, lines)
    checked = run("check_includes.py", "--root", tmp_path)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize(
    ("check", "name", "text"),
    [
        ("headers", "a.h", "// Late.\n#pragma once\n"),
        ("headers", "a.h", "#pragma once\n\nint x;\n"),
        ("words", "a.cpp", "int x;  // TO" + "DO: later\n"),
        ("words", "a.md", "This is a place" + "holder.\n"),
        ("words", "a.py", "path = '/ho" + "me/someone/x'\n"),
        ("ascii", "a.cpp", "// na\u00efve\n"),
        ("sizes", "a.bin", "x" * ((1 << 20) + 1)),
        ("shell", "a.sh", "if true; then\n"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, check: str, name: str, text: str) -> None:
    write(tmp_path, {name: text})
    checked = run("check_sources.py", check, "--root", tmp_path)
    assert checked.returncode == 1
    assert checked.stdout.startswith(f"{name}:")


@pytest.mark.parametrize("check", ["headers", "words", "ascii", "sizes", "shell"])
def test_sound_files_pass(tmp_path: Path, check: str) -> None:
    write(tmp_path, {**FILES, "a.py": "x = 1\n", "a.sh": "true\n"})
    checked = run("check_sources.py", check, "--root", tmp_path)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_long_functions_are_listed_without_failing(tmp_path: Path) -> None:
    body = "  f();\n" * 70
    write(tmp_path, {"a.cpp": f"void long_one() {{\n{body}}}\n", "b.py": "x = 1\n" * 401})
    checked = run("check_sources.py", "long", "--root", tmp_path)
    assert checked.returncode == 0
    assert "a.cpp:1: long_one has 72 lines" in checked.stdout
    assert "b.py:1: 401 lines" in checked.stdout
