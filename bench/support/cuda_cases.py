"""What is measured on a GPU: operators of the library beside LibTorch's, eager and compiled."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from paperlab import cca, mudd, ops
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensors = Sequence[torch.Tensor]
Function = Callable[..., Any]


@dataclass
class Case:
    """make(seed) makes a set of inputs; a contestant takes them and returns a tensor or several.

    The definition is run on inputs in float64: those of `gate`, where float64 needs smaller ones.
    Operations and bytes are the fewest that any form needs. ops: the operators of ours.
    """

    ops: tuple[str, ...]
    table: str
    name: str
    make: Callable[[int], Tensors]
    ours: Function
    baselines: dict[str, Function]
    definition: Function
    gate: Callable[[int], Tensors] | None = None
    flops: float = 0.0
    bytes: float = 0.0
    target: float | None = None
    has_memory: bool = False
    least_error: float = 1e-6
    facts: dict[str, Any] = field(default_factory=dict)


class Cases:
    """The cases of each name; `quick` makes them tiny and compiles nothing."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device = device
        self.quick = quick
        self.names: dict[str, Callable[[], Iterator[Case]]] = {
            "gemm": self.gemm,
            "depth_aggregate": self.depth_aggregate,
            "attention": self.attention,
            "core_context": self.core_context,
            "linear_cross_entropy": self.linear_cross_entropy,
            "rows": self.rows,
        }

    def random(self, seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)
        return [
            torch.randn(shape, generator=generator, device=self.device).to(torch.bfloat16)
            for shape in shapes
        ]

    def compiled(self, function: Function) -> Function:
        return function if self.quick else torch.compile(function)

    def small(self, size: int, least: int) -> int:
        return least if self.quick else size

    # --- products ------------------------------------------------------------------------------

    def gemm(self) -> Iterator[Case]:
        sizes = [(4096, 4096, 4096), (8192, 8192, 8192), (2048, 49152, 576), (16, 8192, 8192)]
        for m, n, k in [(8, 16, 24)] if self.quick else sizes:
            yield Case(
                ops=("linear",),
                table="matrix products, bfloat16",
                name=f"M {m}, N {n}, K {k}",
                make=lambda seed, m=m, n=n, k=k: self.random(seed, (m, k), (n, k)),
                ours=ops.linear,
                baselines={"cuBLAS": functional.linear},
                definition=functional.linear,
                flops=2.0 * m * n * k if m > 64 else 0.0,
                bytes=2.0 * (m * k + n * k + m * n),
                target=0.95,
            )

    # --- attention -----------------------------------------------------------------------------

    def attention(self) -> Iterator[Case]:
        for width, length in [(16, 32)] if self.quick else [(128, 4096), (128, 16384), (64, 4096)]:
            heads, batch = self.small(2048 // width, 2), self.small(16384 // length, 1)
            shape = (batch, heads, length, width)
            flops = 2.0 * batch * heads * length * length * width
            name = f"B {batch}, H {heads}, S {length}, D {width}"
            make = self.query_key_value(shape)
            gate = self.query_key_value((1, 2, min(length, 4096), width))
            yield Case(
                ops=("attention",),
                gate=gate,
                table="causal attention forward, bfloat16",
                name=name,
                make=make,
                ours=ops.attention,
                baselines=self.sdpa_backends(causal_sdpa),
                definition=plain_attention,
                flops=flops,
                target=1.0,
            )
            yield Case(
                ops=("attention",),
                gate=gate,
                table="causal attention forward and backward, bfloat16",
                name=name,
                make=make,
                ours=with_gradients(ops.attention),
                baselines=self.sdpa_backends(with_gradients(causal_sdpa)),
                definition=with_gradients(plain_attention),
                flops=3.5 * flops,
                target=1.0,
            )
        yield from self.decode()

    def decode(self) -> Iterator[Case]:
        for length in [64] if self.quick else [8192, 65536]:
            heads, kv_heads, width = self.small(32, 2), self.small(8, 1), self.small(128, 16)
            query, keys = (1, heads, 1, width), (1, kv_heads, length, width)
            yield Case(
                ops=("attention",),
                table="attention of one query, bfloat16",
                name=f"H {heads}, G {kv_heads}, S {length}, D {width}",
                make=lambda seed, q=query, k=keys: self.random(seed, q, k, k),
                ours=ops.attention,
                baselines={"SDPA": full_sdpa},
                definition=full_sdpa,
                bytes=4.0 * kv_heads * length * width,
                target=1.0,
            )

    def query_key_value(self, shape: tuple[int, ...]) -> Callable[[int], Tensors]:
        return lambda seed: self.random(seed, shape, shape, shape)

    def sdpa_backends(self, function: Function) -> dict[str, Function]:
        """By name, so that the table says which one is beaten."""
        if self.device.type == "cpu":
            return {"SDPA": function}
        backends = {
            "SDPA flash": SDPBackend.FLASH_ATTENTION,
            "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
            "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
        }
        return {name: in_backend(backend, function) for name, backend in backends.items()}

    def core_context(self) -> Iterator[Case]:
        group, window = (4, 8) if self.quick else (16, 1024)
        ratios = {8192: 3.52, 32768: 8.29, 65536: 10.9}
        for length in [40] if self.quick else ratios:
            heads, width = self.small(8, 2), self.small(128, 16)
            shape = (1, heads, length, width)
            pairs = cca.cost(length, group, window, heads, head_dim=width)["pairs"]
            yield Case(
                ops=("attention", "group_pool"),
                gate=self.query_key_value((1, 2, min(length, 4096), width)),
                table="core-context attention beside dense attention, bfloat16",
                name=f"H {heads}, S {length}, D {width}, g {group}, s {window}",
                make=self.query_key_value(shape),
                ours=partial(cca.attention, group_size=group, window=window),
                baselines=self.sdpa_backends(causal_sdpa),
                definition=partial(cca_definition, group_size=group, window=window),
                flops=4.0 * width * heads * pairs,
                target=None if self.quick else 0.6 * ratios[length],
                facts={"ideal_ratio": ratios.get(length), "is_other_function": True},
            )

    # --- the loss ------------------------------------------------------------------------------

    def linear_cross_entropy(self) -> Iterator[Case]:
        sizes = [(8192, 2048, 49152), (4096, 4096, 128256)]
        for n, d, v in [(12, 8, 40)] if self.quick else sizes:
            yield Case(
                ops=("linear_cross_entropy",),
                table="linear and cross-entropy, forward and backward, bfloat16",
                name=f"N {n}, D {d}, V {v}",
                make=partial(self.loss_inputs, n, d, v),
                ours=with_gradients(ops.linear_cross_entropy, 2),
                baselines={
                    "eager": with_gradients(eager_loss, 2),
                    "torch.compile": with_gradients(self.compiled(eager_loss), 2),
                },
                definition=with_gradients(eager_loss, 2),
                flops=6.0 * n * d * v,
                target=1.0,
                has_memory=True,
            )

    def loss_inputs(self, n: int, d: int, v: int, seed: int) -> Tensors:
        x, weight = self.random(seed, (n, d), (v, d))
        return x, weight * 0.05, torch.arange(n, device=self.device) * 7919 % v

    # --- what moves memory ---------------------------------------------------------------------

    def depth_aggregate(self) -> Iterator[Case]:
        ways, sources = 4, self.small(25, 3)
        tokens, width = self.small(8192, 6), self.small(2560, 16)
        states, weights = (sources, 1, tokens, width), (ways, 1, tokens, sources)
        numbers = float(tokens * width)
        name = f"{ways} ways, {sources} sources, N {tokens}, D {width}"
        baselines = {
            "eager": sum_of_states,
            "einsum": einsum_of_states,
            "torch.compile": self.compiled(einsum_of_states),
        }
        yield Case(
            ops=("depth_aggregate",),
            table="sums over depth, bfloat16",
            name=f"forward, {name}",
            make=lambda seed: self.random(seed, states, weights),
            ours=mudd.depth_aggregate,
            baselines=baselines,
            definition=einsum_of_states,
            bytes=2.0 * numbers * (sources + ways),
            target=1.5,
        )
        yield Case(
            ops=("depth_aggregate",),
            table="sums over depth, bfloat16",
            name=f"forward and backward, {name}",
            make=lambda seed: self.random(seed, states, weights),
            ours=with_gradients(mudd.depth_aggregate),
            baselines={k: with_gradients(f) for k, f in baselines.items()},
            definition=with_gradients(einsum_of_states),
            bytes=2.0 * numbers * (2 * (sources + ways) + sources),
            target=1.5,
        )

    def rows(self) -> Iterator[Case]:
        table = "rows, forward and backward, bfloat16"
        n, d = self.small(16384, 6), self.small(4096, 32)
        matrix = (n, d)
        yield Case(
            ops=("rms_norm",),
            table=table,
            name=f"rms_norm, N {n}, D {d}",
            make=lambda seed: self.random(seed, matrix, (d,)),
            ours=with_gradients(ops.rms_norm),
            baselines=self.eager_and_compiled(rms_norm),
            definition=with_gradients(rms_norm),
            bytes=2.0 * n * d * 5,
            target=1.0,
        )
        yield Case(
            ops=("swiglu",),
            table=table,
            name=f"swiglu, N {n}, D {d}",
            make=lambda seed: self.random(seed, matrix, matrix),
            ours=with_gradients(ops.swiglu),
            baselines=self.eager_and_compiled(swiglu),
            definition=with_gradients(swiglu),
            bytes=2.0 * n * d * 8,
            target=1.0,
        )
        heads, width = self.small(32, 2), self.small(128, 16)
        tokens = n // 4
        yield Case(
            ops=("rope",),
            table=table,
            name=f"rope, B 4, T {tokens}, H {heads}, D {width}",
            make=partial(self.rope_inputs, (4, tokens, heads, width)),
            ours=with_gradients(ops.rope, 1),
            baselines=self.eager_and_compiled(rope, 1),
            definition=with_gradients(rope, 1),
            bytes=2.0 * 4 * tokens * heads * width * 4,
            target=1.0,
        )

    def rope_inputs(self, shape: tuple[int, ...], seed: int) -> Tensors:
        table = (1, shape[1], shape[3] // 2)
        x, cos, sin = self.random(seed, shape, table, table)
        return x, cos.float(), sin.float()

    def eager_and_compiled(
        self, function: Function, count: int | None = None
    ) -> dict[str, Function]:
        return {
            "eager": with_gradients(function, count),
            "torch.compile": with_gradients(self.compiled(function), count),
        }


# --- contestants -------------------------------------------------------------------------------


def with_gradients(function: Function, count: int | None = None) -> Function:
    """The function's result and its gradients of the first `count` inputs (all), for a gradient of
    its result that is the same for everyone."""

    def both(*inputs: torch.Tensor) -> Tensors:
        leaves = [
            x.detach().requires_grad_(count is None or i < count) for i, x in enumerate(inputs)
        ]
        out = function(*leaves)
        # Ones would make sums of probabilities vanish: a ramp, the same in every dtype.
        ramp = torch.linspace(0.5, 1.0, out.shape[-1] if out.dim() else 1, device=out.device)
        grad = ramp.to(torch.bfloat16).to(out.dtype)
        grad = grad.expand(out.shape) if out.dim() else grad[0]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return (out.detach(), *torch.autograd.grad(out, wanted, grad))

    return both


def in_backend(backend: SDPBackend, function: Function) -> Function:
    def call(*inputs: torch.Tensor) -> Any:
        with sdpa_kernel(backend):
            return function(*inputs)

    return call


def causal_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def full_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Head by head, so that one matrix of logits is in memory at a time."""
    length = q.shape[2]
    hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    rows = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            logits = (q[b, h] @ k[b, h].T / math.sqrt(q.shape[3])).masked_fill(hidden, -math.inf)
            rows.append(torch.softmax(logits, -1) @ v[b, h])
    return torch.stack(rows).reshape(q.shape)


def cca_definition(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group_size: int, window: int
) -> torch.Tensor:
    """Pooled keys before the raw ones, under the mask, head by head."""
    mask = cca.mask(q.shape[2], group_size, window).to(q.device)
    core = mask.shape[1] - q.shape[2]
    rows = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            # A group's keys and values, weighted by its last query.
            first = slice(0, core * group_size)
            key_groups = k[b, h, first].reshape(core, group_size, -1)
            value_groups = v[b, h, first].reshape(core, group_size, -1)
            last = q[b, h, first][group_size - 1 :: group_size, :, None]
            weights = torch.softmax(key_groups @ last / math.sqrt(q.shape[3]), 1)
            keys = torch.cat([(weights * key_groups).sum(1), k[b, h]])
            values = torch.cat([(weights * value_groups).sum(1), v[b, h]])
            logits = (q[b, h] @ keys.T / math.sqrt(q.shape[3])).masked_fill(~mask, -math.inf)
            rows.append(torch.softmax(logits, -1) @ values)
    return torch.stack(rows).reshape(q.shape)


def eager_loss(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    logits = functional.linear(x, weight)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide, target)


def sum_of_states(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Way by way and source by source."""
    return torch.stack(
        [
            sum(
                (w[..., j, None] * states[j] for j in range(1, len(states))),
                w[..., 0, None] * states[0],
            )
            for w in weights
        ]
    )


def einsum_of_states(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.einsum("cbtj,jbtd->cbtd", weights, states)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return functional.silu(gate) * up


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)
