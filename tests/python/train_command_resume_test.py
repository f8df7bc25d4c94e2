"""`train`: runs that are killed, interrupted, prolonged and damaged, and two at once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from paperlab import eval as evaluation
from paperlab._commands import train
from train_command_cases import Capture, Write, assert_same_results, files_of, run, start

pytestmark = pytest.mark.usefixtures("train_cache", "train_thread")


def test_a_finished_run_does_nothing(
    write: Write, tmp_path: Path, package_path: Path, capsys: Capture
) -> None:
    path, out = write(), tmp_path / "out"
    assert run("--config", path, "--out", out) == 0
    before = files_of(out)
    begin = os.times()
    again = start(package_path, "--config", path, "--out", out)
    text, errors = again.communicate(timeout=60)
    end = os.times()  # others may keep the machine busy
    assert sum(end[2:4]) - sum(begin[2:4]) < 5
    assert (again.returncode, errors) == (0, "") and text.startswith(f"{out} is complete: 6 steps")
    assert files_of(out) == before


def test_killed_and_interrupted_runs_end_the_same(
    write: Write, tmp_path: Path, package_path: Path
) -> None:
    path = write(training={"steps": 400, "checkpoint_every": 7}, eval={"every": 50})
    whole, parts = tmp_path / "whole/out", tmp_path / "parts/out"
    assert start(package_path, "--config", path, "--out", whole).wait(timeout=120) == 0
    for number, lines in ((signal.SIGKILL, 20), (signal.SIGINT, 120), (signal.SIGKILL, 250)):
        work = start(package_path, "--config", path, "--out", parts)
        while work.poll() is None:
            metrics = parts / "metrics.jsonl"
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.002)
        work.send_signal(number)
        _, errors = work.communicate(timeout=60)
        assert work.returncode == (130 if number == signal.SIGINT else -number)
        assert errors == "" and not (parts / "result.json").exists()
    assert start(package_path, "--config", path, "--out", parts).wait(timeout=120) == 0
    assert_same_results(parts, whole)
    assert not list(parts.rglob("*.tmp"))


def test_never_begins_anew(write: Write, tmp_path: Path) -> None:
    one, other = tmp_path / "one/out", tmp_path / "other/out"
    assert run("--config", write(model={"seed": 9}), "--out", one) == 0
    assert run("--config", write(), "--out", one, "--resume", "never") == 0
    assert run("--config", write(), "--out", other) == 0
    assert_same_results(one, other)


def test_a_run_at_a_constant_rate_is_prolonged(write: Write, tmp_path: Path) -> None:
    options = {"schedule": "constant"}
    one, other = tmp_path / "one/out", tmp_path / "other/out"
    for steps in (2, 6):
        assert run("--config", write(training={**options, "steps": steps}), "--out", one) == 0
    assert run("--config", write(training={**options, "steps": 6}), "--out", other) == 0
    for name in ("metrics.jsonl", "model/model.safetensors", "result.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.batch_size=8", "training.batch_size 4, here it is 8"),
        ("training.steps=7", "training.steps 6, here it is 7"),
        ("model.seed=4", "model.seed 3, here it is 4"),
        ("model.config.initializer_range=0.1", "model.config.initializer_range null, here it is"),
        ("data.length=32", "data.length 24, here it is 32"),
    ],
)
def test_another_config_does_not_go_on(
    write: Write, tmp_path: Path, capsys: Capture, setting: str, message: str
) -> None:
    path, out = write(), tmp_path / "out"
    assert run("--config", path, "--out", out) == 0
    before = files_of(out)
    capsys.readouterr()
    assert run("--config", path, "--out", out, "--set", setting) == 2
    assert f"'{out}' holds a run with {message}" in capsys.readouterr().err
    assert files_of(out) == before
    assert run("--config", path, "--out", out, "--set", "eval.documents=2") == 0


def test_a_refused_config_does_not_block_the_corrected_one(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "new/out"
    assert run("--config", write(training={"betas": [1, 2]}), "--out", out) == 2
    assert run("--config", write(training={"accumulate": 3}), "--out", out) == 2
    assert not out.parent.exists()
    assert run("--config", write(), "--out", out) == 0


def test_a_run_without_a_step_counts_as_absent(write: Write, tmp_path: Path) -> None:
    one, other = tmp_path / "one/out", tmp_path / "other/out"
    for out, seed in ((one, 3), (other, 9)):
        assert run("--config", write(model={"seed": seed}), "--out", out) == 0
    for name in ("metrics.jsonl", "result.json"):
        (other / name).write_text("" if name == "metrics.jsonl" else '{"schema": 1, "config": {}}')
    for path in other.glob("checkpoint-*"):
        shutil.rmtree(path)
    assert run("--config", write(), "--out", other) == 0
    assert_same_results(one, other)


def test_the_directory_is_taken_until_all_is_written(
    write: Write, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(eval={"every": None}), tmp_path / "out"
    codes: list[int] = []

    def and_again(module: Any, name: str) -> None:
        original = getattr(module, name)

        def function(*arguments: Any, **options: Any) -> Any:
            for resume in ("auto", "never"):
                codes.append(run("--config", path, "--out", out, "--resume", resume))
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, function)

    and_again(train.evaluation, "score")  # the final one of two domains: every is null
    assert run("--config", path, "--out", out) == 0
    assert codes == [1] * 4
    and_again(train._train_card, "card")
    assert run("--config", path, "--out", out, "--set", "licence=mine") == 0
    assert codes == [1] * 6
    assert capsys.readouterr().err.count("another run is writing there") == 6


def interrupted_in(
    name: str, write: Write, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[str]]:
    """The exit code of a run that gets Ctrl-C in its measurement after step 3; its checkpoints."""
    original = getattr(evaluation, name)
    calls: list[int] = []

    def function(*arguments: Any, on_window: Any, **options: Any) -> Any:
        calls.append(1)

        def after_window(count: int) -> Any:
            if len(calls) == 1 and count > 24:
                signal.raise_signal(signal.SIGINT)
            return on_window(count)

        return original(*arguments, on_window=after_window, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, name, function)
        code = run("--config", write(training={"checkpoint_every": 10}), "--out", out)
    assert len(calls) == 1
    return code, [path.name for path in out.glob("checkpoint-*")]


def test_ctrl_c_in_a_measurement(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one/out", tmp_path / "other/out"
    code, checkpoints = interrupted_in("score", write, one, monkeypatch)
    assert (code, checkpoints) == (130, ["checkpoint-00000003"])
    assert not (one / "evaluations.jsonl").exists()
    path = write(training={"checkpoint_every": 10})
    assert run("--config", path, "--out", one) == 0
    assert run("--config", path, "--out", other) == 0
    assert_same_results(one, other)


def test_ctrl_c_while_torch_is_imported(package_path: Path) -> None:
    for verb in ("train", "data"):
        process = subprocess.Popen(
            [sys.executable, "-m", "paperlab", verb, "--help"],
            env={**os.environ, "PYTHONPATH": str(package_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        maps = Path(f"/proc/{process.pid}/maps")
        while "libc10" not in maps.read_text():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        text, errors = process.communicate(timeout=60)
        assert (process.returncode, text, errors) == (130, "", "")


def test_two_runs_on_one_directory(write: Write, tmp_path: Path, package_path: Path) -> None:
    path, out = write(training={"steps": 100000}, eval=None), tmp_path / "out"
    first = start(package_path, "--config", path, "--out", out)
    try:
        while not (out / "run.json").exists():  # with the first step
            assert first.poll() is None
            time.sleep(0.01)
        before = (out / "run.json").read_bytes()
        for words in ([], ["--resume", "never", "--set", "model.seed=8"]):
            second = start(package_path, "--config", path, "--out", out, *words)
            _, errors = second.communicate(timeout=60)
            assert second.returncode == 1 and errors.count("\n") == 1
            assert "another run is writing there" in errors
        assert first.poll() is None and (out / "run.json").read_bytes() == before
    finally:
        first.kill()
        first.communicate()
