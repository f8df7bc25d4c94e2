"""paperlab.mudd's functions and modules: values, gradients, registration, wrong arguments."""

import math

import paperlab
import pytest
import torch
from paperlab.mudd import (
    ConnectionWeightGenerator,
    DepthAggregate,
    connection_weights,
    depth_aggregate,
)
from torch.nn import functional

OPERATORS = torch.ops.paperlab
TYPES = [torch.float32, torch.float64, torch.bfloat16]
DTYPES = pytest.mark.parametrize("dtype", TYPES, ids=str)
GELUS = pytest.mark.parametrize("gelu", ["exact", "tanh"])
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-23}


def random(*shape, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def activation(z, gelu):
    return functional.gelu(z, approximate="none" if gelu == "exact" else "tanh")


def weights_formula(x, w1, w2, a, eps=1e-6, gelu="exact"):
    n = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    rows = activation(n @ w1, gelu) @ w2
    return rows.unflatten(-1, a.shape).movedim(-2, 0) + a[:, None, None]


def sum_formula(states, weights):
    return torch.einsum("cbtj,jbtd->cbtd", weights, states)


def generator_tensors(batch, length, width, hidden, ways, sources, dtype=torch.float64):
    return [
        random(batch, length, width, dtype=dtype, seed=1),
        random(width, hidden, dtype=dtype, seed=2, scale=width**-0.5),
        random(hidden, ways * sources, dtype=dtype, seed=3, scale=hidden**-0.5),
        random(ways, sources, dtype=dtype, seed=4),
    ]


def sum_tensors(sources, batch, length, width, ways, dtype=torch.float64):
    return [
        random(sources, batch, length, width, dtype=dtype, seed=1),
        random(ways, batch, length, sources, dtype=dtype, seed=2),
    ]


def results(function, tensors, grad):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves, grad.to(value.dtype))


def assert_near_exact(function, formula, tensors, terms):
    """Errors below `terms` roundings of the largest sum of absolute values, and half an ulp.

    Sums of absolute values come from the formula of absolute values: gelu and its slope are below
    |z| + 1 and 2, and the norm's gradient has two terms.
    """
    dtype = tensors[0].dtype
    grad = random(*formula(*tensors).shape, dtype=dtype, seed=9)
    got = results(function, tensors, grad)
    wanted = results(formula, [tensor.double() for tensor in tensors], grad.double())
    for index, (found, exact) in enumerate(zip(got, wanted, strict=True)):
        assert found.shape == exact.shape and found.is_contiguous()
        assert found.dtype == dtype
        half_ulp = 2.0**-8 * exact.abs() if dtype == torch.bfloat16 else 0.0
        size = max(1.0, float(exact.abs().amax())) if exact.numel() else 1.0
        error = (found.double() - exact).abs()
        assert (error <= EPS[dtype] * terms * size + half_ulp).all(), index


SHAPES = pytest.mark.parametrize(
    ("batch", "length", "width", "hidden", "ways", "sources"),
    [
        (1, 1, 1, 1, 1, 1),
        (2, 3, 5, 7, 4, 2),
        (1, 9, 33, 24, 3, 8),
        (3, 5, 64, 12, 4, 3),
        (2, 40, 72, 100, 4, 25),
        (0, 3, 5, 7, 4, 2),
        (2, 0, 5, 7, 1, 2),
    ],
)


@DTYPES
@GELUS
@SHAPES
def test_weights_and_their_gradients(dtype, gelu, batch, length, width, hidden, ways, sources):
    tensors = generator_tensors(batch, length, width, hidden, ways, sources, dtype)
    terms = 8 * (width + hidden + ways * sources + batch * length + 8)
    assert_near_exact(
        lambda *t: connection_weights(*t, ways=ways, eps=1e-5, gelu=gelu),
        lambda *t: weights_formula(*t, eps=1e-5, gelu=gelu),
        tensors,
        terms,
    )


@DTYPES
@SHAPES
def test_sums_and_their_gradients(dtype, batch, length, width, hidden, ways, sources):
    tensors = sum_tensors(sources, batch, length, width, ways, dtype)
    terms = 8 * (width + ways + sources + hidden)
    assert_near_exact(depth_aggregate, sum_formula, tensors, terms)


