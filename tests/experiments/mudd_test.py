"""The MUDDFormer driver: rows of the gpu preset at a tiny size on the CPU, and its trained runs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from drivers import ROOT, Driver, paper_driver

CONFIG: dict[str, Any] = json.loads((ROOT / "experiments/mudd/config.json").read_text())


# Claims of the gpu preset that are one difference of two methods.
COUNTED = {
    "C11a": ("base", "static"),
    "C11b": ("static", "dynamic"),
    "C11c": ("dynamic", "multiway_dynamic"),
    "C12": ("base_realloc", "base"),
    "C16c": ("mudd_window", "mudd_2x2"),
}


def counted_above(result: dict[str, Any], higher: str, lower: str) -> float:
    """The mean difference over seeds if it is above 0 by the rule of all claims on seeds."""
    pairs = zip(*(result["series"][f"seeds {m}"]["loss"] for m in (higher, lower)), strict=True)
    differences: list[float] = [a - b for a, b in pairs]
    low = statistics.mean(differences) - 2 * statistics.stdev(differences) / len(differences) ** 0.5
    counts = low > 0 and min(differences) > 0
    return statistics.mean(differences) if counts else min(low, *differences)


def names_in_tables() -> set[str]:
    """What the declared tables print: names of scalars, and of series with a column."""
    names = set()
    for table in CONFIG["tables"]:
        for column in table["columns"]:
            names |= set(column.get("scalars", [])) - {""}
            if "series" in column:
                names.add(f"{column['series']}: {column['column']}")
    for shape, of_tiny in (("24x2048", "4x16"), ("32x2560", "2x16"), ("32x4096", "3x24")):
        names = {name.replace(shape, of_tiny) for name in names}
    return names


def names_of(result: dict[str, Any]) -> set[str]:
    columns = {f"{name}: {column}" for name, s in result["series"].items() for column in s}
    return columns | set(result["scalars"])


@pytest.fixture
def driver() -> Driver:
    return paper_driver("mudd")


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """The sizes of the smoke preset on top of another preset."""
    sizes = {
        key: value
        for key, value in CONFIG["presets"]["smoke"].items()
        if key != "rows" and not key.startswith("expected_")
    }
    sizes |= {"device": "cpu", "ffn_multiple": 8, "fig3_layers": [1, 2, 3]}
    sizes |= {"fig3_widths": [8, 12, 16], "fig3_bytes_per_parameter": 0.02, "fig9_window": 2}
    sizes |= {"speed_layers": [4, 2, 3], "speed_widths": [16, 16, 24], "speed_heads": [2, 2, 2]}
    sizes |= {"speed_ffns": [40, 40, 64], "speed_ffn_round": 8, "speed_vocab": 32}
    sizes |= {"speed_context": 12, "speed_prompt": 9, "speed_batch": 4, "speed_tokens": 3}
    override = tmp_path / "tiny.json"
    override.write_text(json.dumps(sizes))
    return ["--override", str(override)]


def test_rows_of_the_gpu_run_at_a_tiny_size(
    driver: Driver, tiny: list[str], tmp_path: Path
) -> None:
    driver.preset = "gpu"
    done = driver.run(tmp_path, *tiny)
    assert (done.returncode, done.stderr) == (0, "")
    result = driver.result(tmp_path)
    rows = CONFIG["presets"]["gpu"]["rows"]
    assert sorted(result["environment"]["rows_s"]) == sorted(rows)
    for claim in CONFIG["claims"]:
        measured = next(c["measured"] for c in result["claims"] if c["id"] == claim["id"])
        if claim.get("row", "").endswith("-gpu") and claim["id"] not in ("C1b", "C15"):
            assert isinstance(measured, float | int), claim["id"]
        if claim["id"] in COUNTED:
            higher, lower = COUNTED[claim["id"]]
            assert measured == pytest.approx(counted_above(result, higher, lower), rel=1e-9)
    driver.preset = "smoke"
    only = "table1,table3,table5-published,table9-published,table6,traffic,embedding,table9"
    assert driver.run(tmp_path / "arithmetic", "--only", only).returncode == 0
    told = names_of(result) | names_of(driver.result(tmp_path / "arithmetic"))
    assert names_in_tables() - told == set()


def test_rows_of_the_gpu_stop_within_the_limit_and_go_on(
    driver: Driver, tiny: list[str], tmp_path: Path
) -> None:
    driver.preset = "gpu"
    arguments = [*tiny, "--only", "figure4-gpu", "--set", "run_seconds=1000"]
    first = driver.run(tmp_path, *arguments, "--limit", "500")
    assert (first.returncode, first.stderr) == (0, "")
    assert "stops within row figure4-gpu" in first.stdout
    losses = [name for name in driver.result(tmp_path)["scalars"] if "validation loss" in name]
    assert len(losses) == 1
    assert driver.result(tmp_path)["environment"]["rows_s"] == {}
    assert driver.run(tmp_path, *arguments, "--limit", "1e9").returncode == 0
    assert driver.run(tmp_path / "whole", *arguments, "--limit", "1e9").returncode == 0
    assert driver.timeless(tmp_path) == driver.timeless(tmp_path / "whole")


def test_all_methods_of_a_seed_start_alike_and_share_batches(
    driver: Driver, tmp_path: Path
) -> None:
    # With one step at a rate of almost 0 only the starting loss is left, and at the start every
    # method whose connections begin as residual ones is the Transformer++.
    settings = {"num_steps": 1, "record_every": 1, "learning_rates": [1e-30], "warmup_share": 0}
    settings |= {"vit_epochs": 1, "vit_batch_size": 144, "vit_warmup_share": 0}
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    options = [word for setting in words for word in ("--set", setting)]
    done = driver.run(tmp_path, "--only", "table5-core,ddformer,table5,table9", *options)
    assert (done.returncode, done.stderr) == (0, "")
    series = driver.result(tmp_path)["series"]
    # Vision transformers too, with the norms of Eq. 10.
    for seed in (21, 22):
        losses = [
            series[f"{m} best rate seed {seed}: training"]["loss"][0] for m in ("vit", "muddvit")
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    same = ["dynamic", "static", "multiway_static", "multiway_dynamic", "hyper_connections"]
    for seed in (11, 12):
        base = series[f"base best rate seed {seed}: training"]["loss"][0]
        for method in same:
            loss = series[f"{method} best rate seed {seed}: training"]["loss"][0]
            # Hyper-connections sum 4 equal streams: the final norm's eps counts 16 times less.
            assert loss == pytest.approx(base, rel=1e-4 if "hyper" in method else 1e-12), method
    assert series["base best rate seed 11: training"] != series["base best rate seed 12: training"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("device=tpu", "device must be cpu or cuda"),
        ("dtype=float16", "dtype must be float32, float64 or bfloat16"),
        ("seeds=[0]", "seeds and sweep_seeds must be different numbers"),
        ("learning_rates=[]", "learning_rates must be different numbers"),
        ("num_heads=3", "num_heads"),
        ("fig3_layers=[1]", "fig3_layers"),
        ("num_steps=0", "num_steps must be >= 1"),
        ("vit_seeds=[0]", "vit_seeds and sweep_seeds must be different numbers"),
        ("vit_width=10", "d_model must be a multiple of num_heads"),
        ("speed_heads=[2]", "speed_heads"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    driver: Driver, tmp_path: Path, setting: str, message: str
) -> None:
    driver.expect_refused(tmp_path / "out", setting, message)
