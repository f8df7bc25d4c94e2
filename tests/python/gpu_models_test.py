"""Models on a GPU beside the same models on the CPU in float64: logits, gradients, caches,
generation, training, perplexity; and files loaded to it."""

import copy
import itertools

import gpu_cases
import mudd_models
import paperlab
import pytest
import torch
import training_cases as cases
from gpu_cases import BACKENDS, DOUBLE, FLOAT, HALF, LOW, backend, on_devices
from paperlab import cca, nn, train

SHARE = 1e-11  # float64: the same sums of some thousand terms in another order, a few layers deep

_GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": cases.VOCABULARY,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "initializer_range": 0.1,
}
_NEOX = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "rotary_pct": 1.0}
_WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
_BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": cases.VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
}
_DEBERTA = {
    **_BERT,
    "model_type": "deberta-v2",
    "architectures": ["DebertaV2ForSequenceClassification"],
    "relative_attention": True,
    "position_buckets": 4,
    "pos_att_type": ["c2p", "p2c"],
    "norm_rel_ebd": "layer_norm",
}
_VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 2,
    "initializer_range": 0.2,
}

# Each makes the same model whenever it is called.
DECODERS = {
    "llama": lambda: cases.model(),
    "llama_wide": lambda: cases.model(**_WIDE, initializer_range=0.05),  # heads of 64
    "neox": lambda: cases.model(**_NEOX),
    "gpt2": lambda: nn.from_config(_GPT2, dtype="float64", seed=1),
    "cca": lambda: cca.apply(cases.model(), 3, 4),
    "cca_kept": lambda: cca.apply(cases.model(), 2, 3, keep_first=1, pooling="max"),
    "mudd": lambda: mudd_models.new(vocab_size=cases.VOCABULARY),
    "mudd_normed": lambda: mudd_models.new(vocab_size=cases.VOCABULARY, pre_post_norm=True),
    "mudd_sparse": lambda: mudd_models.new(vocab_size=cases.VOCABULARY, dilation=2, period=2),
    "hyper": lambda: mudd_models.new(vocab_size=cases.VOCABULARY, variant="hyper_connections"),
    "lime": lambda: mudd_models.new(vocab_size=cases.VOCABULARY, variant="lime"),
}
ENCODERS = {
    "bert": lambda: nn.from_config(_BERT, dtype="float64", seed=1),
    "vit": lambda: nn.from_config(_VIT, dtype="float64", seed=1),
    "deberta": lambda: nn.from_config(_DEBERTA, dtype="float64", seed=1),
}
SOME = ("llama", "gpt2", "cca", "mudd")


@pytest.fixture(autouse=True)
def one_thread():
    with cases.one_thread():
        yield


def tokens(rows=3, length=13):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(cases.VOCABULARY, (rows, length), generator=generator)


def mask(rows=3, length=13):
    left = torch.ones(rows, length, dtype=torch.int64)
    left[1, :4] = 0
    left[2:, :9] = 0
    return left


def inputs_of(name):
    """By the names of forward's arguments."""
    if name == "vit":
        return {"pixels": gpu_cases.random(3, 2, 12, 12)}
    return {"tokens": tokens(), "attention_mask": mask()}


def logits_and_gradients(model, inputs):
    """Gradients of a fixed weighted sum, of what the mask lets count."""
    logits = model(**inputs)
    weight = gpu_cases.random(*logits.shape, seed=3).to(logits)
    if logits.dim() == 3:
        counts = inputs["attention_mask"].to(logits)[..., None]
        weight, logits = weight * counts, logits * counts
    values = [value for value in model.parameters() if value.requires_grad]
    grads = torch.autograd.grad((logits * weight).sum(), values, allow_unused=True)
    return [logits.detach(), *(g for g in grads if g is not None)]


def flat(tensors):
    return torch.cat([x.detach().cpu().double().flatten() for x in tensors])


