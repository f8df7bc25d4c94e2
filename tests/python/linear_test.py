"""paperlab.ops.linear: values and gradients, registration, compilation, wrong arguments."""

import paperlab
import pytest
import torch
from paperlab.ops import linear

ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-24}


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_is_product(got, a, b, bias=None):
    """got = a b^T + bias up to gamma(K + 2) of the sum of absolute values, and bfloat16's ulp."""
    a, b = a.detach().double(), b.detach().double()
    added = torch.zeros(b.shape[0]) if bias is None else bias.detach().double()
    exact = a @ b.t() + added
    norm = a.abs() @ b.abs().t() + added.abs()
    bound = 1.01 * ROUNDOFF[got.dtype] * (a.shape[-1] + 2) * norm
    if got.dtype == torch.bfloat16:
        bound += 2.0**-8 * (exact.abs() + bound)
    assert got.is_contiguous() and got.shape == exact.shape
    assert ((got.detach().double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "columns"),
    [((5,), 3), ((1, 1, 64), 40), ((3, 17), 33), ((2, 9, 48), 70), ((0, 8), 4), ((4, 0), 6)],
)
@pytest.mark.parametrize("adds", [False, True])
def test_values_and_gradients_are_those_of_the_formula(dtype, shape, columns, adds):
    x = random(*shape, dtype=dtype, seed=1).requires_grad_()
    weight = random(columns, shape[-1], dtype=dtype, seed=2).requires_grad_()
    bias = random(columns, dtype=dtype, seed=3).requires_grad_() if adds else None
    y = linear(x, weight, bias)
    assert_is_product(y, x, weight, bias)
    grad = random(*y.shape, dtype=dtype, seed=4)
    leaves = [x, weight, bias] if adds else [x, weight]
    grads = torch.autograd.grad(y, leaves, grad)
    assert_is_product(grads[0], grad, weight.t())
    rows = grad.reshape(-1, columns)
    assert_is_product(grads[1], rows.t(), x.reshape(len(rows), shape[-1]).t())
    if adds:
        assert_is_product(grads[2][None], torch.ones(1, len(rows)), rows.t())


def test_gradcheck_of_both_orders():
    x, weight = random(2, 3, 5).requires_grad_(), random(4, 5, seed=1).requires_grad_()
    bias = random(4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(linear, (x, weight, bias))
    assert torch.autograd.gradgradcheck(linear, (x, weight, bias))


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_only_the_wanted_gradient_is_computed(wanted):
    tensors = {"x": random(3, 5), "weight": random(4, 5), "bias": random(4)}
    tensors[wanted].requires_grad_()
    with torch.profiler.profile() as profile:
        linear(**tensors).sum().backward()
    calls = sum(event.count for event in profile.key_averages() if event.key == "paperlab::linear")
    assert calls == 2  # one of each pass
    assert all((tensor.grad is not None) == (name == wanted) for name, tensor in tensors.items())


def test_without_a_gradient_no_node_is_made():
    x, weight = random(3, 5), random(4, 5).requires_grad_()
    assert linear(x, weight).grad_fn is not None
    with torch.no_grad():
        assert linear(x, weight).grad_fn is None
    assert linear(x, weight.detach()).grad_fn is None


@pytest.mark.parametrize("adds", [False, True])
def test_opcheck(adds):
    x, weight = random(2, 4, 6).requires_grad_(), random(3, 6, seed=1).requires_grad_()
    bias = random(3, seed=2).requires_grad_() if adds else None
    torch.library.opcheck(torch.ops.paperlab.linear, (x, weight, bias))


def test_compiles_as_one_graph():
    def two(x, first, second, bias):
        return (linear(torch.tanh(linear(x, first, bias)), second) ** 2).sum()

    compiled = torch.compile(two, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 8):
        x = random(2, rows, 6, seed=1).requires_grad_()
        weights = [random(5, 6, seed=2), random(7, 5, seed=3), random(5, seed=4)]
        leaves = [x, *(weight.requires_grad_() for weight in weights)]
        got = torch.autograd.grad(compiled(*leaves), leaves)
        wanted = torch.autograd.grad(two(*leaves), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_strided_inputs_are_neither_changed_nor_aliased(dtype):
    base = random(40, 30, dtype=dtype)
    before = base.clone()
    weight = random(60, 80, dtype=dtype, seed=1)
    for x, w in (
        (base.t(), weight[:, :40]),
        (base[:, :20], weight[:20].t()),
        (base[::2, ::3], weight[::2, ::8]),
        (base[:3].expand(5, 3, 30), weight[:, 1:31]),
        (base[:1, :1].expand(4, 7), weight[3:, 2:9]),
        (base[:, 1:2], weight[:, 5:6]),
        (base[0, ::2], weight[:, :15]),
    ):
        y = linear(x, w)
        assert_is_product(y, x, w)
        assert y.untyped_storage().data_ptr() != base.untyped_storage().data_ptr()
    assert torch.equal(base, before)


@pytest.mark.parametrize("rows", [3, 100])
def test_the_bits_do_not_depend_on_the_threads(rows):
    x, weight = (random(n, 576, dtype=torch.float32, seed=n).requires_grad_() for n in (rows, 700))
    bias = random(700, dtype=torch.float32).requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = linear(x, weight, bias)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_under_inference_mode():
    with torch.inference_mode():
        x, weight = random(3, 5), random(4, 5)
        assert_is_product(linear(x, weight), x, weight)


X, W, B = torch.ones(2, 4), torch.ones(3, 4), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (([1.0], W), "x must be a torch.Tensor"),
        ((X, None), "weight must be a torch.Tensor"),
        ((X, W, 1.0), "bias must be a torch.Tensor"),
        ((X.int(), W.int()), "x must be float32"),
        ((X.half(), W.half()), "x must be float32"),
        ((X, W.double()), "weight must be of the dtype"),
        ((X, W, B.double()), "bias must be of the dtype"),
        ((torch.ones(()), W), "x must be"),
        ((X, torch.ones(4)), "weight must be"),
        ((X, torch.ones(3, 5)), "weight must be"),
        ((X, torch.ones(1, 3, 4)), "weight must be"),
        ((X, W, torch.ones(4)), "bias must be"),
        ((X, W, torch.ones(1, 3)), "bias must be"),
        ((X.to_sparse(), W), "x must be strided"),
        ((X, W.to_sparse()), "weight must be strided"),
        ((X.to("meta"), W), "weight must be on the device"),
        ((torch.nested.nested_tensor([torch.ones(4)]), W), "x must be strided"),
    ],
)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_wrong_arguments_are_refused(arguments, part, needs_grad):
    if needs_grad and isinstance(arguments[1], torch.Tensor) and arguments[1].is_floating_point():
        arguments = (arguments[0], arguments[1].clone().requires_grad_(), *arguments[2:])
    with pytest.raises((ValueError, TypeError), match=part):
        linear(*arguments)


def test_the_module_lists_it():
    assert "linear" in paperlab.ops.__all__
