"""paperlab.cca.apply and remove: decoders with core-context attention."""

import copy

import cca_models
import decoder_models as models
import paperlab
import pytest
import torch
import training_cases as cases
from cca_models import CASE, CASES, applied, check_close, definition, read
from paperlab import cca, train
from paperlab import eval as evaluation

LENGTH = 23
NAMES = [
    "llama",
    "llama_biases_tied",
    "llama_one_key_head",
    "llama_yarn",
    "mistral_full",
    "qwen3",
    "neox",
    "neox_sequential",
    "neox_half",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with cases.one_thread():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_definition(name):
    model, batch = applied(name, CASE), models.tokens(2, LENGTH)
    full = models.ours(name)(batch)
    with torch.no_grad():
        got = model(batch)
    check_close(got, definition(CASE, name, model, batch).detach())
    check_close(got[:, :6], full[:, :6])  # no core token before s + g = 7 tokens
    assert (got - full)[:, 6:].abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("case", CASES[1:] + cca_models.other_boundaries(), ids=str)
def test_options(case):
    model, batch = applied("llama", case), models.tokens(2, LENGTH)
    check_close(model(batch), definition(case, "llama", model, batch))


@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_groups_count_from_a_rows_first_token(case, side):
    model, batch = applied("llama", case), models.tokens(4, LENGTH)
    mask = models.masks(LENGTH)[side]
    with torch.no_grad():
        logits, wanted = model(batch, mask), definition(case, "llama", model, batch, mask)
    assert bool(torch.isfinite(logits).all())
    check_close(logits * mask[..., None], wanted)


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("name", ["llama", "neox"])
def test_gradients_are_those_of_the_definition(name, side):
    model, batch = applied(name, CASE), models.tokens(4, 15)
    mask = None if side is None else models.masks(15)[side]
    values = models.values_of(model)
    wanted = definition(CASE, name, model, batch, mask, values)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).double()
    if mask is not None:
        weight *= mask[..., None]
    (wanted * weight).sum().backward()
    (model(batch, mask) * weight).sum().backward()
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(values)
    largest = max(value.grad.abs().max() for value in values.values())
    for key, value in values.items():
        assert (parameters[key].grad - value.grad).abs().max() <= 1e-11 * largest, key


def test_apply_again_and_remove_leave_the_parameters_as_they_are():
    model, batch = models.ours("llama"), models.tokens(2, LENGTH)
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    full = model(batch)
    assert cca.remove(model) is model
    for case in (CASES[0], CASES[2], CASES[3], CASES[0]):
        assert cca.apply(model, **case.options()) is model
        check_close(model(batch), definition(case, "llama", model, batch))
    assert {name: id(p) for name, p in model.named_parameters()} == {
        name: number for name, (number, _) in before.items()
    }
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][1])
    for _ in range(2):
        assert cca.remove(model) is model
        assert torch.equal(model(batch), full)


def test_a_window_that_holds_everything_is_full_attention():
    model, batch = models.ours("llama"), models.tokens(2, LENGTH)
    full, text = model(batch), model.generate(batch, 20, eos_token_id=None)
    for group_size, window in ((16, 1024), (1, 43), (30, 20)):
        cca.apply(model, group_size, window)
        assert torch.equal(model(batch), full)
        assert torch.equal(model.generate(batch, 20, eos_token_id=None), text)


@pytest.mark.parametrize(("name", "layer"), [("mistral", 0), ("qwen2", 1)])
def test_layers_with_a_window_of_their_own_are_refused(name, layer):
    model, batch = models.ours(name), models.tokens(2, LENGTH)
    before = model(batch)
    message = f"apply: a model without sliding windows of its own, got layer {layer} with one of 6"
    with pytest.raises(ValueError, match=message):
        cca.apply(model, 3, 4)
    assert torch.equal(model(batch), before)


def test_a_window_longer_than_the_model_is_none():
    model, batch = models.ours("mistral", sliding_window=64), models.tokens(2, LENGTH)
    cca.apply(model, 3, 4)
    check_close(model(batch), definition(CASE, "mistral", model, batch))
    check_close(read(model, batch, [9, 14]), model(batch))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"group_size": 0}, "group_size must be "),
        ({"group_size": 2.5}, "group_size must be an integer"),
        ({"window": -1}, "window must be "),
        ({"window": None}, "window must be an integer"),
        ({"pooling": "median"}, "pooling"),
        ({"boundary": "inexact"}, "boundary"),
        ({"boundary": "triton_truncation", "window": 7}, "window must be a multiple"),
        ({"weights_per": 3}, "weights_per"),
        ({"keep_first": -1}, "keep_first must be "),
        ({"keep_first": True}, "keep_first must be an integer"),
    ],
)
def test_bad_options_are_refused_by_name(options, part):
    model, batch = models.ours("llama"), models.tokens(2, LENGTH)
    before = model(batch)
    with pytest.raises(ValueError, match=f"^apply: .*{part}"):
        cca.apply(model, **{"group_size": 3, "window": 4, **options})
    assert torch.equal(model(batch), before)


