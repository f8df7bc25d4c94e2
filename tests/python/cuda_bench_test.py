"""The benchmark of the CUDA kernels on the CPU with tiny shapes: cases, gates, goals, its file."""

import json
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from paperlab import ops

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("bench", "scripts", "experiments/common")]

import cuda_bench  # noqa: E402
import cuda_warm  # noqa: E402
import join_gpu_check  # noqa: E402
import tables  # noqa: E402
from support import (  # noqa: E402
    cuda_case,
    cuda_notices,
    cuda_row_cases,
)

GOAL = cuda_case.Goal


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    before, shown = ops.get_backend(), warnings.showwarning
    with warnings.catch_warnings():
        yield
    ops.set_backend(before)
    warnings.showwarning = shown


def words(out: Path, *more: str) -> list[str]:
    return ["--device", "cpu", "--quick", "--seconds", "1e9", "--out", str(out), *more]


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def options(out: Path) -> types.SimpleNamespace:
    return types.SimpleNamespace(out=out, device="cpu", quick=True, seconds=1e9, resume=False)


@pytest.fixture
def bench(tmp_path: Path) -> cuda_bench.Bench:
    return cuda_bench.Bench(options(tmp_path / "cuda.json"), [])


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench") / "cuda.json"
    backend = ops.get_backend()
    assert cuda_bench.main(words(out)) == 0
    ops.set_backend(backend)
    return read(out)


def a_case(**more: Any) -> cuda_case.Case:
    """x + 1 beside itself."""
    given: dict[str, Any] = {
        "ops": ("add",),
        "table": "sums",
        "name": "x + 1",
        "make": lambda seed: [torch.full([2], float(seed))],
        "ours": lambda x: x + 1,
        "baselines": {"torch": lambda x: x + 1},
        "definition": lambda x: x + 1,
    }
    return cuda_case.Case(**given | more)


# --- rows ----------------------------------------------------------------------------------------


def test_every_case_passes_its_gate_and_is_timed(result: dict[str, Any]) -> None:
    assert len({row["table"] for row in result["rows"]}) == 11
    assert len(result["rows"]) == 18
    for row in result["rows"]:
        assert "wrong" not in row
        assert row["ours_us"] > 0 and row["baseline_us"] > 0
        assert row["baseline_backend"] in row["baselines_us"]
        assert row["same_bits"]
        assert row["repetitions"] >= 2
        assert row["ours_band_us"][0] <= row["ours_us"] <= row["ours_band_us"][1]
        assert row["error"] <= row["error_bound"]
        rates = {"tflops", "gb_s"}.intersection(row)
        assert len(rates) == (0 if "one-layer" in row["table"] else 1)
        for name, backend in row.get("chosen", {}).items():
            assert name == f"SDPA {backend}"  # what LibTorch says that it runs


def test_the_file_says_where_it_comes_from(result: dict[str, Any]) -> None:
    assert {"machine", "cpu", "commit", "date", "torch", "note", "claims"} <= set(result)
    assert result["commit"] and result["date"]
    assert result["copy_roof_gb_s"] > 0 and result["matmul_roof_tflops"] > 0
    assert "8192^3" in result["note"]


def test_the_rows_make_a_table_of_a_readme(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "nvidia-stub").mkdir()
    half = [result | {"rows": rows} for rows in (result["rows"][:9], result["rows"][9:])]
    joined = join_gpu_check.bench_file({"benchmarks": dict(enumerate(half))})
    assert joined == result  # what gpu-check leaves is what is committed
    (tmp_path / "nvidia-stub" / "cuda.json").write_text(json.dumps(joined))
    text = "\n".join(tables.bench_tables(tmp_path, "cuda"))
    assert "TFLOP/s" in text and "share of copy roof" in text
    assert "A: >= 8x eager m" in text  # met or missed
    assert "{" not in text and "[" not in text  # nothing that is printed as data


def test_a_wrong_result_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "linear", lambda x, weight: torch.zeros_like(x @ weight.T))
    assert cuda_bench.main(words(tmp_path / "out", "--only", "gemm")) == 1
    (row,) = read(tmp_path / "out")["rows"]
    assert "an error of 1" in row["wrong"] and row["case"].endswith("wrong, not timed")
    assert "ours_us" not in row
    assert set(row["goals"].values()) == {"not judged"} and not row["missed"]


