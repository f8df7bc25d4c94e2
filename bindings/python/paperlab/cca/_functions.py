"""Core-context attention, its parts and what it costs."""

from typing import Literal, overload

import torch

from paperlab import _arguments, _core
from paperlab.cca import _options
from paperlab.cca._options import Boundary, Pooling, WeightsPer


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_size: int = 16,
    window: int = 1024,
    pooling: Pooling = "attention",
    boundary: Boundary = "exact",
    weights_per: WeightsPer = "query_head",
    return_lse: Literal[False] = False,
    *,
    keep_first: int = 0,
) -> torch.Tensor: ...


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_size: int = 16,
    window: int = 1024,
    pooling: Pooling = "attention",
    boundary: Boundary = "exact",
    weights_per: WeightsPer = "query_head",
    *,
    return_lse: Literal[True],
    keep_first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]: ...


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_size: int = 16,
    window: int = 1024,
    pooling: Pooling = "attention",
    boundary: Boundary = "exact",
    weights_per: WeightsPer = "query_head",
    return_lse: bool = False,
    *,
    keep_first: int = 0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Returns attention to core tokens far back and to raw ones near, in one softmax.

    Query i = 1..T sees core tokens 1..j(i), j(i) = max(0, floor((i - s) / g)), one for each group
    of g tokens, and raw tokens g j(i) + 1..i: every token up to i once.

    q: [B, H, T, D], float32, float64 or bfloat16, any strides, rotated; D in 1..256.
    k, v: [B, G, T, D], H % G == 0, of q's dtype and device, any strides; k rotated. T may be 0.
    group_size: g >= 1. window: s >= 0.
    pooling: of a group's keys and values: "attention" (weighted by the softmax of the group's last
      query over its keys), "mean", or "max" of each channel.
    boundary: "exact"; "paper_equation" as printed: where j(i) > 0 also the last token that a core
      token stands for; "triton_truncation" as released for GPUs: queries s < i < s + g also see
      core token 1, so that with s < g they see the future; needs window % group_size == 0.
    weights_per: "query_head", or "kv_head": one core token for the query heads of a key head, which
      the mean of their queries weighs.
    keep_first: n >= 0, ours and not the paper's: the first n tokens stay raw and visible, groups
      and the rule above start after them.
    Returns out [B, H, T, D] in q's dtype or, with return_lse, (out, lse [B, H, T]): the row
    log-sum-exp, natural, float32 (float64 for float64). Both are new and differentiable once with
    respect to q, k and v, through pooling too; out does not depend on return_lse.

    Raises ValueError if a shape, device, layout or value is not as above, TypeError for a dtype or
    type. Accumulates in float32 (float64 for float64); memory is linear in T. The same bits from
    run to run and for any number of threads.
    Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465).
    """
    name = "attention"
    _options.check_inputs(name, q, k, v)
    pooling_name = _options.choice(name, "pooling", pooling)
    boundary_name = _options.choice(name, "boundary", boundary)
    weights_name = _options.choice(name, "weights_per", weights_per)
    if not torch.compiler.is_compiling():  # in a graph numbers may be symbols: the operator checks
        group_size = _options.count(name, "group_size", group_size, 1)
        window = _options.count(name, "window", window)
        keep_first = _options.count(name, "keep_first", keep_first)
        return_lse = _arguments.boolean(name, "return_lse", return_lse)
    out: torch.Tensor
    lse: torch.Tensor
    out, lse = torch.ops.paperlab.cca_attention(
        q, k, v, group_size, window, pooling_name, boundary_name, weights_name, keep_first
    )
    return (out, lse) if return_lse else out


def pool(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_size: int = 16,
    pooling: Pooling = "attention",
    weights_per: WeightsPer = "query_head",
    *,
    keep_first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the core keys and values of all complete groups, (core_k, core_v) [B, H, m, D].

    m = floor(T / g), with keep_first n max(0, floor((T - n) / g)): groups start after the first n
    tokens. weights_per "kv_head": [B, G, m, D].
    q, k, v, group_size, pooling, weights_per: as in attention(); its errors too.
    Both are new, in q's dtype, and differentiable once with respect to q, k and v.
    Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465).
    """
    name = "pool"
    _options.check_inputs(name, q, k, v)
    pooling_name = _options.choice(name, "pooling", pooling)
    weights_name = _options.choice(name, "weights_per", weights_per)
    if not torch.compiler.is_compiling():
        group_size = _options.count(name, "group_size", group_size, 1)
        keep_first = _options.count(name, "keep_first", keep_first)
    core_k: torch.Tensor
    core_v: torch.Tensor
    core_k, core_v = torch.ops.paperlab.cca_pool(
        q, k, v, group_size, pooling_name, weights_name, keep_first
    )
    return core_k, core_v


