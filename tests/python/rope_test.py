"""paperlab.ops.rope: values and gradients, registration, compilation, wrong arguments."""

import pytest
import torch
from paperlab.ops import rope


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def tables(*shape, dtype=torch.float64, seed=7):
    angle = 3 * random(*shape, seed=seed)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def formula(x, cos, sin, inverse=False, *, sign=-1.0):
    half = cos.shape[-1]
    low, high, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    cos, sin = cos.unsqueeze(2), (-sin if inverse else sin).unsqueeze(2)
    return torch.cat([low * cos + sign * high * sin, high * cos + low * sin, rest], -1)


# x, cos and sin; R < D, R = D, R = 2, no lane at all, empty tensors, a table for each row
SHAPES = [
    ((1, 1, 9, 64), (1, 1, 32)),
    ((2, 5, 3, 7), (1, 5, 2)),
    ((3, 4, 2, 2), (3, 4, 1)),
    ((2, 300, 3, 40), (2, 300, 20)),
    ((2, 3, 2, 5), (1, 3, 0)),
    ((0, 3, 2, 8), (1, 3, 4)),
    ((2, 0, 2, 8), (2, 0, 4)),
]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "table_shape"), SHAPES)
def test_values_and_gradients_are_those_of_the_formula(shape, table_shape, dtype, inverse):
    table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [random(*shape, dtype=dtype), *tables(*table_shape, dtype=table_dtype)]
    inputs = [x.requires_grad_() for x in inputs]
    grad = random(*shape, dtype=dtype, seed=3)
    out = rope(*inputs, inverse=inverse)
    grads = torch.autograd.grad(out, inputs, grad)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = formula(*exact_inputs, inverse)
    exact_grads = torch.autograd.grad(exact, exact_inputs, grad.double())
    # Sums of absolute values: the formula without a minus. Two products and a sum are three
    # roundings; gradients of tables are sums over heads and rows; a bfloat16 has half an ulp more.
    absolute = [x.detach().abs().requires_grad_() for x in exact_inputs]
    norm = formula(*absolute, sign=1.0)
    norms = norm, *torch.autograd.grad(norm, absolute, grad.double().abs())
    eps = 2.0**-52 if dtype == torch.float64 else 2.0**-23
    terms = (1.01, 1.01) + 2 * (3 + shape[0] * shape[2],)
    assert out.dtype == dtype and out.shape == shape and out.is_contiguous()
    for i, got in enumerate((out, *grads)):
        wanted = (exact, *exact_grads)[i]
        half_ulp = 2.0**-8 * wanted.abs() if dtype == torch.bfloat16 and i < 2 else 0.0
        assert ((got.double() - wanted).abs() <= terms[i] * eps * norms[i] + half_ulp).all()


@pytest.mark.parametrize("table_batch", [1, 2])
def test_gradcheck_and_opcheck(table_batch):
    x = random(2, 3, 2, 7).requires_grad_()
    cos, sin = (table.requires_grad_() for table in tables(table_batch, 3, 2))
    for inverse in (False, True):
        assert torch.autograd.gradcheck(lambda *a, i=inverse: rope(*a, inverse=i), (x, cos, sin))
        torch.library.opcheck(torch.ops.paperlab.rope, (x, cos, sin, inverse))
        plain = x.detach(), cos.detach(), sin.detach()
        torch.library.opcheck(torch.ops.paperlab.rope, (*plain, inverse))
    assert torch.autograd.gradgradcheck(rope, (x, cos, sin))


def test_only_the_gradients_that_are_wanted_are_computed():
    inputs = [random(1, 3, 2, 6), *tables(1, 3, 2)]
    for wanted in range(3):
        leaves = [x.clone().requires_grad_(i == wanted) for i, x in enumerate(inputs)]
        rope(*leaves).square().sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]
    assert not rope(*inputs).requires_grad
    with torch.no_grad():
        assert not rope(inputs[0].requires_grad_(), *inputs[1:]).requires_grad


def test_input_is_not_kept_for_constant_tables():
    x = random(1, 3, 2, 6).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rope(x, *tables(1, 3, 2))
    assert not any(t.data_ptr() == x.data_ptr() for t in kept)


