"""The operators on CUDA tensors without data, which need no GPU: devices, dtypes and shapes of
results and gradients."""

import contextlib

import paperlab.ops as ops
import pytest
import torch
from attention_definition import Case
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

OPS = torch.ops.paperlab
HALF, LOW, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [FLOAT, DOUBLE, LOW, HALF], ids=str)


@contextlib.contextmanager
def backend(name):
    before = ops.get_backend()
    ops.set_backend(name)
    try:
        yield
    finally:
        ops.set_backend(before)


@pytest.fixture
def cuda():
    """cuda(*shape, dtype): a tensor on a GPU that need not be there."""
    with FakeTensorMode():
        yield lambda *shape, dtype: torch.empty(shape, dtype=dtype, device="cuda")


def is_like(result, wanted):
    return (
        result.device == wanted.device
        and result.dtype == wanted.dtype
        and result.shape == wanted.shape
        and result.is_contiguous()
    )


def sums_of(dtype):
    return DOUBLE if dtype == DOUBLE else FLOAT


@DTYPES
def test_rms_norm(cuda, dtype):
    x, weight = cuda(2, 3, 8, dtype=dtype), cuda(8, dtype=dtype)
    y, total, inverse = OPS.rms_norm(x.transpose(0, 1), weight, x.transpose(0, 1))
    assert is_like(y, cuda(3, 2, 8, dtype=dtype)) and is_like(total, y)
    assert is_like(inverse, cuda(3, 2, dtype=sums_of(dtype)))
    grads = OPS.rms_norm_backward(y, total, total, weight, inverse)
    assert is_like(grads[0], y) and is_like(grads[1], weight)


@DTYPES
def test_swiglu(cuda, dtype):
    gate, up = cuda(3, 16, dtype=dtype).chunk(2, -1)
    y = OPS.swiglu(gate, up)
    assert is_like(y, cuda(3, 8, dtype=dtype))
    assert all(is_like(grad, y) for grad in OPS.swiglu_backward(y, gate, up))


@DTYPES
def test_rope(cuda, dtype):
    x = cuda(2, 5, 3, 8, dtype=dtype)
    table = cuda(1, 5, 4, dtype=sums_of(dtype))
    assert is_like(OPS.rope(x, table, table), x)


@DTYPES
def test_linear(cuda, dtype):
    y = OPS.linear(cuda(2, 3, 8, dtype=dtype), cuda(5, 8, dtype=dtype), cuda(5, dtype=dtype))
    assert is_like(y, cuda(2, 3, 5, dtype=dtype))


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_cross_entropy(cuda, dtype, reduction):
    x, weight, bias = (cuda(*s, dtype=dtype) for s in ((2, 3, 8), (5, 8), (5,)))
    target = cuda(2, 3, dtype=torch.int64)
    options = (bias, -100, reduction, 0.1)
    loss, lse = OPS.linear_cross_entropy(x, weight, target, *options)
    shape = (2, 3) if reduction == "none" else ()
    assert is_like(loss, cuda(*shape, dtype=sums_of(dtype)))
    assert is_like(lse, cuda(6, dtype=sums_of(dtype)))
    grads = OPS.linear_cross_entropy_backward(loss, x, weight, target, lse, *options)
    assert all(is_like(g, like) for g, like in zip(grads, (x, weight, bias), strict=True))


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE])
def test_even_pairs_loss(cuda, dtype):
    u, w = cuda(6, dtype=dtype), cuda(6, 6, dtype=dtype)
    loss = OPS.even_pairs_loss(u, w)
    assert is_like(loss, cuda(dtype=dtype))
    grads = OPS.even_pairs_loss_backward(loss, u, w, 2.0)
    assert is_like(grads[0], u) and is_like(grads[1], w)


