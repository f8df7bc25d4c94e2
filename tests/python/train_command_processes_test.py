"""`train --processes N`: one run of several processes of this machine."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from paperlab import nn
from train_command_cases import Capture, Write, read_json, run, start

pytestmark = pytest.mark.usefixtures("train_cache", "train_thread")


def children_of(work: subprocess.Popen[str]) -> list[int]:
    found = []
    for task in Path(f"/proc/{work.pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def wait_for(work: subprocess.Popen[str], metrics: Path, lines: int) -> None:
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert work.poll() is None, work.communicate()
        time.sleep(0.002)


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["loss"] for line in lines]


def test_killed_interrupted_and_finished_by_one(
    write: Write, tmp_path: Path, package_path: Path
) -> None:
    path = write(training={"steps": 300, "checkpoint_every": 1000}, eval={"every": 100})
    whole, parts = tmp_path / "whole/out", tmp_path / "parts/out"
    words = ["--config", path, "--out", parts, "--processes", "2"]

    work = start(package_path, *words)
    wait_for(work, parts / "metrics.jsonl", 20)
    (child,) = children_of(work)
    os.kill(child, signal.SIGKILL)
    _, errors = work.communicate(timeout=60)
    assert work.returncode == 1 and errors.count("\n") == 1
    assert "another process has ended" in errors
    assert errors.endswith("; process 1 was ended by signal 9\n")
    (checkpoint,) = parts.glob("checkpoint-*")
    done = len(losses(parts))
    assert checkpoint.name == f"checkpoint-{done:08}" and done >= 20

    work = start(package_path, *words)
    wait_for(work, parts / "metrics.jsonl", done + 20)
    work.send_signal(signal.SIGINT)
    _, errors = work.communicate(timeout=60)
    assert (work.returncode, errors) == (130, "")
    assert (parts / f"checkpoint-{len(losses(parts)):08}").is_dir()

    for out in (parts, whole):
        assert run("--config", path, "--out", out) == 0
    # AdamW's rounding (2e-5 a step at worst) over 300 steps of a loss of some nats.
    assert losses(parts) == pytest.approx(losses(whole), rel=0, abs=2e-3)
    assert read_json(parts / "result.json")["steps"] == 300
    assert nn.load(parts / "model").vocab_size == nn.load(whole / "model").vocab_size
    assert not list(parts.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes=0"], "argument --processes: must be a whole number in 1..1024, got '0'"),
        (["--processes=x"], "argument --processes: must be a whole number in 1..1024, got 'x'"),
        (["--processes=3"], "training.accumulate times the 3 processes must divide the batch's ro"),
    ],
)
def test_numbers_that_cannot_be(
    write: Write, tmp_path: Path, capsys: Capture, words: list[str], message: str
) -> None:
    assert run("--config", write(), "--out", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_torchrun_and_processes_exclude_each_other(
    write: Write, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("--config", write(), "--out", tmp_path / "out", "--processes=2") == 2
    assert "--processes does not go with torchrun" in capsys.readouterr().err
