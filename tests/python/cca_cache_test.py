"""paperlab.cca.KVCache: the batch form in chunks of any sizes, what it holds, what it refuses."""

import random

import cca_definition as definition
import numpy as np
import pytest
import torch
from cca_definition import Case
from paperlab import cca

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16

CASES = [
    Case(length=40),
    Case(length=40, window=0),
    Case(length=40, window=0, group_size=1),
    Case(length=40, group_size=8, window=3),
    Case(length=40, group_size=50, window=7),
    Case(length=40, group_size=4, window=100),
    Case(length=60, heads=6, kv_heads=1, width=5),
    Case(length=40, weights_per="kv_head"),
    Case(length=40, pooling="mean"),
    Case(length=40, pooling="max", weights_per="kv_head"),
    Case(length=40, keep_first=2),
    Case(length=40, keep_first=7, weights_per="kv_head"),
    Case(length=40, keep_first=45),
    Case(length=40, keep_first=3, window=0, group_size=1),
    Case(length=260, batch=1, group_size=5, window=17, width=4),
]


def new_cache(case):
    return cca.KVCache(
        case.group_size, case.window, case.pooling, case.weights_per, keep_first=case.keep_first
    )


def part(inputs, first, last):
    return [x[:, :, first:last] for x in inputs]


def chunk_sizes(length, seed):
    """Sizes that add up to `length`; seed 0: ones, 1: all at once, others: random."""
    draw, sizes = random.Random(seed), []
    while sum(sizes) < length:
        left = length - sum(sizes)
        sizes.append(
            1
            if seed == 0
            else left
            if seed == 1
            else min(left, draw.choice([0, 1, 1, 2, 3, 5, 8, 30, 150]))
        )
    return sizes


def streamed(cache, inputs, sizes):
    outs, first = [], 0
    for size in sizes:
        step = cache.step if size == 1 else cache.prefill
        outs.append(step(*part(inputs, first, first + size)))
        first += size
        assert cache.length == first
    return torch.cat(outs, dim=2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_chunks_give_the_batch_form(case, seed):
    inputs = case.tensors()
    wanted = cca.attention(*inputs, return_lse=False, **case.options())
    cache = new_cache(case)
    out = streamed(cache, inputs, chunk_sizes(case.length, seed))
    assert out.dtype == F64
    assert (out - wanted).abs().max() < 1e-13 * 10


def test_the_definition_gives_the_same():
    case = Case(length=25)
    inputs, stream, cache = case.tensors(), definition.Stream(case), new_cache(case)
    for first, last in [(0, 4), (4, 5), (5, 17), (17, 18), (18, 25)]:
        out = cache.prefill(*part(inputs, first, last))
        assert torch.allclose(out, stream.append(*part(inputs, first, last)))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_other_types(dtype):
    case = Case(length=200, group_size=8, window=24, width=32)
    inputs = case.tensors(dtype)
    exact = definition.attention(*(x.double() for x in inputs), case)[0]
    for seed in (0, 2):
        out = streamed(new_cache(case), inputs, chunk_sizes(200, seed))
        assert out.dtype == dtype
        # one rounding of core tokens and results in bfloat16, sums of some hundred in float32
        assert (out.double() - exact).abs().max() < (1e-5 if dtype == F32 else 3e-2)


def bound(case, length, element_size):
    """Twice the minimum, 64 spare core entries per core head, s + g + 64 raw ones per key head."""
    cost = cca.cost(
        length,
        case.group_size,
        case.window,
        heads=case.heads,
        kv_heads=case.kv_heads,
        head_dim=case.width,
        bytes_per_element=element_size,
        weights_per=case.weights_per,
        keep_first=case.keep_first,
    )
    core_heads = case.kv_heads if case.weights_per == "kv_head" else case.heads
    spare = 64 * core_heads + (case.window + case.group_size + 64) * case.kv_heads
    return case.batch * (2 * cost["cache_bytes"] + 2 * case.width * element_size * spare)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "case",
    [
        Case(length=900),
        Case(length=900, window=0, group_size=16),
        Case(length=900, window=0, group_size=200),
        Case(length=900, window=100, group_size=1, heads=8),
        Case(length=900, window=64, group_size=16, weights_per="kv_head", heads=8),
        Case(length=900, window=64, group_size=16, keep_first=4),
        Case(length=900, window=64, group_size=16, keep_first=60, heads=8),
        Case(length=300, window=10**12, group_size=16),
    ],
    ids=str,
)
def test_it_holds_no_more_than_promised(case, seed):
    inputs, cache, first = case.tensors(BF16), new_cache(case), 0
    for size in chunk_sizes(case.length, seed):
        cache.prefill(*part(inputs, first, first + size))
        first += size
        assert cache.bytes <= bound(case, first, 2)
        assert (
            cache.stored_vectors
            == cca.cost(first, case.group_size, case.window, keep_first=case.keep_first)[
                "cache_vectors"
            ]
        )
    assert cache.bytes > 0
    cache.reset()
    assert (cache.length, cache.stored_vectors, cache.bytes) == (0, 0, 0)


