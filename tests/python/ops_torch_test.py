"""The operators from LibTorch's operations (set_backend("torch")) on CPU tensors: the tests of our
kernels, and what these leave open: float16, values that nobody may see, chunks, autocast."""

import dataclasses
import math

import attention_compile_test
import attention_test
import linear_cross_entropy_test
import linear_test
import one_layer
import ops_test
import paperlab.ops as ops
import pytest
import rms_norm_test
import rope_test
import swiglu_test
import torch
from attention_definition import Case, assert_within_bound, by_operator, outcome

HALF, LOW, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
OPS = torch.ops.paperlab


@pytest.fixture(autouse=True)
def torch_backend():
    before = ops.get_backend()
    ops.set_backend("torch")
    yield
    ops.set_backend(before)


test_rms_norm = rms_norm_test.test_values_and_gradients_are_those_of_the_formula
test_rms_norm_gradcheck = rms_norm_test.test_gradcheck
test_rms_norm_opcheck = rms_norm_test.test_opcheck
test_rms_norm_compiles = rms_norm_test.test_compiles_as_one_graph
test_rms_norm_of_views = rms_norm_test.test_strided_inputs_are_neither_changed_nor_aliased
test_swiglu = swiglu_test.test_values_and_gradients_are_those_of_the_formula
test_swiglu_gradcheck_and_opcheck = swiglu_test.test_gradcheck_and_opcheck
test_swiglu_compiles = swiglu_test.test_compiles_as_one_graph
test_rope = rope_test.test_values_and_gradients_are_those_of_the_formula
test_rope_gradcheck_and_opcheck = rope_test.test_gradcheck_and_opcheck
test_rope_compiles = rope_test.test_compiles_as_one_graph
test_rope_of_views = rope_test.test_strided_inputs_give_the_same_bits_and_stay_as_they_are
test_even_pairs_loss = ops_test.test_loss_and_gradients_follow_the_definition
test_even_pairs_loss_gradcheck = ops_test.test_gradcheck
test_even_pairs_loss_opcheck = ops_test.test_opcheck
test_even_pairs_loss_backward_opcheck = ops_test.test_opcheck_of_the_backward_operator
test_even_pairs_loss_compiles = ops_test.test_it_compiles_as_one_graph
test_even_pairs_loss_in_float32 = ops_test.test_float32_accumulates_in_float64
test_linear_gradcheck = linear_test.test_gradcheck_of_both_orders
test_linear_cross_entropy_gradcheck = linear_cross_entropy_test.test_gradcheck
test_linear_cross_entropy_opcheck = linear_cross_entropy_test.test_opcheck
test_linear_cross_entropy_compiles = linear_cross_entropy_test.test_compiles_as_one_graph
test_linear_cross_entropy_without_rows = linear_cross_entropy_test.test_no_rows
test_linear_cross_entropy_all_ignored = linear_cross_entropy_test.test_all_ignored
test_attention = attention_test.test_values_and_gradients_are_within_the_bound
test_attention_with_a_prefix = attention_test.test_a_prefix_too
test_attention_gradcheck = attention_test.test_gradcheck
test_attention_of_empty_sizes = attention_test.test_empty_sizes
test_attention_reads_no_key_outside = attention_test.test_keys_outside_the_range_are_not_read
test_attention_of_rows_without_keys = attention_test.test_rows_without_keys_are_zero
test_attention_backward_opcheck = attention_compile_test.test_opcheck_of_the_backward_operator
test_attention_of_views_opcheck = attention_compile_test.test_opcheck_of_views
test_attention_of_one_query = (
    attention_test.test_the_gradients_of_a_single_query_do_not_depend_on_the_batch
)
test_attention_decode_opcheck = attention_compile_test.test_opcheck_of_decode
test_attention_compiles = attention_compile_test.test_it_compiles_as_one_graph


