"""Fetching a model: pip serves a small wheel from a folder, nothing comes from the network."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")
pytest.importorskip("transformers")

from gguf_files import write_model
from paperlab import io, models
from paperlab.models import _fetch, _recipes
from paperlab.models._command import main

Capture = pytest.CaptureFixture[str]

# The command with another recipe, given as JSON; and optionally with a step that takes long.
PROGRAM = """
import json, sys, time
from paperlab.models import _command, _fetch, _recipes
model = _recipes.Model(**json.loads(sys.argv[1]))
_recipes.MODELS.clear()
_recipes.MODELS[model.name] = model
if sys.argv[2]:
    def slow(*_, **__):
        print("waiting", flush=True)
        time.sleep(60)
    setattr(_fetch, sys.argv[2], slow)
sys.exit(_command.main(sys.argv[3:]))
"""


@dataclass
class Shop:
    """A folder of wheels in which pip looks, and a cache."""

    folder: Path
    cache: Path
    model: _recipes.Model
    package_path: Path

    @property
    def names(self) -> list[str]:
        """What lies in the cache."""
        return sorted(path.name for path in (self.cache / "models").iterdir())

    def close(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()

    def start(self, slow: str, *arguments: str) -> subprocess.Popen[str]:
        recipe = json.dumps(self.model.__dict__)
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, recipe, slow, *arguments],
            env={**os.environ, "PYTHONPATH": str(self.package_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def write_wheel(folder: Path, file: Path) -> Path:
    path = folder / "tiny_model-0.3-py3-none-any.whl"
    info = "tiny_model-0.3.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file, "tiny_model/tiny.gguf")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.3\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package_path: Path) -> Shop:
    folder = tmp_path / "wheels"
    folder.mkdir()
    file = write_model(tmp_path / "tiny.gguf")
    wheel = write_wheel(folder, file)
    model = _recipes.Model(
        name="tiny", summary="a tiny one", package="tiny-model", version="0.3",
        wheel_sha256=sha256(wheel), file="tiny_model/tiny.gguf",
        file_bytes=file.stat().st_size, file_sha256=sha256(file),
    )  # fmt: skip
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "the cache"))  # spaces work
    monkeypatch.setattr(_recipes, "MODELS", {"tiny": model})
    monkeypatch.setattr("paperlab.models.MODELS", {"tiny": model})
    monkeypatch.setattr("paperlab.models._command.MODELS", {"tiny": model})
    return Shop(folder, tmp_path / "the cache", model, package_path)


def test_a_model_is_fetched_and_converted(shop: Shop) -> None:
    lines: list[str] = []
    directory = models.fetch("tiny", notice=lines.append)
    assert directory == shop.cache / "models/tiny" == models.path("tiny")
    assert models.gguf_path("tiny").read_bytes() == (shop.folder.parent / "tiny.gguf").read_bytes()
    assert shop.names == ["models.lock", "tiny", "tiny.gguf"]
    assert lines == ["fetching tiny-model 0.3 from PyPI, 0 MB", "converting tiny.gguf"]
    assert len(io.load_file(directory / "model.safetensors")) == 20
    assert models.names() == ["tiny"]


def test_a_second_call_does_nothing_and_works_offline(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.fetch("tiny")
    shop.close()
    (shop.cache / "models/models.lock").unlink()
    (shop.cache / "models/models.lock").mkdir()  # nobody can open it
    monkeypatch.setattr(subprocess, "run", None)
    before = {path: path.stat().st_mtime_ns for path in shop.cache.rglob("*")}
    lines: list[str] = []
    assert models.fetch("tiny", notice=lines.append) == models.path("tiny")
    assert lines == []
    assert {path: path.stat().st_mtime_ns for path in shop.cache.rglob("*")} == before


def test_another_cache(shop: Shop, tmp_path: Path) -> None:
    assert models.fetch("tiny", cache=tmp_path / "b") == tmp_path / "b/models/tiny"
    assert models.path("tiny", cache=tmp_path / "b").is_dir() and not shop.cache.exists()


def test_before_a_fetch(shop: Shop) -> None:
    for function in (models.path, models.gguf_path):
        with pytest.raises(FileNotFoundError, match=r"tiny is not in .* \./paperlab fetch tiny"):
            function("tiny")
    assert not shop.cache.exists()


@pytest.mark.parametrize(
    "what", ["config.json", "model.safetensors", "tokenizer.json", "tiny.gguf"]
)
def test_what_is_missing_is_made_again(shop: Shop, what: str) -> None:
    directory = models.fetch("tiny")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    path = directory / what if what != "tiny.gguf" else shop.cache / "models" / what
    path.unlink()
    with pytest.raises(FileNotFoundError):
        models.path("tiny")
    if what != "tiny.gguf":
        shop.close()  # the GGUF file is there: no network is needed
    models.fetch("tiny")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_a_damaged_file_in_the_cache_is_fetched_again(shop: Shop) -> None:
    models.fetch("tiny")
    file = shop.cache / "models/tiny.gguf"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    models.fetch("tiny")
    assert file.read_bytes() == content


def test_another_directory_of_that_name_is_replaced(shop: Shop) -> None:
    (shop.cache / "models/tiny").mkdir(parents=True)
    (shop.cache / "models/tiny/model.safetensors").write_text("old")
    assert len(io.load_file(models.fetch("tiny") / "model.safetensors")) == 20


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"wheel_sha256": "0" * 64}, "tiny_model-0.3-py3-none-any.whl is damaged or another one"),
        ({"file_sha256": "0" * 64}, "tiny_model/tiny.gguf is damaged or another one: SHA-256 "),
    ],
)
def test_what_comes_is_checked(
    shop: Shop, capsys: Capture, change: dict[str, str], reason: str
) -> None:
    _recipes.MODELS["tiny"] = replace(shop.model, **change)
    assert main(["tiny"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"paperlab fetch: {reason}") and captured.err.count("\n") == 1
    assert shop.names == ["models.lock"]


def test_a_damaged_wheel(shop: Shop, capsys: Capture) -> None:
    wheel = next(shop.folder.iterdir())
    wheel.write_bytes(wheel.read_bytes()[:-30])
    assert main(["tiny"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("paperlab fetch: ") and captured.err.count("\n") == 1
    assert shop.names == ["models.lock"]


def test_without_the_package(shop: Shop, capsys: Capture) -> None:
    shop.close()
    assert main(["tiny"]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "paperlab fetch: tiny-model 0.3 could not be fetched from PyPI: No matching distribution "
        "found for tiny-model==0.3\n"
    )
    assert captured.out == "fetch: fetching tiny-model 0.3 from PyPI, 0 MB\n"
    assert shop.names == ["models.lock"]


def test_offline_is_one_line(shop: Shop, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    assert main(["tiny"]) == 1
    assert capsys.readouterr().err == (
        "paperlab fetch: tiny-model 0.3 could not be fetched from PyPI: no connection to the "
        "package index\n"
    )
    assert shop.names == ["models.lock"]


def test_a_failed_conversion_keeps_the_file(
    shop: Shop, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(_fetch, "convert_gguf", full)
        assert main(["tiny"]) == 1
    assert capsys.readouterr().err == "paperlab fetch: 'x': No space left on device\n"
    assert shop.names == ["models.lock", "tiny.gguf"]
    shop.close()
    assert main(["tiny"]) == 0


def test_a_cache_that_cannot_be_written(
    shop: Shop, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "file/cache"))
    assert main(["tiny"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and f"'{tmp_path}/file" in captured.err


# --- the command line ---------------------------------------------------------------------------


def test_the_last_line_is_the_path(shop: Shop, capsys: Capture) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.endswith("not fetched\n") and not shop.cache.exists()
    assert main(["tiny"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        "fetch: fetching tiny-model 0.3 from PyPI, 0 MB", "fetch: converting tiny.gguf",
        f"{shop.cache}/models/tiny",
    ]  # fmt: skip
    assert main(["tiny"]) == 0
    assert capsys.readouterr().out == f"fetch: tiny is there\n{shop.cache}/models/tiny\n"
    assert main(["list"]) == 0
    assert capsys.readouterr().out == (
        f"tiny       a tiny one; PyPI's tiny-model 0.3, 0 MB; fetched: {shop.cache}/models/tiny\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny"], "paperlab fetch: unknown model 'tinny'; did you mean 'tiny'?"),
        (["lst"], "paperlab fetch: unknown model 'lst'; did you mean 'list'?"),
        (["a\nb"], "paperlab fetch: unknown model 'a\\nb'; did you mean one of tiny, list?"),
        (["tiny", "b"], "paperlab fetch: unrecognized arguments: b"),
    ],
)
def test_errors_are_one_line(
    shop: Shop, capsys: Capture, arguments: list[str], message: str
) -> None:
    try:
        code = main(arguments)
    except SystemExit as leave:
        code = int(str(leave.code))
    captured = capsys.readouterr()
    assert (code, captured.out, captured.err) == (2, "", f"{message}\n")
    assert not shop.cache.exists()


@pytest.mark.parametrize("name", ["smol", 3, None])
def test_an_unknown_name(name: Any) -> None:
    for function in (models.fetch, models.path, models.gguf_path):
        with pytest.raises(ValueError, match=rf"^models\.{function.__name__}: unknown model"):
            function(name)


def test_the_recipes_are_pinned() -> None:
    assert "smollm2" in models.names()
    for model in _recipes.MODELS.values():
        assert len(model.wheel_sha256) == len(model.file_sha256) == 64 and model.version


# --- interruptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["_download", "_check", "convert_gguf"])
def test_an_interrupt_leaves_nothing_half(shop: Shop, step: str) -> None:
    process = shop.start(step, "tiny")
    _wait_for_line(process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    assert shop.names == ["models.lock", *(["tiny.gguf"] if step == "convert_gguf" else [])]


def test_a_killed_fetch_is_taken_up(shop: Shop) -> None:
    process = shop.start("_check", "tiny")
    _wait_for_line(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert shop.names == ["models.lock", "tiny.fetch.tmp"]
    models.fetch("tiny")
    assert shop.names == ["models.lock", "tiny", "tiny.gguf"]


def test_two_fetches_at_once_share_the_work(shop: Shop) -> None:
    processes = [shop.start("", "tiny") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("fetching" in out for out, _ in outputs) == 1
    assert all(out.endswith(f"{shop.cache}/models/tiny\n") for out, _ in outputs)
    shutil.rmtree(shop.cache)


def _wait_for_line(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    start = time.monotonic()
    for line in process.stdout:
        if line == "waiting\n":
            return
        assert time.monotonic() - start < 60
    raise AssertionError(process.communicate())
