"""paperlab.nn: generation, greedy as transformers does it, and sampled."""

import collections
import itertools
import math

import decoder_models as models
import pytest
import torch
from decoder_models import DECODERS, SOME, VOCABULARY

PROMPT, NEW = 9, 12
PAD = 2


@pytest.fixture(scope="module")
def pairs():
    """name -> ours and transformers' model with the same float64 values."""
    known = {}

    def pair(name):
        if name not in known:
            model = models.ours(name)
            known[name] = (model, models.theirs(name, model))
        return known[name]

    return pair


def theirs(other, tokens, new=NEW, **options):
    options = {"eos_token_id": None, "pad_token_id": None, **options}
    with torch.no_grad():
        return other.generate(tokens, max_new_tokens=new, do_sample=False, **options)


def left_mask(rows=3):
    mask = torch.ones(rows, PROMPT, dtype=torch.int64)
    for row in range(1, rows):
        mask[row, : min(2 * row + 1, PROMPT - 1)] = 0
    return mask


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_are_those_of_transformers(pairs, name):
    model, other = pairs(name)
    for batch in (models.tokens(1, 1), models.tokens(3, PROMPT)):
        wanted = theirs(other, batch, attention_mask=torch.ones_like(batch))
        assert torch.equal(model.generate(batch, NEW, eos_token_id=None), wanted)
    mask = left_mask()
    wanted = theirs(other, batch, attention_mask=mask)
    assert torch.equal(
        model.generate(batch, NEW, eos_token_id=None, attention_mask=mask.numpy()), wanted
    )


def ends(batch, wanted):
    """Tokens that greedy rows hit at different steps."""
    new = wanted[:, batch.shape[1] :]
    return int(new[0, 2]), [int(new[0, 2]), int(new[1, 4]), int(new[2, 1])]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("pad", [None, PAD])
def test_rows_end_and_are_padded_as_in_transformers(pairs, name, pad):
    model, other = pairs(name)
    batch = models.tokens(3, PROMPT).clamp(min=PAD + 1)
    one, several = ends(batch, model.generate(batch, NEW, eos_token_id=None))
    for end in (one, [one], several, several[::-1], [*several, 1000]):
        wanted = theirs(other, batch, eos_token_id=end, pad_token_id=pad)
        got = model.generate(batch, NEW, eos_token_id=end, pad_token_id=pad)
        assert torch.equal(got, wanted), end
    assert got.shape[1] < PROMPT + NEW  # all rows ended


@pytest.mark.parametrize("name", SOME)
def test_padding_tokens_in_the_prompt_are_hidden_as_in_transformers(pairs, name):
    model, other = pairs(name)
    batch = torch.where(left_mask() == 0, PAD, models.tokens(3, PROMPT).clamp(min=PAD + 1))
    one, several = ends(batch, model.generate(batch, NEW, eos_token_id=None, pad_token_id=PAD))
    for end in (one, several, [*several, PAD], None):  # the third: nothing is inferred
        wanted = theirs(other, batch, eos_token_id=end, pad_token_id=PAD)
        got = model.generate(batch, NEW, eos_token_id=end, pad_token_id=PAD)
        assert torch.equal(got, wanted), end
    hidden = model.generate(batch, NEW, eos_token_id=None, attention_mask=left_mask())
    visible = model.generate(batch, NEW, eos_token_id=None, pad_token_id=None)
    assert torch.equal(model.generate(batch, NEW, eos_token_id=None, pad_token_id=PAD), hidden)
    assert not torch.equal(visible, hidden)


def test_the_ids_of_the_directory_are_the_defaults(tmp_path):
    model = models.ours("llama")
    batch = models.tokens(3, PROMPT).clamp(min=PAD + 1)
    _, several = ends(batch, model.generate(batch, NEW, eos_token_id=None))
    changed = models.ours("llama", eos_token_id=several, pad_token_id=PAD)
    wanted = model.generate(batch, NEW, eos_token_id=several, pad_token_id=PAD)
    assert torch.equal(changed.generate(batch, NEW), wanted)
    other = models.theirs("llama", changed, eos_token_id=several, pad_token_id=PAD)
    with torch.no_grad():
        assert torch.equal(other.generate(batch, max_new_tokens=NEW, do_sample=False), wanted)
    free = changed.generate(batch, NEW, eos_token_id=None)
    assert torch.equal(free, model.generate(batch, NEW, eos_token_id=None))


def test_a_padding_outside_the_vocabulary_fills_ended_rows():
    model = models.ours("llama")
    batch = models.tokens(3, PROMPT)
    one, _ = ends(batch, model.generate(batch, NEW, eos_token_id=None))
    wanted = model.generate(batch, NEW, eos_token_id=one, pad_token_id=PAD)
    is_new = torch.arange(PROMPT + NEW) >= PROMPT
    for pad, end, fill in ((VOCABULARY, one, VOCABULARY), (None, [VOCABULARY + 9, one], 106)):
        changed = models.ours("llama", eos_token_id=end, pad_token_id=pad)
        got = changed.generate(batch, NEW)
        assert (got[0] == fill).sum() == NEW - 3  # the first row alone ends
        assert torch.equal(torch.where((wanted == PAD) & is_new, fill, wanted), got)


