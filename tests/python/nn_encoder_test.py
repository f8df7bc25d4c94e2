"""paperlab.nn: encoders of tokens give the logits and gradients of transformers."""

import copy

import encoder_models as models
import numpy as np
import paperlab
import pytest
import torch
from encoder_models import LENGTH, TEXT, check_close, one_thread  # noqa: F401, a fixture

# float64: two or three layers of some ten sums of at most 59 terms each add up to about 1e-14 of
# the norm; the bound has a factor 1000, and gradients one more of 10.
EXACT = 1e-11
SOME = ["bert_masked", "roberta_sequence", "distilbert_tokens", "minilm", "deberta_masked"]


@pytest.mark.parametrize("name", TEXT)
def test_logits_and_gradients_are_those_of_transformers(name):
    pair, batch, kinds = models.pair(name), models.tokens(), models.types(name)
    arguments = {} if kinds is None else {"token_type_ids": kinds}
    wanted = pair.logits(batch, **arguments)
    logits = pair.ours(batch, None, kinds)
    assert logits.dtype == torch.float64
    check_close(logits, wanted, EXACT)
    expected = models.gradients(pair.theirs, wanted)
    found = models.gradients(pair.ours, logits)
    scale = max(gradient.abs().max() for gradient in expected.values())
    for parameter, gradient in expected.items():
        error = (found[parameter] - gradient).abs().max()
        assert error <= 10 * EXACT * scale, parameter
    assert [*found] == [*expected]


@pytest.mark.parametrize("where", ["left", "right", "both", "holes"])
@pytest.mark.parametrize("name", TEXT)
def test_masked_logits_are_those_of_transformers_at_every_position(name, where):
    pair, batch, mask = models.pair(name), models.tokens(), models.masks()[where]
    with torch.no_grad():
        wanted = pair.logits(batch, attention_mask=mask)
        check_close(pair.ours(batch, mask), wanted, EXACT)
        check_close(pair.ours(batch, attention_mask=mask.bool().numpy()), wanted, EXACT)


@pytest.mark.parametrize("name", SOME)
def test_masked_gradients_are_those_of_transformers(name):
    pair, batch, mask = models.pair(name), models.tokens(), models.masks()["holes"]
    expected = models.gradients(pair.theirs, pair.logits(batch, attention_mask=mask))
    found = models.gradients(pair.ours, pair.ours(batch, mask))
    scale = max(gradient.abs().max() for gradient in expected.values())
    for parameter, gradient in expected.items():
        assert (found[parameter] - gradient).abs().max() <= 10 * EXACT * scale, parameter


@pytest.mark.parametrize("name", ["bert_tokens", "roberta_masked", "deberta_new_head"])
def test_a_row_without_tokens_is_finite_and_the_others_are_as_without_it(name):
    ours, batch, mask = models.pair(name).ours, models.tokens(), torch.ones(4, LENGTH)
    mask[1, 3:] = 0
    mask[2] = 0
    logits = ours(batch, mask)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())
    ours.zero_grad()
    rest = [0, 1, 3]
    check_close(logits[rest], ours(batch[rest], mask[rest]), EXACT)


@pytest.mark.parametrize("length", [1, 2, 22])
@pytest.mark.parametrize("name", ["bert_states", "roberta_tokens", "deberta_sequence"])
def test_lengths(name, length):
    if name == "roberta_tokens" and length == 22:
        length = 24 - 4 - 1  # positions begin after pad_token_id
    pair, batch = models.pair(name), models.tokens(2, length)
    check_close(pair.ours(batch), pair.logits(batch), EXACT)


def test_deberta_without_absolute_positions_reads_any_length():
    pair, batch = models.pair("deberta_masked"), models.tokens(1, 50)
    with torch.no_grad():
        theirs = pair.theirs.deberta.embeddings
        theirs.position_ids = torch.arange(50).expand(1, -1)
        check_close(pair.ours(batch), pair.logits(batch), EXACT)
        theirs.position_ids = torch.arange(24).expand(1, -1)


