"""paperlab.nn: GPT-2, OPT and Gemma are transformers' in every number, on disk and in use."""

import copy
import json

import family_models as models
import pytest
import safetensors.torch
import torch
import transformers
from family_models import CASES
from paperlab import eval as evaluation
from paperlab import nn, train

BATCH = models.tokens(3, 13)
LARGE = ["gpt2", "opt_after_projected", "gemma3"]  # one of each family, the most unlike Llama

# float64: a sum of n terms errs by some n^0.5 2^-53 of its norm, the longest has 40 terms, and the
# three layers' some forty sums and norms add to about 1e-14. The bound has a factor 100.
EXACT = 1e-12


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other would take most of the time of such small models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8)


def arrays(directory):
    return safetensors.torch.load_file(directory / "model.safetensors")


def share(got, wanted):
    """The largest error as a share of the largest value."""
    assert got.shape == wanted.shape and got.isfinite().all()
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def left_mask(batch=BATCH):
    mask = torch.ones_like(batch)
    mask[0, :4] = mask[1, : batch.shape[1] - 2] = 0
    return mask


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_those_of_transformers(name):
    model = models.ours(name)
    other = models.exact(name, model)
    wanted, got = other(BATCH).logits, model(BATCH)
    assert share(got, wanted) <= EXACT
    with torch.no_grad():
        narrow = models.ours(name, torch.float32)
        rounding = share(models.theirs(name, narrow, torch.float32)(BATCH).logits, wanted)
        # Both round some hundred times to 2^-24, in another order.
        assert share(narrow(BATCH), wanted) <= min(1e-4, 4 * rounding + 1e-6)
    weights = torch.sin(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    theirs = {n: p.grad for n, p in other.named_parameters()}
    largest = max(g.abs().max() for g in theirs.values())
    for n, p in model.named_parameters():  # of biases of keys only rounding is left: they are 0
        scale = max(theirs[n].abs().max(), 1e-3 * largest)
        assert (p.grad - theirs[n]).abs().max() <= 10 * EXACT * scale, n


@pytest.mark.parametrize("name", LARGE)
def test_hidden_tokens_are_not_counted(name):
    model = models.ours(name)
    other = models.exact(name, model)
    right = left_mask().flip(1)
    holes = torch.ones_like(BATCH)
    holes[0, 1::3] = 0
    for mask in (left_mask(), right, holes):
        places = {} if name.startswith("opt") else {"position_ids": (mask.cumsum(1) - 1).clamp(0)}
        with torch.no_grad():
            wanted = other(BATCH, attention_mask=mask, **places).logits
            got = model(BATCH, mask)
        shown = mask.bool()
        if name == "gemma3" and mask is holes:  # their windows count hidden tokens, ours do not
            shown = shown[:, :6] & mask.bool()[:, :6]
            got, wanted = got[:, :6], wanted[:, :6]
        assert share(got[shown], wanted[shown]) <= EXACT


@pytest.mark.parametrize("name", [*LARGE, "opt", "gemma2"])
def test_a_cache_changes_nothing(name):
    model = models.ours(name)
    cache = model.new_cache(3, 13)
    pieces = [model(piece, cache=cache) for piece in BATCH.split([5, 1, 4, 3], 1)]
    assert share(torch.cat(pieces, 1), model(BATCH).detach()) <= EXACT
    assert cache.length == 13


@pytest.mark.parametrize("name", LARGE)
def test_generation_is_that_of_transformers(name):
    model = models.ours(name)
    other = models.exact(name, model)
    mask = left_mask()
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    wanted = other.generate(BATCH, attention_mask=mask, **options)
    got = model.generate(BATCH, 9, attention_mask=mask, pad_token_id=0)
    assert torch.equal(got, wanted)
    assert not torch.equal(got, model.generate(BATCH, 9, pad_token_id=0))
    long = models.tokens(1, 38)
    assert model.generate(long, 2).shape[1] <= 40
    with pytest.raises(ValueError, match="max_positions"):
        model.generate(long, 200)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name, tmp_path):
    other = models.theirs(name, models.ours(name, torch.float32), torch.float32)
    other.save_pretrained(tmp_path / "theirs")
    model = nn.load(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    before, after = arrays(tmp_path / "theirs"), arrays(tmp_path / "ours")
    assert {*before} == {*after} >= {n for n, _ in model.named_parameters()}
    assert all(torch.equal(bits(before[n]), bits(after[n])) for n in before)
    listed = [n for n, _ in other.named_parameters()]
    assert [n for n, _ in model.named_parameters()] == listed
    for file in ("config.json", "generation_config.json"):
        texts = [(tmp_path / d / file).read_text() for d in ("theirs", "ours")]
        assert json.loads(texts[0]) == json.loads(texts[1])
    with torch.no_grad():
        assert share(model(BATCH), other(BATCH).logits) <= 1e-4
        if name in LARGE:
            again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
            assert torch.equal(again(BATCH).logits, other(BATCH).logits)


@pytest.mark.parametrize(("name", "root"), [("gpt2", "transformer."), ("opt", "model.")])
def test_files_of_the_bare_model(name, root, tmp_path):
    """Names without the prefix, and the masks that old versions stored."""
    models.ours(name, torch.float32).save_pretrained(tmp_path)
    wanted = nn.load(tmp_path)(BATCH)
    file = tmp_path / "model.safetensors"
    bare = {n.removeprefix(root): t for n, t in arrays(tmp_path).items()}
    if name == "gpt2":
        stored = {
            f"h.{i}.attn.{n}": torch.ones(1, 1, 40, 40)
            for i in range(3)
            for n in ("bias", "masked_bias")
        }
        safetensors.torch.save_file(bare | stored, file)
    else:
        copied = bare["decoder.embed_tokens.weight"].clone()
        safetensors.torch.save_file(bare | {"lm_head.weight": copied}, file)
    model = nn.load(tmp_path)
    assert torch.equal(model(BATCH), wanted)
    assert all(n.startswith(root) for n, _ in model.named_parameters())
    model.save_pretrained(tmp_path / "again")
    saved = arrays(tmp_path / "again")
    assert all(torch.equal(bits(saved[n]), bits(t)) for n, t in bare.items())
    assert {*saved} - {*bare} <= {"lm_head.weight"}


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_bfloat16_is_no_worse_than_transformers(name):
    model = models.ours(name)
    wanted = models.exact(name, model.to(torch.bfloat16).to(torch.float64))(BATCH).logits
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        error = (narrow(BATCH).double() - wanted).square().mean()
        theirs = models.theirs(name, narrow, torch.bfloat16)(BATCH).logits
    assert narrow(BATCH).dtype == torch.bfloat16
    assert error <= 1.5 * (theirs.double() - wanted).square().mean()


@pytest.mark.parametrize("name", LARGE)
def test_training_and_scoring(name):
    model = models.ours(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    logits = model(BATCH[:, :-1])
    target = BATCH[:, 1:]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    history = train.fit(model, lambda step: BATCH, steps=3, learning_rate=1e-3)
    assert abs(history["loss"][0] - wanted.item()) <= 1e-10 * wanted.item()
    assert history["loss"][2] < history["loss"][0]
    for n, p in model.named_parameters():  # of positions those that were read
        assert not torch.equal(p, before[n]), n
    scored = evaluation.perplexity(model, BATCH[0], context=20)
    logits = model(BATCH[:1, :-1])[0]
    wanted = torch.nn.functional.cross_entropy(logits, BATCH[0, 1:], reduction="sum")
    assert abs(scored["nll"] - wanted.item()) <= 1e-10 * wanted.item()


def test_roles_of_gpt2_are_transposed_views():
    model = models.ours("gpt2")
    block = model.get_submodule("transformer.h.1")
    fused, width, size = block.attn.c_attn.weight, 24, 6
    assert fused.shape == (width, 3 * width)
    for i, role in enumerate("qkv"):
        whole = fused[:, i * width : (i + 1) * width].T
        check_view(model.tensor(role, 1), whole, fused)
        for head in range(4):
            check_view(model.tensor(role, 1, head), whole[head * size : (head + 1) * size], fused)
    out = block.attn.c_proj.weight
    check_view(model.tensor("o", 1), out.T, out)
    check_view(model.tensor("o", 1, 2), out.T[:, 2 * size : 3 * size], out)
    check_view(model.tensor("up", 1), block.mlp.c_fc.weight.T, block.mlp.c_fc.weight)
    check_view(model.tensor("down", 1), block.mlp.c_proj.weight.T, block.mlp.c_proj.weight)
    check_view(model.tensor("norm", 1), block.ln_1.weight, block.ln_1.weight)
    check_view(model.tensor("position"), model.transformer.wpe.weight, model.transformer.wpe.weight)
    check_view(model.tensor("head"), model.transformer.wte.weight, model.transformer.wte.weight)
    with pytest.raises(ValueError, match=r"tensor: .*gate"):
        model.tensor("gate", 0)
    before = model(BATCH).detach()
    with torch.no_grad():
        model.tensor("v", 1, 3).zero_()
    assert not torch.equal(model(BATCH), before)


def check_view(got, wanted, parameter):
    assert torch.equal(got, wanted) and got.requires_grad
    assert got.data_ptr() == wanted.data_ptr() and got.stride() == wanted.stride()
    assert got.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()


def test_roles_of_opt_and_gemma():
    model = models.ours("opt_after_projected")
    root = model.model.decoder
    block = model.get_submodule("model.decoder.layers.1")
    wanted = {
        "q": block.self_attn.q_proj,
        "o": block.self_attn.out_proj,
        "up": block.fc1,
        "norm": block.self_attn_layer_norm,
        "ffn_norm": block.final_layer_norm,
    }
    for role, module in wanted.items():
        check_view(model.tensor(role, 1), module.weight, module.weight)
    weight = block.self_attn.k_proj.weight
    check_view(model.tensor("k", 1, 3), weight[18:], weight)
    for role, module in {"project_in": root.project_in, "embed": root.embed_tokens}.items():
        check_view(model.tensor(role), module.weight, module.weight)
    with pytest.raises(ValueError, match=r"tensor: .* got norm"):
        model.tensor("norm")  # there is no final norm
    gemma = models.ours("gemma3")
    block = gemma.get_submodule("model.layers.0")
    for role, module in {
        "q_norm": block.self_attn.q_norm,
        "ffn_norm": block.pre_feedforward_layernorm,
        "post_ffn_norm": block.post_feedforward_layernorm,
        "post_attention_norm": block.post_attention_layernorm,
    }.items():
        check_view(gemma.tensor(role, 0), module.weight, module.weight)


def test_linear_layers_by_name():
    model = models.ours("opt_after_projected")
    names = model.linear_names()
    assert names[0] == "model.decoder.project_in"
    assert names[-2:] == ["model.decoder.project_out", "lm_head"]
    other = models.exact("opt_after_projected", model)
    seen, inputs = [], {}
    with model.on_linear_input(lambda name, x: seen.append((name, x))):
        model(BATCH)
    for name in names:
        other.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: inputs.update({name: x[0]})
        )
    other(BATCH)
    assert [name for name, _ in seen] == names
    for name, x in seen:
        assert share(x.flatten(0, -2), inputs[name].flatten(0, -2)) <= EXACT, name
    gpt2 = models.ours("gpt2")
    before = gpt2(BATCH)
    weight, bias = gpt2.get_submodule("transformer.h.0.mlp.c_fc").parameters()
    gpt2.replace_linear("transformer.h.0.mlp.c_fc", lambda x: x @ weight + bias)
    assert share(gpt2(BATCH), before) <= EXACT
    gpt2.replace_linear("transformer.h.0.mlp.c_fc", lambda x: x)
    with pytest.raises(ValueError, match=r"c_fc must return \[3, 13, 96\], got \[3, 13, 24\]"):
        gpt2(BATCH)


@pytest.mark.parametrize(
    ("name", "changes", "part"),
    [
        ("gpt2", {"add_cross_attention": True}, "setting 'add_cross_attention' must be false"),
        ("gpt2", {"activation_function": "quick_gelu"}, "setting 'activation_function' must be"),
        ("opt", {"word_embed_proj_dim": 99}, "setting 'word_embed_proj_dim' must be at most"),
        ("gemma", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' must be"),
        ("gemma2", {"attn_logit_softcapping": 50.0}, "setting 'attn_logit_softcapping' must be"),
        ("gemma3", {"rope_parameters": {"rope_theta": 1.0}}, "setting 'rope_parameters' must be"),
    ],
)
def test_refused_settings_are_named(name, changes, part, tmp_path):
    models.ours(name, torch.float32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json: .*{part}"):
        nn.load(tmp_path)


def test_too_many_tokens_for_the_table_of_positions():
    for name in ("gpt2", "opt"):
        model = models.ours(name)
        assert model.max_positions == 40
        model(models.tokens(1, 40))
        with pytest.raises(ValueError, match=r"at most 40 .*max_positions.*, got 41"):
            model(models.tokens(1, 41))


def test_new_models_begin_as_they_should():
    model = nn.from_config(models.settings("gemma"), dtype=torch.float64)
    norms = [p for n, p in model.named_parameters() if "norm" in n]
    assert len(norms) == 7 and not any(p.any() for p in norms)  # 1 + 0
    model = nn.from_config(models.settings("gpt2"))
    assert (model.transformer.ln_f.weight == 1).all()
    assert not model.get_submodule("transformer.h.0.attn.c_attn").bias.any()