@pytest.mark.parametrize("table_batch", [1, 2])
def test_compiles_as_one_graph(table_batch):
    def loss(x, cos, sin):
        return rope(rope(x.unflatten(-1, (2, -1)), cos, sin).square(), cos, sin, inverse=True).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (3, 8):
        inputs = [random(2, length, 12), *tables(table_batch, length, 2)]
        inputs = [x.requires_grad_() for x in inputs]
        for got, wanted in zip(
            *(torch.autograd.grad(f(*inputs), inputs) for f in (compiled, loss)), strict=True
        ):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs_give_the_same_bits_and_stay_as_they_are(dtype):
    x = random(2, 3, 5, 24, dtype=dtype)
    before = x.clone()
    cos, sin = tables(1, 5, 12, dtype=torch.float32)
    expected = rope(x.transpose(1, 2).contiguous(), cos, sin)
    assert torch.equal(rope(x.transpose(1, 2), cos, sin), expected)
    swapped = x.transpose(1, 2).transpose(2, 3).contiguous().transpose(2, 3)  # lanes apart
    assert swapped.stride(3) != 1 and torch.equal(rope(swapped, cos, sin), expected)
    columns = torch.stack([cos, sin], -1)
    assert torch.equal(rope(x.transpose(1, 2), columns[..., 0], columns[..., 1]), expected)
    both = (table.expand(2, 5, 12) for table in (cos, sin))
    assert torch.equal(rope(x.transpose(1, 2), *both), expected)
    one = x.transpose(1, 2)[:1].expand(2, 5, 3, 24)
    assert torch.equal(rope(one, cos, sin)[1], expected[0])
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_bits_for_any_number_of_threads(dtype):
    x = random(2, 200, 4, 64, dtype=dtype)
    cos, sin = tables(1, 200, 32, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(rope(x, cos, sin))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


X, TABLE = torch.ones(2, 3, 2, 8), torch.ones(1, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (([1.0], TABLE, TABLE), "x must be a torch.Tensor"),
        ((X, None, TABLE), "cos must be a torch.Tensor"),
        ((X, TABLE, 1), "sin must be a torch.Tensor"),
        ((X.int(), TABLE, TABLE), "x must be float32"),
        ((X.half(), TABLE, TABLE), "x must be float32"),
        ((X, TABLE.double(), TABLE), "cos must be"),
        ((X, TABLE, TABLE.bfloat16()), "sin must be"),
        ((X.double(), TABLE, TABLE), "cos must be"),
        ((X.bfloat16(), TABLE.bfloat16(), TABLE.bfloat16()), "cos must be"),
        ((X[0], TABLE, TABLE), r"x must be \[B, T, H, D\]"),
        ((X, TABLE[0], TABLE[0]), "cos must be"),
        ((X, TABLE[:, :2], TABLE[:, :2]), "cos must be"),
        ((X, TABLE.expand(3, 3, 4), TABLE.expand(3, 3, 4)), "cos must be"),
        ((X, torch.ones(1, 3, 5), torch.ones(1, 3, 5)), "cos must be"),
        ((X, TABLE, TABLE[..., :3]), "sin must be of the shape"),
        ((X.to_sparse(), TABLE, TABLE), "x must be strided"),
        ((X, TABLE.to_sparse(), TABLE), "cos must be strided"),
        ((X.to("meta"), TABLE, TABLE), "cos must be on the device"),
        ((X, TABLE, TABLE.to("meta")), "sin must be on the device"),
    ],
)
def test_wrong_arguments_are_refused(arguments, part):
    with pytest.raises((ValueError, TypeError), match=f"rope: .*{part}"):
        rope(*arguments)
    if all(isinstance(argument, torch.Tensor) for argument in arguments):
        with pytest.raises((ValueError, TypeError), match=part):
            torch.ops.paperlab.rope(*arguments)


def test_inverse_is_a_boolean():
    with pytest.raises(TypeError, match="rope: inverse"):
        rope(X, TABLE, TABLE, inverse="yes")
