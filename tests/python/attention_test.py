"""paperlab.ops.attention: values and gradients."""

import math

import pytest
import torch
from attention_definition import (
    Case,
    assert_within_bound,
    by_function,
    by_operator,
    outcome,
    plain,
    random_grads,
)
from paperlab import _core
from paperlab.ops import attention
from torch.nn.functional import scaled_dot_product_attention

OPERATOR = torch.ops.paperlab.attention
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)

CASES = [
    Case(),
    Case(causal=False),
    Case(window=3),
    Case(window=100),
    Case(scale=0.3),
    Case(scale=-0.7),
    Case(scale=0.0),
    Case(queries=7, keys=4),  # the first rows see nothing
    Case(queries=1, keys=33),
    Case(queries=1, keys=1),
    Case(heads=6, kv_heads=1),
    Case(heads=3, kv_heads=3, width=1),
    Case(queries=9, keys=9, width=24),
    Case(queries=3, keys=65, width=80, window=7),
    Case(batch=1, heads=2, kv_heads=1, queries=63, keys=70, width=64),
    Case(batch=1, heads=1, kv_heads=1, queries=3, keys=5, width=256),
    Case(key_start=(2, 0), key_end=(7, 4)),
    Case(key_start=(6, 7)),
    Case(key_end=(0, 1), causal=False),
    Case(key_start=(5, 3), key_end=(2, 3)),  # nothing is left
    Case(key_start=(1, 4), window=2),
]
PREFIX_CASES = [
    Case(keys=9, prefix_heads=2, prefix_length=3, prefix_group=2, window=3),
    Case(keys=9, prefix_heads=4, prefix_length=5, prefix_group=2, window=0, has_prefix_query=True),
    Case(keys=9, prefix_heads=2, prefix_length=4, prefix_group=2, window=2, key_start=(3, 0)),
    Case(keys=9, prefix_heads=2, prefix_length=3, prefix_group=3, window=1, key_end=(5, 9)),
    Case(queries=7, keys=5, prefix_heads=2, prefix_length=0, prefix_group=4, window=2),
    Case(keys=9, prefix_heads=2, prefix_length=4, prefix_group=2, window=3, prefix_kept=1),
    Case(keys=9, prefix_heads=2, prefix_length=2, prefix_group=4, window=1, prefix_overlap=True),
    Case(
        9,
        queries=9,
        keys=9,
        prefix_heads=4,
        prefix_length=2,
        prefix_group=4,
        window=1,
        prefix_kept=1,
        prefix_truncated=True,
    ),
    Case(keys=6, prefix_heads=2, prefix_length=9, prefix_group=2, window=3, num_past=12),
    Case(
        keys=6,
        prefix_heads=2,
        prefix_length=9,
        prefix_group=2,
        window=3,
        num_past=13,
        prefix_kept=2,
        key_start=(3, 15),
        key_end=(19, 17),
    ),
    Case(queries=1, keys=6, prefix_heads=4, prefix_length=5, prefix_group=3, window=2, num_past=9),
    Case(keys=6, window=4, num_past=5),
    Case(keys=6, prefix_heads=2, prefix_length=3, window=2, num_past=5),
    Case(keys=9, prefix_heads=2, prefix_length=2, window=3),
    Case(keys=9, prefix_heads=4, prefix_length=4, window=2, has_prefix_query=True),
    Case(keys=9, prefix_heads=2, prefix_length=20, window=1, key_start=(2, 8)),
    Case(keys=6, prefix_heads=2, prefix_length=0, window=1),
]


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_within_the_bound(case, dtype):
    assert_within_bound(case, dtype, by_function)


@DTYPES
@pytest.mark.parametrize("case", PREFIX_CASES, ids=str)
def test_a_prefix_too(case, dtype):
    assert_within_bound(case, dtype, by_operator)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4], CASES[10]], ids=str)
