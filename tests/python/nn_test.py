"""paperlab.nn: logits and gradients are those of the definition and of transformers; masks."""

import decoder_models as models
import numpy as np
import pytest
import torch
from decoder_models import DECODERS, SOME, TRAINED, VOCABULARY

LENGTH = 21  # beyond the windows and beyond the length before a rope's scaling


def check_close(got, wanted, share, what=""):
    """Equal up to a share of the largest value."""
    assert got.shape == wanted.shape, what
    assert got.isfinite().all(), what
    assert (got - wanted).abs().max() <= share * wanted.abs().max(), what


# float64: a sum of n terms errs by some n^0.5 2^-53 of its norm; the longest has 144 terms, two
# layers of some ten sums each add to about 1e-14. The bound has a factor 100.
EXACT = 1e-12


@pytest.mark.parametrize("length", [1, 2, TRAINED - 1, TRAINED, LENGTH])
@pytest.mark.parametrize("name", SOME + [n for n in DECODERS if "llama_" in n])
def test_logits_of_any_length_are_those_of_the_definition(name, length):
    model, batch = models.ours(name), models.tokens(2, length)
    wanted = models.definition(models.hf_config(name), models.values_of(model), batch)
    logits = model(batch)
    assert logits.dtype == torch.float64
    check_close(logits, wanted, EXACT)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_and_gradients_are_those_of_the_definition(name):
    model, batch = models.ours(name), models.tokens(2, LENGTH)
    values = models.values_of(model)
    wanted = models.definition(models.hf_config(name), values, batch)
    logits = model(batch)
    check_close(logits, wanted, EXACT)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).double()
    (logits * weight).sum().backward()
    (wanted * weight).sum().backward()
    for parameter, value in model.named_parameters():
        check_close(value.grad, values[parameter].grad, 10 * EXACT, parameter)


@pytest.mark.parametrize("length", [TRAINED - 3, LENGTH])
@pytest.mark.parametrize("name", DECODERS)
def test_float32_errs_no_more_than_transformers_does(name, length):
    model, batch = models.ours(name), models.tokens(2, length)
    exact = models.definition(models.hf_config(name), models.values_of(model), batch).detach()
    norm = exact.abs().max()
    with torch.no_grad():
        # Their norms and rotary tables are float32 in a float64 model too.
        double = (models.theirs(name, model)(batch).logits - exact).abs().max()
        model.float()
        single = (models.theirs(name, model, torch.float32)(batch).logits - exact).abs().max()
        error = (model(batch) - exact).abs().max()
    assert double <= 4 * single
    # Both err by chance: of such sums ours may be several times as large.
    assert error <= 4 * single + torch.finfo(torch.float32).eps * norm
    assert single < 1e-4 * norm


@pytest.mark.parametrize("name", SOME)
def test_bfloat16_errs_no_more_than_transformers_does(name):
    model, batch = models.ours(name, torch.bfloat16), models.tokens(2, LENGTH)
    exact = models.definition(models.hf_config(name), models.values_of(model), batch).detach()
    with torch.no_grad():
        logits = model(batch)
        single = (models.theirs(name, model, torch.bfloat16)(batch).logits - exact).abs().mean()
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).abs().mean() <= 1.5 * single


@pytest.mark.parametrize("name", DECODERS)
def test_the_parameters_are_named_as_in_transformers(name):
    model = models.ours(name, torch.float32)
    other = models.theirs(name, model, torch.float32)
    mine = {models.name_in_transformers(n, other): p for n, p in model.named_parameters()}
    assert [*mine] == [n for n, _ in other.named_parameters()]
    assert all(torch.equal(mine[n], p) for n, p in other.named_parameters())


def test_the_checkpoint_of_gpt_neox_has_our_name_of_its_head(tmp_path):
    model = models.ours("neox", torch.float32)
    models.theirs("neox", model, torch.float32).save_pretrained(tmp_path)
    import safetensors

    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {*file.keys()} == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("where", ["left", "right", "holes"])
@pytest.mark.parametrize("name", DECODERS)
def test_each_row_of_a_padded_batch_is_that_row_alone(name, where):
    # "dynamic" looks at the longest row; below the trained length no row is stretched.
    length = TRAINED if name == "llama_dynamic" else LENGTH
    model, batch, mask = models.ours(name), models.tokens(4, length), models.masks(length)[where]
    values = models.values_of(model)
    wanted = models.definition(models.hf_config(name), values, batch, mask)
    logits = model(batch, mask)
    assert logits.isfinite().all()
    visible = mask[..., None].double()
    check_close(logits * visible, wanted, EXACT)
    (logits * visible).square().sum().backward()
    wanted.square().sum().backward()
    for parameter, value in model.named_parameters():
        check_close(value.grad, values[parameter].grad, 10 * EXACT, parameter)


