"""paperlab.cca.cost and mask against enumeration and the published curve."""

import random

import cca_definition as definition
import pytest
import torch
from cca_definition import Case
from paperlab import cca


def random_cases(number, **fixed):
    draw = random.Random(9)
    for _ in range(number):
        window = draw.choice([0, 1, 2, 5, 8, 13, 40])
        group = draw.choice([1, 2, 3, 4, 7, 8, 16, 50])
        kept = draw.choice([0, 0, 1, 3, 20])
        options = {"length": draw.randrange(0, 65), "window": window, "group_size": group}
        yield Case(**options | {"keep_first": kept} | fixed)


def test_every_token_is_represented_once():
    """By the mask's columns, each of which stands for its group's tokens or for its token."""
    for case in random_cases(3000):
        length, group, kept = case.length, case.group_size, case.keep_first
        mask = cca.mask(length, group, case.window, keep_first=kept)
        core = mask.shape[1] - length
        stands_for = torch.zeros(core + length, length)
        for c in range(core):
            stands_for[c, kept + c * group : kept + (c + 1) * group] = 1
        stands_for[core:] = torch.eye(length)
        times = mask.float() @ stands_for
        assert torch.equal(times, torch.ones(length, length).tril()), str(case)


def test_every_token_reaches_the_result_once():
    """The kernel: with equal logits, mean pooling and one-hot values a row's weights are known."""
    for case in random_cases(300, batch=1, heads=1, kv_heads=1):
        if case.length == 0:
            continue
        q, v = torch.zeros(1, 1, case.length, 1), torch.eye(case.length)[None, None]
        out = cca.attention(
            q.expand(v.shape), q.expand(v.shape), v, case.group_size, case.window, "mean",
            keep_first=case.keep_first,
        )  # fmt: skip
        for row in range(case.length):
            entries, tokens = definition.seen(row, case)
            shares = out[0, 0, row] * (len(entries) + len(tokens))
            grouped = torch.zeros(case.length, dtype=torch.bool)
            for c in entries:
                first = case.keep_first + c * case.group_size
                grouped[first : first + case.group_size] = True
            wanted = torch.where(grouped, 1 / case.group_size, 1.0)
            wanted[row + 1 :] = 0.0
            assert torch.allclose(shares, wanted, atol=1e-5), (str(case), row)


def mask_of(case):
    core = max(0, (case.length - case.keep_first - case.window) // case.group_size)
    wanted = torch.zeros(case.length, core + case.length, dtype=torch.bool)
    for row in range(case.length):
        entries, tokens = definition.seen(row, case)
        wanted[row, entries] = True
        wanted[row, [core + t for t in tokens]] = True
    return wanted


def test_the_mask_is_the_enumerated_one():
    for boundary in ("exact", "paper_equation", "triton_truncation"):
        for case in random_cases(300, boundary=boundary):
            if boundary == "triton_truncation" and case.window % case.group_size:
                continue
            mask = cca.mask(
                case.length, case.group_size, case.window, boundary, keep_first=case.keep_first
            )
            assert mask.dtype == torch.bool
            assert torch.equal(mask, mask_of(case)), str(case)


def test_the_mask_of_a_long_text_has_the_pairs_of_the_cost():
    mask = cca.mask(2000)
    cost = cca.cost(2000)
    assert mask.shape == (2000, 61 + 2000)
    assert int(mask[:, :61].sum()) == cost["core_pairs"]
    assert int(mask[:, 61:].sum()) == cost["local_pairs"]


def test_counts_are_those_of_the_enumeration():
    for case in random_cases(500):
        found = cca.cost(
            case.length, case.group_size, case.window, 4, 2, 8, 3, 2, keep_first=case.keep_first
        )
        wanted = definition.counts(case)
        core, raw = wanted.pop("core_vectors"), wanted.pop("raw_vectors")
        assert {name: found[name] for name in wanted} == wanted, str(case)
        assert found["flops"] == 4 * 8 * 4 * 3 * wanted["pairs"]
        assert found["full_flops"] == 4 * 8 * 4 * 3 * wanted["full_pairs"]
        assert found["cache_bytes"] == 2 * 3 * 8 * 2 * (4 * core + 2 * raw)
        assert found["full_cache_bytes"] == 2 * 3 * 8 * 2 * 2 * case.length
        shared = cca.cost(
            case.length,
            case.group_size,
            case.window,
            heads=4,
            kv_heads=2,
            weights_per="kv_head",
            keep_first=case.keep_first,
        )
        assert shared["cache_bytes"] == 2 * 64 * 2 * (2 * core + 2 * raw)
        assert all(type(count) is int for count in found.values())


@pytest.mark.parametrize(
    ("length", "core_pairs", "pairs", "ratio"),
    [
        (4096, 293568, 3987136, 2.10),
        (8192, 1602496, 9521088, 3.52),
        (16384, 7366080, 23734720, 5.66),
        (32768, 31476160, 64744896, 8.29),
        (65536, 130027968, 197096896, 10.90),
        (131072, 528458176, 663127488, 12.95),
    ],
)
def test_published_sizes(length, core_pairs, pairs, ratio):
    cost = cca.cost(length)
    assert (cost["core_pairs"], cost["pairs"]) == (core_pairs, pairs)
    assert round(cost["full_flops"] / cost["flops"], 2) == ratio
    llama = cca.cost(length, heads=32, head_dim=128, layers=32)
    assert llama["cache_bytes"] == 2**19 * (length // 16 + 1024)
    assert llama["full_cache_bytes"] == 2**19 * length


@pytest.mark.parametrize(
    ("group_size", "window", "ratio"),
    [
        (8, 1024, 7.21),
        (32, 1024, 21.48),
        (64, 1024, 31.83),
        (16, 512, 14.30),
        (16, 2048, 10.91),
        (8, 512, 7.58),
        (64, 512, 42.07),
    ],
)
def test_other_settings_at_131072(group_size, window, ratio):
    cost = cca.cost(131072, group_size, window)
    assert round(cost["full_pairs"] / cost["pairs"], 2) == ratio


def test_small_counts():
    assert cca.cost(7, 4, 16)["core_pairs"] == 0
    assert set(cca.cost(0).values()) == {0}
    assert cca.cost(10**6, window=10**9)["pairs"] == 10**6 * (10**6 + 1) // 2
    assert cca.cost(3, keep_first=2**60, window=2**60)["cache_vectors"] == 3


NUMBERS = ["length", "group_size", "window", "heads", "kv_heads", "head_dim", "layers"]


@pytest.mark.parametrize("name", [*NUMBERS, "bytes_per_element", "keep_first"])
def test_wrong_numbers_are_refused(name):
    for value in (-1, 2**63, 1.5, "2", True, [1]):
        with pytest.raises((ValueError, TypeError), match=f"^cost: {name} must be"):
            cca.cost(**{"length": 100} | {name: value})
    if name not in ("length", "window", "keep_first"):
        with pytest.raises(ValueError, match=f"^cost: {name} must be"):
            cca.cost(**{"length": 100} | {name: 0})


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^cost: kv_heads must divide heads"):
        cca.cost(10, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match=r"^cost: weights_per must be"):
        cca.cost(10, weights_per="head")
    with pytest.raises(ValueError, match=r"^cost: length, .* must give counts below"):
        cca.cost(2**40)
    with pytest.raises(ValueError, match=r"^cost: length, .* must give counts below"):
        cca.cost(0, heads=2**40, head_dim=2**40)
