"""paperlab.integrations.transformers: the attention function alone, against that of "sdpa"."""

import itertools
import random
import types

import pytest
import torch
import transformers
from paperlab.integrations import transformers as integration

integration.register()

SDPA = transformers.AttentionInterface()["sdpa"]
OURS = transformers.AttentionInterface()["paperlab"]


def module(is_causal=True, training=False):
    return types.SimpleNamespace(is_causal=is_causal, training=training, num_key_value_groups=2)


def heads(num_queries, num_keys, batch=1, head_dim=8, value_dim=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_queries + 10 * num_keys)
    shapes = (4, num_queries, head_dim), (2, num_keys, head_dim), (2, num_keys, value_dim)
    tensors = [torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in shapes]
    return [tensor.to(dtype) for tensor in tensors]


def check_equals_sdpa(tensors, mask, module=module(), **kwargs):  # noqa: B008 (a constant)
    ours, weights = OURS(module, *tensors, mask, **kwargs)
    theirs, _ = SDPA(module, *tensors, mask, **kwargs)
    assert weights is None and ours.shape == theirs.shape and ours.is_contiguous()
    # A weighted mean of 8 keys at most, weights and sums rounded once a key.
    atol = 64 * torch.finfo(ours.dtype).eps * float(tensors[2].abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def masks_of_the_rule(num_queries, num_keys):
    """Every mask that is a key range, and a band at some position, possibly with a window."""
    row, key = torch.arange(num_queries)[:, None], torch.arange(num_keys)
    found = set()
    for start, end in itertools.combinations_with_replacement(range(num_keys + 1), 2):
        padding = ((key >= start) & (key < end)).expand(num_queries, -1)
        found.add(tuple(padding.flatten().tolist()))
        for offset in range(-num_queries, num_keys - num_queries + 1):
            for window in range(1, num_queries + num_keys + 1):
                band = (key <= row + offset) & (key > row + offset - window)
                found.add(tuple((padding & band).flatten().tolist()))
    return found


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (3, 3), (4, 3), (2, 5)])
def test_every_mask_of_a_small_shape_is_served_or_refused(shape):
    tensors, served = heads(*shape), masks_of_the_rule(*shape)
    for bits in itertools.product((False, True), repeat=shape[0] * shape[1]):
        mask = torch.tensor(bits).view(1, 1, *shape)
        if bits in served:
            check_equals_sdpa(tensors, mask)
        else:
            with pytest.raises(ValueError, match="attention_mask must be causal, full or a"):
                OURS(module(), *tensors, mask)


@pytest.mark.parametrize("seed", range(100))
def test_every_padding_of_a_batch_is_served(seed):
    generator = random.Random(seed)
    batch, num_queries, num_keys = (generator.randint(1, most) for most in (3, 9, 9))
    row, key = torch.arange(num_queries)[:, None], torch.arange(num_keys)
    position = row + generator.randint(-num_queries, num_keys - num_queries)
    band = (key <= position) & (key > position - generator.randint(1, 20))
    if seed % 4 == 0:
        band = torch.ones_like(band)
    ranges = [(generator.randint(0, 9), generator.randint(0, 9)) for _ in range(batch)]
    rows = [band & (key >= start) & (key < end) for start, end in ranges]
    check_equals_sdpa(heads(num_queries, num_keys, batch), torch.stack(rows)[:, None])


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 6), (5, 6), (6, 6)])
def test_without_a_mask_only_the_first_keys_of_a_cache_are_there(shape, is_causal):
    check_equals_sdpa(heads(*shape), None, module(is_causal))
    if shape[0] > 1:  # 4.57 shows a single query the first key alone if told so like this
        check_equals_sdpa(heads(*shape), None, module(not is_causal), is_causal=is_causal)
    if is_causal and 1 < shape[0] < shape[1]:
        query, key, value = heads(*shape)
        key[:, :, shape[0] :] = value[:, :, shape[0] :] = torch.nan
        assert OURS(module(), query, key, value, None)[0].isfinite().all()


def test_more_causal_queries_than_keys_need_a_mask():
    with pytest.raises(ValueError, match="an attention_mask is needed for 5 causal queries of 3"):
        OURS(module(), *heads(5, 3), None)


def test_a_static_cache_is_cut_behind_the_last_visible_key():
    query, key, value = heads(3, 8)
    mask = torch.zeros(1, 1, 3, 8, dtype=torch.bool)
    mask[..., :5] = torch.ones(3, 5).tril(2).bool()
    check_equals_sdpa([query, key, value], mask)
    key[:, :, 5:] = value[:, :, 5:] = torch.nan
    assert OURS(module(), query, key, value, mask)[0].isfinite().all()


