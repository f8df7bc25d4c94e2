"""Caches of decoders with core-context attention: pieces of a text give what it gives at once."""

import cca_models
import decoder_models as models
import pytest
import torch
import training_cases as cases
from cca_models import CASE, CASES, applied, check_close, read
from paperlab import cca

LENGTH = 23


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with cases.one_thread():
        yield


SPLITS = [[LENGTH], [1] * LENGTH, [9, 1, 1, 3, 9], [2, 20, 1], [6, 17], [5] * 4 + [3]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pieces_of_any_size_are_the_whole(case):
    model, batch = applied("llama", case), models.tokens(3, LENGTH)
    whole = model(batch)
    for sizes in SPLITS:
        check_close(read(model, batch, sizes), whole)


@pytest.mark.parametrize("name", ["llama_one_key_head", "qwen3", "neox"])
def test_pieces_with_other_models(name):
    model, batch = applied(name, CASE), models.tokens(2, LENGTH)
    check_close(read(model, batch, [9, 1, 13]), model(batch))


@pytest.mark.parametrize("first", [3, 12, LENGTH - 1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_left_padding_in_the_first_piece(case, first):
    model, batch = applied("llama", case), models.tokens(4, LENGTH)
    mask = torch.ones(4, LENGTH)
    for row, count in enumerate((0, 1, first // 2, first)):
        mask[row, :count] = 0
    visible = mask[..., None].double()
    whole = model(batch, mask) * visible
    for sizes in ([first, LENGTH - first], [first] + [1] * (LENGTH - first)):
        check_close(read(model, batch, sizes, mask) * visible, whole)


def test_all_rows_may_have_the_same_padding():
    model, batch = applied("llama", CASE), models.tokens(2, LENGTH)
    mask = torch.ones(2, LENGTH)
    mask[:, :5] = 0
    logits = read(model, batch, [9, 1, 13], mask)
    check_close(logits[:, 5:], model(batch[:, 5:]))


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[5]], ids=str)
def test_generation_is_that_of_the_whole_text(case):
    model, prompt = applied("llama", case), models.tokens(3, 11)
    mask = torch.ones(3, 11, dtype=torch.int64)
    mask[1, :4] = mask[2, :9] = 0
    for chunk, padding in ((0, None), (4, None), (0, mask)):
        text = model.generate(
            prompt, 15, attention_mask=padding, prefill_chunk=chunk, eos_token_id=None
        )
        whole = None
        if padding is not None:
            whole = torch.cat([padding, torch.ones(3, 14, dtype=torch.int64)], 1)
        logits = model(text[:, :-1], whole)
        assert torch.equal(logits[:, 10:].argmax(-1), text[:, 11:])


def test_the_cache_does_not_grow_with_the_raw_tokens():
    model = models.ours("llama", max_position_embeddings=2000)  # 2 layers, 6 heads, 2 of keys
    full = model.new_cache(1, 2000)
    cca.apply(model, 12, 8)
    caches = [model.new_cache(1, length) for length in (600, 2000)]
    model(models.tokens(1, 300), cache=caches[0])
    for _ in range(300):
        model(models.tokens(1, 1), cache=caches[0])
    model(models.tokens(1, 600), cache=caches[1])
    core, raw = 6 * (2 * 50 + 64), 2 * 2 * (8 + 12 + 64)  # twice: to undo a long call
    for cache in caches:
        assert 0 < cache.num_bytes <= 2 * 2 * 8 * 8 * (core + raw)
        assert 2 * cache.num_bytes < full.num_bytes


@pytest.mark.parametrize("sizes", [(5, 1), (5, 4), (1, 9), (14, 1), (14, 8), (3, 12)], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[5]], ids=str)
def test_a_layer_that_fails_leaves_the_cache_as_it_was(case, sizes):
    model, batch = applied("llama", case), models.tokens(2, LENGTH)
    mask = torch.ones(2, sizes[0])
    mask[1, : sizes[0] // 2] = 0
    whole = model(batch, torch.cat([mask, torch.ones(2, LENGTH - sizes[0])], 1))
    cache = model.new_cache(2, LENGTH)
    model(batch[:, : sizes[0]], mask, cache=cache)

    def fail(name, x):
        if name == "model.layers.1.mlp.up_proj":
            raise KeyError("no")

    other = models.tokens(2, sizes[1], seed=7)
    with model.on_linear_input(fail), pytest.raises(KeyError, match="no"):
        model(other, cache=cache)
    assert cache.length == sizes[0]
    rest = [model(batch[:, sizes[0] : -1], cache=cache), model(batch[:, -1:], cache=cache)]
    check_close(torch.cat(rest, 1), whole[:, sizes[0] :])


def test_a_first_call_that_fails_leaves_an_empty_cache():
    model, batch = applied("llama", CASE), models.tokens(2, 12)
    cache, mask = model.new_cache(2, 12), torch.ones(2, 9)
    mask[0, :4] = 0

    def fail(name, x):
        raise KeyError("no")

    with model.on_linear_input(fail), pytest.raises(KeyError):
        model(batch, cache=cache)
    model(batch[:, :9], mask, cache=cache)
    whole = model(batch, torch.cat([mask, torch.ones(2, 3)], 1))
    check_close(model(batch[:, 9:], cache=cache), whole[:, 9:])


def test_a_refused_call_leaves_the_cache_as_it_was():
    model, batch = applied("llama", CASE), models.tokens(2, 12)
    cache, whole = model.new_cache(2, 12), model(batch)
    model(batch[:, :7], cache=cache)
    for tokens in (batch[:, :6], batch[:1, :2], batch[:, :2] + 97, batch[0]):
        with pytest.raises((ValueError, TypeError)):
            model(tokens, cache=cache)
        assert cache.length == 7
    check_close(model(batch[:, 7:], cache=cache), whole[:, 7:])


def test_caches_of_other_attentions_are_refused():
    model, batch = models.ours("llama"), models.tokens(2, 9)
    plain = model.new_cache(2, 9)
    model(batch[:, :4], cache=plain)
    cca.apply(model, 3, 4)
    with pytest.raises(ValueError, match="cache must be one that core-context attention made"):
        model(batch[:, 4:5], cache=plain)
    core = model.new_cache(2, 9)
    model(batch[:, :4], cache=core)
    for options in ({"group_size": 4}, {"window": 5}, {"pooling": "mean"}, {"keep_first": 1}):
        cca.apply(model, **{"group_size": 3, "window": 4, **options})
        with pytest.raises(ValueError, match=r"cache must be made after the last apply\(\)"):
            model(batch[:, 4:5], cache=core)
    cca.apply(model, 3, 4)
    check_close(model(batch[:, 4:], cache=core), model(batch)[:, 4:])
    core = model.new_cache(2, 9)
    cca.remove(model)
    with pytest.raises(ValueError, match="cache must be one that full attention made"):
        model(batch[:, :1], cache=core)
    check_close(model(batch[:, 4:], cache=plain), model(batch)[:, 4:])


# Products round to 2^-9; so do a few dozen of them, one behind another.
ROUNDINGS = 32 * 2.0**-9


# The heads of qwen3 are normed, which gives float32 queries and keys beside bfloat16 values.
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_cache_under_autocast(name):
    model, batch = applied(name, CASE, torch.float32), models.tokens(2, LENGTH)
    exact = model(batch)
    prompt, count = batch[:, :11], LENGTH - 11
    caches = [model.new_cache(2, LENGTH) for _ in range(2)]
    model(batch, cache=caches[0])
    with torch.autocast("cpu", torch.bfloat16):
        whole, parts = model(batch), read(model, batch, [9, 1, 13])
        model(batch, cache=caches[1])
        text = model.generate(prompt, count, eos_token_id=None)
        assert torch.equal(model.generate(prompt, count, eos_token_id=None, prefill_chunk=4), text)
    assert whole.dtype == parts.dtype == torch.bfloat16
    for logits in (whole, parts):
        assert (logits - exact).norm() < ROUNDINGS * exact.norm()
    assert text.shape == batch.shape and torch.equal(text[:, :11], prompt)
    assert 2 * caches[1].num_bytes == caches[0].num_bytes


@pytest.mark.parametrize("is_lower_first", [False, True])
def test_a_cache_goes_on_in_and_out_of_autocast(is_lower_first):
    model, batch = applied("llama", CASE, torch.float32), models.tokens(2, LENGTH)
    exact, cache = model(batch), model.new_cache(2, LENGTH)
    logits = []
    for begin, end in ((0, 9), (9, 10), (10, LENGTH)):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_lower_first == (begin == 0)):
            logits.append(model(batch[:, begin:end], cache=cache).float())
    assert (torch.cat(logits, 1) - exact).norm() < ROUNDINGS * exact.norm()


def test_autocast_leaves_float64_as_it_is():
    model, batch = applied("llama", CASE), models.tokens(2, LENGTH)
    with torch.autocast("cpu", torch.bfloat16):
        check_close(read(model, batch, [9, 1, 13]), model(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caches_of_other_dtypes_are_refused(dtype):
    model, batch = applied("llama", CASE), models.tokens(2, 9)
    cache = model.new_cache(2, 9)
    with pytest.raises(ValueError, match="cache must be of the model's batch size"):
        model.to(dtype)(batch, cache=cache)
    assert cache.length == 0


@pytest.mark.parametrize("case", cca_models.other_boundaries(), ids=str)
def test_a_cache_needs_the_exact_boundary(case):
    model = applied("llama", case)
    for call in (lambda: model.new_cache(1, 9), lambda: model.generate(models.tokens(1, 3), 2)):
        with pytest.raises(ValueError, match="exact boundary where there is a cache"):
            call()
