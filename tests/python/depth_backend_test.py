"""depth_aggregate, connection_weights and group_pool by LibTorch's operations (set_backend)."""

import group_pool_test as pools
import mudd_functions_test as depth
import paperlab.ops as ops
import pytest
import torch

HALF = torch.float16
DTYPES = pytest.mark.parametrize("dtype", [*depth.TYPES, HALF], ids=str)
depth.EPS[HALF] = 2.0**-23
POOL = torch.ops.paperlab.group_pool


@pytest.fixture(autouse=True)
def by_torch():
    before = ops.get_backend()
    ops.set_backend("torch")
    yield
    ops.set_backend(before)


SHAPES = pytest.mark.parametrize(
    ("batch", "length", "width", "hidden", "ways", "sources"),
    [(1, 1, 1, 1, 1, 1), (3, 5, 33, 7, 4, 3), (2, 0, 5, 7, 1, 2), (0, 3, 5, 7, 4, 2)],
)


def check(function, formula, tensors, terms):
    """As depth.assert_near_exact; a float16 result has an ulp of 2^-10."""
    if tensors[0].dtype != HALF:
        depth.assert_near_exact(function, formula, tensors, terms)
        return
    grad = depth.random(*formula(*tensors).shape, dtype=HALF, seed=9)
    got = depth.results(function, tensors, grad)
    wanted = depth.results(formula, [tensor.double() for tensor in tensors], grad.double())
    for found, exact in zip(got, wanted, strict=True):
        assert found.dtype == HALF and found.is_contiguous()
        size = max(1.0, float(exact.abs().amax())) if exact.numel() else 1.0
        bound = depth.EPS[HALF] * terms * size + 2.0**-11 * exact.abs() + 2.0**-25
        assert ((found.double() - exact).abs() <= bound).all()


@DTYPES
@SHAPES
def test_weights_and_their_gradients(dtype, batch, length, width, hidden, ways, sources):
    tensors = depth.generator_tensors(batch, length, width, hidden, ways, sources, dtype)
    terms = 8 * (width + hidden + ways * sources + batch * length + 8)
    for gelu in ("exact", "tanh"):
        check(
            lambda *t, g=gelu: depth.connection_weights(*t, ways=ways, eps=1e-5, gelu=g),
            lambda *t, g=gelu: depth.weights_formula(*t, eps=1e-5, gelu=g),
            tensors,
            terms,
        )


@DTYPES
@SHAPES
def test_sums_and_their_gradients(dtype, batch, length, width, hidden, ways, sources):
    tensors = depth.sum_tensors(sources, batch, length, width, ways, dtype)
    check(
        depth.depth_aggregate,
        depth.sum_formula,
        tensors,
        8 * (width + ways + sources + hidden),
    )


def test_gradcheck_and_wanted_gradients():
    depth.test_gradcheck_of_both()
    depth.test_only_wanted_gradients_are_made()
    depth.test_numbers_by_hand()


def strided(tensors):
    """The same numbers in other orders of memory."""
    return [x.mT.contiguous().mT if x.dim() > 1 else x for x in tensors]


def test_views_and_registration():
    operators = torch.ops.paperlab
    made = strided(depth.generator_tensors(2, 3, 5, 7, 4, 2, torch.float32))
    sums = strided(depth.sum_tensors(3, 2, 4, 5, 2, torch.float32))
    sums[0] = sums[0].transpose(1, 2).contiguous().transpose(1, 2)
    for op, values in ((operators.connection_weights, made), (operators.depth_aggregate, sums)):
        dense = op(*[x.contiguous() for x in values])
        found = op(*values)
        for got, wanted in zip(
            *(r if isinstance(r, tuple) else (r,) for r in (found, dense)), strict=True
        ):
            torch.testing.assert_close(got, wanted)
            assert got.is_contiguous()
        torch.library.opcheck(op.default, tuple(x.requires_grad_() for x in values))


def test_they_compile_and_heed_autocast():
    states, weights = depth.sum_tensors(3, 2, 4, 8, 2, torch.float32)
    compiled = torch.compile(
        lambda s, w: depth.depth_aggregate(s, w).sin(), fullgraph=True, backend="aot_eager"
    )
    wanted = depth.depth_aggregate(states, weights)
    torch.testing.assert_close(compiled(states, weights), wanted.sin())
    leaf = states.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # in the backward pass too
        found = depth.depth_aggregate(leaf, weights)
        found.square().sum().backward()
    assert torch.equal(found, wanted)  # of float32 it stays float32, to the bit
    (exact,) = torch.autograd.grad(depth.depth_aggregate(leaf, weights).square().sum(), leaf)
    assert torch.equal(leaf.grad, exact)


