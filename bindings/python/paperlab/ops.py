"""Differentiable operators on torch tensors; they run under torch.compile(fullgraph=True).

Tensors are on the CPU or on a CUDA device; `set_backend` says who computes. float16 is for CUDA
devices (and for the backend "torch"). Values on a CUDA device are not waited for: those that would
be refused on the CPU give NaN there, as each function says, and no error. In compiled code an
argument that the tracer finds bad is a torch._dynamo.exc.TorchRuntimeError that quotes our message,
as for torch's own functions.
"""

from typing import Literal, cast, overload

import torch

from paperlab import _arguments, _core

__all__ = [
    "attention",
    "even_pairs_loss",
    "get_backend",
    "linear",
    "linear_cross_entropy",
    "rms_norm",
    "rope",
    "set_backend",
    "swiglu",
]

Backend = Literal["auto", "kernels", "portable", "torch"]

_LARGEST = 2**63 - 1


def set_backend(name: Backend) -> None:
    """Sets who computes the operators of the library, for the whole process.

    name: "auto": on the CPU our kernels; on a CUDA device our kernel where it was seen to pass its
        tests on the GPU's architecture (the tables in kernels/*/README.md), else LibTorch's own
        operations, with one UserWarning for each operator and process.
      "kernels": our kernels, also those that no GPU of this architecture has passed.
      "portable": as "kernels", without the instructions that one architecture alone has: on a
        Hopper GPU the kernels of sm_80. For comparison.
      "torch": LibTorch's own operations on every device; float16 too. For comparison.
    At first it is what the environment variable PAPERLAB_BACKEND says, or "auto"; with a variable
    that says anything else the import of paperlab is a ValueError.

    Before a CUDA graph is captured, call once what is to be captured: first calls load libraries
    and ask the device what it is, neither of which a capture allows.

    Raises ValueError for any other name. Calls that have begun go on as they were.
    """
    if not isinstance(name, str):
        raise _arguments.ArgumentTypeError(
            f"set_backend: name must be a str, got {type(name).__name__}"
        )
    _core.set_backend(name)


def get_backend() -> Backend:
    """Returns who computes the operators, by a name that set_backend takes."""
    return cast(Backend, _core.get_backend())


