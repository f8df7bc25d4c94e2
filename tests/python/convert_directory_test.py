"""The directory of a conversion is whole or not there; the command line."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")
pytest.importorskip("transformers")

from gguf_files import write_model
from paperlab import convert, io
from paperlab.convert import _directory, _gguf, _tokenizer
from paperlab.convert._command import main

FILES = [
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
]  # fmt: skip


def test_a_finished_conversion_is_left_alone(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    directory = convert.gguf(path, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in directory.iterdir()}
    assert convert.gguf(path, directory) == directory
    assert {file: file.stat().st_mtime_ns for file in directory.iterdir()} == before
    with pytest.raises(ValueError, match="is there and is not empty; --force"):
        convert.gguf(path, directory, dtype="bfloat16")
    other = write_model(tmp_path / "other.gguf", seed=2)
    with pytest.raises(ValueError, match="is there and is not empty"):
        convert.gguf(other, directory)
    assert {file: file.stat().st_mtime_ns for file in directory.iterdir()} == before
    (directory / "extra.txt").write_text("")
    before_force = io.load_file(directory / "model.safetensors")["model.norm.weight"]
    convert.gguf(other, directory, force=True)
    after = io.load_file(directory / "model.safetensors")["model.norm.weight"]
    assert not torch.equal(before_force, after)
    assert sorted(os.listdir(directory)) == FILES
    assert not list(tmp_path.glob("*.tmp"))


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    directory = convert.gguf(write_model(tmp_path / "m.gguf"), tmp_path / "link")
    assert directory == tmp_path / "out" and sorted(os.listdir(directory)) == FILES
    assert (tmp_path / "link").is_symlink()


def test_what_is_no_model_is_never_replaced(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("")
    (tmp_path / "file").write_text("")
    nested = tmp_path / "nested"
    (nested / "folder").mkdir(parents=True)
    (nested / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    for name, reason in [
        ("notes", "does not look like a model"), ("nested", "does not look like a model"),
        ("file", "is no directory"), (".", "holds the file that is to be converted"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            convert.gguf(path, tmp_path / name, force=True)
    assert (tmp_path / "notes/mine.txt").exists() and path.exists()


def test_a_strange_temporary_folder_is_left(tmp_path: Path) -> None:
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp/mine.txt").write_text("")
    with pytest.raises(ValueError, match=r"out\.tmp: is in the way: it holds 'mine\.txt'"):
        convert.gguf(write_model(tmp_path / "m.gguf"), tmp_path / "out")
    assert (tmp_path / "out.tmp/mine.txt").exists() and not (tmp_path / "out").exists()


Stage = Callable[..., Any]
STAGES: list[tuple[object, str]] = [
    (_tokenizer, "write"), (_gguf, "_write_configs"), (_gguf, "_write_weights"),
    (_gguf, "_check_finite"), (_directory, "_rename"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), STAGES, ids=lambda x: x if isinstance(x, str) else "")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_error_at_any_stage_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str, error: Any
) -> None:
    path = write_model(tmp_path / "m.gguf")
    stage: Stage = getattr(module, name)

    def failing(*arguments: Any, **options: Any) -> None:
        if name != "_rename":
            stage(*arguments, **options)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        with pytest.raises((KeyboardInterrupt, OSError)):
            convert.gguf(path, tmp_path / "out")
        assert os.listdir(tmp_path) == ["m.gguf"]
    convert.gguf(path, tmp_path / "out")


def test_a_failed_replacement_keeps_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "m.gguf")
    directory = convert.gguf(path, tmp_path / "out")
    before = (directory / "config.json").stat().st_ino
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "out.tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        convert.gguf(path, directory, force=True)
    assert (directory / "config.json").stat().st_ino == before
    assert sorted(os.listdir(tmp_path)) == ["m.gguf", "out"]


def test_a_model_that_waits_for_a_killed_replacement_comes_back(tmp_path: Path) -> None:
    directory = convert.gguf(write_model(tmp_path / "m.gguf"), tmp_path / "out")
    before = (directory / "model.safetensors").read_bytes()
    directory.rename(tmp_path / "out.old.tmp")
    with pytest.raises(ValueError, match="is there and is not empty"):
        convert.gguf(write_model(tmp_path / "other.gguf", seed=2), directory)
    assert (directory / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "out.old.tmp").exists()


@pytest.mark.parametrize(
    ("module", "name"), STAGES[1:], ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_killed_conversion_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str
) -> None:
    """SIGKILL: the directory is not there; the next call removes the rest and finishes."""
    path = write_model(tmp_path / "m.gguf")
    convert.gguf(path, tmp_path / "whole")  # everything is imported before the fork
    reached = tmp_path / "reached"

    def waiting(*_: Any, **__: Any) -> None:
        reached.write_text("")
        time.sleep(60)

    child = os.fork()
    if child == 0:
        try:
            setattr(module, name, waiting)
            convert.gguf(path, tmp_path / "out")
        finally:
            os._exit(1)
    deadline = time.monotonic() + 60
    while not reached.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(ValueError, match="another conversion is writing it"):
        convert.gguf(path, tmp_path / "out")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "out.tmp").is_dir() and not (tmp_path / "out").exists()
    convert.gguf(path, tmp_path / "out")
    assert not (tmp_path / "out.tmp").exists()
    for file in FILES:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


# --- the command line ---------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys, time
from paperlab.convert import _gguf
from paperlab.convert._command import main
def interrupted(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
_gguf._check_finite = interrupted
sys.exit(main(sys.argv[1:]))
"""

