"""Files of tensors: safetensors, with all its types that torch has.

Source: the safetensors format (8 bytes of header length, a JSON header, the tensors' bytes).
"""

import ctypes
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from paperlab import _arguments, _core

__all__ = ["load_file", "load_metadata", "save_file"]

Tensor = torch.Tensor | npt.NDArray[Any]
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# The format's names and those of torch and NumPy.
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "F4": "float4_e2m1fn_x2",  # two numbers in each element of torch
}
_TYPES = {name: file_type for file_type, name in _NAMES.items()}

_PIECE_BYTES = 32 << 20  # what a tensor that is not contiguous is copied in


def load_file(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file, in the order of their bytes in it.

    The tensors are contiguous, on the CPU, and have their own memory: changing one leaves the file
    alone, and overwriting the file leaves them alone. On all threads (`set_num_threads`).

    Raises ValueError, naming the file, if it is malformed or holds a type that torch lacks (F6_*);
    FileNotFoundError or another OSError if it cannot be read.
    """
    file = _core.SafetensorsFile(_path("load_file", path))
    shown = os.fsdecode(path)
    tensors: dict[str, torch.Tensor] = {}
    for name, file_type, shape in file.tensors:
        sizes, dtype = _torch_form(shown, name, file_type, shape)
        tensors[name] = torch.empty(sizes, dtype=dtype, device="cpu")
    file.read_into([(name, _bytes(x)) for name, x in tensors.items() if x.numel()])
    return tensors


def load_metadata(path: Path) -> dict[str, str]:
    """Returns the `__metadata__` of a safetensors file; empty if it has none.

    Reads the header only. Errors as of load_file().
    """
    return _core.SafetensorsFile(_path("load_metadata", path)).metadata or {}


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors to a safetensors file.

    tensors: torch tensors (Parameters too) and NumPy arrays of any strides, shapes and devices,
        each written for itself, also where several share memory. Never modified.
    metadata: strings, stored as `__metadata__`.

    The bytes do not depend on the order of `tensors`: the widest types come first, then names in
    order; the data start at a multiple of 8. The file is written as `path`.tmp, which is renamed
    when all of it is on disk, and removed if something fails. Beside the tensors it needs less
    than 128 MiB of memory.

    Raises ValueError or TypeError before any work, naming the tensor, if it has a type that the
    format lacks or no data; OSError if the system refuses (folder missing, disk full).
    """
    raw_path = _path("save_file", path)
    texts = None if metadata is None else _metadata(metadata)
    if not isinstance(tensors, Mapping):
        raise _arguments.ArgumentTypeError(
            f"save_file: tensors must map names to tensors, got {type(tensors).__name__}"
        )
    checked = {
        _string("a tensor's name", name): _checked(name, x) for name, x in dict(tensors).items()
    }
    specs = [(name, *_file_form(name, x)) for name, x in checked.items()]
    writer = _core.SafetensorsWriter(raw_path, specs, texts)
    try:
        for name in writer.names:
            for piece in _pieces(checked[name]):
                writer.append(name, _bytes(piece))
        writer.finish()
    except BaseException:
        writer.discard()  # a traceback may keep the writer for long
        raise


def _path(function: str, path: object) -> bytes:
    if not isinstance(path, str | bytes | os.PathLike):
        raise _arguments.ArgumentTypeError(
            f"{function}: path must be a str, bytes or os.PathLike, got {type(path).__name__}"
        )
    return os.fsencode(path)


def _string(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise _arguments.ArgumentTypeError(
            f"save_file: {what} must be a str, got {type(value).__name__}"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"save_file: {what} must be Unicode, got {value!a:.60}") from None
    return value


def _metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise _arguments.ArgumentTypeError(
            f"save_file: metadata must map strings to strings, got {type(metadata).__name__}"
        )
    return {
        _string("a key of metadata", key): _string(f"metadata[{key!r:.60}]", value)
        for key, value in metadata.items()
    }


def _torch_form(
    path: str, name: str, file_type: str, shape: list[int]
) -> tuple[list[int], torch.dtype]:
    """Sizes and type of the tensor in torch."""
    dtype = getattr(torch, _NAMES.get(file_type, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(
            f"{path}: tensor {name!a:.120} has the type {file_type}, which torch lacks"
        )
    if file_type != "F4":
        return shape, dtype
    if not shape or shape[-1] % 2:
        raise ValueError(
            f"{path}: tensor {name!a:.120}: F4 needs an even last size, got {shape!r:.120}"
        )
    return [*shape[:-1], shape[-1] // 2], dtype


def _checked(name: str, value: object) -> Tensor:
    """The tensor without its graph, or the array; throws unless it has data."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if not isinstance(value, torch.Tensor):
        raise _arguments.ArgumentTypeError(
            f"save_file: tensor {name!a:.120} must be a torch.Tensor or a NumPy array, got "
            f"{type(value).__name__}"
        )
    if value.layout != torch.strided or value.device.type == "meta" or value.is_quantized:
        raise ValueError(
            f"save_file: tensor {name!a:.120} must be a strided tensor with data, got "
            f"{value.layout}, {value.dtype} on {value.device}"
        )
    return value.detach()


def _file_form(name: str, x: Tensor) -> tuple[str, list[int]]:
    """Type and sizes of the tensor in the file."""
    dtype = str(x.dtype).removeprefix("torch.") if isinstance(x, torch.Tensor) else x.dtype.name
    file_type = _TYPES.get(dtype)
    if file_type is None:
        raise _arguments.ArgumentTypeError(
            f"save_file: tensor {name!a:.120} must have one of the types "
            f"{', '.join(_TYPES)}, got {x.dtype}"
        )
    shape = list(x.shape)
    if file_type == "F4":
        if not shape:
            raise ValueError(f"save_file: tensor {name!a:.120} is packed and needs a dimension")
        shape[-1] *= 2
    return file_type, shape


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """Contiguous tensors that hold the elements of `x` in row-major order; none is empty."""
    num_bytes = math.prod(x.shape) * x.dtype.itemsize
    if num_bytes == 0:
        return
    if num_bytes <= _PIECE_BYTES or _is_plain(x):
        yield _contiguous(x)
        return
    dim = next(d for d, size in enumerate(x.shape) if size > 1)
    rows = max(1, _PIECE_BYTES * x.shape[dim] // num_bytes)
    for begin in range(0, x.shape[dim], rows):
        index = (slice(None),) * dim + (slice(begin, begin + rows),)
        yield from _pieces(x[index])


def _is_plain(x: Tensor) -> bool:
    """Whether the bytes can be written as they lie in memory."""
    if isinstance(x, np.ndarray):
        return x.flags.c_contiguous and x.dtype.isnative
    return x.device.type == "cpu" and x.is_contiguous() and not x.is_conj() and not x.is_neg()


def _bytes(x: Tensor) -> "ctypes.Array[ctypes.c_uint8]":
    """The memory of a contiguous tensor. Sharing it with NumPy would forbid resizing the tensor."""
    address = x.data_ptr() if isinstance(x, torch.Tensor) else x.ctypes.data
    return (ctypes.c_uint8 * x.nbytes).from_address(address)


def _contiguous(x: Tensor) -> Tensor:
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))
    if x.dtype.itemsize == 1:
        x = x.view(torch.uint8)  # not every type of one byte can be copied
    return x.cpu().resolve_conj().resolve_neg().contiguous()
