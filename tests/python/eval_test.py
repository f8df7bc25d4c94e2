"""paperlab.eval: each token but the first is scored once, by the first window that reaches it."""

import math

import decoder_models as models
import numpy as np
import pytest
import torch
from decoder_models import SOME, VOCABULARY
from paperlab import eval as evaluation

CASES = [  # context, stride, N
    *[(1, 1, n) for n in (2, 3, 7)],
    *[(4, s, n) for s in (1, 2, 3, 4) for n in (2, 3, 4, 5, 6, 9, 23)],
    *[(9, s, 23) for s in (None, 1, 5, 8, 9)],
    (64, None, 5),
    (64, 7, 23),
    (22, 3, 23),
    (23, None, 23),
    (64, 64, 65),
    (1000, 1000, 65),  # more than max_positions, which no window is
]


def text(length):
    return models.tokens(1, length)[0]


def windows(context, stride, length):
    """(first token read, token after the last) of every window, and what it scores."""
    result, first = [], 1
    for begin in range(0, length, stride or context):
        end = min(begin + context, length - 1)
        if first < length:
            result.append((begin, end, range(first, end + 1)))
            first = end + 1
    return result


def by_definition(name, model, tokens, context, stride):
    """-ln p of tokens 1.. in float64, and how many tokens were read before each."""
    values = models.values_of(model)
    nll, read = [], []
    for begin, end, scored in windows(context, stride, len(tokens)):
        logits = models.definition(models.hf_config(name), values, tokens[None, begin:end])
        log_p = logits[0].detach().log_softmax(-1)
        for token in scored:
            nll.append(-float(log_p[token - 1 - begin, tokens[token]]))
            read.append(token - begin)
    return nll, read


