"""The operators on a GPU, by our kernels and by LibTorch's operations: values and gradients within
the bounds of the CPU's tests.

The tests of values are the CPU's: a function takes its CPU tensors to the GPU and brings results
and gradients back.
"""

import itertools

import attention_test
import cca_attention_test
import cca_baselines_test
import cca_cache_test
import cca_definition
import depth_backend_test
import group_pool_test
import linear_cross_entropy_test
import linear_test
import mudd_functions_test
import numpy as np
import ops_test
import paperlab
import paperlab.ops as ops
import pytest
import rms_norm_test
import rope_test
import swiglu_test
import torch
from attention_definition import (
    Case,
    assert_within_bound,
    by_function,
    by_operator,
    definition,
    random_grads,
)
from attention_definition import outcome as attention_outcome
from gpu_cases import (
    BACKENDS,
    DOUBLE,
    FLOAT,
    HALF,
    LOW,
    NOTICES_FAIL,
    backend,
    moved,
    on,
    on_devices,
    outcome,
)
from paperlab import cca, mudd
from paperlab.cca import baselines

pytestmark = NOTICES_FAIL

DTYPES = (DOUBLE, FLOAT, LOW)
KERNELS = ("kernels",)
OPS = torch.ops.paperlab
SHAPES = [(1,), (5, 3), (2, 7, 64), (3, 577), (0, 8), (37, 1000), (2, 4099)]
LINEAR_SHAPES = [((5,), 3), ((3, 17), 33), ((2, 9, 48), 70), ((0, 8), 4), ((200, 264), 136)]


def each(*choices):
    return list(itertools.product(*choices))


@on_devices(
    "name dtype shape adds",
    each(BACKENDS, DTYPES, SHAPES, (False, True)),
    [("kernels", LOW, (5, 3), True), ("torch", FLOAT, (2, 3), False)],
)
def test_rms_norm(monkeypatch, name, dtype, shape, adds, device):
    monkeypatch.setattr(rms_norm_test, "rms_norm", on(device, ops.rms_norm))
    with backend(name):
        rms_norm_test.test_values_and_gradients_are_those_of_the_formula(dtype, shape, adds)


@on_devices(
    "name dtype shape", each(BACKENDS, DTYPES, [*SHAPES, (4, 0)]), [("kernels", LOW, (5, 3))]
)
def test_swiglu(monkeypatch, name, dtype, shape, device):
    monkeypatch.setattr(swiglu_test, "swiglu", on(device, ops.swiglu))
    with backend(name):
        swiglu_test.test_values_and_gradients_are_those_of_the_formula(dtype, shape)


@on_devices(
    "name dtype shapes inverse",
    each(BACKENDS, DTYPES, rope_test.SHAPES, (False, True)),
    [("kernels", LOW, ((2, 5, 3, 7), (1, 5, 2)), True)],
)
def test_rope(monkeypatch, name, dtype, shapes, inverse, device):
    monkeypatch.setattr(rope_test, "rope", on(device, ops.rope))
    with backend(name):
        rope_test.test_values_and_gradients_are_those_of_the_formula(*shapes, dtype, inverse)


@on_devices(
    "name dtype shape adds",
    each(BACKENDS, DTYPES, LINEAR_SHAPES, (False, True)),
    [("kernels", LOW, ((3, 17), 33), True)],
)
def test_linear(monkeypatch, name, dtype, shape, adds, device):
    monkeypatch.setattr(linear_test, "linear", on(device, ops.linear))
    with backend(name):
        linear_test.test_values_and_gradients_are_those_of_the_formula(dtype, *shape, adds)


LOSSES = [((1, 3), 1), ((5, 7), 13), ((2, 9, 48), 300), ((70, 33), 1025), ((3, 2, 4, 5), 2200)]


# Of a half type the logits' gradients are rounded to it before they are multiplied: half an ulp of
# each, so that a sum of products is off by as much of the sum of absolute values.
plain_bound = linear_cross_entropy_test.assert_within_the_bound