def test_the_definition_is_scaled_dot_product_attention(case):
    tensors = case.tensors()
    mask = torch.from_numpy(case.visible()[0][0])
    key, value = (
        tensors[n].repeat_interleave(case.heads // case.kv_heads, dim=1) for n in ("key", "value")
    )
    expected = scaled_dot_product_attention(
        tensors["query"], key, value, attn_mask=mask, scale=case.scale
    )
    torch.testing.assert_close(plain(case, tensors)[0], expected, rtol=1e-13, atol=1e-13)


@DTYPES
def test_results_have_the_dtypes_shapes_and_strides_of_the_contract(dtype):
    case = Case()
    tensors = case.tensors(dtype)
    tensors["query"] = tensors["query"].transpose(1, 2).contiguous().transpose(1, 2)
    out, lse = by_function(case, tensors)
    assert torch.equal(out, attention(*tensors.values()))
    assert out.shape == (2, 4, 5, 8) and out.dtype == dtype and out.is_contiguous()
    assert lse.shape == (2, 4, 5) and lse.is_contiguous()
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(
    "case",
    [
        Case(batch=1, heads=2, kv_heads=1, queries=3, keys=5, width=3),
        Case(batch=1, heads=2, kv_heads=2, queries=3, keys=5, width=3, window=2),
        Case(heads=2, queries=2, keys=4, width=2, causal=False, key_start=(1, 0), key_end=(3, 4)),
        Case(batch=1, heads=2, kv_heads=1, queries=1, keys=5, width=3),
        Case(batch=1, kv_heads=1, heads=2, queries=3, keys=2, width=2),
        Case(1, 2, 1, 3, 5, 2, window=1, prefix_heads=1, prefix_length=2, prefix_group=2),
        Case(1, 2, 1, 3, 5, 2, window=1, prefix_heads=2, prefix_length=2, has_prefix_query=True),
        Case(
            1,
            2,
            1,
            3,
            5,
            2,
            window=1,
            prefix_heads=1,
            prefix_length=6,
            prefix_group=2,
            prefix_kept=1,
            prefix_overlap=True,
            num_past=6,
        ),
    ],
    ids=str,
)
def test_gradcheck(case):
    tensors = case.tensors(requires_grad=True)
    names = list(tensors)
    has_keys = case.keys >= case.queries  # -inf has no difference quotient

    def function(*values):
        out, lse = by_operator(case, dict(zip(names, values, strict=True)))
        return (out, lse) if has_keys else out

    assert torch.autograd.gradcheck(function, list(tensors.values()))


def test_the_log_sum_exp_alone_and_the_output_alone_have_gradients():
    case = Case()
    grads = torch.randn(2, 4, 5, 8).double(), torch.randn(2, 4, 5).double()
    zeros = [torch.zeros_like(g) for g in grads]
    for index, chosen in ((0, (grads[0], zeros[1])), (1, (zeros[0], grads[1]))):
        tensors = case.tensors(requires_grad=True)
        result = by_function(case, tensors)[index]
        found = torch.autograd.grad(result, list(tensors.values()), grads[index])
        expected = outcome(case, case.tensors(), by_function, chosen)
        for ours, name in zip(found, tensors, strict=True):
            assert torch.equal(ours, expected[name])


def test_one_gradient_at_a_time():
    case = Case()
    tensors = case.tensors()
    ones = torch.ones(2, 4, 5, 8).double(), torch.ones(2, 4, 5).double()
    expected = outcome(case, tensors, by_function, ones)
    for name in tensors:
        leaf = tensors[name].clone().requires_grad_()
        out, lse = by_function(case, tensors | {name: leaf})
        (out.sum() + lse.sum()).backward()
        assert torch.equal(leaf.grad, expected[name])


def test_a_second_derivative_is_refused():
    q, k, v = Case().tensors(requires_grad=True).values()
    (grad_q,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for paperlab::attention_backward"):
        grad_q.sum().backward()


def test_keys_outside_the_range_are_not_read():
    case = Case(key_start=(2, 1), key_end=(6, 3))
    clean = outcome(
        case, case.tensors(), by_function, (torch.ones(2, 4, 5, 8), torch.ones(2, 4, 5))
    )
    tensors = case.tensors()
    for name in ("key", "value"):
        for b in range(case.batch):
            tensors[name][b, :, : case.key_start[b]] = math.nan
            tensors[name][b, :, case.key_end[b] :] = math.inf
    dirty = outcome(case, tensors, by_function, (torch.ones(2, 4, 5, 8), torch.ones(2, 4, 5)))
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


@pytest.fixture(params=["generic", "avx2", "avx512"])
def isa(request):
    known = ["generic", "avx2", "avx512"]
    if known.index(request.param) > known.index(_core.detected_cpu_isa()):
        pytest.skip("this CPU lacks it")
    _core.set_cpu_isa(request.param)
    yield request.param
    _core.set_cpu_isa("auto")


# Keys that some rows of a tile see and others do not: at the end of what rows see, before a window
# and in a prefix. What is not finite there has the bits of zeros for all who do not see it.
@DTYPES
@pytest.mark.parametrize(
    "case",
    [
        Case(queries=70, keys=75),
        Case(queries=70, keys=75, heads=6, window=20, width=9),
        Case(queries=130, keys=130, kv_heads=4, width=33),
        Case(
            batch=1,
            queries=90,
            keys=90,
            prefix_heads=4,
            prefix_length=20,
            prefix_group=4,
            window=7,
        ),
    ],
    ids=str,
)
def test_keys_that_a_row_does_not_see_are_not_read(case, dtype, isa):
    grads = random_grads(case, dtype)
    for at, bad in ((case.keys - 1, math.nan), (case.keys // 2, math.inf), (11, -math.inf)):
        clean, dirty = case.tensors(dtype), case.tensors(dtype)
        entries = {"key": at, "value": at, "prefix_key": 9, "prefix_value": 9}
        for name, entry in entries.items():
            if name in dirty:
                clean[name][:, :, entry] = 0
                dirty[name][:, :, entry, ::2] = bad
        raw, prefix = case.visible()
        sees = raw[:, :, at] | (prefix[:, :, 9] if case.prefix_heads else False)
        blind = torch.from_numpy(~sees)
        assert blind.any() and not blind.all()
        wanted, found = (outcome(case, x, by_operator, grads) for x in (clean, dirty))
        for name in ("out", "lse", "query"):
            mine, theirs = (x[name].transpose(1, 2)[blind] for x in (found, wanted))
            assert torch.equal(mine, theirs), name
        assert not found["out"].transpose(1, 2)[~blind].isfinite().all()


def test_rows_without_keys_are_zero():
    case = Case(queries=9, keys=4, key_end=(4, 0))
    ones = torch.ones(2, 4, 9, 8), torch.ones(2, 4, 9)
    found = outcome(case, case.tensors(), by_function, ones)
    is_empty = torch.from_numpy(~case.visible()[0].any(axis=-1))
    assert is_empty[0].tolist() == [True] * 5 + [False] * 4 and is_empty[1].all()
    for b in range(2):
        assert (found["out"][b][:, is_empty[b]] == 0).all()
        assert (found["query"][b][:, is_empty[b]] == 0).all()
        assert (found["lse"][b][:, is_empty[b]] == -math.inf).all()
    assert (found["key"][1] == 0).all() and (found["value"][1] == 0).all()


@DTYPES
@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 0},
        {"heads": 0},
        {"heads": 0, "kv_heads": 0},
        {"queries": 0},
        {"keys": 0},
        {"queries": 0, "keys": 0},
        {
            "batch": 0,
            "keys": 9,
            "window": 1,
            "prefix_heads": 2,
            "prefix_length": 8,
            "prefix_group": 1,
        },
        {"keys": 0, "window": 1, "prefix_heads": 2, "prefix_length": 3},
    ],
    ids=str,
)
def test_empty_sizes(sizes, dtype):
    case = Case(**sizes)
    tensors = case.tensors(dtype, requires_grad=True)
    out, lse = by_operator(case, tensors)
    assert out.shape == tensors["query"].shape and (out == 0).all()
    assert lse.shape == out.shape[:3] and (lse == -math.inf).all()
    (out.sum() + lse.sum()).backward()
    assert all((x.grad == 0).all() and x.grad.shape == x.shape for x in tensors.values())


def test_autocast_is_that_of_scaled_dot_product_attention():
    tensors = Case().tensors(torch.float32)
    q, k, v = tensors.values()
    wide = [x.double() for x in (q, k, v)]
    lower = [x.bfloat16() for x in (q, k, v)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention(q, k, v), attention(*lower))
        assert torch.equal(attention(q, lower[1], v), attention(*lower))
        for x in (tensors.values(), wide):
            theirs = scaled_dot_product_attention(*x, enable_gqa=True)
            assert attention(*x).dtype == theirs.dtype
        one = [q[:, :, :1], k, v]
        decoded = torch.ops.paperlab.attention_decode(*one)
        assert decoded[0].dtype == torch.bfloat16 and decoded[1].dtype == torch.float32
        leaf = q.clone().requires_grad_()
        attention(leaf, k, v).sum().backward()
    assert leaf.grad.dtype == torch.float32 and leaf.grad.abs().sum() > 0
    with torch.autocast("cpu", enabled=False):
        assert (
            torch.equal(attention(q, k, v), attention(q, k, v))
            and attention(q, k, v).dtype == q.dtype
        )


def test_the_operators_take_the_keywords_of_the_contract():
    case = Case(queries=1, window=3, scale=0.5, key_start=(1, 0), key_end=(7, 6))
    tensors = case.tensors()
    options = case.options()
    expected = by_function(case, tensors)
    for operator in (OPERATOR, torch.ops.paperlab.attention_decode):
        out, lse = operator(**tensors, **options)
        assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
    grads = torch.randn_like(expected[0]), torch.randn_like(expected[1])
    found = torch.ops.paperlab.attention_backward(
        **tensors,
        **options,
        grad_out=grads[0],
        grad_lse=grads[1],
        out=expected[0],
        lse=expected[1],
    )
    wanted = outcome(case, tensors, by_function, grads)
    assert all(torch.equal(x, wanted[name]) for x, name in zip(found, tensors, strict=False))
    assert len(found) == 6 and all(x.shape == (0,) for x in found[3:])


@pytest.mark.parametrize("width", [8, 64, 80])
def test_the_gradients_of_a_single_query_do_not_depend_on_the_batch(width):
    case = Case(batch=4, heads=8, kv_heads=2, queries=1, keys=500, width=width)
    tensors = case.tensors()
    grads = torch.randn(4, 8, 1, width), torch.randn(4, 8, 1)
    whole = outcome(case, tensors, by_function, grads)
    for b in range(4):
        row = {name: x[b : b + 1] for name, x in tensors.items()}
        alone = outcome(case, row, by_function, tuple(grad[b : b + 1] for grad in grads))
        assert all(torch.equal(alone[name], whole[name][b : b + 1]) for name in whole)


def test_decode_has_gradients_too():
    case = Case(queries=1)
    ones = torch.ones(2, 4, 1, 8), torch.ones(2, 4, 1)
    expected = outcome(case, case.tensors(), by_function, ones)
    found = outcome(
        case, case.tensors(), lambda _, x: torch.ops.paperlab.attention_decode(**x), ones
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_inference_mode():
    case = Case()
    expected = by_function(case, case.tensors())
    with torch.inference_mode():
        found = by_function(case, case.tensors())
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
