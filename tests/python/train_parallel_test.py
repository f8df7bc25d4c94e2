"""`train.fit` in 2 and 3 processes of gloo against one process with the same global batches."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import train_parallel_worker as worker
import training_cases as cases
from paperlab import _processes, nn, train
from train_parallel_worker import KEPT, RATE, RUNS, Stateful, batch, run

WORKER = str(Path(__file__).with_name("train_parallel_worker.py"))
ENDED = "another process has ended or does not answer: "

# Weights after 20 steps: sums of another order; AdamW divides by the root of their squares, and
# bfloat16 rounds activations, whose changes of one unit in the last place (2^-8) spread.
CLOSE = {"adamw": 2e-5, "adafactor": 2e-5, "bfloat16": 1e-3}

Results = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with cases.one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(Path(nn.__file__).parent.parent), str(Path(WORKER).parent)])
    extra = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **extra, "PAPERLAB_PROCESS_TIMEOUT": "77"}


def results_of(folder: Path, kind: str, ranks: Sequence[int]) -> Results:
    results = []
    for rank in ranks:
        values = json.loads((folder / f"{kind}-{rank}.json").read_text())
        results.append(values | {"weights": torch.load(folder / f"{kind}-{rank}.pt")})
    return results


@pytest.fixture(scope="module")
def two(folder: Path) -> Results:
    """Started by torchrun, as users do."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", WORKER, "two", str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return results_of(folder, "two", [0, 1])


@pytest.fixture(scope="module")
def three(folder: Path, two: Results) -> Results:
    """In a group that is there when fit is called; the first of them is killed at the end."""
    assert two[0]["stopped"] == 3
    shutil.copytree(folder / "kept", folder / "kept-by-two")
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, "three", str(folder), str(rank)], env=environment()
        )
        for rank in range(3)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [-9, 0, 0]
    return results_of(folder, "three", [1, 2])


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert list(one) == list(other)
    return max((one[name] - other[name]).abs().max().item() for name in one)