def placed(model, dtype, device):
    return model.to(dtype).to(device)


@on_devices(
    "name dtype which",
    itertools.product([*DECODERS, *ENCODERS], (DOUBLE, FLOAT, LOW, HALF), BACKENDS),
    [("mudd", LOW, "torch"), ("vit", DOUBLE, "kernels"), ("llama", FLOAT, "kernels")],
)
def test_logits_and_gradients(name, dtype, which, device):
    make = {**DECODERS, **ENCODERS}[name]
    inputs = inputs_of(name)

    def inputs_in(dtype, device):
        floats = {k: x.to(dtype if x.is_floating_point() else x.dtype) for k, x in inputs.items()}
        return gpu_cases.moved(floats, device)

    # Of the numbers that the dtype holds.
    rounded = {k: x.to(inputs[k].dtype) for k, x in inputs_in(dtype, "cpu").items()}
    exact = logits_and_gradients(placed(placed(make(), dtype, "cpu"), DOUBLE, "cpu"), rounded)
    with backend(which):
        found = logits_and_gradients(placed(make(), dtype, device), inputs_in(dtype, device))
    with backend("torch" if dtype == HALF else "kernels"):
        on_cpu = logits_and_gradients(placed(make(), dtype, "cpu"), inputs_in(dtype, "cpu"))
    assert all(x.device.type == device and x.isfinite().all() for x in found)
    assert [x.dtype for x in found] == [x.dtype for x in on_cpu]
    for part in (slice(0, 1), slice(1, None)):  # the logits, and all gradients together
        y = flat(exact[part])
        error = (flat(found[part]) - y).norm()
        if dtype == DOUBLE:
            assert error <= SHARE * y.norm()
        else:  # as many roundings as on the CPU, of sums in another order
            assert error <= 4 * (flat(on_cpu[part]) - y).norm() + 1e-6 * y.norm()


@on_devices(
    "name which",
    itertools.product(DECODERS, BACKENDS),
    [("cca", "torch"), ("gpt2", "kernels")],
)
def test_caches_and_generation(name, which, device):
    make = DECODERS[name]

    def run(model):
        prompt, left = tokens(2, 7), mask(2, 7)
        cache = model.new_cache(2, 20)
        parts = [model(prompt, attention_mask=left, cache=cache)[:, 4:]]
        parts += [model(prompt[:, :n], cache=cache) for n in (1, 4, 1)]
        assert cache.length == 13
        greedy = model.generate(prompt, 6, attention_mask=left, eos_token_id=None)
        drawn = model.generate(prompt, 6, temperature=0.8, top_p=0.9, eos_token_id=None)
        return [torch.cat(parts, 1).detach(), greedy, drawn]

    wanted = run(make())
    with backend(which):
        found = run(make().to(device))
    logits, *generated = (x.cpu() for x in found)
    assert found[0].device.type == device
    assert (logits - wanted[0]).abs().max() <= SHARE * wanted[0].abs().max()
    assert all(torch.equal(x.cpu(), y) for x, y in zip(generated, wanted[1:], strict=True))


def trained(make, device, **options):
    model = make().to(device)
    settings = {"steps": 3, "learning_rate": cases.RATE, "weight_decay": 0.1, **options}
    history = train.fit(model, cases.counting, **settings)
    assert next(model.parameters()).device.type == device
    return history, {name: value.cpu() for name, value in cases.values(model).items()}


# Of Adam's steps: a gradient's noise of 1e-14, divided by eps 1e-8 at most, times the rate.
@on_devices(
    "name which options",
    [
        (name, which, tuple(options.items()))
        for name, which, options in itertools.product(
            SOME,
            BACKENDS,
            ({"clip_norm": 0.5}, {"optimizer": "sgd", "momentum": 0.9, "accumulate": 2}),
        )
    ],
    [("llama", "torch", (("clip_norm", 0.5),))],
)
def test_three_steps_of_fit(name, which, options, device):
    history, values = trained(DECODERS[name], "cpu", **dict(options))
    with backend(which):
        found, others = trained(DECODERS[name], device, **dict(options))
    bound = 3 * cases.RATE * 1e-14 / 1e-8
    for key in ("loss", "grad_norm", "learning_rate"):
        assert found[key] == pytest.approx(history[key], rel=1e-8)
    for key, value in values.items():
        assert (others[key] - value).abs().max() <= bound * max(1.0, float(value.abs().max())), key