@pytest.mark.parametrize("name", SOME)
def test_float32_errs_no_more_than_transformers_does(name):
    pair, batch, mask = models.pair(name), models.tokens(), models.masks()["right"]
    single = paperlab.nn.load(pair.directory)
    assert {p.dtype for p in single.parameters()} == {torch.float32}
    with torch.no_grad():
        exact = pair.ours(batch, mask)
        other = copy.deepcopy(pair.theirs).float()(batch, attention_mask=mask)
        other = other.logits if "logits" in other else other.last_hidden_state
        norm = exact.abs().max()
        error = (single(batch, mask) - exact).abs().max()
    # Both err by chance: of such sums ours may be several times as large.
    assert error <= 4 * (other - exact).abs().max() + torch.finfo(torch.float32).eps * norm
    assert error <= 1e-5 * norm


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["bert_sequence", "deberta_convolution"])
def test_half_types(name, dtype):
    pair, batch = models.pair(name), models.tokens()
    with torch.no_grad():
        half = paperlab.nn.load(pair.directory, dtype=dtype)
        wide = copy.deepcopy(half).double()
        logits, exact = half(batch, models.masks()["left"]), wide(batch, models.masks()["left"])
    assert logits.dtype == getattr(torch, dtype)
    # bfloat16 rounds some 15 tensors a layer to 2^-9 each; float16 is computed with in float32.
    bound = 0.1 if dtype == "bfloat16" else 2e-3
    assert (logits - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.parametrize("name", ["bert_masked", "roberta_sequence", "deberta_sequence"])
def test_training_gives_the_weights_of_transformers(name):
    pair, batch = models.pair(name), models.tokens()
    trained = [copy.deepcopy(pair.theirs), copy.deepcopy(pair.ours)]
    weight = None
    for model in trained:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(3):
            out = model(batch)
            logits = out if isinstance(out, torch.Tensor) else out.logits
            labels = torch.arange(logits[..., 0].numel()) % logits.shape[-1]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels).backward()
            optimizer.step()
        values = torch.cat([p.detach().flatten() for p in model.parameters()])
        weight = values if weight is None else weight
    # Adam divides by small gradients: their error counts relative to themselves.
    assert (values - weight).abs().max() <= 1e-7
    assert not torch.equal(values, torch.cat([p.flatten() for p in pair.ours.parameters()]))


def test_token_types_are_read_only_by_models_that_have_them():
    kinds = torch.ones(4, LENGTH, dtype=torch.int64)
    for name, is_read in (("bert_states", True), ("distilbert_states", False)):
        ours, batch = models.pair(name).ours, models.tokens()
        is_same = torch.equal(ours(batch, None, kinds), ours(batch))
        assert is_same != is_read
    pair, batch = models.pair("deberta_masked"), models.tokens()
    wanted = pair.logits(batch, token_type_ids=kinds)
    check_close(pair.ours(batch, token_type_ids=kinds.tolist()), wanted, EXACT)


def test_a_batch_may_be_empty_or_an_array():
    ours = models.pair("bert_tokens").ours
    assert ours(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 5, models.LABELS)
    assert ours(torch.zeros(3, 0, dtype=torch.int64)).shape == (3, 0, models.LABELS)
    deberta = models.pair("deberta_masked").ours
    assert deberta(torch.zeros(3, 0, dtype=torch.int64)).shape == (3, 0, models.VOCABULARY)
    batch = models.tokens()
    assert torch.equal(ours(batch.numpy().astype(np.uint8)), ours(batch))


def test_states_are_what_the_head_reads():
    pair, batch, mask = models.pair("bert_tokens"), models.tokens(), models.masks()["left"]
    with torch.no_grad():
        wanted = pair.theirs.bert(batch, attention_mask=mask).last_hidden_state
        check_close(pair.ours.hidden(batch, mask), wanted, EXACT)


@pytest.mark.parametrize("name", ["bert_masked", "deberta_new_head", "roberta_sequence"])
def test_copies_and_exchanged_parameters(name):
    ours, batch = models.pair(name).ours, models.tokens()
    other = copy.deepcopy(ours)
    assert torch.equal(other(batch), ours(batch))
    with torch.no_grad():
        other.tensor("q", 0).zero_()
    assert not torch.equal(other(batch), ours(batch))
    values = {n: p.detach() * 1.01 for n, p in ours.named_parameters()}
    changed = torch.func.functional_call(ours, values, (batch,))
    other.load_state_dict(values)
    assert torch.equal(changed, other(batch)) and not torch.equal(changed, ours(batch))
    assert not ours.training


@pytest.mark.parametrize("name", SOME)
def test_hooks_see_the_inputs_of_linear_layers_and_layers_may_be_replaced(name):
    ours, batch = copy.deepcopy(models.pair(name).ours), models.tokens()
    logits, seen = ours(batch), {}
    with ours.on_linear_input(lambda layer, x: seen.setdefault(layer, x)):
        ours(batch)
    assert set(seen) == set(ours.linear_names())
    values = dict(ours.named_parameters())
    layer = next(n for n in seen if n.endswith(("query", "q_lin", "query_proj")))
    weight, bias = values[f"{layer}.weight"], values[f"{layer}.bias"]
    ours.replace_linear(layer, lambda x: torch.nn.functional.linear(x, weight, bias))
    check_close(ours(batch), logits, EXACT)
    ours.replace_linear(layer, lambda x: 0 * torch.nn.functional.linear(x, weight, bias))
    assert not torch.allclose(ours(batch), logits)
    ours.restore_linear(layer)
    assert torch.equal(ours(batch), logits)
