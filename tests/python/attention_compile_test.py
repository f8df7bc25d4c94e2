"""paperlab.ops.attention: torch.library.opcheck, torch.compile, tensors without data."""

import pytest
import torch
from attention_definition import Case
from paperlab.ops import attention

OPERATORS = torch.ops.paperlab

OPCHECK_CASES = [
    Case(),
    Case(causal=False, scale=0.3),
    Case(window=2, key_start=(1, 0), key_end=(7, 5)),
    Case(queries=7, keys=3),
    Case(queries=0),
    Case(keys=0),
    Case(keys=9, prefix_heads=2, prefix_length=3, prefix_group=2, window=3),
    Case(keys=9, prefix_heads=4, prefix_length=2, window=2, has_prefix_query=True),
    Case(
        keys=9,
        prefix_heads=2,
        prefix_length=6,
        prefix_group=2,
        window=3,
        prefix_kept=1,
        prefix_overlap=True,
        prefix_truncated=True,
        num_past=4,
    ),
]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", OPCHECK_CASES, ids=str)
def test_opcheck(case, dtype, requires_grad):
    tensors = case.tensors(dtype, requires_grad)
    torch.library.opcheck(OPERATORS.attention, (), tensors | case.operator_options())


def test_opcheck_of_views():
    tensors = Case(heads=2).tensors(requires_grad=True)
    views = {
        "query": tensors["query"].transpose(1, 2).contiguous().transpose(1, 2),
        "key": tensors["key"].mT.contiguous().mT,
        "value": tensors["value"][:, :, :1].expand(2, 2, 7, 8),
    }
    torch.library.opcheck(OPERATORS.attention, (), views)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_decode(requires_grad):
    case = Case(queries=1, window=3, key_end=(7, 2))
    tensors = case.tensors(requires_grad=requires_grad)
    torch.library.opcheck(OPERATORS.attention_decode, (), tensors | case.operator_options())


@pytest.mark.parametrize("has_grad_lse", [False, True])
@pytest.mark.parametrize("case", OPCHECK_CASES, ids=str)
def test_opcheck_of_the_backward_operator(case, has_grad_lse):
    tensors = case.tensors(torch.float32)
    out, lse = OPERATORS.attention(**tensors, **case.operator_options())
    results = {"grad_out": torch.ones(1).expand(out.shape), "out": out, "lse": lse}
    results["grad_lse"] = torch.ones_like(lse) if has_grad_lse else None
    torch.library.opcheck(
        OPERATORS.attention_backward, (), results | tensors | case.operator_options()
    )


def assert_compiles(function, inputs, **options):
    leaves = [x.requires_grad_() for x in inputs]
    expected = function(*leaves)
    grads = torch.autograd.grad(expected, leaves)
    compiled = torch.compile(function, fullgraph=True, **options)
    value = compiled(*leaves)
    found = torch.autograd.grad(value, leaves)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    for ours, theirs in zip(found, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def objective(q, k, v):
    start = torch.arange(q.shape[0])
    out, lse = attention(torch.sin(q), k, v, window=4, scale=0.3, key_start=start, return_lse=True)
    rows = out.transpose(1, 2).flatten(2)  # depends on the strides of out
    return (rows * rows.detach()).sum() + torch.where(lse > -1e30, lse, 0.0).sum()


def test_it_compiles_as_one_graph():
    assert_compiles(objective, Case().tensors().values(), backend="aot_eager")


def test_views_compile():
    q, k, v = Case().tensors().values()
    views = [q.transpose(1, 2).contiguous().transpose(1, 2), k.mT.contiguous().mT, v]
    assert_compiles(objective, [x.detach() for x in views], backend="aot_eager")


def test_it_compiles_without_gradients():
    q, k, v = Case().tensors().values()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v), attention(q, k, v))


def test_it_compiles_under_autocast():
    q, k, v = Case().tensors(torch.float32).values()

    def function(q, k, v):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attention(q, k, v)

    out = torch.compile(function, fullgraph=True, backend="aot_eager")(q, k, v)
    assert out.dtype == torch.bfloat16 and torch.equal(out, function(q, k, v))


def test_one_graph_serves_many_sizes():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda q, k, v: attention(q, k, v, window=k.shape[2] - 2),
        fullgraph=True,
        dynamic=True,
        backend=backend,
    )
    for queries, keys in ((5, 7), (4, 9), (3, 20)):
        q, k, v = Case(queries=queries, keys=keys).tensors().values()
        assert torch.equal(compiled(q, k, v), attention(q, k, v, window=keys - 2))
    assert len(graphs) == 1


@pytest.mark.parametrize("option", ["window", "scale"])
def test_numbers_may_change_between_calls_of_a_graph(option):
    q, k, v = Case().tensors().values()

    def function(q, k, v, number):
        return attention(q, k, v, **{option: number})

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for number in (2, 3, 5):
        value = number if option == "window" else number / 2
        assert torch.equal(compiled(q, k, v, value), function(q, k, v, value))


def test_gradients_of_many_sizes():
    compiled = torch.compile(objective, fullgraph=True, dynamic=True, backend="aot_eager")
    for queries, keys in ((5, 7), (4, 9), (9, 6)):
        inputs = list(Case(queries=queries, keys=keys).tensors(requires_grad=True).values())
        expected = torch.autograd.grad(objective(*inputs), inputs)
        for ours, theirs in zip(
            torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_a_bad_argument_is_found_while_compiling():
    q, k, v = Case().tensors().values()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="attention: key must be"):
        compiled(q, k[..., :3], v)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_with_inductor(dynamic):
    assert_compiles(objective, Case().tensors().values(), dynamic=dynamic)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_runs_on_the_meta_device(dtype):
    case = Case(keys=9, prefix_heads=2, prefix_length=3, prefix_group=2, window=3)
    tensors = {name: x.to("meta") for name, x in case.tensors(dtype).items()}
    out, lse = OPERATORS.attention(**tensors, **case.operator_options())
    assert out.device.type == "meta" and out.shape == (2, 4, 5, 8) and out.dtype == dtype
    assert lse.shape == (2, 4, 5) and lse.is_contiguous()
    grads = OPERATORS.attention_backward(
        out, None, **tensors, out=out, lse=lse, **case.operator_options()
    )
    order = ("query", "key", "value", None, "prefix_key", "prefix_value")
    for grad, name in zip(grads, order, strict=True):
        assert grad.shape == (tensors[name].shape if name else (0,)) and grad.is_contiguous()
