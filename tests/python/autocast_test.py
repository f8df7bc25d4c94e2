"""Operators, models and states under torch.autocast, and forward gradients, which are refused."""

import paperlab.mudd as mudd
import pytest
import tiny_decoder
import torch
from torch.autograd import forward_ad

OPS = torch.ops.paperlab
LOW, FLOAT, DOUBLE = torch.bfloat16, torch.float32, torch.float64
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])

MODELS = {
    "mudd": lambda: mudd.MuddFormer(23, 2, 16, 2, 256, seed=1),
    "normed": lambda: mudd.MuddFormer(23, 2, 16, 2, 256, seed=1, pre_post_norm=True),
    "static": lambda: mudd.MuddFormer(23, 2, 16, 2, 256, seed=1, variant="static"),
    "hyper": lambda: mudd.MuddFormer(23, 2, 16, 2, 256, seed=1, variant="hyper_connections"),
    "lime": lambda: mudd.MuddFormer(23, 2, 16, 2, 256, seed=1, variant="lime"),
    "llama": tiny_decoder.random_model,
}


def numbers(*shape, dtype=FLOAT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_models_train(name):
    model = MODELS[name]()
    exact = model(TOKENS).detach()
    with torch.autocast("cpu", LOW):
        logits = model(TOKENS)
    assert logits.dtype == LOW
    # Products round to 2^-9; so do a few dozen of them, one behind another.
    assert (logits - exact).norm() < 32 * 2**-9 * exact.norm()
    logits.float().logsumexp(-1).sum().backward()
    for value in model.parameters():
        assert value.grad.dtype == FLOAT
        assert value.grad.isfinite().all()


@pytest.mark.parametrize("name", ["mudd", "llama"])
def test_models_generate(name):
    with torch.autocast("cpu", LOW):
        tokens = MODELS[name]().generate(TOKENS, max_new_tokens=3)
    assert tokens.shape == (2, 8)


# Of [4, 8] x: what is made of it and of others in the dtype `other`.
def linear(x, other):
    return OPS.linear(x, numbers(5, 8, dtype=other), numbers(5, dtype=other))


def rms_norm(x, other):
    return OPS.rms_norm(x, numbers(8, dtype=other), numbers(4, 8, dtype=FLOAT))[0]


def swiglu(x, other):
    return OPS.swiglu(x, numbers(4, 8, dtype=other))


def rope(x, other):
    table = numbers(1, 2, 3, dtype=other)
    return OPS.rope(x.view(1, 2, 2, 8), table, table)


def connection_weights(x, other):
    w1, w2, a = (numbers(*shape, dtype=other) for shape in ((8, 6), (6, 6), (2, 3)))
    return OPS.connection_weights(x.view(1, 4, 8), w1, w2, a)[0]


def depth_aggregate(x, other):
    return OPS.depth_aggregate(x.view(2, 1, 2, 8), numbers(3, 1, 2, 2, dtype=other))


def linear_cross_entropy(x, other):
    return OPS.linear_cross_entropy(x, numbers(5, 8, dtype=other), torch.arange(4))[0]


WIDENING = (rms_norm, swiglu, connection_weights, depth_aggregate)
FUNCTIONS = (linear, linear_cross_entropy, rope, *WIDENING)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtypes", [(LOW, FLOAT), (FLOAT, LOW), (FLOAT, FLOAT)])
def test_operators_take_mixed_dtypes(function, dtypes):
    x = numbers(4, 8, dtype=dtypes[0]).requires_grad_()
    with torch.autocast("cpu", LOW):
        y = function(x, dtypes[1])
    wanted = {linear: LOW, linear_cross_entropy: FLOAT, rope: dtypes[0]}
    assert y.dtype == wanted.get(function, FLOAT)
    y.sum().backward()
    assert x.grad.dtype == x.dtype
    if function in WIDENING:  # bfloat16 numbers are numbers of float32
        wide = x.detach().float()
        exact = function(wide, FLOAT)
        tolerance = 2**-4 if dtypes[1] == LOW else 1e-6  # the others were rounded: 2^-9 each
        assert (y - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float64_stays_and_mixed_is_refused_elsewhere(function):
    with torch.autocast("cpu", LOW):
        if function is not rms_norm:  # its residual is float32
            assert function(numbers(4, 8, dtype=DOUBLE), DOUBLE).dtype == DOUBLE
        with torch.autocast("cpu", enabled=False), pytest.raises(TypeError):
            function(numbers(4, 8), DOUBLE)


def test_linear_is_torchs():
    x, weight = numbers(4, 8), numbers(5, 8, seed=1)
    with torch.autocast("cpu", LOW):
        ours, torchs = OPS.linear(x, weight), torch.nn.functional.linear(x, weight)
    torch.testing.assert_close(ours, torchs)


def test_lists_of_mixed_states():
    module = mudd.DepthAggregate(8, 3, 2)
    states = [numbers(2, 4, 8, dtype=dtype).requires_grad_() for dtype in (LOW, FLOAT, LOW)]
    with pytest.raises(TypeError, match=r"states\[1\] must be of the dtype of states\[0\]"):
        module(states)
    with torch.autocast("cpu", LOW):
        streams = module(states)
        low = module([states[0], states[2], states[0]])
    assert streams.dtype == low.dtype == FLOAT
    torch.testing.assert_close(streams, module([state.float() for state in states]))
    streams.sum().backward()
    assert [state.grad.dtype for state in states] == [LOW, FLOAT, LOW]
    with torch.autocast("cpu", LOW), pytest.raises(TypeError):
        module([states[0], states[1].long(), states[2]])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_forward_gradients_are_refused(function):
    x = numbers(4, 8)
    refused = pytest.raises(NotImplementedError, match=f"{function.__name__}: forward-mode")
    with refused:
        torch.func.jvp(lambda x: function(x, FLOAT), (x,), (x,))
    with torch.no_grad(), forward_ad.dual_level(), refused:
        function(forward_ad.make_dual(x, x), FLOAT)


@pytest.mark.parametrize("name", MODELS)
def test_models_refuse_forward_gradients(name):
    model = MODELS[name]()
    for parameter, value in model.named_parameters():
        for has_grad in (False, True):
            with torch.set_grad_enabled(has_grad), forward_ad.dual_level():
                dual = forward_ad.make_dual(value.detach(), torch.ones_like(value))
                with pytest.raises(NotImplementedError, match=r"^forward: forward-mode"):
                    torch.func.functional_call(model, {parameter: dual}, (TOKENS,))


@pytest.mark.parametrize("name", MODELS)
def test_models_refuse_the_transforms_of_torch_func(name):
    model = MODELS[name]()
    before = model(TOKENS)
    values = {n: v.detach() for n, v in model.named_parameters()}
    twice = {n: torch.stack([v, v]) for n, v in values.items()}

    def loss(values):
        return torch.func.functional_call(model, values, (TOKENS,)).square().sum()

    for call in (
        lambda: torch.func.grad(loss)(values),
        lambda: torch.func.vmap(loss)(twice),
        lambda: torch.func.jvp(loss, (values,), (values,)),
    ):
        with pytest.raises(NotImplementedError, match=r"^forward: torch\.func\.grad, vmap"):
            call()
    assert torch.equal(model(TOKENS), before)
    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
    assert all(g.isfinite().all() for g in gradients)


def test_an_eps_that_rounds_to_zero():
    x, w1, w2, a = numbers(1, 4, 8), numbers(8, 6), numbers(6, 6), numbers(2, 3)
    with pytest.raises(ValueError, match=r"connection_weights: eps must be > 0 in float32"):
        mudd.connection_weights(x, w1, w2, a, 2, eps=1e-46)
    assert OPS.connection_weights(x * 0, w1, w2, a, 1e-37)[0].isfinite().all()
    wide = [value.double() for value in (x, w1, w2, a)]
    assert OPS.connection_weights(*wide, 1e-46)[0].isfinite().all()
