"""attn_implementation="paperlab_cca": transformers' models give what the definition gives."""

import cca_models
import decoder_models as models
import pytest
import torch
import training_cases as cases
import transformers
import transformers_models
from cca_models import CASE, CASES, check_close, definition
from paperlab import cca
from paperlab.integrations import transformers as integration

integration.register()

LENGTH = 23
NAMES = ["llama", "llama_one_key_head", "qwen3", "mistral_full", "neox"]
NARROW = 2e-5  # of the largest logit: their rotary tables, and some of their norms, are float32


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with cases.one_thread():
        yield


def pair(name, case=CASE, **changes):
    """Ours, without core-context attention, and transformers' of the same weights, with it."""
    ours = models.ours(name, **changes)
    theirs = models.theirs(name, ours, **changes)
    theirs.set_attn_implementation("paperlab_cca")
    configure(theirs, case)
    return ours, theirs


def configure(model, case):
    for key in ("group_size", "window", "pooling", "weights_per", "keep_first"):
        setattr(model.config, f"cca_{key}", getattr(case, key))


def logits_of(model, batch, mask=None, **inputs):
    """With positions that count the tokens, as ours do: a maximum of rotated keys needs them."""
    if mask is not None and mask.dim() == 2:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0).long()
    with torch.no_grad():
        return model(batch, attention_mask=mask, **inputs).logits


def padding(side, length=LENGTH):
    """The mask [4, length] of rows with none, some, most and all but one token padded."""
    if side == "none":
        return None
    mask = torch.ones(4, length, dtype=torch.int64)
    for row, count in ((1, 5), (2, length - 8), (3, length - 1)):
        first = {"left": count, "right": 0, "both": count // 2}[side]
        mask[row, :first] = 0
        mask[row, length - (count - first) :] = 0
    return mask


@pytest.mark.parametrize("side", ["none", "left", "right", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_definition(name, side):
    ours, theirs = pair(name)
    batch, mask = models.tokens(4, LENGTH), padding(side)
    wanted = definition(CASE, name, ours, batch, mask).detach()
    visible = torch.ones(4, LENGTH, 1) if mask is None else mask[..., None]
    check_close(logits_of(theirs, batch, mask) * visible, wanted, NARROW)


@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_each_call_reads_the_config(case):
    ours, theirs = pair("llama")
    batch, mask = models.tokens(4, LENGTH), padding("left")
    for this in (CASE, case, CASE):
        configure(theirs, this)
        wanted = definition(this, "llama", ours, batch, mask).detach()
        check_close(logits_of(theirs, batch, mask) * mask[..., None], wanted, NARROW)


def test_the_defaults_are_those_of_the_paper():
    ours = models.ours("llama", max_position_embeddings=1200)
    theirs = models.theirs("llama", ours, max_position_embeddings=1200)
    theirs.set_attn_implementation("paperlab_cca")
    batch = models.tokens(1, 1100)
    with torch.no_grad():
        check_close(logits_of(theirs, batch), cca.apply(ours)(batch), NARROW)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["llama", "neox"])
def test_the_gradients_of_a_training_step(name, side):
    ours, theirs = pair(name)
    batch, mask = models.tokens(4, 15), padding(side, 15)
    values = models.values_of(ours)
    wanted = definition(CASE, name, ours, batch, mask, values)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).double()
    if mask is not None:
        weight *= mask[..., None]
    (wanted * weight).sum().backward()
    (theirs.train()(batch, attention_mask=mask).logits * weight).sum().backward()
    parameters = dict(theirs.named_parameters())
    largest = max(value.grad.abs().max() for value in values.values())
    for key, value in values.items():
        got = parameters[models.name_in_transformers(key, theirs)].grad
        assert (got - value.grad).abs().max() <= NARROW * largest, key


def test_the_golden_model(tmp_path):
    """To the rounding of float32 in the file and here: see cca_apply_test."""
    golden = cca_models.golden()
    directory = cca_models.golden_directory(golden, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="paperlab_cca"
    )
    model.config.cca_group_size, model.config.cca_window = 4, 12
    ids = golden["input_ids"]
    out = model(ids, labels=ids)
    assert (out.logits - golden["logits"]).abs().max() <= 2e-5
    assert abs(out.loss - golden["loss"]) <= 2e-6
    out.loss.backward()
    parameters, compared = dict(model.named_parameters()), 0
    for name, wanted in golden.items():
        if name.startswith("grad."):
            assert (parameters[name[5:]].grad - wanted).abs().max() <= 1e-6, name
            compared += 1
    assert compared == 4
    for implementation in ("sdpa", "paperlab"):
        model.set_attn_implementation(implementation)
        assert (logits_of(model, ids) - golden["logits_full"]).abs().max() <= 2e-5
    model.config.cca_window = 75
    model.set_attn_implementation("paperlab_cca")
    assert (logits_of(model, ids) - golden["logits_full"]).abs().max() <= 2e-5


def test_the_implementation_can_be_changed_and_changed_back():
    _, model = pair("llama")
    batch = models.tokens(2, LENGTH)
    core = logits_of(model, batch)
    model.set_attn_implementation("sdpa")
    full = logits_of(model, batch)
    assert (core - full)[:, 6:].abs().amax(-1).min() > 1e-6
    check_close(core[:, :6], full[:, :6])
    model.set_attn_implementation("paperlab_cca")
    assert model.config._attn_implementation == "paperlab_cca"
    assert torch.equal(logits_of(model, batch), core)
    model.set_attn_implementation("sdpa")
    assert torch.equal(logits_of(model, batch), full)


def generated(model, prompt, mask, new=12, **options):
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt) if mask is None else mask,
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )


@pytest.mark.parametrize("side", ["none", "left"])
def test_generation_without_a_cache_is_that_of_ours(side):
    ours, theirs = pair("llama")
    prompt, mask = models.tokens(4, 9), padding(side, 9)
    cca.apply(ours, CASE.group_size, CASE.window)
    wanted = ours.generate(prompt, 12, attention_mask=mask, eos_token_id=None)
    assert torch.equal(generated(theirs, prompt, mask, use_cache=False), wanted)


def cache_of(kind, model, length):
    if kind == "static":
        return transformers.StaticCache(config=model.config, max_cache_len=length)
    return transformers.DynamicCache(config=model.config)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("case", [CASES[3], CASES[4], CASES[6]], ids=str)
def test_generation_through_their_cache_where_pooling_needs_no_query(case, side, kind):
    ours, theirs = pair("llama", case)
    prompt, mask = models.tokens(4, 9), padding(side, 9)
    cca.apply(ours, **case.options())
    wanted = ours.generate(prompt, 12, attention_mask=mask, eos_token_id=None)
    cache = cache_of(kind, theirs, 21)
    assert torch.equal(generated(theirs, prompt, mask, past_key_values=cache), wanted)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("side", ["none", "left"])
def test_their_cache_has_no_past_queries(side, kind):
    """Right until a step sees the first core token (7 tokens of a row), then an error."""
    ours, theirs = pair("llama")
    prompt, mask = models.tokens(4, 4), padding(side, 4) if side == "none" else None
    if side == "left":
        mask = torch.ones(4, 4, dtype=torch.int64)
        mask[1, :1] = 0
    cca.apply(ours, CASE.group_size, CASE.window)
    wanted = ours.generate(prompt, 3, attention_mask=mask, eos_token_id=None)
    cache = cache_of(kind, theirs, 12)
    assert torch.equal(generated(theirs, prompt, mask, 3, past_key_values=cache), wanted)
    with pytest.raises(
        ValueError, match=r"^paperlab cca attention: query .*cache does not hold the past queries"
    ):
        generated(theirs, prompt, mask, 4, past_key_values=cache_of(kind, theirs, 12))


def test_a_prompt_in_pieces_is_right_or_refused():
    ours, theirs = pair("llama")
    batch = models.tokens(2, LENGTH)
    wanted = definition(CASE, "llama", ours, batch).detach()
    for first in range(1, LENGTH):
        cache = cache_of("dynamic", theirs, LENGTH)
        begin = logits_of(theirs, batch[:, :first], past_key_values=cache)
        check_close(begin, wanted[:, :first], NARROW)
        if first <= 2:  # the first evaluator, token 2, is still to come
            rest = logits_of(theirs, batch[:, first:], past_key_values=cache)
            check_close(rest, wanted[:, first:], NARROW)
        else:
            with pytest.raises(ValueError, match="cache does not hold the past queries"):
                logits_of(theirs, batch[:, first:], past_key_values=cache)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"cca_group_size": 0}, "group_size must be "),
        ({"cca_group_size": "16"}, "group_size must be an integer"),
        ({"cca_window": -1}, "window must be "),
        ({"cca_pooling": "median"}, "pooling"),
        ({"cca_weights_per": "head"}, "weights_per"),
        ({"cca_keep_first": 1.5}, "keep_first must be an integer"),
    ],
)
def test_bad_settings_are_value_errors(settings, part):
    _, model = pair("llama")
    for key, value in settings.items():
        setattr(model.config, key, value)
    with pytest.raises(ValueError, match=f"paperlab cca attention: .*{part}"):
        logits_of(model, models.tokens(1, LENGTH))