def _check_tensor(function: str, name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise _arguments.ArgumentTypeError(
            f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}"
        )
    if value.is_nested:  # its own dispatcher refuses it by an error of its own
        raise ValueError(f"{function}: {name} must be strided, got a nested tensor")


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    key_start: torch.Tensor | None = None,
    key_end: torch.Tensor | None = None,
    return_lse: Literal[False] = False,
) -> torch.Tensor: ...


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    key_start: torch.Tensor | None = None,
    key_end: torch.Tensor | None = None,
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    key_start: torch.Tensor | None = None,
    key_end: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Returns softmax(scale q k^T + mask) v, or (out, lse) with the row log-sum-exp.

    q: [B, H, T, D], float32, float64 or bfloat16, any strides; D in 1..256 (fast from 16).
    k, v: [B, G, S, D], H % G == 0, of q's dtype and device, any strides.
    causal: row i stands at key position i + S - T and sees no later key.
    window: the last `window` keys, the row's own included; >= 1, needs causal.
    scale: multiplies the logits; finite. None: 1/sqrt(D).
    key_start, key_end: int64 [B], 0..S; keys start <= j < end take part, others are never read. On
      a CUDA device values outside count as the nearest inside, which are the same keys.
    Returns out [B, H, T, D] in q's dtype and lse [B, H, T], the natural logarithm in float32
    (float64 for float64), both new and differentiable once with respect to q, k and v. Rows
    without keys: out 0, lse -inf, gradient 0. torch.func's transforms are not supported.

    Raises ValueError if a shape, device, layout or value is not as above, TypeError for a dtype or
    type. Accumulates in float32 (float64 for float64); memory is linear in T and S. The same bits
    from run to run and for any number of threads; with T = 1 for any B (but on a CUDA device where
    LibTorch computes). On the CPU NaN and infinity reach only rows that see their key; elsewhere
    and for the backend "torch" k and v must be finite, since a weight of 0 does not hide them.
    Source: FlashAttention-2 (Dao, arXiv:2307.08691).
    """
    for name, value in (("q", q), ("k", k), ("v", v)):
        _check_tensor("attention", name, value)
    for name, bound in (("key_start", key_start), ("key_end", key_end)):
        if bound is not None:
            _check_tensor("attention", name, bound)
    if not torch.compiler.is_compiling():  # in a graph numbers may be symbols: the operator checks
        causal = _arguments.boolean("attention", "causal", causal)
        return_lse = _arguments.boolean("attention", "return_lse", return_lse)
        if window is not None:
            window = _arguments.integer("attention", "window", window, 1, _LARGEST)
        if scale is not None:
            scale = _arguments.real("attention", "scale", scale)
    out: torch.Tensor
    lse: torch.Tensor
    out, lse = torch.ops.paperlab.attention(q, k, v, causal, window, scale, key_start, key_end)
    return (out, lse) if return_lse else out


def even_pairs_loss(u: torch.Tensor, w: torch.Tensor, attention_scale: float = 2.0) -> torch.Tensor:
    """Returns the logistic loss of even pairs on all binary strings, [] in the dtype of u.

    The sum over L = 1..Lmax of the mean over all 2^L strings of log(1 + exp(-y T)), y = +1 iff the
    first token equals the last. Differentiable once with respect to u and w.
    u: [2 Lmax], float32 or float64, Lmax in 1..24; entry 2(l-1)+s for token s at position l.
    w: [2 Lmax keys, 2 Lmax queries], of u's dtype, any strides.
    attention_scale: divides the logits; finite, > 0.

    Raises ValueError if a shape, device or value is not as above, or u or w are not finite (on a
    CUDA device the loss and its gradients are NaN then); TypeError for a dtype.
    Accumulates in float64; O(2^Lmax) time; the same bits for any number of threads.
    Source: Huang, Liang, Yang, ICML 2025.
    """
    for name, value in (("u", u), ("w", w)):
        _check_tensor("even_pairs_loss", name, value)
    if (
        not torch.compiler.is_compiling()
    ):  # in a graph a number may be a symbol: the operator checks
        attention_scale = _arguments.positive("even_pairs_loss", "attention_scale", attention_scale)
    loss: torch.Tensor = torch.ops.paperlab.even_pairs_loss(u, w, attention_scale)
    return loss


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Returns x weight^T + bias, [..., N], new and contiguous.

    x: [..., K], at least one dimension, float32, float64 or bfloat16, any strides.
    weight: [N, K], of x's dtype and device, any strides; a transposed view costs no copy.
    bias: [N], likewise. None: nothing is added.
    Differentiable as often as wanted with respect to all tensors.

    Raises ValueError if a shape, device or layout is not as above, TypeError for a dtype or type.
    On the CPU float32 and bfloat16 accumulate in float32, and float32 and float64 have the same
    bits from run to run and for any number of threads.
    """
    for name, value in (("x", x), ("weight", weight)):
        _check_tensor("linear", name, value)
    if bias is not None:
        _check_tensor("linear", "bias", bias)
    y: torch.Tensor = torch.ops.paperlab.linear(x, weight, bias)
    return y


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    z_loss: float = 0.0,
) -> torch.Tensor:
    """Returns the cross-entropy of the rows of x weight^T + bias, without the matrix of logits.

    Each row whose target counts has lse - logits[target] + z_loss lse^2, lse = ln sum e^logits.
    x: [..., D], float32, float64 or bfloat16, any strides.
    weight: [V, D], V >= 1, of x's dtype and device, any strides; may be an embedding.
    target: int64 of x's leading dimensions, 0..V-1 or ignore_index. On a CUDA device the loss of
      any other is NaN, and the gradients of its row.
    bias: [V], of x's dtype and device. None: zeros.
    ignore_index: the target of rows that do not count.
    reduction: "mean" of the rows that count (NaN with gradients of 0 if none does) or "sum", [];
      "none": of target's shape, 0 for rows that do not count.
    z_loss: finite, >= 0.
    The result is float32 (float64 for float64), differentiable once with respect to x, weight and
    bias. Logits exist for a chunk at a time; the backward pass computes them again.

    Raises ValueError if a shape, device, layout or value is not as above, TypeError for a dtype or
    type. On the CPU the same bits from run to run and for any number of threads.
    Source: Wijmans et al., arXiv:2411.09009.
    """
    for name, value in (("x", x), ("weight", weight), ("target", target)):
        _check_tensor("linear_cross_entropy", name, value)
    if bias is not None:
        _check_tensor("linear_cross_entropy", "bias", bias)
    if not isinstance(reduction, str):
        raise _arguments.ArgumentTypeError(
            f"linear_cross_entropy: reduction must be a str, got {type(reduction).__name__}"
        )
    if not torch.compiler.is_compiling():
        ignore_index = _arguments.integer(
            "linear_cross_entropy", "ignore_index", ignore_index, -_LARGEST - 1, _LARGEST
        )
        z_loss = _arguments.real("linear_cross_entropy", "z_loss", z_loss)
    loss: torch.Tensor
    loss, _ = torch.ops.paperlab.linear_cross_entropy(
        x, weight, target, bias, ignore_index, reduction, z_loss
    )
    return loss


