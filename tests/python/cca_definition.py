"""Core-context attention and what it is compared with, written down plainly: loops over rows.

Positions are 0-based: row r is query i = r + 1 of the paper. Everything in the dtype of the inputs
(tests: float64), by torch operations that autograd knows.
"""

import dataclasses
import math

import torch

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: sizes and options."""

    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    length: int = 23
    width: int = 8
    group_size: int = 3
    window: int = 4
    pooling: str = "attention"
    boundary: str = "exact"
    weights_per: str = "query_head"
    keep_first: int = 0

    def __str__(self) -> str:
        return "-".join(
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )

    def tensors(
        self, dtype: torch.dtype = torch.float64, requires_grad: bool = False, factor: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: normal with deviation `factor`, rounded to `dtype`."""
        generator = torch.Generator().manual_seed(5)
        shapes = [(self.batch, n, self.length, self.width) for n in (self.heads, *self._kv())]
        q, k, v = (
            (factor * torch.randn(shape, generator=generator, dtype=torch.float64))
            .to(dtype)
            .requires_grad_(requires_grad)
            for shape in shapes
        )
        return q, k, v

    def _kv(self) -> tuple[int, int]:
        return self.kv_heads, self.kv_heads

    def options(self) -> dict[str, object]:
        """The keywords of paperlab.cca.attention."""
        return {
            "group_size": self.group_size,
            "window": self.window,
            "pooling": self.pooling,
            "boundary": self.boundary,
            "weights_per": self.weights_per,
            "keep_first": self.keep_first,
        }


def num_visible(row: int, group: int, window: int, kept: int = 0) -> int:
    """j: core tokens that the row sees."""
    return max(0, math.floor((row + 1 - kept - window) / group))


def seen(row: int, case: Case) -> tuple[list[int], list[int]]:
    """Core tokens and raw tokens that the row sees."""
    g, s, n = case.group_size, case.window, case.keep_first
    j = num_visible(row, g, s, n)
    core, raw = list(range(j)), list(range(min(n, row + 1)))
    first = n + g * j
    if case.boundary == "paper_equation" and j > 0:
        first -= 1
    raw += [t for t in range(first, row + 1) if t not in raw]
    is_truncated = case.boundary == "triton_truncation" and s < row + 1 - n < s + g
    if is_truncated and case.length - n >= s + g:  # else nobody has pooled
        core = [0]
    return core, raw


def represented(row: int, case: Case) -> list[int]:
    """The tokens that the row's core and raw tokens stand for, as often as they do."""
    core, raw = seen(row, case)
    g, n = case.group_size, case.keep_first
    return sorted(raw + [n + g * c + u for c in core for u in range(g)])


