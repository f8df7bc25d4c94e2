"""MuddFormer against the plain definition, in every variant."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from mudd_models import SIZES, VARIANTS, definition, distance, new, some_tokens
from paperlab.mudd import MuddFormer

CASES: dict[str, dict[str, Any]] = {
    **{variant: {"variant": variant} for variant in VARIANTS},
    **{f"without {way}": {"ways": "QKVR".replace(way, "")} for way in "QKVR"},
    "V alone": {"ways": "V"},
    "tanh": {"gelu": "tanh"},
    "rounded": {"hidden_round": 64},
    "narrow last": {"last_hidden_expand": 1},
    "dilation": {"dilation": 2},
    "period": {"period": 2},
    "2x3": {"dilation": 2, "period": 3},
    "period beyond": {"period": 9},
    "window 1": {"window": 1},
    "window 2": {"window": 2},
    "static window": {"variant": "multiway_static", "window": 2},
    "dynamic dilation": {"variant": "dynamic", "dilation": 3},
    "eq. 10": {"pre_post_norm": True},
    "eq. 10 static": {"variant": "multiway_static", "pre_post_norm": True},
    "eq. 10 one way": {"variant": "dynamic", "pre_post_norm": True, "period": 2},
    "eq. 10 dilation": {"pre_post_norm": True, "dilation": 2},
    "later revision": {"pre_post_norm": "later_revision"},
    "later revision without R": {"pre_post_norm": "later_revision", "ways": "QV"},
    "QK-norm": {"qk_norm": True},
    "eps and base": {"norm_eps": 1e-2, "rope_base": 100.0},
    "two streams": {"variant": "hyper_connections", "num_streams": 2},
    "one stream": {"variant": "hyper_connections", "num_streams": 1},
    "parallel": {"parallel_block": True},
    "parallel base": {"parallel_block": True, "variant": "base"},
    "parallel static": {"parallel_block": True, "variant": "static", "qk_norm": True},
    "parallel lime": {"parallel_block": True, "variant": "lime"},
    "parallel hyper": {"parallel_block": True, "variant": "hyper_connections", "num_streams": 3},
    "one block": {"num_layers": 1},
    "one block of hyper": {"num_layers": 1, "variant": "hyper_connections", "num_streams": 2},
    "one block of lime": {"num_layers": 1, "variant": "lime"},
    "narrow": {"d_model": 2, "num_heads": 1, "d_ff": 9, "ffn_round": 1},
    "odd heads": {"d_model": 18, "num_heads": 3, "d_ff": 17, "ffn_round": 1, "qk_norm": True},
    "re-allocated base": {"variant": "base", "ffn_reallocation": True},
    "mudd without": {"ffn_reallocation": False},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_the_definition(case: str) -> None:
    options = CASES[case]
    model = new(**options)
    tokens = some_tokens()
    plain = definition(model, **{k: v for k, v in options.items() if k in _DEFINED})
    wanted = plain(tokens)
    # Some 1e3 sums of some 1e2 terms on the way: 1e5 roundings of 1e-16 at the very worst.
    assert distance(model(tokens), wanted) < 1e-11
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2)).double()
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    ours = torch.autograd.grad((model(tokens) * weights).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((wanted * weights).sum(), parameters, allow_unused=True)
    for name, our, their in zip(names, ours, theirs, strict=True):
        if their is None or their.abs().max() == 0:
            assert our is None or our.abs().max() < 1e-12, name
        else:
            assert our is not None, name
            assert distance(our, their) < 1e-9, name


_DEFINED = {
    "num_heads",
    "variant",
    "ways",
    "norm_eps",
    "rope_base",
    "qk_norm",
    "gelu",
    "dilation",
    "period",
    "window",
    "pre_post_norm",
    "num_streams",
    "parallel_block",
}


@pytest.mark.parametrize("case", CASES)
def test_a_new_model_is_the_plain_one(case: str) -> None:
    options = CASES[case]
    if options.get("variant") == "lime":
        pytest.skip("LIMe's routers start with other heads' shares")
    settings = SIZES | {"ffn_round": 8} | options
    model = MuddFormer(**settings, seed=5, dtype=torch.float64)
    plain = MuddFormer(
        **(settings | {"variant": "base", "ffn_reallocation": _is_reallocated(options)}),
        seed=5,
        dtype=torch.float64,
    )
    tokens = some_tokens()
    # Hyper-connections: the sum over n streams is n times the state, which the norm takes out but
    # for eps.
    limit = 1e-5 if "hyper" in options.get("variant", "") else 1e-13
    if options.get("norm_eps"):
        limit = 1e-13
    assert distance(model(tokens), plain(tokens)) < limit


def _is_reallocated(options: dict[str, Any]) -> bool:
    return bool(options.get("ffn_reallocation", options.get("variant", "mudd") == "mudd"))


@pytest.mark.parametrize("case", CASES)
def test_chunks_through_a_cache_equal_one_pass(case: str) -> None:
    model = new(**CASES[case])
    tokens = some_tokens(length=11)
    with torch.no_grad():
        whole = model(tokens)
    for sizes in ([11], [1] * 11, [4, 1, 3, 2, 1]):
        cache = model.new_cache(batch_size=2, max_length=13)
        parts = [model(chunk, cache) for chunk in tokens.split(sizes, 1)]
        assert distance(torch.cat(parts, 1), whole) < 1e-12
        assert cache.length == 11


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("is_parallel", [False, True])
def test_no_rows_and_no_tokens(variant: str, is_parallel: bool) -> None:
    model = new(variant=variant, parallel_block=is_parallel)
    for rows, length in ((0, 3), (2, 0), (0, 0)):
        logits = model(torch.zeros(rows, length, dtype=torch.int64))
        assert logits.shape == (rows, length, SIZES["vocab_size"])
        model.zero_grad()
        logits.sum().backward()
        assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    tokens = some_tokens(length=4)
    cache = model.new_cache(batch_size=2, max_length=4)
    parts = [model(chunk, cache) for chunk in tokens.split([0, 3, 0, 1, 0], 1)]
    assert distance(torch.cat(parts, 1), model(tokens).detach()) < 1e-12
    one = tokens[:1, :1]
    options = {"variant": variant, "parallel_block": is_parallel}
    assert distance(model(one), definition(model, **options)(one)) < 1e-11


@pytest.mark.parametrize(
    ("norms", "sources"),
    [
        (False, {}),
        (True, {"dilation": 2, "period": 2}),
        ("later_revision", {}),
        (False, {"window": 2}),
    ],
    ids=str,
)
def test_at_first_every_stream_is_the_newest_state(norms: bool | str, sources: Any) -> None:
    for variant in ("mudd", "static", "dynamic", "multiway_static", "multiway_dynamic"):
        settings = SIZES | {"ffn_round": 8, "variant": variant} | sources
        model = MuddFormer(**settings, pre_post_norm=norms, seed=1)
        trace = model.trace(some_tokens())
        for state, streams in zip(trace.states, trace.streams, strict=True):
            assert all(torch.equal(stream, state) for stream in streams.values())


def test_equal_ways_are_one_way() -> None:
    many, one = new(variant="multiway_dynamic"), new(variant="dynamic")
    values = dict(one.named_parameters())
    with torch.no_grad():
        for name, value in many.named_parameters():
            layer = name.split(".")[1]
            if "attention_norms" in name:
                value.copy_(values[f"layers.{layer}.attention_norm.weight"])
            elif name.startswith("dynamic_dense") and layer != "3":
                ways, sources = many.get_parameter(f"dense_bs.{layer}").shape
                value.zero_()  # the hidden numbers of way 0, read by all of them
                if ".w1." in name:
                    value[:sources] = values[name]
                else:
                    value[:, :sources] = values[name].repeat(ways, 1)
            else:
                value.copy_(values[name].expand(value.shape))
    assert distance(many(some_tokens()), one(some_tokens())) < 1e-12


def test_first_gradients_of_a_new_model() -> None:
    """With w2 = 0 nothing reaches w1, while w2 and a learn."""
    model = MuddFormer(**SIZES, ffn_round=8, seed=0, dtype=torch.float64)
    model(some_tokens()).square().mean().backward()
    for name, value in model.named_parameters():
        if name.startswith(("dynamic_dense", "dense_bs")):
            assert value.grad is not None
            assert bool(value.grad.any()) == (".w1." not in name), name


@pytest.mark.parametrize("case", ["mudd", "hyper_connections", "lime", "eq. 10", "parallel hyper"])
def test_nothing_sees_the_future(case: str) -> None:
    model = new(**CASES[case])
    tokens = some_tokens()
    other = tokens.clone()
    other[:, 5] = (other[:, 5] + 1) % SIZES["vocab_size"]
    with torch.no_grad():
        first, second = model(tokens), model(other)
    assert torch.equal(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 5:], second[:, 5:])


def test_generation_is_greedy_and_goes_on_past_any_token() -> None:
    model = new()
    prompt = some_tokens(length=3)
    with torch.no_grad():
        tokens = prompt
        for _ in range(7):
            tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(model.generate(prompt, max_new_tokens=7), tokens)
    assert torch.equal(model.generate(prompt, max_new_tokens=0), prompt)


def test_parameters_have_the_published_names() -> None:
    names = {
        case: {name for name, _ in new(**options).named_parameters()}
        for case, options in CASES.items()
    }
    assert "layers.1.attention_norms.2.weight" in names["mudd"]
    assert "layers.0.attention_norm.weight" in names["mudd"]
    assert "layers.1.attention_norm.weight" in names["dynamic"]
    assert not any("attention_norms" in name for name in names["dynamic"])
    assert {n for n in names["static"] if n.startswith("d")} == {f"dense_bs.{i}" for i in range(4)}
    assert "dynamic_dense.0.w1.weight" in names["dynamic"]
    assert {n for n in names["period"] if n.startswith("dense_bs")} == {"dense_bs.1", "dense_bs.3"}
    assert "dense_bs.3" not in names["without R"]
    assert {"source_norms.4.weight", "post_norms.3.weight", "dynamic_dense.0.norm.weight"} <= names[
        "eq. 10"
    ]
    assert "hyper_connections.7.dynamic_beta_scale" in names["hyper_connections"]
    shapes = {name: tuple(value.shape) for name, value in new().named_parameters()}
    assert shapes["dense_bs.0"] == (4, 2)
    assert shapes["dynamic_dense.0.w1.weight"] == (8, 24)
    assert shapes["dynamic_dense.0.w2.weight"] == (8, 8)
    assert shapes["dense_bs.3"] == (1, 5)
    assert shapes["dynamic_dense.3.w1.weight"] == (20, 24)


def test_initial_values_are_a_function_of_the_seed() -> None:
    first, second = (MuddFormer(**SIZES, seed=3, ffn_round=8) for _ in range(2))
    third = MuddFormer(**SIZES, seed=4, ffn_round=8)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(
        first.get_parameter("output.weight"), third.get_parameter("output.weight")
    )
    torch.manual_seed(7)
    drawn = MuddFormer(**SIZES, ffn_round=8)
    torch.manual_seed(7)
    assert torch.equal(
        drawn.get_parameter("output.weight"),
        MuddFormer(**SIZES, ffn_round=8).get_parameter("output.weight"),
    )
    assert first.training


def test_state_dicts_copies_and_dtypes() -> None:
    model, other = new(0), new(1)
    tokens = some_tokens()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens), other(tokens))
    twin = copy.deepcopy(model)
    assert type(twin) is MuddFormer
    with torch.no_grad():
        twin.get_parameter("dense_bs.1").mul_(2)
    assert torch.equal(model(tokens), other(tokens))
    assert not torch.equal(model(tokens), twin(tokens))
    wanted = model(tokens).detach()
    thawed = pickle.loads(pickle.dumps(model.eval()))
    assert type(thawed) is MuddFormer
    assert not thawed.training
    assert torch.equal(thawed(tokens), wanted)
    assert thawed.config == model.config
    single = model.to(torch.float32)(tokens)
    assert single.dtype == torch.float32
    assert distance(single.double(), wanted) < 1e-4
    half = model.to(torch.bfloat16)(tokens)
    assert half.dtype == torch.bfloat16
    assert distance(half.double(), wanted) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_in_lower_precision_follows_the_gradient(dtype: torch.dtype) -> None:
    model = MuddFormer(**SIZES, ffn_round=8, seed=0).to(dtype)
    tokens = some_tokens(4, 16)

    def loss() -> torch.Tensor:
        logits = model(tokens)[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    before = loss()
    before.backward()
    with torch.no_grad():
        for value in model.parameters():
            if value.grad is not None:
                value.sub_(0.1 * value.grad)
    assert loss().item() < before.item()


def test_bits_are_the_same_from_run_to_run() -> None:
    model = MuddFormer(**SIZES, ffn_round=8, seed=0)
    tokens = some_tokens(3, 50)

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(tokens)
        logits.square().mean().backward()
        return [logits] + [p.grad for p in model.parameters() if p.grad is not None]

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


def test_the_snapshots_form_would_not_train_q_and_k() -> None:
    """Eq. 10 has gradients for the static weights of Q and K; the form without a residual none."""
    model = MuddFormer(**SIZES, ffn_round=8, pre_post_norm=True, seed=0, dtype=torch.float64)
    tokens = some_tokens()
    definition(model, pre_post_norm=True).loss(tokens)
    loss = torch.nn.functional.cross_entropy(
        model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    loss.backward()
    for layer, way in itertools.product(range(3), range(3)):
        gradient = model.get_parameter(f"dense_bs.{layer}").grad
        assert gradient is not None
        assert float(gradient[way].abs().max()) > 0.0