def random(*shape, dtype=DOUBLE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype)


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE, LOW, HALF])
def test_linear_cross_entropy(dtype):
    tensors = [random(3, 9, 33, dtype=dtype, seed=1), random(70, 33, dtype=dtype)]
    for options in ({"reduction": "sum"}, {"z_loss": 0.02}, {"ignore_index": 3}):
        target = linear_cross_entropy_test.targets(
            (3, 9), 70, ignore_index=options.get("ignore_index", -100)
        )
        grads = {}
        for kind in (dtype, DOUBLE):
            x, weight = (tensor.to(kind).requires_grad_() for tensor in tensors)
            loss = ops.linear_cross_entropy(x, weight, target, **options)
            grads[kind] = [loss.detach(), *torch.autograd.grad(loss, (x, weight))]
        wanted = linear_cross_entropy_test.formula(
            *(tensor.double() for tensor in tensors), target, **options
        )
        torch.testing.assert_close(grads[DOUBLE][0], wanted)
        # Sums of some hundred roundings; a half type rounds the gradients once more, and, as our
        # kernels do, those of logits before they are multiplied: half an ulp of each term.
        is_half = dtype in (LOW, HALF)
        eps = torch.finfo(FLOAT if is_half else dtype).eps
        sums, _ = linear_cross_entropy_test.norms(tensors, target, torch.ones(()), **options)
        for index, (got, exact) in enumerate(zip(grads[dtype], grads[DOUBLE], strict=True)):
            tolerance = 100 * eps * exact.abs().max() + torch.finfo(got.dtype).eps * exact.abs()
            if is_half and index > 0:
                tolerance = tolerance + 1.01 * torch.finfo(dtype).eps / 2 * sums[index]
            assert ((got.double() - exact).abs() <= tolerance).all()


def test_linear_cross_entropy_refuses_targets():
    x, weight = random(2, 4), random(5, 4)
    for target in (5, -1):
        with pytest.raises(ValueError, match=f"target must be 0..4 or ignore_index, got {target}"):
            ops.linear_cross_entropy(x, weight, torch.tensor([0, target]))


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE, LOW, HALF])
def test_linear_is_torchs(dtype):
    x, weight, bias = (random(*s, dtype=dtype) for s in ((2, 3, 8), (5, 8), (5,)))
    y = ops.linear(x.transpose(0, 1), weight, bias)
    assert y.is_contiguous() and y.dtype == dtype
    assert torch.equal(y, torch.nn.functional.linear(x.transpose(0, 1), weight, bias))


def test_swiglu_of_views():
    x = random(2, 3, 20, dtype=FLOAT)
    before = x.clone()
    gate, up = x.chunk(2, -1)
    y = ops.swiglu(gate.transpose(0, 2), up.transpose(0, 2))
    assert y.is_contiguous() and torch.equal(x, before)
    wanted = ops.swiglu(gate.contiguous(), up.contiguous())
    torch.testing.assert_close(y.transpose(0, 2), wanted)


@pytest.mark.parametrize("residual", [False, True])
def test_half_precision_rounds_once(residual):
    x, weight, other = (
        random(*s, dtype=HALF, seed=i) for i, s in enumerate(((5, 33), (33,), (5, 33)))
    )
    y = ops.rms_norm(x, weight, residual=other if residual else None)
    y, total = y if residual else (y, x)
    wanted, _ = rms_norm_test.definition(total.double(), weight.double())
    torch.testing.assert_close(y.double(), wanted, rtol=2.0**-11 + 1e-6, atol=1e-7)
    wide = ops.swiglu(x.double(), other.double())
    torch.testing.assert_close(ops.swiglu(x, other).double(), wide, rtol=2.0**-11 + 1e-6, atol=1e-7)