@pytest.mark.parametrize("function", ["apply", "remove"])
def test_what_is_no_decoder_is_refused(function):
    for model in (None, torch.nn.Linear(2, 2), "model"):
        with pytest.raises(ValueError, match=rf"^{function}: model must be a paperlab.nn.Decoder"):
            getattr(cca, function)(model)


def test_a_copy_attends_alike_and_a_saved_model_does_not_know(tmp_path):
    model, batch = applied("llama", CASE), models.tokens(2, LENGTH)
    logits, other = model(batch), copy.deepcopy(model)
    assert torch.equal(other(batch), logits)
    cca.remove(other)
    assert torch.equal(model(batch), logits) and not torch.equal(other(batch), logits)
    model.save_pretrained(tmp_path / "model")
    loaded = paperlab.nn.load(tmp_path / "model")
    assert torch.equal(loaded(batch), other(batch))
    assert torch.equal(cca.apply(loaded, 3, 4)(batch), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype):
    """Rounding of core tokens adds less than that of the model itself, by the error of full ones.

    Two layers amplify an error by the same factors in both; twice leaves room for other roundings.
    """
    batch = models.tokens(2, LENGTH)

    def errors(model, exact):
        return (model(batch).double() - exact(batch)).abs().max()

    settings = models.settings("llama")
    state = {n: p.to(dtype) for n, p in models.ours("llama").state_dict().items()}
    pairs = []
    for kind in (dtype, torch.float64):
        model = paperlab.nn.from_config(settings, dtype=torch.float32).to(kind)
        model.load_state_dict(state)
        pairs.append(model)
    full = errors(*pairs)
    for model in pairs:
        cca.apply(model, 3, 4)
    assert 0 < errors(*pairs) <= 2 * full
    split = read(pairs[0], batch, [9, 1, 13]).double()
    assert (split - pairs[1](batch)).abs().max() <= 2 * full


def test_training_goes_through_it():
    """fit sums in the order of a plain loop: see train_fit_test."""
    model = cca.apply(cases.model(), 3, 4)
    _, expected = cases.by_torch(model, cases.counting, [cases.RATE] * 6)
    history = train.fit(model, cases.counting, steps=6, learning_rate=cases.RATE)
    for key, column in history.items():
        assert column == pytest.approx(expected[key], rel=1e-12, abs=0), key
    full = train.fit(cases.model(), cases.counting, steps=6, learning_rate=cases.RATE)
    assert history["loss"][5] < history["loss"][0] and history["loss"] != full["loss"]


def test_scoring_goes_through_it():
    model, row = applied("llama", CASE), models.tokens(1, 33)[0]
    nll = evaluation.score(model, row, context=32).nll
    with torch.no_grad():
        logits = model(row[None, :-1])[0]
    check_close(nll, torch.nn.functional.cross_entropy(logits, row[1:], reduction="none"))


def test_muddformer():
    model = paperlab.mudd.MuddFormer(97, 3, 24, 3, 48, ffn_round=1, seed=1, dtype="float64").eval()
    batch = models.tokens(2, LENGTH)
    with torch.no_grad():
        for p in model.parameters():  # connections that are not those of the plain model
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        full = model(batch)
        cca.apply(model, 3, 4)
        logits = model(batch)
    check_close(logits[:, :6], full[:, :6])
    assert (logits - full)[:, 6:].abs().amax(-1).min() > 1e-6
    check_close(read_mudd(model, batch, [9, 1, 13]), logits)
    assert torch.equal(cca.remove(model)(batch).detach(), full)


def read_mudd(model, batch, sizes):
    cache = model.new_cache(len(batch), batch.shape[1])
    pieces = [model(x, cache=cache) for x in batch.split(sizes, 1)]
    return torch.cat(pieces, 1)


def test_the_golden_model(tmp_path):
    """In float64 the file's own rounding is left, 7e-6 of logits up to 5; in float32 ours joins it.

    A wrong key moves logits by 0.1 and more. Gradients, up to 0.1, differ by float32's rounding.
    """
    golden = cca_models.golden()
    directory, ids = cca_models.golden_directory(golden, tmp_path), golden["input_ids"]
    exact = cca.apply(paperlab.nn.load(directory, dtype="float64"), 4, 12)
    assert (exact(ids) - golden["logits"]).abs().max() <= 1e-5
    model = cca.apply(paperlab.nn.load(directory), 4, 12)
    logits = model(ids)
    assert (logits - golden["logits"]).abs().max() <= 2e-5
    flat = logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(flat, ids[:, 1:].flatten())
    assert abs(loss - golden["loss"]) <= 2e-6
    loss.backward()
    parameters, compared = dict(model.named_parameters()), 0
    for name, wanted in golden.items():
        if name.startswith("grad."):
            assert (parameters[name[5:]].grad - wanted).abs().max() <= 1e-6, name
            compared += 1
    assert compared == 4
    check_close(read(model, ids, [20, 1, 54]), logits, 1e-5)
    with torch.no_grad():
        assert (cca.remove(model)(ids) - golden["logits_full"]).abs().max() <= 2e-5