def check_loss(tensors, target, grad, **options):
    module, dtype = linear_cross_entropy_test, tensors[0].dtype
    if dtype in (FLOAT, DOUBLE):
        plain_bound(tensors, target, grad, **options)
        return
    got = module.results(module.linear_cross_entropy, tensors, target, grad, **options)
    wide = [tensor.double() for tensor in tensors]
    exact = module.results(module.formula, wide, target, grad, **options)
    sums, largest = module.norms(tensors, target, grad, **options)
    rounding = torch.finfo(dtype).eps / 2
    most = max(float(tensor.abs().max()) for tensor in wide[:2])
    # What float16 cannot hold, of each term of a sum.
    tiny = torch.finfo(dtype).tiny * rounding * most * (target.numel() + len(wide[1]))
    for index, (found, wanted) in enumerate(zip(got, exact, strict=True)):
        assert found.dtype == (dtype if index else FLOAT)
        bound = torch.finfo(found.dtype).eps / 2 * wanted.abs() + tiny
        bound = bound + 2.0**-23 * sums[index] * (4 + largest)
        bound = bound + (1.01 * rounding * sums[index] if index else 0.0)
        assert ((found.double() - wanted).abs() <= bound).all(), index


@on_devices(
    "name dtype shape reduction adds",
    [
        (name, dtype, shape, reduction, adds)
        for name, dtype, shape, (reduction, adds) in each(
            BACKENDS, (*DTYPES, HALF), LOSSES, [("mean", True), ("sum", False), ("none", True)]
        )
    ],
    [("kernels", LOW, ((5, 7), 13), "mean", True), ("torch", HALF, ((5, 7), 13), "none", True)],
)
def test_linear_cross_entropy(monkeypatch, name, dtype, shape, reduction, adds, device):
    module = linear_cross_entropy_test
    monkeypatch.setattr(module, "linear_cross_entropy", on(device, ops.linear_cross_entropy))
    monkeypatch.setattr(module, "assert_within_the_bound", check_loss)
    sizes, vocabulary = shape
    with backend(name):
        module.test_values_and_gradients_are_those_of_the_formula(
            dtype, reduction, adds, 0.02, sizes, vocabulary
        )


@on_devices("name dtype scale", each(BACKENDS, DTYPES, (30.0, 1e4)), [("torch", FLOAT, 30.0)])
def test_linear_cross_entropy_of_large_logits(monkeypatch, name, dtype, scale, device):
    module = linear_cross_entropy_test
    monkeypatch.setattr(module, "linear_cross_entropy", on(device, ops.linear_cross_entropy))
    monkeypatch.setattr(module, "assert_within_the_bound", check_loss)
    with backend(name):
        module.test_large_logits(dtype, scale)
        module.test_chunks_of_rows_and_columns(dtype) if device == "cuda" else None


@on_devices(
    "name max_length scale",
    each(BACKENDS, (1, 2, 5, 12), (0.4, 2.0)),
    [("kernels", 2, 0.4), ("torch", 2, 2.0)],
)
def test_even_pairs_loss(monkeypatch, name, max_length, scale, device):
    monkeypatch.setattr(ops_test, "even_pairs_loss", on(device, ops.even_pairs_loss))
    with backend(name):
        if max_length == 12:
            ops_test.test_float32_accumulates_in_float64()
        else:
            ops_test.test_loss_and_gradients_follow_the_definition(max_length, scale)


# Beside the CPU's: whole and partial tiles of the tensor-core kernels, one query among many keys.
TILES = [
    Case(batch=1, heads=2, kv_heads=1, queries=63, keys=70, width=64),
    Case(batch=1, heads=4, kv_heads=2, queries=130, keys=130, width=128),
    Case(batch=2, heads=2, kv_heads=2, queries=128, keys=257, width=64, causal=False),
    Case(batch=1, heads=3, kv_heads=1, queries=200, keys=200, width=96, window=70),
    Case(batch=1, heads=2, kv_heads=2, queries=65, keys=193, width=80),
    Case(batch=2, heads=6, kv_heads=2, queries=1, keys=513, width=64),
    Case(batch=1, heads=4, kv_heads=2, queries=129, keys=129, width=64, key_start=(60,)),
    Case(
        batch=1,
        heads=4,
        kv_heads=2,
        queries=150,
        keys=150,
        width=64,
        window=33,
        prefix_heads=4,
        prefix_length=20,
        prefix_group=8,
    ),
]