@pytest.mark.parametrize("ways", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("sources", [1, 6, 33, 70])
def test_any_number_of_ways_and_sources(ways, sources):
    tensors = sum_tensors(sources, 2, 3, 20, ways, torch.float32)
    assert_near_exact(depth_aggregate, sum_formula, tensors, 8 * (sources + ways + 20))


@GELUS
def test_gradcheck_of_the_weights(gelu):
    tensors = [t.requires_grad_() for t in generator_tensors(2, 3, 4, 5, 3, 2)]
    assert torch.autograd.gradcheck(
        lambda *t: connection_weights(*t, ways=3, gelu=gelu), tensors, eps=1e-5, atol=1e-7
    )


def test_gradcheck_of_the_sum():
    tensors = [t.requires_grad_() for t in sum_tensors(3, 2, 3, 4, 2)]
    assert torch.autograd.gradcheck(depth_aggregate, tensors, eps=1e-5, atol=1e-7)


def test_gradcheck_of_both():
    """The newest state has two gradients: as a source and through the weights."""
    states = random(3, 2, 2, 4, seed=5).requires_grad_()
    tensors = [t.requires_grad_() for t in generator_tensors(2, 2, 4, 5, 2, 3)[1:]]
    assert torch.autograd.gradcheck(
        lambda states, *t: depth_aggregate(states, connection_weights(states[-1], *t, ways=2)),
        [states, *tensors],
        eps=1e-5,
        atol=1e-7,
    )


def test_only_wanted_gradients_are_made():
    tensors = generator_tensors(2, 3, 4, 5, 3, 2)
    all_grads = results(lambda *t: connection_weights(*t, ways=3), tensors, torch.ones(3, 2, 3, 2))
    for i in range(4):
        leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate(tensors)]
        connection_weights(*leaves, ways=3).sum().backward()
        assert torch.equal(leaves[i].grad, all_grads[1 + i])
        assert all(leaves[j].grad is None for j in range(4) if j != i)
    states, weights = sum_tensors(3, 2, 3, 4, 2)
    both = results(depth_aggregate, (states, weights), torch.ones(2, 2, 3, 4))
    for i in range(2):
        leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate((states, weights))]
        depth_aggregate(*leaves).sum().backward()
        assert torch.equal(leaves[i].grad, both[1 + i]) and leaves[1 - i].grad is None


# X_i = (3, 4), eps 1e-6: r = 3.5355340473 and N = X_i / r; W1 = W2 = I, a = (0, 1), X_0 = (1, 0).
# Within a unit of the tenth digit.
def test_numbers_by_hand():
    x = torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    a = torch.tensor([[0.0, 1.0]], dtype=torch.float64)

    def close(got, wanted):
        return torch.allclose(
            got.flatten(), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-10
        )

    n = x / math.sqrt(12.5 + 1e-6)
    assert close(n, [0.8485281035, 1.1313708046])
    assert close(connection_weights(x, eye, eye, zero, ways=1), [0.6804584755, 0.9854810744])
    tanh = connection_weights(x, eye, eye, zero, ways=1, gelu="tanh")
    assert close(tanh, [0.6803587185, 0.9852853317])
    weights = connection_weights(x, eye, eye, a, ways=1)
    assert close(weights, [0.6804584755, 1.9854810744])
    states = torch.stack([torch.tensor([[[1.0, 0.0]]], dtype=torch.float64), x])
    assert torch.allclose(  # ten digits after the point of numbers that were made of such
        depth_aggregate(states, weights).flatten(),
        torch.tensor([6.6369016985, 7.9419242973], dtype=torch.float64),
        rtol=0,
        atol=3e-10,
    )


@DTYPES
def test_a_fresh_aggregate_returns_the_newest_state(dtype):
    states = random(5, 2, 3, 24, dtype=dtype)
    module = DepthAggregate(24, 5, dtype=dtype)
    assert torch.equal(module(states), states[-1].expand(4, 2, 3, 24))


def test_weights_of_one_sum_the_states():
    states = random(4, 2, 3, 6)
    module = DepthAggregate(6, 4, ways=2, dtype=torch.float64)
    torch.nn.init.ones_(module.generator.a)
    torch.testing.assert_close(module(states), states.sum(0).expand(2, 2, 3, 6))


def test_sources_may_be_permuted_together_with_their_weights():
    x, w1, w2, a = generator_tensors(2, 3, 6, 5, 3, 4)
    states = random(4, 2, 3, 6, seed=7)
    order = torch.tensor([2, 0, 3, 1])
    columns = (torch.arange(3)[:, None] * 4 + order).flatten()
    plain = depth_aggregate(states, connection_weights(x, w1, w2, a, ways=3))
    permuted = connection_weights(x, w1, w2[:, columns], a[:, order], ways=3)
    torch.testing.assert_close(depth_aggregate(states[order], permuted), plain)


def test_sums_are_linear_and_weights_ignore_the_scale():
    one, weights = sum_tensors(3, 2, 4, 5, 2)
    two = random(3, 2, 4, 5, seed=8)
    torch.testing.assert_close(
        depth_aggregate(2 * one - 3 * two, weights),
        2 * depth_aggregate(one, weights) - 3 * depth_aggregate(two, weights),
    )
    x, w1, w2, a = generator_tensors(2, 3, 6, 5, 3, 4)
    torch.testing.assert_close(
        connection_weights(1e3 * x, w1, w2, a, ways=3, eps=1e-12),
        connection_weights(x, w1, w2, a, ways=3, eps=1e-12),
    )


