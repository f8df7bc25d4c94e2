"""Weights in torch's own format: pytorch_model.bin, or shards with pytorch_model.bin.index.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_SINGLE = "pytorch_model.bin"
_INDEX = "pytorch_model.bin.index.json"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")


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