# Beside the kernels' shapes: more than one row of a chunk's rows, logits that no exp holds.
@pytest.mark.parametrize("spread", [1.0, 3000.0])
@pytest.mark.parametrize("max_length", [1, 2, 13])
def test_even_pairs_loss_is_the_kernels(max_length, spread):
    u, w = ops_test.parameters(max_length)
    results = {}
    for backend in ("kernels", "torch"):
        ops.set_backend(backend)
        leaves = u.clone().requires_grad_(), (spread * w).requires_grad_()
        loss = ops.even_pairs_loss(*leaves, 0.7)
        results[backend] = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    for found, wanted in zip(results["torch"], results["kernels"], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_even_pairs_loss_refuses_values():
    u, w = ops_test.parameters(2)
    with pytest.raises(ValueError, match=r"^even_pairs_loss: u must be finite"):
        ops.even_pairs_loss(u * math.nan, w)
    with pytest.raises(ValueError, match=r"^even_pairs_loss: w must be finite"):
        ops.even_pairs_loss(u, w + math.inf)


HALF_CASES = [
    Case(),
    Case(window=3, key_start=(1, 4)),
    Case(keys=9, prefix_heads=4, prefix_length=5, prefix_group=2, window=0, has_prefix_query=True),
    Case(queries=1, keys=33),
]


@pytest.mark.parametrize("case", HALF_CASES, ids=str)
def test_attention_in_half_precision(case):
    assert_within_bound(case, HALF, by_operator)


# 2^24 logits a chunk: three chunks, and the window's keys alone in each.
@pytest.mark.parametrize(
    "case",
    [
        Case(batch=1, heads=8, kv_heads=4, queries=1500, keys=2000, width=4),
        Case(batch=1, heads=8, kv_heads=4, queries=6000, keys=6100, width=2, window=200),
        Case(
            batch=1,
            heads=8,
            kv_heads=4,
            queries=3000,
            keys=3000,
            width=2,
            window=100,
            prefix_group=7,
            prefix_heads=4,
            prefix_length=420,
            prefix_kept=3,
            prefix_overlap=True,
        ),
    ],
    ids=str,
)
def test_attention_in_chunks_is_the_kernels(case):
    tensors = case.tensors(FLOAT)
    grads = random(1, 8, case.queries, case.width), random(1, 8, case.queries, seed=1)
    found = outcome(case, tensors, by_operator, grads)
    ops.set_backend("kernels")
    wanted = outcome(case, tensors, by_operator, grads)
    for name, x in wanted.items():  # both within a sum of a few thousand roundings
        scale = x.abs().max()
        assert (found[name] - x).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("bound", ["key_start", "key_end"])
def test_attention_refuses_ranges(bound):
    tensors = Case().tensors()
    for value in (-1, 8):
        with pytest.raises(ValueError, match=rf"^attention: {bound} must be in 0..7, got {value}"):
            OPS.attention(**tensors, **{bound: torch.tensor([0, value])})


# Odd sizes: rows of a batch begin at other places of a cache line.
@pytest.mark.parametrize("dtype", [FLOAT, LOW, HALF, DOUBLE], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(batch=5, heads=7, kv_heads=1, queries=1, keys=333, width=33),
        Case(batch=4, queries=1, keys=70, width=5, window=9, key_start=(0, 60, 3, 69)),
        Case(batch=3, queries=1, keys=61, width=7, window=4, prefix_heads=2, prefix_length=3),
    ],
    ids=str,
)
def test_the_bits_of_a_single_query_do_not_depend_on_the_batch(case, dtype):
    tensors = case.tensors(dtype)
    grads = random(case.batch, case.heads, 1, case.width), random(case.batch, case.heads, 1)
    whole = outcome(case, tensors, by_operator, grads)
    for b in range(case.batch):
        start = case.key_start and case.key_start[b : b + 1]
        row = {name: x[b : b + 1] for name, x in tensors.items()}
        one = dataclasses.replace(case, batch=1, key_start=start)
        alone = outcome(one, row, by_operator, tuple(grad[b : b + 1] for grad in grads))
        assert all(torch.equal(alone[name], whole[name][b : b + 1]) for name in whole)


