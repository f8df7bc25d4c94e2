"""The command line: what it prints, exit codes, errors of one line."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_archive import Archive
from paperlab.data._command import main

UKRAINIAN = "\u043f\u0440\u043e\u0433\u0440\u0430\u043c\u0430 " * 40
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def uk(archive: Archive) -> Archive:
    archive.add_pages("uk", "a", "b", text=UKRAINIAN)
    return archive


def one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


def exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as leave:
        return int(str(leave.code))


def test_list_before_and_after_a_fetch(uk: Archive, capsys: Capture) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "manual-pages: manual pages of Linux in nine languages" in out
    assert out.count("  not fetched\n".lstrip()) == 15
    assert out.count("  comes with paperlab\n".lstrip()) == 7
    assert not uk.cache.exists()
    main(["fetch", "manual-pages", "--domains=uk,zh"])
    capsys.readouterr()
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "fetched  " in line or "missing" in line] == [
        "zh missing: manpages-zh: Unable to locate package manpages-zh".split(),
        "uk fetched 2 documents 1.4 kB".split(),
    ]


def test_fetch_speaks_on_stdout(uk: Archive, capsys: Capture) -> None:
    assert main(["fetch", "manual-pages", "--domains", "uk"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        "data: fetched manpages-uk 1.0-1, 0.0 MB",
        "data: uk: 2 documents, 0.0 MB",
        f"data: manual-pages is complete in {uk.cache}/data/manual-pages",
    ]
    uk.set("offline")
    assert main(["fetch", "manual-pages", "--domains", "uk"]) == 0
    captured = capsys.readouterr()
    assert one_line(captured.out) and captured.err == ""


def test_a_missing_package_is_one_line_and_exit_1(uk: Archive, capsys: Capture) -> None:
    assert main(["fetch", "manual-pages", "--domains", "uk,zh,en"]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "paperlab data fetch: manual-pages: missing domains "
        "en (manpages: Unable to locate package manpages); "
        "zh (manpages-zh: Unable to locate package manpages-zh)\n"
    )
    assert "data: uk: 2 documents" in captured.out
    assert main(["fetch", "manual-pages", "--domains", "uk,zh"]) == 1
    assert "missing domain zh (manpages-zh" in capsys.readouterr().err


def test_stats(uk: Archive, capsys: Capture) -> None:
    main(["fetch", "manual-pages", "--domains=uk,zh"])
    manifest = (uk.cache / "data/manual-pages/manifest.json").read_bytes()
    capsys.readouterr()
    assert main(["stats", "manual-pages"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["manual-pages:", "manifest", hashlib.sha256(manifest).hexdigest()]
    assert lines[2][:2] == ["zh", "missing:"]
    assert [line[:2] for line in lines[3:6]] == [["uk", "train"], ["uk", "valid"], ["uk", "test"]]
    assert lines[6][:2] == ["manpages-uk", "1.0-1,"] and lines[-1][:2] == ["all", "2"]
    assert main(["stats", "manual-pages", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(manifest)


def test_the_sample_needs_no_fetch(archive: Archive, capsys: Capture) -> None:
    assert main(["stats", "sample"]) == 0
    assert "python   test" in capsys.readouterr().out
    assert main(["list"]) == 0
    assert capsys.readouterr().out.count(" fetched ") == 6 and archive.calls == []


def test_stats_verifies(uk: Archive, capsys: Capture) -> None:
    main(["fetch", "manual-pages", "--domains=uk,zh"])
    assert main(["stats", "manual-pages", "--verify"]) == 0
    (path,) = (uk.cache / "data/manual-pages").glob("uk-*/train.bin")
    content = path.read_bytes() or b"x"
    path.write_bytes(content[:-1] + b"!")
    capsys.readouterr()
    assert main(["stats", "manual-pages"]) == 0
    assert main(["stats", "manual-pages", "--verify"]) == 1
    captured = capsys.readouterr()
    assert one_line(captured.err) and f"{path}: has the SHA-256 " in captured.err


def test_a_closed_pipe_is_quiet(uk: Archive, package_path: Path) -> None:
    main(["fetch", "manual-pages", "--domains=uk"])
    for arguments in (["list"], ["stats", "manual-pages"], ["tokens", "sample"]):
        reader, writer = os.pipe()
        os.close(reader)
        run = subprocess.run(
            [sys.executable, "-m", "paperlab", "data", *arguments],
            env={**os.environ, "PYTHONPATH": str(package_path)},
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writer)
        assert (run.returncode, run.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "paperlab data: the following arguments are required: command"),
        (["lst"], 2, "invalid choice: 'lst'"),
        (["fetch"], 2, "required: name"),
        (["fetch", "a\nb"], 2, "data fetch: unknown recipe 'a\\nb'; did you mean one of manual"),
        (["fetch", "manualpages"], 2, "unknown recipe 'manualpages'; did you mean 'manual-pages'?"),
        (["fetch", "manual-pages", "--domains", "en,dee"], 2, "'dee'; did you mean 'de'?"),
        (["fetch", "manual-pages", "--domains="], 2, "unknown domain of manual-pages ''"),
        (["stats", "xyz"], 2, "paperlab data stats: unknown recipe 'xyz'"),
        (["tokens", "sample", "--domains=xx"], 2, "data tokens: unknown domain of sample 'xx'"),
        (["stats", "code"], 1, "data stats: code is not fetched: ./paperlab data fetch code"),
    ],
)
def test_errors_are_one_line(
    archive: Archive, capsys: Capture, arguments: list[str], code: int, message: str
) -> None:
    assert exit_code(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == "" and one_line(captured.err) and message in captured.err
    assert archive.calls == [] and not archive.cache.exists()


def test_a_cache_that_cannot_be_written(
    uk: Archive, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "file/cache"))
    assert main(["fetch", "manual-pages"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"paperlab data fetch: '{tmp_path}/file/cache/")
    assert captured.err.endswith("': Not a directory\n") and one_line(captured.err)


def test_a_damaged_manifest_is_named(uk: Archive, capsys: Capture) -> None:
    main(["fetch", "manual-pages", "--domains=uk"])
    (uk.cache / "data/manual-pages/manifest.json").write_text("{\n}}")
    capsys.readouterr()
    assert main(["stats", "manual-pages"]) == 1
    captured = capsys.readouterr()
    assert one_line(captured.err) and "manifest.json: line 2: Extra data" in captured.err


def test_the_package_has_the_command(uk: Archive, run_python) -> None:
    run = run_python(["-m", "paperlab", "data", "fetch", "manual-pages", "--domains=uk"])
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("data/manual-pages\n")
    run = run_python(["-m", "paperlab", "data", "fetch", "nothing"])
    assert run.returncode == 2 and one_line(run.stderr)
    assert "data" in run_python(["-m", "paperlab", "--help"]).stdout


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PAPERLAB_CACHE": "/x/y"}, "/x/y"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/paperlab"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/.cache/paperlab"),
        ({}, "/home/.cache/paperlab"),
    ],
)
def test_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    from paperlab import data

    for name in ("PAPERLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(data.cache_folder()) == expected


def test_importing_the_room_needs_no_network_and_no_tools(run_python) -> None:
    run = run_python(
        "import paperlab; print(paperlab.data.recipes())", env={"PATH": "/nonexistent"}
    )
    assert run.returncode == 0 and "manual-pages" in run.stdout
