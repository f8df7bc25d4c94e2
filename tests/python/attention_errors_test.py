"""paperlab.ops.attention: every bad argument is a ValueError or TypeError that names it."""

import re

import numpy as np
import pytest
import torch
from paperlab.ops import attention
from torch._subclasses.fake_tensor import FakeTensorMode

OPERATORS = torch.ops.paperlab

QUERY = torch.ones(2, 4, 5, 8)
KEY = torch.ones(2, 2, 7, 8)
LSE = torch.ones(2, 4, 5)
STARTS = torch.zeros(2, dtype=torch.int64)
PREFIX = torch.ones(2, 2, 3, 8)
CORE = {"prefix_key": PREFIX, "prefix_value": PREFIX, "prefix_group": 2, "window": 1}


def wide(width):
    return {name: torch.ones(2, 2, 3, width) for name in ("query", "key", "value")}


# The argument that is named, what is passed instead of good arguments, a part of the message.
ANY_TENSOR = [
    ("query", {"query": QUERY[0]}, "[B, H, T, D], got [4, 5, 8]"),
    ("query", {"query": torch.ones(())}, "got []"),
    ("query", wide(0), "D in 1..256, got [2, 2, 3, 0]"),
    ("query", wide(257), "D in 1..256, got [2, 2, 3, 257]"),
    ("query", {"query": QUERY.long()}, "got Long"),
    ("query", {"query": QUERY.bool()}, "got Bool"),
    ("query", {"query": QUERY.to(torch.complex64)}, "got Complex"),
    ("query", {"query": QUERY.to(torch.float8_e4m3fn)}, "got Float8"),
    ("key", {"key": KEY[0]}, "[2, G, S, 8], got [2, 7, 8]"),
    ("key", {"key": KEY[:1]}, "[2, G, S, 8], got [1, 2, 7, 8]"),
    ("key", {"key": KEY[..., :7]}, "[2, G, S, 8], got [2, 2, 7, 7]"),
    (
        "key",
        {"key": torch.ones(2, 3, 7, 8), "value": torch.ones(2, 3, 7, 8)},
        "divisor of query's 4",
    ),
    (
        "key",
        {"key": torch.ones(2, 8, 7, 8), "value": torch.ones(2, 8, 7, 8)},
        "divisor of query's 4",
    ),
    ("key", {"key": KEY[:, :0], "value": KEY[:, :0]}, "divisor of query's 4"),
    ("key", {"key": KEY.double()}, "of dtype Float, got Double"),
    ("value", {"value": KEY[:, :, :6]}, "[2, 2, 7, 8], got [2, 2, 6, 8]"),
    ("value", {"value": KEY[..., :4]}, "[2, 2, 7, 8], got [2, 2, 7, 4]"),
    ("value", {"value": KEY[0]}, "got [2, 7, 8]"),
    ("value", {"value": KEY.bfloat16()}, "of dtype Float, got BFloat16"),
    ("window", {"causal": False, "window": 2}, "None unless causal, got 2"),
    ("key_start", {"key_start": STARTS[:1]}, "[2], got [1]"),
    ("key_start", {"key_start": STARTS[:, None]}, "[2], got [2, 1]"),
    ("key_start", {"key_start": STARTS[0]}, "[2], got []"),
    ("key_start", {"key_start": STARTS.int()}, "of dtype Long, got Int"),
    ("key_end", {"key_end": STARTS.float()}, "of dtype Long, got Float"),
    ("key_end", {"key_end": torch.zeros(3, dtype=torch.int64)}, "[2], got [3]"),
]
SCALARS = [
    ("window", {"window": 0}, "0"),
    ("window", {"window": -(2**63)}, "-9223372036854775808"),
    ("scale", {"scale": float("nan")}, "finite, got nan"),
    ("scale", {"scale": -float("inf")}, "finite, got -inf"),
]
PREFIXES = [
    ("prefix_value", {"prefix_key": PREFIX, "window": 3}, "None"),
    ("prefix_value", {"prefix_value": PREFIX}, "None without prefix_key"),
    ("prefix_query", {"prefix_query": QUERY}, "None without prefix_key"),
    ("prefix_group", {"prefix_group": 2}, "0 without prefix_key, got 2"),
    ("prefix_group", CORE | {"prefix_group": -1}, ">= 0, got -1"),
    ("prefix_kept", {"prefix_kept": 1}, "0 without prefix_group, got 1"),
    ("prefix_kept", CORE | {"prefix_kept": -1}, ">= 0, got -1"),
    ("prefix_overlap", CORE | {"prefix_group": 0, "prefix_overlap": True}, "got True"),
    ("prefix_truncated", {"prefix_truncated": True}, "False without prefix_group, got True"),
    ("num_past", {"num_past": -1}, ">= 0, got -1"),
    ("num_past", {"num_past": 1, "causal": False}, "0 unless causal, got 1"),
    ("prefix_key", CORE | {"num_past": 2}, "at least 4 entries, got [2, 2, 3, 8]"),
    ("prefix_key", CORE | {"causal": False, "window": None}, "None unless causal"),
    ("window", CORE | {"window": None}, "got None"),
    ("window", CORE | {"window": -1}, ">= 0, got -1"),
    ("window", CORE | {"window": 0, "prefix_group": 0}, ">= 1, got 0"),
    ("prefix_key", CORE | {"prefix_key": PREFIX[0]}, "[2, P, J, 8] with P = 4 or 2, got [2, 3, 8]"),
    ("prefix_key", CORE | {"prefix_key": PREFIX[:, :1]}, "P = 4 or 2, got [2, 1, 3, 8]"),
    ("prefix_key", CORE | {"prefix_key": PREFIX[..., :3]}, "got [2, 2, 3, 3]"),
    ("prefix_key", CORE | {"prefix_key": PREFIX.double()}, "got Double"),
    (
        "prefix_key",
        CORE | dict.fromkeys(("prefix_key", "prefix_value"), PREFIX[:, :, :2]),
        "at least 3 entries, got [2, 2, 2, 8]",
    ),
    ("prefix_value", CORE | {"prefix_value": PREFIX[:, :, :2]}, "[2, 2, 3, 8], got [2, 2, 2, 8]"),
    ("prefix_value", CORE | {"prefix_value": PREFIX.double()}, "got Double"),
    ("prefix_query", CORE | {"prefix_query": QUERY[:, :2]}, "[2, 4, 5, 8], got [2, 2, 5, 8]"),
    ("prefix_query", CORE | {"prefix_query": QUERY.bfloat16()}, "got BFloat16"),
]
PLACES = [
    ("query", {"query": QUERY.half()}, "got Half"),  # a GPU's may be
    ("query", {"query": QUERY.to_sparse()}, "strided, got layout Sparse"),
    ("key", {"key": KEY.to_sparse()}, "strided, got layout Sparse"),
    ("value", {"value": KEY.to_mkldnn()}, "strided, got layout Mkldnn"),
    ("query", {"query": torch.quantize_per_tensor(QUERY, 1.0, 0, torch.qint8)}, "got QInt8"),
    ("key", {"key": KEY.to("meta")}, "on the device of query (cpu), got meta"),
    ("key", {"query": QUERY.to("meta")}, "on the device of query (meta), got cpu"),
    ("key_end", {"key_end": STARTS.to("meta")}, "on the device of query (cpu), got meta"),
]
RANGES = [
    ("key_start", {"key_start": torch.tensor([0, 8])}, "0..7, got 8"),
    ("key_start", {"key_start": torch.tensor([-1, 0])}, "0..7, got -1"),
    ("key_end", {"key_end": torch.tensor([8, 7])}, "0..7, got 8"),
    ("key_end", {"key_end": torch.tensor([0, -(2**63)])}, "0..7, got -9223372036854775808"),
]
CHECKED = ANY_TENSOR + SCALARS + PREFIXES + PLACES