FULL = """
import resource, sys
from paperlab.convert._command import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "m.gguf")
    monkeypatch.chdir(tmp_path)
    assert main(["m.gguf", "out", "--dtype", "bfloat16"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == (f"convert: 20 tensors of LlamaForCausalLM, 0.2 MB\n{tmp_path}/out\n")
    assert main(["m.gguf", "out", "--dtype=bfloat16"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"convert: {tmp_path}/out is a finished conversion of this file", f"{tmp_path}/out",
    ]  # fmt: skip
    assert main([str(path), "out"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"paperlab convert: {tmp_path}/out: is there and is not empty; "
        "--force (force=True) replaces it\n"
    )
    assert main(["--force", "--", str(path), "out"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "the following arguments are required: FILE.gguf|MODEL_DIR, DIR"),
        (["a"], 2, "the following arguments are required: DIR"),
        (["a", "b", "c"], 2, "unrecognized arguments: c"),
        (["a", "b", "--dtype", "float23"], 2, "unknown dtype 'float23'; did you mean 'float32'?"),
        (["a", "b", "--dtype", "q"], 2, "did you mean one of float32, bfloat16, float16?"),
        (["/nowhere/x.gguf", "b"], 1, "'/nowhere/x.gguf': No such file or directory"),
        (["", "b"], 1, "path must be a path"),
        (["/dev/null", "b"], 1, "/dev/null: must be a file"),
        (["/", "b"], 1, "'/config.json': No such file or directory"),
    ],
)
def test_errors_of_the_command_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    try:
        found = main(arguments)
    except SystemExit as leave:
        found = int(str(leave.code))
    captured = capsys.readouterr()
    assert (found, captured.out) == (code, "")
    assert captured.err.startswith("paperlab convert: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_an_interrupt_ends_with_130(tmp_path: Path, run_python: Any) -> None:
    path = write_model(tmp_path / "m.gguf")
    run = run_python(["-c", INTERRUPTED, str(path), str(tmp_path / "out")])
    assert (run.returncode, run.stderr) == (130, "")
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize(
    ("num_bytes", "file"),
    [(1000, "tokenizer.json"), (30_000, "model.safetensors")],
)
def test_a_full_disk_is_one_line(
    tmp_path: Path, run_python: Any, num_bytes: int, file: str
) -> None:
    path = write_model(tmp_path / "m.gguf")
    run = run_python(["-c", FULL, str(num_bytes), str(path), str(tmp_path / "out")])
    expected = rf"paperlab convert: .*out\.tmp/{re.escape(file)}.*File too large.*\n"
    assert run.returncode == 1 and re.fullmatch(expected, run.stderr), run.stderr
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_space_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "m.gguf")

    class Usage:
        free = 1000

    monkeypatch.setattr(_directory.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(OSError, match="No space left: needs 0 MB, 0 MB are free"):
        convert.gguf(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("target", ["m.gguf/out", "/proc/paperlab/out"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, target: str) -> None:
    path = write_model(tmp_path / "m.gguf")
    with pytest.raises(OSError, match=r"File exists|No such file"):
        convert.gguf(path, tmp_path / target)


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ("transformers", "the tokenizer needs the package transformers: pip install transformers"),
        ("gguf", "needs the package gguf: pip install gguf"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, run_python: Any, package: str, reason: str
) -> None:
    path = write_model(tmp_path / "m.gguf")
    code = f"import sys; sys.modules[{package!r}] = None\n" + FULL.replace("resource.setrl", "#")
    run = run_python(["-c", code, "0", str(path), str(tmp_path / "out")])
    assert (run.returncode, run.stderr) == (1, f"paperlab convert: convert.gguf: {reason}\n")
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_the_package_has_the_command(tmp_path: Path, run_python: Any) -> None:
    path = write_model(tmp_path / "m.gguf")
    run = run_python(["-m", "paperlab", "convert", str(path), str(tmp_path / "out")])
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith(f"{tmp_path}/out\n")
    help_text = run_python(["-m", "paperlab", "convert", "--help"]).stdout
    assert "--dtype" in help_text and "convert" in run_python(["-m", "paperlab", "--help"]).stdout


def test_importing_needs_neither_package(run_python: Any) -> None:
    code = "import sys; sys.modules['gguf'] = sys.modules['transformers'] = None\n"
    run = run_python(code + "import paperlab; print(paperlab.convert.gguf.__name__)")
    assert (run.returncode, run.stdout) == (0, "gguf\n"), run.stderr


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"path": 3}, "path"), ({"directory": None}, "directory"), ({"directory": ""}, "directory"),
        ({"dtype": "int8"}, "dtype"), ({"dtype": torch.float32}, "dtype"), ({"force": 1}, "force"),
        ({"path": "a\0b"}, "path"), ({"path": b"a"}, "path"),
    ],
)  # fmt: skip
def test_bad_arguments(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=f"convert.gguf: {argument} must be"):
        convert.gguf(**{"path": "a", "directory": "b", **options})
