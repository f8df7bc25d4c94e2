"""Whole models by LibTorch's operations (set_backend) beside our kernels, on the CPU in float64.

Both make the same sums in another order: 1e-16 for each of some thousand terms, in a few layers.
"""

import copy
import itertools

import cca_models
import decoder_models as models
import mudd_models
import paperlab
import pytest
import torch
import training_cases as cases
from gpu_cases import backend
from paperlab import cca, train

CLOSE = 1e-11  # of the largest number


def close(got, wanted, share=CLOSE):
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    return bool((got - wanted).abs().max() <= share * wanted.abs().max().clamp_min(1e-300))


MODELS = {
    "llama": lambda: models.ours("llama", torch.float64),
    "neox": lambda: models.ours("neox", torch.float64),
    "cca": lambda: cca_models.applied("llama", cca_models.CASE),
    "cca_kept": lambda: cca_models.applied("llama", cca_models.CASES[5]),
    "mudd": lambda: mudd_models.new(),
    "mudd_sparse": lambda: mudd_models.new(dilation=2, period=2),
    "mudd_window": lambda: mudd_models.new(window=2),
    "mudd_normed": lambda: mudd_models.new(pre_post_norm=True),
    "mudd_parallel": lambda: mudd_models.new(parallel_block=True),
    "static": lambda: mudd_models.new(variant="static"),
    "hyper": lambda: mudd_models.new(variant="hyper_connections"),
    "lime": lambda: mudd_models.new(variant="lime"),
}


def tokens_for(model, length=11):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(model.vocab_size, (2, length), generator=generator)


def logits_and_gradients(model, tokens, mask=None):
    model.zero_grad()
    logits = model(tokens, attention_mask=mask)
    weight = torch.randn(
        logits.shape, generator=torch.Generator().manual_seed(3), dtype=logits.dtype
    )
    if mask is not None:
        weight = weight * mask[..., None]
        logits = logits * mask[..., None]
    (logits * weight).sum().backward()
    return [logits.detach(), *(value.grad.clone() for value in model.parameters())]


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients(name):
    model = MODELS[name]()
    tokens = tokens_for(model)
    found = []
    for which in ("auto", "torch"):
        with backend(which):
            found.append(logits_and_gradients(model, tokens))
    assert all(close(b, a) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["llama", "neox", "cca", "mudd"])
def test_padded_batches(name):
    model = MODELS[name]()
    tokens = tokens_for(model)
    mask = torch.ones(2, 11, dtype=torch.int64)
    mask[1, :4] = 0
    found = []
    for which in ("auto", "torch"):
        with backend(which):
            found.append(logits_and_gradients(model, tokens, mask))
    assert all(close(b, a) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["llama", "neox", "cca", "cca_kept", "mudd", "hyper"])
def test_caches_and_generation(name):
    model = MODELS[name]()
    prompt = tokens_for(model, 7)
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[0, :2] = 0
    found = []
    for which in ("auto", "torch"):
        with backend(which):
            cache = model.new_cache(2, 20)
            parts = [model(prompt, attention_mask=mask, cache=cache)[:, 2:]]
            parts += [model(prompt[:, :n], cache=cache) for n in (1, 4, 1)]
            greedy = model.generate(prompt, 6, attention_mask=mask, eos_token_id=None)
            drawn = model.generate(prompt, 6, temperature=0.8, top_p=0.9, eos_token_id=None)
            found.append((*parts, greedy, drawn))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) if a.dtype == torch.int64 else close(b, a)


# Of Adam's steps: a gradient's noise of 1e-14, divided by eps 1e-8 at most, times the rate.
@pytest.mark.parametrize(
    ("name", "options", "bound"),
    [
        ("llama", {}, 3 * cases.RATE * 1e-14 / 1e-8),
        ("llama", {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 0.5}, CLOSE),
        ("llama", {"optimizer": "adafactor", "accumulate": 2}, 1e-9),
        ("mudd", {"clip_norm": 0.5}, 3 * cases.RATE * 1e-14 / 1e-8),
    ],
)
def test_three_steps_of_fit(name, options, bound):
    fresh = cases.model() if name == "llama" else mudd_models.new(vocab_size=cases.VOCABULARY)
    found = []
    for which in ("auto", "torch"):
        model = copy.deepcopy(fresh)
        with backend(which):
            history = train.fit(
                model,
                cases.counting,
                steps=3,
                learning_rate=cases.RATE,
                weight_decay=0.1,
                **options,
            )
        found.append((history, cases.values(model)))
    (history, values), (by_torch, others) = found
    for key in ("loss", "grad_norm"):
        assert by_torch[key] == pytest.approx(history[key], rel=max(bound, 1e-10) * 100)
    for key, value in values.items():
        assert (others[key] - value).abs().max() <= bound * max(1.0, float(value.abs().max())), key


def test_scores_of_a_text():
    model = MODELS["llama"]()
    text = tokens_for(model, 40)[0]
    found = []
    for which in ("auto", "torch"):
        with backend(which):
            found.append(paperlab.eval.score(model, text, context=16, stride=8).nll)
    assert close(found[1], found[0])


FUNCTIONS = {
    "full": lambda q, k, v: cca.baselines.full(q, k, v),
    "window": lambda q, k, v: cca.baselines.sliding_window(q, k, v, 5),
    "streaming_llm": lambda q, k, v: cca.baselines.streaming_llm(q, k, v, 2, 6),
    "lm_infinite": lambda q, k, v: cca.baselines.lm_infinite(q, k, v, 3, 8, 8),
    "a_shape": lambda q, k, v: cca.baselines.a_shape(q, k, v, 3, 5),
    "vertical_slash": lambda q, k, v: cca.baselines.vertical_slash(q, k, v, 31, 102),
    "attention": lambda q, k, v: cca.attention(q, k, v, 4, 6),
    "max": lambda q, k, v: cca.attention(q, k, v, 4, 6, pooling="max"),
    "kept": lambda q, k, v: cca.attention(q, k, v, 4, 6, keep_first=3, weights_per="kv_head"),
    "effective": lambda q, k, v: cca.effective_attention(q, k, 4, 6) @ v.repeat_interleave(2, 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_core_context_attention_and_its_baselines(name):
    length = 230 if name == "vertical_slash" else 33
    generator = torch.Generator().manual_seed(5)
    inputs = [
        torch.randn(2, heads, length, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    ]
    found = []
    for which in ("auto", "torch"):
        with backend(which):
            out = FUNCTIONS[name](*inputs)
            found.append((out.detach(), *torch.autograd.grad(out.sin().sum(), inputs)))
    assert all(close(b, a) for a, b in zip(*found, strict=True))


def test_the_streaming_cache():
    generator = torch.Generator().manual_seed(6)
    q, k, v = (
        torch.randn(2, h, 41, 8, generator=generator, dtype=torch.float64) for h in (4, 2, 2)
    )
    wanted = cca.attention(q, k, v, 4, 6)
    with backend("torch"):
        cache = cca.KVCache(4, 6)
        ends = (0, 3, 20, 21, 22, 41)
        parts = [
            cache.prefill(*(x[:, :, a:b] for x in (q, k, v))) for a, b in itertools.pairwise(ends)
        ]
    assert close(torch.cat(parts, 2), wanted)
