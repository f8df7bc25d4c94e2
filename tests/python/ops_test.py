"""paperlab.ops: values, gradients, compilation, errors."""

import re

import numpy as np
import one_layer
import pytest
import torch
from paperlab.ops import even_pairs_loss

OPERATOR = torch.ops.paperlab.even_pairs_loss.default


def parameters(max_length, dtype=torch.float64, requires_grad=False):
    generator = torch.Generator().manual_seed(max_length)
    shapes = [(2 * max_length,), (2 * max_length, 2 * max_length)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_(requires_grad) for tensor in tensors]


@pytest.mark.parametrize("scale", [0.4, 2.0])
@pytest.mark.parametrize("max_length", [1, 2, 5])
def test_loss_and_gradients_follow_the_definition(max_length, scale):
    u, w = parameters(max_length, requires_grad=True)
    loss = even_pairs_loss(u, w, scale)
    (3 * loss).backward()
    expected, _, grad_u, grad_w = one_layer.objective(
        u.detach().numpy(), w.detach().numpy(), one_layer.even_pairs(max_length), scale
    )
    assert loss.shape == () and loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(u.grad.numpy(), 3 * grad_u, rtol=0, atol=1e-13)
    np.testing.assert_allclose(w.grad.numpy(), 3 * grad_w, rtol=0, atol=1e-13)


def test_the_default_scale_is_two():
    u, w = parameters(3)
    assert torch.equal(even_pairs_loss(u, w), even_pairs_loss(u, w, 2.0))


def test_gradcheck():
    assert torch.autograd.gradcheck(
        lambda u, w: even_pairs_loss(u, w, 1.3), parameters(3, requires_grad=True)
    )


def test_one_gradient_at_a_time():
    u, w = parameters(4, requires_grad=True)
    both = torch.autograd.grad(even_pairs_loss(u, w), (u, w))
    (only_u,) = torch.autograd.grad(even_pairs_loss(u, w.detach()), u)
    (only_w,) = torch.autograd.grad(even_pairs_loss(u.detach(), w), w)
    assert torch.equal(both[0], only_u) and torch.equal(both[1], only_w)