def test_sliding_windows_are_refused_where_they_hide_a_key():
    ours = models.ours("mistral")  # 6 keys
    theirs = models.theirs("mistral", ours)
    theirs.set_attn_implementation("paperlab_cca")
    configure(theirs, CASE)
    check_close(logits_of(theirs, models.tokens(2, 6)), ours(models.tokens(2, 6)).detach(), NARROW)
    for mask in (None, torch.ones(2, 7).index_fill(1, torch.tensor([0]), 0)):
        with pytest.raises(ValueError, match="sliding_window must be None or at least"):
            logits_of(theirs, models.tokens(2, 7), mask)
    cache = transformers.DynamicCache(config=theirs.config)
    theirs.config.cca_pooling = "mean"
    logits_of(theirs, models.tokens(2, 6), past_key_values=cache)
    with pytest.raises(ValueError, match="sliding_window must be None or more than"):
        logits_of(theirs, models.tokens(2, 1), past_key_values=cache)


def test_attention_that_is_not_causal_is_refused():
    model = transformers_models.bert()
    model.set_attn_implementation("paperlab_cca")
    for mask in (None, transformers_models.padding("right", 7)):
        with pytest.raises(ValueError, match="must be causal"):
            model(transformers_models.tokens(3, 7), attention_mask=mask)


def test_other_masks_and_settings_are_refused():
    _, model = pair("llama")
    batch = models.tokens(2, 6)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(2, -1)
    with pytest.raises(ValueError, match="attention_mask must be causal"):
        logits_of(model, batch, position_ids=positions, use_cache=False)
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool().expand(2, 1, 6, 6)
    with pytest.raises(ValueError, match="attention_mask must be causal"):
        logits_of(model, batch, blocks)
    both_ways = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match="must be causal"):
        logits_of(model, batch, both_ways)
    _, model = pair("llama", attention_dropout=0.25)
    with pytest.raises(ValueError, match=r"dropout must be 0 in training, got 0\.25"):
        model.train()(batch)


def test_a_causal_mask_of_four_dimensions_is_looked_at():
    _, model = pair("llama")
    batch = models.tokens(2, LENGTH)
    causal = torch.ones(LENGTH, LENGTH).tril().bool().expand(2, 1, LENGTH, LENGTH)
    assert torch.equal(logits_of(model, batch, causal), logits_of(model, batch))


def test_bfloat16_and_autocast():
    """Twice the error of full attention in bfloat16 leaves room for the core tokens' rounding."""
    _, model = pair("llama")
    batch, mask = models.tokens(4, LENGTH), padding("left")
    visible = mask[..., None]
    errors = {}
    for name in ("sdpa", "paperlab_cca"):
        model.set_attn_implementation(name)
        exact = logits_of(model.double(), batch, mask) * visible
        with torch.autocast("cpu", torch.bfloat16):
            rounded = logits_of(model.float(), batch, mask) * visible
        errors[name] = (rounded.double() - exact).abs().max()
        assert rounded.isfinite().all()
    assert 0 < errors["paperlab_cca"] <= 2 * errors["sdpa"]


@pytest.mark.slow
def test_a_compiled_model_equals_itself():
    _, model = pair("llama")
    batch, mask = models.tokens(4, LENGTH), padding("left")
    compiled = torch.compile(model, backend="eager")
    check_close(logits_of(compiled, batch, mask), logits_of(model, batch, mask), NARROW)


def test_another_name():
    integration.register("another")
    _, model = pair("llama")
    wanted = logits_of(model, models.tokens(2, LENGTH))
    model.set_attn_implementation("another_cca")
    assert torch.equal(logits_of(model, models.tokens(2, LENGTH)), wanted)
