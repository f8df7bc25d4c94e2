"""Weights in torch's own format: pytorch_model.bin, or shards with pytorch_model.bin.index.json."""

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

_SINGLE = "pytorch_model.bin"
_INDEX = "pytorch_model.bin.index.json"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_SHARD = "pytorch_model-{:05d}-of-{:05d}.bin"
# Files that readers may take for weights: what is not written anew is removed.
_WEIGHTS = re.compile(
    r"pytorch_model(-[0-9]+-of-[0-9]+)?\.bin|pytorch_model\.bin\.index\.json"
    r"|model(-[0-9]+-of-[0-9]+)?\.safetensors|model\.safetensors\.index\.json"
)


def find_bin(folder: Path) -> Path | None:
    """Returns the file or the index, or None: there are neither, or safetensors, which go first."""
    if any((folder / name).exists() for name in _SAFETENSORS):
        return None
    files = (folder / name for name in (_SINGLE, _INDEX))
    return next((file for file in files if file.is_file()), None)


def read_bin(file: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors, strided and on the CPU, of what `find_bin` found, running no code of it.

    Raises OSError if a file cannot be read; ValueError, naming the file and the tensor, if one is
    malformed, a tensor is sparse or has no data, or the shards are not as the index says.
    """
    return _read_shards(file) if file.name == _INDEX else _read_file(file)


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    file_of = _read_index(index)
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(file_of.values())):
        path = index.parent / shard
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such shard, which {index} names")
        for name, value in _read_file(path).items():
            if file_of.get(name) != shard:
                there = f"has it in {file_of[name]}" if name in file_of else "does not list it"
                raise ValueError(
                    f"{path}: tensor '{name:.200}' must be as in {index}, which {there}"
                )
            tensors[name] = value
    for name, shard in file_of.items():
        if name not in tensors:
            raise ValueError(
                f"{index.parent / shard}: has no tensor '{name:.200}', which {index} lists there"
            )
    return tensors


def _read_index(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_bytes(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index}: must be JSON, {error}") from None
    file_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(file_of, dict) or not file_of:
        raise ValueError(
            f"{index}: must be an object with an object 'weight_map' that is not empty"
        )
    for name, file in file_of.items():
        if not _is_file_name(file):
            raise ValueError(
                f"{index}: the file of tensor '{name:.200}' must be a name without a folder, got "
                f"{file!r:.200}"
            )
    return file_of


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"got '{key:.200}' twice")
        result[key] = value
    return result


def _is_file_name(name: object) -> bool:
    # A folder in it could lead out of the directory.
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever its readers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: must be tensors by their names, {reason}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{file}: must be tensors by their names, got {type(values).__name__}")
    return {_name(file, name): _tensor(file, name, value) for name, value in values.items()}


def _name(file: Path, name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{file}: must be tensors by their names, got the name {name!r:.200}")
    return name


def _tensor(file: Path, name: str, value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        got = type(value).__name__
    elif value.is_meta:
        got = "one on the meta device"
    elif value.layout != torch.strided:
        got = f"one of layout {value.layout}"
    elif value.is_quantized or value.is_nested:
        got = "a quantized one" if value.is_quantized else "a nested one"
    else:
        return value.detach()
    raise ValueError(f"{file}: '{name:.200}' must be a dense tensor with data, got {got}")


class BinFiles:
    """Weight files to write: first under temporary names, then under their own.

    folder: must be there. max_shard_bytes: of a file's tensors; a larger tensor has its own file.
    """

    def __init__(self, folder: Path, max_shard_bytes: int) -> None:
        self._folder = folder
        self._max_shard_bytes = max_shard_bytes
        self._names: list[str] = []
        self._pending: list[Path] = []

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes all tensors, and the index where one file does not hold them, to the disk.

        Raises OSError naming the file; `discard` is to be called then.
        """
        shards = _shards(tensors, self._max_shard_bytes)
        total = len(shards)
        names = [_SHARD.format(i + 1, total) if total > 1 else _SINGLE for i in range(total)]
        for name, shard in zip(names, shards, strict=True):
            with self._new_file(name) as file:
                _save({key: _dense(tensors[key]) for key in shard}, file)
        if total > 1:
            file_of = {key: n for n, shard in zip(names, shards, strict=True) for key in shard}
            size = sum(value.nbytes for value in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": file_of}
            with self._new_file(_INDEX) as file:
                file.write((json.dumps(index, indent=2, sort_keys=True) + "\n").encode())

    def finish(self) -> None:
        """Gives the files their names and removes other weights, which could be read instead."""
        for name in self._names:
            temporary = self._folder / f"{name}.tmp"
            os.replace(temporary, self._folder / name)
            self._pending.remove(temporary)
        for path in list(self._folder.iterdir()):
            if _WEIGHTS.fullmatch(path.name) and path.name not in self._names:
                path.unlink()

    def discard(self) -> None:
        """Removes the files that still have temporary names."""
        for path in self._pending:
            path.unlink(missing_ok=True)
        self._pending.clear()

    def _new_file(self, name: str) -> "_NewFile":
        path = self._folder / name
        if path.exists() and not path.is_file():
            raise _error_at(path, errno.EISDIR if path.is_dir() else errno.EEXIST)
        self._names.append(name)
        self._pending.append(self._folder / f"{name}.tmp")
        return _NewFile(self._pending[-1], path)


class _NewFile:
    """A file that is on disk when the `with` ends; errors of the system name `shown`."""

    def __init__(self, path: Path, shown: Path) -> None:
        self._path = path
        self._shown = shown
        self._error: OSError | None = None

    def __enter__(self) -> "_NewFile":
        try:
            self._file: BinaryIO = self._path.open("wb")
        except OSError as error:
            raise _error_at(self._shown, error.errno) from None
        return self

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._error = error  # torch makes another one of it
            raise

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self._error = error
            raise

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
        except OSError as failed:
            self._error = self._error or failed
        if self._error is not None and (error is None or isinstance(error, Exception)):
            raise _error_at(self._shown, self._error.errno) from None


def _error_at(path: Path, code: int | None) -> OSError:
    number = code or errno.EIO
    return OSError(number, os.strerror(number), str(path))


def _save(tensors: dict[str, torch.Tensor], file: _NewFile) -> None:
    torch.save(tensors, file)  # type: ignore[arg-type]


def _shards(tensors: Mapping[str, torch.Tensor], max_bytes: int) -> list[list[str]]:
    """The names of each shard, in order; one shard where there are no tensors."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, value in tensors.items():
        if shards[-1] and filled + value.nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += value.nbytes
    return shards


def _dense(value: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU with memory of its own: torch.save writes all memory of a view."""
    dense = value.detach().cpu().resolve_neg().contiguous()
    is_part = dense.untyped_storage().nbytes() != dense.nbytes
    return dense.clone() if is_part else dense
