"""Texts that a run reads: brought before it, and what happens where they cannot be had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drivers import ROOT, Driver, fixture_driver, paper_driver

import corpora  # isort: skip  (drivers.py says where it lies)

CORPORA = ROOT / "experiments" / "common" / "corpora.py"
Capture = pytest.CaptureFixture[str]
FEW = ("--only", "table1,table5-core")
ENGLISH = ("--set", "corpus=manual-pages", "--set", 'domains=["en"]')


@pytest.fixture
def mudd() -> Driver:
    driver = paper_driver("mudd")
    driver.options = []
    return driver


def start(driver: Driver, out: Path, cache: Path, *arguments: str) -> subprocess.Popen[str]:
    """As the launcher runs a driver, without a network."""
    programs = cache.parent / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("apt-get", "apt-cache"):
        program = programs / name
        program.write_text(
            f'#!/bin/sh\n: >"{programs}/called"\nsleep "${{SLOW:-0}}"\n'
            "echo 'E: Could not resolve the mirror' >&2\nexit 100\n"
        )
        program.chmod(0o755)
    return subprocess.Popen(
        [sys.executable, str(CORPORA), *driver.command(out, *arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PAPERLAB_CACHE": str(cache), "PATH": f"{programs}:{os.environ['PATH']}"},
    )


def run(driver: Driver, out: Path, cache: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(driver, out, cache, *arguments)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_texts_are_made_once_and_only_for_rows_that_are_to_run(
    mudd: Driver, tmp_path: Path
) -> None:
    cache = tmp_path / "the cache"
    code, output, errors = run(mudd, tmp_path, cache, "--only", "table1")
    assert (code, errors) == (0, "")
    assert not cache.exists()
    code, output, errors = run(mudd, tmp_path, cache, *FEW)
    assert (code, errors) == (0, "")
    assert "data: en: " in output
    assert list(mudd.result(tmp_path)["environment"]["corpora"]) == ["sample:en,c"]
    assert "table5-core" in mudd.result(tmp_path)["environment"]["rows_s"]
    before = mudd.result_file(tmp_path).read_text()
    code, output, errors = run(mudd, tmp_path, cache, *FEW)
    assert (code, errors) == (0, "")
    assert "up to date" in output and "data:" not in output
    assert mudd.result_file(tmp_path).read_text() == before
    assert not (tmp_path / "programs" / "called").exists()


def test_a_text_that_cannot_be_had_leaves_its_rows_out(mudd: Driver, tmp_path: Path) -> None:
    mudd.preset = "small"
    code, output, errors = run(mudd, tmp_path, tmp_path / "cache", *FEW)
    assert (code, errors) == (0, "")
    assert "data: manual-pages:en cannot be had: en: " in output
    assert "Row table5-core needs manual-pages:en, which is missing: en: " in output
    assert list(mudd.result(tmp_path)["environment"]["rows_s"]) == ["table1"]
    claims = {claim["id"]: claim for claim in mudd.result(tmp_path)["claims"]}
    assert claims["C9a"]["verdict"] == "holds"
    assert claims["C1a"]["verdict"] == "not tested at this scale"
    assert claims["C1a"]["why"].startswith("Row table5-core needs manual-pages:en, which")


def test_errors_of_the_driver_pass_through(mudd: Driver, tmp_path: Path) -> None:
    code, output, errors = run(mudd, tmp_path / "out", tmp_path / "cache", "--set", "colour=1")
    assert (code, output) == (2, "")
    assert errors.startswith('--set: unknown key "colour"') and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_driver_without_texts_is_run_as_it_is(tmp_path: Path) -> None:
    driver = fixture_driver(tmp_path)
    code, output, errors = run(driver, tmp_path, tmp_path / "cache", "--set", "row_ms=0")
    assert (code, errors) == (0, "")
    assert "F4  done in" in output
    assert json.loads(driver.result_file(tmp_path).read_text())["scalars"]["F4 undefined"] is None


def test_an_interrupt_while_fetching_ends_with_130(
    mudd: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW", "20")
    process = start(mudd, tmp_path, tmp_path / "cache", *FEW, *ENGLISH)
    while not (tmp_path / "programs" / "called").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=15)[1]
    assert (process.returncode, errors) == (130, "")
    assert not mudd.result_file(tmp_path).exists()


PROGRAM = """
from pathlib import Path

def make(requests, cache, notice):
    notice(f"{len(requests)} requests")
    return [Path("made") / r["name"] if r["name"] else "no name" for r in requests]
"""


def test_pictures_and_products_become_options(tmp_path: Path, capsys: Capture) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    needs = [
        f"run {i}\t{program}\t{json.dumps({'name': name})}" for i, name in enumerate(("a", ""))
    ]
    words = corpora.options_for(["sample-images", *needs], tmp_path / "cache")
    folder = tmp_path / "cache" / "data" / "sample-images"
    assert words == [
        *("--corpus", f"sample-images={folder}"),
        *("--corpus", "run 0=made/a"),
        *("--no-corpus", "run 1=no name"),
    ]
    assert (folder / "manifest.json").exists()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["data: 2 requests", "data: run 1 cannot be had: no name"]


def test_a_program_that_fails_is_a_reason(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import nonesuch_module\n")
    assert corpora.options_for([f"run\t{program}\tnull"], tmp_path) == [
        *("--no-corpus", "run=No module named 'nonesuch_module'")
    ]