@pytest.mark.parametrize(("context", "stride", "length"), CASES)
def test_scores_are_those_of_the_definition(context, stride, length):
    for name in ("llama_biases_tied", "mistral", "neox"):
        model, tokens = models.ours(name), text(length)
        nll, read = by_definition(name, model, tokens, context, stride)
        scores = evaluation.score(model, tokens, context=context, stride=stride)
        assert scores.nll.dtype == torch.float64 and scores.nll.shape == (length - 1,)
        assert scores.position.tolist() == read
        assert np.allclose(scores.nll, nll, rtol=1e-11, atol=1e-11)
        result = evaluation.perplexity(model, tokens, context=context, stride=stride)
        assert {*result} == {"nll", "tokens", "perplexity"}
        assert result["tokens"] == length - 1
        assert result["nll"] == pytest.approx(math.fsum(nll), rel=1e-11)
        assert result["perplexity"] == pytest.approx(math.exp(math.fsum(nll) / (length - 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SOME)
def test_the_bits_do_not_depend_on_the_batch_nor_on_the_run(name, dtype):
    model, tokens = models.ours(name, dtype), text(60)
    results = [
        evaluation.perplexity(model, tokens, context=9, stride=4, batch_size=size)
        for size in (1, 1, 2, 3, 7, 1000, 2**31)
    ]
    assert all(r == results[0] for r in results)
    assert all(type(r["nll"]) is float and math.isfinite(r["nll"]) for r in results)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_other_dtypes_are_near(dtype, share):
    model, tokens = models.ours("llama"), text(40)
    exact = evaluation.perplexity(model, tokens, context=16)["nll"]
    assert evaluation.perplexity(model.to(dtype), tokens, context=16)["nll"] == pytest.approx(
        exact, rel=share
    )


def test_a_function_of_tokens_is_a_model():
    model, tokens, shapes = models.ours("llama"), text(23), []

    def logits(batch):
        assert not torch.is_grad_enabled() and batch.dtype == torch.int64
        shapes.append(tuple(batch.shape))
        return model(batch)

    wanted = evaluation.score(model, tokens, context=6, stride=4)
    got = evaluation.score(logits, tokens, context=6, stride=4)
    assert torch.equal(got.position, wanted.position)
    assert torch.allclose(got.nll, wanted.nll, rtol=1e-12, atol=1e-12)
    assert shapes == [(1, e - b) for b, e, _ in windows(6, 4, 23)]
    uniform = evaluation.perplexity(
        lambda t: torch.zeros(*t.shape, VOCABULARY, dtype=torch.float64), tokens, context=4
    )
    assert uniform["perplexity"] == pytest.approx(VOCABULARY, rel=1e-12)
    other = models.theirs("llama", model)
    theirs = evaluation.perplexity(lambda t: other(t).logits, tokens, context=6, stride=4)
    assert theirs["nll"] == pytest.approx(float(wanted.nll.sum()), rel=1e-6)


def test_long_windows_of_many_rows():
    model = models.ours("llama", max_position_embeddings=400)
    tokens = text(380)  # more rows than logits that exist at a time
    nll, _ = by_definition_of_long(model, tokens)
    scores = evaluation.score(model, tokens, context=379)
    assert np.allclose(scores.nll, nll, rtol=1e-11, atol=1e-11)


def by_definition_of_long(model, tokens):
    log_p = model(tokens[None, :-1])[0].detach().log_softmax(-1)
    return -log_p.gather(1, tokens[1:, None])[:, 0], None


def test_tokens_of_every_kind_are_alike_and_stay():
    model, tokens = models.ours("llama"), text(12)
    before, wanted = tokens.clone(), evaluation.perplexity(model, tokens, context=5)
    array = tokens.numpy()
    kinds = [tokens.int(), tokens.to(torch.uint8), array, array.tolist(), array.astype(">i2")]
    kinds += [array[::-1].copy()[::-1], torch.stack([tokens, tokens], 1)[:, 0], tuple(array)]
    for kind in kinds:
        assert evaluation.perplexity(model, kind, context=np.int64(5)) == wanted
    assert torch.equal(tokens, before)


def test_the_model_is_as_before():
    model, tokens = models.ours("llama"), text(12)
    model.train()
    evaluation.perplexity(model, tokens, context=5)
    assert model.training and torch.is_grad_enabled()
    with torch.no_grad():
        model.tensor("down", 0).mul_(2)
    changed = evaluation.perplexity(model, tokens, context=5)["nll"]
    nll, _ = by_definition("llama", model, tokens, 5, None)
    assert changed == pytest.approx(math.fsum(nll), rel=1e-11)


def test_infinite_and_huge_losses():
    def certain(token):
        def logits(batch):
            out = torch.full((*batch.shape, 5), -math.inf)
            out[..., token] = 0.0
            return out

        return logits

    tokens = torch.tensor([0, 2, 2, 2])
    assert evaluation.perplexity(certain(2), tokens, context=2) == {
        "nll": 0.0,
        "tokens": 3,
        "perplexity": 1.0,
    }
    assert evaluation.perplexity(certain(1), tokens, context=2)["perplexity"] == math.inf
    far = evaluation.perplexity(
        lambda t: torch.tensor([1e4, 0.0, 0.0]).expand(*t.shape, 3), tokens, context=2
    )
    assert far["nll"] == pytest.approx(3e4) and far["perplexity"] == math.inf


def test_buckets_of_positions_sum_to_the_total():
    model, tokens = models.ours("llama"), text(60)
    for context, stride in ((8, None), (8, 3), (60, None)):
        scores = evaluation.score(model, tokens, context=context, stride=stride)
        whole = scores.summary()
        buckets = scores.by_position([0, 1, 2, 5, 7, 64])
        assert [(b["begin"], b["end"]) for b in buckets] == [
            (0, 1),
            (1, 2),
            (2, 5),
            (5, 7),
            (7, 64),
        ]
        assert sum(b["tokens"] for b in buckets) == whole["tokens"] == 59
        filled = [b for b in buckets if b["tokens"]]
        assert math.fsum(b["nll"] for b in filled) == pytest.approx(whole["nll"], rel=1e-13)
        for bucket in buckets:
            at = [i for i, p in enumerate(scores.position) if bucket["begin"] < p <= bucket["end"]]
            assert bucket["tokens"] == len(at)
            if at:
                nll = math.fsum(scores.nll[at].tolist())
                assert bucket["nll"] == nll
                assert bucket["perplexity"] == pytest.approx(math.exp(nll / len(at)))
    (first,) = scores.by_position(np.array([0, 1]))
    assert first["tokens"] == 1 and first["nll"] == float(scores.nll[0])
    (none,) = scores.by_position((100, 200))
    assert none["tokens"] == 0 and none["nll"] == 0.0 and math.isnan(none["perplexity"])


def test_bits_per_byte():
    scores = evaluation.score(models.ours("llama"), text(20), context=5)
    summary = scores.summary(num_bytes=77)
    assert {*summary} == {"nll", "tokens", "perplexity", "bits_per_byte"}
    assert summary["bits_per_byte"] == pytest.approx(summary["nll"] / math.log(2) / 77, rel=1e-14)
    assert {k: v for k, v in summary.items() if k != "bits_per_byte"} == scores.summary()


def test_domains_are_read_document_by_document():
    model = models.ours("llama")
    texts = {"a": [text(12), text(5).tolist()], "b": [text(30).numpy()]}
    result = evaluation.by_domain(model, texts, {"a": 40, "b": 90}, context=8, stride=2)
    assert [*result] == ["a", "b"]
    for domain, documents in texts.items():
        parts = [evaluation.perplexity(model, t, context=8, stride=2) for t in documents]
        total = sum(p["nll"] for p in parts)
        assert result[domain]["nll"] == pytest.approx(total, rel=1e-13)
        assert result[domain]["tokens"] == sum(p["tokens"] for p in parts)
        size = {"a": 40, "b": 90}[domain]
        assert result[domain]["bits_per_byte"] == pytest.approx(total / math.log(2) / size)
    assert evaluation.by_domain(model, {}, {}, context=8) == {}


def test_windows_are_reported_and_may_stop_it():
    model, tokens, counts = models.ours("llama"), text(23), []
    whole = evaluation.score(model, tokens, context=6, stride=4, on_window=counts.append)
    assert counts == [scored[-1] for _, _, scored in windows(6, 4, 23)]
    part = evaluation.score(model, tokens, context=6, stride=4, on_window=lambda n: n < 10)
    assert torch.equal(part.nll[:10], whole.nll[:10]) and part.nll[10:].isnan().all()
    assert torch.equal(part.position, whole.position)
    assert math.isnan(part.summary()["nll"]) and math.isnan(part.summary()["perplexity"])
    error = KeyboardInterrupt()

    def fail(_):
        raise error

    with pytest.raises(KeyboardInterrupt) as caught:
        evaluation.score(model, tokens, context=6, on_window=fail)
    assert caught.value is error and torch.is_grad_enabled()


MODEL = models.ours("llama")
TEXT = text(9)


@pytest.mark.parametrize("call", [evaluation.perplexity, evaluation.score])
@pytest.mark.parametrize(
    ("tokens", "part"),
    [
        (TEXT.float(), "tokens must be integers"),
        (TEXT.bool(), "tokens must be integers"),
        (np.ones(3), "tokens must be .*integers"),
        (TEXT[None], r"tokens must be \[N\].*got \[1, 9\]"),
        (TEXT[:1], r"tokens must be \[N\] with N >= 2, got \[1\]"),
        (TEXT[:0], r"tokens must be \[N\] with N >= 2, got \[0\]"),
        ([], r"tokens must be \[N\]"),
        (3, r"tokens must be \[N\]"),
        (None, r"tokens must be \[N\]"),
        ("abc", r"tokens must be \[N\]"),
        ([[1], [2, 3]], "tokens must be"),
        (TEXT.to_sparse(), "tokens must be a strided"),
        (TEXT.to("meta"), "tokens must be a strided"),
        (torch.tensor([3, 97]), "tokens must .*vocab_size 97.*got token 97"),
        (torch.tensor([97, 3]), "tokens must .*vocab_size 97.*got token 97"),
        (torch.tensor([3, 4, -1]), "tokens must .*got token -1"),
    ],
)
def test_wrong_tokens_are_refused(call, tokens, part):
    calls = []
    with (
        MODEL.on_linear_input(lambda name, x: calls.append(name)),
        pytest.raises((ValueError, TypeError), match=part),
    ):
        call(MODEL, tokens, context=4)
    assert not calls  # before any work


@pytest.mark.parametrize(
    ("options", "part"),
    [
        *[({"context": c}, "context must be") for c in (0, -1, 2.0, "a", None, True, 2**63)],
        *[({"stride": s}, "stride must be") for s in (0, -1, 5, 2.0, "a", True)],
        *[({"batch_size": b}, "batch_size must be") for b in (0, -1, 2.0, "a", None, True)],
        ({"model": 3}, "model must be callable"),
        ({"model": None}, "model must be callable"),
    ],
)
def test_wrong_arguments_of_perplexity_are_refused(options, part):
    options = {"model": MODEL, "context": 4, **options}
    with pytest.raises((ValueError, TypeError), match=f"perplexity: {part}"):
        evaluation.perplexity(options.pop("model"), TEXT, **options)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: None,
        lambda t: t,
        lambda t: torch.zeros(t.shape[1], VOCABULARY),
        lambda t: torch.zeros(1, 1, VOCABULARY),
        lambda t: torch.zeros(2, t.shape[1], VOCABULARY),
        lambda t: torch.zeros(*t.shape, VOCABULARY, dtype=torch.int64),
        lambda t: torch.zeros(*t.shape, 2),
        lambda t: (torch.zeros(*t.shape, VOCABULARY),),
    ],
)
def test_what_a_function_may_not_return(wrong):
    with pytest.raises((ValueError, TypeError), match=r"perplexity: (model|tokens) must"):
        evaluation.perplexity(wrong, TEXT, context=4)


