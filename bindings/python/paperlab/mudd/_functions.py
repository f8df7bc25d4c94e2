"""Connection weights and sums over the states of a decoder's blocks, on torch tensors."""

from collections.abc import Sequence
from typing import Literal

import torch

from paperlab import _arguments

_LARGEST = 2**31 - 1

Gelu = Literal["exact", "tanh"]
States = torch.Tensor | Sequence[torch.Tensor]


def check_tensor(function: str, name: str, value: object) -> None:
    """Raises if `value` is no plain tensor."""
    if not isinstance(value, torch.Tensor):
        raise _arguments.ArgumentTypeError(
            f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}"
        )
    if value.is_nested:  # its own dispatcher refuses it by an error of its own
        raise ValueError(f"{function}: {name} must be strided, got a nested tensor")


def check_gelu(function: str, gelu: object) -> None:
    """Raises if `gelu` names no form."""
    if not isinstance(gelu, str):
        raise _arguments.ArgumentTypeError(
            f"{function}: gelu must be a str, got {type(gelu).__name__}"
        )
    if gelu not in ("exact", "tanh"):
        raise ValueError(f'{function}: gelu must be "exact" or "tanh", got {gelu!a:.60}')


def checked(function: str, states: States) -> torch.Tensor | list[torch.Tensor]:
    """States as given: a tensor [J, B, T, D], or J >= 1 tensors that are alike."""
    if not isinstance(states, list | tuple):
        check_tensor(function, "states", states)
        assert isinstance(states, torch.Tensor)
        return states
    if not states:
        raise ValueError(f"{function}: states must be [J, B, T, D] with J >= 1, got an empty list")
    for j, state in enumerate(states):
        name = f"states[{j}]"
        check_tensor(function, name, state)
        if state.layout != torch.strided:
            raise ValueError(f"{function}: {name} must be strided, got layout {state.layout}")
        if state.dtype != states[0].dtype and not (_is_promoted(states[0]) and _is_promoted(state)):
            raise _arguments.ArgumentTypeError(
                f"{function}: {name} must be of the dtype of states[0] ({states[0].dtype}), "
                f"got {state.dtype}"
            )
        if state.device != states[0].device:
            raise ValueError(
                f"{function}: {name} must be on the device of states[0] ({states[0].device}), "
                f"got {state.device}"
            )
        if state.shape != states[0].shape:
            raise ValueError(
                f"{function}: {name} must be of the shape of states[0] {list(states[0].shape)}, "
                f"got {list(state.shape)}"
            )
    return list(states)


def _is_promoted(x: torch.Tensor) -> bool:
    """Whether autocast takes x in the widest dtype given."""
    kind = x.device.type
    has_autocast = torch.amp.autocast_mode.is_autocast_available(
        kind
    ) and torch.is_autocast_enabled(kind)
    return has_autocast and x.is_floating_point()


def connection_weights(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    a: torch.Tensor,
    ways: int = 4,
    eps: float = 1e-6,
    gelu: Gelu = "exact",
) -> torch.Tensor:
    """Returns gelu(n w1) w2 + a with n = x / sqrt(mean(x^2) + eps), as [C, B, T, J].

    The weight of each of J sources in each of C ways, for each token from its own state.
    x: [B, T, D], D >= 1, float32, float64 or bfloat16, any strides.
    w1: [D, K], K >= 1, of x's dtype and device, any strides.
    w2: [K, C*J], likewise; column c*J + j belongs to way c, source j.
    a: [C, J], likewise.
    ways: C, >= 1.
    eps: finite, > 0, also once rounded to float32 where x is not float64.
    gelu: "exact" (erf) or "tanh".
    The result is new, contiguous, in x's dtype and differentiable once with respect to all tensors.
    Under autocast all tensors are taken in the widest dtype among them.

    Raises ValueError if a shape, device, layout or value is not as above, TypeError for a dtype or
    type. On the CPU float32 and bfloat16 accumulate in float32, float64 in float64, and the bits
    are the same from run to run and for any number of threads.
    Source: MUDDFormer (Xiao et al., ICML 2025, arXiv:2502.12170), Eq. (6).
    """
    for name, value in (("x", x), ("w1", w1), ("w2", w2), ("a", a)):
        check_tensor("connection_weights", name, value)
    check_gelu("connection_weights", gelu)
    if not torch.compiler.is_compiling():  # in a graph numbers may be symbols
        ways = _arguments.integer("connection_weights", "ways", ways, 1, _LARGEST)
        eps = _arguments.positive("connection_weights", "eps", eps)
    if a.dim() != 2 or a.shape[0] != ways:
        raise ValueError(
            f"connection_weights: a must be [C, J] with C = ways = {ways}, got {list(a.shape)}"
        )
    weights: torch.Tensor
    weights, _, _ = torch.ops.paperlab.connection_weights(x, w1, w2, a, eps, gelu)
    return weights


def depth_aggregate(states: States, weights: torch.Tensor) -> torch.Tensor:
    """Returns C sums over J states, out[c, b, t] = sum_j weights[c, b, t, j] states[j, b, t].

    states: [J, B, T, D], J, D >= 1, float32, float64 or bfloat16, any strides; or a list of J
      tensors [B, T, D]. Contiguous ones are read where they lie, and the backward pass keeps the
      tensors themselves: a list is not copied.
    weights: [C, B, T, J], C >= 1, of states' dtype and device, any strides.
    Returns [C, B, T, D], new and contiguous, in that dtype, differentiable once with respect to
    both. Under autocast states and weights are taken in the widest dtype among them.

    Raises ValueError if a shape, device or layout is not as above, TypeError for a dtype or type.
    On the CPU float32 and bfloat16 accumulate in float32, float64 in float64, and the bits are the
    same from run to run and for any number of threads.
    Source: MUDDFormer (Xiao et al., ICML 2025, arXiv:2502.12170), Eqs. (3) to (8).
    """
    check_tensor("depth_aggregate", "weights", weights)
    return summed(checked("depth_aggregate", states), weights)


def summed(states: torch.Tensor | list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """depth_aggregate() of states that were checked."""
    operators = torch.ops.paperlab
    is_one = isinstance(states, torch.Tensor)
    operator = operators.depth_aggregate if is_one else operators.depth_aggregate_list
    out: torch.Tensor = operator(states, weights)
    return out
