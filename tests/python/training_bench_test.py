"""bench/training_bench.py at its smallest: what it promises to write."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
ROOFS = {
    "cpu": "A CPU",
    "machine": "desk",
    "float32_roof_gflops": 100.0,
    "read_roofs_gb_s": {"1": 40.0, "2": 50.0},
}
STUB = f"""#!{sys.executable}
import sys
open(sys.argv[sys.argv.index("--out") + 1], "w").write({json.dumps(ROOFS)!r})
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bench(run_python: Run, tmp_path: Path) -> Run:
    roofs = tmp_path / "roofs"
    roofs.write_text(STUB)
    roofs.chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [str(BENCH / "training_bench.py"), "--out", str(tmp_path / "out.json")]
        return run_python([*words, "--roofs", str(roofs), *arguments])

    return run


def result_of(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    result = json.loads((tmp_path / "out.json").read_text())
    assert {"note", "rows", "claims", *ROOFS} <= set(result)
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        tables.setdefault(row["table"], []).append(row)
    return tables


def test_quick_writes_every_table(bench: Run, tmp_path: Path) -> None:
    done = bench("--quick")
    assert done.returncode == 0, done.stderr
    steps, compiled, profile, products = result_of(tmp_path).values()
    for row in [*steps, *compiled]:
        for name in ("ours", "baseline"):
            of = [row[f"{name}_{unit}"] for unit in ("wall_us", "cpu_us", "tokens_s", "gflops")]
            assert min(of) > 0
        assert row["ratio"] == pytest.approx(row["ours_tokens_s"] / row["baseline_tokens_s"])
        assert row["share_of_fma_roof"] == pytest.approx(row["ours_gflops"] / 100.0)
        assert {"wall_ratio", "baseline_share_of_fma_roof", "spread_percent", "noisy"} <= set(row)
        assert 0.0 <= row["loss_difference"] <= 1e-4 and "wrong" not in row
        assert len(row["losses"]) == 3 and row["losses"] == pytest.approx([math.log(256)] * 3, 0.1)
    assert steps[0]["case"] == "T 16 x 2, 1 thread" and steps[0]["baseline_backend"] == "eager"
    assert compiled[0]["baseline_backend"].startswith("torch.compile")
    shares = {row["case"]: row["share"] for row in profile}
    assert shares.pop("all") == 1.0 and sum(shares.values()) == pytest.approx(1.0)
    assert {"matrix products, forward", "attention, backward", "RMSNorm", "SwiGLU"} <= set(shares)
    assert {"rotation", "head and loss", "AdamW and clipping", "the rest"} <= set(shares)
    assert len(products) == 9 and all(row["other_ratio"] > 0 for row in products)
    assert {"ratio", "gflops", "share_of_fma_roof", "other"} <= set(products[0])


def test_only_chooses_tables(bench: Run, tmp_path: Path) -> None:
    assert bench("--quick", "--only", "no such table").returncode == 0
    assert result_of(tmp_path) == {}


def test_losses_that_differ_fail_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import training_bench
    from support.measured import Times
    from support.training_case import Contestant, Shape, Training

    bench = object.__new__(training_bench.Bench)
    bench.roof = 100.0
    times = Times([2.0, 2.0], [1.0, 1.0])
    ours, eager = Contestant(times, [3.0, 2.0]), Contestant(times, [3.0, 2.001])
    training = Training(Shape(16, 2), 1, 2, "", False)
    row = bench.step_row("steps", training, 0.5, ours, eager, eager)
    assert row["case"].endswith(": wrong") and row["missed"]
    assert row["wrong"] == "the losses differ by 0.001"
    failed = Contestant(failure="no compiler")
    row = bench.step_row("steps", training, 0.5, eager, failed, eager)
    assert row["baseline_backend"] == "not available: no compiler" and "ratio" not in row