def test_what_cannot_run_is_told_with_its_reason(bench: cuda_bench.Bench) -> None:
    def fails(_x: torch.Tensor) -> torch.Tensor:
        warnings.warn("no Hopper (Triggered internally at a.cpp:1.)", UserWarning, stacklevel=1)
        raise RuntimeError("No available kernel.\nAborting execution.")

    bench.notices.shown_before = lambda *_: None
    case = a_case(
        baselines={"torch": lambda x: x + 1, "SDPA cuDNN": fails},
        goals=(GOAL("A", 1.0, than=("SDPA cuDNN",)), GOAL("A", 0.0, than=("torch",))),
    )
    row = bench.row(case)
    reason = "No available kernel.; no Hopper"
    assert row["not_available"] == {"SDPA cuDNN": reason}
    first, second = row["judged"]
    assert (first["holds"], first["why"]) == (None, f"SDPA cuDNN: {reason}")
    assert second["holds"]
    assert not row["missed"]


def test_a_baseline_that_runs_another_backend_is_not_named_by_it(bench: cuda_bench.Bench) -> None:
    forms = {name: lambda x: x + 1 for name in ("SDPA flash", "SDPA cuDNN", "SDPA efficient")}
    chosen = {"SDPA flash": lambda _x: "flash", "SDPA cuDNN": lambda _x: "math"}
    row = bench.row(a_case(baselines=forms, chosen=chosen | {"SDPA efficient": lambda _x: 1 / 0}))
    assert row["not_available"] == {"SDPA cuDNN": "LibTorch runs math"}
    assert set(row["baselines_us"]) == {"SDPA flash", "SDPA efficient"}
    assert row["chosen"]["SDPA efficient"] == "not known: division by zero"


def test_a_failing_kernel_does_not_end_the_others(bench: cuda_bench.Bench) -> None:
    row = bench.row(a_case(ours=lambda _x: 1 / 0))
    assert row["wrong"] == "division by zero" and row["case"] == "x + 1: failed"


