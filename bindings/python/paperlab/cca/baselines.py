"""What core-context attention is compared with, in the same form.

q: [B, H, T, D], float32, float64 or bfloat16, CPU, any strides; k, v: [B, G, T, D], H % G == 0, of
q's dtype and device; D in 1..256. Query r sees token t, both from 0. Each function returns out
[B, H, T, D] in q's dtype or, with return_lse, (out, lse [B, H, T]): natural, float32 (float64 for
float64); new, differentiable once with respect to q, k and v. ValueError if a shape, device, layout
or value is not as described, TypeError for a dtype or type. The same bits from run to run and for
any number of threads.
"""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from paperlab import _arguments
from paperlab.cca import _options

__all__ = ["a_shape", "full", "lm_infinite", "sliding_window", "streaming_llm", "vertical_slash"]

Pair = tuple[Tensor, Tensor]
Result = Tensor | Pair


def _checked(
    function: str,
    inputs: tuple[object, object, object],
    return_lse: bool,
    least: dict[str, tuple[Any, int]],
) -> list[int]:
    """The numbers in `least`, each with the least that it may be."""
    _options.check_inputs(function, *inputs)
    if torch.compiler.is_compiling():  # in a graph numbers may be symbols: the operator checks
        return [value for value, _ in least.values()]
    _arguments.boolean(function, "return_lse", return_lse)
    return [_options.count(function, name, value, low) for name, (value, low) in least.items()]


def _base(function: str, rope_base: Any) -> float:
    if torch.compiler.is_compiling():
        return float(rope_base)
    return _arguments.positive(function, "rope_base", rope_base)


def _result(results: Pair, return_lse: bool) -> Result:
    out, lse = results
    return (out, lse) if return_lse else out


@overload
def full(q: Tensor, k: Tensor, v: Tensor, return_lse: Literal[False] = False) -> Tensor: ...


@overload
def full(q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True]) -> Pair: ...


def full(q: Tensor, k: Tensor, v: Tensor, return_lse: bool = False) -> Result:
    """Returns causal attention to all tokens t <= r."""
    _checked("full", (q, k, v), return_lse, {})
    return _result(torch.ops.paperlab.cca_full(q, k, v), return_lse)


@overload
def sliding_window(
    q: Tensor, k: Tensor, v: Tensor, window: int, return_lse: Literal[False] = False
) -> Tensor: ...


@overload
def sliding_window(
    q: Tensor, k: Tensor, v: Tensor, window: int, *, return_lse: Literal[True]
) -> Pair: ...


def sliding_window(
    q: Tensor, k: Tensor, v: Tensor, window: int, return_lse: bool = False
) -> Result:
    """Returns attention to tokens 0 <= r - t < window; window >= 1."""
    (window,) = _checked("sliding_window", (q, k, v), return_lse, {"window": (window, 1)})
    return _result(torch.ops.paperlab.cca_sliding_window(q, k, v, window), return_lse)


@overload
def streaming_llm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: int = 4,
    recent: int = 512,
    rope_base: float = 10000.0,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def streaming_llm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: int = 4,
    recent: int = 512,
    rope_base: float = 10000.0,
    *,
    return_lse: Literal[True],
) -> Pair: ...


def streaming_llm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: int = 4,
    recent: int = 512,
    rope_base: float = 10000.0,
    return_lse: bool = False,
) -> Result:
    """Returns attention to the first `sinks` tokens and to 0 <= r - t <= recent.

    Positions are those inside a cache of C = sinks + recent tokens, the query's own after them: a
    sink lies min(r, C) - t before the query once the window has left it, other tokens r - t.
    q and k are not rotated yet: channels c and c + D/2 turn by position x rope_base^(-2c/D).
    D is even; sinks, recent >= 0; rope_base > 0, finite.
    Source: StreamingLLM (Xiao et al., ICLR 2024, arXiv:2309.17453).
    """
    name = "streaming_llm"
    sinks, recent = _checked(
        name, (q, k, v), return_lse, {"sinks": (sinks, 0), "recent": (recent, 0)}
    )
    base = _base(name, rope_base)
    return _result(torch.ops.paperlab.cca_streaming_llm(q, k, v, sinks, recent, base), return_lse)


