"""paperlab.mudd's functions and modules refuse wrong arguments by name."""

import math

import pytest
import torch
from paperlab.mudd import (
    ConnectionWeightGenerator,
    DepthAggregate,
    connection_weights,
    depth_aggregate,
)

OPERATORS = torch.ops.paperlab

X, W1, W2, A = torch.ones(2, 3, 5), torch.ones(5, 7), torch.ones(7, 8), torch.ones(4, 2)
WRONG_WEIGHTS = [
    (([1.0], W1, W2, A), {}, "x must be a torch.Tensor"),
    ((X, None, W2, A), {}, "w1 must be a torch.Tensor"),
    ((X, W1, 1.0, A), {}, "w2 must be a torch.Tensor"),
    ((X, W1, W2, [1.0]), {}, "a must be a torch.Tensor"),
    ((X.int(), W1.int(), W2.int(), A.int()), {}, "x must be float32"),
    ((X.half(), W1.half(), W2.half(), A.half()), {}, "x must be float32"),
    ((X, W1.double(), W2, A), {}, "w1 must be of the dtype"),
    ((X, W1, W2.double(), A), {}, "w2 must be of the dtype"),
    ((X, W1, W2, A.double()), {}, "a must be of the dtype"),
    ((X[0], W1, W2, A), {}, "x must be"),
    ((torch.ones(2, 3, 0), torch.ones(0, 7), W2, A), {}, "x must be"),
    ((X, W1[:4], W2, A), {}, "w1 must be"),
    ((X, W1[0], W2, A), {}, "w1 must be"),
    ((X, W1[:, :0], W2[:0], A), {}, "w1 must be"),
    ((X, W1, W2[:6], A), {}, "w2 must be"),
    ((X, W1, W2[:, :7], A), {}, "w2 must be"),
    ((X, W1, W2, A[:3]), {}, "a must be"),
    ((X, W1, W2, A[0]), {}, "a must be"),
    ((X, W1, W2, torch.ones(4, 3)), {}, "w2 must be"),
    ((X, W1, W2[:, :0], A[:, :0]), {}, "a must be"),
    ((X, W1, W2, A), {"ways": 3}, "a must be"),
    ((X, W1, W2, A), {"ways": 0}, "ways must be"),
    ((X, W1, W2, A), {"ways": 4.0}, "ways must be"),
    ((X, W1, W2, A), {"eps": 0.0}, "eps must be"),
    ((X, W1, W2, A), {"eps": -1.0}, "eps must be"),
    ((X, W1, W2, A), {"eps": math.nan}, "eps must be"),
    ((X, W1, W2, A), {"eps": math.inf}, "eps must be"),
    ((X, W1, W2, A), {"eps": "a"}, "eps must be"),
    ((X, W1, W2, A), {"gelu": "erf"}, "gelu must be"),
    ((X, W1, W2, A), {"gelu": None}, "gelu must be"),
    ((X.to_sparse(), W1, W2, A), {}, "x must be strided"),
    ((X, W1.to_sparse(), W2, A), {}, "w1 must be strided"),
    ((X.to("meta"), W1, W2, A), {}, "a must be on the device"),
    ((X, W1.to("meta"), W2, A), {}, "w1 must be on the device"),
]
S, A4 = torch.ones(2, 1, 3, 5), torch.ones(4, 1, 3, 2)
WRONG_SUMS = [
    ((1.0, A4), "states must be a torch.Tensor"),
    ((S, [1.0]), "weights must be a torch.Tensor"),
    (([], A4), "states must be"),
    (([S[0], 1.0], A4), r"states\[1\] must be a torch.Tensor"),
    (([S[0], S[0].double()], A4), r"states\[1\] must be of the dtype"),
    (([S[0], S[0].to("meta")], A4), r"states\[1\] must be on the device"),
    (([S[0], S[0, :, :2]], A4), r"states\[1\] must be of the shape"),
    (([S[0], S[0].to_sparse()], A4), r"states\[1\] must be strided"),
    (([S[0], S[1], S[1]], A4), "weights must be"),
    ((S.int(), A4.int()), "states must be float32"),
    ((S.half(), A4.half()), "states must be float32"),
    ((S, A4.double()), "weights must be of the dtype"),
    ((S[0], A4), "states must be"),
    ((S[:0], A4[..., :0]), "states must be"),
    ((S[..., :0], A4), "states must be"),
    ((S, A4[0]), "weights must be"),
    ((S, A4[:0]), "weights must be"),
    ((S, A4[:, :, :2]), "weights must be"),
    ((S, A4[..., :1]), "weights must be"),
    ((S, torch.ones(4, 1, 3, 3)), "weights must be"),
    ((S, torch.ones(4, 2, 3, 2)), "weights must be"),
    ((S.to_sparse(), A4), "states must be strided"),
    ((S, A4.to_sparse()), "weights must be strided"),
    ((S.to("meta"), A4), "weights must be on the device"),
]


