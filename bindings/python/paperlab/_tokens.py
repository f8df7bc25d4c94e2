"""Tokens, masks and pixels as tensors; what is refused names the function and the argument."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from paperlab import _arguments


def token_tensor(
    function: str, tokens: Any, shape: str, ndim: int, name: str = "tokens"
) -> torch.Tensor:
    """`tokens` as a tensor of integers; an array is copied, whatever its strides and byte order."""
    if not isinstance(tokens, torch.Tensor):
        array = _arguments.integer_array(function, name, tokens, shape, ndim)
        if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"{function}: {name} must be ids, got {int(array.max())}")
        return torch.from_numpy(array.astype(np.int64))
    _check_layout(function, name, tokens)
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"{function}: {name} must be integers, got {tokens.dtype}")
    if tokens.ndim != ndim:
        raise ValueError(f"{function}: {name} must be {shape}, got {list(tokens.shape)}")
    return tokens


def mask_tensor(function: str, mask: torch.Tensor | npt.NDArray[Any] | None) -> torch.Tensor | None:
    """`mask`, or whether an array's elements are not zero."""
    if mask is None:
        return None
    if isinstance(mask, torch.Tensor):
        _check_layout(function, "attention_mask", mask)
        return mask
    try:
        array = np.asarray(mask)
    except ValueError:  # rows of unequal length
        array = np.asarray("")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{function}: attention_mask must be a tensor or array of numbers")
    return torch.from_numpy(np.asarray(array != 0))


def pixel_tensor(function: str, pixels: torch.Tensor | npt.NDArray[Any]) -> torch.Tensor:
    """`pixels` as a tensor, an array as a copy; integers, 0..255 say, nobody has scaled yet."""
    if not isinstance(pixels, torch.Tensor):
        array = _arguments.floating_array(function, "pixels", pixels, "[B, C, H, W]", 4)
        return torch.from_numpy(np.array(array))
    if not pixels.is_floating_point():
        raise TypeError(f"{function}: pixels must be floating, got {pixels.dtype}")
    return pixels


def _check_layout(function: str, name: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(
            f"{function}: {name} must be a strided tensor with data, got {tensor.layout} on "
            f"{tensor.device}"
        )