@overload
def lm_infinite(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    global_tokens: int = 10,
    local: int = 4096,
    limit: int = 4096,
    rope_base: float = 10000.0,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def lm_infinite(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    global_tokens: int = 10,
    local: int = 4096,
    limit: int = 4096,
    rope_base: float = 10000.0,
    *,
    return_lse: Literal[True],
) -> Pair: ...


def lm_infinite(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    global_tokens: int = 10,
    local: int = 4096,
    limit: int = 4096,
    rope_base: float = 10000.0,
    return_lse: bool = False,
) -> Result:
    """Returns attention to tokens 0 <= r - t < local and to the first `global_tokens`.

    A global token that the window has left lies min(limit, T - 1) before every query, wherever it
    is. q and k are not rotated yet: channels c and c + D/2 turn by position x rope_base^(-2c/D).
    D is even; global_tokens, limit >= 0; local >= 1; rope_base > 0, finite.
    Source: LM-Infinite (Han et al., NAACL 2024, arXiv:2308.16137).
    """
    name = "lm_infinite"
    global_tokens, local, limit = _checked(
        name,
        (q, k, v),
        return_lse,
        {"global_tokens": (global_tokens, 0), "local": (local, 1), "limit": (limit, 0)},
    )
    base = _base(name, rope_base)
    return _result(
        torch.ops.paperlab.cca_lm_infinite(q, k, v, global_tokens, local, limit, base), return_lse
    )


@overload
def a_shape(
    q: Tensor, k: Tensor, v: Tensor, initial: int, local: int, return_lse: Literal[False] = False
) -> Tensor: ...


@overload
def a_shape(
    q: Tensor, k: Tensor, v: Tensor, initial: int, local: int, *, return_lse: Literal[True]
) -> Pair: ...


def a_shape(
    q: Tensor, k: Tensor, v: Tensor, initial: int, local: int, return_lse: bool = False
) -> Result:
    """Returns attention to the first `initial` tokens and to 0 <= r - t < local.

    initial >= 0, local >= 1.
    Source: the A-shape of MInference (Jiang et al., NeurIPS 2024, arXiv:2407.02490).
    """
    initial, local = _checked(
        "a_shape", (q, k, v), return_lse, {"initial": (initial, 0), "local": (local, 1)}
    )
    return _result(torch.ops.paperlab.cca_a_shape(q, k, v, initial, local), return_lse)


@overload
def vertical_slash(
    q: Tensor, k: Tensor, v: Tensor, vertical: int, slash: int, return_lse: Literal[False] = False
) -> Tensor: ...


@overload
def vertical_slash(
    q: Tensor, k: Tensor, v: Tensor, vertical: int, slash: int, *, return_lse: Literal[True]
) -> Pair: ...


def vertical_slash(
    q: Tensor, k: Tensor, v: Tensor, vertical: int, slash: int, return_lse: bool = False
) -> Result:
    """Returns attention to the columns t and diagonals r - t that the last queries attend to most.

    Chosen for each head by the sums of the softmax of the last 64 queries: max(vertical, 30)
    columns, the first 30 among them, and max(slash, 100) diagonals, the nearest 100 among them. A
    column is seen by all rows from it on. A diagonal o opens, for the rows b..b + 63 of a block,
    tokens b - o..b + 63 - o, none after the row. The choice has no gradient; it reads later
    queries, so that it is one for prefill. vertical, slash >= 0.

    Time and memory follow the tokens that a block of rows sees.
    Source: the vertical-slash form of MInference (Jiang et al., NeurIPS 2024, arXiv:2407.02490).
    """
    vertical, slash = _checked(
        "vertical_slash", (q, k, v), return_lse, {"vertical": (vertical, 0), "slash": (slash, 0)}
    )
    out, lse, _, _ = torch.ops.paperlab.cca_vertical_slash(q, k, v, vertical, slash)
    return _result((out, lse), return_lse)
