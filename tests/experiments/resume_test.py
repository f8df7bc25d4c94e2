"""An interrupted run, continued by the same command, gives the result of one that was not."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from drivers import Driver, fixture_driver, leftovers, paper_driver

DRIVERS = ["fixture-driver", "regular-language", "mudd"]


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    name: str = request.param
    return fixture_driver(tmp_path) if name == "fixture-driver" else paper_driver(name)


def kill_after(driver: Driver, out: Path, seconds: float) -> None:
    process = driver.start(out)
    time.sleep(seconds)
    process.kill()
    process.communicate()


def seconds_of_whole_run(driver: Driver, out: Path) -> float:
    begin = time.monotonic()
    done = driver.run(out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return time.monotonic() - begin


def test_killed_run_continues_to_the_same_result(driver: Driver, tmp_path: Path) -> None:
    duration = seconds_of_whole_run(driver, tmp_path / "whole")
    expected = driver.timeless(tmp_path / "whole")
    moments = random.Random(20240229)
    for attempt in range(5 if duration < 2 else 2):
        out = tmp_path / f"killed{attempt}"
        kill_after(driver, out, moments.uniform(0, duration))
        if driver.result_file(out).exists():
            driver.result(out)  # whole JSON at any moment
        done = driver.run(out)
        assert done.returncode == 0, done.stderr
        assert driver.timeless(out) == expected
        assert leftovers(out) == []


def test_run_killed_again_and_again_ends_with_the_same_result(
    driver: Driver, tmp_path: Path
) -> None:
    duration = seconds_of_whole_run(driver, tmp_path / "whole")
    out = tmp_path / "killed"
    moments = random.Random(7)
    for _ in range(5 if duration < 2 else 1):
        kill_after(driver, out, moments.uniform(0, 0.6 * duration))
    assert driver.run(out).returncode == 0
    assert driver.timeless(out) == driver.timeless(tmp_path / "whole")


def test_second_call_changes_no_file(driver: Driver, tmp_path: Path) -> None:
    seconds_of_whole_run(driver, tmp_path)
    files = sorted((tmp_path / driver.paper).iterdir())
    assert [file.name for file in files] == ["config.json", "result.json"]
    before = [(file.stat().st_mtime_ns, file.stat().st_ino) for file in files]
    again = driver.run(tmp_path)
    assert again.returncode == 0
    assert "up to date" in again.stdout
    assert [(file.stat().st_mtime_ns, file.stat().st_ino) for file in files] == before


def test_resolved_config_runs_to_the_same_result(driver: Driver, tmp_path: Path) -> None:
    seconds_of_whole_run(driver, tmp_path / "first")
    resolved = tmp_path / "first" / driver.paper / "config.json"
    again = replace(driver, config=resolved)
    seconds_of_whole_run(again, tmp_path / "again")
    assert again.timeless(tmp_path / "again") == driver.timeless(tmp_path / "first")


def test_first_row_is_kept_by_the_next_call(tmp_path: Path) -> None:
    driver = fixture_driver(tmp_path)
    process = driver.start(tmp_path, "--set", "row_ms=400")
    while not driver.result_file(tmp_path).exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    kept = driver.result(tmp_path)["environment"]["rows_s"]
    assert list(kept) == ["F1"]
    done = driver.run(tmp_path, "--set", "row_ms=400")
    assert "goes on from 1 of 4 rows" in done.stdout
    assert driver.result(tmp_path)["environment"]["rows_s"]["F1"] == kept["F1"]


def test_another_setting_starts_anew_and_says_why(tmp_path: Path) -> None:
    driver = fixture_driver(tmp_path)
    driver.run(tmp_path, "--set", "row_ms=1")
    other = driver.run(tmp_path, "--set", "row_ms=1", "--set", "seed=5")
    assert other.returncode == 0
    assert "starts anew" in other.stdout
    assert "seed was 0 and is 5" in other.stdout
    verdicts = {claim["verdict"] for claim in driver.result(tmp_path)["claims"]}
    assert verdicts == {"not tested at this scale"}


def test_malformed_result_stays_until_the_first_new_row(tmp_path: Path) -> None:
    driver = fixture_driver(tmp_path)
    file = driver.result_file(tmp_path)
    file.parent.mkdir()
    file.write_text('{"schema": 1,\n "paper"')
    failed = driver.run(tmp_path, "--set", "failing_row=F1")
    assert failed.returncode == 1
    assert "starts anew" in failed.stdout
    assert "result.json: line 2: " in failed.stdout
    assert file.read_text() == '{"schema": 1,\n "paper"'
    assert driver.run(tmp_path).returncode == 0
    assert len(driver.result(tmp_path)["environment"]["rows_s"]) == 4


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_run_without_leftovers(
    driver: Driver, tmp_path: Path, signal_number: signal.Signals, code: int
) -> None:
    process = driver.start(tmp_path)
    while not (tmp_path / driver.paper / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal_number)
    errors = process.communicate()[1]
    if process.returncode != 0:  # a short run may end before the signal comes
        assert process.returncode == code
    assert errors == ""
    assert leftovers(tmp_path) == []


def test_signal_within_a_write_removes_the_temporary_file(tmp_path: Path) -> None:
    driver = fixture_driver(tmp_path)
    process = driver.start(tmp_path, "--set", "num_points=400000", "--set", "row_ms=0")
    temporary = tmp_path / driver.paper / "result.json.tmp"
    while not temporary.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert leftovers(tmp_path) == []
