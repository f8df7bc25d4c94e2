"""Checks and conversions of arguments; each message holds the function's and argument's name."""

import math
import operator
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class ArgumentTypeError(TypeError, ValueError):
    """An argument of a wrong type. A ValueError too, as every bad argument is."""


def _fail_type(function: str, name: str, required: str, value: object) -> ArgumentTypeError:
    got = value.dtype if isinstance(value, np.ndarray | torch.Tensor) else type(value).__name__
    return ArgumentTypeError(f"{function}: {name} must be {required}, got {got}")


def _scalar(value: object) -> object:
    """The Python number in a 0-dimensional array or tensor; anything else as it is."""
    if isinstance(value, np.floating):
        return float(value)  # longdouble's item() is no float
    if isinstance(value, torch.Tensor) and value.device.type == "meta":
        return value
    if isinstance(value, np.ndarray | np.generic | torch.Tensor) and value.ndim == 0:
        return value.item()
    return value


def boolean(function: str, name: str, value: object) -> bool:
    """`value` as a bool; integers are not taken for one."""
    plain = _scalar(value)
    if not isinstance(plain, bool):
        raise _fail_type(function, name, "a bool", value)
    return plain


def integer(function: str, name: str, value: object, low: int, high: int) -> int:
    """`value` as an int in low..high; bools and floats are not taken for one."""
    plain = _scalar(value)
    is_array = isinstance(plain, np.ndarray | torch.Tensor)
    if is_array or isinstance(plain, bool) or not hasattr(plain, "__index__"):
        raise _fail_type(function, name, "an integer", value)
    number = operator.index(plain)
    if not low <= number <= high:
        raise ValueError(f"{function}: {name} must be in {low}..{high}, got {number}")
    return number


def real(function: str, name: str, value: object) -> float:
    """`value` as a finite float; a tensor that requires a gradient would lose it and is refused."""
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise ValueError(f"{function}: {name} must be a number, got a tensor that requires grad")
    plain = _scalar(value)
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise _fail_type(function, name, "a number", value)
    try:
        number = float(plain)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{function}: {name} must be finite, got {number}")
    return number


def positive(function: str, name: str, value: object) -> float:
    """`value` as a finite float > 0."""
    try:
        number = real(function, name, value)
    except ArgumentTypeError:
        raise
    except ValueError:
        number = math.nan
    if not number > 0.0:
        raise ValueError(f"{function}: {name} must be finite and > 0, got {_scalar(value)}")
    return number


_UNITS = {
    f"{prefix}{kind}B": base**power
    for kind, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGT", 1)
}


def num_bytes(function: str, name: str, value: object) -> int:
    """`value` as a number of bytes >= 1: an integer, or a text as "5GB" or "200MiB"."""
    if not isinstance(value, str):
        return integer(function, name, value, 1, 2**63 - 1)
    number, unit = value[:-3], value[-3:]
    if unit not in _UNITS:
        number, unit = value[:-2], value[-2:]
    try:
        count = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        count = 0
    if not 1 <= count < 2**63:
        units = ", ".join(_UNITS)
        raise ValueError(
            f'{function}: {name} must be a number of bytes >= 1, or a text as "5GB" ({units}), '
            f"got {value!a:.60}"
        )
    return count


def text(function: str, name: str, value: object) -> str:
    """`value`, which must be a str of printable characters: messages quote it as it is."""
    if not isinstance(value, str):
        raise _fail_type(function, name, "a str", value)
    if not value.isprintable():  # line breaks, and what UTF-8 cannot hold
        raise ValueError(f"{function}: {name} must be printable, got {value!a:.60}")
    return value


def dtype_name(function: str, dtype: torch.dtype | str) -> str:
    """The name of a dtype that a model's parameters may have."""
    name = str(dtype).removeprefix("torch.")
    known = getattr(torch, name, None)
    if known not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(
            f"{function}: dtype must be float32, float64, bfloat16 or float16, got {name}"
        )
    return str(known).removeprefix("torch.")  # "half" is "float16"


def device(function: str, value: torch.device | str | int | None) -> torch.device:
    """`value` as a device that this machine has: the CPU (None too) or an NVIDIA GPU."""
    if value is None:
        return torch.device("cpu")
    try:
        found = torch.device(value)
    except (RuntimeError, TypeError):
        raise ValueError(f"{function}: device must be cpu or cuda, got {value!a:.60}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"{function}: device must be cpu or cuda, got {found}")
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if count == 0 or (found.index or 0) >= count:
        raise ValueError(
            f"{function}: device must be one that torch can use, got {found}: it finds "
            f"{count or 'no'} NVIDIA GPU{'' if count == 1 else 's'}"
        )
    return found


def directory(function: str, path: Path) -> bytes:
    """The path of a directory as the system knows it."""
    try:
        encoded = os.fsencode(path)
    except TypeError:
        raise TypeError(
            f"{function}: directory must be a path, got {type(path).__name__}"
        ) from None
    if b"\0" in encoded:
        raise ValueError(f"{function}: directory must not contain a zero byte")
    return encoded


def _from_torch(function: str, name: str, tensor: torch.Tensor) -> Array:
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise ValueError(
            f"{function}: {name} must be a strided tensor with data, got {tensor.layout} on "
            f"{tensor.device}"
        )
    plain = tensor.detach()
    try:
        if plain.is_floating_point():
            plain = plain.double()  # NumPy has no bfloat16
        return np.asarray(plain.cpu().resolve_conj().resolve_neg().numpy())
    except (TypeError, NotImplementedError):  # quantized, 4 bits, ...
        raise _fail_type(function, name, "a tensor that NumPy can hold", tensor) from None


def _array(function: str, name: str, value: object) -> Array:
    if isinstance(value, torch.Tensor):
        return _from_torch(function, name, value)
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{function}: {name} must be an array, got rows of unequal length"
        ) from None


def _shape(function: str, name: str, array: Array, shape: str, ndim: int) -> None:
    if array.ndim != ndim:
        raise ValueError(f"{function}: {name} must be {shape}, got {list(array.shape)}")


def real_array(
    function: str, name: str, value: object, shape: str, ndim: int
) -> npt.NDArray[np.float64]:
    """`value` as contiguous float64, possibly a view; `shape` is for the messages."""
    array = _array(function, name, value)
    _shape(function, name, array, shape, ndim)
    if array.dtype.kind not in "fiu" and array.size:
        raise _fail_type(function, name, f"{shape} of real numbers", array)
    return np.ascontiguousarray(array, dtype=np.float64)


def floating_array(
    function: str, name: str, value: object, shape: str, ndim: int
) -> npt.NDArray[np.float64]:
    """`value` as `real_array` has it; integers are not taken for one."""
    array = _array(function, name, value)
    if array.dtype.kind != "f":
        raise _fail_type(function, name, "floating", array)
    _shape(function, name, array, shape, ndim)
    return np.ascontiguousarray(array, dtype=np.float64)


def integer_array(function: str, name: str, value: object, shape: str, ndim: int) -> Array:
    """`value` as an array of some integer dtype."""
    array = _array(function, name, value)
    _shape(function, name, array, shape, ndim)
    if array.dtype.kind not in "iu" and not (array.size == 0 and isinstance(value, list | tuple)):
        raise _fail_type(function, name, f"{shape} of integers", array)
    return array
