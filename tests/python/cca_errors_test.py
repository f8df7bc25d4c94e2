"""paperlab.cca's functions refuse wrong arguments by name, before any work."""

import math

import pytest
import torch
from paperlab import cca
from paperlab.cca import baselines
from torch.autograd import forward_ad

Q, K = torch.ones(2, 4, 6, 8), torch.ones(2, 2, 6, 8)

WRONG_TENSORS = [
    ((None, K, K), "q must be a torch.Tensor"),
    ((Q, [1.0], K), "k must be a torch.Tensor"),
    ((Q, K, 1.0), "v must be a torch.Tensor"),
    ((Q.int(), K.int(), K.int()), "q must be float32"),
    ((Q.half(), K.half(), K.half()), "q must be float32"),
    ((Q.to(torch.complex64), K, K), "q must be float32"),
    ((Q, K.double(), K), "k must be of the dtype"),
    ((Q, K, K.double()), "v must be of the dtype"),
    ((Q[0], K, K), "q must be"),
    ((Q[..., :0], K[..., :0], K[..., :0]), "q must be"),
    ((torch.ones(1, 1, 1, 257), K, K), "q must be"),
    ((Q, K[0], K), "k must be"),
    ((Q, K[:1], K[:1]), "k must be"),
    ((Q, K[:, :, :5], K[:, :, :5]), "k must be"),
    ((Q, K[..., :4], K[..., :4]), "k must be"),
    ((Q[:, :3], K, K), "k must be"),
    ((Q, K[:, :0], K[:, :0]), "k must be"),
    ((Q, K, K[:, :1]), "v must be"),
    ((Q, K, K[..., :4]), "v must be"),
    ((Q, K, K[0]), "v must be"),
    ((Q.to_sparse(), K, K), "q must be strided"),
    ((Q, K.to_sparse(), K), "k must be strided"),
    ((Q, K, K.to_sparse()), "v must be strided"),
    ((Q, K.to("meta"), K), "k must be on the device"),
    ((Q, K, K.to("meta")), "v must be on the device"),
]
FUNCTIONS = {
    "attention": cca.attention,
    "pool": cca.pool,
    "effective_attention": lambda q, k, v: cca.effective_attention(q, k),
    "full": baselines.full,
    "sliding_window": lambda *x: baselines.sliding_window(*x, 3),
    "streaming_llm": baselines.streaming_llm,
    "lm_infinite": baselines.lm_infinite,
    "a_shape": lambda *x: baselines.a_shape(*x, 1, 2),
    "vertical_slash": lambda *x: baselines.vertical_slash(*x, 1, 2),
}


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize(("tensors", "part"), WRONG_TENSORS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_tensors_are_refused(name, tensors, part, needs_grad):
    if name == "effective_attention" and part.startswith("v "):
        return
    if needs_grad:
        tensors = tuple(
            x.clone().requires_grad_()
            if isinstance(x, torch.Tensor) and x.is_floating_point()
            else x
            for x in tensors
        )
    with pytest.raises((ValueError, TypeError), match=f"^{name}: {part}"):
        FUNCTIONS[name](*tensors)


def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.ones(4, 6, 8)])
    for name, function in FUNCTIONS.items():
        with pytest.raises(ValueError, match=f"^{name}: q must be strided, got a nested"):
            function(nested, K, K)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "effective_attention"])
def test_forward_gradients_are_refused(name, index):
    tensors = [Q, K, K.clone()]
    with torch.no_grad(), forward_ad.dual_level():
        tensors[index] = forward_ad.make_dual(tensors[index], torch.ones_like(tensors[index]))
        with pytest.raises(NotImplementedError, match="forward-mode") as error:
            FUNCTIONS[name](*tensors)
    assert name != "vertical_slash" or str(error.value).startswith("vertical_slash: ")


def test_a_mask_that_memory_cannot_hold_is_refused():
    for options in ({}, {"window": 2**60}, {"group_size": 1, "window": 0}):
        with pytest.raises(ValueError, match=r"^mask: length must give less than 2\^46"):
            cca.mask(2**31 - 1, **options)