def test_a_mask_may_be_longer_than_the_keys_and_broadcast():
    tensors = heads(4, 6, batch=2)
    causal = torch.ones(4, 9).tril(2).bool()
    ours, _ = OURS(module(), *tensors, causal[None, None])
    theirs, _ = SDPA(module(), *tensors, causal[None, None, :, :6])
    torch.testing.assert_close(ours, theirs)
    check_equals_sdpa(tensors, torch.tensor([0, 1, 1, 1, 0, 0]).bool().view(1, 1, 1, 6))
    check_equals_sdpa(tensors, causal[:, :6].expand(2, 4, 4, 6))


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, -1e4, torch.nan])
def test_a_floating_mask_has_zeros_and_least_numbers_only(value):
    tensors = heads(3, 3, dtype=torch.float32)
    mask = torch.full((1, 1, 3, 3), torch.finfo(torch.float32).min).triu(1)
    for least in (mask, mask.clamp(min=-65504), torch.full((3, 3), -torch.inf).triu(1)[None, None]):
        check_equals_sdpa(tensors, least)
    mask[..., 2, 0] = value
    if value == 0:
        check_equals_sdpa(tensors, mask)
    else:
        with pytest.raises(ValueError, match="attention_mask must be 0 at the keys"):
            OURS(module(), *tensors, mask)


@pytest.mark.parametrize(
    "mask",
    [
        torch.full((1, 1, 3, 3), -torch.inf),  # "sdpa" gives no zeros here
        torch.zeros(1, 1, 3, 3).requires_grad_(),  # a learned bias
        torch.ones(1, 1, 3, 3, dtype=torch.long),
        torch.ones(1, 3, dtype=torch.bool),
        torch.ones(1, 1, 3, 2, dtype=torch.bool),
        torch.ones(1, 1, 2, 3, dtype=torch.bool),
        torch.ones(2, 1, 3, 3, dtype=torch.bool),
        torch.stack([torch.ones(3, 3), torch.ones(3, 3).tril()] * 2).bool()[None],  # by head
    ],
    ids=lambda mask: f"{mask.dtype}{list(mask.shape)}",
)
def test_other_masks_are_refused(mask):
    with pytest.raises(ValueError, match="attention_mask must "):
        OURS(module(), *heads(3, 3, dtype=torch.float32), mask)


def test_a_mask_changed_in_place_is_read_again():
    tensors, mask = heads(3, 3), torch.ones(1, 1, 3, 3).tril().bool()
    for inference in (False, True):
        with torch.inference_mode(inference):
            mask = mask.clone()
            check_equals_sdpa(tensors, mask)
            mask[..., 0] = False
            check_equals_sdpa(tensors, mask)
            mask[..., 0] = True


def test_a_mask_read_for_inference_serves_training_too():
    tensors, mask = heads(3, 3), torch.ones(1, 1, 3, 3).tril().bool()
    with torch.inference_mode():
        check_equals_sdpa(tensors, mask)
    tensors[0].requires_grad_()
    OURS(module(training=True), *tensors, mask)[0].sum().backward()
    assert tensors[0].grad.isfinite().all()


def test_the_scale_is_the_model_s():
    tensors = heads(4, 6)
    for scaling in (None, 0.0, 1.7):
        check_equals_sdpa(tensors, None, module(False), scaling=scaling)


@pytest.mark.parametrize("value_dim", [1, 5, 8])
def test_values_may_have_a_smaller_head_size(value_dim):
    check_equals_sdpa(heads(4, 4, value_dim=value_dim), None)


@pytest.mark.parametrize(
    "name",
    [
        "block_indices",
        "cache",
        "head_mask",
        "indices",
        "position_bias",
        "s_aux",
        "sinks",
        "softcap",
    ],
)
def test_what_changes_the_result_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^paperlab attention: {name} must be None"):
        OURS(module(), *heads(2, 2), None, **{name: torch.ones(4)})
    OURS(module(), *heads(2, 2), None, **{name: None})


def test_other_keywords_are_harmless():
    check_equals_sdpa(
        heads(4, 4), None, sliding_window=2, position_ids=torch.arange(4), num_items_in_batch=1
    )
    with pytest.raises(ValueError, match="output_attentions must be False"):
        OURS(module(), *heads(2, 2), None, output_attentions=True)


def test_dropout_is_refused_in_training_and_nothing_otherwise():
    with pytest.raises(ValueError, match=r"dropout must be 0 in training, got 0\.5"):
        OURS(module(training=True), *heads(2, 2), None, dropout=0.5)
    expected = OURS(module(training=True), *heads(2, 2), None, dropout=0.0)[0]
    assert torch.equal(OURS(module(), *heads(2, 2), None, dropout=0.5)[0], expected)
