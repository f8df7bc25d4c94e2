"""Progress is a bar on a terminal and whole lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

from drivers import fixture_driver

SETTINGS = ["--set", "row_ms=300", "--only", "F1"]


def output_on_terminal(command: list[str]) -> str:
    ours, theirs = pty.openpty()
    environment = dict(os.environ, TERM="xterm")
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            text += part
    os.close(ours)
    assert process.returncode == 0
    return text.decode()


def test_terminal_gets_a_bar_with_rate_and_time_left(tmp_path: Path) -> None:
    driver = fixture_driver(tmp_path)
    text = output_on_terminal(driver.command(tmp_path, *SETTINGS))
    assert "\r\033[K[###" in text
    assert "/s  " in text
    assert " s left" in text
    assert "\r\033[KF1  done in " in text


def test_pipe_gets_whole_lines(tmp_path: Path) -> None:
    done = fixture_driver(tmp_path).run(tmp_path, *SETTINGS)
    assert "\r" not in done.stdout
    assert "\033" not in done.stdout
    assert done.stdout.splitlines()[0].startswith("fixture-driver: preset small, 1 row, ")
    assert done.stdout.splitlines()[1].startswith("F1  done in ")
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["C1", "C2", "C3", "C4"]
