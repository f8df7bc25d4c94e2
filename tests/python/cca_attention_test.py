"""paperlab.cca.attention, pool and effective_attention against their plain definition."""

import cca_definition as definition
import pytest
import torch
from cca_definition import Case
from paperlab import cca

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16

CASES = [
    Case(),
    Case(length=0),
    Case(batch=0),
    Case(batch=1, heads=1, kv_heads=1, length=1, width=1),
    Case(length=4),  # L = s
    Case(length=6),  # L = s + g - 1: no core token
    Case(length=7),  # L = s + g: one, for the last row alone
    Case(length=30, group_size=4, window=8),
    Case(length=40, group_size=4, window=0),
    Case(length=40, group_size=8, window=3),
    Case(length=12, group_size=13, window=0),
    Case(length=19, group_size=1, window=5),
    Case(length=19, group_size=3, window=100),
    Case(heads=6, kv_heads=1, length=33, width=5),
    Case(heads=3, kv_heads=3, length=70, group_size=4, window=16, width=33),
    Case(length=101, group_size=7, window=10, width=17),
    Case(weights_per="kv_head"),
    Case(pooling="mean"),
    Case(pooling="mean", weights_per="kv_head"),
    Case(pooling="max"),
    Case(pooling="max", heads=4, kv_heads=4),
    Case(boundary="paper_equation"),
    Case(boundary="paper_equation", window=0, group_size=1),
    Case(boundary="triton_truncation", window=6),
    Case(boundary="triton_truncation", window=0),
    Case(boundary="triton_truncation", window=6, length=8),
    Case(keep_first=2),
    Case(keep_first=5, weights_per="kv_head", length=31),
    Case(keep_first=23),
    Case(keep_first=3, window=0, pooling="max"),
    Case(keep_first=3, boundary="paper_equation"),
    Case(keep_first=3, boundary="triton_truncation", window=6),
]

# Absolute, for unit-variance data: float32 sums of at most some hundred terms of size 1 err by some
# eps = 6e-8 each; in bfloat16 (eps = 4e-3) the core tokens are rounded, and so is the result.
BOUNDS = {F64: 1e-12, F32: 1e-5, BF16: 3e-2}


def assert_close(actual, exact, dtype, factor=1.0):
    assert actual.shape == exact.shape
    if exact.numel():
        error = (actual.double() - exact).abs().max()
        assert error <= factor * BOUNDS[dtype] * max(1.0, exact.abs().max())