@DTYPES
@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(queries=1, window=3, key_start=(1, 0), key_end=(7, 6)),
        Case(keys=9, prefix_heads=4, prefix_length=5, prefix_group=2, window=0, num_past=1),
    ],
    ids=str,
)
def test_attention(dtype, case):
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {
            name: torch.empty(x.shape, dtype=dtype, device="cuda")
            for name, x in case.tensors().items()
        }
        options = {
            name: torch.empty(2, dtype=torch.int64, device="cuda")
            if isinstance(value, torch.Tensor)
            else value
            for name, value in case.operator_options().items()
        }
        operators = [OPS.attention] + [OPS.attention_decode] * (case.queries == 1)
        for operator in operators:
            out, lse = operator(**tensors, **options)
            assert is_like(out, tensors["query"])
            assert lse.shape == out.shape[:3] and lse.dtype == sums_of(dtype)
            assert lse.device == out.device
        grads = OPS.attention_backward(out, lse, **tensors, out=out, lse=lse, **options)
        names = ("query", "key", "value", "prefix_query", "prefix_key", "prefix_value")
        for grad, name in zip(grads, names, strict=True):
            assert grad.device == out.device and grad.dtype == dtype
            assert grad.shape == (tensors[name].shape if name in tensors else (0,))


class Calls(TorchDispatchMode):
    """The operations that are called within it, and what they are called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))

    def named(self, name):
        return [args for called, args in self.calls if called == name]


def by_torch(operator, *args, **kwargs):
    """What an operator computes on a GPU by LibTorch's operations, without a GPU: the calls."""
    with backend("torch"), Calls() as calls:
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return operator.default.redispatch(keys, *args, **kwargs), calls


# Products of half types are theirs, with sums in float32, and no key has a float32 copy.
@pytest.mark.parametrize("dtype", [LOW, HALF, FLOAT, DOUBLE], ids=str)
def test_attention_by_torch_multiplies_in_the_inputs_dtype(cuda, dtype):
    q, k = cuda(2, 4, 6, 12, dtype=dtype), cuda(2, 2, 700, 12, dtype=dtype)
    (out, lse), forward = by_torch(OPS.attention, q, k, k)
    assert is_like(out, q) and is_like(lse, cuda(2, 4, 6, dtype=sums_of(dtype)))
    grads, backward = by_torch(OPS.attention_backward, out, lse, q, k, k, out, lse)
    assert all(is_like(grad, x) for grad, x in zip(grads, (q, k, k), strict=False))
    for calls, count in ((forward, 2), (backward, 5)):
        mixed = calls.named("aten.bmm.dtype")
        plain = calls.named("aten.bmm.default")
        assert (len(mixed), len(plain)) == ((count, 0) if dtype in (LOW, HALF) else (0, count))
        assert all(x.dtype == dtype for args in mixed + plain for x in args[:2])
        assert all(args[2] == FLOAT for args in mixed)
        copied = [args[0] for args in calls.named("aten._to_copy.default")]
        assert not [x for x in copied if x.dtype == dtype != FLOAT and x.shape[2] == 700]


# What would be refused on the CPU is no assertion of the device, which no process survives.
def test_values_on_a_gpu_are_not_asserted(cuda):
    x, start = cuda(2, 2, 9, 4, dtype=FLOAT), cuda(2, dtype=torch.int64)
    rows, u, w = cuda(3, 4, dtype=FLOAT), cuda(6, dtype=FLOAT), cuda(6, 6, dtype=FLOAT)
    target = cuda(3, dtype=torch.int64)
    for operator, *arguments in (
        (OPS.group_pool, x, x, x, 2, 0, start),
        (OPS.group_pool, None, x, x, 2, 0, start, "mean"),
        (OPS.group_pool_backward, x[:, :, :4], x[:, :, :4], x, x, x, 2, 0, start),
        (OPS.attention, x, x, x, True, None, None, start, start),
        (OPS.linear_cross_entropy, rows, rows, target),
        (OPS.even_pairs_loss, u, w),
        (OPS.even_pairs_loss_backward, u.sum(), u, w, 2.0),
    ):
        _, calls = by_torch(operator, *arguments)
        assert calls.calls and not [name for name, _ in calls.calls if "assert" in name]