@pytest.mark.parametrize(("arguments", "options", "part"), WRONG_WEIGHTS)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_wrong_arguments_of_the_weights_are_refused(arguments, options, part, needs_grad):
    if needs_grad and isinstance(arguments[3], torch.Tensor) and arguments[3].is_floating_point():
        arguments = (*arguments[:3], arguments[3].clone().requires_grad_())
    with pytest.raises((ValueError, TypeError), match=f"^connection_weights: {part}"):
        connection_weights(*arguments, **options)


@pytest.mark.parametrize(("arguments", "part"), WRONG_SUMS)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_wrong_arguments_of_the_sum_are_refused(arguments, part, needs_grad):
    if needs_grad and isinstance(arguments[1], torch.Tensor) and arguments[1].is_floating_point():
        arguments = (arguments[0], arguments[1].clone().requires_grad_())
    with pytest.raises((ValueError, TypeError), match=f"^depth_aggregate: {part}"):
        depth_aggregate(*arguments)


def are_tensors(arguments):
    return all(isinstance(argument, torch.Tensor) for argument in arguments)


@pytest.mark.parametrize(
    ("arguments", "options", "part"),
    [
        case
        for case in WRONG_WEIGHTS
        if are_tensors(case[0])
        and "ways" not in case[1]
        and isinstance(case[1].get("eps", 0.0), float)
        and isinstance(case[1].get("gelu", ""), str)
    ],
)
def test_the_operator_of_the_weights_refuses_them_too(arguments, options, part):
    name = part.split()[0]
    with pytest.raises((ValueError, TypeError), match=rf"^connection_weights: ({name}|w2) must be"):
        OPERATORS.connection_weights(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "part"), [case for case in WRONG_SUMS if are_tensors(case[0])]
)
def test_the_operator_of_the_sum_refuses_them_too(arguments, part):
    with pytest.raises((ValueError, TypeError), match=f"^depth_aggregate: {part}"):
        OPERATORS.depth_aggregate(*arguments)
    with pytest.raises((ValueError, TypeError), match=f"^depth_aggregate_backward: {part}"):
        OPERATORS.depth_aggregate_backward(torch.ones(4, 1, 3, 5), *arguments)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"grad_weights": torch.ones(4, 2, 3, 3)}, "w2 must be"),
        ({"grad_weights": torch.ones(4, 2, 2, 2)}, "grad_weights must be"),
        ({"grad_weights": torch.ones(8)}, "grad_weights must be"),
        ({"grad_weights": torch.ones(4, 2, 3, 2).double()}, "grad_weights must be"),
        ({"z": torch.ones(2, 3, 6)}, "z must be"),
        ({"z": torch.ones(2, 3, 7).double()}, "z must be"),
        ({"inverse_rms": torch.ones(2)}, "inverse_rms must be"),
        ({"inverse_rms": torch.ones(2, 3, device="meta")}, "inverse_rms must be on the device"),
        ({"w1": torch.ones(5, 8)}, "w2 must be"),
        ({"gelu": "erf"}, "gelu must be"),
    ],
)
def test_wrong_arguments_of_the_gradient_are_refused(change, part):
    arguments = {"grad_weights": torch.ones(4, 2, 3, 2), "x": X, "w1": W1, "w2": W2}
    arguments |= {"z": torch.ones(2, 3, 7), "inverse_rms": torch.ones(2, 3)}
    with pytest.raises((ValueError, TypeError), match=f"^connection_weights_backward: {part}"):
        OPERATORS.connection_weights_backward(**(arguments | change))


@pytest.mark.parametrize(
    ("arguments", "options", "part"),
    [
        ((0, 2), {}, "d_model must be"),
        ((4.0, 2), {}, "d_model must be"),
        ((4, 0), {}, "num_sources must be"),
        ((4, 2, 0), {}, "ways must be"),
        ((2**31 - 1, 2**31 - 1), {}, "d_model, num_sources and ways must make at most"),
        ((4, 2), {"eps": 0.0}, "eps must be"),
        ((4, 2), {"gelu": "erf"}, "gelu must be"),
    ],
)
@pytest.mark.parametrize("module", [ConnectionWeightGenerator, DepthAggregate])
def test_wrong_arguments_of_the_modules_are_refused(module, arguments, options, part):
    with pytest.raises((ValueError, TypeError), match=part):
        module(*arguments, **options)


def test_wrong_states_of_the_module_are_refused():
    module = DepthAggregate(5, 2)
    for states in (S[:1], S[0], torch.ones(3, 1, 3, 5), S[..., :4], [S[0]]):
        with pytest.raises(ValueError, match=r"^DepthAggregate: states must be \[2, B, T, 5\]"):
            module(states)
    for states in (1.0, S.double(), [S[0], S[0].double()]):
        with pytest.raises((ValueError, TypeError), match="must be"):
            module(states)


def test_a_refused_call_changes_nothing():
    before = X.clone()
    with pytest.raises(ValueError, match="eps"):
        connection_weights(X, W1, W2, A, eps=0.0)
    assert torch.equal(X, before)