def outcome(function, inputs, grads):
    """out, lse and the gradients of q, k, v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, lse = function(*leaves)
    loss = [grad.to(x.dtype) for grad, x in zip(grads, (out, lse), strict=True)]
    return [out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, loss)]


def random_grads(case):
    generator = torch.Generator().manual_seed(6)
    shape = (case.batch, case.heads, case.length, case.width)
    return [torch.randn(s, generator=generator, dtype=F64) for s in (shape, shape[:3])]


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_out_lse_and_gradients_are_those_of_the_definition(case, dtype):
    inputs, grads = case.tensors(dtype), random_grads(case)
    exact = outcome(lambda *x: definition.attention(*x, case), [x.double() for x in inputs], grads)
    actual = outcome(lambda *x: cca.attention(*x, return_lse=True, **case.options()), inputs, grads)
    assert [x.dtype for x in actual] == [dtype, F64 if dtype == F64 else F32, *[dtype] * 3]
    for n, (ours, theirs) in enumerate(zip(actual, exact, strict=True)):
        # a maximum's gradient jumps where bfloat16 rounding changes nothing else
        assert_close(ours, theirs, dtype, 1.0 if n < 2 else 2.0)


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pool_is_the_definitions(case, dtype):
    q, k, v = case.tensors(dtype)
    core = cca.pool(
        q, k, v, case.group_size, case.pooling, case.weights_per, keep_first=case.keep_first
    )
    exact = definition.pool(q.double(), k.double(), v.double(), case)
    for ours, theirs in zip(core, exact, strict=True):
        assert ours.dtype == dtype
        assert_close(ours, theirs, dtype)


@pytest.mark.parametrize(
    "case",
    [
        Case(batch=1, length=13, width=3),
        Case(batch=1, length=13, width=2, weights_per="kv_head"),
        Case(batch=1, length=13, width=2, pooling="mean"),
        Case(batch=1, length=13, width=2, pooling="max"),
        Case(batch=1, length=13, width=2, boundary="paper_equation"),
        Case(batch=1, length=13, width=2, boundary="triton_truncation", window=3),
        Case(batch=1, length=13, width=2, keep_first=2),
    ],
    ids=str,
)
def test_gradients_are_finite_differences(case):
    inputs = case.tensors(requires_grad=True)

    def attended(*x):
        return cca.attention(*x, return_lse=True, **case.options())

    def pooled(*x):
        return cca.pool(*x, case.group_size, case.pooling, case.weights_per)

    assert torch.autograd.gradcheck(attended, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(pooled, inputs, fast_mode=True)


@pytest.mark.parametrize(
    "case",
    [Case(), Case(window=0), Case(length=5), Case(length=0), Case(batch=0), Case(kv_heads=1)],
    ids=str,
)
def test_effective_attention(case):
    q, k, v = case.tensors()
    alpha = cca.effective_attention(q, k, case.group_size, case.window)
    assert_close(alpha, definition.effective_attention(q, k, case), F64)
    length = case.length
    assert torch.allclose(alpha.sum(-1), torch.ones(()).double())
    assert torch.equal(alpha > 0, torch.ones(length, length).tril().bool().expand(alpha.shape))
    out = cca.attention(q, k, v, case.group_size, case.window)
    assert_close(alpha @ definition.per_head(v, case.heads), out, F64)


def test_effective_attention_of_other_types():
    case = Case()
    q, k, _ = case.tensors()
    exact = definition.effective_attention(q, k, case)
    for dtype in (F32, BF16):
        alpha = cca.effective_attention(q.to(dtype), k.to(dtype), 3, 4)
        assert alpha.dtype == dtype
        assert_close(alpha, exact, dtype)
    arrays = cca.effective_attention(q.numpy(), k.numpy(), 3, 4)
    assert_close(arrays, exact, F64)
    leaves = [q.requires_grad_(), k.requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda *x: cca.effective_attention(*x, 3, 4), leaves, fast_mode=True
    )


# The golden vector: i = 1..6, d = 2, g = 2, s = 2.
GOLDEN = {
    "exact": (
        [
            [1, 1],
            [1.695287752, 3.085863257],
            [2.024105757, 4.505984652],
            [3.080326699, 10.667370496],
            [3.223736940, 11.796442625],
            [3.986748256, 19.078253995],
        ],
        [0, 0.952685138, 1.175071228, 1.345281440, 1.346530001, 1.404545198],
    ),
    "paper_equation": (
        [
            [1, 1],
            [1.695287752, 3.085863257],
            [2.024105757, 4.505984652],
            [2.706901754, 8.362732032],
            [2.784637987, 8.998937963],
            [3.990813420, 18.133955033],
        ],
        None,
    ),
    "triton_truncation": (
        [
            [1, 1],
            [1.695287752, 3.085863257],
            [1.926886771, 4.086108736],
            [3.080326699, 10.667370496],
            [3.223736940, 11.796442625],
            [3.986748256, 19.078253995],
        ],
        None,
    ),
}


def golden_inputs(dtype=F64):
    i = torch.arange(1, 7, dtype=F64)
    q = torch.stack([i / 4, 1 - i / 4], dim=1)
    k = torch.stack([(-1.0) ** i, i / 3], dim=1)
    v = torch.stack([i, i * i], dim=1)
    return [x[None, None].to(dtype) for x in (q, k, v)]


@pytest.mark.parametrize("boundary", GOLDEN)
def test_golden_vector(boundary):
    out, lse = GOLDEN[boundary]
    actual = cca.attention(*golden_inputs(), 2, 2, boundary=boundary, return_lse=True)
    assert (actual[0][0, 0] - torch.tensor(out, dtype=F64)).abs().max() < 1e-9
    if lse is not None:
        assert (actual[1][0, 0] - torch.tensor(lse, dtype=F64)).abs().max() < 1e-9
    core_k, core_v = cca.pool(*golden_inputs(), 2)
    wanted_k = [[0.390575505, 0.565095917], [0.608859365, 1.268143228]]
    wanted_v = [[1.695287752, 3.085863257], [3.804429683, 14.631007778]]
    assert core_k.shape == (1, 1, 3, 2)
    assert (core_k[0, 0, :2] - torch.tensor(wanted_k, dtype=F64)).abs().max() < 1e-9
    assert (core_v[0, 0, :2] - torch.tensor(wanted_v, dtype=F64)).abs().max() < 1e-9


@pytest.mark.parametrize(("group_size", "window"), [(1, 0), (1, 7), (5, 60), (16, 1024)])
def test_groups_of_one_or_a_long_window_are_full_attention(group_size, window):
    inputs = Case(length=64).tensors(F32)
    out = cca.attention(*inputs, group_size, window)
    assert (out - cca.baselines.full(*inputs)).abs().max() < 1e-6


@pytest.mark.parametrize("change", [1.0, torch.nan])
@pytest.mark.parametrize("options", [{}, {"keep_first": 3}, {"weights_per": "kv_head"}])
def test_the_past_alone_decides(options, change):
    case = Case(length=90)
    inputs = case.tensors(F32)
    before = cca.attention(*inputs, 3, 4, return_lse=True, **options)
    for first in (0, 1, 17, 64, 89):
        other = [x.clone() for x in inputs]
        for x in other:
            x[:, :, first:] += change
        after = cca.attention(*other, 3, 4, return_lse=True, **options)
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a[:, :, :first], b[:, :, :first])


def test_equal_values_come_out_and_outputs_lie_between_values():
    q, k, v = Case(length=50).tensors(F32, factor=3)
    for pooling in ("attention", "mean", "max"):
        out = cca.attention(q, k, torch.full_like(v, 2.5), 3, 4, pooling)
        assert (out - 2.5).abs().max() < 1e-5
        low, high = (definition.per_head(x, 4) for x in (v.cummin(2)[0], v.cummax(2)[0]))
        out = cca.attention(q, k, v, 3, 4, pooling)
        assert bool(((out >= low - 1e-5) & (out <= high + 1e-5)).all())
    core_v = cca.pool(q, k, torch.ones_like(v), 3)[1]
    assert (core_v - 1).abs().max() < 1e-6


def test_a_vector_added_to_all_keys_changes_no_output():
    q, k, v = Case(length=50).tensors()
    shift = torch.randn(8, dtype=F64)
    core, shifted = cca.pool(q, k, v, 3), cca.pool(q, k + shift, v, 3)
    assert torch.allclose(core[0] + shift, shifted[0])
    assert torch.allclose(core[1], shifted[1])
    assert torch.allclose(cca.attention(q, k, v, 3, 4), cca.attention(q, k + shift, v, 3, 4))


def test_equal_keys_count_each_core_token_once():
    case = Case(length=50)
    q, k, v = case.tensors()
    out = cca.attention(q, k[:, :, :1].expand(k.shape), v, 3, 4)
    values = definition.per_head(v, case.heads)
    for row in (0, 6, 7, 31, 49):
        j = definition.num_visible(row, 3, 4)
        core = values[:, :, : 3 * j].unflatten(2, (j, 3)).mean(3) if j else values[:, :, :0]
        seen = torch.cat([core, values[:, :, 3 * j : row + 1]], dim=2)
        assert seen.shape[2] == j + row + 1 - 3 * j
        assert torch.allclose(out[:, :, row], seen.mean(2))


def test_the_order_of_a_groups_other_tokens_does_not_matter():
    q, k, v = Case(length=50).tensors()
    order = torch.arange(50)
    order[6:8] = torch.tensor([7, 6])  # group 2 is tokens 6, 7, 8; its last one stays
    out, other = (
        cca.attention(q, k, v, 3, 4),
        cca.attention(q, k[:, :, order], v[:, :, order], 3, 4),
    )
    assert torch.allclose(out[:, :, 12:], other[:, :, 12:])  # row 12 is the first with j = 3
    assert not torch.allclose(out[:, :, 6:12], other[:, :, 6:12])


def test_pooling_commutes_with_affine_maps():
    q, x, _ = Case(length=24).tensors()
    weight, bias = torch.randn(8, 8, dtype=F64), torch.randn(8, dtype=F64)
    keys = x @ weight + bias
    mapped_first = cca.pool(q, keys, keys, 3)[1]
    mapped_last = cca.pool(q, keys, x, 3)[1] @ weight + bias
    assert torch.allclose(mapped_first, mapped_last)


@pytest.mark.parametrize(("window", "group_size"), [(8, 4), (4, 4), (0, 4)])
def test_the_modes_differ_in_the_rows_on_record_alone(window, group_size):
    inputs = Case(length=40).tensors()
    out = {
        mode: cca.attention(*inputs, group_size, window, boundary=mode)
        for mode in ("exact", "paper_equation", "triton_truncation")
    }
    rows = torch.arange(40)

    def differing(mode):
        return (out[mode] != out["exact"]).any(dim=3).all(dim=1).all(dim=0)

    assert torch.equal(differing("paper_equation"), rows + 1 >= window + group_size)
    is_truncated = (rows + 1 > window) & (rows + 1 < window + group_size)
    assert torch.equal(differing("triton_truncation"), is_truncated)


def test_mean_pooling_of_a_rotated_constant_key_shrinks_by_the_dirichlet_factor():
    g = 16
    position = torch.arange(g, dtype=F64)
    k = torch.stack([position.cos(), position.sin()], dim=1)[None, None]  # 1 radian a token
    core_k, _ = cca.pool(k, k, k, g, "mean")
    assert abs(core_k.norm().item() - 0.1289770474) < 1e-10


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
def test_huge_and_equal_logits(dtype):
    case = Case(length=61, heads=4, kv_heads=1)
    for q, k, v in (
        case.tensors(dtype, factor=100),  # logits of some 1e4
        [torch.zeros(x.shape, dtype=dtype) for x in case.tensors()[:2]] + [case.tensors(dtype)[2]],
    ):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out, lse = cca.attention(*leaves, 3, 4, return_lse=True)
        (out.sum() + lse.sum()).backward()
        for x in (out, lse, *(leaf.grad for leaf in leaves)):
            assert bool(torch.isfinite(x).all())


def test_strides_do_not_matter_and_inputs_stay():
    case = Case(length=30)
    q, k, v = case.tensors(F32)
    wanted = cca.attention(q, k, v, 3, 4)
    strided = [
        q.transpose(1, 2).contiguous().transpose(1, 2),
        k.mT.contiguous().mT,
        torch.stack([v, v], dim=-1)[..., 0],
    ]
    before = [x.clone() for x in strided]
    out = cca.attention(*strided, 3, 4)
    assert torch.equal(out, wanted)
    assert all(torch.equal(a, b) for a, b in zip(before, strided, strict=True))
    expanded = cca.attention(q, k[:, :1].expand(k.shape), v[:, :1].expand(v.shape), 3, 4)
    assert torch.equal(
        expanded, cca.attention(q, k[:, :1].repeat(1, 2, 1, 1), v[:, :1].repeat(1, 2, 1, 1), 3, 4)
    )
    assert out.data_ptr() not in {x.data_ptr() for x in strided}


def test_the_same_bits_for_any_number_of_threads_and_with_lse():
    case = Case(length=300, heads=4, width=32, group_size=4, window=32)
    q, k, v = case.tensors(F32)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            attended = outcome(
                lambda *x: cca.attention(*x, 4, 32, return_lse=True), (q, k, v), random_grads(case)
            )
            leaves = [x.detach().requires_grad_() for x in (q, k)]
            alpha = cca.effective_attention(*leaves, 4, 32)
            weights = torch.linspace(-1, 1, alpha.numel()).view(alpha.shape)
            of_alpha = torch.autograd.grad((alpha * weights).sum(), leaves)
            results.append([*attended, *cca.pool(q, k, v, 4), alpha.detach(), *of_alpha])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert torch.equal(cca.attention(q, k, v, 4, 32), results[0][0])


@pytest.mark.parametrize("weights_per", ["query_head", "kv_head"])
@pytest.mark.parametrize("pooling", ["attention", "mean", "max"])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_key_heads_without_query_heads(dtype, pooling, weights_per):
    q = torch.randn(2, 0, 20, 4, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(2, 3, 20, 4, dtype=dtype, requires_grad=True) for _ in range(2))
    options = {"pooling": pooling, "weights_per": weights_per}
    out = cca.attention(q, k, v, 3, 4, **options)
    core = cca.pool(q, k, v, 3, **options)
    assert out.shape == q.shape
    assert core[0].shape == (2, 3 if weights_per == "kv_head" else 0, 6, 4)
    if weights_per == "kv_head" and pooling == "attention":  # nobody's weights: all the same
        for pooled, x in zip(core, (k, v), strict=True):
            assert_close(pooled, x[:, :, :18].unflatten(2, (6, 3)).mean(3).double(), dtype)
    (out.sum() + core[0].sum() + core[1].sum()).backward()
    for x in (q, k, v):
        assert x.grad.shape == x.shape
        assert x.grad.isfinite().all()
    assert bool(k.grad.any()) == (weights_per == "kv_head")
    assert cca.effective_attention(q, k, 3, 4).shape == (2, 0, 20, 20)
    cache = cca.KVCache(3, 4, **options)
    assert cache.prefill(q, k, v).shape == q.shape
    assert cache.step(q[:, :, :1], k[:, :, :1], v[:, :, :1]).shape == (2, 0, 1, 4)


@pytest.mark.parametrize("pooling", ["attention", "mean", "max"])
def test_pooled_tensors_have_memory_of_their_own(pooling):
    q, k, v = Case(heads=4, kv_heads=1, length=20).tensors(F32)
    for core in cca.pool(q, k, v, 3, pooling):
        assert core.is_contiguous()
        core[:, 0] = 7.0
        assert not (core[:, 1:] == 7.0).any()


@pytest.mark.parametrize("pooling", ["attention", "mean", "max"])
def test_tensors_that_do_not_matter_have_zero_gradients(pooling):
    leaves = Case(length=20).tensors(F32, requires_grad=True)
    of_q, of_k, of_v = torch.autograd.grad(cca.pool(*leaves, 3, pooling)[0].sum(), leaves)
    assert of_q.any() == (pooling == "attention")
    assert of_k.any() and not of_v.any()
