"""Differentiable operators on torch tensors; they run under torch.compile(fullgraph=True)."""

import torch

from paperlab import _arguments

__all__ = ["even_pairs_loss"]


def even_pairs_loss(u: torch.Tensor, w: torch.Tensor, attention_scale: float = 2.0) -> torch.Tensor:
    """Returns the logistic loss of even pairs on all binary strings, [] in the dtype of u.

    The sum over L = 1..Lmax of the mean over all 2^L strings of log(1 + exp(-y T)), y = +1 iff the
    first token equals the last. Differentiable once with respect to u and w.
    u: [2 Lmax], float32 or float64, CPU, Lmax in 1..24; entry 2(l-1)+s for token s at position l.
    w: [2 Lmax keys, 2 Lmax queries], of u's dtype, any strides.
    attention_scale: divides the logits; finite, > 0.

    Raises ValueError if a shape, device or value is not as above, TypeError for a dtype.
    Accumulates in float64; O(2^Lmax) time; the same bits for any number of threads.
    Source: Huang, Liang, Yang, ICML 2025.
    """
    for name, value in (("u", u), ("w", w)):
        if not isinstance(value, torch.Tensor):
            raise _arguments.ArgumentTypeError(
                f"even_pairs_loss: {name} must be a torch.Tensor, got {type(value).__name__}"
            )
    if (
        not torch.compiler.is_compiling()
    ):  # in a graph a number may be a symbol: the operator checks
        attention_scale = _arguments.positive("even_pairs_loss", "attention_scale", attention_scale)
    loss: torch.Tensor = torch.ops.paperlab.even_pairs_loss(u, w, attention_scale)
    return loss
