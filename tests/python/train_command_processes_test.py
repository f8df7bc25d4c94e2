"""`train --processes N`: one run of several processes of this machine."""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from paperlab import nn
from paperlab._commands import _train_processes
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


def lives(process: int) -> bool:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return fields[0] != "Z"


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
    temporary = set(Path(tempfile.gettempdir()).glob("paperlab-*"))

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

    # The first is killed: another one keeps the last step and ends.
    with open(path) as config:
        work = start(package_path, "--config", "/dev/stdin", *words[2:], stdin=config)
    wait_for(work, parts / "metrics.jsonl", done + 20)
    (child,) = children_of(work)
    work.kill()
    work.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    done = len(losses(parts))
    assert (parts / f"checkpoint-{done:08}").is_dir()

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
    assert set(Path(tempfile.gettempdir()).glob("paperlab-*")) <= temporary


def test_one_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_train_processes, "_FOLLOW", "import time; time.sleep(60)")
    monkeypatch.setattr(_train_processes, "_START", 0.1)
    monkeypatch.setattr(_train_processes, "_PATIENCE", 0.1)
    with (
        pytest.raises(OSError, match=r"^process 1 did not start within 0\.1 s$"),
        _train_processes.followers(2, {}),
    ):
        pass
    monkeypatch.setattr(_train_processes, "_START", 60.0)
    monkeypatch.setattr(_train_processes, "_FOLLOW", "import sys; sys.exit('no room')")
    with (
        pytest.raises(OSError, match=r"^process 1 did not start; process 1: no room$"),
        _train_processes.followers(2, {}),
    ):
        pass


def test_the_optimizer_may_be_sharded(write: Write, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    path = write(training={"steps": 2, "shard_optimizer": True})
    assert run("--config", path, "--out", out) == 0
    assert read_json(out / "run.json")["config"]["training"]["shard_optimizer"] is True
    # It says nothing about the numbers: a run goes on without.
    longer = write(training={"steps": 2, "shard_optimizer": False, "keep": 3})
    assert run("--config", longer, "--out", out) == 0
    assert run("--config", path, "--out", out, "--set=training.shard_optimizer=1") == 2
    assert "training.shard_optimizer must be true or false, got 1" in capsys.readouterr().err


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
