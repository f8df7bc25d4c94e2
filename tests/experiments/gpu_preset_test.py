"""The gpu presets: without a GPU one line and exit 1; the rows at a tiny size on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from drivers import BUILD, ROOT, Driver

PAPERS = ("regular-language", "mudd", "cca", "vision")
HAS_GPU = bool(list(Path("/dev").glob("nvidia[0-9]*")))


def driver_of(paper: str) -> Driver:
    config = ROOT / "experiments" / paper.replace("-", "_") / "config.json"
    return Driver(paper, BUILD / "bin" / paper, config, "gpu")


def config_of(paper: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(driver_of(paper).config.read_text())
    return config


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
@pytest.mark.parametrize("paper", PAPERS)
def test_without_a_gpu_it_is_one_line_before_any_work(paper: str, tmp_path: Path) -> None:
    for more in ([], ["--list-corpora"]):  # which the launcher asks first
        done = driver_of(paper).run(tmp_path / "out", *more)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "device cuda needs" in done.stderr and "GPU" in done.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_of_the_preset_is_for_the_device(paper: str) -> None:
    preset = config_of(paper)["presets"]["gpu"]
    assert preset["device"] == "cuda"
    assert config_of(paper)["device"] == "cpu"


def test_regular_languages_at_a_tiny_size(tmp_path: Path) -> None:
    tiny = {
        "device": "cpu",
        "all_lengths": [4, 6],
        "all_chain_length": 4,
        "all_steps": 20,
        "all_chain_steps": 30,
    }
    words = [
        f"{key}={json.dumps(value) if key != 'device' else value}" for key, value in tiny.items()
    ]
    settings = [word for setting in words for word in ("--set", setting)]
    driver = driver_of("regular-language")
    done = driver.run(tmp_path, *settings)
    assert (done.returncode, done.stderr) == (0, "")
    result = driver.result(tmp_path)
    rows = config_of("regular-language")["presets"]["gpu"]["rows"]
    assert sorted(result["environment"]["rows_s"]) == sorted(rows)
    for name in ("length 4", "length 6", "chain of thought of 4"):
        # The fold kernel and the two-class model sum in another order.
        difference = result["scalars"][f"every string {name}: relative difference of the loss"]
        assert difference < 1e-11
    assert "every string length 6 from N(0, 0.01^2): accuracy" in result["scalars"]


def test_tasks_of_core_context_attention_go_on_call_by_call(tmp_path: Path) -> None:
    # One by one: each call has at least a base and one task that goes on from it.
    driver = driver_of("cca")
    sizes = config_of("cca")["presets"]["smoke"]
    tiny = {key: sizes[key] for key in sizes if key.startswith("recall_")}
    tiny |= {"device": "cpu", "dtype": "float64", "recall_groups": [4, 8], "step_s": 1000.0}
    tiny |= {"recall_length": 64, "recall_window": 16}
    override = tmp_path / "tiny.json"
    override.write_text(json.dumps(tiny))
    arguments = ["--override", str(override), "--only", "recall"]
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    calls = 0
    while not driver.is_done(parts, "recall"):
        done = driver.run(parts, *arguments, "--limit", "100")
        assert (done.returncode, done.stderr) == (0, "")
        calls += 1
    assert calls == 6  # as many tasks behind the base
    done = driver.run(whole, *arguments, "--limit", "1e9")
    assert (done.returncode, done.stderr) == (0, "")
    assert driver.timeless(parts) == driver.timeless(whole)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("device=tpu", "device must be cpu or cuda"),
        ("all_lengths=[4]", "all_lengths must be two numbers"),
        ("all_chain_length=1", "all_chain_length must be >= 2"),
        ("all_lengths=[4,99]", "max_length"),
    ],
)
def test_sizes_that_cannot_be(tmp_path: Path, setting: str, message: str) -> None:
    driver = driver_of("regular-language")
    driver.preset = "smoke"
    driver.expect_refused(tmp_path / "out", setting, message)