# Weights, gradients of logits and, for these, the output are rounded to a half type: half an ulp of
# each, and as much of the sums of absolute values that they are terms of; then the result is.
def check_half_attention(case, dtype, function):
    tensors, grads = case.tensors(dtype), random_grads(case, dtype)
    exact, sums, largest = definition(case, tensors, grads)
    found = attention_outcome(case, tensors, function, grads)
    info = torch.finfo(dtype)
    for name, x in exact.items():
        assert found[name].shape == x.shape
        inside = 0.0 if name == "lse" else 1.5 * info.eps
        bound = (inside + 2.0**-23 * (4 + largest)) * sums[name] + info.tiny
        bound = bound + torch.finfo(found[name].dtype).eps / 2 * (abs(np.nan_to_num(x)) + bound)
        with np.errstate(invalid="ignore"):
            got = found[name].double().numpy()
            assert np.all((got == x) | (abs(got - x) <= bound)), name


ATTENTION = [*attention_test.CASES, *attention_test.PREFIX_CASES, *TILES]


@on_devices(
    "name dtype case",
    each(BACKENDS, (*DTYPES, HALF), ATTENTION),
    [
        ("kernels", LOW, Case(window=3, key_start=(1, 4))),
        ("torch", HALF, Case(heads=2, queries=2, keys=4, width=8)),
    ],
)
def test_attention(name, dtype, case, device):
    has_prefix = case.prefix_heads or case.num_past
    of_case = by_operator if has_prefix else by_function

    def called(same, tensors):
        with pytest.MonkeyPatch.context() as patch:
            options = type(same).operator_options if has_prefix else type(same).options
            patch.setattr(type(same), options.__name__, lambda x: moved(options(x), device))
            results = of_case(same, moved(tensors, device))
        assert all(x.device.type == device for x in results)
        return moved(results, "cpu")

    with backend(name):
        if dtype in (DOUBLE, FLOAT):
            assert_within_bound(case, dtype, called)
        else:
            check_half_attention(case, dtype, called)


KINDS = each(group_pool_test.KINDS, (False, True), (None, (0, 4), (14, 3)), (0, 2))


@on_devices(
    "name kind per_kv start first",
    [(name, *rest) for name, rest in each(BACKENDS, KINDS)],
    [("kernels", "attention", True, (0, 4), 2)],
)
def test_group_pool(monkeypatch, name, kind, per_kv, start, first, device):
    monkeypatch.setattr(group_pool_test, "POOL", on(device, OPS.group_pool))
    with backend(name):
        group_pool_test.test_values_and_gradients_are_those_of_the_definition(
            kind, per_kv, start, first
        )


@on_devices(
    "name kind dtype",
    each(BACKENDS, group_pool_test.KINDS, (FLOAT, LOW, HALF)),
    [("torch", "max", HALF), ("kernels", "attention", LOW)],
)
def test_group_pool_in_float32(monkeypatch, name, kind, dtype, device):
    monkeypatch.setattr(depth_backend_test, "POOL", on(device, OPS.group_pool))
    with backend(name):
        depth_backend_test.test_pools_accumulate_in_float32(kind, dtype)


DEPTH = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 7, 4, 2),
    (1, 9, 33, 24, 3, 8),
    (2, 40, 72, 100, 4, 25),
    (0, 3, 5, 7, 4, 2),
    (2, 0, 5, 7, 1, 2),
    (1, 130, 264, 52, 4, 13),
]


@on_devices(
    "name dtype sizes gelu",
    each(BACKENDS, (*DTYPES, HALF), DEPTH, ("exact", "tanh")),
    [("kernels", LOW, DEPTH[1], "tanh"), ("torch", HALF, DEPTH[1], "exact")],
)
def test_connection_weights(name, dtype, sizes, gelu, device):
    module, (batch, length, width, hidden, ways, sources) = mudd_functions_test, sizes
    function = on(device, mudd.connection_weights)
    with backend(name):
        depth_backend_test.check(
            lambda *t: function(*t, ways=ways, eps=1e-5, gelu=gelu),
            lambda *t: module.weights_formula(*t, eps=1e-5, gelu=gelu),
            module.generator_tensors(batch, length, width, hidden, ways, sources, dtype),
            8 * (width + hidden + ways * sources + batch * length + 8),
        )