@pytest.mark.parametrize("kind", pools.KINDS)
@pytest.mark.parametrize("per_kv", [False, True])
@pytest.mark.parametrize("start", [None, (0, 4), (14, 3)])
@pytest.mark.parametrize("first", [0, 2])
def test_pools_and_their_gradients(kind, per_kv, start, first):
    pools.test_values_and_gradients_are_those_of_the_definition(kind, per_kv, start, first)


def test_pools_of_views_of_few_queries_and_of_nothing():
    pools.test_views_give_the_same_bits()
    pools.test_the_last_queries_are_enough()
    pools.test_one_gradient_at_a_time_and_no_second()
    for heads, tokens in ((0, 14), (4, 2), (4, 0)):
        inputs = pools.tensors(heads, heads // 2, tokens, tokens)
        core = POOL(*inputs, 3)
        assert core[0].shape == (2, heads, tokens // 3, 5)
        (core[0].sum() + core[1].sum()).backward()
        assert all(not x.grad.isnan().any() for x in inputs)


# Sums of a group in float32; then one rounding. Of equal maxima the first has the gradient.
@pytest.mark.parametrize("kind", pools.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, HALF], ids=str)
def test_pools_accumulate_in_float32(kind, dtype):
    low = pools.tensors(width=32, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in low]
    start = torch.tensor([1, 0])
    found, wanted = POOL(*low, 3, 1, start, kind), POOL(*exact, 3, 1, start, kind)
    grads = [
        torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype) for x in found
    ]
    torch.autograd.backward(found, grads)
    torch.autograd.backward(wanted, [grad.double() for grad in grads])
    ulp = torch.finfo(dtype).eps
    pairs = list(zip(found, wanted, strict=True))
    pairs += [(x.grad, y.grad) for x, y in zip(low, exact, strict=True) if x.grad is not None]
    for x, y in pairs:
        assert x.dtype == dtype
        # At most some hundred products of numbers up to 4, none of them beyond 64.
        bound = ulp * y.abs() + 200 * 2.0**-24 * 64
        assert ((x.double() - y).abs() <= bound).all()


def test_what_padding_holds_changes_nothing():
    inputs = pools.tensors(dtype=torch.float32)
    spoilt = [x.detach().clone() for x in inputs]
    for x in spoilt:
        x[1, :, :4] = torch.nan
        x.requires_grad_()
    start = torch.tensor([0, 4])
    for kind in pools.KINDS:
        core, other = (POOL(*x, 3, 0, start, kind) for x in (inputs, spoilt))
        assert all(torch.equal(a, b) for a, b in zip(core, other, strict=True))
        grads = [
            torch.autograd.grad(c[0].sum() + c[1].sum(), x, allow_unused=True)
            for c, x in ((core, inputs), (other, spoilt))
        ]
        assert all(a is b or torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("start", "queries", "part"),
    [
        ((0, 15), 14, "start must be in 0..14, got 15"),
        ((-1, 0), 14, "start must be in 0..14, got -1"),
        ((0, 0), 11, "at least 12 tokens, got 11"),
        (None, 11, "at least 12 tokens, got 11"),
    ],
)
def test_starts_and_queries_that_cannot_be(start, queries, part):
    query, key, value = pools.tensors(queries=queries, requires_grad=False)
    starts = None if start is None else torch.tensor(start)
    messages = []
    for backend in ("torch", "auto"):
        ops.set_backend(backend)
        with pytest.raises(ValueError, match=part) as error:
            POOL(query, key, value, 3, 0, starts)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_pools_are_registered_and_compile():
    for kind in pools.KINDS:
        start = torch.tensor([0, 1])
        torch.library.opcheck(POOL.default, (*pools.tensors(dtype=HALF), 3, 0, start, kind))
    compiled = torch.compile(lambda *x: POOL(*x, 3)[0].sin(), fullgraph=True, backend="aot_eager")
    inputs = pools.tensors(requires_grad=False)
    torch.testing.assert_close(compiled(*inputs), POOL(*inputs, 3)[0].sin())
