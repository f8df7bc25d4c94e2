"""paperlab.cca.baselines against their plain definitions."""

import cca_definition as definition
import pytest
import torch
from cca_definition import Case
from paperlab import cca
from paperlab.cca import baselines

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16

# Name, arguments, what they are for the definition.
FUNCTIONS = [
    ("full", {}, ()),
    ("sliding_window", {"window": 1}, (1,)),
    ("sliding_window", {"window": 6}, (6,)),
    ("sliding_window", {"window": 10**9}, (10**9,)),
    ("streaming_llm", {"sinks": 2, "recent": 5}, (2, 5, 10000.0)),
    ("streaming_llm", {"sinks": 3, "recent": 0, "rope_base": 50.0}, (3, 0, 50.0)),
    ("streaming_llm", {"sinks": 0, "recent": 4}, (0, 4, 10000.0)),
    ("streaming_llm", {}, (4, 512, 10000.0)),
    ("lm_infinite", {"global_tokens": 2, "local": 5, "limit": 5}, (2, 5, 5, 10000.0)),
    (
        "lm_infinite",
        {"global_tokens": 3, "local": 4, "limit": 9, "rope_base": 7.0},
        (3, 4, 9, 7.0),
    ),
    ("lm_infinite", {"global_tokens": 0, "local": 1, "limit": 0}, (0, 1, 0, 10000.0)),
    ("lm_infinite", {"global_tokens": 2, "local": 4}, (2, 4, 4096, 10000.0)),
    ("lm_infinite", {}, (10, 4096, 4096, 10000.0)),
    ("a_shape", {"initial": 3, "local": 5}, (3, 5)),
    ("a_shape", {"initial": 0, "local": 2}, (0, 2)),
    ("a_shape", {"initial": 99, "local": 1}, (99, 1)),
    ("vertical_slash", {"vertical": 0, "slash": 0}, (0, 0)),
]
SHAPES = [
    Case(length=24),
    Case(length=1, heads=1, kv_heads=1),
    Case(length=31, heads=6, kv_heads=1, width=6),
]
BOUNDS = {F64: 1e-12, F32: 2e-5, BF16: 5e-2}  # rotation rounds queries and keys to bfloat16


def outcome(function, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, lse = function(*leaves)
    generator = torch.Generator().manual_seed(3)
    grads = [torch.randn(x.shape, generator=generator, dtype=F64) for x in (out, lse)]
    loss = [grad.to(x.dtype) for grad, x in zip(grads, (out, lse), strict=True)]
    return [out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, loss)]


def outcome_of_definition(name, plain, inputs):
    return outcome(lambda *x: getattr(definition, name)(*x, *plain), [x.double() for x in inputs])


def assert_is_the_definition(name, options, plain, inputs, dtype, exact=None):
    exact = exact or outcome_of_definition(name, plain, inputs)
    function = getattr(baselines, name)
    actual = outcome(lambda *x: function(*x, **options, return_lse=True), inputs)
    assert [x.dtype for x in actual] == [dtype, F64 if dtype == F64 else F32, *[dtype] * 3]
    for ours, theirs in zip(actual, exact, strict=True):
        assert ours.shape == theirs.shape
        error = (ours.double() - theirs).abs().max()
        assert error <= BOUNDS[dtype] * max(1.0, theirs.abs().max())
    assert torch.equal(function(*inputs, **options), actual[0])


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "options", "plain"), FUNCTIONS)
def test_out_lse_and_gradients_are_those_of_the_definition(name, options, plain, shape, dtype):
    assert_is_the_definition(name, options, plain, shape.tensors(dtype), dtype)


@pytest.mark.parametrize(("name", "options", "plain"), FUNCTIONS)
def test_empty_inputs(name, options, plain):
    for shape in (Case(length=0), Case(batch=0), Case(heads=0, kv_heads=0)):
        leaves = shape.tensors(requires_grad=True)
        out, lse = getattr(baselines, name)(*leaves, **options, return_lse=True)
        assert out.shape == leaves[0].shape
        assert lse.shape == leaves[0].shape[:3]
        out.sum().backward()
        assert all(x.grad.shape == x.shape for x in leaves)


@pytest.mark.parametrize(("sinks", "recent"), [(2, 5), (4, 1), (0, 3), (3, 0)])
def test_streaming_llm_is_what_its_cache_gives(sinks, recent):
    inputs = Case(length=30).tensors()
    out = baselines.streaming_llm(*inputs, sinks, recent)
    wanted = definition.streaming_llm_by_cache(*inputs, sinks, recent, 10000.0)
    assert torch.allclose(out, wanted)


