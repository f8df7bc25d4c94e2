"""paperlab.ops.rms_norm: values and gradients, registration, compilation, wrong arguments."""

import paperlab
import pytest
import torch
from paperlab.ops import rms_norm

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-23}


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def definition(x, weight, residual=None, eps=1e-6):
    s = x if residual is None else x + residual
    return s / torch.sqrt((s * s).mean(-1, keepdim=True) + eps) * weight, s


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (5, 3), (2, 7, 64), (3, 577), (0, 8)])
@pytest.mark.parametrize("adds", [False, True])
def test_values_and_gradients_are_those_of_the_formula(dtype, shape, adds):
    x, residual = (random(*shape, dtype=dtype, seed=i).requires_grad_() for i in (1, 2))
    weight = random(shape[-1], dtype=dtype, seed=3).requires_grad_()
    grad = random(*shape, dtype=dtype, seed=4)
    result = rms_norm(x, weight, residual=residual if adds else None)
    y, total = result if adds else (result, x)
    assert y.dtype == dtype and y.is_contiguous()
    exact_s = total.detach().double().requires_grad_()  # the sum as it was rounded
    exact_weight = weight.detach().double().requires_grad_()
    exact, _ = definition(exact_s, exact_weight)
    exact_grads = torch.autograd.grad(exact, (exact_s, exact_weight), grad.double())
    grads = torch.autograd.grad(y, (x, weight), grad)
    # Sums of W (and N) terms and some ten roundings, of the sum of the absolute values.
    terms = sum(shape) + 16
    inverse = 1 / torch.sqrt(exact_s.square().mean(-1, keepdim=True) + 1e-6)
    n, g = (exact_s * inverse).abs(), (grad.double() * exact_weight).abs()
    norms = (
        exact.abs(),
        inverse * (g + n * (g * n).mean(-1, keepdim=True)),
        (grad.double().abs() * n).reshape(-1, shape[-1]).sum(0),
    )
    for got, wanted, norm in zip((y, *grads), (exact, *exact_grads), norms, strict=True):
        half_ulp = 2.0**-8 * wanted.abs() if dtype == torch.bfloat16 else 0.0
        assert ((got.double() - wanted).abs() <= EPS[dtype] * terms * norm + half_ulp).all()
    if adds:
        assert torch.equal(total, (x + residual).detach())


def test_gradcheck():
    x, residual = random(3, 5).requires_grad_(), random(3, 5, seed=1).requires_grad_()
    weight = random(5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, w: rms_norm(a, w), (x, weight))
    assert torch.autograd.gradcheck(
        lambda a, w, r: rms_norm(a, w, residual=r, eps=0.1), (x, weight, residual)
    )
    assert torch.autograd.gradcheck(
        lambda a, w, r: rms_norm(a, w, residual=r)[1], (x, weight, residual)
    )


@pytest.mark.parametrize("adds", [False, True])
def test_opcheck(adds):
    x, weight = random(4, 6).requires_grad_(), random(6, seed=1).requires_grad_()
    residual = random(4, 6, seed=2).requires_grad_() if adds else None
    torch.library.opcheck(torch.ops.paperlab.rms_norm, (x, weight, residual, 1e-6))
    y, total, inverse = torch.ops.paperlab.rms_norm(x.detach(), weight.detach(), residual)
    s = total.detach() if adds else x.detach()
    torch.library.opcheck(
        torch.ops.paperlab.rms_norm_backward, (y.detach(), s, s, weight.detach(), inverse.detach())
    )


def test_compiles_as_one_graph():
    def both(x, weight, residual):
        y, total = rms_norm(x, weight, residual=residual)
        return (rms_norm(y, weight) * total).sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 8):
        inputs = [random(rows, 6, seed=i).requires_grad_() for i in (1, 3)]
        weight = random(6, seed=2).requires_grad_()
        got = torch.autograd.grad(compiled(inputs[0], weight, inputs[1]), [*inputs, weight])
        wanted = torch.autograd.grad(both(inputs[0], weight, inputs[1]), [*inputs, weight])
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_strided_inputs_are_neither_changed_nor_aliased():
    base = random(6, 10, dtype=torch.float32)
    x, weight = base.t(), random(12, dtype=torch.float32)[::2]
    before = base.clone()
    y = rms_norm(x, weight)
    assert torch.equal(y, rms_norm(x.contiguous(), weight.contiguous()))
    assert torch.equal(base, before)
    assert y.untyped_storage().data_ptr() != base.untyped_storage().data_ptr()


def test_the_bits_do_not_depend_on_the_threads():
    x, weight = random(500, 96, dtype=torch.float32), random(96, dtype=torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = weight.clone().requires_grad_()
            y = rms_norm(x, leaf)
            results.append((y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


X, W = torch.ones(2, 4), torch.ones(4)


@pytest.mark.parametrize(
    ("arguments", "options", "part"),
    [
        (([1.0], W), {}, "x must be a torch.Tensor"),
        ((X.int(), W.int()), {}, "x must be float32"),
        ((X, W.double()), {}, "weight must be of the dtype"),
        ((X, torch.ones(3)), {}, "weight must be"),
        ((torch.ones(()), W), {}, "x must be"),
        ((torch.ones(2, 0), torch.ones(0)), {}, "x must be"),
        ((X, W), {"residual": torch.ones(4)}, "residual must be"),
        ((X, W), {"residual": X.double()}, "residual must be of the dtype"),
        ((X, W), {"eps": -1.0}, "eps must be"),
        ((X, W), {"eps": float("nan")}, "eps must be"),
        ((X, W), {"eps": "a"}, "eps must be"),
        ((X.to_sparse(), W), {}, "x must be strided"),
        ((X.to("meta"), W), {}, "weight must be on the device"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, part):
    with pytest.raises((ValueError, TypeError), match=part):
        rms_norm(*arguments, **options)


def test_statistics_of_another_device_are_refused():
    x, weight = random(4, 6), random(6)
    inverse = torch.ones(4, dtype=x.dtype, device="meta")
    with pytest.raises(ValueError, match="inverse_rms must be strided and on the device of s"):
        torch.ops.paperlab.rms_norm_backward(x, None, x, weight, inverse)


def test_the_module_lists_it():
    assert "rms_norm" in paperlab.ops.__all__