# 2^13 words of the vocabulary at a time: three parts, the last one short.
@pytest.mark.parametrize("dtype", [FLOAT, LOW])
def test_linear_cross_entropy_of_a_large_vocabulary(dtype):
    x, weight = random(9, 5, dtype=dtype), random(17000, 5, dtype=dtype, seed=1)
    bias = random(17000, dtype=dtype, seed=2)
    target = torch.tensor([0, 8191, 8192, 16383, 16384, 16999, -100, 5, 9000])
    found = {}
    for backend in ("kernels", "torch"):
        ops.set_backend(backend)
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        loss = ops.linear_cross_entropy(*leaves[:2], target, bias=leaves[2], z_loss=0.01)
        found[backend] = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    for got, wanted in zip(found["torch"], found["kernels"], strict=True):
        # Sums of 17000 terms are off by about the root of so many roundings; the kernel multiplies
        # gradients of logits as bfloat16 numbers where the inputs are.
        roundings = 4 * math.sqrt(17000) * torch.finfo(FLOAT).eps
        share = roundings if dtype == FLOAT or got.dtype == FLOAT else 2.0**-7
        assert (got - wanted).abs().max() <= share * wanted.abs().max()


@pytest.mark.parametrize("start", [-1, 8])
def test_group_pool_refuses_starts(start):
    for backend in ("kernels", "torch"):
        ops.set_backend(backend)
        x, starts = random(2, 2, 7, 4), torch.tensor([0, start])
        with pytest.raises(ValueError, match=f"^group_pool: start must be in 0..7, got {start}"):
            OPS.group_pool(x, x, x, 2, 0, starts)
        with pytest.raises(ValueError, match="at least 6 tokens, got 3"):
            OPS.group_pool(x[:, :, 4:], x, x, 2, 0, torch.tensor([6, 0]))


# Rows before the first key and keys that only other rows see: NaN stays where it is seen.
def test_nan_reaches_nothing_that_does_not_see_it():
    case = Case(queries=7, keys=4, key_start=(1, 0))
    grads = [random(2, 4, 7, 8), random(2, 4, 7, seed=1)]
    clean = outcome(case, case.tensors(), by_operator, grads)
    tensors = case.tensors()
    is_blind = torch.from_numpy(~case.visible()[0].any(axis=-1))  # [B, T]
    tensors["query"].transpose(1, 2)[is_blind] = math.nan
    grads[0].transpose(1, 2)[is_blind] = math.nan
    grads[1].transpose(1, 2)[is_blind] = math.nan
    dirty = outcome(case, tensors, by_operator, tuple(grads))
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


def test_a_window_longer_than_any_sequence_sees_all():
    q, k, v = Case(queries=7, keys=4).tensors().values()
    assert torch.equal(ops.attention(q, k, v, window=2**63 - 1), ops.attention(q, k, v))


# A backward pass inside the region: what it computes has the dtypes that it chose.
def test_autocast_does_not_reach_into_a_backward_pass():
    q, k, v = (x.requires_grad_() for x in Case().tensors(FLOAT).values())
    x, weight = random(4, 8, dtype=FLOAT), random(5, 8, dtype=FLOAT).requires_grad_()
    loss = ops.attention(q, k, v).sum() + ops.linear_cross_entropy(x, weight, torch.arange(4))
    wanted = torch.autograd.grad(loss, (q, k, v, weight), retain_graph=True)
    with torch.autocast("cpu", LOW):
        found = torch.autograd.grad(loss, (q, k, v, weight))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_even_pairs_loss_under_autocast():
    for backend in ("torch", "auto"):
        ops.set_backend(backend)
        u, w = ops_test.parameters(3, dtype=FLOAT)
        with torch.autocast("cpu", LOW):
            assert torch.equal(ops.even_pairs_loss(u, w), ops.even_pairs_loss(u, w.float()))
            assert ops.even_pairs_loss(u.to(LOW), w).dtype == FLOAT
            assert ops.even_pairs_loss(u, w.double()).dtype == DOUBLE
        expected, *_ = one_layer.objective(
            u.double().numpy(), w.double().numpy(), one_layer.even_pairs(3), 2.0
        )
        assert ops.even_pairs_loss(u, w).item() == pytest.approx(expected, rel=1e-6)


def test_even_pairs_loss_refuses_forward_gradients():
    u, w = ops_test.parameters(3)
    with pytest.raises(NotImplementedError, match="even_pairs_loss: forward-mode"):
        torch.func.jvp(lambda u: ops.even_pairs_loss(u, w), (u,), (u,))