def test_the_functions_own_exception_passes():
    with pytest.raises(ZeroDivisionError):
        evaluation.perplexity(lambda t: 1 / 0, TEXT, context=4)


def test_a_context_beyond_max_positions_is_refused():
    with pytest.raises(ValueError, match=r"max_positions.*got 65"):
        evaluation.perplexity(MODEL, text(80), context=65)


def test_wrong_arguments_of_the_rest_are_refused():
    scores = evaluation.score(MODEL, TEXT, context=4)
    for edges in ([0], [], [0, 0], [3, 1], [0.5, 2.0], "ab", None, [0, "a"], 3, [[0, 1]]):
        with pytest.raises((ValueError, TypeError), match="by_position: edges must be"):
            scores.by_position(edges)
    for size in (0, -1, 1.5, "a"):
        with pytest.raises((ValueError, TypeError), match="summary: num_bytes must be"):
            scores.summary(num_bytes=size)
    with pytest.raises(TypeError, match="score: on_window must be callable"):
        evaluation.score(MODEL, TEXT, context=4, on_window=3)
    with pytest.raises(ValueError, match="by_domain: num_bytes must"):
        evaluation.by_domain(MODEL, {"a": [TEXT]}, {"b": 3}, context=4)
    with pytest.raises(ValueError, match="by_domain: texts must"):
        evaluation.by_domain(MODEL, {"a": []}, {"a": 3}, context=4)
