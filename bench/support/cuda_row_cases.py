"""The cases beside attention: sums over depth, the loss, products, rows, the one-layer step."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from support import cuda_baselines as baselines
from support.cuda_case import Case, Function, Goal, Tensors, backward_of, with_gradients
from support.cuda_cases import AttentionCases, NoLibrary
from torch.nn import functional

EAGER = ("eager", "einsum")
COMPILED = ("torch.compile of the loop", "torch.compile of einsum")
COMPILED_GRAPH = "torch.compile in a CUDA graph"
OPERATOR = "ours by the operator in a CUDA graph"


class Cases(AttentionCases):
    """All cases, by name, in the order of their worth."""

    def __init__(self, device: torch.device, quick: bool, library: Any = None) -> None:
        super().__init__(device, quick, library)
        self.names: dict[str, Callable[[], Iterator[Case]]] = {
            "depth_aggregate": self.depth_aggregate,
            "core_context": self.core_context,
            "attention": self.attention,
            "one_layer": self.one_layer,
            "linear_cross_entropy": self.linear_cross_entropy,
            "rows": self.rows,
            "gemm": self.gemm,
        }

    # --- products ------------------------------------------------------------------------------

    def gemm(self) -> Iterator[Case]:
        sizes = [(8192, 8192, 8192), (4096, 4096, 4096), (2048, 49152, 576), (16, 8192, 8192)]
        for m, n, k in [(8, 16, 24)] if self.quick else sizes:
            yield Case(
                ops=("linear",),
                table="matrix products, bfloat16",
                name=f"M {m}, N {n}, K {k}",
                make=lambda seed, m=m, n=n, k=k: self.random(seed, (m, k), (n, k)),
                ours=self.ops.linear,
                baselines={"cuBLAS": functional.linear},
                definition=functional.linear,
                flops=2.0 * m * n * k if m > 64 else 0.0,
                bytes=2.0 * (m * k + n * k + m * n),
                goals=(Goal("A", 0.95, than=("cuBLAS",)),),
            )

    # --- sums over depth -----------------------------------------------------------------------

    def depth_aggregate(self) -> Iterator[Case]:
        yield self.depth_forward(EAGER)
        yield self.depth_backward(EAGER)
        yield self.depth_forward(COMPILED)  # compiling takes a while: last
        yield self.depth_backward(COMPILED)

    def depth_case(self, pass_: str, names: tuple[str, ...]) -> dict[str, Any]:
        """What both passes have in common, and their sizes: ways, sources, numbers of a state."""
        ways, sources = 4, self.small(25, 3)
        tokens, width = self.small(8192, 6), self.small(2560, 16)
        states, weights = (sources, 1, tokens, width), (ways, 1, tokens, sources)
        beside = " beside torch.compile" if names == COMPILED else ""
        return {
            "ops": ("depth_aggregate",),
            "table": "sums over depth, bfloat16",
            "name": f"{pass_}{beside}, {ways} ways, {sources} sources, N {tokens}, D {width}",
            "make": lambda seed: self.random(seed, states, weights),
            "compiled": frozenset(names).intersection(COMPILED),
            "facts": {"ways": ways, "sources": sources, "numbers": tokens * width},
        }

    def depth_forms(self, names: tuple[str, ...]) -> dict[str, Function]:
        loop, einsum = baselines.sum_of_states, baselines.einsum_of_states
        forms = (loop, einsum) if names == EAGER else (self.compiled(loop), self.compiled(einsum))
        return dict(zip(names, forms, strict=True))

    def depth_forward(self, names: tuple[str, ...]) -> Case:
        shared = self.depth_case("forward", names)
        facts = shared["facts"]
        goals = (
            Goal("A", 0.70, "copy"),
            Goal("A", 8.0, than=("eager",)),
            Goal("stretch", 0.85, "copy"),
            Goal("stretch", 10.0, than=("eager",)),
        )
        compiled = (Goal("A", 1.5, than=COMPILED), Goal("stretch", 2.5, than=COMPILED))
        return Case(
            **shared,
            ours=self.library.mudd.depth_aggregate,
            baselines=self.depth_forms(names),
            definition=baselines.einsum_of_states,
            bytes=2.0 * facts["numbers"] * (facts["sources"] + facts["ways"]),
            goals=goals if names == EAGER else compiled,
        )

    def depth_backward(self, names: tuple[str, ...]) -> Case:
        shared = self.depth_case("backward alone", names)
        facts = shared["facts"]
        goals = (
            Goal("A", 0.60, "copy"),
            Goal("stretch", 0.75, "copy"),
            Goal("stretch", 1.0, "same_bits"),
        )
        return Case(
            **shared,
            ours=backward_of(self.library.mudd.depth_aggregate),
            baselines={k: backward_of(f) for k, f in self.depth_forms(names).items()},
            definition=backward_of(baselines.einsum_of_states),
            is_prepared=True,
            # The streams' gradients and the states are read, the states' gradients are written.
            bytes=2.0 * facts["numbers"] * (2 * facts["sources"] + facts["ways"]),
            goals=goals if names == EAGER else (),
        )

    # --- the loss ------------------------------------------------------------------------------

    def linear_cross_entropy(self) -> Iterator[Case]:
        sizes = [(4096, 4096, 128256), (8192, 2048, 49152)]
        for size in [(12, 8, 40)] if self.quick else sizes:
            eager: dict[str, Function] = {
                "eager": baselines.eager_loss,
                "chunked torch": partial(baselines.chunked_loss, rows=self.small(1024, 5)),
            }
            goals = (
                Goal("A", 1.0, than=("eager",)),
                Goal("A", 0.25, "memory", than=("eager",)),
                Goal("stretch", 1.2, than=("eager",)),
                Goal("stretch", 2.4, than=("chunked torch",)),
            )
            yield self.loss_case(size, eager, goals)
        for size in [(12, 8, 40)] if self.quick else sizes:  # compiling takes a while: last
            compiled = {"torch.compile": self.compiled(baselines.eager_loss)}
            yield self.loss_case(size, compiled, ())

    def loss_case(
        self, size: tuple[int, int, int], forms: dict[str, Function], goals: tuple[Goal, ...]
    ) -> Case:
        n, d, v = size
        beside = "" if goals else " beside torch.compile"
        return Case(
            ops=("linear_cross_entropy",),
            table="linear and cross-entropy, forward and backward, bfloat16",
            name=f"N {n}, D {d}, V {v}{beside}",
            make=partial(self.loss_inputs, n, d, v),
            ours=with_gradients(self.ops.linear_cross_entropy, 2),
            baselines={name: with_gradients(form, 2) for name, form in forms.items()},
            compiled=frozenset(forms) if not goals else frozenset(),
            definition=with_gradients(baselines.eager_loss, 2),
            flops=6.0 * n * d * v,
            has_memory=True,
            goals=goals,
        )

    def loss_inputs(self, n: int, d: int, v: int, seed: int) -> Tensors:
        x, weight = self.random(seed, (n, d), (v, d))
        return x, weight * 0.05, torch.arange(n, device=self.device) * 7919 % v

    # --- the one-layer transformer on every string -----------------------------------------------

    def one_layer(self) -> Iterator[Case]:
        for length in [5] if self.quick else [16, 20, 12, 18, 14]:
            yield self.one_layer_step(length)
        for length in [5] if self.quick else [16, 20, 18]:  # compiling takes a while: last
            yield self.one_layer_step(length, is_compiled=True)

    def one_layer_step(self, length: int, *, is_compiled: bool = False) -> Case:
        """A step of training, many of which are one call of ours; its plan is in the time."""
        steps = self.small(10000 if length <= 16 else 4000, 3)
        explicit = partial(baselines.ExplicitBatch, length, self.device)
        compiled = self.compiled(baselines.length_loss, dynamic=True)
        eager: dict[str, Any] = {"eager": partial(explicit, None)}
        if length <= 16:  # its backward pass adds to few numbers by atomics
            eager["eager by index"] = partial(baselines.GatheredBatch, length, self.device)
        graphs: dict[str, Any] = {"eager in a CUDA graph": partial(explicit, None)}
        goals = [Goal("A", 10.0, than=tuple(eager))]
        goals += [Goal("stretch", 100.0, than=tuple(eager))] if length >= 16 else []
        if is_compiled:
            eager = {"torch.compile": partial(explicit, compiled)}
            graphs = {COMPILED_GRAPH: partial(explicit, compiled)}
            goals = [Goal("stretch", 20.0, than=("torch.compile", COMPILED_GRAPH))]
        forms = {name: baselines.training_step(make) for name, make in {**eager, **graphs}.items()}
        beside = " beside torch.compile" if is_compiled else ""
        return Case(
            ops=("even_pairs_loss",),
            table="a step of the one-layer transformer on all strings of 1..L tokens, float64",
            name=f"L {length}, {2 ** (length + 1) - 2} strings{beside}",
            make=partial(self.one_layer_start, length),
            ours=partial(self.one_layer_training, length, steps),
            gate_ours=partial(self.one_layer_training, length, 1),
            baselines=forms,
            compiled=frozenset(forms if is_compiled else []),
            by_host=frozenset(["ours", *eager]),
            by_graph=frozenset([*graphs, OPERATOR]),
            definition=baselines.training_step(partial(explicit, None)),
            variants={OPERATOR: self.operator_step},
            is_prepared=True,
            steps=steps,
            least_error=1e-12,
            goals=tuple(goals),
        )

    def one_layer_training(
        self, length: int, steps: int, u: torch.Tensor, _w: torch.Tensor, seed: torch.Tensor
    ) -> Callable[[], Tensors]:
        """The loop that stays on the device, from the start that the seed stands for."""
        train = self.library.regular_language.train
        options = {"max_length": length, "method": "fold", "init_std": 1.0, "seed": int(seed)}

        def run() -> Tensors:
            result = train(**options, num_steps=steps, record=[steps], device=self.device.type)
            return [torch.from_numpy(x).to(u.device) for x in (result["u"][0], result["w"])]

        return run

    def operator_step(
        self, u: torch.Tensor, w: torch.Tensor, _seed: torch.Tensor
    ) -> Callable[[], Any]:
        """The same step by the operator of the gradient, for any loop of torch's."""
        own = [x.clone() for x in (u, w)]
        one = u.new_ones(())

        def step() -> None:
            gradients = torch.ops.paperlab.even_pairs_loss_backward(one, *own, baselines.SCALE)
            for x, gradient, rate in zip(own, gradients, baselines.RATES, strict=True):
                x.sub_(gradient, alpha=rate)

        return step

    def one_layer_start(self, length: int, seed: int) -> Tensors:
        """u, w and the seed that they come from."""
        options = {"max_length": length, "method": "fold", "init_std": 1.0, "seed": seed}
        if isinstance(self.library, NoLibrary):  # any numbers do
            width = 2 * length
            start = [torch.randn(shape).double() for shape in ((width,), (width, width))]
        else:
            result = self.library.regular_language.train(**options, num_steps=0, record=[0])
            start = [torch.from_numpy(x) for x in (result["u"][0], result["w"])]
        return *(x.to(self.device).contiguous() for x in start), torch.tensor(seed)

    # --- rows ----------------------------------------------------------------------------------

    def rows(self) -> Iterator[Case]:
        n, d = self.small(16384, 6), self.small(4096, 32)
        matrix = (n, d)
        yield self.row_case(
            "rms_norm", f"N {n}, D {d}", baselines.rms_norm, 2.0 * n * d * 5, None,
            lambda seed: self.random(seed, matrix, (d,)),
        )  # fmt: skip
        yield self.row_case(
            "swiglu", f"N {n}, D {d}", baselines.swiglu, 2.0 * n * d * 8, None,
            lambda seed: self.random(seed, matrix, matrix),
        )  # fmt: skip
        heads, width = self.small(32, 2), self.small(128, 16)
        tokens = n // 4
        yield self.row_case(
            "rope", f"B 4, T {tokens}, H {heads}, D {width}", baselines.rope,
            2.0 * 4 * tokens * heads * width * 4, 1,
            partial(self.rope_inputs, (4, tokens, heads, width)),
        )  # fmt: skip

    def row_case(
        self,
        op: str,
        name: str,
        form: Function,
        num_bytes: float,
        count: int | None,
        make: Callable[[int], Tensors],
    ) -> Case:
        """count: of the inputs that get gradients; all of them if none is given."""
        return Case(
            ops=(op,),
            table="rows, forward and backward, bfloat16",
            name=f"{op}, {name}",
            make=make,
            ours=with_gradients(getattr(self.ops, op), count),
            baselines={
                "eager": with_gradients(form, count),
                "torch.compile": with_gradients(self.compiled(form), count),
            },
            compiled=frozenset(["torch.compile"]),
            definition=with_gradients(form, count),
            bytes=num_bytes,
            goals=(Goal("A", 1.0, than=("torch.compile",)),),
        )

    def rope_inputs(self, shape: tuple[int, ...], seed: int) -> Tensors:
        table = (1, shape[1], shape[3] // 2)
        x, cos, sin = self.random(seed, shape, table, table)
        return x, cos.float(), sin.float()
