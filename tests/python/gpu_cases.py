"""Tests whose bodies run on a GPU, and of a few tiny cases on the CPU too, to keep them right.

A body gets a device and never asks which; what it compares with is made on the CPU in float64.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import paperlab.ops as ops
import pytest
import torch
from torch.utils import _pytree

HALF, LOW, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
BACKENDS = ("kernels", "torch")
ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
)
# A notice that tensors were left to LibTorch's operations; where our kernels are tested it fails.
NOTICES_FAIL = pytest.mark.filterwarnings("error:paperlab:UserWarning")

Function = Callable[..., Any]
Tensors = list[torch.Tensor]


def on_devices(
    names: str, cases: Iterable[Sequence[Any]], tiny: Iterable[Sequence[Any]] = ()
) -> pytest.MarkDecorator:
    """Parametrizes `names` and "device": all cases on the GPU, the tiny ones on the CPU."""
    found = [pytest.param(*case, "cpu", id=_name(case, "cpu")) for case in tiny]
    found += [pytest.param(*case, "cuda", id=_name(case, "cuda"), marks=ON_GPU) for case in cases]
    return pytest.mark.parametrize((*names.split(), "device"), found)


def _name(case: Sequence[Any], device: str) -> str:
    """Without spaces, which would end a test's name in the log."""
    words = [str(part).replace("torch.", "").replace(" ", "") for part in case]
    return "-".join([*words, device])


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    before = ops.get_backend()
    ops.set_backend(name)  # type: ignore[arg-type]
    try:
        yield
    finally:
        ops.set_backend(before)


def moved(x: Any, device: str) -> Any:
    """The same with all tensors on that device, in whatever holds them."""
    return _pytree.tree_map(lambda y: y.to(device) if isinstance(y, torch.Tensor) else y, x)


def on(device: str, function: Function) -> Function:
    """The function on that device: CPU tensors go there and results come back, as gradients do."""

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        results = function(*moved(arguments, device), **moved(options, device))
        leaves = _pytree.tree_leaves(results)
        assert all(x.device.type == device for x in leaves if isinstance(x, torch.Tensor))
        return moved(results, "cpu")

    return called


def random(*shape: int, dtype: torch.dtype = DOUBLE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype)


def outcome(function: Function, tensors: Tensors, device: str = "cpu") -> Tensors:
    """All results and the gradients of floating tensors, of fixed random gradients; on the CPU."""
    leaves = [
        x.detach().to(device).requires_grad_() if x.is_floating_point() else x.to(device)
        for x in tensors
    ]
    results = function(*leaves)
    results = list(results) if isinstance(results, tuple) else [results]
    # Of eight bits, so that every dtype holds them.
    grads = [random(*x.shape, dtype=LOW, seed=40 + i).to(x) for i, x in enumerate(results)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(results, wanted, grads, allow_unused=True)
    found = [*results, *(g for g in gradients if g is not None)]
    assert all(x.device.type == device for x in found)
    return [x.detach().cpu() for x in found]


@contextlib.contextmanager
def busy_stream(device: str) -> Iterator[None]:
    """Another stream than the default one, busy for a while: what does not wait comes too early."""
    if device == "cpu":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # cycles: some 10 ms
        yield
    torch.cuda.current_stream().wait_stream(stream)


def same_bits(found: Tensors, wanted: Tensors) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs)