def test_first_gradients_of_a_fresh_generator():
    x, w1, w2, a = generator_tensors(2, 3, 6, 5, 3, 4)
    states = random(4, 2, 3, 6, seed=7)
    leaves = [t.requires_grad_() for t in (w1, torch.zeros_like(w2), a)]
    grad = random(3, 2, 3, 6, seed=8)
    out = depth_aggregate(states, connection_weights(x, *leaves, ways=3))
    of_w1, of_w2, of_a = torch.autograd.grad(out, leaves, grad)
    assert torch.equal(of_w1, torch.zeros_like(w1))
    dots = torch.einsum("cbtd,jbtd->cbtj", grad, states)
    torch.testing.assert_close(of_a, dots.sum((1, 2)))
    n = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    hidden = functional.gelu(n @ w1.detach())
    torch.testing.assert_close(of_w2, torch.einsum("btk,cbtj->kcj", hidden, dots).flatten(1))


@DTYPES
def test_zeros_nan_and_large_states(dtype):
    x, w1, w2, a = generator_tensors(1, 3, 64, 8, 2, 3, dtype)
    zero = connection_weights(torch.zeros_like(x), w1, w2, a, ways=2)
    assert torch.equal(zero, a[:, None, None].expand(zero.shape))
    plain = connection_weights(x, w1, w2, a, ways=2)
    states = random(3, 1, 3, 64, dtype=dtype, seed=7)
    sums = depth_aggregate(states, plain)
    bad_x, bad_states = x.clone(), states.clone()
    bad_x[0, 1, 5] = bad_states[1, 0, 1, 5] = math.nan
    for bad, good in (
        (connection_weights(bad_x, w1, w2, a, ways=2), plain),
        (depth_aggregate(bad_states, plain), sums),
    ):
        assert torch.equal(bad[:, :, ::2], good[:, :, ::2])
        assert bad[:, :, 1].isnan().any()
    large = depth_aggregate(1e4 * torch.ones_like(states), torch.ones_like(plain) / 4)
    assert torch.equal(
        large, torch.full_like(large, float((1e4 * torch.ones((), dtype=dtype)) * 0.75))
    )
    assert connection_weights(1e4 * x, w1, w2, a, ways=2).isfinite().all()


@DTYPES
def test_views_are_read_and_neither_changed_nor_aliased(dtype):
    _, w1, w2, _ = generator_tensors(4, 6, 10, 5, 2, 3, dtype)
    views = [
        random(6, 4, 20, dtype=dtype).transpose(0, 1)[..., ::2],
        w1.t().contiguous().t(),
        w2.t().contiguous().t(),
        random(1, 3, dtype=dtype, seed=5).expand(2, 3),
    ]
    states = random(4, 3, 6, 10, dtype=dtype).movedim(0, 1)
    weights = random(4, 6, 2, 3, dtype=dtype).permute(2, 0, 1, 3)
    some = [
        (lambda *t: connection_weights(*t, ways=2), views),
        (depth_aggregate, [states, weights]),
        (depth_aggregate, [states[:1].expand(3, 4, 6, 10), weights[..., :1].expand(2, 4, 6, 3)]),
        (depth_aggregate, [states.mT.contiguous().mT, weights.flip(3).mT.contiguous().mT]),
    ]
    for function, tensors in some:
        before = [t.clone() for t in tensors]
        dense = [t.contiguous() for t in tensors]
        grad = random(1, dtype=dtype).expand(function(*tensors).shape)
        leaves = [t.detach().requires_grad_() for t in tensors]
        got = function(*leaves)
        assert got.is_contiguous() and torch.equal(got, function(*dense))
        grads = torch.autograd.grad(got, leaves, grad)
        for found, wanted in zip(grads, results(function, dense, grad)[1:], strict=True):
            assert torch.equal(found, wanted)
        for tensor, old in zip(tensors, before, strict=True):
            assert torch.equal(tensor, old)
            assert got.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@DTYPES