@pytest.mark.parametrize("name", SOME)
def test_left_padding_is_what_generate_of_transformers_computes(name):
    model, batch = models.ours(name), models.tokens(3, LENGTH)
    mask = models.masks(LENGTH)["left"][:3]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    other = models.theirs(name, model)
    with torch.no_grad():
        plain = other(batch, attention_mask=mask, position_ids=positions).logits
        logits = model(batch, mask)
    check_close(logits * mask[..., None], plain * mask[..., None], 2e-5)  # their float32 parts


@pytest.mark.parametrize("where", ["left", "right", "holes"])
@pytest.mark.parametrize("huge", [1e30, float("nan")])
@pytest.mark.parametrize("name", ["llama", "mistral", "neox"])
def test_hidden_tokens_have_no_influence(name, huge, where):
    model, mask = models.ours(name), models.masks(LENGTH)[where][:3]
    batch = models.tokens(3, LENGTH).clamp(min=1)
    with torch.no_grad():
        next(model.parameters())[0] = 0.5
        before = model(batch * mask, mask)
        next(model.parameters())[0] = huge
        logits = model(batch * mask, mask)
    assert torch.equal(logits[mask != 0], before[mask != 0])
    if huge == 1e30:
        model(batch * mask, mask)[mask != 0].sum().backward()
        for parameter, value in model.named_parameters():
            assert value.grad.isfinite().all(), parameter
        assert not next(model.parameters()).grad[0].any()


def test_masks_of_every_kind_are_alike():
    model, batch = models.ours("llama"), models.tokens(4, 9)
    mask = models.masks(9)["holes"]
    wanted = model(batch, mask)
    kinds = [mask.bool(), mask.double() * 0.5, mask.int() * 7, mask.to(torch.uint8)]
    arrays = [mask.numpy(), mask.bool().numpy(), mask.numpy().astype(">f4"), mask.tolist()]
    arrays.append(np.asfortranarray(mask.numpy()[:, ::-1])[:, ::-1])
    strided = torch.stack([mask, 1 - mask], -1)[..., 0]
    for kind in [*kinds, *arrays, strided]:
        assert torch.equal(model(batch, kind), wanted)
    everything = model(batch)
    assert torch.equal(model(batch, torch.ones_like(batch)), everything)
    check_close(model.hidden(batch, mask) @ model.tensor("head").T, wanted, EXACT)


def test_tokens_of_every_kind_are_alike_and_stay():
    model, batch = models.ours("llama"), models.tokens(2, 9)
    wanted, before = model(batch), batch.clone()
    array = batch.numpy()
    kinds = [batch.int(), batch.to(torch.uint8), array, array.astype(">i4"), array.tolist()]
    kinds += [array.astype(np.uint16), array[:, ::-1].copy()[:, ::-1]]
    kinds += [torch.stack([batch, batch * 0], -1)[..., 0], batch.T.contiguous().T]
    array.flags.writeable = False
    kinds.append(array)
    for kind in kinds:
        assert torch.equal(model(kind), wanted)
    assert torch.equal(batch, before)
    row = batch[:1].expand(3, -1)
    check_close(model(row), wanted[:1].expand(3, -1, -1), EXACT)


def test_a_row_has_the_same_logits_in_any_batch():
    model, batch = models.ours("llama", torch.float32), models.tokens(5, 9)
    whole = model(batch)
    for row in range(5):
        check_close(model(batch[row : row + 1]), whole[row : row + 1], 1e-5)


def test_every_row_hidden_is_no_error():
    for name in SOME:
        model = models.ours(name)
        logits = model(models.tokens(2, 7), torch.zeros(2, 7))
        assert logits.isfinite().all()
        logits.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama_biases_tied", "mistral", "neox"])
def test_the_bits_are_the_same_from_run_to_run(name, dtype):
    mask, batch = models.masks(LENGTH)["holes"], models.tokens(4, LENGTH)
    before = torch.get_num_threads()
    runs = []
    try:
        torch.set_num_threads(1)
        for _ in range(2):
            model = models.ours(name, dtype)
            logits = model(batch, mask)
            logits[mask != 0].float().square().sum().backward()
            generated = model.generate(batch, 9, attention_mask=mask, temperature=0.9, seed=3)
            runs.append([logits, generated, *(p.grad for p in model.parameters())])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_settings_are_there():
    model = models.ours("llama")
    assert model.vocab_size == VOCABULARY and model.max_positions == 64
    assert model.config == {**models.settings("llama"), "architectures": ["LlamaForCausalLM"]}
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