def arguments(given):
    return {"query": QUERY, "key": KEY, "value": KEY} | given


def assert_refused(function, name, argument, part):
    with pytest.raises((ValueError, TypeError)) as caught:
        function()
    message = str(caught.value).splitlines()[0]
    assert re.match(rf"{name}: {argument} must ", message) and part in message, message
    assert not isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(("argument", "given", "part"), ANY_TENSOR + SCALARS + PLACES + RANGES)
def test_the_function_refuses(argument, given, part):
    options = arguments(given)
    q, k, v = (options.pop(name) for name in ("query", "key", "value"))
    part = "" if argument == "window" else part
    assert_refused(lambda: attention(q, k, v, **options), "attention", argument, part)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("argument", "given", "part"), CHECKED + RANGES)
def test_the_operator_refuses(argument, given, part, requires_grad):
    options = arguments(given)
    if requires_grad and "value" not in given:
        options["value"] = KEY.clone().requires_grad_()
    assert_refused(lambda: OPERATORS.attention(**options), "attention", argument, part)


@pytest.mark.parametrize(("argument", "given", "part"), CHECKED)
def test_the_other_operators_refuse(argument, given, part):
    options = arguments(given)
    name = "attention_decode"
    assert_refused(lambda: OPERATORS.attention_decode(**options), name, argument, part)
    results = {"grad_out": QUERY, "out": QUERY, "grad_lse": LSE, "lse": LSE}
    name = "attention_backward"
    assert_refused(lambda: OPERATORS.attention_backward(**options, **results), name, argument, part)


