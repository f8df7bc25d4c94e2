"""GGUF to a Hugging Face directory, one piece of a tensor in memory at a time."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from paperlab import _arguments, _core, io
from paperlab.convert import _architectures, _directory, _tokenizer
from paperlab.convert._architectures import Config, Source
from paperlab.convert._header import Header, read_header

Notice = Callable[[str], None]

DTYPES = {
    "float32": (torch.float32, "F32"),
    "bfloat16": (torch.bfloat16, "BF16"),
    "float16": (torch.float16, "F16"),
}

_PIECE_BYTES = 16 << 20  # of float32 numbers at a time
_MAX_SHARD_BYTES = 5_000_000_000


def gguf(
    path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    force: bool = False,
    notice: Notice | None = None,
) -> Path:
    """Converts a GGUF file to a Hugging Face directory; returns the directory.

    path: a model of architecture llama or qwen2, of any type of numbers that the package gguf can
        dequantise. directory: it gets config.json, generation_config.json, model.safetensors (or
        shards of at most 5 GB with their index), tokenizer.json and tokenizer_config.json.
    dtype: float32, bfloat16 or float16; the two are rounded from float32 to the nearest.
    force: replace a model that is there. notice: called with each line of progress.

    Config, tensors and tokens are those that transformers' `from_pretrained(gguf_file=)` makes of
    the file, except that rotary scalings (linear, yarn, llama3) are kept, which it leaves out. The
    directory is complete or not there: it is written as `directory`.tmp, which is renamed at the
    end. A finished conversion of the same file to the same dtype is left alone.

    Raises ValueError, naming the file and the key or tensor, if the file is malformed, of unknown
    form, or holds NaN or infinity, or if the directory is there and is not empty;
    FileNotFoundError or another OSError if it cannot be read or written; ImportError unless the
    packages gguf and transformers are installed.
    """
    source, target = _file("path", path), _file("directory", directory)
    if dtype not in DTYPES:
        raise ValueError(f"convert.gguf: dtype must be {', '.join(DTYPES)}, got {dtype!a:.60}")
    is_forced = _arguments.boolean("convert.gguf", "force", force)
    say: Notice = notice or (lambda line: None)
    _require_gguf()
    header = read_header(source)
    config = _architectures.read_config(header) | {"dtype": dtype}
    sources = _architectures.plan(header, config)
    _check_types(header, sources)
    _tokenizer.check(header)
    sha256 = _sha256(source)
    target = Path(os.path.realpath(target))
    if not is_forced and _directory.is_finished(target, sha256, dtype):
        say(f"{target} is a finished conversion of this file")
        return target
    _directory.check_target(target, Path(os.path.realpath(source)), force=is_forced)
    num_bytes = sum(info.rows * info.shape[-1] for info in (s.info for s in sources))
    num_bytes *= DTYPES[dtype][0].itemsize
    say(f"{len(sources)} tensors of {config['architectures'][0]}, {num_bytes / 1e6:.1f} MB")
    with _directory.replacing(target, num_bytes, force=is_forced) as temporary:
        _tokenizer.write(header, temporary)
        _write_configs(temporary, config, header)
        _write_weights(temporary, header, sources, dtype, sha256)
    return target


def _file(argument: str, value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise _arguments.ArgumentTypeError(
            f"convert.gguf: {argument} must be a str or os.PathLike, got {type(value).__name__}"
        )
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"convert.gguf: {argument} must be a path, got {text!r:.60}")
    return Path(text)


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ImportError("convert.gguf: needs the package gguf: pip install gguf") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_types(header: Header, sources: list[Source]) -> None:
    """Throws unless the package can dequantise all types."""
    names = {source.info.type: source.info.name for source in sources}
    for kind, name in names.items():
        info = header.tensors[name]
        try:
            _dequantized(np.zeros((1, info.row_bytes), np.uint8), kind)
        except NotImplementedError:
            raise header.error(f"tensor {name!r} has a type that gguf cannot dequantise") from None


def _dequantized(rows: npt.NDArray[np.uint8], kind: int) -> npt.NDArray[np.float32]:
    """float32 [N, row numbers] of the bytes of N rows."""
    import gguf

    with np.errstate(all="ignore"):
        return np.asarray(gguf.dequantize(rows, gguf.GGMLQuantizationType(kind)), np.float32)


def _write_configs(directory: Path, config: Config, header: Header) -> None:
    version = {"transformers_version": _transformers_version()}
    _directory.write_json(directory / "config.json", config | version)
    ids = _architectures.token_ids(header)
    ids.pop("unk_token_id", None)
    generation: dict[str, Any] = {
        "_from_model_config": True,
        "output_attentions": False,
        "output_hidden_states": False,
        "use_cache": True,
    }
    _directory.write_json(directory / "generation_config.json", generation | ids | version)


def _transformers_version() -> str:
    import transformers

    return str(transformers.__version__)


def _write_weights(
    directory: Path, header: Header, sources: list[Source], dtype: str, sha256: str
) -> None:
    torch_type, file_type = DTYPES[dtype]
    specs = [(source.name, file_type, list(source.info.shape)) for source in sources]
    marks = _directory.metadata(sha256, dtype)
    writer = _core.CheckpointWriter(os.fsencode(directory), specs, marks, _MAX_SHARD_BYTES)
    by_name = {source.name: source for source in sources}
    for name in writer.names:
        for values in _pieces(header, by_name[name]):
            piece = torch.from_numpy(values).to(torch_type)
            _check_finite(header, by_name[name], values, piece, dtype)
            writer.append(name, io._bytes(piece))
    writer.finish()


def _pieces(header: Header, source: Source) -> Iterator[npt.NDArray[np.float32]]:
    """The rows of a tensor in the order of transformers, some at a time."""
    info = source.info
    unit = source.head_rows or 1
    num_rows = max(1, _PIECE_BYTES // (4 * info.shape[-1] * unit)) * unit
    with header.path.open("rb") as file:
        file.seek(info.offset)
        for begin in range(0, info.rows, num_rows):
            count = min(num_rows, info.rows - begin)
            rows = np.empty((count, info.row_bytes), np.uint8)
            if file.readinto(rows.data) != rows.nbytes:
                raise header.error("has become shorter while it was read")
            yield np.ascontiguousarray(_dequantized(_in_order(rows, source.head_rows), info.type))


def _in_order(rows: npt.NDArray[np.uint8], head_rows: int | None) -> npt.NDArray[np.uint8]:
    """Rows 0, 2, 4, ... of each head before 1, 3, 5, ...: rotary pairs are half a head apart."""
    if head_rows is None:
        return rows
    pairs = rows.reshape(-1, head_rows // 2, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _check_finite(
    header: Header,
    source: Source,
    values: npt.NDArray[np.float32],
    piece: torch.Tensor,
    dtype: str,
) -> None:
    # A sum is finite only if all numbers are, and costs a tenth of looking at each.
    if math.isfinite(piece.sum(dtype=torch.float32)) or torch.isfinite(piece).all():
        return
    what = f"tensor {source.info.name!r} ({source.name})"
    if np.isnan(values).any():
        raise header.error(f"{what} holds NaN")
    if np.isinf(values).any():
        raise header.error(f"{what} holds an infinity")
    raise header.error(f"{what} has numbers that {dtype} cannot hold; bfloat16 and float32 can")