def test_long_windows_are_full_attention():
    q, k, v = Case(length=40).tensors()
    full = baselines.full(q, k, v)
    position = torch.arange(40)
    rotated = [definition.rotate(x, position) for x in (q, k)]
    assert torch.allclose(baselines.streaming_llm(q, k, v), baselines.full(*rotated, v))
    assert torch.allclose(baselines.lm_infinite(q, k, v), baselines.full(*rotated, v))
    assert torch.allclose(baselines.sliding_window(q, k, v, 40), full)
    assert torch.allclose(baselines.a_shape(q, k, v, 0, 40), full)
    assert torch.allclose(baselines.a_shape(q, k, v, 40, 1), full)
    assert torch.allclose(baselines.vertical_slash(q, k, v, 0, 0), full)
    assert torch.allclose(cca.attention(q, k, v, 4, 40), full)


def test_the_last_row_of_a_window_is_core_context_attention_without_core_tokens():
    q, k, v = Case(length=28, heads=4, kv_heads=4).tensors()
    out = baselines.sliding_window(q, k, v, 4)[:, :, -1]
    raw = cca.attention(q[:, :, -4:], k[:, :, -4:], v[:, :, -4:], 4, 4)[:, :, -1]
    assert torch.allclose(out, raw)


@pytest.mark.parametrize(
    ("case", "vertical", "slash"),
    [
        (Case(batch=1, heads=2, kv_heads=1, length=330, width=4), 40, 103),
        (Case(batch=2, heads=2, kv_heads=2, length=257, width=3), 0, 110),
    ],
    ids=str,
)
def test_vertical_slash(case, vertical, slash):
    q, k, v = case.tensors(factor=3)  # far from uniform, so that heads choose differently
    columns, diagonals = definition.vertical_slash_choice(q, k, vertical, slash)
    _, _, of_column, of_diagonal = torch.ops.paperlab.cca_vertical_slash(q, k, v, vertical, slash)
    assert [set(x) for x in of_column.flatten(0, 1).tolist()] == columns
    assert [set(x) for x in of_diagonal.flatten(0, 1).tolist()] == diagonals
    plain, options = (vertical, slash), {"vertical": vertical, "slash": slash}
    inputs = [x.float() for x in (q, k, v)]
    exact = outcome_of_definition("vertical_slash", plain, inputs)  # seconds
    for dtype in (F64, F32):
        same = [x.to(dtype) for x in inputs]
        assert_is_the_definition("vertical_slash", options, plain, same, dtype, exact)


def test_vertical_slash_in_bfloat16_and_with_all_tokens():
    inputs = Case(batch=1, length=300, width=16).tensors(BF16)
    out, lse = baselines.vertical_slash(*inputs, 50, 120, return_lse=True)
    assert (out.dtype, lse.dtype) == (BF16, F32)
    everything = baselines.vertical_slash(*inputs, 300, 0)
    full = baselines.full(*(x.double() for x in inputs))
    assert (everything.double() - full).abs().max() < 2e-2
    everything = baselines.vertical_slash(*inputs, 0, 300)
    assert (everything.double() - full).abs().max() < 2e-2


def test_finite_differences():
    inputs = Case(batch=1, heads=2, kv_heads=1, length=9, width=2).tensors(requires_grad=True)
    for function in (
        lambda *x: baselines.streaming_llm(*x, 2, 3, return_lse=True),
        lambda *x: baselines.lm_infinite(*x, 2, 3, 3, return_lse=True),
        lambda *x: baselines.a_shape(*x, 2, 3, return_lse=True),
    ):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_the_same_bits_for_any_number_of_threads():
    inputs = Case(batch=1, length=400, width=32).tensors(F32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(
                [
                    *outcome(
                        lambda *x: baselines.streaming_llm(*x, 4, 64, return_lse=True), inputs
                    ),
                    *outcome(
                        lambda *x: baselines.vertical_slash(*x, 30, 120, return_lse=True), inputs
                    ),
                ]
            )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_vertical_slash_under_autocast():
    case = Case(length=90, heads=4, kv_heads=2)
    for dtype, lower in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        inputs = case.tensors(dtype)
        wanted = [x.to(lower, copy=True).requires_grad_() for x in inputs]
        leaves = [x.clone().requires_grad_() for x in inputs]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = baselines.vertical_slash(*leaves, 8, 16)
            out.double().square().sum().backward()
        assert out.dtype == lower
        exact = baselines.vertical_slash(*wanted, 8, 16)
        exact.double().square().sum().backward()
        assert torch.equal(out, exact)
        for leaf, like in zip(leaves, wanted, strict=True):
            assert leaf.grad.dtype == dtype
            assert torch.equal(leaf.grad, like.grad.to(dtype))