@on_devices(
    "name dtype sizes",
    each(BACKENDS, (*DTYPES, HALF), DEPTH),
    [("kernels", LOW, DEPTH[1]), ("torch", LOW, DEPTH[1])],
)
def test_depth_aggregate(name, dtype, sizes, device):
    module, (batch, length, width, hidden, ways, sources) = mudd_functions_test, sizes
    function = on(device, mudd.depth_aggregate)
    tensors = module.sum_tensors(sources, batch, length, width, ways, dtype)
    with backend(name):
        depth_backend_test.check(
            function, module.sum_formula, tensors, 8 * (width + ways + sources + hidden)
        )
        depth_backend_test.check(
            lambda states, weights: function(list(states), weights),
            module.sum_formula,
            tensors,
            8 * (width + ways + sources + hidden),
        )


CORE_CASES = [
    *cca_attention_test.CASES,
    cca_definition.Case(batch=1, length=150, group_size=8, window=32, width=64),
]


@on_devices(
    "name dtype case",
    each(BACKENDS, DTYPES, CORE_CASES),
    [("kernels", LOW, cca_definition.Case(batch=1, length=13, width=3))],
)
def test_core_context_attention(monkeypatch, name, dtype, case, device):
    for function in ("attention", "pool"):
        monkeypatch.setattr(cca, function, on(device, getattr(cca, function)))
    with backend(name):
        cca_attention_test.test_out_lse_and_gradients_are_those_of_the_definition(case, dtype)
        cca_attention_test.test_pool_is_the_definitions(case, dtype)


@on_devices(
    "name dtype number",
    each(BACKENDS, DTYPES, range(len(cca_baselines_test.FUNCTIONS))),
    [("kernels", FLOAT, 2)],
)
def test_baselines(monkeypatch, name, dtype, number, device):
    function, options, plain = cca_baselines_test.FUNCTIONS[number]
    monkeypatch.setattr(baselines, function, on(device, getattr(baselines, function)))
    inputs = cca_baselines_test.SHAPES[0].tensors(dtype)
    with backend(name):
        cca_baselines_test.assert_is_the_definition(function, options, plain, inputs, dtype)


@on_devices(
    "name case seed",
    each(BACKENDS, cca_cache_test.CASES, (0, 3)),
    [("kernels", cca_definition.Case(length=20, keep_first=2), 3)],
)
def test_the_streaming_cache(name, case, seed, device):
    wanted = cca.attention(*case.tensors(), **case.options())
    with backend(name):
        inputs = [x.to(device) for x in case.tensors()]
        cache = cca_cache_test.new_cache(case)
        sizes = cca_cache_test.chunk_sizes(case.length, seed)
        out = cca_cache_test.streamed(cache, inputs, sizes)
    assert out.device.type == device
    assert (out.cpu() - wanted).abs().max() < 1e-12  # float64: sums of some ten terms of size 1


@on_devices("name", [(name,) for name in BACKENDS], [KERNELS])
def test_effective_attention(name, device):
    q, k, _ = cca_definition.Case().tensors()
    wanted = outcome(lambda *x: cca.effective_attention(*x, 3, 4), [q, k])
    with backend(name):
        found = outcome(lambda *x: cca.effective_attention(*x, 3, 4), [q, k], device)
    for x, y in zip(found, wanted, strict=True):
        assert (x - y).abs().max() <= 1e-12 * y.abs().max().clamp_min(1.0)


# Each update is a sum of products of float64 numbers in another order, and the loop is smooth.
@on_devices("method", [("strings",), ("fold",)], [("fold",)])
def test_training_of_the_one_layer_model(method, device):
    settings = {"method": method, "max_length": 5, "num_steps": 20, "record": [0, 7, 20]}
    wanted = paperlab.regular_language.train(**settings, init_std=0.3, seed=3)
    found = paperlab.regular_language.train(**settings, init_std=0.3, seed=3, device=device)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-12, err_msg=name)
