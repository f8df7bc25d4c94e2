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
BENCH = """echo table; [[ ! -v BENCH_FAILS ]] || exit 3; echo '{"speed": 2.5}' >"$2"\n"""


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
    write_script(checkout.root / "build/cuda/bin/fold_bench", BENCH)
    return checkout


def test_without_a_gpu_it_is_one_line(checkout: Checkout) -> None:
    write_script(checkout.stubs / "nvidia-smi", "exit 9\n")
    run = checkout.run("gpu-check")
    if run.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert run.returncode == 1
    assert one_line(run.stderr) and "GPU" in run.stderr


def test_deps_stand_for_apt_and_pip(gpu_machine: Checkout) -> None:
    run = gpu_machine.run("gpu-check", "--out", "checked")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "checked/gpu-check.json"
    report = json.loads((gpu_machine.root / "checked/gpu-check.json").read_text())
    assert report["tests"] == [{"name": "FoldTest.OnDevice", "outcome": "Passed", "seconds": 0.51}]
    assert report["benchmarks"] == {"fold": {"speed": 2.5}}
    assert report["machine"]["torch"] == "2.11.0"
    assert len(list((gpu_machine.root / "checked").rglob("*"))) <= 8
    assert (
        f"-DPython3_INCLUDE_DIR={gpu_machine.root}/.deps/usr/include/python3.12" in gpu_machine.log
    )


@pytest.mark.parametrize(
    ("fault", "message"), [("SKIP", "failed or were skipped"), ("BENCH_FAILS", "failed: fold")]
)
def test_a_skipped_test_or_a_failed_benchmark_fails(
    gpu_machine: Checkout, fault: str, message: str
) -> None:
    run = gpu_machine.run("gpu-check", env={fault: "1"})
    assert run.returncode == 1
    assert message in run.stderr.splitlines()[-1]
    assert (gpu_machine.root / "results/gpu-check/gpu-check.json").exists()
