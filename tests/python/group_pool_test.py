"""paperlab::group_pool: values and gradients by LibTorch's operators, opcheck, errors, autocast."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

POOL = torch.ops.paperlab.group_pool
KINDS = ("attention", "mean", "max")


def tensors(
    heads=4, kv_heads=2, tokens=14, queries=14, width=5, dtype=torch.float64, requires_grad=True
):
    generator = torch.Generator().manual_seed(3)
    shapes = (heads, queries), (kv_heads, tokens), (kv_heads, tokens)
    return [
        torch.randn((2, h, t, width), generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_(requires_grad)
        for h, t in shapes
    ]


def definition(query, key, value, group, first=0, start=(0, 0), kind="attention", per_kv=False):
    """Pooling group by group, zeros where a row has no such group."""
    count = max(0, key.shape[2] - first) // group
    heads = query.shape[1] if kind == "attention" and not per_kv else key.shape[1]
    rows = []
    for b in range(2):
        pooled = []
        for head in range(heads):
            kv = head // (heads // key.shape[1])
            share = query.shape[1] // heads
            for c in range(count):
                t = start[b] + first + c * group
                if t + group > key.shape[2]:
                    pooled.append(torch.zeros(2, key.shape[3], dtype=key.dtype))
                    continue
                k, v = key[b, kv, t : t + group], value[b, kv, t : t + group]
                if kind == "max":
                    pooled.append(torch.stack([k.max(0).values, v.max(0).values]))
                    continue
                at = t + group - 1 - (key.shape[2] - query.shape[2])
                q = query[b, head * share : (head + 1) * share, at].mean(0)
                logits = k @ q / key.shape[3] ** 0.5
                w = torch.full((group,), 1 / group, dtype=k.dtype)
                w = torch.softmax(logits, 0) if kind == "attention" else w
                pooled.append(torch.stack([w @ k, w @ v]))
        stacked = torch.stack(pooled) if pooled else torch.zeros(0, 2, key.shape[3])
        rows.append(stacked.reshape(heads, count, 2, key.shape[3]))
    both = torch.stack(rows)
    return both[..., 0, :], both[..., 1, :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_kv", [False, True])
@pytest.mark.parametrize("start", [None, (0, 4), (14, 3)])
@pytest.mark.parametrize("first", [0, 2])
def test_values_and_gradients_are_those_of_the_definition(kind, per_kv, start, first):
    ours, theirs = tensors(), tensors()
    starts = None if start is None else torch.tensor(start)
    found = POOL(*ours, 3, first, starts, kind, per_kv)
    wanted = definition(*theirs, 3, first, start or (0, 0), kind, per_kv)
    grads = [torch.randn_like(x) for x in found]
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)  # float64, sums of few terms
    torch.autograd.backward(found, grads)
    torch.autograd.backward(wanted, grads)
    for x, y in zip(ours, theirs, strict=True):
        if kind == "attention" or x is not ours[0]:
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-13)
        else:
            assert torch.equal(x.grad, torch.zeros_like(x))  # it does not matter


def test_the_last_queries_are_enough():
    query, key, value = tensors(requires_grad=False)
    whole = POOL(query, key, value, 4)
    part = POOL(query[:, :, 3:], key, value, 4)
    assert all(torch.equal(x, y) for x, y in zip(whole, part, strict=True))
    for kind in KINDS[1:]:  # need none
        assert POOL(None, key, value, 4, kind=kind)[0].shape == (2, 2, 3, 5)


def test_one_gradient_at_a_time_and_no_second():
    query, key, value = tensors()
    core_key, core_value = POOL(query, key, value, 3)
    (found,) = torch.autograd.grad(core_value.sum(), value, retain_graph=True)
    torch.testing.assert_close(found.sum(), torch.tensor(2.0 * 4 * 4 * 5, dtype=torch.float64))
    (grad,) = torch.autograd.grad(core_key.square().sum(), key, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), key)


def test_views_give_the_same_bits():
    query, key, value = tensors(dtype=torch.float32, requires_grad=False)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key)]
    views.append(value.mT.contiguous().mT)
    for x, y in zip(POOL(*views, 3), POOL(query, key, value, 3), strict=True):
        assert torch.equal(x, y) and x.is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [14, 2])
def test_opcheck(kind, dtype, tokens):
    start = torch.tensor([0, 1])
    inputs = tensors(tokens=tokens, queries=tokens, dtype=dtype)
    torch.library.opcheck(POOL.default, (*inputs, 3, 0, start, kind))
    core = [torch.ones_like(x) for x in POOL(*inputs, 3, 0, start, kind)]
    values = [x.detach() for x in inputs]
    torch.library.opcheck(
        torch.ops.paperlab.group_pool_backward.default, (*core, *values, 3, 0, start, kind)
    )


def test_it_compiles_for_many_sizes():
    compiled = torch.compile(
        lambda *x: POOL(*x, 3)[0].sum(), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for tokens in (14, 19, 30):
        inputs = tensors(tokens=tokens, queries=tokens)
        value = compiled(*inputs)
        torch.testing.assert_close(value, POOL(*inputs, 3)[0].sum())
        value.backward()
        assert inputs[1].grad.abs().sum() > 0


def test_autocast_lowers_all_but_float64():
    for dtype, wanted in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        inputs = tensors(dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            core_key, _ = POOL(*inputs, 3)
        assert core_key.dtype == wanted
        core_key.float().sum().backward()
        assert inputs[1].grad.dtype == dtype


QUERY, KEY, VALUE = tensors(dtype=torch.float32, requires_grad=False)
BAD = [
    ("kind", {"kind": "sum"}, 'got "sum"'),
    ("group", {"group": 0}, ">= 1, got 0"),
    ("first", {"first": -1}, ">= 0, got -1"),
    ("scale", {"scale": float("nan")}, "finite, got nan"),
    ("key", {"key": KEY[0]}, "[B, G, S, D] with D in 1..256, got [2, 14, 5]"),
    ("key", {"key": KEY.half()}, "float32, float64 or bfloat16, got Half"),
    ("value", {"value": VALUE[:, :, 1:]}, "[2, 2, 14, 5], got [2, 2, 13, 5]"),
    ("value", {"value": VALUE.double()}, "of dtype Float, got Double"),
    ("query", {"query": None}, "a tensor, got none"),
    ("query", {"query": QUERY.double()}, "of dtype Float, got Double"),
    ("query", {"query": QUERY[:, :3]}, "H a multiple of key's 2 heads"),
    ("query", {"query": QUERY[..., :4]}, "[2, H, T, 5] with T <= 14, got [2, 4, 14, 4]"),
    ("query", {"query": torch.ones(2, 4, 15, 5)}, "T <= 14"),
    ("start", {"start": torch.zeros(3, dtype=torch.int64)}, "[2], got [3]"),
    ("start", {"start": torch.zeros(2)}, "of dtype Long, got Float"),
]
BAD_VALUES = [
    ("start", {"start": torch.tensor([0, 15])}, "0..14, got 15"),
    ("query", {"query": QUERY[:, :, 6:]}, "at least 12 tokens, got 8"),
]


def assert_refused(function, name, argument, part):
    with pytest.raises((ValueError, TypeError)) as caught:
        function()
    message = str(caught.value).splitlines()[0]
    assert re.match(rf"{name}: {argument} must ", message) and part in message, message


@pytest.mark.parametrize(("argument", "given", "part"), BAD + BAD_VALUES)
def test_bad_arguments_are_refused(argument, given, part):
    options = {"query": QUERY, "key": KEY, "value": VALUE, "group": 3} | given
    assert_refused(lambda: POOL(**options), "group_pool", argument, part)
    core = torch.ones(2, 4, 4, 5)
    backward = torch.ops.paperlab.group_pool_backward
    assert_refused(
        lambda: backward(grad_core_key=core, grad_core_value=core, **options),
        "group_pool_backward",
        argument,
        part,
    )


@pytest.mark.parametrize(("argument", "given", "part"), BAD)
def test_tensors_without_data_are_refused_too(argument, given, part):
    options = {"query": QUERY, "key": KEY, "value": VALUE, "group": 3} | given
    with FakeTensorMode() as mode:
        fake = {
            name: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x
            for name, x in options.items()
        }
        assert_refused(lambda: POOL(**fake), "group_pool", argument, part)


def test_gradients_of_the_wrong_shape_are_refused():
    core = torch.ones(2, 4, 4, 5)
    for name in ("grad_core_key", "grad_core_value"):
        given = {"grad_core_key": core, "grad_core_value": core} | {name: core[:, :2]}
        assert_refused(
            lambda given=given: torch.ops.paperlab.group_pool_backward(
                **given, query=QUERY, key=KEY, value=VALUE, group=3
            ),
            "group_pool_backward",
            name,
            "[2, 4, 4, 5], got [2, 2, 4, 5]",
        )