def assert_as_one(results: Results, name: str) -> None:
    model, history = run(**RUNS[name])
    first = results[0]
    for rank in results:
        for key in (name, f"{name}-shards"):
            assert rank[key] == first[name], key  # the same doubles
            assert largest_difference(rank["weights"][key], first["weights"][name]) == 0.0
    rounding = 1e-6 if name != "bfloat16" else 1e-2
    for column, values in history.items():
        assert first[name][column] == pytest.approx(values, rel=100 * rounding, abs=rounding)
    assert first[name]["loss"] == pytest.approx(history["loss"], rel=0, abs=rounding)
    difference = largest_difference(first["weights"][name], cases.values(model))
    assert difference <= CLOSE.get(name, 1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(two: Results, name: str) -> None:
    assert_as_one(two, name)


def test_three_processes_are_one(three: Results) -> None:
    assert_as_one(three, "adamw")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_two_processes_add_up_what_one_accumulates(two: Results, name: str) -> None:
    model, history = run(accumulate=2, **RUNS[name])
    assert two[0][name] == history
    assert largest_difference(two[0]["weights"][name], cases.values(model)) == 0.0


def test_errors_are_the_same_in_all(two: Results) -> None:
    for rank in two:
        assert rank["loss"].startswith(
            "ValueError: fit: step 2: the loss must be finite, got nan; "
        )
        assert "parameter 'model.norm.weight' is the first that is not" in rank["loss"]
        assert rank["freed"]
        assert rank["rows"] == (
            "ValueError: fit: accumulate times the 2 processes must divide the batch's rows (3), "
            "got 1"
        )
        assert rank["arguments"] == (
            "ValueError: fit: learning_rate must be the same in all processes, got another one in "
            "process 1"
        )
        assert rank["batches"].startswith("ValueError: fit: data(0) must return the same global")
    assert two[1]["data"] == "LookupError: no such row\nat all"
    assert two[0]["data"] == "OSError: fit: process 1 of 2 failed: LookupError: no such row"


def test_what_python_refuses_in_one_ends_all(two: Results) -> None:
    assert two[1]["steps"] == "ValueError: fit: steps must be in 0..9007199254740992, got -1"
    other = two[1]["steps"].replace("ValueError", "OSError: fit: process 1 of 2 failed: ValueError")
    assert two[0]["steps"] == other
    assert two[1]["model"].startswith(
        "TypeError: fit: model must be a Decoder or an encoder, got L"
    )
    assert two[0]["model"].startswith(
        "OSError: fit: process 1 of 2 failed: TypeError: fit: model m"
    )


def test_encoders_in_two_processes_are_one(two: Results) -> None:
    model, history = worker.encoder_run(seed=1, accumulate=2)
    for rank in two:
        assert rank["encoder"] == history
        assert largest_difference(rank["weights"]["encoder"], dict(model.state_dict())) == 0.0
    for optimizer, bound in (("sgd", 1e-6), ("adamw", CLOSE["adamw"])):
        name = f"vit-{optimizer}"
        model, history = worker.vit_run(1, optimizer)
        assert two[0][name] == two[1][name]
        assert two[0][name]["loss"] == pytest.approx(history["loss"], rel=0, abs=1e-6)
        expected = dict(model.state_dict())
        given = dict(two[0]["weights"][name])
        if optimizer == "adamw":  # a key's bias changes no probability; it follows rounding alone
            for key in [key for key in expected if key.endswith("key.bias")]:
                del expected[key], given[key]
        assert largest_difference(given, expected) <= bound


def test_the_timeout_is_that_of_the_environment(
    two: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [rank["timeout"] for rank in two] == [77.0, 77.0]
    monkeypatch.delenv("PAPERLAB_PROCESS_TIMEOUT", raising=False)
    assert _processes.timeout().total_seconds() == 1800
    for wrong in ("0", "-1", "x", "nan", "inf"):
        monkeypatch.setenv("PAPERLAB_PROCESS_TIMEOUT", wrong)
        with pytest.raises(
            ValueError, match=f"^fit: PAPERLAB_PROCESS_TIMEOUT must .*, got '{wrong}'"
        ):
            _processes.timeout()


def test_one_that_stops_stops_all(folder: Path, two: Results) -> None:
    for rank in two:
        assert (rank["stopped"], rank["interrupted"]) == (3, "KeyboardInterrupt: ")
        assert rank["handlers"]
    assert (folder / "interrupted/checkpoint-00000004").is_dir()


def assert_resumed(history: dict[str, list[float]], weights: Any, data: Any = batch) -> None:
    model, expected = run(data=data, **KEPT)
    assert history["loss"] == pytest.approx(expected["loss"], rel=0, abs=1e-6)
    assert largest_difference(weights, cases.values(model)) <= 2e-5


def test_other_numbers_of_processes_go_on(folder: Path, three: Results) -> None:
    for rank in three:
        assert rank["resumed"] == three[0]["resumed"]
        assert_resumed(rank["resumed"], rank["weights"]["resumed"], Stateful())
    model, history = run(data=Stateful(), out=folder / "kept-by-two", seed=9, **KEPT)
    assert_resumed(history, cases.values(model), Stateful())
    lines = (folder / "kept/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == three[0]["resumed"]["loss"]


def test_the_first_is_killed_and_another_one_keeps_the_last_step(
    folder: Path, three: Results
) -> None:
    for rank in three:
        assert rank["lost"].startswith(f"ConnectionError: fit: after 3 steps: {ENDED}")
        assert rank["lost"].count("\n") == 0 and rank["seconds"] < 30
    names = [path.name for path in (folder / "lost").iterdir() if path.name.startswith("check")]
    assert names == ["checkpoint-00000003"]  # of the last whole step
    model, history = run(out=folder / "lost", seed=8, **KEPT)
    assert_resumed(history, cases.values(model))


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(steps=2)[1]
    for size in ("1", "", "many"):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert run(steps=2, shard_optimizer=True)[1] == expected


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_what_torchrun_says(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    said = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match=f"^fit: {missing} must be set where WORLD_SIZE is 2: tor"):
        train.fit(cases.model(), worker.batch, steps=1, learning_rate=RATE)
