"""Attention written from its definition, the cases of its tests and the bound of its errors."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from paperlab.ops import attention

Tensors = dict[str, torch.Tensor]
Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Grads = tuple[torch.Tensor, torch.Tensor]  # of out and lse
Function = Callable[["Case", Tensors], tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: sizes and options. A prefix belongs to the registered operator alone."""

    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    queries: int = 5
    keys: int = 7
    width: int = 8
    causal: bool = True
    window: int | None = None
    scale: float | None = None
    key_start: tuple[int, ...] | None = None
    key_end: tuple[int, ...] | None = None
    prefix_length: int = 0
    prefix_heads: int = 0  # 0: no prefix
    prefix_group: int = 0  # 0: sinks
    has_prefix_query: bool = False
    prefix_kept: int = 0
    prefix_overlap: bool = False
    prefix_truncated: bool = False
    num_past: int = 0

    def __str__(self) -> str:
        return "-".join(
            f"{field.name}={getattr(self, field.name)}".replace(" ", "")
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )

    def tensors(self, dtype: torch.dtype = torch.float64, requires_grad: bool = False) -> Tensors:
        """The tensors with gradients, standard normal, by the operator's names."""
        queries = (self.batch, self.heads, self.queries, self.width)
        keys = (self.batch, self.kv_heads, self.keys, self.width)
        prefix = (self.batch, self.prefix_heads, self.prefix_length, self.width)
        shapes = {"query": queries, "key": keys, "value": keys}
        if self.prefix_heads:
            shapes |= {"prefix_key": prefix, "prefix_value": prefix}
        if self.has_prefix_query:
            shapes["prefix_query"] = queries
        generator = torch.Generator().manual_seed(7)
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            .to(dtype)
            .requires_grad_(requires_grad)
            for name, shape in shapes.items()
        }

    def options(self) -> dict[str, Any]:
        """The keywords that the Python function and the operator share."""
        bounds = {"key_start": self.key_start, "key_end": self.key_end}
        return {
            "causal": self.causal,
            "window": self.window,
            "scale": self.scale,
            **{k: None if v is None else torch.tensor(v) for k, v in bounds.items()},
        }

    def operator_options(self) -> dict[str, Any]:
        names = (
            "prefix_group",
            "prefix_kept",
            "prefix_overlap",
            "prefix_truncated",
            "num_past",
        )
        given = {name: getattr(self, name) for name in names}
        return self.options() | {name: value for name, value in given.items() if value}

    def visible(self) -> tuple[Array, Array]:
        """Whether a row sees a raw key [B, T, S], and an entry of the prefix [B, T, J]."""
        raw = np.zeros((self.batch, self.queries, self.keys), dtype=bool)
        prefix = np.zeros((self.batch, self.queries, self.prefix_length), dtype=bool)
        for b in range(self.batch):
            start = self.key_start[b] if self.key_start else 0
            end = self.key_end[b] if self.key_end else self.num_past + self.keys
            for t in range(self.queries):
                at = self.num_past + t + self.keys - self.queries - start
                for n in range(max(0, start - self.num_past), max(0, end - self.num_past)):
                    raw[b, t, n] = self._sees(at, self.num_past + n - start, end - start)
                for n in range(self.prefix_length):
                    prefix[b, t, n] = at >= 0 and n < self._num_entries(at, end - start)
        return raw, prefix

    def _num_entries(self, at: int, length: int) -> int:
        """Entries of the prefix that a row at position `at` sees, of `length` keys in all."""
        if not self.prefix_heads:
            return 0
        assert self.window is not None
        behind = max(0, at + 1 - self.window)
        if self.prefix_group:
            cores = self._num_cores(at, length)
            return self.prefix_kept + cores if cores else 0
        return min(behind, self.prefix_length, length)

    def _num_cores(self, at: int, length: int) -> int:
        """Core entries that the row sees, by the exact partition or truncated."""
        assert self.window is not None
        of_row, of_all = at + 1 - self.prefix_kept, length - self.prefix_kept
        cores = min(of_row - self.window, of_all) // self.prefix_group
        is_made = of_all >= self.window + self.prefix_group
        is_early = self.window < of_row < self.window + self.prefix_group
        return 1 if self.prefix_truncated and is_made and is_early else max(0, cores)

    def _sees(self, at: int, key: int, length: int) -> bool:
        if not self.causal:
            return True
        if key > at:
            return False
        if self.prefix_group:
            assert self.window is not None
            cores = self._num_cores(at, length)
            behind = min(at + 1 - self.prefix_kept - self.window, length - self.prefix_kept)
            if cores and behind < self.prefix_group:  # truncated: the core entry hides no key
                return key >= self.prefix_kept
            hidden = self.prefix_kept + cores * self.prefix_group - self.prefix_overlap
            return not cores or key >= hidden
        return self.window is None or key > at - self.window


