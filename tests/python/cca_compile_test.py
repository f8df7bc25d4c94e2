"""paperlab.cca: torch.compile, torch.library.opcheck, autocast."""

import pytest
import torch
from cca_definition import Case
from paperlab import cca

COMPILED = {
    "attention": lambda q, k, v: cca.attention(q, k, v, 3, 4, return_lse=True),
    "keep_first": lambda q, k, v: cca.attention(q, k, v, 3, 4, "mean", keep_first=2),
    "pool": lambda q, k, v: cca.pool(q, k, v, 3, weights_per="kv_head"),
    "effective": lambda q, k, v: (cca.effective_attention(q, k, 3, 4), v),
    "window": lambda q, k, v: cca.baselines.sliding_window(q, k, v, 4),
    "full": lambda q, k, v: cca.baselines.full(q, k, v, return_lse=True),
    "streaming_llm": lambda q, k, v: cca.baselines.streaming_llm(q, k, v, 2, 4),
    "lm_infinite": lambda q, k, v: cca.baselines.lm_infinite(q, k, v, 2, 4, 4),
    "a_shape": lambda q, k, v: cca.baselines.a_shape(q, k, v, 2, 4),
    "vertical_slash": lambda q, k, v: cca.baselines.vertical_slash(q, k, v, 1, 2, return_lse=True),
}


@pytest.mark.parametrize("name", COMPILED)
def test_functions_compile_as_one_graph(name):
    function = COMPILED[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = []
    for f in (function, compiled):
        leaves = [x.requires_grad_() for x in Case(length=20).tensors()]
        found = f(*leaves)
        found = found if isinstance(found, tuple) else (found,)
        sum(x.square().sum() for x in found).backward()
        results.append([x.detach() for x in found] + [x.grad for x in leaves])
    assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))


def test_autocast_and_the_operators_registration():
    case = Case(length=20)
    with torch.autocast("cpu", torch.bfloat16):
        assert cca.attention(*case.tensors(torch.float32), 3, 4).dtype == torch.bfloat16
    inputs = case.tensors(requires_grad=True)
    torch.library.opcheck(torch.ops.paperlab.cca_attention, inputs, {"group_size": 3, "window": 4})
    torch.library.opcheck(torch.ops.paperlab.cca_vertical_slash, (*inputs, 1, 2))


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_wrong_option_is_named_while_compiling(fullgraph):
    def wrong(q, k, v):
        return cca.attention(q, k, v, 3, 4, "zz")

    torch._dynamo.reset()
    compiled = torch.compile(wrong, backend="eager", fullgraph=fullgraph)
    kind = torch._dynamo.exc.Unsupported if fullgraph else ValueError
    with pytest.raises(kind, match=r'attention: pooling must be one of "attention", .*zz'):
        compiled(*Case(length=20).tensors())