@pytest.mark.parametrize("sizes", [[8192], [4096, 4096], [8192, *[1] * 120]], ids=str)
def test_a_long_prefill_takes_what_it_needs(sizes):
    # 32 spare groups; raw tokens: those of a group that is not complete, and 64 spare ones.
    cache = cca.KVCache(4, 64)
    for size in sizes:
        x = torch.zeros(1, 1, size, 8)
        cache.prefill(x, x, x)
    vectors = 8192 // 4 + 64
    assert cache.bytes <= 2 * 8 * 4 * (vectors + 32 + 4 + 64)


def test_stored_vectors_at_published_lengths():
    cache, first = cca.KVCache(), 0
    for length in (4096, 8192, 16384):
        x = torch.zeros(1, 1, length - first, 1)
        cache.prefill(x, x, x)
        first = length
        assert cache.stored_vectors == length // 16 + 1024


def test_tensors_of_the_caller_may_change_afterwards():
    case = Case(length=30)
    inputs = case.tensors()
    wanted = cca.attention(*inputs, 3, 4)
    given = [x.clone() for x in inputs]
    cache, outs = cca.KVCache(3, 4), []
    for first, last in [(0, 10), (10, 11), (11, 12), (12, 25), (25, 30)]:
        chunk = part(given, first, last)
        outs.append(cache.prefill(*chunk))
        for x in chunk:
            x.fill_(torch.nan)
    assert torch.allclose(torch.cat(outs, dim=2), wanted)
    outs[-1].fill_(torch.nan)
    assert bool(torch.isfinite(cache.step(*part(inputs, 0, 1))).all())


def test_views_arrays_and_tensors_with_gradients():
    case = Case(length=30)
    inputs = case.tensors(F32, requires_grad=True)
    wanted = cca.attention(*inputs, 3, 4).detach()
    cache = cca.KVCache(3, 4)
    first = cache.prefill(*(x[:, :, :8].mT.contiguous().mT for x in inputs))
    second = cache.prefill(*(x[:, :, 8:20].detach().numpy() for x in inputs))
    arrays = [np.flip(np.flip(x[:, :, 20:].detach().numpy(), 3), 3) for x in inputs]
    third = cache.prefill(*arrays)
    out = torch.cat([first, second, third], dim=2)
    assert not out.requires_grad
    assert (out - wanted).abs().max() < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert cache.step(*(x[:, :, :1] for x in inputs)).dtype == F32


def test_calls_inside_and_outside_of_inference_mode():
    inputs = Case(length=40).tensors()
    wanted, cache, outs = cca.attention(*inputs, 3, 4), cca.KVCache(3, 4), []
    for t in range(40):
        with torch.inference_mode(t % 2 == 0):
            outs.append(cache.step(*(x.clone() for x in part(inputs, t, t + 1))))
    with torch.inference_mode():
        stored = [x.clone() for x in part(inputs, 0, 3)]
    assert bool(torch.isfinite(cache.prefill(*stored)).all())
    assert torch.allclose(torch.cat(outs, dim=2), wanted)


