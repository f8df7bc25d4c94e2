"""The parts of gpu-check: their plan, their time, and JSON that is whole at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from stub_checkout import ROOT, wait_until

sys.path.insert(0, str(ROOT / "scripts"))

import join_gpu_check
import run_gpu_parts

Json = dict[str, Any]


def part(name: str, code: str = "", seconds: float = 20, **facts: object) -> Json:
    """A part that runs Python code; PARTS in it is the folder of the parts."""
    command = [sys.executable, "-S", "-c", code or "pass"]
    return {"name": name, "seconds": seconds, "command": command, "reads": "", **facts}


def start(tmp_path: Path, parts: list[Json], *options: str) -> subprocess.Popen[str]:
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    script = str(ROOT / "scripts/run_gpu_parts.py")
    words = ["--out", str(tmp_path / "out"), "--parts", str(tmp_path / "parts.json"), *options]
    return subprocess.Popen(
        [sys.executable, script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(tmp_path: Path, parts: list[Json], *options: str) -> tuple[int, Json]:
    process = start(tmp_path, parts, *options)
    _, errors = process.communicate(timeout=60)
    assert errors == ""
    return process.returncode, read(tmp_path)


def read(tmp_path: Path) -> Json:
    found: Json = json.loads((tmp_path / "out/gpu-check.json").read_text())
    return found


def outcomes(report: Mapping[str, Any]) -> list[str]:
    return [each["outcome"] for each in report["parts"]]


def test_the_plan_fits_the_limit_where_the_build_is_quick(tmp_path: Path) -> None:
    parts = run_gpu_parts.plan(tmp_path / "build", tmp_path, "python", 16)
    assert [p.name for p in parts][:4] == ["warm", "build", "machine", "tests"]
    assert parts[0].beside and not parts[0].required
    assert parts[1].stops and parts[1].required
    assert {"paperlab_run", "kernels_tests", "regular_language_tests"} <= set(parts[1].command)
    assert len({p.name for p in parts}) == len(parts)
    # A build of three minutes leaves time for everything.
    rest = sum(p.seconds for p in parts[2:])
    assert 180 + rest + run_gpu_parts.RESERVE_SECONDS <= run_gpu_parts.LIMIT + 60
    assert parts[1].seconds < run_gpu_parts.LIMIT / 2 + 1
    benchmarks = [p for p in parts if p.reads == "bench"]
    assert [p.name for p in benchmarks] == list(run_gpu_parts.BENCHMARKS)
    for each in benchmarks:  # a benchmark ends by itself before it is stopped
        seconds = float(each.command[each.command.index("--seconds") + 1])
        assert 0 < seconds < each.seconds
        assert not each.required


def test_the_python_tests_are_planned_for_the_tree_that_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {p.name: p for p in run_gpu_parts.plan(tmp_path, tmp_path, "python", 16)}
    names = list(parts)
    assert names.index("python_tests") == names.index("tests") + 1
    planned = parts["python_tests"]
    assert planned.required and planned.reads == "pytest" and planned.missing == ""
    assert planned.command[:3] == ("python", "-m", "pytest")
    assert f"pythonpath={tmp_path / 'python'}" in planned.command
    files = [word for word in planned.command if word.endswith("_test.py")]
    assert all((ROOT / file).is_file() for file in files)
    assert {ROOT / file for file in files} == set((ROOT / "tests/python").glob("gpu_*_test.py"))
    monkeypatch.setattr(run_gpu_parts.importlib.util, "find_spec", lambda name: None)
    without = run_gpu_parts.python_tests(tmp_path, "python")
    assert without.missing == "this Python has no pytest, numpy, torch"


PYTEST_LOG = "tests/python/gpu_a_test.py::test_b[x-cuda] {} [ 50%]"


@pytest.mark.parametrize(
    ("lines", "outcome", "why"),
    [
        (["PASSED"], "passed", None),
        (["PASSED", "SKIPPED (needs a GPU)"], "failed", "tests were skipped"),
        ([], "failed", "no tests ran"),
    ],
)
def test_python_tests_pass_if_all_ran(
    tmp_path: Path, lines: list[str], outcome: str, why: str | None
) -> None:
    code = f"print({chr(10).join(PYTEST_LOG.format(line) for line in lines)!r})"
    status, report = run(tmp_path, [part("python_tests", code, reads="pytest")])
    assert (status == 0) == (outcome == "passed")
    assert outcomes(report) == [outcome] and report["parts"][0].get("why") == why
    assert [test["outcome"] for test in report["tests"]] == [
        line.split()[0].capitalize() for line in lines
    ]


def test_a_part_that_cannot_run_here_says_so(tmp_path: Path) -> None:
    parts = [part("python_tests", missing="this Python has no pytest"), part("b")]
    status, report = run(tmp_path, parts)
    assert status == 1 and report["outcome"] == "incomplete"
    assert outcomes(report) == ["not run", "passed"]
    assert report["parts"][0]["why"] == "this Python has no pytest"


def test_parts_run_in_order_and_outcomes_are_joined(tmp_path: Path) -> None:
    bench = "import json; value = {'machine': 'm', 'rows': [{'case': 'a'}]};"
    bench += "json.dump(value, open('PARTS/b.json', 'w'))"
    log = "print('1/1 Test #7: Gpu.Fold ....   Passed    0.51 sec')"
    parts = [
        part("machine", 'print(\'{"gpu": "stub"}\')', reads="machine"),
        part("tests", log, reads="ctest"),
        part("optional", "raise SystemExit(3)", required=False),
        part("b", bench, reads="bench", required=False),
    ]
    status, report = run(tmp_path, parts)
    assert status == 0
    assert report["outcome"] == "passed"
    assert outcomes(report) == ["passed", "passed", "failed", "passed"]
    assert report["parts"][2]["status"] == 3
    assert report["machine"] == {"gpu": "stub"}
    assert report["tests"] == [{"name": "Gpu.Fold", "outcome": "Passed", "seconds": 0.51}]
    assert json.loads((tmp_path / "out/cuda.json").read_text()) == {
        "machine": "m",
        "rows": [{"case": "a"}],
    }
    assert "== tests" in (tmp_path / "out/gpu-check.log").read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "cuda.json",
        "gpu-check.json",
        "gpu-check.log",
    ]


def test_a_part_that_outlasts_its_time_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import subprocess, sys; print('began', flush=True);"
    child += "subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])"
    began = time.monotonic()
    status, report = run(tmp_path, [part("slow", child, seconds=3), part("next")])
    assert time.monotonic() - began < 20
    assert status == 1
    assert report["outcome"] == "incomplete"
    assert outcomes(report) == ["timed out", "passed"]
    assert report["parts"][0]["seconds"] == pytest.approx(3, abs=2)
    assert "began" in (tmp_path / "out/gpu-check.log").read_text()


def test_the_clock_starts_before_the_parts_and_no_part_begins_without_time(tmp_path: Path) -> None:
    began = str(time.time() - 90)
    sleep = "import time; time.sleep(60)"
    status, report = run(
        tmp_path, [part("a", sleep), part("b")], "--limit", "100", "--began", began
    )
    assert status == 1
    # 100 - 90 - 6 seconds in reserve: one part has 4, then less than the least is left.
    assert outcomes(report) == ["timed out", "not run"]
    assert report["parts"][0]["seconds"] < 6
    assert report["parts"][1]["why"] == "no time was left"
    assert report["seconds"] < 100


def test_what_needs_a_failed_part_is_left_out(tmp_path: Path) -> None:
    status, report = run(tmp_path, [part("build", "raise SystemExit(1)", stops=True), part("b")])
    assert status == 1
    assert outcomes(report) == ["failed", "not run"]
    assert report["parts"][1]["why"] == "build failed"


def test_a_part_beside_the_others_ends_before_the_first_benchmark(tmp_path: Path) -> None:
    note = "from pathlib import Path; path = Path('PARTS/pid'); "
    waits = f"import os, time; {note} path.write_text(str(os.getpid())); time.sleep(60)"
    looks = f"import time; {note}\nwhile not path.is_file(): time.sleep(0.01)\n"
    lives = f"{looks}import os; os.kill(int(path.read_text()), 0)"
    ended = f"{looks}assert not Path('/proc', path.read_text()).exists()"
    parts = [
        part("warm", waits.replace("PARTS", str(tmp_path)), required=False, beside=True),
        part("tests", lives.replace("PARTS", str(tmp_path))),
        part("bench", ended.replace("PARTS", str(tmp_path)), reads="bench"),
        part("broken", required=False, beside=True) | {"command": ["/no/such/program"]},
    ]
    status, report = run(tmp_path, parts)
    assert status == 0
    assert outcomes(report) == ["stopped", "passed", "passed", "failed"]


def test_a_missing_program_is_a_failed_part(tmp_path: Path) -> None:
    missing = part("a") | {"command": [str(tmp_path / "no-such-program")]}
    status, report = run(tmp_path, [missing, part("b")])
    assert status == 1
    assert outcomes(report) == ["failed", "passed"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_what_it_knows(tmp_path: Path, number: signal.Signals) -> None:
    wait = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()));"
    wait += "time.sleep(600)"
    process = start(tmp_path, [part("a"), part("b", wait), part("c")])
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    assert outcomes(read(tmp_path)) == ["passed", "running", "not run"]
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    report = read(tmp_path)
    if number == signal.SIGKILL:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        assert outcomes(report) == ["passed", "running", "not run"]
    else:
        assert outcomes(report) == ["passed", "interrupted", "not run"]
        assert report["outcome"] == "incomplete"
        assert not list((tmp_path / "out").glob("*.tmp"))


def test_torn_and_absent_files_are_joined_too(tmp_path: Path) -> None:
    assert join_gpu_check.join(tmp_path)["parts"] == []
    parts = [
        {"name": name, "reads": reads, "required": True}
        for name, reads in (("memcheck", "sanitizer"), ("gemm", "bench"), ("py", "pytest"))
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"limit_s": 540, "parts": parts}))
    (tmp_path / "gemm.json").write_text('{"rows": [')
    (tmp_path / "gemm.part.json").write_text("")
    (tmp_path / "memcheck.log").write_text(
        "[ RUN      ] Gpu.A\n[       OK ] Gpu.A (12 ms)\n"
        "[  FAILED  ] Gpu.B (1 ms)\n[ RUN      ] Gpu.C\n"
    )
    (tmp_path / "py.log").write_text("tests/python/a_test.py::test_b PASSED  [ 50%]\n")
    report = join_gpu_check.join(tmp_path)
    assert outcomes(report) == ["not run"] * 3
    assert report["outcome"] == "incomplete"
    assert report["benchmarks"] == {}
    assert report["sanitizers"] == {
        "memcheck": {"errors": None, "tests": ["Gpu.A"], "failed": ["Gpu.B"]}
    }
    assert report["tests"] == [{"name": "tests/python/a_test.py::test_b", "outcome": "Passed"}]


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        (" 2/12 Test  #7: A.B ........   Passed    0.01 sec", "Passed"),
        (" 2/12 Test  #7: A.B ........***Failed    0.01 sec", "Failed"),
        (" 2/12 Test  #7: A.B ........***Exception: SegFault  0.01 sec", "Exception"),
        (" 2/12 Test  #7: A.B ........Subprocess aborted***Exception:   0.01 sec", "Exception"),
    ],
)
def test_lines_of_ctest(line: str, outcome: str) -> None:
    found = {"name": "A.B", "outcome": outcome, "seconds": 0.01}
    assert join_gpu_check.test_results(line) == [found]


@pytest.mark.parametrize(
    ("line", "errors"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0),
        ("========= ERROR SUMMARY: 1 error", 1),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", 2),
    ],
)
def test_summaries_of_sanitizers(line: str, errors: int) -> None:
    assert join_gpu_check.sanitizer_results(line)["errors"] == errors
