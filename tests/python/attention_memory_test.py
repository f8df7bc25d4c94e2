"""paperlab.ops.attention: views, aliasing, threads, memory."""

import math

import pytest
import torch
from attention_definition import Case, by_function, by_operator, outcome
from paperlab.ops import attention

OPERATOR = torch.ops.paperlab.attention
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),  # [B, T, H, D]
        lambda x: x.mT.contiguous().mT,  # the last dimension is not contiguous
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        lambda x: torch.cat([x[..., :1], x], dim=-1)[..., 1:],  # of broken alignment
        lambda x: torch.view_as_complex(torch.stack([x, -x], -1).double()).conj().imag.to(x.dtype),
    ],
    ids=["BTHD", "transposed", "strided", "shifted", "negated"],
)
def test_views_give_the_same_bits(view, dtype):
    case = Case(key_start=(1, 0), width=16)
    ones = torch.ones(2, 4, 5, 16), torch.ones(2, 4, 5)
    tensors = case.tensors(dtype)
    expected = outcome(case, tensors, by_function, ones)
    found = outcome(case, tensors, lambda c, x: by_function(c, {n: view(x[n]) for n in x}), ones)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_view_with_a_lazy_sign_is_read_rightly():
    case = Case()
    tensors = case.tensors()
    lazy = torch.view_as_complex(torch.stack([tensors["key"]] * 2, -1)).conj().imag
    assert lazy.is_neg()
    expected = by_function(case, tensors | {"key": -tensors["key"]})
    assert torch.equal(by_function(case, tensors | {"key": lazy})[0], expected[0])


def test_expanded_inputs_and_gradients():
    case = Case(heads=2, kv_heads=2, queries=3, keys=4, width=4, key_start=(1, 1))
    small = {"query": (1, 2, 1, 4), "key": (2, 1, 4, 1), "value": (1, 1, 1, 1)}
    shapes = {name: x.shape for name, x in case.tensors().items()}
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in small.values()]
    start = torch.tensor([1]).expand(2)

    def function(*values):
        x = [value.expand(shapes[name]) for name, value in zip(small, values, strict=True)]
        return attention(*x, key_start=start)

    dense = [x.expand(s).contiguous() for x, s in zip(leaves, shapes.values(), strict=True)]
    assert torch.equal(function(*leaves), attention(*dense, key_start=start.contiguous()))
    assert torch.autograd.gradcheck(function, leaves)
    function(*leaves).sum().backward()  # the gradient of the sum is expanded
    assert all(x.grad is not None for x in leaves)


def test_inputs_stay_and_results_are_new():
    case = Case(key_start=(0, 0), key_end=(7, 7))
    tensors = case.tensors()
    options = case.options()
    inputs = [*tensors.values(), options["key_start"], options["key_end"]]
    before = [x.clone() for x in inputs]
    results = attention(*tensors.values(), **options, return_lse=True)
    grads = torch.ops.paperlab.attention_backward(
        results[0], results[1], *tensors.values(), *results, **options
    )
    new = [x for x in (*results, *grads) if x.numel()]
    addresses = {x.untyped_storage().data_ptr() for x in (*inputs, *new)}
    assert len(addresses) == len(inputs) + len(new)
    kept = [x.clone() for x in results]
    for x in grads:
        x.fill_(math.nan)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(results, kept, strict=True))


def test_an_input_changed_before_the_backward_pass_is_noticed():
    q, k, v = Case().tensors(requires_grad=True).values()
    start = torch.zeros(2, dtype=torch.int64)
    out = attention(q, k, v, key_start=start)
    start.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restored_threads")
@DTYPES
@pytest.mark.parametrize(
    "case",
    [
        Case(queries=65, keys=130, width=16, window=50, key_start=(3, 0)),
        Case(batch=1, heads=1, kv_heads=1, queries=130, keys=130, width=16),
        Case(queries=1, keys=700, width=16),
        Case(3, 4, 2, 40, 70, 16, window=9, prefix_heads=2, prefix_length=16, prefix_group=4),
    ],
    ids=str,
)
def test_the_bits_do_not_depend_on_the_number_of_threads(case, dtype):
    generator = torch.Generator().manual_seed(1)
    shape = (case.batch, case.heads, case.queries, case.width)
    grads = torch.randn(shape, generator=generator), torch.randn(shape[:3], generator=generator)
    tensors = case.tensors(dtype)
    results = []
    for n in (1, 2, 3, 1):
        torch.set_num_threads(n)
        results.append(outcome(case, tensors, by_operator, grads))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@DTYPES
@pytest.mark.parametrize("keys", [1, 63, 300, 2100])
def test_with_one_query_a_rows_bits_do_not_depend_on_the_batch(keys, dtype):
    case = Case(batch=5, queries=1, keys=keys, width=16)
    tensors = case.tensors(dtype)
    out, lse = by_function(case, tensors)
    for b in range(case.batch):
        row = {name: x[b : b + 1] for name, x in tensors.items()}
        for operator in (OPERATOR, torch.ops.paperlab.attention_decode):
            alone = operator(**row)
            assert torch.equal(alone[0][0], out[b]) and torch.equal(alone[1][0], lse[b])


def test_memory_of_a_forward_and_backward_pass(run_python):
    code = """
import torch
from paperlab.ops import attention

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(field))

def step(x):
    attention(*x).backward(torch.ones(x[0].shape))

step([torch.ones(1, 1, 3, 64, requires_grad=True) for _ in range(3)])  # loads what it needs
inputs = [torch.randn(1, 8, 4096, 64, requires_grad=True) for _ in range(3)]
before = status("VmRSS")
step(inputs)
print(status("VmHWM") - before)
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= 256