def test_no_new_tokens_are_a_copy_of_the_prompt():
    model, batch = models.ours("llama"), models.tokens(2, 4)
    result = model.generate(batch, 0)
    assert torch.equal(result, batch) and result.data_ptr() != batch.data_ptr()


def test_as_many_tokens_as_max_positions_allows():
    model, batch = models.ours("llama", max_position_embeddings=12), models.tokens(2, 9)
    assert model.generate(batch, 3, eos_token_id=None).shape == (2, 12)
    with pytest.raises(ValueError, match=r"generate: max_new_tokens must be at most 3.*got 4"):
        model.generate(batch, 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", SOME)
def test_the_prompts_pieces_do_not_matter(pairs, name, temperature):
    model, _ = pairs(name)
    batch = models.tokens(3, PROMPT)
    for mask in (None, left_mask()):
        options = {"attention_mask": mask, "temperature": temperature, "eos_token_id": None}
        wanted = model.generate(batch, NEW, **options)
        for chunk in (1, 2, 3, PROMPT - 1, PROMPT, 1000):
            assert torch.equal(model.generate(batch, NEW, prefill_chunk=chunk, **options), wanted)


def test_steps_are_reported_and_may_stop_it(pairs):
    model, _ = pairs("llama")
    batch = models.tokens(3, PROMPT)
    _, several = ends(batch, model.generate(batch, NEW, eos_token_id=None))
    steps = []
    whole = model.generate(
        batch, NEW, eos_token_id=several, pad_token_id=PAD, on_tokens=steps.append
    )
    assert torch.equal(torch.stack(steps, 1), whole[:, PROMPT:])
    for answers in ([True, None, False], [False], [0, "", False]):  # only False stops
        remaining = iter(answers)
        part = model.generate(batch, NEW, on_tokens=lambda _: next(remaining), eos_token_id=None)  # noqa: B023
        assert part.shape[1] == PROMPT + len(answers)
    model.generate(batch, 2, on_tokens=lambda step: step.zero_() is None, eos_token_id=None)


def test_changing_the_reported_tokens_changes_nothing(pairs):
    model, _ = pairs("llama")
    batch = models.tokens(2, PROMPT)
    wanted = model.generate(batch, NEW, eos_token_id=None)

    def change(step):
        step.zero_()

    assert torch.equal(model.generate(batch, NEW, on_tokens=change, eos_token_id=None), wanted)


def test_an_exception_in_the_report_passes_and_the_model_goes_on(pairs):
    model, _ = pairs("llama")
    batch = models.tokens(2, PROMPT)
    wanted = model.generate(batch, NEW)
    for error in (ValueError("mine"), KeyboardInterrupt(), StopIteration()):

        def fail(_, error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            model.generate(batch, NEW, on_tokens=fail)
        assert caught.value is error
    assert torch.equal(model.generate(batch, NEW), wanted)
    assert torch.is_grad_enabled()


def test_the_model_may_be_used_in_the_report(pairs):
    model, _ = pairs("llama")
    batch = models.tokens(1, PROMPT)
    wanted, inner = model.generate(batch, NEW), model.generate(batch, 2)
    seen = []

    def nest(step):
        seen.append(model.generate(batch, 2))
        with torch.enable_grad():
            model(step[:, None]).sum().backward()

    assert torch.equal(model.generate(batch, NEW, on_tokens=nest), wanted)
    assert all(torch.equal(tokens, inner) for tokens in seen)
    model.zero_grad()


def test_the_result_is_a_plain_tensor_and_training_goes_on(pairs):
    model, _ = pairs("llama")
    batch = models.tokens(2, PROMPT)
    before = batch.clone()
    result = model.generate(batch, NEW)
    assert result.dtype == torch.int64 and not result.is_inference() and torch.is_grad_enabled()
    assert torch.equal(batch, before)
    model(result).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    with torch.inference_mode():
        assert torch.equal(model.generate(batch, NEW), result)


# Sampling.


def tiny(vocabulary=8):
    """A model whose next token has the same probabilities everywhere but for its last."""
    return models.ours("llama", vocab_size=vocabulary, eos_token_id=None, num_hidden_layers=1)


def first_tokens(model, prompt, draws, **options):
    """How often each token is drawn, one row of a batch for each draw."""
    counts = collections.Counter()
    for seed in range(draws // 500):
        batch = prompt.expand(500, -1)
        counts.update(model.generate(batch, 1, seed=seed, **options)[:, -1].tolist())
    return counts


def kept_probabilities(logits, temperature, top_p):
    """Those of the fewest most likely tokens whose sum reaches top_p, by their definition."""
    p = (logits / temperature).softmax(-1)
    order = p.argsort(descending=True)
    count = int((p[order].cumsum(0) < top_p).sum()) + 1
    kept = torch.zeros_like(p)
    kept[order[:count]] = p[order[:count]]
    return kept / kept.sum()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (1.5, 0.8), (0.7, 0.5)])
def test_the_draws_have_the_probabilities_of_the_logits(temperature, top_p):
    model, prompt = tiny(), torch.tensor([[1, 3, 2]])
    logits = model(prompt)[0, -1].detach()
    p = kept_probabilities(logits, temperature, top_p)
    counts = first_tokens(model, prompt, 4000, temperature=temperature, top_p=top_p)
    total = sum(counts.values())
    assert {*counts} <= {*p.nonzero().flatten().tolist()}
    chi_square, freedom = 0.0, -1
    for token in p.nonzero().flatten().tolist():
        chi_square += (counts[token] - total * p[token]) ** 2 / (total * p[token])
        freedom += 1
    # Wilson and Hilferty: 4 standard deviations, once in 30,000; the seeds are fixed.
    if freedom > 0:
        spread = 2 / (9 * freedom)
        assert chi_square <= freedom * (1 - spread + 4 * math.sqrt(spread)) ** 3


def test_top_p_keeps_exactly_the_smallest_set():
    model, prompt = tiny(), torch.tensor([[1, 3, 2]])
    p = model(prompt)[0, -1].detach().mul(0.5).softmax(-1)  # temperature 2
    sums = p.sort(descending=True).values.cumsum(0)
    order = p.argsort(descending=True).tolist()
    for kept in range(1, 5):
        for top_p in (
            float(sums[kept - 1]) * (1 - 1e-9),
            (kept > 1) * float(sums[kept - 2]) + 1e-6,
        ):
            counts = first_tokens(model, prompt, 4000, temperature=2.0, top_p=top_p)
            assert {*counts} <= {*order[:kept]}
            likely = [t for t in order[:kept] if p[t] > 0.01]  # missed with probability 1e-17
            assert {*likely} <= {*counts}


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(pairs):
    model, _ = pairs("neox")
    batch = models.tokens(3, PROMPT)
    runs = [model.generate(batch, NEW, temperature=1.0, seed=s) for s in (7, 7, 8, 2**64 - 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[3])


def test_a_rows_draws_do_not_depend_on_the_other_rows(pairs):
    model, _ = pairs("llama")
    batch = models.tokens(5, PROMPT)
    options = {"temperature": 1.0, "top_p": 0.9, "seed": 3, "eos_token_id": None}
    whole = model.generate(batch, NEW, **options)
    for rows in range(1, 5):
        assert torch.equal(model.generate(batch[:rows], NEW, **options), whole[:rows])
    other = batch.clone()
    other[[0, 1, 3]] = 7
    assert torch.equal(model.generate(other, NEW, **options)[[2, 4]], whole[[2, 4]])
    equal = model.generate(batch[:1].expand(4, -1), NEW, **options)
    assert len({tuple(row) for row in equal.tolist()}) == 4  # each row draws for itself


def test_steps_draw_for_themselves():
    model = tiny()
    with torch.no_grad():
        for p in model.parameters():  # every token has the same probability
            p.zero_()
    new = model.generate(torch.zeros(50, 1, dtype=torch.int64), 40, temperature=1.0)[:, 1:]
    counts = collections.Counter(itertools.chain(*new.tolist()))
    assert all(abs(counts[t] - 250) < 4 * math.sqrt(250) for t in range(8))
    pairs = collections.Counter(
        zip(new[:, :-1].flatten().tolist(), new[:, 1:].flatten().tolist(), strict=True)
    )
    assert all(abs(pairs[p] - 1950 / 64) < 5 * math.sqrt(1950 / 64) for p in pairs)


@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 1e-300, 5e-324])
def test_a_temperature_near_zero_is_greedy(pairs, temperature):
    for name in SOME:
        model, _ = pairs(name)
        batch = models.tokens(3, PROMPT)
        cold = model.generate(batch, NEW, temperature=temperature)
        assert torch.equal(cold, model.generate(batch, NEW)), name
        tiny_p = model.generate(batch, NEW, temperature=1.0, top_p=1e-300, seed=9)
        assert torch.equal(tiny_p, model.generate(batch, NEW)), name


def test_bfloat16_and_float32_generate():
    for dtype in (torch.bfloat16, torch.float32):
        model, batch = models.ours("llama", dtype), models.tokens(2, PROMPT)
        for options in ({}, {"temperature": 1.0}):
            result = model.generate(batch, 5, eos_token_id=None, **options)
            assert result.shape == (2, PROMPT + 5)
        logits, step = model(result[:, :-1]), model.generate(batch, 1, eos_token_id=None)
        assert torch.equal(logits[:, PROMPT - 1].argmax(-1), step[:, -1]) or dtype != torch.float32
