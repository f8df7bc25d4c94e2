"""A directory that is complete or not there."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paperlab import io
from paperlab.convert import _tokenizer

CONVERTER = "1"  # counts up whenever the same file gives another directory

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_CONFIGS = ("config.json", "generation_config.json")
_OWN = re.compile(
    r"(model[-\w]*\.safetensors(\.index\.json)?|\w*(config|tokenizer|map|tokens|vocab)\.json"
    r"|merges\.txt|tokenizer\.model|chat_template\.jinja)(\.tmp)?"
)


def metadata(sha256: str, dtype: str) -> dict[str, str]:
    """What the weights' file says of its source. `format` is transformers' own mark."""
    return {"format": "pt", "gguf_sha256": sha256, "dtype": dtype, "converter": CONVERTER}


def is_finished(directory: Path, sha256: str, dtype: str) -> bool:
    """Whether a directory is the whole conversion of the GGUF file of that hash."""
    try:
        weights = _weights(directory)
        found = io.load_metadata(directory / weights[0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    names = [*_CONFIGS, *_tokenizer.FILES, *weights]
    is_whole = all((directory / name).is_file() for name in names)
    return is_whole and found == metadata(sha256, dtype)


def _weights(directory: Path) -> list[str]:
    """The files of weights that a directory should have."""
    if (directory / WEIGHTS).exists() or not (directory / INDEX).exists():
        return [WEIGHTS]
    index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    return sorted(set(index["weight_map"].values()))


def check_target(directory: Path, source: Path, *, force: bool) -> None:
    """Raises ValueError unless a directory may get this name; OSError if it cannot be looked at."""
    if not directory.exists():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _old(directory).rename(directory)  # of a replacement that was killed halfway
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"{directory}: is there and is no directory")
    if not any(directory.iterdir()):
        return
    if not force:
        raise ValueError(
            f"{directory}: is there and is not empty; --force (force=True) replaces it"
        )
    if directory in source.parents:
        raise ValueError(f"{directory}: holds the file that is to be converted")
    if not (directory / "config.json").is_file() or any(x.is_dir() for x in directory.iterdir()):
        raise ValueError(f"{directory}: does not look like a model, and is not replaced")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes an object with its keys in order."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(directory: Path, num_bytes: int, *, force: bool) -> Iterator[Path]:
    """A temporary directory to be filled, which gets the name at the end; removed on any error."""
    temporary = directory.with_name(f"{directory.name}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    _check_space(temporary.parent, num_bytes)
    with _locked(temporary):
        try:
            yield temporary
            for path in [*temporary.iterdir(), temporary]:
                _sync(path)
            _rename(temporary, directory, force=force)
            _sync(directory.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def _locked(temporary: Path) -> Iterator[None]:
    """Makes the directory and holds it; what a killed conversion left is removed."""
    while True:
        with contextlib.suppress(FileExistsError):
            temporary.mkdir()
        handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{temporary}: another conversion is writing it") from None
            names = os.listdir(handle)
            strange = [name for name in names if not _OWN.fullmatch(name)]
            if strange:
                raise ValueError(f"{temporary}: is in the way: it holds {strange[0]!a:.60}")
            if not names and _is_at(temporary, handle):
                yield
                return
            shutil.rmtree(temporary, ignore_errors=True)
        finally:
            os.close(handle)


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open directory still has this name."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(handle))


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(
            28, f"No space left: needs {num_bytes / 1e6:.0f} MB, {free / 1e6:.0f} MB are free",
            str(folder),
        )  # fmt: skip


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _old(directory: Path) -> Path:
    """Where a model waits while another takes its name."""
    return directory.with_name(f"{directory.name}.old.tmp")


def _rename(temporary: Path, directory: Path, *, force: bool) -> None:
    """Over nothing, an empty directory, or one that is to be replaced."""
    if not force or not directory.exists():
        temporary.rename(directory)  # the system refuses what has come meanwhile
        return
    old = _old(directory)
    shutil.rmtree(old, ignore_errors=True)
    directory.rename(old)
    try:
        temporary.rename(directory)
    except BaseException:
        old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
