"""Each paper's smoke run replays its committed result, on all instruction sets and threads."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from drivers import ROOT, paper_driver

# The other papers' models fuse multiplication and addition where the CPU does.
TORCH_FREE = {"regular_language"}
PAPERS = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/config.json"))

# Another libm may differ in the last digits of exp, log and pow; training carries them on.
RELATIVE = 1e-7
ABSOLUTE = 1e-9


def smoke(paper: str, out: Path, **environment: str) -> dict[str, Any]:
    driver = paper_driver(paper.replace("_", "-"))
    done = subprocess.run(
        driver.command(out),
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return driver.result(out)


def differences(expected: Any, got: Any, where: str = "") -> list[str]:
    """Places where two JSON values differ by more than the tolerances."""
    if isinstance(expected, dict) and isinstance(got, dict) and expected.keys() == got.keys():
        return [
            d for key in expected for d in differences(expected[key], got[key], f"{where}/{key}")
        ]
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        pairs = enumerate(zip(expected, got, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]")]
    if isinstance(expected, float | int) and isinstance(got, float | int):
        near = math.isclose(expected, got, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        return [] if near else [f"{where}: expected {expected}, got {got}"]
    return [] if expected == got else [f"{where}: expected {expected}, got {got}"]


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("config", "series", "scalars", "claims")}


@pytest.mark.parametrize("paper", PAPERS)
def test_smoke_replays_the_committed_result(paper: str, tmp_path: Path) -> None:
    committed = ROOT / "experiments" / paper / "results" / "smoke.json"
    expected = json.loads(committed.read_text())
    result = smoke(paper, tmp_path)
    assert differences(numbers(expected), numbers(result)) == []
    assert {claim["verdict"] for claim in result["claims"]} == {"not tested at this scale"}
    assert result["seconds"] < 45


@pytest.mark.parametrize("paper", PAPERS)
def test_the_bits_do_not_depend_on_threads_or_instruction_set(paper: str, tmp_path: Path) -> None:
    expected = numbers(smoke(paper, tmp_path / "auto"))
    one = smoke(paper, tmp_path / "one", PAPERLAB_NUM_THREADS="1")
    assert one["environment"]["threads"] == 1
    assert numbers(one) == expected
    # Every CPU that builds paperlab's tests in CI has both; LibTorch's own kernels do not follow.
    for isa in ("generic", "avx2") if paper in TORCH_FREE else ():
        other = smoke(paper, tmp_path / isa, PAPERLAB_CPU=isa)
        assert other["environment"]["isa"] == isa
        assert numbers(other) == expected


@pytest.mark.parametrize("paper", PAPERS)
def test_committed_results_hold_the_claims_of_the_config(paper: str) -> None:
    folder = ROOT / "experiments" / paper
    declared = [claim["id"] for claim in json.loads((folder / "config.json").read_text())["claims"]]
    for result in (folder / "results").glob("*.json"):
        assert [claim["id"] for claim in json.loads(result.read_text())["claims"]] == declared, (
            result
        )


def test_a_changed_number_is_a_difference() -> None:
    committed = {"series": {"F1": {"loss": [1.0, 2.0]}}}
    assert differences(committed, {"series": {"F1": {"loss": [1.0, 2.0 + 1e-6]}}})
    assert differences(committed, {"series": {"F1": {"loss": [1.0]}}})
    assert not differences(committed, {"series": {"F1": {"loss": [1.0, 2.0 + 1e-8]}}})


def test_the_committed_digits_are_those_of_the_reference_run() -> None:
    result = json.loads((ROOT / "experiments/regular_language/results/small.json").read_text())
    worst = {k: v for k, v in result["scalars"].items() if "digits: largest" in k}
    assert len(worst) == 2
    assert all(value < 1e-8 for value in worst.values()), worst
    assert result["scalars"]["F1 accuracy is 1 from step"] == 231
    assert result["scalars"]["F7 accuracy is 1 for good from step"] == 629