def test_a_second_derivative_is_refused():
    u, w = parameters(2, requires_grad=True)
    (grad_u,) = torch.autograd.grad(even_pairs_loss(u, w), u, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for paperlab::even_pairs_loss_backward"):
        grad_u.sum().backward()


def test_float32_accumulates_in_float64():
    u, w = parameters(12, dtype=torch.float32, requires_grad=True)
    loss = even_pairs_loss(u, w)
    loss.backward()
    wide = [x.detach().double().requires_grad_() for x in (u, w)]
    exact = even_pairs_loss(*wide)
    exact.backward()
    assert loss.dtype == u.grad.dtype == w.grad.dtype == torch.float32
    assert torch.equal(loss, exact.float())
    assert torch.equal(u.grad, wide[0].grad.float()) and torch.equal(w.grad, wide[1].grad.float())


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    u, w = parameters(3, requires_grad=requires_grad)
    torch.library.opcheck(OPERATOR, (u, w, 0.7))
    torch.library.opcheck(OPERATOR, (u, w.t(), 0.7))


def test_opcheck_of_the_backward_operator():
    u, w = parameters(3)
    grad = torch.tensor(1.5, dtype=torch.float64)
    torch.library.opcheck(torch.ops.paperlab.even_pairs_loss_backward.default, (grad, u, w, 0.7))


def test_it_compiles_as_one_graph():
    u, w = parameters(4, requires_grad=True)

    def objective(u, w):
        return 2 * even_pairs_loss(torch.sin(u), w.t(), 1.5)

    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(objective(u, w), (u, w))
    loss = compiled(u, w)
    assert torch.equal(loss, objective(u, w))
    for ours, theirs in zip(torch.autograd.grad(loss, (u, w)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)


def test_one_graph_serves_many_lengths():
    compiled = torch.compile(even_pairs_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for max_length in (4, 3, 2):
        u, w = parameters(max_length)
        assert torch.equal(compiled(u, w), even_pairs_loss(u, w))


def test_views_give_the_same_and_stay_as_they_are():
    u, w = parameters(3)
    expected = even_pairs_loss(u, w)
    assert torch.equal(
        even_pairs_loss(u.repeat_interleave(2)[::2], w.t().contiguous().t()), expected
    )
    expanded = torch.ones(1, 1, dtype=torch.float64, requires_grad=True).expand(6, 6)
    dense = torch.ones(6, 6, dtype=torch.float64)
    assert torch.equal(even_pairs_loss(u, expanded), even_pairs_loss(u, dense))
    before = u.clone(), w.clone()
    even_pairs_loss(u, w).add_(1)
    assert torch.equal(u, before[0]) and torch.equal(w, before[1])


def test_expanded_inputs_get_gradients():
    base = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    _, w = parameters(2)
    assert torch.autograd.gradcheck(lambda x: even_pairs_loss(x.expand(4), w), (base,))


def test_the_bits_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    u, w = parameters(16, requires_grad=True)
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            loss = even_pairs_loss(u, w)
            results.append([loss, *torch.autograd.grad(loss, (u, w))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_it_runs_on_the_meta_device():
    u, w = (x.to("meta") for x in parameters(3))
    loss = even_pairs_loss(u, w)
    assert loss.shape == () and loss.device.type == "meta"


ONES = torch.ones(6, dtype=torch.float64)
SQUARE = torch.zeros(6, 6, dtype=torch.float64)


@pytest.mark.parametrize(
    ("argument", "u", "w", "scale", "part"),
    [
        ("u", ONES[:5], SQUARE, 2.0, "[5]"),
        ("u", ONES[:0], SQUARE, 2.0, "[0]"),
        ("u", SQUARE, SQUARE, 2.0, "[6, 6]"),
        ("u", torch.ones(50).double(), torch.zeros(50, 50).double(), 2.0, "1..24"),
        ("u", ONES * torch.nan, SQUARE, 2.0, "nan"),
        ("u", ONES.to_sparse(), SQUARE, 2.0, "Sparse"),
        ("u", ONES.numpy(), SQUARE, 2.0, "ndarray"),
        ("u", ONES.half(), SQUARE, 2.0, "Half"),
        ("u", ONES.long(), SQUARE, 2.0, "Long"),
        ("u", ONES.to(torch.complex128), SQUARE, 2.0, "Complex"),
        ("w", ONES, SQUARE[:5], 2.0, "must be [6, 6], got [5, 6]"),
        ("w", ONES, ONES, 2.0, "must be [6, 6], got [6]"),
        ("w", ONES, SQUARE + torch.inf, 2.0, "inf"),
        ("w", ONES, SQUARE.float(), 2.0, "Float"),
        ("w", ONES, SQUARE.to("meta"), 2.0, "meta"),
        ("w", ONES, None, 2.0, "None"),
        ("attention_scale", ONES, SQUARE, 0.0, "> 0"),
        ("attention_scale", ONES, SQUARE, float("nan"), "nan"),
        ("attention_scale", ONES, SQUARE, "2", "str"),
    ],
)
def test_bad_arguments_are_value_or_type_errors_that_name_them(argument, u, w, scale, part):
    with pytest.raises(
        (ValueError, TypeError), match=rf"^even_pairs_loss: {argument} .*{re.escape(part)}"
    ) as caught:
        even_pairs_loss(u, w, scale)
    assert not isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(("u", "w"), [(ONES[:4], SQUARE), (ONES, SQUARE[:, :4])])
def test_shapes_are_checked_without_data_too(u, w):
    with pytest.raises(ValueError, match=r"^even_pairs_loss: w must be"):
        even_pairs_loss(u.to("meta"), w.to("meta"))
