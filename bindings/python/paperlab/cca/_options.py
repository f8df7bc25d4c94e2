"""Checks and conversions of the arguments that the functions of this package share."""

from typing import Any, Literal

import numpy as np
import torch

from paperlab import _arguments, _core

LARGEST = 2**60

Pooling = Literal["attention", "mean", "max"]
Boundary = Literal["exact", "paper_equation", "triton_truncation"]
WeightsPer = Literal["query_head", "kv_head"]

_CHOICES = {
    "pooling": ("attention", "mean", "max"),
    "boundary": ("exact", "paper_equation", "triton_truncation"),
    "weights_per": ("query_head", "kv_head"),
}


def check_tensor(function: str, name: str, value: object) -> None:
    """Raises if `value` is no plain tensor."""
    if not isinstance(value, torch.Tensor):
        raise _arguments.ArgumentTypeError(
            f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}"
        )
    if value.is_nested:  # its own dispatcher refuses it by an error of its own
        raise ValueError(f"{function}: {name} must be strided, got a nested tensor")


def check_inputs(function: str, q: object, k: object, v: object) -> None:
    """Raises if one of the three is no plain tensor."""
    for name, value in (("q", q), ("k", k), ("v", v)):
        check_tensor(function, name, value)


def tensor(function: str, name: str, value: object) -> torch.Tensor:
    """`value`, or an array as a tensor."""
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(np.array(value))  # may be read-only or have negative strides
        except TypeError:
            raise _arguments.ArgumentTypeError(
                f"{function}: {name} must be of a floating-point dtype, got {value.dtype}"
            ) from None
    check_tensor(function, name, value)
    assert isinstance(value, torch.Tensor)
    return value


def choice(function: str, name: str, value: object) -> str:
    """`value` as one of the names that the argument `name` may have."""
    if not isinstance(value, str):
        raise _arguments.ArgumentTypeError(
            f"{function}: {name} must be a str, got {type(value).__name__}"
        )
    if value not in _CHOICES[name]:
        known = ", ".join(f'"{text}"' for text in _CHOICES[name])
        raise ValueError(f"{function}: {name} must be one of {known}, got {value!r:.60}")
    return value


def count(function: str, name: str, value: object, low: int = 0) -> int:
    """`value` as an int of at least `low`."""
    return _arguments.integer(function, name, value, low, LARGEST)


def options(
    function: str,
    group_size: Any = 16,
    window: Any = 1024,
    pooling: Any = "attention",
    boundary: Any = "exact",
    weights_per: Any = "query_head",
    keep_first: Any = 0,
) -> _core.CcaOptions:
    """The options, checked."""
    return _core.cca_options(
        function,
        count(function, "group_size", group_size, 1),
        count(function, "window", window),
        choice(function, "pooling", pooling),
        choice(function, "boundary", boundary),
        choice(function, "weights_per", weights_per),
        count(function, "keep_first", keep_first),
    )