def per_head(x: Tensor, heads: int) -> Tensor:
    """[B, G, ...] to [B, H, ...]: each key head for its query heads."""
    return x.repeat_interleave(heads // x.shape[1], dim=1) if x.shape[1] else x[:, :0]


def pool_weights(q: Tensor, k: Tensor, case: Case, group: int) -> Tensor:
    """w [B, P, g] of a group's tokens."""
    g, first = case.group_size, case.keep_first + group * case.group_size
    heads, kv_heads = q.shape[1], k.shape[1]
    evaluator, keys = q[:, :, first + g - 1], k[:, :, first : first + g]
    if case.weights_per == "kv_head":
        evaluator = evaluator.unflatten(1, (kv_heads, heads // kv_heads)).mean(2)
    else:
        keys = per_head(keys, heads)
    if case.pooling == "mean":
        return torch.full(keys.shape[:3], 1 / g, dtype=q.dtype)
    return torch.softmax((keys @ evaluator[..., None])[..., 0] / math.sqrt(q.shape[-1]), dim=-1)


def pool(q: Tensor, k: Tensor, v: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Core keys and values of all complete groups, [B, P, m, D]."""
    g, n = case.group_size, case.keep_first
    heads = k.shape[1] if case.weights_per == "kv_head" else q.shape[1]
    count = max(0, q.shape[2] - n) // g
    pooled: list[list[Tensor]] = [[], []]
    for c in range(count):
        for x, results in zip((k, v), pooled, strict=True):
            tokens = per_head(x[:, :, n + c * g : n + c * g + g], heads)
            if case.pooling == "max":
                results.append(tokens.max(dim=2).values)
            else:
                results.append((pool_weights(q, k, case, c)[..., None] * tokens).sum(2))
    empty = q.new_zeros(q.shape[0], heads, 0, q.shape[3])
    core_k, core_v = (torch.stack(x, dim=2) if x else empty for x in pooled)
    return core_k, core_v


def softmax_of(
    query: Tensor, keys: list[Tensor], values: list[Tensor], queries: list[Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one row: out [B, H, D], lse [B, H], weights [B, H, n] over the parts [B, H, n_i, D].

    queries: a query for each part, where it is not `query`.
    """
    queries = queries or [query] * len(keys)
    logits = torch.cat(
        [(k @ q[..., None])[..., 0] for q, k in zip(queries, keys, strict=True)], dim=-1
    ) / math.sqrt(query.shape[-1])
    weights = torch.softmax(logits, dim=-1)
    out = (weights[..., None] * torch.cat(values, dim=2)).sum(2)
    return out, torch.logsumexp(logits, dim=-1), weights


def attention(q: Tensor, k: Tensor, v: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """out [B, H, T, D], lse [B, H, T]."""
    heads = q.shape[1]
    core_k, core_v = (per_head(x, heads) for x in pool(q, k, v, case))
    k, v = per_head(k, heads), per_head(v, heads)
    outs, lses = [], []
    for row in range(q.shape[2]):
        core, raw = seen(row, case)
        parts = ((core_k, core_v, core), (k, v, raw))
        keys, values = ([part[i][:, :, part[2]] for part in parts] for i in (0, 1))
        out, lse, _ = softmax_of(q[:, :, row], keys, values)
        outs.append(out)
        lses.append(lse)
    if not outs:
        nothing = (q.sum() + k.sum() + v.sum()) * 0
        return q + nothing, q.sum(3) + nothing
    return torch.stack(outs, dim=2), torch.stack(lses, dim=2)


def effective_attention(q: Tensor, k: Tensor, case: Case) -> Tensor:
    """alpha [B, H, T, T], token by token."""
    heads, g = q.shape[1], case.group_size
    core_k = pool(q, k, k, case)[0]
    expanded = per_head(k, heads)
    alpha = q.new_zeros(*q.shape[:3], q.shape[2])
    for row in range(q.shape[2]):
        core, raw = seen(row, case)
        keys = [core_k[:, :, core], expanded[:, :, raw]]
        weights = softmax_of(q[:, :, row], keys, keys)[2]
        for n, c in enumerate(core):
            alpha[:, :, row, c * g : c * g + g] = weights[:, :, n, None] * pool_weights(
                q, k, case, c
            )
        alpha[:, :, row, raw] = weights[:, :, len(core) :]
    return alpha


def counts(case: Case) -> dict[str, int]:
    """Pairs and stored vectors by enumeration."""
    rows = [seen(row, case) for row in range(case.length)]
    g, n, length = case.group_size, case.keep_first, case.length
    needed = {  # raw tokens that the next token may see: all but those that core tokens hide
        t for t in range(length) if t < n or t >= n + g * num_visible(length - 1, g, case.window, n)
    }
    complete = [c for c in range(length) if n + (c + 1) * g <= length]
    return {
        "core_pairs": sum(len(core) for core, _ in rows),
        "local_pairs": sum(len(raw) for _, raw in rows),
        "pairs": sum(len(core) + len(raw) for core, raw in rows),
        "full_pairs": sum(row + 1 for row in range(length)),
        "core_vectors": len(complete),
        "raw_vectors": len(needed),
        "cache_vectors": len(complete) + len(needed),
    }


class Stream:
    """The streaming cache by the batch form: all tokens are kept and attended to again."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def append(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.parts.append((q, k, v))
        q, k, v = (torch.cat(x, dim=2) for x in zip(*self.parts, strict=True))
        out, _ = attention(q, k, v, self.case)
        return out[:, :, out.shape[2] - self.parts[-1][0].shape[2] :]


def rotate(x: Tensor, position: Tensor, base: float = 10000.0) -> Tensor:
    """x [..., T, D] at positions [T]: channels c and c + D/2 turn by position base^(-2c/D)."""
    half = x.shape[-1] // 2
    frequency = base ** (-2.0 * torch.arange(half, dtype=torch.float64) / x.shape[-1])
    angle = position.double()[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def by_rows(
    q: Tensor, k: Tensor, v: Tensor, distance: object, base: float | None
) -> tuple[Tensor, Tensor]:
    """Attention where row r sees token t if distance(r, t) is not None, at that distance."""
    assert callable(distance)
    heads = q.shape[1]
    k, v = per_head(k, heads), per_head(v, heads)
    outs, lses = [], []
    for row in range(q.shape[2]):
        far = {t: distance(row, t) for t in range(row + 1)}
        tokens = [t for t, d in far.items() if d is not None]
        keys = k[:, :, tokens]
        if base is not None:  # the query stands at 0, the key so far before it
            keys = rotate(keys, -torch.tensor([float(far[t]) for t in tokens]), base)
        out, lse, _ = softmax_of(q[:, :, row], [keys], [v[:, :, tokens]])
        outs.append(out)
        lses.append(lse)
    return torch.stack(outs, dim=2), torch.stack(lses, dim=2)


def full(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return by_rows(q, k, v, lambda r, t: r - t, None)


def sliding_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    return by_rows(q, k, v, lambda r, t: r - t if r - t < window else None, None)


def streaming_llm(
    q: Tensor, k: Tensor, v: Tensor, sinks: int, recent: int, base: float
) -> tuple[Tensor, Tensor]:
    def distance(r: int, t: int) -> int | None:
        if t >= r - recent:
            return r - t
        return min(r, sinks + recent) - t if t < sinks else None

    return by_rows(q, k, v, distance, base)


def streaming_llm_by_cache(
    q: Tensor, k: Tensor, v: Tensor, sinks: int, recent: int, base: float
) -> Tensor:
    """Token by token through a cache of un-rotated keys, which are rotated by their index in it."""
    heads = q.shape[1]
    k, v = per_head(k, heads), per_head(v, heads)
    cached: list[int] = []
    outs = []
    for row in range(q.shape[2]):
        tokens = [*cached, row]
        index = torch.arange(len(tokens))
        query = rotate(q[:, :, row : row + 1], index[-1:], base)[:, :, 0]
        out, _, _ = softmax_of(query, [rotate(k[:, :, tokens], index, base)], [v[:, :, tokens]])
        outs.append(out)
        if len(tokens) > sinks + recent:  # evict after the step
            tokens = tokens[:sinks] + (tokens[-recent:] if recent else [])
        cached = tokens
    return torch.stack(outs, dim=2)


def lm_infinite(
    q: Tensor, k: Tensor, v: Tensor, global_tokens: int, local: int, limit: int, base: float
) -> tuple[Tensor, Tensor]:
    far = min(limit, q.shape[2] - 1)

    def distance(r: int, t: int) -> int | None:
        if r - t < local:
            return r - t
        return far if t < global_tokens else None

    return by_rows(q, k, v, distance, base)


def a_shape(q: Tensor, k: Tensor, v: Tensor, initial: int, local: int) -> tuple[Tensor, Tensor]:
    return by_rows(q, k, v, lambda r, t: r - t if r - t < local or t < initial else None, None)


def vertical_slash_choice(
    q: Tensor, k: Tensor, vertical: int, slash: int
) -> tuple[list[set[int]], list[set[int]]]:
    """Columns and diagonals of each (b, h), in that order."""
    batch, heads, length, width = q.shape
    k = per_head(k, heads)
    columns, diagonals = [], []
    rows = range(max(0, length - 64), length)
    for b in range(batch):
        for h in range(heads):
            by_column, by_diagonal = [0.0] * length, [0.0] * length
            for r in rows:
                p = torch.softmax(k[b, h, : r + 1] @ q[b, h, r] / math.sqrt(width), dim=0)
                for t, weight in enumerate(p.tolist()):
                    by_column[t] += weight
                    by_diagonal[r - t] += weight
            for sums, least, wanted, chosen in (
                (by_column, 30, vertical, columns),
                (by_diagonal, 100, slash, diagonals),
            ):
                order = sorted(range(length), key=lambda t, x=sums, n=least: (t >= n, -x[t]))
                chosen.append(set(order[: max(wanted, least)]))
    return columns, diagonals


def vertical_slash(
    q: Tensor, k: Tensor, v: Tensor, vertical: int, slash: int
) -> tuple[Tensor, Tensor]:
    batch, heads, _, _ = q.shape
    columns, diagonals = vertical_slash_choice(q.detach(), k.detach(), vertical, slash)
    k, v = per_head(k, heads), per_head(v, heads)
    outs, lses = [], []
    for b in range(batch):
        for h in range(heads):
            column, diagonal = columns[b * heads + h], diagonals[b * heads + h]

            def distance(r: int, t: int, column=column, diagonal=diagonal) -> int | None:
                start = r // 64 * 64
                by_block = any(start - o <= t <= start + 63 - o for o in diagonal)
                return r - t if t in column or by_block else None

            one = slice(b, b + 1), slice(h, h + 1)
            out, lse = by_rows(q[one], k[one], v[one], distance, None)
            outs.append(out[0, 0])
            lses.append(lse[0, 0])
    return (
        torch.stack(outs).unflatten(0, (batch, heads)),
        torch.stack(lses).unflatten(0, (batch, heads)),
    )