# Dense and full attention of half types; gradients and everything else are chunks.
@pytest.mark.parametrize("dtype", [LOW, HALF], ids=str)
def test_attention_by_torch_is_flash_where_it_can_be(cuda, dtype):
    flash = "aten._scaled_dot_product_flash_attention.default"

    def calls_of(queries, keys, width=16, heads=4, **options):
        q = cuda(2, heads, queries, width, dtype=dtype)
        k = cuda(2, 2, keys, width, dtype=dtype)
        (out, lse), calls = by_torch(OPS.attention, q, k, k, **options)
        assert is_like(out, q) and is_like(lse, cuda(2, heads, queries, dtype=FLOAT))
        _, backward = by_torch(OPS.attention_backward, out, lse, q, k, k, out, lse, **options)
        assert not backward.named(flash)
        return calls.named(flash)

    for queries, keys, options, is_causal in (
        (7, 7, {}, True),
        (3, 9, {}, True),  # the last rows of nine
        (1, 9, {}, False),
        (7, 7, {"window": 7}, True),
        (5, 3, {"causal": False}, False),
    ):
        (arguments,) = calls_of(queries, keys, **options)
        assert arguments[3:5] == ((0.0, True) if is_causal else ())  # the defaults
    bound = cuda(2, dtype=torch.int64)
    for queries, keys, options in (
        (7, 7, {"window": 6}),
        (5, 3, {}),  # rows without keys
        (7, 7, {"key_start": bound}),
        (7, 7, {"key_end": bound}),
        (7, 7, {"width": 12}),
        (7, 7, {"scale": -1.0}),
    ):
        assert not calls_of(queries, keys, **options)


def block(make, dtype):
    """The loss of a block of layers, and the tensors that it is differentiated by."""
    x = make(2, 5, 16, dtype=dtype).requires_grad_()
    weight, matrix = make(16, dtype=dtype), make(64, 16, dtype=dtype).requires_grad_()
    head = make(7, 16, dtype=dtype).requires_grad_()
    table, target = make(1, 5, 2, dtype=FLOAT), make(2, 5, dtype=torch.int64)
    q, k, v, gate = OPS.linear(OPS.rms_norm(x, weight)[0], matrix).chunk(4, -1)
    heads = [OPS.rope(p.unflatten(-1, (4, 4)), table, table).transpose(1, 2) for p in (q, k)]
    out, _ = OPS.attention(*heads, v.unflatten(-1, (4, 4)).transpose(1, 2))
    y = OPS.swiglu(gate, out.transpose(1, 2).flatten(2))
    return OPS.linear_cross_entropy(y, head, target)[0], (x, matrix, head)


@pytest.mark.parametrize("dtype", [FLOAT, LOW, HALF], ids=str)
def test_a_block(cuda, dtype):
    loss, _ = block(cuda, dtype)
    assert is_like(loss, cuda(dtype=FLOAT)) and loss.grad_fn is not None


# LibTorch differentiates tensors of a GPU on that GPU's thread, which is not there without one; the
# meta device has every dtype of a GPU.
@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE, LOW, HALF], ids=str)
def test_a_block_backward(dtype):
    def meta(*shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    if dtype == DOUBLE:
        x = meta(3, 8, dtype=dtype).requires_grad_()
        loss, leaves = OPS.rms_norm(x, meta(8, dtype=dtype))[0].sum(), (x,)
    else:
        loss, leaves = block(meta, dtype)
    for grad, leaf in zip(torch.autograd.grad(loss, leaves), leaves, strict=True):
        assert grad.shape == leaf.shape and grad.dtype == dtype and grad.device == leaf.device


@contextlib.contextmanager
def cuda_autocast(dtype):
    """torch.autocast("cuda"), which looks for a GPU."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("dtype", [LOW, HALF], ids=str)
def test_autocast(cuda, dtype):
    x, weight = cuda(2, 16, dtype=FLOAT), cuda(16, dtype=FLOAT)
    matrix, heads = cuda(8, 16, dtype=FLOAT), cuda(1, 2, 3, 4, dtype=FLOAT)
    table, target = cuda(1, 2, 2, dtype=FLOAT), cuda(2, dtype=torch.int64)
    u, w = cuda(6, dtype=dtype), cuda(6, 6, dtype=FLOAT)
    with cuda_autocast(dtype):
        assert OPS.linear(x, matrix).dtype == dtype
        assert OPS.attention(heads, heads, heads)[0].dtype == dtype
        assert OPS.attention_decode(heads[:, :, :1], heads, heads)[0].dtype == dtype
        assert OPS.linear_cross_entropy(x, matrix, target)[0].dtype == FLOAT
        assert OPS.rms_norm(x.to(dtype), weight)[0].dtype == FLOAT
        assert OPS.swiglu(x.to(dtype), x).dtype == FLOAT
        assert OPS.rope(heads.to(dtype), table.to(dtype), table).dtype == dtype
        assert OPS.even_pairs_loss(u, w).dtype == FLOAT