WRONG_OPTIONS = [
    ({"group_size": 0}, "group_size must be in 1"),
    ({"group_size": -3}, "group_size must be in 1"),
    ({"group_size": 2.0}, "group_size must be an integer"),
    ({"group_size": True}, "group_size must be an integer"),
    ({"group_size": None}, "group_size must be an integer"),
    ({"group_size": 2**63}, "group_size must be in 1"),
    ({"window": -1}, "window must be in 0"),
    ({"window": "4"}, "window must be an integer"),
    ({"window": 2**64}, "window must be in 0"),
    ({"keep_first": -1}, "keep_first must be in 0"),
    ({"keep_first": 0.5}, "keep_first must be an integer"),
    ({"pooling": "sum"}, "pooling must be one of"),
    ({"pooling": None}, "pooling must be a str"),
    ({"boundary": "triton"}, "boundary must be one of"),
    ({"boundary": 0}, "boundary must be a str"),
    ({"weights_per": "head"}, "weights_per must be one of"),
    ({"weights_per": []}, "weights_per must be a str"),
    ({"return_lse": 1}, "return_lse must be a bool"),
    (
        {"boundary": "triton_truncation", "group_size": 4, "window": 6},
        "window must be a multiple of group_size",
    ),
]
OF_POOL = {"group_size", "pooling", "weights_per", "keep_first"}
OF_MASK = {"group_size", "window", "boundary", "keep_first"}


@pytest.mark.parametrize(("options", "part"), WRONG_OPTIONS)
def test_wrong_options_are_refused(options, part):
    with pytest.raises((ValueError, TypeError), match=f"^attention: {part}"):
        cca.attention(Q, K, K, **options)
    if set(options) <= OF_POOL:
        with pytest.raises((ValueError, TypeError), match=f"^pool: {part}"):
            cca.pool(Q, K, K, **options)
    if set(options) <= OF_MASK:
        with pytest.raises((ValueError, TypeError), match=f"^mask: {part}"):
            cca.mask(10, **options)
    if set(options) <= {"group_size", "window"}:
        with pytest.raises((ValueError, TypeError), match=f"^effective_attention: {part}"):
            cca.effective_attention(Q, K, **options)


def is_for_the_operator(options):
    ints = [options.get(name, 1) for name in ("group_size", "window", "keep_first")]
    texts = [options.get(name, "") for name in ("pooling", "boundary", "weights_per")]
    return (
        "return_lse" not in options
        and all(type(x) is int and abs(x) < 2**62 for x in ints)
        and all(isinstance(x, str) for x in texts)
    )


@pytest.mark.parametrize(
    ("options", "part"), [case for case in WRONG_OPTIONS if is_for_the_operator(case[0])]
)
def test_the_operator_refuses_them_too(options, part):
    with pytest.raises((ValueError, TypeError), match=f"^attention: {part}"):
        torch.ops.paperlab.cca_attention(Q, K, K, **options)


@pytest.mark.parametrize("length", [-1, 1.0, None, True, 2**40])
def test_wrong_lengths_of_a_mask_are_refused(length):
    with pytest.raises((ValueError, TypeError), match=r"^mask: length must be"):
        cca.mask(length)


WRONG_NUMBERS = {
    "sliding_window": [("window", {}, 1)],
    "streaming_llm": [("sinks", {}, 0), ("recent", {}, 0)],
    "lm_infinite": [("global_tokens", {}, 0), ("local", {}, 1), ("limit", {}, 0)],
    "a_shape": [("initial", {"local": 1}, 0), ("local", {"initial": 1}, 1)],
    "vertical_slash": [("vertical", {"slash": 1}, 0), ("slash", {"vertical": 1}, 0)],
}


@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_wrong_numbers_of_baselines_are_refused(name):
    function = getattr(baselines, name)
    for argument, others, low in WRONG_NUMBERS[name]:
        for value in (low - 1, 1.5, None, "1", True, 2**63):
            with pytest.raises((ValueError, TypeError), match=f"^{name}: {argument} must be"):
                function(Q, K, K, **others, **{argument: value})
        order = [a for a, _, _ in WRONG_NUMBERS[name]]
        values = dict.fromkeys(order, 1) | others | {argument: low - 1}
        operator = getattr(torch.ops.paperlab, f"cca_{name}")
        with pytest.raises(ValueError, match=f"^{name}: {argument} must be"):
            operator(Q, K, K, *(values[a] for a in order))


@pytest.mark.parametrize("name", ["streaming_llm", "lm_infinite"])
def test_wrong_rotations_are_refused(name):
    function = getattr(baselines, name)
    for base in (0.0, -1.0, math.nan, math.inf, "a", True):
        with pytest.raises((ValueError, TypeError), match=f"^{name}: rope_base must be"):
            function(Q, K, K, rope_base=base)
    with pytest.raises(ValueError, match=f"^{name}: q must have an even D"):
        function(Q[..., :7], K[..., :7], K[..., :7])


@pytest.mark.parametrize("name", ["full", "sliding_window", "a_shape", "vertical_slash"])
def test_return_lse_must_be_a_bool(name):
    arguments = {"sliding_window": (3,), "a_shape": (1, 2), "vertical_slash": (1, 2)}.get(name, ())
    with pytest.raises(TypeError, match=f"^{name}: return_lse must be a bool"):
        getattr(baselines, name)(Q, K, K, *arguments, return_lse="yes")