def test_the_bits_do_not_depend_on_the_threads(dtype):
    tensors = generator_tensors(3, 200, 96, 40, 4, 10, dtype)
    sums = sum_tensors(10, 3, 200, 96, 4, dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(
                results(connection_weights, tensors, random(4, 3, 200, 10, seed=8))
                + results(depth_aggregate, sums, random(4, 3, 200, 96, seed=9))
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@DTYPES
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(dtype, requires_grad):
    x, w1, w2, a = generator_tensors(2, 3, 5, 7, 4, 2, dtype)
    leaves = [t.clone().requires_grad_(requires_grad) for t in (x, w1, w2, a)]
    torch.library.opcheck(OPERATORS.connection_weights, (*leaves, 1e-6, "tanh"))
    weights, z, inverse = OPERATORS.connection_weights(x, w1, w2, a)
    torch.library.opcheck(
        OPERATORS.connection_weights_backward,
        (weights, x, w1, w2, z, inverse, "exact", [True, False, True, True]),
    )
    states, weights = sum_tensors(3, 2, 3, 4, 2, dtype)
    leaves = [t.clone().requires_grad_(requires_grad) for t in (states, weights)]
    torch.library.opcheck(OPERATORS.depth_aggregate, leaves)
    out = depth_aggregate(states, weights)
    torch.library.opcheck(OPERATORS.depth_aggregate_backward, (out, states, weights, [True, False]))


def objective(states, w1, w2, a):
    weights = connection_weights(states[-1], w1, w2, a, ways=a.shape[0])
    return depth_aggregate(torch.sin(states), weights).square().sum()


def test_they_compile_as_one_graph():
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, length in ((2, 3), (1, 5), (4, 2)):
        tensors = [random(3, batch, length, 4, seed=7), *generator_tensors(1, 1, 4, 5, 2, 3)[1:]]
        leaves = [t.requires_grad_() for t in tensors]
        got = torch.autograd.grad(compiled(*leaves), leaves)
        wanted = torch.autograd.grad(objective(*leaves), leaves)
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_modules_compile_as_one_graph():
    module = DepthAggregate(6, 3, dtype=torch.float64)
    torch.nn.init.normal_(module.generator.w2.weight)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    states = random(3, 2, 4, 6).requires_grad_()
    leaves = [states, *module.parameters()]
    got = torch.autograd.grad(compiled(states).square().sum(), leaves)
    wanted = torch.autograd.grad(module(states).square().sum(), leaves)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.slow
def test_they_compile_with_inductor():
    tensors = [random(3, 2, 5, 4, seed=7), *generator_tensors(1, 1, 4, 5, 2, 3)[1:]]
    leaves = [t.requires_grad_() for t in tensors]
    compiled = torch.compile(objective, fullgraph=True)
    got = torch.autograd.grad(compiled(*leaves), leaves)
    for ours, theirs in zip(got, torch.autograd.grad(objective(*leaves), leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@DTYPES
def test_tensors_without_data(dtype):
    x, w1, w2, a = (t.to("meta") for t in generator_tensors(2, 3, 5, 7, 4, 2, dtype))
    weights = connection_weights(x, w1, w2, a)
    assert weights.shape == (4, 2, 3, 2) and weights.dtype == dtype and weights.is_contiguous()
    out = depth_aggregate(torch.stack([x, x]), weights)
    assert out.shape == (4, 2, 3, 5) and out.dtype == dtype and out.is_meta


def test_modules_have_the_published_parameters():
    torch.manual_seed(3)
    generator = ConnectionWeightGenerator(400, 3)
    shapes = {name: tuple(value.shape) for name, value in generator.named_parameters()}
    assert shapes == {"a": (4, 3), "w1.weight": (12, 400), "w2.weight": (12, 12)}
    w1 = generator.w1.weight.detach()
    # 4800 draws: their deviation is within five standard errors of 1/sqrt(D).
    assert abs(float(w1.std()) * 20 - 1) < 5 / math.sqrt(2 * w1.numel())
    assert not generator.w2.weight.any()
    assert torch.equal(generator.a, torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3))
    names = [name for name, _ in DepthAggregate(8, 3, 2).named_parameters()]
    assert [name.partition(".")[2] for name in names] == ["a", "w1.weight", "w2.weight"]


@DTYPES
def test_modules_are_the_functions(dtype):
    module = DepthAggregate(6, 3, 2, eps=1e-3, gelu="tanh", dtype=dtype)
    generator = module.generator
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    states = random(3, 2, 4, 6, dtype=dtype)
    weights = connection_weights(
        states[2],
        generator.w1.weight.t(),
        generator.w2.weight.t(),
        generator.a,
        ways=2,
        eps=1e-3,
        gelu="tanh",
    )
    assert torch.equal(generator(states[2]), weights)
    assert torch.equal(module(states), depth_aggregate(states, weights))
    assert torch.equal(module(list(states)), module(states))
    assert torch.equal(module(states.unbind(0)), module(states))


def test_the_module_lists_them():
    names = {"connection_weights", "depth_aggregate", "ConnectionWeightGenerator", "DepthAggregate"}
    assert names <= set(paperlab.mudd.__all__)