@pytest.mark.parametrize("queries", [0, 1, 5])
@pytest.mark.parametrize(("argument", "given", "part"), RANGES)
def test_ranges_are_refused_by_every_operator(argument, given, part, queries):
    query, lse = QUERY[:, :, :queries], LSE[:, :, :queries]
    options = arguments(given) | {"query": query}
    results = {"grad_out": query, "out": query, "grad_lse": lse, "lse": lse}
    calls = {"attention": options, "attention_backward": options | results}
    if queries == 1:
        calls["attention_decode"] = options
    for name, keywords in calls.items():
        assert_refused(
            lambda name=name, keywords=keywords: getattr(OPERATORS, name)(**keywords),
            name,
            argument,
            part,
        )


@pytest.mark.parametrize(("argument", "given", "part"), ANY_TENSOR + SCALARS + PREFIXES)
def test_tensors_without_data_are_refused_too(argument, given, part):
    def on(move):
        options = arguments(given)
        return {n: move(x) if isinstance(x, torch.Tensor) else x for n, x in options.items()}

    meta = on(lambda x: x.to("meta"))
    assert_refused(lambda: OPERATORS.attention(**meta), "attention", argument, part)
    with FakeTensorMode() as mode:
        fake = on(mode.from_tensor)
        assert_refused(lambda: OPERATORS.attention(**fake), "attention", argument, part)


def test_decode_takes_one_query():
    for device in ("cpu", "meta"):
        x = [t.to(device) for t in (QUERY, KEY, KEY)]
        assert_refused(
            lambda x=x: OPERATORS.attention_decode(*x),
            "attention_decode",
            "query",
            "[B, H, 1, D], got [2, 4, 5, 8]",
        )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("argument", "given", "part"),
    [
        ("grad_out", QUERY[:, :, :4], "[2, 4, 5, 8], got [2, 4, 4, 8]"),
        ("grad_out", QUERY.double(), "of dtype Float, got Double"),
        ("grad_lse", LSE[..., None], "[2, 4, 5], got [2, 4, 5, 1]"),
        ("grad_lse", LSE.double(), "of dtype Float, got Double"),
        ("out", QUERY[0], "[2, 4, 5, 8], got [4, 5, 8]"),
        ("out", QUERY.bfloat16(), "of dtype Float, got BFloat16"),
        ("lse", LSE[:, :2], "[2, 4, 5], got [2, 2, 5]"),
        ("lse", LSE.bfloat16(), "of dtype Float, got BFloat16"),
    ],
)
def test_what_the_backward_operator_takes_besides_is_checked(argument, given, part, device):
    options = {"grad_out": QUERY, "grad_lse": LSE, "out": QUERY, "lse": LSE} | {argument: given}
    options = {n: x.to(device) for n, x in arguments(options).items()}
    assert_refused(
        lambda: OPERATORS.attention_backward(**options), "attention_backward", argument, part
    )