def test_chunks_without_tokens_or_rows():
    cache = cca.KVCache(3, 4)
    q, k, v = Case(length=5).tensors()
    assert cache.prefill(q[:, :, :0], k[:, :, :0], v[:, :, :0]).shape == (2, 4, 0, 8)
    assert (cache.length, cache.bytes) == (0, 0)
    other = torch.ones(3, 2, 1, 16)
    assert cache.step(other, other, other).shape == (3, 2, 1, 16)  # nothing was fixed
    cache.reset()
    for _ in range(9):
        out = cache.prefill(q[:0], k[:0], v[:0])
        assert out.shape == (0, 4, 5, 8)
    assert cache.length == 45


WRONG = [
    (lambda q, k, v: (q[0], k, v), "q must be"),
    (lambda q, k, v: (q, k[0], v), "k must be"),
    (lambda q, k, v: (q, k, v[0]), "v must be"),
    (lambda q, k, v: (q[:1], k[:1], v[:1]), "q must be of the cache's sizes"),
    (lambda q, k, v: (q[:, :2], k, v), "q must be of the cache's sizes"),
    (lambda q, k, v: (q, k[:, :1], v[:, :1]), "k must be of the cache's sizes"),
    (lambda q, k, v: (q[..., :4], k[..., :4], v[..., :4]), "q must be of the cache's sizes"),
    (lambda q, k, v: (q, k[:, :, 1:], v[:, :, 1:]), "k must be"),
    (lambda q, k, v: (q, k, v[:, :, 1:]), "v must be"),
    (lambda q, k, v: (q[:, :3], k, v), "k must be"),
    (lambda q, k, v: (q.float(), k.float(), v.float()), "q must be of the cache's dtype"),
    (lambda q, k, v: (q, k.float(), v), "k must be of the dtype"),
    (lambda q, k, v: (q, k, v.float()), "v must be of the dtype"),
    (lambda q, k, v: (q.int(), k.int(), v.int()), "q must be float32"),
    (lambda q, k, v: (q.half(), k.half(), v.half()), "q must be float32"),
    (lambda q, k, v: (q.to_sparse(), k, v), "q must be strided"),
    (lambda q, k, v: (q.to("meta"), k.to("meta"), v.to("meta")), "q must be on the CPU"),
    (lambda q, k, v: (q, k.to("meta"), v), "k must be on the device"),
    (lambda q, k, v: (None, k, v), "q must be a torch.Tensor"),
    (lambda q, k, v: (q, [1.0], v), "k must be a torch.Tensor"),
    (lambda q, k, v: (q, k, np.array("a")), "v must be"),
    (lambda q, k, v: (q, k, np.zeros(k.shape, np.complex64)), "v must be"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_refused_call_changes_nothing(change, message):
    inputs = Case(length=40).tensors()
    wanted = cca.attention(*inputs, 3, 4)
    cache = cca.KVCache(3, 4)
    cache.prefill(*part(inputs, 0, 30))
    before = (cache.length, cache.stored_vectors, cache.bytes)
    with pytest.raises((ValueError, TypeError), match=f"^KVCache.prefill: {message}"):
        cache.prefill(*change(*part(inputs, 30, 33)))
    with pytest.raises((ValueError, TypeError), match=r"^KVCache.step: "):
        cache.step(*change(*part(inputs, 30, 31)))
    with pytest.raises(ValueError, match=r"^KVCache.step: q must be \[B, H, 1, D\]"):
        cache.step(*part(inputs, 30, 32))
    assert (cache.length, cache.stored_vectors, cache.bytes) == before
    assert torch.allclose(cache.prefill(*part(inputs, 30, 40)), wanted[:, :, 30:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "group_size must be in 1"),
        ({"group_size": 2.0}, "group_size must be an integer"),
        ({"window": -1}, "window must be in 0"),
        ({"window": 2**62}, "window must be in 0"),
        ({"keep_first": -1}, "keep_first must be in 0"),
        ({"pooling": "sum"}, "pooling must be one of"),
        ({"pooling": None}, "pooling must be a str"),
        ({"weights_per": "head"}, "weights_per must be one of"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=f"^KVCache: {message}"):
        cca.KVCache(**options)