def _of_each_head(case: Case, x: Array) -> Array:
    repeated: Array = x.repeat(case.heads // x.shape[1], axis=1) if case.heads else x[:, :0]
    return repeated


def _of_each_group(case: Case, x: Array, like: Array) -> Array:
    """The sum over the query heads that share a head of `like`."""
    heads = like.shape[1]
    summed: Array = x.reshape(case.batch, heads, case.heads // heads, *x.shape[2:]).sum(axis=2)
    return summed


def _scale(case: Case) -> float:
    return 1 / math.sqrt(case.width) if case.scale is None else case.scale


def _weights(logits: Array) -> tuple[Array, Array]:
    """Softmax and log-sum-exp along the last axis; 0 and -inf where no logit is finite."""
    largest = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(logits - np.where(np.isfinite(largest), largest, 0))
    z = e.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(np.isfinite(largest), largest, 0) + np.log(z)
    return e / np.where(z == 0, 1, z), lse[..., 0]


class _Streams:
    """Queries, keys and values as the softmax meets them; products and their transposes."""

    def __init__(self, case: Case, x: Arrays) -> None:
        self.case, self.x = case, x
        self.queries = [x["query"]]
        self.keys = [x["key"]]
        self.values = [x["value"]]
        if case.prefix_heads:
            self.queries.append(x.get("prefix_query", x["query"]))
            self.keys.append(x["prefix_key"])
            self.values.append(x["prefix_value"])
        self.value = np.concatenate([_of_each_head(case, v) for v in self.values], axis=2)

    def products(self) -> Array:
        """q . k_n, [B, H, T, S + J]."""
        pairs = zip(self.queries, self.keys, strict=True)
        return np.concatenate([q @ _of_each_head(self.case, k).mT for q, k in pairs], axis=-1)

    def gradients(self, p: Array, ds: Array, grad_out: Array) -> Arrays:
        """dv_n = sum p_n g, dk_n = scale sum ds_n q, dq = scale sum ds_n k_n (ds holds scale)."""
        found: list[list[Array]] = []
        for q, k, v in zip(self.queries, self.keys, self.values, strict=True):
            part = slice(self.case.keys, None) if found else slice(0, self.case.keys)
            found.append(
                [
                    ds[..., part] @ _of_each_head(self.case, k),
                    _of_each_group(self.case, ds[..., part].mT @ q, k),
                    _of_each_group(self.case, p[..., part].mT @ grad_out, v),
                ]
            )
        named = dict(zip(("query", "key", "value"), found[0], strict=True))
        if self.case.prefix_heads:
            of_query, named["prefix_key"], named["prefix_value"] = found[1]
            if self.case.has_prefix_query:
                named["prefix_query"] = of_query
            else:
                named["query"] = named["query"] + of_query
        return named


def definition(case: Case, tensors: Tensors, grads: Grads) -> tuple[Arrays, Arrays, float]:
    """out, lse and all gradients in long double; for each element the sum of the absolute values
    behind it; the largest |logit|. By the equations

    s_n = scale q . k_n, p = softmax(s), o = sum p_n v_n, L = log sum exp(s_n),
    ds_n = p_n (g . v_n - g . o + h)
    """
    x = {name: _wide(tensor) for name, tensor in tensors.items()}
    raw, prefix = case.visible()
    seen: Array = np.any(raw, axis=1)[:, None, :, None]
    x |= {name: np.where(seen, x[name], 0) for name in ("key", "value")}  # others may be NaN
    streams, absolute = _Streams(case, x), _Streams(case, {n: abs(a) for n, a in x.items()})
    scale, mask = _scale(case), np.concatenate([raw, prefix], axis=-1)[:, None]
    g, h = (_wide(grad) for grad in grads)
    logits = np.where(mask, scale * streams.products(), -np.inf)
    p, lse = _weights(logits)
    out, out_sum = p @ streams.value, p @ absolute.value
    ds = p * (g @ streams.value.mT - (g * out).sum(-1, keepdims=True) + h[..., None])
    ds_sum = p * (
        abs(g) @ absolute.value.mT + (abs(g) * out_sum).sum(-1, keepdims=True) + abs(h)[..., None]
    )
    lse_sum = (p * abs(scale) * absolute.products()).sum(-1) + np.where(lse > -np.inf, abs(lse), 0)
    exact = {"out": out, "lse": lse} | streams.gradients(p, scale * ds, g)
    sums = {"out": out_sum, "lse": lse_sum} | absolute.gradients(p, abs(scale) * ds_sum, abs(g))
    return exact, sums, float(abs(np.where(mask, logits, 0)).max(initial=0))


def _wide(x: torch.Tensor) -> Array:
    return x.detach().double().numpy().astype(np.longdouble)


def plain(case: Case, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse by the formula in torch, every step in the dtype of the tensors."""
    raw, prefix = (torch.from_numpy(mask) for mask in case.visible())

    def of_each_head(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(case.heads // x.shape[1], dim=1) if case.heads else x[:, :0]

    streams = [(tensors["query"], tensors["key"], tensors["value"])]
    if case.prefix_heads:
        query = tensors.get("prefix_query", tensors["query"])
        streams.append((query, tensors["prefix_key"], tensors["prefix_value"]))
    logits = torch.cat([(q @ of_each_head(k).mT) * _scale(case) for q, k, _ in streams], dim=-1)
    logits = logits.masked_fill(~torch.cat([raw, prefix], dim=-1)[:, None], -math.inf)
    is_empty = torch.isneginf(logits).all(dim=-1)
    logits = logits.masked_fill(is_empty[..., None], 0)
    weights = torch.softmax(logits, dim=-1).masked_fill(is_empty[..., None], 0)
    values = torch.cat([of_each_head(v) for _, _, v in streams], dim=2)
    return weights @ values, torch.logsumexp(logits, dim=-1).masked_fill(is_empty, -math.inf)


def by_function(case: Case, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """What the Python function returns."""
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    return attention(query, key, value, **case.options(), return_lse=True)


def by_operator(case: Case, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """What the registered operator returns, which takes a prefix too."""
    out, lse = torch.ops.paperlab.attention(**tensors, **case.operator_options())
    return out, lse


def outcome(case: Case, tensors: Tensors, function: Function, grads: Grads) -> Tensors:
    """out, lse and the gradient of each tensor, by name."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    out, lse = function(case, leaves)
    grad_out, grad_lse = grads[0].to(out.dtype), grads[1].to(lse.dtype)
    gradients = torch.autograd.grad((out, lse), list(leaves.values()), (grad_out, grad_lse))
    return {"out": out.detach(), "lse": lse.detach()} | dict(zip(leaves, gradients, strict=True))


def random_grads(case: Case, dtype: torch.dtype) -> Grads:
    """Gradients of out and lse, standard normal."""
    shape = (case.batch, case.heads, case.queries, case.width)
    generator = torch.Generator().manual_seed(8)
    grad_out = torch.randn(shape, generator=generator, dtype=torch.float64)
    grad_lse = torch.randn(shape[:3], generator=generator, dtype=torch.float64)
    return grad_out.to(dtype), grad_lse.to(dtype)


def _half_ulp(x: Array, dtype: torch.dtype) -> Array:
    """Half the distance between numbers of `dtype` at |x|."""
    info = torch.finfo(dtype)
    exponent: Array
    _, exponent = np.frexp(np.maximum(abs(x), info.tiny))
    half: Array = np.ldexp(np.longdouble(info.eps / 4), exponent)
    return half


def _error(actual: torch.Tensor, exact: Array) -> Array:
    """|actual - exact|; 0 where both are the same infinity, infinite where NaN."""
    wide = _wide(actual)
    with np.errstate(invalid="ignore"):
        error = np.where(wide == exact, 0, abs(wide - exact))
    return np.where(np.isnan(error), np.inf, error)


def assert_within_bound(case: Case, dtype: torch.dtype, function: Function) -> None:
    """Holds function(case, tensors) and its gradients against the definition.

    The bound of an element: twice the largest error of the plain formula in `dtype`, half an ulp of
    the result, and eps (of float32, or float64) x (the sum of the absolute values behind the
    element) x (4 + the largest |logit|).
    """
    tensors, grads = case.tensors(dtype), random_grads(case, dtype)
    exact, sums, largest = definition(case, tensors, grads)
    formula = outcome(case, tensors, plain, grads)
    actual = outcome(case, tensors, function, grads)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for name, x in exact.items():
        assert actual[name].shape == x.shape
        bound = 2 * _error(formula[name], x).max(initial=0) + _half_ulp(x, actual[name].dtype)
        bound = bound + eps * sums[name] * (4 + largest)
        excess = _error(actual[name], x) - bound
        if x.size and excess.max() > 0:
            worst = np.unravel_index(excess.argmax(), x.shape)
            raise AssertionError(
                f"{name}{[int(i) for i in worst]} is {actual[name][worst]}, must be {x[worst]} "
                f"within {bound[worst]}"
            )