@pytest.mark.parametrize(
    ("argument", "given", "part"),
    [
        ("q", {"q": None}, "NoneType"),
        ("k", {"k": KEY.numpy()}, "ndarray"),
        ("v", {"v": KEY.tolist()}, "list"),
        ("q", {"q": torch.nested.nested_tensor([QUERY[0]] * 2, layout=torch.jagged)}, "nested"),
        ("k", {"k": torch.nested.nested_tensor([KEY[0]] * 2)}, "nested"),
        ("causal", {"causal": 1}, "a bool, got int"),
        ("causal", {"causal": None}, "a bool, got NoneType"),
        ("return_lse", {"return_lse": "yes"}, "a bool, got str"),
        ("window", {"window": 2.0}, "an integer, got float"),
        ("window", {"window": True}, "an integer, got bool"),
        ("window", {"window": 2**63}, "got 9223372036854775808"),
        ("window", {"window": 0}, "got 0"),
        ("scale", {"scale": "1"}, "a number, got str"),
        ("scale", {"scale": 1j}, "a number, got complex"),
        ("scale", {"scale": 10**400}, "finite, got inf"),
        ("key_start", {"key_start": [0, 0]}, "list"),
        ("key_start", {"key_start": 0}, "int"),
        ("key_end", {"key_end": STARTS.numpy()}, "ndarray"),
    ],
)
def test_wrong_types_are_refused(argument, given, part):
    options = {"q": QUERY, "k": KEY, "v": KEY} | given
    q, k, v = (options.pop(name) for name in "qkv")
    assert_refused(lambda: attention(q, k, v, **options), "attention", argument, part)


def test_absent_and_nested_tensors_are_refused_by_the_operator():
    nested = torch.nested.nested_tensor([KEY[0]] * 2)
    for requires_grad in (False, True):
        query = QUERY.clone().requires_grad_(requires_grad)
        assert_refused(
            lambda query=query: OPERATORS.attention(query, None, KEY), "attention", "key", "none"
        )
        assert_refused(
            lambda query=query: OPERATORS.attention(query, KEY, nested),
            "attention",
            "value",
            "nested",
        )


def test_nested_tensors_are_refused_below_autograd_too():
    nested = torch.nested.nested_tensor([KEY[0]] * 2)
    lse = torch.zeros(2, 4, 5)
    with torch.inference_mode():
        assert_refused(
            lambda: OPERATORS.attention(nested, KEY, KEY), "attention", "query", "nested"
        )
    assert_refused(
        lambda: OPERATORS.attention_backward(nested, None, QUERY, KEY, KEY, QUERY, lse),
        "attention_backward",
        "grad_out",
        "nested",
    )


def test_a_scale_that_would_lose_its_gradient_is_refused():
    scale = torch.tensor(0.3, requires_grad=True)
    assert_refused(lambda: attention(QUERY, KEY, KEY, scale=scale), "attention", "scale", "grad")


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        attention(QUERY, KEY, KEY, False)


def test_numbers_of_numpy_and_torch_are_taken():
    expected = attention(QUERY, KEY, KEY, window=2, scale=0.5, causal=True)
    for kind in (np.int32, torch.tensor):
        assert torch.equal(attention(QUERY, KEY, KEY, window=kind(2), scale=0.5), expected)
    assert torch.equal(
        attention(QUERY, KEY, KEY, window=2, scale=np.float32(0.5), causal=np.True_), expected
    )


def test_a_window_longer_than_any_sequence_sees_all():
    expected = attention(QUERY, KEY, KEY)
    assert torch.equal(attention(QUERY, KEY, KEY, window=2**63 - 1), expected)


def test_half_precision_under_autocast_is_refused():
    with torch.autocast("cpu", dtype=torch.float16):
        assert_refused(lambda: attention(QUERY, KEY, KEY), "attention", "query", "got Half")
