"""paperlab.lora: what an adapter computes, how it is trained, merged and taken off."""

import copy
import gc
import math
import weakref

import encoder_models
import family_models
import lora_cases as cases
import pytest
import torch
import transformers
from lora_cases import TOKENS
from paperlab import lora, nn, train

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def bits(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def loss_of(logits):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


def with_sums(model, adapter):
    """The parameters of the base with W + scaling B A, differentiable with respect to A and B."""
    parameters = dict(model.named_parameters())
    sums = {n: p for n, p in parameters.items() if "lora_" not in n}
    for name in adapter.names:
        a, b = (parameters[f"{name}.lora_{letter}.weight"] for letter in "AB")
        product = (b.double() @ a.double()) * adapter.settings.scaling(name)
        weight = parameters[f"{name}.weight"]
        sums[f"{name}.weight"] = (weight.double() + product).to(weight.dtype)
    return sums


def test_a_new_adapter_changes_nothing_and_is_all_that_trains():
    model = cases.base()
    before, wanted = bits(model), model(TOKENS)
    adapter = lora.attach(model, r=3, alpha=6, target_modules=["v_proj", "lm_head"])
    assert torch.equal(model(TOKENS), wanted)
    assert adapter.names == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
        "lm_head",
    ]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {*trained} == {f"{n}.lora_{x}.weight" for n in adapter.names for x in "AB"}
    assert all(p is q for p, q in zip(trained.values(), adapter.parameters(), strict=True))
    assert trained["lm_head.lora_A.weight"].shape == (3, 32)
    assert trained["lm_head.lora_B.weight"].shape == (48, 3)
    assert trained["lm_head.lora_A.weight"].abs().max() <= 1 / math.sqrt(32)
    assert lora.of(model) is adapter
    again = lora.attach(cases.base(), r=3, alpha=6, target_modules=["v_proj", "lm_head"])
    other = lora.attach(cases.base(), r=3, target_modules=["v_proj", "lm_head"], seed=1)
    a, b, c = (x.parameters()[0] for x in (adapter, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert not torch.equal(a, adapter.parameters()[2])  # a layer has numbers of its own
    lora.detach(model)
    assert torch.equal(model(TOKENS), wanted)
    assert bits(model).keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("use_rslora", [False, True])
def test_values_and_gradients_are_those_of_the_sum_of_matrices(use_rslora):
    options = {"rank_pattern": {"layers.1.mlp.up_proj": 2, "^lm_head": 5}}
    options |= {"alpha_pattern": {"o_proj": 3.5}, "use_rslora": use_rslora}
    model = cases.base(torch.float64)
    adapter = cases.random_adapter(model, r=4, alpha=6, target_modules=ALL, **options)
    rank, alpha = adapter.settings.rank, {True: math.sqrt, False: float}[use_rslora]
    up, out = "model.layers.1.mlp.up_proj", "model.layers.0.self_attn.o_proj"
    assert (rank(up), rank("lm_head"), rank(out)) == (2, 5, 4)
    assert adapter.settings.scaling(up) == 6 / alpha(2)
    assert adapter.settings.scaling(out) == 3.5 / alpha(4)
    logits = model(TOKENS)
    gradients = torch.autograd.grad(loss_of(logits), adapter.parameters())
    reference = cases.base(torch.float64)
    expected = torch.func.functional_call(reference, with_sums(model, adapter), (TOKENS,))
    # Sums of some 50 terms of size 1, 2 layers: 1e-12 is thousands of roundings of 2e-16.
    assert (logits - expected).abs().max() <= 1e-12 * expected.abs().max()
    wanted = torch.autograd.grad(loss_of(expected), adapter.parameters())
    for got, want in zip(gradients, wanted, strict=True):
        assert (got - want).abs().max() <= 1e-12 * max(want.abs().max(), 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_adapted_in_float32(dtype):
    model = cases.base(dtype)
    adapter = cases.random_adapter(model, target_modules=["down_proj"])
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    wide = cases.base(dtype).to(torch.float64)
    expected = torch.func.functional_call(wide, with_sums_of(wide, adapter), (TOKENS,))
    logits = model(TOKENS)
    assert logits.dtype == dtype
    # As far from float64 as the base alone, whose activations have 8 (11) bits, and half as far
    # again, for the two roundings of the adapter's layers.
    plain = (cases.base(dtype)(TOKENS) - cases.base(dtype).double()(TOKENS)).abs().max()
    assert (logits - expected).abs().max() <= 3 * plain
    assert (logits - wide(TOKENS)).abs().max() > 10 * plain  # it is there
    loss_of(logits.float()).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in adapter.parameters())


def with_sums_of(wide, adapter):
    sums = dict(wide.named_parameters())
    for name, (a, b) in zip(adapter.names, pairs(adapter), strict=True):
        key = f"{name}.weight"
        sums[key] = sums[key] + adapter.settings.scaling(name) * (b.double() @ a.double())
    return sums


def pairs(adapter):
    parameters = adapter.parameters()
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def test_a_loop_of_torch_trains_it_and_leaves_the_base():
    model = cases.base()
    before = bits(model)
    adapter = lora.attach(model, r=2, target_modules="all-linear", dropout=0.1)
    assert len(adapter.names) == 14  # all but the head
    model.train()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_of(model(TOKENS))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert all(p.grad is None for n, p in model.named_parameters() if n in before)


def test_fit_says_that_nothing_of_the_model_trains():
    model = cases.base()
    lora.attach(model)
    with pytest.raises(ValueError, match="a parameter that requires a gradient"):
        train.fit(model, lambda step: TOKENS, steps=1, learning_rate=1e-3)


def test_dropout_is_of_training_alone():
    model = cases.base()
    cases.random_adapter(model, target_modules=["v_proj"], dropout=0.5)
    wanted = model(TOKENS)
    assert torch.equal(model(TOKENS), wanted)
    model.train()
    torch.manual_seed(3)
    one, two = model(TOKENS), model(TOKENS)
    assert not torch.equal(one, two)
    torch.manual_seed(3)
    assert torch.equal(model(TOKENS), one)
    model.eval()
    assert torch.equal(model(TOKENS), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_merging_rounds_the_sum_once_and_back_to_the_same_bits(dtype, tmp_path):
    model = cases.base(dtype)
    before = bits(model)
    adapter = cases.random_adapter(model, target_modules=["q_proj", "lm_head"])
    wanted = with_sums(model, adapter)
    apart = model(TOKENS)
    lora.merge(model)
    assert adapter.is_merged
    for name, value in model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(value, wanted[name]), name
    # One rounding of each weight more or less; and the products, in another order.
    eps = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 0.05}[dtype]
    merged = model(TOKENS)
    assert (merged - apart).abs().max() <= eps * apart.abs().max()
    assert torch.equal(model.generate(TOKENS, 3)[:, :7], TOKENS)
    model.save_pretrained(tmp_path)
    assert torch.equal(nn.load(tmp_path)(TOKENS), merged)
    lora.unmerge(model)
    assert not adapter.is_merged and torch.equal(model(TOKENS), apart)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    lora.merge(model)
    lora.detach(model, keep_merged=True)
    assert torch.equal(model(TOKENS), merged) and bits(model).keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())


def test_taking_off_a_merged_adapter_gives_the_base_back():
    model = cases.base()
    before = bits(model)
    cases.random_adapter(model)
    lora.merge(model)
    lora.detach(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_weight_that_would_overflow_changes_nothing():
    model = cases.base(torch.float16)
    before = bits(model)
    adapter = lora.attach(model, alpha=1e6, target_modules=["v_proj"])
    with torch.no_grad():
        adapter.parameters()[-1].fill_(1.0)  # of the last layer alone
    with pytest.raises(ValueError, match=r"merge: the weight of model.layers.1.self_attn.v_proj"):
        lora.merge(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert not adapter.is_merged


def test_a_tied_head():
    model = cases.base(tie_word_embeddings=True)
    before = bits(model)
    adapter = cases.random_adapter(model, target_modules=["lm_head"])
    a, b = adapter.parameters()
    wanted = cases.base(tie_word_embeddings=True)(TOKENS)
    low = model.hidden(TOKENS) @ a.T @ b.T * adapter.settings.scaling("lm_head")
    # Products of 32 numbers of size 1: some 10 roundings of 6e-8.
    assert (model(TOKENS) - (wanted + low)).abs().max() <= 1e-5 * wanted.abs().max()
    with pytest.raises(ValueError, match="merge: lm_head must have a matrix of its own"):
        lora.merge(model)
    lora.detach(model)
    assert torch.equal(model(TOKENS), wanted) and bits(model).keys() == before.keys()


def test_one_matrix_for_queries_keys_and_values():
    config = transformers.GPTNeoXConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    ).to_dict()
    model = nn.from_config(config | {"architectures": ["GPTNeoXForCausalLM"]}, seed=2)
    adapter = cases.random_adapter(model)
    assert adapter.names == ["gpt_neox.layers.0.attention.query_key_value"]
    wanted = torch.func.functional_call(
        nn.from_config(config | {"architectures": ["GPTNeoXForCausalLM"]}, seed=2),
        with_sums(model, adapter),
        (TOKENS,),
    )
    assert (model(TOKENS) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", ["gpt2", "gpt2_scales_untied", "opt_after_projected", "gemma2"])
def test_other_families(name):
    model = family_models.ours(name, torch.float64)
    before = bits(model)
    tokens = family_models.tokens(2, 7) % family_models.VOCABULARY
    plain = model(tokens)
    adapter = cases.random_adapter(model, target_modules="all-linear")
    assert all(not name.endswith("lm_head") for name in adapter.names)
    logits = model(tokens)
    assert (logits - plain).abs().max() > 0.01 * plain.abs().max()
    lora.merge(model)
    # Sums of some 50 terms of size 1, 3 layers: 1e-11 is thousands of roundings of 2e-16.
    assert (model(tokens) - logits).abs().max() <= 1e-11 * logits.abs().max()
    for key, (a, b) in zip(adapter.names, pairs(adapter), strict=True):
        change = (b @ a) * adapter.settings.scaling(key)
        weight = model.get_parameter(f"{key}.weight") - before[f"{key}.weight"]
        change = change.T if name.startswith("gpt2") else change
        assert (weight - change).abs().max() <= 1e-14 * change.abs().max(), key
    lora.detach(model)
    assert torch.equal(model(tokens), plain)


def test_all_linear_of_a_model_without_head():
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 32}
    config |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model = nn.from_config({**config, "num_attention_heads": 4}, init="normal")
    names = lora.attach(model, r=2, target_modules="all-linear").names
    assert sum(".layer." in name for name in names) == 12


def test_an_encoder():
    model = nn.load(encoder_models.pair("bert_sequence").directory, dtype="float64")
    tokens = encoder_models.tokens(2, 7)
    plain = model(tokens)
    adapter = cases.random_adapter(model)  # queries and values
    assert len(adapter.names) == 2 * model.config["num_hidden_layers"]
    logits = model(tokens)
    assert (logits - plain).abs().max() > 1e-3 * plain.abs().max()
    lora.merge(model)
    assert (model(tokens) - logits).abs().max() <= 1e-11 * logits.abs().max()
    tied = nn.load(encoder_models.pair("bert_masked").directory)
    with pytest.raises(ValueError, match="attach: target_modules must name layers with a matrix"):
        lora.attach(tied, target_modules=tied.linear_names()[-1:])


def test_copies_have_the_base_alone_and_a_model_goes_when_it_is_let_go():
    model = cases.base()
    wanted = model(TOKENS).detach()
    cases.random_adapter(model)
    other = copy.deepcopy(model)
    assert torch.equal(other(TOKENS), wanted) and not torch.equal(model(TOKENS), wanted)
    with pytest.raises(ValueError, match="of: model must have an adapter"):
        lora.of(other)
    there = weakref.ref(model)
    del model
    gc.collect()
    assert there() is None


def test_only_one_at_a_time():
    model = cases.base()
    for function in (lora.merge, lora.unmerge, lora.detach, lora.of):
        with pytest.raises(ValueError, match=f"{function.__name__}: model must have an adapter"):
            function(model)
    lora.attach(model)
    with pytest.raises(ValueError, match="attach: model must have no adapter"):
        lora.attach(model)
    with pytest.raises(ValueError, match="load: model must have no adapter"):
        lora.load(model, cases.GOLDEN)
    with pytest.raises(ValueError, match="unmerge: the adapter must be merged"):
        lora.unmerge(model)
    with pytest.raises(ValueError, match="detach: keep_merged must be False"):
        lora.detach(model, keep_merged=True)
    lora.merge(model)
    with pytest.raises(ValueError, match="merge: the adapter must not be merged yet"):
        lora.merge(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "attach: r must be in"),
        ({"r": 2.5}, "attach: r must be an integer"),
        ({"alpha": math.nan}, "attach: alpha must be finite"),
        ({"dropout": 1.0}, "attach: dropout must be >= 0 and < 1, got 1.0"),
        ({"use_rslora": 1}, "attach: use_rslora must be a bool"),
        ({"target_modules": []}, "attach: target_modules must name a layer"),
        ({"target_modules": ["query"]}, r"attach: target_modules must name .*q_proj.*'query'"),
        ({"target_modules": ["embed_tokens"]}, "attach: target_modules must name linear layers"),
        ({"target_modules": "x.*"}, r"attach: target_modules must match .*'x\.\*'"),
        ({"target_modules": "("}, "attach: target_modules must hold regular expressions"),
        ({"target_modules": 3}, "attach: target_modules must be a str or a list"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.*must be in"),
        ({"rank_pattern": ["q_proj"]}, "attach: rank_pattern must map"),
        ({"alpha_pattern": {"(": 1}}, "attach: alpha_pattern must hold regular"),
        ({"seed": -1}, "attach: seed must be in"),
        ({"dtype": "int8"}, "attach: dtype must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_change_nothing(options, message):
    model = cases.base()
    names = [*bits(model)]
    with pytest.raises(ValueError, match=message):
        lora.attach(model, **options)
    assert [*bits(model)] == names and all(p.requires_grad for p in model.parameters())
    with pytest.raises(TypeError, match=r"attach: model must be what nn\.load returns"):
        lora.attach(torch.nn.Linear(2, 2))