@overload
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, *, residual: None = None, eps: float = 1e-6
) -> torch.Tensor: ...


@overload
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, *, residual: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]: ...


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Returns x / sqrt(mean(x^2) + eps) * weight, or with a residual that of the sum, and the sum.

    x: [..., W], W >= 1, float32, float64 or bfloat16, any strides.
    weight: [W] in x's dtype.
    residual: of x's shape and dtype; then the result is (y, x + residual), in one pass.
    eps: finite, >= 0.
    Returns new tensors in x's shape and dtype, differentiable once with respect to all tensors.

    Raises ValueError if a shape, device, layout or value is not as above, TypeError for a dtype or
    type. Accumulates in float32 (float64 for float64). The same bits from run to run and for any
    number of threads. Source: Zhang, Sennrich, NeurIPS 2019.
    """
    for name, value in (("x", x), ("weight", weight)):
        _check_tensor("rms_norm", name, value)
    if residual is not None:
        _check_tensor("rms_norm", "residual", residual)
    if not torch.compiler.is_compiling():
        eps = _arguments.real("rms_norm", "eps", eps)
    y: torch.Tensor
    total: torch.Tensor
    y, total, _ = torch.ops.paperlab.rms_norm(x, weight, residual, eps)
    return y if residual is None else (y, total)


def rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, inverse: bool = False
) -> torch.Tensor:
    """Returns x with the first R <= D lanes of its heads rotated, new and contiguous.

    Lane i < R/2 turns with lane i + R/2: x[i] cos[i] - x[i + R/2] sin[i] and
    x[i + R/2] cos[i] + x[i] sin[i]; lanes from R on are copied.
    x: [B, T, H, D], float32, float64 or bfloat16, any strides.
    cos, sin: [B or 1, T, R/2], float32 (float64 for a float64 x), on x's device.
    inverse: turns back: sin negated.
    Differentiable with respect to x, cos and sin.

    Raises ValueError if a shape, device or layout is not as above, TypeError for a dtype or type.
    Computes in float32 (float64 for float64) and rounds once. The same bits from run to run and
    for any number of threads. Source: Su et al., arXiv:2104.09864.
    """
    for name, value in (("x", x), ("cos", cos), ("sin", sin)):
        _check_tensor("rope", name, value)
    if not torch.compiler.is_compiling():
        inverse = _arguments.boolean("rope", "inverse", inverse)
    out: torch.Tensor = torch.ops.paperlab.rope(x, cos, sin, inverse)
    return out


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Returns silu(gate) * up, silu(x) = x / (1 + exp(-x)), new and contiguous.

    gate: any shape of at least one dimension, float32, float64 or bfloat16; rows that are
      apart (halves of one product) are read where they lie.
    up: of gate's shape and dtype.
    Differentiable once with respect to both; keeps nothing but its inputs.

    Raises ValueError if a shape, device or layout is not as above, TypeError for a dtype or type.
    Computes in float32 (float64 for float64). The same bits from run to run and for any number of
    threads. Source: Shazeer, arXiv:2002.05202.
    """
    for name, value in (("gate", gate), ("up", up)):
        _check_tensor("swiglu", name, value)
    y: torch.Tensor = torch.ops.paperlab.swiglu(gate, up)
    return y
