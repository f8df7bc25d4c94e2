"""The launcher of nvcc turns ptxas's performance messages into errors."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MESSAGE = (
    "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
    "serialized due to insufficient register resources for the wgmma pipeline in function 'f'"
)


def compile_with(tmp_path: Path, message: str, source: str, status: int = 0):
    """Runs the launcher on a compiler that prints `message` and exits with `status`."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f'#!/bin/bash\necho "{message}"\nexit {status}\n')
    os.chmod(nvcc, 0o755)
    kernel = tmp_path / "kernel.cu"
    kernel.write_text(source)
    return subprocess.run(
        [str(ROOT / "scripts" / "nvcc_strict.sh"), str(nvcc), "-O3", "-c", str(kernel)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_performance_message_fails_the_build(tmp_path: Path) -> None:
    result = compile_with(tmp_path, MESSAGE, "__global__ void f() {}\n")
    assert result.returncode == 1
    assert "C7510" in result.stderr
    assert "is not allowed there" in result.stderr


def test_a_message_is_allowed_with_a_reason(tmp_path: Path) -> None:
    source = "// ptxas-allow C7510: the pipeline has one stage on purpose\n"
    result = compile_with(tmp_path, MESSAGE, source)
    assert result.returncode == 0
    assert "C7510" in result.stderr


def test_a_reason_is_required(tmp_path: Path) -> None:
    assert compile_with(tmp_path, MESSAGE, "// ptxas-allow C7510:\n").returncode == 1


def test_another_code_stays_forbidden(tmp_path: Path) -> None:
    source = "// ptxas-allow C7508: no register cap is wanted\n"
    assert compile_with(tmp_path, MESSAGE, source).returncode == 1


def test_the_resource_report_passes(tmp_path: Path) -> None:
    message = "ptxas info    : Used 116 registers, used 1 barriers, 36928 bytes smem"
    assert compile_with(tmp_path, message, "").returncode == 0


def test_the_compilers_own_failure_is_kept(tmp_path: Path) -> None:
    result = compile_with(tmp_path, "error: no", "", status=3)
    assert result.returncode == 3
    assert "error: no" in result.stderr
