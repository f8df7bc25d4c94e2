"""The cases of the GPU benchmarks, by name; what has goals is judged by them.

Cases are made without running anything, and without the library too: cuda_warm.py compiles the
baselines of torch.compile before there is one.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from support import cuda_baselines as baselines
from support.cuda_case import Case, Factory, Function, Goal, Tensors, backward_of, with_gradients
from torch.nn.attention import sdpa_kernel

GROUP, WINDOW = 16, 1024  # of core-context attention
PORTABLE = "portable"  # the backend without what one architecture alone has

# Goals of core-context attention by length: prefill against SDPA flash (A) and our own dense
# attention (stretch), as ratios of times.
PREFILL = {
    32768: (5.0, 7.0),
    131072: (7.8, 11.0),
    8192: (2.1, 3.0),
    65536: (6.5, 9.3),
    4096: (1.3, 1.8),
    16384: (3.4, 4.8),
}
HEADS = {4096: 32, 8192: 32, 16384: 16, 32768: 8, 65536: 4, 131072: 4}
DECODE: dict[int, tuple[Goal, ...]] = {
    131072: (
        Goal("A", 8.0),
        Goal("stretch", 12.0),
        Goal("stretch", 0.80, "copy"),
    ),
    32768: (Goal("A", 4.0),),
    65536: (Goal("stretch", 10.0), Goal("stretch", 0.80, "copy")),
    16384: (),
    8192: (),
    4096: (),
}


class NoLibrary:
    """Stands for paperlab where cases are made and not run."""

    def __getattr__(self, name: str) -> Any:
        return NoLibrary()

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("these cases were made without the library")


class AttentionCases:
    """Attention, dense and core-context. `quick` makes them tiny and compiles nothing."""

    def __init__(self, device: torch.device, quick: bool, library: Any = None) -> None:
        self.device = device
        self.quick = quick
        self.library = NoLibrary() if library is None else library
        self.ops = self.library.ops
        self.known: dict[Function, Function] = {}  # compiled

    def random(self, seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)
        return [
            torch.randn(shape, generator=generator, device=self.device).to(torch.bfloat16)
            for shape in shapes
        ]

    def compiled(self, function: Function, *, dynamic: bool = False) -> Function:
        """Compiled at its first call, once for all shapes: more than eight are not compiled."""
        if self.quick:
            return function

        def call(*args: Any, **options: Any) -> Any:
            if function not in self.known:
                self.known[function] = torch.compile(function, dynamic=dynamic)
            return self.known[function](*args, **options)

        return call

    def small(self, size: int, least: int) -> int:
        return least if self.quick else size

    def query_key_value(self, shape: tuple[int, ...]) -> Callable[[int], Tensors]:
        return lambda seed: self.random(seed, shape, shape, shape)

    def sdpa(self, function: Function, *names: str) -> dict[str, Function]:
        """By backend, with no other one allowed, so that the table says which one is beaten."""
        return {
            f"SDPA {name}": baselines.in_backend(baselines.SDPA_BACKENDS[name], function)
            for name in names
        }

    def chosen(self, causal: bool, *names: str) -> dict[str, Callable[..., str]]:
        """What LibTorch chooses where only that backend is allowed."""

        def of(name: str) -> Callable[..., str]:
            def choice(*inputs: torch.Tensor) -> str:
                with sdpa_kernel(baselines.SDPA_BACKENDS[name]):
                    return baselines.chosen_backend(*inputs[:3], causal)

            return choice

        return {f"SDPA {name}": of(name) for name in names}

    def backends(self, *names: str) -> tuple[str, ...]:
        return ("flash",) if self.device.type == "cpu" else names

    def portable(self, factory: Factory) -> dict[str, Factory]:
        """Our kernels without what this architecture alone has, for comparison."""

        def prepare(*inputs: torch.Tensor) -> Callable[[], Any]:
            self.ops.set_backend(PORTABLE)  # ValueError if this build has none
            try:
                thunk = factory(*inputs)
            finally:
                self.ops.set_backend("kernels")

            def run() -> Any:
                self.ops.set_backend(PORTABLE)
                try:
                    return thunk()
                finally:
                    self.ops.set_backend("kernels")

            return run

        return {"ours, sm_80 path": prepare}

    # --- dense ---------------------------------------------------------------------------------

    def attention(self) -> Iterator[Case]:
        sizes = [(128, 16384), (128, 4096), (128, 8192), (64, 16384), (64, 4096), (64, 8192)]
        for width, length in [(16, 32)] if self.quick else sizes:
            yield from self.dense(width, length)
        yield from self.dense_decode()

    def dense(self, width: int, length: int) -> Iterator[Case]:
        heads, batch = self.small(2048 // width, 2), self.small(16384 // length, 1)
        shape = (batch, heads, length, width)
        flops = 2.0 * batch * heads * length * length * width
        name = f"B {batch}, H {heads}, S {length}, D {width}"
        names = self.backends("flash", "cuDNN")
        gate = self.query_key_value((1, 2, min(length, 4096), width))
        make = self.query_key_value(shape)
        stretch = [Goal("stretch", 1.6 if width == 128 else 1.3, than=("SDPA flash",))]
        if width == 128:
            stretch.append(Goal("stretch", 1.0, than=("SDPA cuDNN",)))
        if (width, length) == (128, 16384):
            published = "0.85 of 616, FlashAttention-3 on an H100"
            stretch.append(Goal("stretch", 524.0, "tflops", source=published))
        yield Case(
            ops=("attention",),
            table="causal attention, forward, bfloat16",
            name=name,
            make=make,
            gate=gate,
            ours=self.ops.attention,
            baselines=self.sdpa(baselines.causal_sdpa, *names),
            chosen=self.chosen(True, *names),
            definition=baselines.causal_attention,
            variants=self.portable(lambda *x: partial(self.ops.attention, *x)),
            goals=(Goal("A", 1.0, than=("SDPA flash",)), *stretch),
            flops=flops,
        )
        yield Case(
            ops=("attention",),
            table="causal attention, backward alone, bfloat16",
            name=name,
            make=make,
            gate=gate,
            ours=backward_of(self.ops.attention),
            baselines={
                k: backward_of(f) for k, f in self.sdpa(baselines.causal_sdpa, *names).items()
            },
            chosen=self.chosen(True, *names),
            definition=backward_of(baselines.causal_attention),
            is_prepared=True,
            goals=(
                Goal("A", 1.0, than=("SDPA flash",)),
                Goal("A", 1.0, "same_bits"),
                Goal("stretch", 2.0, than=("SDPA flash",)),
                Goal("stretch", 0.8, than=("SDPA cuDNN",)),
            ),
            flops=2.5 * flops,
        )

    def dense_decode(self) -> Iterator[Case]:
        names = self.backends("flash", "cuDNN", "efficient")
        for length in [64] if self.quick else [65536, 8192]:
            heads, kv_heads, width = self.small(32, 2), self.small(8, 1), self.small(128, 16)
            query, keys = (1, heads, 1, width), (1, kv_heads, length, width)
            yield Case(
                ops=("attention",),
                table="attention of one query, bfloat16",
                name=f"H {heads}, G {kv_heads}, S {length}, D {width}",
                make=lambda seed, q=query, k=keys: self.random(seed, q, k, k),
                ours=self.ops.attention,
                baselines=self.sdpa(baselines.full_sdpa, *names),
                chosen=self.chosen(False, *names),
                definition=baselines.full_attention,
                bytes=4.0 * kv_heads * length * width,
            )

    # --- core-context --------------------------------------------------------------------------

    def options(self) -> tuple[int, int]:
        return (4, 8) if self.quick else (GROUP, WINDOW)

    def cca(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group, window = self.options()
        out: torch.Tensor = self.library.cca.attention(q, k, v, group, window)
        return out

    def core_context(self) -> Iterator[Case]:
        yield from self.cca_prefill()
        yield from self.cca_decode()
        yield from self.cca_training()

    def cca_prefill(self) -> Iterator[Case]:
        group, window = self.options()
        names = self.backends("flash", "cuDNN")
        for length in [40] if self.quick else PREFILL:
            heads, width = self.small(HEADS.get(length, 2), 2), self.small(128, 16)
            pairs = baselines.num_pairs(length, group, window)
            flash, dense = PREFILL.get(length, (0.0, 0.0))
            yield Case(
                ops=("attention", "group_pool"),
                table="core-context attention beside dense attention, bfloat16",
                name=f"prefill, H {heads}, S {length}, D {width}, g {group}, s {window}",
                make=self.query_key_value((1, heads, length, width)),
                gate=self.query_key_value((1, 2, min(length, 4096), width)),
                ours=self.cca,
                baselines=self.sdpa(baselines.causal_sdpa, *names)
                | {"own dense": self.ops.attention},
                chosen=self.chosen(True, *names),
                definition=partial(baselines.cca_attention, group=group, window=window),
                peer=partial(baselines.cca_masked_sdpa, group=group, window=window),
                variants=self.portable(lambda *x: partial(self.cca, *x)),
                is_other_function=True,
                goals=(
                    Goal("A", flash, than=("SDPA flash",)),
                    Goal("stretch", dense, than=("own dense",)),
                ),
                flops=4.0 * width * heads * pairs,
                facts={"ideal_ratio": length * (length + 1) / 2 / pairs},
            )

    def cca_training(self) -> Iterator[Case]:
        for length in [40] if self.quick else [32768, 8192, 65536, 16384, 4096]:
            yield self.cca_step(length)
        for length in [] if self.quick else [32768, 8192]:  # compiling takes a while: last
            yield self.cca_step(length, with_flex=True)

    def cca_step(self, length: int, *, with_flex: bool = False) -> Case:
        group, window = self.options()
        names = self.backends("flash") if with_flex else self.backends("flash", "cuDNN")
        heads, width = self.small(HEADS.get(length, 2), 2), self.small(128, 16)
        pairs = baselines.num_pairs(length, group, window)
        work = length * (length + 1) / 2 / pairs
        forms = self.sdpa(baselines.causal_sdpa, *names)
        if with_flex:
            forms["FlexAttention"] = baselines.flex_cca(group, window, self.compiled)
        else:
            forms["own dense"] = self.ops.attention
        form = partial(baselines.cca_attention, group=group, window=window)
        peer = partial(baselines.cca_masked_sdpa, group=group, window=window)
        beside = " beside FlexAttention with its mask" if with_flex else ""
        return Case(
            ops=("attention", "group_pool"),
            table="core-context attention, forward and backward, bfloat16",
            name=f"training{beside}, H {heads}, S {length}, D {width}, g {group}, s {window}",
            make=self.query_key_value((1, heads, length, width)),
            gate=self.query_key_value((1, 2, min(length, 4096), width)),
            ours=with_gradients(self.cca),
            baselines={name: with_gradients(each) for name, each in forms.items()},
            compiled=frozenset(["FlexAttention"] if with_flex else []),
            chosen=self.chosen(True, *names),
            definition=with_gradients(form),
            peer=with_gradients(peer),
            is_other_function=True,
            goals=(
                Goal("A", round(0.5 * work, 2), than=("SDPA flash",)),
                Goal("stretch", round(0.75 * work, 2), than=("SDPA flash",)),
                Goal("stretch", 1.0, "same_bits"),
            ),
            flops=3.5 * 4.0 * width * heads * pairs,
            facts={"ideal_ratio": work},
        )

    def cca_decode(self) -> Iterator[Case]:
        group, window = self.options()
        names = self.backends("flash", "cuDNN")
        for length in [40] if self.quick else DECODE:
            heads, width = self.small(32, 2), self.small(128, 16)
            core = baselines.num_visible(length, group, window)
            vectors = length - group * core + core
            full, some = (1, heads, length, width), (1, heads, core, width)
            variants = self.cache_step() if length in (32768, 131072, 40) else {}
            dense = self.sdpa(baselines.full_sdpa, *names) | {"own dense": self.ops.attention}
            yield Case(
                ops=("attention",),
                table="core-context attention of one query, bfloat16",
                name=f"decode, H {heads}, S {length}, D {width}, g {group}, s {window}",
                make=lambda seed, k=full, c=some: self.random(seed, (*k[:2], 1, k[3]), k, k, c, c),
                ours=self.cca_query,
                baselines={k: first_three(f) for k, f in dense.items()},
                chosen=self.chosen(False, *names),
                definition=partial(cca_query_form, baselines.full_attention, group),
                peer=partial(cca_query_form, baselines.full_sdpa, group),
                variants=variants,
                by_host=frozenset(variants),
                is_other_function=True,
                goals=DECODE.get(length, ()),
                bytes=4.0 * heads * width * vectors,
                facts={"ideal_ratio": length / vectors},
            )

    def cca_query(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        core_k: torch.Tensor,
        core_v: torch.Tensor,
    ) -> torch.Tensor:
        """The last query over the core tokens that it sees and the raw ones after them, as the
        cache calls it."""
        group, window = self.options()
        first = group * core_k.shape[2]
        out: torch.Tensor = torch.ops.paperlab.attention(
            q,
            k[:, :, first:],
            v[:, :, first:],
            True,
            window,
            prefix_key=core_k,
            prefix_value=core_v,
            prefix_group=group,
            num_past=first,
        )[0]
        return out

    def cache_step(self) -> dict[str, Factory]:
        """A token through the cache: appended, pooled where a group ends, attended to. The cache
        grows by the tokens that are timed, some hundreds."""
        group, window = self.options()

        def prepare(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_core: torch.Tensor
        ) -> Callable[[], Any]:
            cache = self.library.cca.KVCache(group, window)
            (queries,) = self.random(0, tuple(k.shape))
            cache.prefill(queries, k, v)
            one = [q, k[:, :, -1:].contiguous(), v[:, :, -1:].contiguous()]
            return lambda: cache.step(*one)

        return {"KVCache.step from the host": prepare}


def first_three(function: Function) -> Function:
    """For contestants that take the raw keys alone."""
    return lambda q, k, v, *_: function(q, k, v)


def cca_query_form(
    attention: Function,
    group: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    core_k: torch.Tensor,
    core_v: torch.Tensor,
) -> torch.Tensor:
    first = group * core_k.shape[2]
    keys = torch.cat([core_k, k[:, :, first:]], 2)
    values = torch.cat([core_v, v[:, :, first:]], 2)
    out: torch.Tensor = attention(q, keys, values)
    return out
