"""Every operator on a GPU: float16, the same bits from run to run and on another stream, views."""

import itertools

import paperlab.ops as ops
import torch
from gpu_cases import (
    BACKENDS,
    DOUBLE,
    FLOAT,
    HALF,
    LOW,
    NOTICES_FAIL,
    backend,
    busy_stream,
    moved,
    on_devices,
    outcome,
    random,
    same_bits,
)
from paperlab import cca, mudd

pytestmark = NOTICES_FAIL

DTYPES = (DOUBLE, FLOAT, LOW)
OPS = torch.ops.paperlab


def each(*choices):
    return list(itertools.product(*choices))


# Of every operator: a function of tensors, and their shapes. Odd sizes and whole tiles.
def _heads(q, k, v):
    return ops.attention(q, k, v, return_lse=True)


def _decode(q, k, v):
    return ops.attention(q[:, :, -1:], k, v)


def _loss(x, weight, bias):
    target = torch.arange(x.shape[0], device=x.device) % len(weight)
    target[1] = -100
    return ops.linear_cross_entropy(x, weight, target, bias=bias, z_loss=0.01, reduction="none")


def _rope(x, angle):
    table = angle.double() if x.dtype == DOUBLE else angle.float()
    return ops.rope(x, table.cos(), table.sin())


def _both_norms(x, weight, residual):
    return ops.rms_norm(x, weight, residual=residual)


def _weights(x, w1, w2, a):
    return mudd.connection_weights(x, w1, w2, a, ways=4)


HEADS = [(2, 4, 70, 64), (2, 2, 70, 64), (2, 2, 70, 64)]
ODD_HEADS = [(1, 3, 9, 13), (1, 3, 11, 13), (1, 3, 11, 13)]
CALLS = {
    "rms_norm": (_both_norms, [(37, 130), (130,), (37, 130)]),
    "swiglu": (ops.swiglu, [(5, 7, 33), (5, 7, 33)]),
    "rope": (_rope, [(2, 5, 3, 20), (1, 5, 8)]),
    "linear": (ops.linear, [(3, 11, 40), (24, 40), (24,)]),
    "linear_cross_entropy": (_loss, [(70, 40), (300, 40), (300,)]),
    "attention": (_heads, HEADS),
    "attention_odd": (_heads, ODD_HEADS),
    "attention_window": (lambda *x: ops.attention(*x, window=20), HEADS),
    "decode": (_decode, HEADS),
    "group_pool": (lambda *x: OPS.group_pool(*x, 7, 2), HEADS),
    "core_context": (lambda *x: cca.attention(*x, 7, 16), HEADS),
    "connection_weights": (_weights, [(2, 9, 33), (33, 24), (24, 12), (4, 3)]),
    "depth_aggregate": (mudd.depth_aggregate, [(5, 2, 9, 40), (4, 2, 9, 5)]),
}


def inputs_of(call, dtype):
    """Small enough that float16 holds all sums."""
    shapes = CALLS[call][1]
    return [(0.5 * random(*shape, seed=i)).to(dtype) for i, shape in enumerate(shapes)]


# Half an ulp of what is stored; sums of at most 300 terms in float32. Some round inside to float16,
# relative to the largest: attention and the loss weights and gradients of logits, norms the sum.
ROUNDED = ("decode", "core_context", "linear_cross_entropy", "rms_norm")


@on_devices(
    "name call",
    each(BACKENDS, CALLS),
    [("torch", "rms_norm"), ("torch", "linear_cross_entropy"), ("torch", "decode")],
)
def test_float16(name, call, device):
    function, tensors = CALLS[call][0], inputs_of(call, HALF)
    wanted = outcome(function, [x.double() for x in tensors])
    with backend(name):
        found = outcome(function, tensors, device)
    rounds_inside = "attention" in call or call in ROUNDED
    for x, y in zip(found, wanted, strict=True):
        share = 2.0**-10 if rounds_inside else 300 * 2.0**-24
        most = y.abs().max().clamp_min(2.0**-6)
        bound = torch.finfo(x.dtype).eps / 2 * y.abs() + share * 2 * most
        assert x.dtype in (HALF, FLOAT) and ((x.double() - y).abs() <= bound).all()


@on_devices(
    "name call dtype",
    each(BACKENDS, CALLS, (*DTYPES, HALF)),
    [("kernels", "core_context", FLOAT), ("torch", "linear", HALF)],
)
def test_the_same_bits_from_run_to_run_and_on_another_stream(name, call, dtype, device):
    function, tensors = CALLS[call][0], inputs_of(call, dtype)
    with backend(name):
        first = outcome(function, tensors, device)
        assert same_bits(outcome(function, tensors, device), first)
        with busy_stream(device):
            elsewhere = outcome(function, tensors, device)
    assert same_bits(elsewhere, first)


# Strides alone differ. LibTorch's products choose their order by them: the last bits may differ.
@on_devices("name call dtype", each(BACKENDS, CALLS, DTYPES), [("kernels", "attention_odd", FLOAT)])
def test_views(name, call, dtype, device):
    function, dense = CALLS[call][0], inputs_of(call, dtype)
    views = []
    for x in moved(dense, device):
        wide = torch.zeros([2 * n + 1 for n in x.shape], dtype=x.dtype, device=device)
        views.append(wide.mT[tuple(slice(1, None, 2) for _ in x.shape)] if x.dim() > 1 else x)
        if x.dim() > 1:
            views[-1] = torch.zeros(
                [2 * n + 1 for n in x.mT.shape], dtype=x.dtype, device=device
            ).mT[tuple(slice(1, None, 2) for _ in x.shape)]
            views[-1].copy_(x)
    before = [x.clone() for x in views]
    with backend(name):
        wanted = function(*moved(dense, device))
        found = function(*views)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found = found if isinstance(found, tuple) else (found,)
    eps = torch.finfo(dtype).eps
    for x, y in zip(found, wanted, strict=True):
        assert x.is_contiguous() and x.dtype == y.dtype
        close = (x.double() - y.double()).abs() <= 8 * eps * y.double().abs().max().clamp_min(1.0)
        assert close.all()
    assert all(torch.equal(x, y) for x, y in zip(views, before, strict=True))


# What is captured must have been called once: first calls load libraries and ask the device.
@on_devices("call dtype", each(CALLS, (FLOAT, LOW)))
def test_a_captured_call_is_replayed(call, dtype, device):
    function, tensors = CALLS[call][0], moved(inputs_of(call, dtype), device)
    with backend("kernels"), torch.no_grad():
        wanted = function(*tensors)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = function(*tensors)
        graph.replay()
    wanted, found = ([x] if isinstance(x, torch.Tensor) else list(x) for x in (wanted, found))
    assert same_bits([x.cpu() for x in found], [x.cpu() for x in wanted])
