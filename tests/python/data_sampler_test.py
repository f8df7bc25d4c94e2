"""Batches of tokens: windows, weights, steps, resuming; what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paperlab import data


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache; the recipe `sample` needs no fetch."""
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokens() -> "data.Tokens":
    return data.tokenize("sample", separator=0)


def test_batches_are_windows_of_their_domains(tokens: "data.Tokens") -> None:
    sampler = data.Sampler(tokens, length=32, seed=3)
    batch = sampler.next(40)
    assert batch.shape == (40, 33) and batch.dtype == torch.int64
    assert sampler.domains.shape == (40,) and sampler.domains.dtype == torch.int64
    for row, index in zip(batch, sampler.domains.tolist(), strict=True):
        text = tokens[sampler.names[index]]["train"].tobytes()
        starts = range(0, len(text) - 32, 32)
        assert bytes(row.tolist()) in {text[start : start + 33] for start in starts}
    counts = torch.bincount(sampler.domains, minlength=6).tolist()
    assert sampler.counts == dict(zip(sampler.names, counts, strict=True))
    assert sampler.samples == 40


def test_an_epoch_predicts_each_token_once(tokens: "data.Tokens") -> None:
    sampler = data.Sampler(tokens, length=8, domains=["ja"])
    windows = sampler.windows["ja"]
    text = tokens["ja"]["train"]
    assert windows == (len(text) - 1) // 8
    epochs = [sampler.next(windows) for _ in range(2)]
    for epoch in epochs:
        rows = sorted(epoch[:, 1:].tolist())
        assert rows == sorted(text[1 : 1 + 8 * windows].reshape(windows, 8).tolist())
    assert not torch.equal(*epochs)


