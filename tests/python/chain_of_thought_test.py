"""paperlab.regular_language.chain_of_thought against the definition."""

import inspect

import numpy as np
import one_layer
import pytest
import torch
from paperlab.regular_language import chain_of_thought, train

RNG = np.random.default_rng(3)


def model(max_length):
    return RNG.normal(size=2 * max_length), RNG.normal(size=(2 * max_length, 2 * max_length))


def all_strings(length):
    return np.array(list(one_layer.strings_of(length)))


def test_the_signature_is_the_contract():
    defaults = {p.name: p.default for p in inspect.signature(chain_of_thought).parameters.values()}
    empty = inspect.Parameter.empty
    assert list(defaults.items()) == [
        ("u", empty),
        ("w", empty),
        ("strings", empty),
        ("truncated", True),
        ("attention_scale", 2.0),
    ]


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("length", [2, 3, 5])
def test_every_step_follows_the_definition(length, truncated):
    u, w = model(2 * length)
    strings = all_strings(length)
    for scale in (0.3, 2.0):
        expected = [one_layer.chain_of_thought(u, w, x, truncated, scale) for x in strings]
        result = chain_of_thought(u, w, strings, truncated, scale)
        assert result.dtype == np.int64 and result.tolist() == expected


def test_a_trained_model_tells_the_parity():
    state = train("parity_cot", num_steps=2000)
    strings = all_strings(4)
    for truncated in (False, True):
        result = chain_of_thought(state["u"][-1], state["w"], strings, truncated)
        assert result.tolist() == (strings.sum(axis=1) % 2).tolist()


def test_a_tie_appends_b():
    assert chain_of_thought(np.zeros(8), np.zeros((8, 8)), all_strings(3)).tolist() == [1] * 8
    up = np.full(8, 1e-300)
    assert chain_of_thought(up, np.zeros((8, 8)), all_strings(3)).tolist() == [0] * 8


def test_a_chain_may_fill_the_model_exactly():
    u, w = model(4)
    strings = all_strings(3)
    assert chain_of_thought(u, w, strings, truncated=False).shape == (8,)
    assert chain_of_thought(u, w, all_strings(4), truncated=True).shape == (16,)


def test_no_string_gives_no_answer():
    u, w = model(4)
    assert chain_of_thought(u, w, np.zeros((0, 4), dtype=np.int8)).shape == (0,)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64])
def test_strings_may_have_any_integer_dtype(dtype):
    u, w = model(4)
    strings = all_strings(4)
    expected = chain_of_thought(u, w, strings)
    np.testing.assert_array_equal(chain_of_thought(u, w, strings.astype(dtype)), expected)


def test_views_and_torch_tensors_give_the_same_and_stay_as_they_are():
    u, w = model(4)
    strings = all_strings(4)
    expected = chain_of_thought(u, w, strings)
    wide_u, wide_w = np.repeat(u, 2)[::2], np.asfortranarray(w)
    wide_strings = np.flip(np.flip(strings, 1).copy(), 1)
    for array in (wide_u, wide_w, wide_strings):
        array.flags.writeable = False
    np.testing.assert_array_equal(chain_of_thought(wide_u, wide_w, wide_strings), expected)

    tensors = [torch.tensor(u, requires_grad=True), torch.tensor(w.T).T, torch.tensor(strings)]
    before = [tensor.detach().clone() for tensor in tensors]
    result = chain_of_thought(*tensors)
    np.testing.assert_array_equal(result, expected)
    result[:] = 7
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))

    row = torch.tensor([0, 1, 1, 0]).expand(5, 4)
    assert len(set(chain_of_thought(u, w, row).tolist())) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_floats_are_widened(dtype):
    u, w = (torch.tensor(x).to(dtype) for x in model(4))
    strings = all_strings(4)
    expected = chain_of_thought(u.double(), w.double(), strings)
    np.testing.assert_array_equal(chain_of_thought(u, w, strings), expected)


GOOD = {"u": np.ones(8), "w": np.zeros((8, 8)), "strings": np.zeros((3, 4), dtype=int)}
NAN = np.full(8, np.nan)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("u", np.ones(7)),
        ("u", np.ones(0)),
        ("u", np.ones((8, 1))),
        ("u", np.float64(1.0)),
        ("u", NAN),
        ("u", np.ones(8, dtype=complex)),
        ("u", np.ones(8, dtype=bool)),
        ("u", ["a"] * 8),
        ("u", None),
        ("u", torch.ones(8).to_sparse()),
        ("u", torch.ones(8, device="meta")),
        ("w", np.zeros((8, 7))),
        ("w", np.zeros((8, 8, 1))),
        ("w", np.full((8, 8), np.inf)),
        ("w", [[1.0], [1.0, 2.0]]),
        ("strings", np.zeros(4, dtype=int)),
        ("strings", np.zeros((3, 1), dtype=int)),
        ("strings", np.zeros((3, 0), dtype=int)),
        ("strings", np.zeros((3, 5), dtype=int)),
        ("strings", np.full((3, 4), 2)),
        ("strings", np.full((3, 4), -1)),
        ("strings", np.full((3, 4), 256)),
        ("strings", np.full((3, 4), 2**40)),
        ("strings", np.zeros((3, 4))),
        ("strings", np.zeros((3, 4), dtype=bool)),
        ("strings", torch.zeros(3, 4)),
        ("strings", "0101"),
        ("truncated", 1),
        ("truncated", "yes"),
        ("truncated", None),
        ("attention_scale", 0.0),
        ("attention_scale", np.nan),
        ("attention_scale", "2"),
    ],
)
def test_bad_arguments_are_value_errors_that_name_them(argument, value):
    with pytest.raises(ValueError, match=rf"^chain_of_thought: .*\b{argument}\b"):
        chain_of_thought(**{**GOOD, argument: value})


def test_a_chain_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"chain_of_thought: u and w .*6 tokens"):
        chain_of_thought(**{**GOOD, "truncated": False})