def mask(
    length: int,
    group_size: int = 16,
    window: int = 1024,
    boundary: Boundary = "exact",
    *,
    keep_first: int = 0,
) -> torch.Tensor:
    """Returns what each of `length` = L queries sees, bool [L, m + L], m = max(0, (L - s) // g).

    Core tokens first, then all raw tokens; with keep_first n, m is max(0, (L - n - s) // g) and the
    kept tokens are raw columns. Arguments and errors as in attention(); length >= 0.
    """
    name = "mask"
    size = _arguments.integer(name, "length", length, 0, 2**31 - 1)
    return _core.cca_mask(
        size,
        _options.options(name, group_size, window, boundary=boundary, keep_first=keep_first),
    )


def effective_attention(
    q: torch.Tensor, k: torch.Tensor, group_size: int = 16, window: int = 1024
) -> torch.Tensor:
    """Returns the weight that query i finally gives token t, directly or through t's core token.

    q: [B, H, T, D]; k: [B, G, T, D], as in attention(), or arrays. Pooling by attention, exact
    boundary, weights of each query head.
    Returns alpha [B, H, T, T] in q's dtype, new and differentiable: rows sum to 1, every t <= i has
    a weight above 0, later ones have 0, and alpha v (each head with its key head's v) is what
    attention() returns. Memory is O(T^2). Errors as in attention().
    Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465).
    """
    name = "effective_attention"
    queries, keys = _options.tensor(name, "q", q), _options.tensor(name, "k", k)
    if not torch.compiler.is_compiling():
        group_size = _options.count(name, "group_size", group_size, 1)
        window = _options.count(name, "window", window)
    alpha: torch.Tensor = torch.ops.paperlab.cca_effective_attention(
        queries, keys, group_size, window
    )
    return alpha


def cost(
    length: int,
    group_size: int = 16,
    window: int = 1024,
    heads: int = 1,
    kv_heads: int | None = None,
    head_dim: int = 64,
    layers: int = 1,
    bytes_per_element: int = 2,
    weights_per: WeightsPer = "query_head",
    *,
    keep_first: int = 0,
) -> dict[str, int]:
    """Returns what attention() to L = `length` tokens and the cache after them cost, by counting.

    heads: H; kv_heads: G, a divisor of H, None for H; bytes_per_element: of the cache.

    Of one head, exact boundary:
    - core_pairs: (query, core token), the sum of j(i) over i = 1..L; local_pairs: (query, raw
      token); pairs: both; full_pairs = L (L + 1) / 2;
    - cache_vectors = floor(L / g) + L - g j(L), with keep_first n floor((L - n) / g).
    Of all heads and layers:
    - flops = 4 head_dim H layers pairs, full_flops likewise (pooling is 6 head_dim H a token);
    - cache_bytes = 2 layers head_dim bytes_per_element (core heads x core tokens + G x raw tokens),
      core heads being G for weights_per "kv_head", else H; full_cache_bytes with G x L.

    Counts are exact integers. ValueError if length or window is below 0, another number below 1, G
    does not divide H, or a count is 2^63 or more; TypeError for a type.
    """
    name = "cost"
    size = _options.count(name, "length", length)
    given = _options.options(
        name, group_size, window, weights_per=weights_per, keep_first=keep_first
    )
    all_heads = _options.count(name, "heads", heads, 1)
    return _core.cca_cost(
        size,
        given,
        all_heads,
        all_heads if kv_heads is None else _options.count(name, "kv_heads", kv_heads, 1),
        _options.count(name, "head_dim", head_dim, 1),
        _options.count(name, "layers", layers, 1),
        _options.count(name, "bytes_per_element", bytes_per_element, 1),
    )