def test_within_documents(tokens: "data.Tokens") -> None:
    sampler = data.Sampler(tokens, length=50, within_documents=True, domains=["en"])
    ends = tokens.documents("en", "train")
    assert sampler.windows["en"] == sum((int(n) - 1) // 50 for n in np.diff(ends))
    batch = sampler.next(sampler.windows["en"])
    assert not (batch[:, :-1] == 0).any()  # the separator ends a document


def test_windows_in_order_for_evaluation(tokens: "data.Tokens") -> None:
    sampler = data.Sampler(tokens, "valid", length=16)
    text = tokens["ru"]["valid"]
    rows = sampler.in_order("ru")
    assert rows.shape == (sampler.windows["ru"], 17) and sampler.samples == 0
    assert rows[:, :-1].flatten().tolist() == text[: len(rows) * 16].tolist()
    assert torch.equal(sampler.in_order("ru", 2, 5), rows[2:5])
    assert sampler.in_order("ru", 3, 3).shape == (0, 17)
    for arguments, message in [
        (("fr",), "domain must be one of en, de"),
        (("ru", -1), "begin must be in"),
        (("ru", 2, 1), "end must be in"),
        (("ru", 0, len(rows) + 1), "end must be in"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler.in_order(*arguments)


def test_a_step_is_a_function_of_its_number(tokens: "data.Tokens") -> None:
    options: dict[str, Any] = {"length": 16, "batch_size": 5, "seed": 9}
    one = data.Sampler(tokens, **options)
    batches = [one(step) for step in range(20)]
    assert one.samples == 100
    other = data.Sampler(tokens, **options)
    for step in (19, 0, 7, 8, 3):
        assert torch.equal(other(step), batches[step]) and other.samples == 5 * step + 5
    third = data.Sampler(tokens, **options)
    assert torch.equal(torch.cat([third.next(7), third.next(93)]), torch.cat(batches))
    assert not torch.equal(data.Sampler(tokens, **options | {"seed": 10})(0), batches[0])
    # Ranks take their rows of the global batch.
    ranks = [data.Sampler(tokens, **options) for _ in range(2)]
    parts = [rank.batch(4, rows=rows) for rank, rows in zip(ranks, [(0, 2), (2, 5)], strict=True)]
    assert torch.equal(torch.cat(parts), batches[4])
    assert ranks[0].state() == ranks[1].state()
    assert ranks[0].batch(4, rows=(5, 5)).shape == (0, 17)
    assert torch.equal(ranks[0].batch(2, 10), torch.cat([batches[4], batches[5]]))


def test_resume_is_exact_where_weights_change(tokens: "data.Tokens") -> None:
    def weights(step: int) -> dict[str, float]:
        return {"en": 1 + step % 3, "de": 0.1 * step, "c": 1.0}

    def run(sampler: "data.Sampler", begin: int, end: int) -> list[torch.Tensor]:
        batches = []
        for step in range(begin, end):
            if step % 4 == 0:
                sampler.set_weights(weights(step))
            batches += [sampler(step), sampler.domains]
        return batches

    options: dict[str, Any] = {"length": 16, "batch_size": 3}
    whole = data.Sampler(tokens, **options)
    expected = run(whole, 0, 30)
    for stop in (1, 4, 13, 29):
        first = data.Sampler(tokens, **options)
        run(first, 0, stop)
        state = json.loads(json.dumps(first.state()))
        assert len(json.dumps(state)) < 2000
        second = data.Sampler(tokens, **options)
        second.load_state(state)
        assert second.weights == first.weights and second.state() == state
        rest = run(second, stop, 30)
        assert all(map(torch.equal, rest, expected[2 * stop :]))
        assert second.state() == whole.state()
    with pytest.raises(ValueError, match=r"seek: a sample in 84\.\.2\^40 \(the weights"):
        whole(0)


def test_threads_change_no_bit(tokens: "data.Tokens") -> None:
    import paperlab

    before = paperlab.get_num_threads(), torch.get_num_threads()
    found = []
    for threads in (1, 3):
        paperlab.set_num_threads(threads)
        sampler = data.Sampler(tokens, length=64)
        found += [sampler.batch(70_000 // 2000, 2000)]
    paperlab.set_num_threads(before[0])
    torch.set_num_threads(before[1])
    assert torch.equal(*found)


def test_zero_weights_are_never_drawn(tokens: "data.Tokens") -> None:
    sampler = data.Sampler(tokens, length=16, weights={"de": 3, "ja": 1})
    sampler.next(1000)
    assert set(sampler.domains.tolist()) == {1, 3}
    assert sampler.weights == {"en": 0, "de": 0.75, "ru": 0, "ja": 0.25, "c": 0, "python": 0}
    sampler.set_weights([0, 0, 0, 0, 0, 2])
    sampler.next(10)
    assert set(sampler.domains.tolist()) == {5}
    # A domain that is too short is fine without a weight.
    short = data.Sampler(tokens, length=1300, weights={"en": 1})
    assert short.windows["ja"] == 0 and short.windows["en"] == 1
    assert torch.equal(short.next(1), short.next(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, r"length must be in 1\.\."),
        ({"length": 1.0}, "length must be an integer"),
        ({"batch_size": 0}, r"batch_size must be in 1\.\."),
        ({"seed": -1}, r"seed must be in 0\.\."),
        ({"split": "training"}, "split must be one of train, valid, test, got 'training'"),
        ({"weights": {"xx": 1}}, "weights: unknown domain 'xx'; there are en, de"),
        ({"weights": [1, 2]}, "weights must be one for each of en, de, ru, ja, c, python, got 2"),
        ({"weights": 3}, "weights must map names to numbers"),
        ({"weights": {"en": -1}}, r"weights\['en'\] must be >= 0, got -1"),
        ({"weights": {"en": float("nan")}}, r"weights\['en'\] must be finite"),
        ({"weights": {"en": "x"}}, r"weights\['en'\] must be a number"),
        ({"weights": {"en": 0}}, "weights: a finite sum > 0"),
        ({"weights": {"ja": 1}, "length": 1300}, "domain ja has a positive weight and no window"),
        ({"length": 100_000}, "a domain with a window of 100001 tokens"),
        ({"domains": ["fr"]}, "no domain 'fr'; there are en"),
        ({"domains": "en"}, "domains must be a list"),
        ({"domains": []}, "domains must name at least one"),
        ({"within_documents": 1}, "within_documents must be a bool"),
    ],
)
def test_bad_options_of_the_sampler(
    tokens: "data.Tokens", options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"Sampler: .*{message}"):
        data.Sampler(tokens, **{"length": 8, **options})


def test_a_token_beyond_the_vocabulary_is_named_when_it_is_drawn() -> None:
    folder = data.tokenize("sample", domains=["en"], separator=256).folder
    path = folder / "en/train.npy"
    array = np.load(path)
    array[5] = 257
    np.save(path, array)
    sampler = data.Sampler(data.Tokens(folder), length=4, batch_size=len(array) // 4)
    state = sampler.state()
    with pytest.raises(ValueError, match=r"train.npy: token at 5 is 257, the vocabulary has 257"):
        sampler(0)
    assert sampler.state() == state and len(sampler.domains) == 0


def test_refused_calls_change_nothing(tokens: "data.Tokens") -> None:
    sampler = data.Sampler(tokens, length=8, weights={"en": 1, "de": 1})
    sampler.next(3)
    state, domains = sampler.state(), sampler.domains
    for call, message in [
        (lambda: sampler.next(), "batch_size must be given"),
        (lambda: sampler(0), "batch_size must be given"),
        (lambda: sampler.next(0), "batch_size must be in"),
        (lambda: sampler.batch(-1, 4), "step must be in"),
        (lambda: sampler.batch(1 << 40, 4), "step must be in"),
        (lambda: sampler.batch(1, 4, rows=(3, 2)), r"rows\[1\] must be in 3"),
        (lambda: sampler.batch(1, 4, rows=(0, 5)), r"rows\[1\] must be in 0\.\.4"),
        (lambda: sampler.batch(1, 4, rows=3), r"rows must be \(begin, end\)"),
        (lambda: sampler.set_weights({"en": -1}), "must be >= 0"),
        (lambda: sampler.set_weights([0] * 6), "finite sum > 0"),
        (lambda: sampler.load_state({}), "is no state"),
        (lambda: sampler.load_state({"seed": {1}}), "state must be what"),
        (lambda: sampler.load_state({**state, "length": 9}), "length as the sampler's, 8, got 9"),
        (lambda: data.Sampler({}, length=3), "tokens must be of data.tokenize"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
        assert sampler.state() == state and torch.equal(sampler.domains, domains)
