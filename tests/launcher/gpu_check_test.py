"""./paperlab gpu-check: without a GPU, and with stubs in the place of one."""

import json
import sys

import pytest
from stub_checkout import Checkout, one_line, write_script

CTEST = """
echo '    1/2 Test  #7: FoldTest.OnDevice .........   Passed    0.51 sec'
[[ ! -v SKIP ]] || echo '    2/2 Test  #8: LoopTest.OnDevice .........***Skipped   0.01 sec'
[[ ! -v SKIP ]] || echo '  8 - LoopTest.OnDevice (Skipped)'
"""
SANITIZER = """
echo '[       OK ] GpuFoldTest.OnDevice (12 ms)'
echo "========= ERROR SUMMARY: ${ERRORS:-0} errors"
[[ ! -v ERRORS ]] || exit 9
"""
BENCH = """
import json, os, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert float(options["--seconds"]) > 0
if os.environ.get("BENCH_FAILS") == options["--only"]:
    sys.exit(3)
result = {"machine": "nvidia-stub", "rows": [{"case": options["--only"], "ratio": 2.5}]}
json.dump(result, open(options["--out"], "w"))
"""


@pytest.fixture
def gpu_machine(checkout: Checkout) -> Checkout:
    """A machine without network: .deps, and an active python3 whose torch is new enough."""
    torch = checkout.root / "site/torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text("__version__ = '2.11.0'\n")
    (torch / "__init__.py").write_text("")
    include = checkout.root / ".deps/usr/include/python3.12"
    include.mkdir(parents=True)
    (include / "Python.h").write_text("")
    site = checkout.root / "site"
    write_script(checkout.stubs / "python3", f'PYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    write_script(checkout.stubs / "nvidia-smi", "echo 'GPU 0: stub'\n")
    write_script(checkout.stubs / "ctest", CTEST)
    write_script(checkout.stubs / "compute-sanitizer", SANITIZER)
    (checkout.root / "bench").mkdir()
    (checkout.root / "bench/cuda_bench.py").write_text(BENCH)
    (checkout.root / "bench/cuda_warm.py").write_text("")
    return checkout


def report_of(machine: Checkout, folder: str = "results/gpu-check"):
    return json.loads((machine.root / folder / "gpu-check.json").read_text())


def outcomes(report) -> dict[str, str]:
    return {part["name"]: part["outcome"] for part in report["parts"]}


def test_without_a_gpu_it_is_one_line(checkout: Checkout) -> None:
    write_script(checkout.stubs / "nvidia-smi", "exit 9\n")
    run = checkout.run("gpu-check")
    if run.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert run.returncode == 1
    assert one_line(run.stderr) and "GPU" in run.stderr


def test_a_dry_run_needs_no_gpu(checkout: Checkout) -> None:
    write_script(checkout.stubs / "nvidia-smi", "exit 9\n")
    run = checkout.run("gpu-check", "--dry-run")
    assert run.returncode == 0, run.stderr
    names = [line.split()[-1] for line in run.stdout.splitlines()]
    assert names[:2] == ["warm", "build"] and names[3] == "tests" and "gemm" in names
    assert not (checkout.root / "results").exists()


def test_deps_stand_for_apt_and_pip(gpu_machine: Checkout) -> None:
    run = gpu_machine.run("gpu-check", "--out", "checked")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "checked/gpu-check.json"
    report = report_of(gpu_machine, "checked")
    assert report["outcome"] == "passed"
    found = outcomes(report)
    assert found.pop("warm") in {"passed", "stopped"}  # nothing waits for it
    assert set(found.values()) == {"passed"}
    assert report["tests"] == [{"name": "FoldTest.OnDevice", "outcome": "Passed", "seconds": 0.51}]
    assert report["sanitizers"]["memcheck"]["errors"] == 0
    assert report["sanitizers"]["racecheck"]["tests"] == ["GpuFoldTest.OnDevice"]
    assert report["benchmarks"]["gemm"]["rows"] == [{"case": "gemm", "ratio": 2.5}]
    assert report["machine"]["torch"] == "2.11.0"
    rows = json.loads((gpu_machine.root / "checked/cuda.json").read_text())["rows"]
    assert [row["case"] for row in rows] == list(report["benchmarks"])
    assert len(list((gpu_machine.root / "checked").rglob("*"))) <= 8
    assert (
        f"-DPython3_INCLUDE_DIR={gpu_machine.root}/.deps/usr/include/python3.12" in gpu_machine.log
    )


@pytest.mark.parametrize(
    ("fault", "part"), [({"SKIP": "1"}, "tests"), ({"ERRORS": "2"}, "memcheck")]
)
def test_a_skipped_test_or_an_error_of_a_sanitizer_fails(
    gpu_machine: Checkout, fault: dict[str, str], part: str
) -> None:
    run = gpu_machine.run("gpu-check", env=fault)
    assert run.returncode == 1
    assert "gpu-check.json" in run.stderr.splitlines()[-1]
    report = report_of(gpu_machine)
    assert report["outcome"] == "failed"
    assert outcomes(report)[part] == "failed"
    assert outcomes(report)["rows"] == "passed"  # the others are not held up


def test_a_failed_benchmark_is_told_and_holds_nothing_up(gpu_machine: Checkout) -> None:
    run = gpu_machine.run("gpu-check", env={"BENCH_FAILS": "gemm"})
    assert run.returncode == 0, run.stderr
    report = report_of(gpu_machine)
    assert outcomes(report)["gemm"] == "failed"
    assert "gemm" not in report["benchmarks"] and "rows" in report["benchmarks"]


def test_a_failed_build_ends_it_with_a_report(gpu_machine: Checkout) -> None:
    run = gpu_machine.run("gpu-check", env={"STUB_BUILD_FAILS": "1"})
    assert run.returncode == 1
    found = outcomes(report_of(gpu_machine))
    assert found.pop("warm") in {"passed", "stopped"}
    assert found.pop("build") == "failed"
    assert set(found.values()) == {"not run"}
    assert "no such header" in (gpu_machine.root / "results/gpu-check/gpu-check.log").read_text()


def test_what_cannot_be_configured_is_told_in_the_report(gpu_machine: Checkout) -> None:
    run = gpu_machine.run("gpu-check", env={"STUB_CONFIGURE_FAILS": "1"})
    assert run.returncode == 1
    report = report_of(gpu_machine)
    assert report["outcome"] == "failed" and outcomes(report) == {"configure": "failed"}


def test_the_limit_is_a_number(checkout: Checkout) -> None:
    run = checkout.run("gpu-check", "--limit", "9m")
    assert run.returncode == 2
    assert one_line(run.stderr)