def test_operators_that_leave_their_work_to_libtorch_are_not_timed(
    bench: cuda_bench.Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    notice = "paperlab::add: CUDA tensors are left to LibTorch's operations, because it is a test"

    def ours(x: torch.Tensor) -> torch.Tensor:
        warnings.warn(notice, UserWarning, stacklevel=1)
        return x + 1

    row = bench.row(a_case(ours=ours))
    assert row["why"] == notice and "ours_us" not in row and "wrong" not in row
    assert notice in capsys.readouterr().err
    assert "ours_us" in bench.row(a_case(ops=("other",)))


def test_other_warnings_are_shown_as_before() -> None:
    shown = []
    warnings.showwarning = lambda *given: shown.append(str(given[0]))
    notices = cuda_notices.Notices()
    notices.show("something else", UserWarning, "a file", 1)
    notices.stop()
    assert notices.operators == {} and shown == ["something else"]


def test_what_is_launched_as_a_graph() -> None:
    case = a_case(by_host=frozenset(["eager"]), by_graph=frozenset(["graph"]))
    assert [case.as_graph(name) for name in ("ours", "eager", "graph")] == [None, False, True]
    case.is_prepared = True
    assert [case.as_graph(name) for name in ("ours", "eager", "graph")] == [False, False, True]


# --- goals ---------------------------------------------------------------------------------------

ROW = {
    "ours_us": 10.0,
    "baselines_us": {"SDPA flash": 25.0, "SDPA cuDNN": 15.0, "slow": 90.0},
    "share_of_copy_roof": 0.72,
    "memory_mib": 100.0,
    "baselines_memory_mib": {"eager": 500.0},
    "tflops": 500.0,
    "same_bits": True,
}


@pytest.mark.parametrize(
    ("goal", "word"),
    [
        (GOAL("A", 2.5, than=("SDPA flash",)), "met (2.50x)"),
        (GOAL("A", 2.6, than=("SDPA flash",)), "missed (2.50x)"),
        (GOAL("A", 1.5, than=("SDPA flash", "SDPA cuDNN")), "met (1.50x)"),
        (GOAL("A", 1.6), "missed (1.50x)"),
        (GOAL("A", 1.0, than=("FlexAttention",)), "not judged"),
        (GOAL("A", 0.70, "copy"), "met (72 %)"),
        (GOAL("A", 0.85, "copy"), "missed (72 %)"),
        (GOAL("A", 0.25, "memory", than=("eager",)), "met (20 %)"),
        (GOAL("A", 0.15, "memory", than=("eager",)), "missed (20 %)"),
        (GOAL("A", 524.0, "tflops", source="a paper"), "missed (500)"),
        (GOAL("A", 1.0, "same_bits"), "met (yes)"),
        (GOAL("A", 0.9, "matmul"), "not judged"),
    ],
)
def test_goals_are_judged_by_the_baseline_that_they_name(goal: cuda_case.Goal, word: str) -> None:
    judged = cuda_case.judged(ROW, [goal])
    assert judged["goals"] == {goal.text(): word}
    assert judged["missed"] == word.startswith("missed")
    stretch = cuda_case.Goal("stretch", goal.bound, goal.of, goal.than, goal.source)
    assert not cuda_case.judged(ROW, [stretch])["missed"]


def test_cases_are_made_without_the_library_and_goals_name_their_baselines() -> None:
    cases = cuda_row_cases.Cases(torch.device("cuda"), quick=False)
    names = []
    for name, make in cases.names.items():
        for case in make():
            names.append(f"{name}: {case.name}")
            for goal in case.goals:
                assert set(goal.than) <= set(case.baselines), (case.name, goal)
            assert case.compiled <= set(case.baselines)
            assert case.by_host | case.by_graph <= {"ours", *case.baselines, *case.variants}
    for length in (4096, 8192, 16384, 32768, 65536, 131072):
        for kind in ("prefill", "decode"):
            assert sum(f"{kind}," in name and f"S {length}," in name for name in names) == 1
    assert sum(name.startswith("attention: B") for name in names) == 12
    assert sum(name.startswith("one_layer") for name in names) == 8


# --- interruption --------------------------------------------------------------------------------


def test_an_interrupted_run_leaves_its_rows_and_goes_on_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", cuda_bench.Bench.row

    def interrupted(self: cuda_bench.Bench, case: cuda_case.Case) -> dict[str, Any]:
        if len(self.rows) == 2:
            raise KeyboardInterrupt
        return whole(self, case)

    monkeypatch.setattr(cuda_bench.Bench, "row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cuda_bench.main(words(out, "--only", "rows"))
    monkeypatch.setattr(cuda_bench.Bench, "row", whole)
    first = read(out)
    assert [row["case"].split(",")[0] for row in first["rows"]] == ["rms_norm", "swiglu"]
    assert {"machine", "commit", "claims"} <= set(first)
    assert cuda_bench.main(words(out, "--only", "rows", "--resume")) == 0
    assert read(out)["rows"][:2] == first["rows"]
    assert len(read(out)["rows"]) == 3


def test_without_time_every_case_has_a_row(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cuda_bench.main([*words(out, "--only", "rows"), "--seconds", "0"]) == 0
    rows = read(out)["rows"]
    assert len(rows) == 3
    assert all(row["case"].endswith("no time was left") for row in rows)
    assert all(set(row["goals"].values()) == {"not judged"} for row in rows)


def test_a_kernel_that_hangs_or_breaks_the_device_ends_in_a_new_start(
    bench: cuda_bench.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(cuda_bench.os, "execv", lambda _path, command: started.append(command))
    bench.case = a_case()
    with bench.watched(0.02):
        deadline = time.monotonic() + 10
        while not started and time.monotonic() < deadline:
            time.sleep(0.01)
    assert started[0][-1] == "--resume"
    (row,) = read(bench.out)["rows"]
    assert row["case"] == "x + 1: hangs" and "did not return" in row["wrong"]
    with bench.watched(60):
        pass
    monkeypatch.setattr(bench, "is_lost", lambda: True)
    bench.rows.clear()
    bench.run(["gemm"])
    assert len(started) == 2 and len(read(bench.out)["rows"]) == 1


def test_without_a_gpu_it_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for program, given in ((cuda_bench, ["--out", str(tmp_path / "cuda.json")]), (cuda_warm, [])):
        assert program.main(given) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "GPU" in error
