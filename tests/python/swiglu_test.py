"""paperlab.ops.swiglu: values and gradients, registration, compilation, wrong arguments."""

import pytest
import torch
from paperlab.ops import swiglu


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (5, 3), (2, 7, 64), (3, 577), (0, 8), (4, 0)])
def test_values_and_gradients_are_those_of_the_formula(dtype, shape):
    gate, up = (random(*shape, dtype=dtype, seed=i).requires_grad_() for i in (1, 2))
    grad = random(*shape, dtype=dtype, seed=3)
    exact_inputs = [x.detach().double().requires_grad_() for x in (gate, up)]
    exact = torch.nn.functional.silu(exact_inputs[0]) * exact_inputs[1]
    exact_grads = torch.autograd.grad(exact, exact_inputs, grad.double())
    y = swiglu(gate, up)
    grads = torch.autograd.grad(y, (gate, up), grad)
    assert y.dtype == dtype and y.shape == gate.shape and y.is_contiguous()
    # Some sixteen roundings of the sum of the absolute values; a bfloat16 has half an ulp more.
    x, u, g = exact_inputs[0].detach(), exact_inputs[1].detach().abs(), grad.double().abs()
    s = torch.sigmoid(x)
    norms = (exact.abs(), g * u * s * (1 + (x * (1 - s)).abs()), (g * x * s).abs())
    eps = 2.0**-52 if dtype == torch.float64 else 2.0**-23
    for got, wanted, norm in zip((y, *grads), (exact, *exact_grads), norms, strict=True):
        half_ulp = 2.0**-8 * wanted.abs() if dtype == torch.bfloat16 else 0.0
        assert ((got.double() - wanted).abs() <= 16 * eps * norm + half_ulp).all()


def test_gradcheck_and_opcheck():
    gate, up = random(3, 5).requires_grad_(), random(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(swiglu, (gate, up))
    torch.library.opcheck(torch.ops.paperlab.swiglu, (gate, up))
    plain = gate.detach(), up.detach()
    torch.library.opcheck(torch.ops.paperlab.swiglu_backward, (random(3, 5, seed=2), *plain))


def test_compiles_as_one_graph():
    def halves(x):
        gate, up = x.chunk(2, -1)
        return swiglu(gate, up).square().sum()

    compiled = torch.compile(halves, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 8):
        x = random(rows, 6).requires_grad_()
        got, wanted = (torch.autograd.grad(f(x), x)[0] for f in (compiled, halves))
        assert torch.equal(got, wanted)


def test_halves_of_a_product_and_other_strides_give_the_same_bits():
    x = random(2, 3, 20, dtype=torch.float32)
    before = x.clone()
    gate, up = x.chunk(2, -1)
    expected = swiglu(gate.contiguous(), up.contiguous())
    assert torch.equal(swiglu(gate, up), expected)
    assert torch.equal(swiglu(gate.transpose(0, 2), up.transpose(0, 2)), expected.transpose(0, 2))
    row = x[0, 0]
    assert torch.equal(swiglu(row.expand(4, 20), row.expand(4, 20))[3], swiglu(row, row))
    assert torch.equal(x, before)


X = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (([1.0], X), "gate must be a torch.Tensor"),
        ((X, None), "up must be a torch.Tensor"),
        ((X.int(), X.int()), "gate must be float32"),
        ((X, X.double()), "up must be of the dtype"),
        ((X, torch.ones(2, 3)), "up must be"),
        ((torch.ones(()), torch.ones(())), "gate must be"),
        ((X.to_sparse(), X), "gate must be strided"),
        ((X.to("meta"), X), "up must be on the device"),
    ],
)
def test_wrong_arguments_are_refused(arguments, part):
    with pytest.raises((ValueError, TypeError), match=part):
        swiglu(*arguments)
