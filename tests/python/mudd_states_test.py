"""States of paperlab.mudd that are tensors of their own: read in place, kept as they are."""

import copy
import pickle

import paperlab
import pytest
import torch
from paperlab.mudd import (
    ConnectionWeightGenerator,
    DepthAggregate,
    MuddFormer,
    depth_aggregate,
)

OPERATORS = torch.ops.paperlab
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def tensors(dtype=torch.float64, num_states=3):
    """States [B 2, T 3, D 5] and weights [C 2, 2, 3, J]; the second state is not contiguous."""
    states = [random(2, 3, 5, dtype=dtype, seed=j) for j in range(num_states)]
    states[1] = states[1].mT.contiguous().mT
    return states, random(2, 2, 3, num_states, dtype=dtype, seed=9)


@TYPES
@pytest.mark.parametrize("backend", ["kernels", "torch"])
def test_a_list_gives_the_bits_of_one_tensor(dtype, backend):
    states, weights = tensors(dtype)
    before = paperlab.ops.get_backend()
    try:
        paperlab.ops.set_backend(backend)
        one = [torch.stack(states).requires_grad_(), weights.clone().requires_grad_()]
        wanted = depth_aggregate(*one)
        grad = random(*wanted.shape, dtype=dtype, seed=8)
        of_one = torch.autograd.grad(wanted, one, grad)
        leaves = [x.clone().requires_grad_() for x in (*states, weights)]
        got = depth_aggregate(leaves[:-1], leaves[-1])
        grads = torch.autograd.grad(got, leaves, grad)
        (of_last,) = torch.autograd.grad(depth_aggregate(leaves[:-1], weights), leaves[2], grad)
    finally:
        paperlab.ops.set_backend(before)
    assert torch.equal(got, wanted)
    for found, exact in zip(grads, (*of_one[0], of_one[1]), strict=True):
        assert torch.equal(found, exact)
    assert torch.equal(of_last, of_one[0][2])


def test_only_wanted_gradients_are_made():
    states, weights = tensors()
    leaves = [x.clone().requires_grad_(j == 1) for j, x in enumerate(states)]
    depth_aggregate(leaves, weights).sum().backward()
    assert leaves[0].grad is None and leaves[2].grad is None
    torch.testing.assert_close(leaves[1].grad, weights[..., 1].sum(0)[..., None].expand(2, 3, 5))


def test_no_tokens():
    states = [torch.empty(2, 0, 5).requires_grad_() for _ in range(2)]
    out = depth_aggregate(states, torch.empty(3, 2, 0, 2))
    assert out.shape == (3, 2, 0, 5)
    out.sum().backward()
    assert states[0].grad.shape == (2, 0, 5)


@TYPES
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(dtype, requires_grad):
    states, weights = tensors(dtype)
    leaves = [x.clone().requires_grad_(requires_grad) for x in (*states, weights)]
    torch.library.opcheck(OPERATORS.depth_aggregate_list, (leaves[:-1], leaves[-1]))
    out = depth_aggregate(states, weights)
    wanted = [True, False, True, True]
    torch.library.opcheck(OPERATORS.depth_aggregate_list_backward, (out, states, weights, wanted))


def test_autocast_takes_the_widest_dtype():
    states, weights = tensors(torch.float32)
    states[0] = states[0].bfloat16()
    leaves = [x.clone().requires_grad_() for x in states]
    with torch.autocast("cpu", torch.bfloat16):
        out = depth_aggregate(leaves, weights.bfloat16())
    assert out.dtype == torch.float32
    out.sum().backward()
    assert [x.grad.dtype for x in leaves] == [x.dtype for x in states]


def drop_in(aggregates, x):
    """The loop of the paper's README, of blocks that keep nothing themselves."""
    states = [x]
    for aggregate in aggregates:
        states.append(x * 0.5)
        (x,) = aggregate(states)
    return x, states


def test_a_model_keeps_each_state_once():
    aggregates = torch.nn.ModuleList(DepthAggregate(256, i + 2, ways=1) for i in range(24))
    x = torch.randn(2, 64, 256, requires_grad=True)  # larger than weights are
    kept = {}

    def pack(saved):
        if saved.numel() >= x.numel():  # a state, or a copy of one
            kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        out, states = drop_in(aggregates, x)
    of_states = {state.untyped_storage().data_ptr() for state in states}
    assert len(states) == 25 and kept.keys() <= of_states
    out.sum().backward()
    assert x.grad is not None


def test_the_drop_in_compiles_as_one_graph():
    aggregates = torch.nn.ModuleList(
        DepthAggregate(6, i + 2, ways=1, dtype=torch.float64) for i in range(3)
    )
    for aggregate in aggregates:
        torch.nn.init.normal_(aggregate.generator.w2.weight)
    x = random(2, 4, 6).requires_grad_()
    compiled = torch.compile(drop_in, fullgraph=True, backend="aot_eager")
    leaves = [x, *aggregates.parameters()]
    got = torch.autograd.grad(compiled(aggregates, x)[0].square().sum(), leaves)
    wanted = torch.autograd.grad(drop_in(aggregates, x)[0].square().sum(), leaves)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("states", "part"),
    [
        ([], "states must be a list"),
        ([torch.ones(3, 5)], r"states\[0\] must be \[B, T, D\]"),
        ([torch.ones(1, 3, 0)], r"states\[0\] must be \[B, T, D\]"),
        ([torch.ones(1, 3, 5).int()], r"states\[0\] must be float32"),
        ([torch.ones(1, 3, 5), torch.ones(1, 3, 5).double()], r"states\[1\] must be of the dtype"),
        ([torch.ones(1, 3, 5), torch.ones(1, 2, 5)], r"states\[1\] must be of the shape"),
        ([torch.ones(1, 3, 5)] * 3, "weights must be"),
    ],
)
def test_the_operators_refuse_wrong_lists(states, part):
    weights = torch.ones(4, 1, 3, 2)
    with pytest.raises((ValueError, TypeError), match=f"^depth_aggregate: {part}"):
        OPERATORS.depth_aggregate_list(states, weights)
    with pytest.raises((ValueError, TypeError), match=f"^depth_aggregate_backward: {part}"):
        OPERATORS.depth_aggregate_list_backward(
            torch.ones(4, 1, 3, 5), states, weights, [True] * (len(states) + 1)
        )


def test_weights_that_memory_does_not_hold_are_refused():
    with pytest.raises(ValueError, match="must make weights that memory holds"):
        ConnectionWeightGenerator(2**31 - 1, 1000, 4)


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_pickled_model_keeps_core_context_attention(is_copied):
    model = MuddFormer(32, 2, 16, 2, 256, seed=0)
    tokens = torch.arange(24)[None]
    full = model(tokens)
    paperlab.cca.apply(model, 4, 8, "mean", weights_per="kv_head", keep_first=1)
    wanted = model(tokens)
    if is_copied:
        model = copy.deepcopy(model)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(tokens), wanted) and not torch.equal(wanted, full)
    assert torch.equal(paperlab.cca.remove(again)(tokens), full)
    assert torch.equal(pickle.loads(pickle.dumps(again))(tokens), full)
