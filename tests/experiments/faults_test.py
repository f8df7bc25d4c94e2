"""Bad input and a system that refuses: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from pathlib import Path

import pytest
from drivers import FIXTURE_CONFIG, Driver, fixture_driver, leftovers, paper_driver


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return fixture_driver(tmp_path)


def assert_refused(done: subprocess.CompletedProcess[str], code: int, part: str) -> None:
    assert done.returncode == code, done
    assert part in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--set", "scal=2"], 'unknown key "scal" (did you mean "scale"?)'),
        (["--set", "num_points=many"], "--set num_points must be an integer"),
        (["--set", "scale=nan"], "--set scale must be a finite number"),
        (["--set", "seed=\nx"], "--set seed must be an integer"),
        (["--only", "F5"], 'has no row "F5" (did you mean "F1"?)'),
        (["--preset", "smal"], '(did you mean "small"?)'),
        (["--preset", "full"], 'has no preset "full"'),
        (["--resum", "auto"], '(did you mean "--resume"?)'),
        (["--override", "none.json"], "none.json: No such file or directory"),
    ],
)
def test_wrong_arguments_are_one_line_before_any_work(
    driver: Driver, tmp_path: Path, arguments: list[str], part: str
) -> None:
    out = tmp_path / "out"
    assert_refused(driver.run(out, *arguments), 2, part)
    assert not out.exists()


@pytest.mark.parametrize("paper", ["fixture-driver", "regular-language"])
def test_config_with_an_unknown_key_is_refused(tmp_path: Path, paper: str) -> None:
    driver = fixture_driver(tmp_path) if paper == "fixture-driver" else paper_driver(paper)
    config = json.loads(driver.config.read_text())
    config["prestes"] = {}
    driver.config = tmp_path / "unknown.json"
    driver.config.write_text(json.dumps(config))
    out = tmp_path / "out"
    assert_refused(
        driver.run(out), 2, 'unknown.json: unknown key "prestes" (did you mean "presets"'
    )
    assert not out.exists()


@pytest.mark.parametrize("option", ["--config", "--override"])
def test_malformed_file_is_named_with_its_line(driver: Driver, tmp_path: Path, option: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text('{\n "scale": 1,\n "seed" 2\n}')
    out = tmp_path / "out"
    if option == "--config":
        driver.config = file
        done = driver.run(out)
    else:
        done = driver.run(out, option, str(file))
    assert_refused(done, 2, f"{file}: line 3: ")
    assert not out.exists()


@pytest.mark.parametrize("paper", ["fixture-driver", "regular-language"])
def test_result_of_a_newer_schema_is_left_alone(tmp_path: Path, paper: str) -> None:
    driver = fixture_driver(tmp_path) if paper == "fixture-driver" else paper_driver(paper)
    file = driver.result_file(tmp_path / "out")
    file.parent.mkdir(parents=True)
    file.write_text('{"schema": 2}')
    assert_refused(driver.run(tmp_path / "out"), 2, "result.json: schema 2 is newer than 1")
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]
    assert file.read_text() == '{"schema": 2}'


def test_result_of_an_older_schema_is_replaced(driver: Driver, tmp_path: Path) -> None:
    file = driver.result_file(tmp_path)
    file.parent.mkdir()
    file.write_text('{"schema": 0}')
    done = driver.run(tmp_path, "--set", "row_ms=1")
    assert done.returncode == 0
    assert "its schema is 0, not 1" in done.stdout
    assert driver.result(tmp_path)["schema"] == 1


def test_out_that_cannot_be_a_folder_is_one_line(driver: Driver, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for out in [file, file / "below", Path("/proc/nothing"), Path("/dev/null")]:
        done = driver.run(out)
        assert_refused(done, 1, str(out))
        assert done.stdout == ""
    assert file.read_text() == "kept"


def test_result_file_that_cannot_be_replaced_is_one_line(driver: Driver, tmp_path: Path) -> None:
    driver.result_file(tmp_path).mkdir(parents=True)
    assert_refused(driver.run(tmp_path), 1, "result.json: Is a directory")


def test_failing_row_is_one_line_and_keeps_what_was_done(driver: Driver, tmp_path: Path) -> None:
    arguments = ["--set", "row_ms=1", "--set", "failing_row=F3"]
    done = driver.run(tmp_path, *arguments)
    assert_refused(done, 1, "row F3: fails on request")
    assert list(driver.result(tmp_path)["environment"]["rows_s"]) == ["F1", "F2"]
    assert "F3 sum" not in driver.result(tmp_path)["scalars"]


def test_second_run_on_the_same_folder_is_refused(driver: Driver, tmp_path: Path) -> None:
    first = driver.start(tmp_path, "--set", "row_ms=1000")
    while not (tmp_path / driver.paper / "config.json").exists():
        assert first.poll() is None
        time.sleep(0.005)
    assert_refused(driver.run(tmp_path), 1, "another run is writing here")
    first.kill()
    first.communicate()
    assert driver.run(tmp_path, "--set", "row_ms=1").returncode == 0


def test_write_that_fails_keeps_the_last_whole_result(driver: Driver, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert driver.run(whole).returncode == 0
    size = driver.result_file(whole).stat().st_size - 200

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    out = tmp_path / "out"
    assert_refused(driver.run(out, before_exec=limit_file_size), 1, "File too large")
    assert leftovers(out) == []
    assert 1 <= len(driver.result(out)["environment"]["rows_s"]) < 4
    assert driver.run(out).returncode == 0
    assert driver.timeless(out) == driver.timeless(whole)


def test_full_disk_is_one_line_and_keeps_the_last_whole_result(
    driver: Driver, small_disk: Path
) -> None:
    settings = ["--set", "num_points=500", "--set", "row_ms=1"]
    done = driver.run(small_disk, *settings)
    assert_refused(done, 1, "No space left on device")
    assert leftovers(small_disk) == []
    assert len(driver.result(small_disk)["environment"]["rows_s"]) >= 1


def test_full_disk_before_the_first_row_leaves_nothing(driver: Driver, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 60000)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "rest").write_bytes(b"x" * 60000)
    assert_refused(driver.run(small_disk), 1, "No space left on device")
    assert leftovers(small_disk) == []
    assert not driver.result_file(small_disk).exists()


def test_claim_that_config_lacks_is_an_error(driver: Driver, tmp_path: Path) -> None:
    config = dict(FIXTURE_CONFIG, claims=FIXTURE_CONFIG["claims"][1:])
    driver.config.write_text(json.dumps(config))
    assert_refused(driver.run(tmp_path), 1, 'config.json has no claim "C1" (did you mean "C2"?)')


def test_row_that_the_driver_lacks_is_an_error(driver: Driver, tmp_path: Path) -> None:
    config = dict(FIXTURE_CONFIG, presets={"small": {"rows": ["F1", "F44"], "row_ms": 1}})
    driver.config.write_text(json.dumps(config))
    done = driver.run(tmp_path)
    assert_refused(done, 2, 'names the row "F44", which the driver lacks (did you mean "F4"?)')
