"""A Hugging Face directory to one with numbers of another type, a piece of a tensor at a time."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from paperlab import _arguments, _core, io
from paperlab.convert import _directory
from paperlab.convert._gguf import DTYPES, Notice

_PIECE = 1 << 20  # numbers at a time

_OTHER_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "chat_template.jinja",
    "preprocessor_config.json",
)
_FLOATS = ("F64", "F32", "BF16", "F16")
_KEPT = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64")  # indices, masks


def checkpoint(
    source: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    dtype: str,
    max_shard_size: int | str = "5GB",
    force: bool = False,
    notice: Notice | None = None,
) -> Path:
    """Writes a Hugging Face directory anew with another type of numbers; returns the directory.

    source: a directory of any architecture with config.json and safetensors, in shards or not.
    directory: gets config.json with this dtype, the weights under the same names (in shards of at
        most `max_shard_size`), and copies of the tokenizer's files and generation_config.json.
    dtype: float32, bfloat16 or float16, rounded to the nearest; tensors of integers stay as they
        are. force: replace a model that is there. notice: called with each line of progress.

    Needs less than 32 MiB of memory, however large the model is. The directory is complete or not
    there: it is written as `directory`.tmp, which is renamed at the end.

    Raises ValueError, naming the file and the tensor or setting, for quantized weights, NaN,
    numbers that the dtype cannot hold and malformed files, and if the directory is there and is not
    empty; FileNotFoundError or another OSError if something cannot be read or written.
    """
    folder, target = _path("source", source), _path("directory", directory)
    if dtype not in DTYPES:
        raise ValueError(
            f"convert.checkpoint: dtype must be {', '.join(DTYPES)}, got {dtype!a:.60}"
        )
    is_forced = _arguments.boolean("convert.checkpoint", "force", force)
    limit = _arguments.num_bytes("convert.checkpoint", "max_shard_size", max_shard_size)
    say: Notice = notice or (lambda line: None)
    config = _config(folder, dtype)
    files = _files(folder)
    specs = [spec for path, file in files for spec in _specs(path, file, DTYPES[dtype][1])]
    target = Path(os.path.realpath(target))
    _directory.check_target(target, Path(os.path.realpath(folder)) / "config.json", force=is_forced)
    num_bytes = sum(_num_bytes(kind, shape) for _, kind, shape in specs)
    say(f"{len(specs)} tensors, {num_bytes / 1e6:.1f} MB")
    with _directory.replacing(target, num_bytes, force=is_forced) as temporary:
        _directory.write_json(temporary / "config.json", config)
        for name in _OTHER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
        _write(temporary, files, specs, DTYPES[dtype][0], limit)
    return target


def _path(argument: str, value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise _arguments.ArgumentTypeError(
            f"convert.checkpoint: {argument} must be a str or os.PathLike, got "
            f"{type(value).__name__}"
        )
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"convert.checkpoint: {argument} must be a path, got {text!r:.60}")
    return Path(text)


def _config(folder: Path, dtype: str) -> dict[str, Any]:
    """config.json with another dtype, under the keys that it has for it."""
    path = folder / "config.json"
    config = _json(path)
    if config.get("quantization_config") is not None:
        raise ValueError(f"{path}: quantization_config: weights must not be quantized")
    keys = [key for key in ("dtype", "torch_dtype") if key in config]
    return config | dict.fromkeys(keys or ["dtype"], dtype)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be an object, got {type(value).__name__}")
    return value


def _files(folder: Path) -> list[tuple[Path, _core.SafetensorsFile]]:
    """The files of weights, open; ValueError if an index says something else than they hold."""
    index = folder / _directory.INDEX
    single = folder / _directory.WEIGHTS
    if single.exists() or not index.exists():
        return [(single, _core.SafetensorsFile(os.fsencode(single)))]
    found = _json(index).get("weight_map")
    weight_map: dict[str, Any] = found if isinstance(found, dict) else {}
    names = weight_map.values()
    if not names or not all(isinstance(x, str) and x and Path(x).name == x for x in names):
        raise ValueError(f"{index}: weight_map must map tensors to names of files")
    files = [
        (folder / name, _core.SafetensorsFile(os.fsencode(folder / name)))
        for name in sorted(set(names))
    ]
    held = {name: path.name for path, file in files for name, _, _ in file.tensors}
    if held != weight_map:
        different = sorted(set(held.items()) ^ set(weight_map.items()))[0]
        raise ValueError(f"{index}: weight_map must be what the files hold; not so for {different}")
    return files


def _specs(
    path: Path, file: _core.SafetensorsFile, file_type: str
) -> Iterator[tuple[str, str, list[int]]]:
    """Name, type and shape of each tensor in the new files."""
    for name, kind, shape in file.tensors:
        if kind not in _FLOATS and kind not in _KEPT:
            known = ", ".join(_FLOATS)
            raise ValueError(
                f"{path}: tensor {name!a:.120} must be {known} or integers, got {kind}"
            )
        yield name, file_type if kind in _FLOATS else kind, shape


def _num_bytes(kind: str, shape: list[int]) -> int:
    dtype: torch.dtype = getattr(torch, io._NAMES[kind])
    return dtype.itemsize * _count(shape)


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _write(
    temporary: Path,
    files: list[tuple[Path, _core.SafetensorsFile]],
    specs: list[tuple[str, str, list[int]]],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    places = {
        name: (path, file, kind, shape)
        for path, file in files
        for name, kind, shape in file.tensors
    }
    writer = _core.CheckpointWriter(
        os.fsencode(temporary), specs, {"format": "pt"}, max_shard_bytes
    )
    for name in writer.names:
        path, file, kind, shape = places[name]
        for piece in _pieces(file, name, kind, shape):
            if kind not in _FLOATS:
                writer.append(name, io._bytes(piece))
                continue
            converted = piece.to(dtype)
            _check(path, name, piece, converted)
            writer.append(name, io._bytes(converted))
    writer.finish()


def _pieces(
    file: _core.SafetensorsFile, name: str, kind: str, shape: list[int]
) -> Iterator[torch.Tensor]:
    dtype: torch.dtype = getattr(torch, io._NAMES[kind])
    count = _count(shape)
    for begin in range(0, count, _PIECE):
        piece = torch.empty(min(_PIECE, count - begin), dtype=dtype)
        file.read_range(name, begin * dtype.itemsize, io._bytes(piece))
        yield piece


def _check(path: Path, name: str, values: torch.Tensor, converted: torch.Tensor) -> None:
    if bool(torch.isfinite(converted).all()):
        return
    if bool(values.isnan().any()):
        raise ValueError(f"{path}: tensor {name!a:.120} holds NaN")
    if not torch.equal(values.isinf(), converted.isinf()):
        kind = str(converted.dtype).removeprefix("torch.")
        raise ValueError(f"{path}: tensor {name!a:.120} has numbers that {kind} cannot hold")
