"""The launcher of nvcc: ptxas's performance messages, spills and budgets are errors."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MESSAGE = (
    "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
    "serialized due to insufficient register resources for the wgmma pipeline in function 'f'"
)

# As ptxas prints it, for a kernel of an anonymous namespace and an instance of a template.
UNNAMED = "_GLOBAL__N__d0c2a5f5_7_cuda_cu_5f3a11fa"
FOLD = f"_ZN8paperlab7kernels{len(UNNAMED)}{UNNAMED}11fold_kernelENS1_6LaunchE"

TILE = "_ZN8paperlab7kernels11tile_kernelIfLi4ENS0_8BFloat16EEEvPT_i"


def resources(
    function: str,
    architecture: str = "sm_80",
    registers: int = 40,
    shared: int = 1024,
    stack: int = 0,
    spills: int = 0,
) -> str:
    used = f"Used {registers} registers, used 1 barriers"
    used += f", {shared} bytes smem" if shared else ""
    return f"""ptxas info    : Compiling entry function '{function}' for '{architecture}'
ptxas info    : Function properties for {function}
    {stack} bytes stack frame, {spills} bytes spill stores, {spills} bytes spill loads
ptxas info    : {used}, 400 bytes cmem[0], 24 bytes cmem[2]
ptxas info    : Compile time = 10.5 ms
"""


def compile_with(tmp_path: Path, message: str, source: str, status: int = 0):
    """Runs the launcher on a compiler that prints `message` and exits with `status`."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        f"#!/bin/bash\ncat <<'END' >&2\n{message}\nEND\n"
        f'while [ $# -gt 1 ]; do [ "$1" != -o ] || echo object >"$2"; shift; done\nexit {status}\n'
    )
    os.chmod(nvcc, 0o755)
    kernel = tmp_path / "kernel.cu"
    kernel.write_text(source)
    return subprocess.run(
        [
            str(ROOT / "scripts" / "nvcc_strict.sh"),
            *(str(nvcc), "-O3", "-c", str(kernel), "-o", str(tmp_path / "kernel.cu.o")),
        ],
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


def test_what_kernels_take_is_kept_beside_the_object_and_not_printed(tmp_path: Path) -> None:
    if shutil.which("c++filt") is None:
        pytest.skip("no c++filt, so names stay mangled")
    message = "ptxas info    : 0 bytes gmem\n" + resources(FOLD, registers=116, shared=36928)
    message += resources(FOLD, "sm_90a", 104) + resources(TILE, "sm_90a", 30, shared=0)
    result = compile_with(tmp_path, message + "a remark of nvcc", "")
    assert result.returncode == 0
    assert result.stderr == "a remark of nvcc\n"
    table = (tmp_path / "kernel.cu.o.resources").read_text().splitlines()
    assert table == [
        f"# {tmp_path}/kernel.cu",
        "fold_kernel\tsm_80\t116\t36928\t424\t0\t0",
        "fold_kernel\tsm_90a\t104\t1024\t424\t0\t0",
        "tile_kernel<float, 4, BFloat16>\tsm_90a\t30\t0\t424\t0\t0",
    ]


@pytest.mark.parametrize(
    ("use", "word", "allowed"),
    [
        ({"stack": 16}, "a stack frame of 16 bytes", "// ptxas-allow stack: a table of 4 numbers"),
        ({"stack": 16}, "a stack frame", "// ptxas-allow stack tile_kernel: a table"),
        ({"stack": 16}, "16", "// ptxas-allow stack tile_kernel<float, 4, BFloat16>: a table"),
        ({"spills": 8}, "16 bytes of spills", "// ptxas-allow spills: one in 1000 tiles"),
        (
            {"registers": 129},
            "129 registers",
            "// ptxas-budget tile_kernel: 129 registers, 0 bytes",
        ),
        (
            {"shared": 49153},
            "49153 bytes of shared memory",
            "// ptxas-budget tile_kernel: 40 registers, 49153 bytes",
        ),
    ],
)
def test_spills_and_passed_budgets_need_a_line_in_the_source(
    tmp_path: Path, use: dict[str, int], word: str, allowed: str
) -> None:
    if shutil.which("c++filt") is None:
        pytest.skip("no c++filt, so names stay mangled")
    message = resources(TILE, **({"shared": 0} | use))
    for source in ("", "// ptxas-allow stack other_kernel: a reason\n"):
        result = compile_with(tmp_path, message, source)
        assert result.returncode == 1
        assert word in result.stderr and "tile_kernel<float, 4, BFloat16>" in result.stderr
        assert not (tmp_path / "kernel.cu.o").exists()
    assert compile_with(tmp_path, message, f"{allowed}\n").returncode == 0
    assert (tmp_path / "kernel.cu.o").exists()


def test_a_declared_budget_may_be_smaller(tmp_path: Path) -> None:
    source = "// ptxas-budget tile_kernel: 32 registers, 0 bytes\n"
    result = compile_with(tmp_path, resources(TILE, registers=40, shared=0), source)
    assert result.returncode == (1 if shutil.which("c++filt") else 0)


def test_a_function_that_is_not_a_kernel_may_not_spill_either(tmp_path: Path) -> None:
    message = resources(TILE, shared=0) + (
        "ptxas info    : Function properties for _Z6helperf\n"
        "    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    )
    result = compile_with(tmp_path, message, "")
    assert result.returncode == 1
    assert "a stack frame of 32 bytes" in result.stderr
    assert compile_with(tmp_path, message, "// ptxas-allow stack: recursion\n").returncode == 0
    assert len((tmp_path / "kernel.cu.o.resources").read_text().splitlines()) == 2