def labelled(name):
    """Batches of what the encoder reads, with labels of two kinds."""
    first, *_ = inputs_of(name).values()
    return lambda step: (first.roll(step, 0), torch.tensor([0, 1, 1]))


@on_devices("name which", itertools.product(ENCODERS, BACKENDS), [("vit", "torch")])
def test_three_steps_of_fit_of_an_encoder(name, which, device):
    def fit(where):
        model = ENCODERS[name]().to(where)
        history = train.fit(model, labelled(name), steps=3, learning_rate=cases.RATE)
        return history, {key: value.cpu() for key, value in cases.values(model).items()}

    history, values = fit("cpu")
    with backend(which):
        found, others = fit(device)
    bound = 3 * cases.RATE * 1e-14 / 1e-8
    assert found["loss"] == pytest.approx(history["loss"], rel=1e-8)
    for key, value in values.items():
        assert (others[key] - value).abs().max() <= bound * max(1.0, float(value.abs().max())), key


@on_devices("name which", itertools.product(("llama", "mudd"), BACKENDS), [("llama", "kernels")])
def test_training_in_bfloat16(name, which, device):
    def make():
        return DECODERS[name]().float()

    history, _ = trained(make, "cpu", precision="bfloat16")
    with backend(which):
        found, values = trained(make, device, precision="bfloat16")
        again, same = trained(make, device, precision="bfloat16")
    assert found == again  # and the same bits from run to run
    assert all(torch.equal(same[key], value) for key, value in values.items())
    # A loss of 4 by numbers of eight bits: each logit is off by some 2^-8 of itself.
    assert found["loss"] == pytest.approx(history["loss"], rel=2.0**-6)


@on_devices("which", [(which,) for which in BACKENDS], [("torch",)])
def test_perplexity(which, device):
    text = tokens(1, 60)[0]
    wanted = paperlab.eval.score(DECODERS["llama"](), text, context=16, stride=8).nll
    with backend(which):
        model = DECODERS["llama"]().to(device)
        found = paperlab.eval.score(model, text, context=16, stride=8).nll
        total = paperlab.eval.perplexity(model, text.to(device), context=16, stride=8)
    assert (found.cpu() - wanted).abs().max() <= SHARE * wanted.abs().max()
    assert total["nll"] == pytest.approx(float(wanted.sum()), rel=1e-10)


@on_devices("name", [(name,) for name in ("llama", "neox", "gpt2", "bert", "vit")], [("gpt2",)])
def test_files_are_loaded_to_it(tmp_path, name, device):
    model = {**DECODERS, **ENCODERS}[name]()
    model.save_pretrained(tmp_path)
    loaded = nn.load(tmp_path, device=device)
    assert {value.device.type for value in loaded.parameters()} == {device}
    inputs = inputs_of(name)
    with torch.no_grad():
        wanted = model(**inputs)
        found = loaded(**gpu_cases.moved(inputs, device))
    assert (found.cpu() - wanted).abs().max() <= SHARE * wanted.abs().max()
    loaded.save_pretrained(tmp_path / "again")
    again = nn.load(tmp_path / "again")
    pairs = zip(again.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


@on_devices("name", [(name,) for name in SOME], [("mudd",)])
def test_copies_move_back(name, device):
    model = DECODERS[name]()
    other = copy.deepcopy(model).to(device).to("cpu")
    assert torch.equal(other(tokens()), model(tokens()))
