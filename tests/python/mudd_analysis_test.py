"""The measures of a trained model, by the plain definition's streams, weights and attention."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from mudd_models import definition, new, some_tokens
from paperlab import nn
from paperlab.mudd import analysis

TOKENS = some_tokens(batch=3, length=9)
# Some hundred float64 terms of size 1, added in another order.
BOUND = 1e-11


def seen(model: Any, **options: Any) -> Any:
    """The definition after one pass."""
    plain = definition(model, **options)
    with torch.no_grad():
        plain(TOKENS)
    return plain


def inputs_of(plain: Any, way: int) -> list[torch.Tensor]:
    """Inputs of blocks in stream `way` of "QKVR"."""
    return [plain.states[0], *(plain.streams[layer][way] for layer in range(plain.layers - 1))]


def test_cosines_of_neighbouring_inputs() -> None:
    model = new()
    plain = seen(model)
    found = analysis.adjacent_input_cosine(model, TOKENS)
    assert list(found) == list("QKVR")
    for way, cosines in enumerate(found.values()):
        inputs = inputs_of(plain, way)
        pairs = itertools.pairwise(inputs)
        wanted = [float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairs]
        assert cosines == pytest.approx(wanted, abs=BOUND)


@pytest.mark.parametrize("variant", ["base", "static", "dynamic"])
def test_one_stream_has_one_row_of_cosines(variant: str) -> None:
    found = analysis.adjacent_input_cosine(new(variant=variant), TOKENS.numpy())
    assert [(way, len(cosines)) for way, cosines in found.items()] == [("R", 3)]


@pytest.mark.parametrize("variant", ["mudd", "base", "lime"])
def test_heads_that_look_beyond_sinks(variant: str) -> None:
    model = new(variant=variant)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".wq." in name:
                value.mul_(8)  # peaked attention
    sinks = [3, 7]
    is_sink = torch.isin(TOKENS, torch.tensor(sinks))
    is_sink[:, :2] = True
    plain = seen(model, variant=variant)
    wanted = []
    for layer in range(plain.layers):
        best = plain.attended[layer].argmax(-1)  # [B, H, T]
        on_sink = is_sink[:, None].expand(-1, best.shape[1], -1).gather(2, best)
        wanted.append(1 - float(on_sink.double().mean()))
    found = analysis.head_activation_ratio(model, TOKENS, num_initial=2, sink_tokens=sinks)
    assert found == pytest.approx(wanted, abs=BOUND)
    assert len(set(found)) > 1
    assert analysis.head_activation_ratio(model, TOKENS, 0) == [1.0] * 4
    assert analysis.head_activation_ratio(model, TOKENS, 99, np.array([1])) == [0.0] * 4


@pytest.mark.parametrize("variant", ["mudd", "static"])
def test_connection_weights_times_the_norms_of_their_sources(variant: str) -> None:
    model = new(variant=variant)
    plain = seen(model, variant=variant)
    found = analysis.rectified_connection_weights(model, TOKENS)
    assert [stats.layer for stats in found] == list(range(4))
    for stats in found:
        is_last = stats.layer == 3
        assert stats.ways == ("R" if is_last or variant == "static" else "QKVR")
        assert stats.sources == plain.sources(stats.layer)
        weights = plain.weights[stats.layer].detach().flatten(1, 2)  # [C, tokens, J]
        norms = torch.stack([plain.states[j].norm(dim=-1).mean() for j in stats.sources])
        assert stats.mean.dtype == torch.float64
        assert float((stats.mean - weights.mean(1) * norms).abs().max()) < BOUND
        wanted = weights.std(1, correction=0) * norms
        assert float((stats.std - wanted).abs().max()) < BOUND * float(norms.max())
        if variant == "static":
            assert torch.equal(stats.std, torch.zeros_like(stats.std))


def test_where_there_are_no_connections_there_are_no_weights() -> None:
    assert analysis.rectified_connection_weights(new(variant="base"), TOKENS) == []
    assert len(analysis.rectified_connection_weights(new(period=2), TOKENS)) == 2


def test_parameters_exchanged_in_python_are_the_ones_that_are_read() -> None:
    model, other = new(), new(seed=3)
    wanted = analysis.adjacent_input_cosine(other, TOKENS)
    assert analysis.adjacent_input_cosine(model, TOKENS) != wanted
    model.load_state_dict(other.state_dict(), assign=True)
    assert analysis.adjacent_input_cosine(model, TOKENS) == wanted


def test_wrong_arguments_are_refused() -> None:
    model, lime = new(), new(variant="lime")
    cosine, heads = analysis.adjacent_input_cosine, analysis.head_activation_ratio
    weights = analysis.rectified_connection_weights
    for message, call in (
        ("adjacent_input_cosine: model must be a MuddFormer", lambda: cosine(None, TOKENS)),
        ("adjacent_input_cosine: tokens must be", lambda: cosine(model, TOKENS.float())),
        ("adjacent_input_cosine: tokens must be", lambda: cosine(model, TOKENS[:0])),
        ("adjacent_input_cosine: variant must be", lambda: cosine(lime, TOKENS)),
        ("forward: tokens must be", lambda: cosine(model, TOKENS + 20)),
        ("head_activation_ratio: tokens must be", lambda: heads(model, TOKENS[0])),
        ("head_activation_ratio: num_initial must be", lambda: heads(model, TOKENS, -1)),
        ("head_activation_ratio: sink_tokens must be", lambda: heads(model, TOKENS, 2, 3)),
        ("head_activation_ratio: sink_tokens must be", lambda: heads(model, TOKENS, 2, [23])),
        ("rectified_connection_weights: tokens must be", lambda: weights(model, [[]])),
        ("rectified_connection_weights: variant must be", lambda: weights(lime, TOKENS)),
        ("rectified_connection_weights: model must be", lambda: weights(nn, TOKENS)),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^{message}"):
            call()
