"""The benchmark of the CUDA kernels on the CPU with tiny shapes: cases, gates, columns."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench" / "cuda_bench.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench") / "cuda.json"
    done = run("--device", "cpu", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_every_case_passes_its_gate_and_is_timed(result: dict[str, Any]) -> None:
    tables = {row["table"] for row in result["rows"]}
    assert len(tables) == 8
    for row in result["rows"]:
        assert "wrong" not in row
        assert row["ours_us"] > 0 and row["baseline_us"] > 0
        assert row["baseline_backend"] in row["baselines_us"]
        assert row["same_bits"]
        assert ("tflops" in row) != ("gb_s" in row)
        assert row["repetitions"] >= 2
    assert result["copy_roof_gb_s"] > 0 and result["matmul_roof_tflops"] > 0
    assert "8192^3" in result["note"]


def test_the_rows_make_a_table_of_a_readme(result: dict[str, Any], tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "experiments" / "common"))
    import tables

    folder = tmp_path / "nvidia-stub"
    folder.mkdir()
    (folder / "cuda.json").write_text(json.dumps(result))
    text = "\n".join(tables.bench_tables(tmp_path, "cuda"))
    assert "TFLOP/s" in text and "share of copy roof" in text


def test_without_a_gpu_it_is_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run("--out", str(tmp_path / "cuda.json"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "GPU" in done.stderr


def test_operators_that_leave_their_work_to_libtorch_are_seen(
    capfd: pytest.CaptureFixture[str],
) -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    import cuda_bench

    notice = (
        "[W route.cpp:40] Warning: paperlab::rope: CUDA tensors are left to LibTorch's operations"
    )
    with cuda_bench.native_stderr() as texts:
        os.write(2, notice.encode())  # as C++ does it
    assert cuda_bench.operators_without_kernel(texts[0]) == {"rope"}
    assert "left to LibTorch" in capfd.readouterr().err
    assert cuda_bench.operators_without_kernel("nothing") == set()
