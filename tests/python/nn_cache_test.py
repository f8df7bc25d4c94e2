"""paperlab.nn: tokens read in pieces through a cache give what they give at once."""

import itertools

import decoder_models as models
import pytest
import torch
import transformers
from decoder_models import DECODERS, SOME, WINDOW

EXACT = 1e-12  # of the largest logit: the same sums in another order
LENGTH = 2 * WINDOW + 3
FIXED = [n for n in DECODERS if n != "llama_dynamic"]  # keys of "dynamic" stay as they were read


def read(model, batch, sizes, mask=None):
    """The logits of all pieces; the mask covers the first."""
    cache, logits = model.new_cache(len(batch), batch.shape[1]), []
    for begin, end in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
        first_mask = mask[:, :end] if mask is not None and begin == 0 else None
        logits.append(model(batch[:, begin:end], first_mask, cache=cache))
        assert cache.length == end
    return torch.cat(logits, 1)


def check_close(got, wanted):
    assert got.shape == wanted.shape and got.isfinite().all()
    assert (got - wanted).abs().max() <= EXACT * wanted.abs().max()


SPLITS = [[LENGTH], [1] * LENGTH, [WINDOW - 1, 1, 1, LENGTH - WINDOW - 1], [LENGTH - 1, 1]]
SPLITS += [[1, WINDOW, LENGTH - WINDOW - 1], [WINDOW + 1, WINDOW + 2], [3] * (LENGTH // 3)]


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("name", SOME)
def test_pieces_of_any_size_are_the_whole(name, sizes):
    model, batch = models.ours(name), models.tokens(3, LENGTH)
    check_close(read(model, batch, sizes), model(batch))


@pytest.mark.parametrize("name", FIXED)
def test_token_by_token_is_the_whole(name):
    model, batch = models.ours(name), models.tokens(2, 20)
    check_close(read(model, batch, [5] + [1] * 15), model(batch))


@pytest.mark.parametrize("first", [WINDOW - 1, WINDOW + 2, LENGTH - 1])
@pytest.mark.parametrize("name", FIXED)
def test_left_padding_in_the_first_piece(name, first):
    model, batch = models.ours(name), models.tokens(4, LENGTH)
    mask = torch.ones(4, LENGTH)
    for row, count in enumerate((0, 1, first // 2, first)):
        mask[row, :count] = 0
    visible = mask[..., None].double()
    for sizes in ([first, LENGTH - first], [first] + [1] * (LENGTH - first)):
        logits = read(model, batch, sizes, mask)
        check_close(logits * visible, model(batch, mask) * visible)


def test_last_only_is_the_last():
    for name in SOME:
        model, batch = models.ours(name), models.tokens(2, 9)
        check_close(model(batch, last_only=True), model(batch)[:, -1:])
        mask = models.masks(9)["left"][:2]
        check_close(model(batch, mask, last_only=True), model(batch, mask)[:, -1:])
        cache = model.new_cache(2, 9)
        model(batch[:, :4], cache=cache, last_only=True)
        check_close(model(batch[:, 4:], cache=cache, last_only=True), model(batch)[:, -1:])


@pytest.mark.parametrize("name", SOME)
def test_a_refused_call_leaves_the_cache_as_it_was(name):
    model, batch = models.ours(name), models.tokens(2, 12)
    cache, mask = model.new_cache(2, 12), torch.ones(2, 7)
    mask[1, :3] = 0
    everything = model(batch, torch.cat([mask, torch.ones(2, 5)], 1))
    model(batch[:, :7], mask, cache=cache)
    late, good = torch.zeros(2, 2), batch[:, 7:9]
    for tokens, late_mask in [
        (batch[:, :6], None),  # more than there is room for
        (batch[:1, :2], None),
        (torch.cat([batch, batch])[:, :2], None),
        (good + 97, None),
        (torch.tensor([[3, 4], [5, -1]]), None),
        (good, late),
        (good, torch.ones(2, 3)),
        (good.double(), None),
        (good[0], None),
    ]:
        with pytest.raises((ValueError, TypeError)):
            model(tokens, late_mask, cache=cache)
        assert cache.length == 7
    pieces = [model(good, torch.ones(2, 2), cache=cache), model(batch[:, 9:], cache=cache)]
    check_close(torch.cat(pieces, 1), everything[:, 7:])
    with pytest.raises(ValueError, match="cache"):
        model(batch[:, :1], cache=cache)
    assert cache.length == cache.max_length == 12


def test_a_refused_first_call_leaves_the_cache_empty():
    model, batch = models.ours("llama"), models.tokens(2, 6)
    cache, right, wanted = model.new_cache(2, 6), torch.ones(2, 6), model(batch)
    right[0, 4:] = 0
    with pytest.raises(ValueError, match="attention_mask must hide tokens on the left"):
        model(batch, right, cache=cache)
    assert cache.length == 0
    check_close(model(batch, cache=cache), wanted)


def test_a_layer_that_fails_leaves_the_cache_as_it_was():
    model, batch = models.ours("mistral"), models.tokens(2, 9)
    cache, wanted = model.new_cache(2, 9), model(batch)
    model(batch[:, :4], cache=cache)

    def fail(name, x):
        if name == "model.layers.1.mlp.up_proj":
            raise KeyError("no")

    with model.on_linear_input(fail), pytest.raises(KeyError, match="no"):
        model(batch[:, 5:6], cache=cache)
    assert cache.length == 4
    check_close(model(batch[:, 4:], cache=cache), wanted[:, 4:])


@pytest.mark.parametrize(
    "other",
    [
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 6},
        {"head_dim": 10},
        {"head_dim": 2},
    ],
)
def test_the_cache_of_another_model_is_refused(other):
    model, batch = models.ours("llama"), models.tokens(2, 4)
    cache = models.ours("llama", **other).new_cache(2, 9)
    for _ in range(2):
        with pytest.raises(ValueError, match="cache must be"):
            model(batch, cache=cache)
        assert cache.length == 0


def test_the_cache_of_another_dtype_is_refused():
    model, batch = models.ours("llama"), models.tokens(2, 4)
    cache = models.ours("llama", torch.float32).new_cache(2, 9)
    with pytest.raises(ValueError, match="cache must be"):
        model(batch, cache=cache)
    assert cache.length == 0


def test_the_cache_is_counted_and_is_of_the_models_dtype():
    for dtype, size in ((torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)):
        model = models.ours("llama", dtype)  # 2 layers of 2 key heads of 8
        cache = model.new_cache(3, 10)
        assert (cache.batch_size, cache.length, cache.max_length) == (3, 0, 10)
        assert cache.num_bytes == 2 * 2 * 3 * 2 * 10 * 8 * size
        logits = model(models.tokens(3, 4), cache=cache)
        assert logits.dtype == dtype and not logits.requires_grad


def test_no_gradient_is_recorded_and_the_result_is_a_plain_tensor():
    model, batch = models.ours("llama"), models.tokens(1, 4)
    logits = model(batch, cache=model.new_cache(1, 4))
    assert not logits.requires_grad and not logits.is_inference() and torch.is_grad_enabled()
    weight = torch.ones(97, dtype=torch.float64, requires_grad=True)
    (logits * weight).sum().backward()  # a constant of a graph
    check_close(weight.grad, logits.sum((0, 1)))
    logits += 1
    model(batch).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_tokens_and_results_are_not_aliased():
    model, batch = models.ours("llama"), models.tokens(1, 8)
    cache, wanted = model.new_cache(1, 8), model(batch)
    tokens = batch[:, :4].clone()
    logits = model(tokens, cache=cache)
    tokens.zero_()
    logits.zero_()
    check_close(model(batch[:, 4:], cache=cache), wanted[:, 4:])


def test_two_caches_do_not_meet():
    model, batch = models.ours("qwen2"), models.tokens(2, 8)
    caches, logits = [model.new_cache(1, 8) for _ in range(2)], [[], []]
    for begin, (row, cache) in itertools.product(range(0, 8, 2), enumerate(caches)):
        logits[row].append(model(batch[row : row + 1, begin : begin + 2], cache=cache))
    check_close(torch.cat([torch.cat(parts, 1) for parts in logits]), model(batch))


def test_dynamic_scaling_with_a_cache_is_that_of_transformers():
    """Keys keep the angles of the length at which they were read."""
    model, batch = models.ours("llama_dynamic"), models.tokens(2, 24)
    other, past = models.theirs("llama_dynamic", model), transformers.DynamicCache()
    cache = model.new_cache(2, 24)
    for begin, end in ((0, 10), (10, 18), (18, 19), (19, 24)):
        logits = model(batch[:, begin:end], cache=cache)
        with torch.no_grad():
            wanted = other(batch[:, begin:end], past_key_values=past, use_cache=True).logits
        assert (logits - wanted).abs().max() <= 2e-5 * wanted.abs().max()  # their float32 tables


def test_more_tokens_than_max_positions_are_refused_unless_they_are_padding():
    model = models.ours("llama", max_position_embeddings=10)
    batch = models.tokens(2, 12)
    with pytest.raises(ValueError, match=r"max_positions.*got 11"):
        model(batch[:, :11])
    cache, mask = model.new_cache(2, 12), torch.ones(2, 12)
    model(batch[:, :8], cache=cache)
    with pytest.raises(ValueError, match=r"max_positions.*got 11"):
        model(batch[:, :3], cache=cache)
    assert cache.length == 8
    mask[:, :2] = 0
    check_close(model(batch, mask)[:, 2:], model(batch[:, 2:]))
    check_close(read(model, batch, [9, 3], mask)[:, 2:], model(batch[:, 2:]))
    mask[0, 1] = 1
    with pytest.raises(ValueError, match=r"max_positions.*got 11"):
        model(batch, mask)
