"""What goes on inside a trained model: the measures of Figs. 6, 8, 12 and 13.

All functions read rows of tokens [N, T], some rows at a time, without gradients, and leave the
model as it is; attention is full attention, whatever stands in its place there. TypeError or
ValueError, before any work, if an argument is not as described.
Source: arXiv:2502.12170, Sec. 4 (Figs. 6 and 8) and Appendix G (Figs. 12 and 13).
"""

import dataclasses
from collections.abc import Iterable

import torch

from paperlab import _arguments, _core, nn
from paperlab.mudd._model import MuddFormer

__all__ = [
    "ConnectionStats",
    "adjacent_input_cosine",
    "head_activation_ratio",
    "rectified_connection_weights",
]


@dataclasses.dataclass(frozen=True)
class ConnectionStats:
    """The connections after one block, with C ways and J sources."""

    layer: int
    """The block, from 0."""
    ways: str
    """Some of "QKVR"; "R" where all streams are one."""
    sources: list[int]
    """Numbers j of the states X_j that are summed."""
    mean: torch.Tensor
    """[C, J] float64: mean over tokens of the weight A_cj, times the mean norm of X_j."""
    std: torch.Tensor
    """[C, J] float64: standard deviation over tokens, times the same norm."""


def adjacent_input_cosine(model: MuddFormer, tokens: nn.Tokens) -> dict[str, list[float]]:
    """Returns how alike the inputs of neighbouring blocks are, for "Q", "K", "V" and "R" (Fig. 6).

    Entry m of a stream's L - 1 is the cosine of the inputs of blocks m and m + 1 before their
    norms, the mean over all tokens; of models with one stream "R" alone. ValueError if the variant
    is "hyper_connections" or "lime".
    """
    core, ids = _checked("adjacent_input_cosine", model, tokens)
    cosines = _core.mudd_input_cosines(core, ids)
    return {way: cosines[way] for way in "QKVR" if way in cosines}


def head_activation_ratio(
    model: MuddFormer,
    tokens: nn.Tokens,
    num_initial: int = 2,
    sink_tokens: Iterable[int] = (),
) -> list[float]:
    """Returns, for each block, how many heads look at more than attention sinks (Fig. 8).

    The share of heads and queries whose largest attention weight is on no sink; of equal weights
    the first counts. Sinks are the first `num_initial` >= 0 tokens of a row and, wherever they are,
    the tokens `sink_tokens` (delimiters, say).
    """
    name = "head_activation_ratio"
    core, ids = _checked(name, model, tokens)
    initial = _arguments.integer(name, "num_initial", num_initial, 0, 2**62)
    try:
        given = list(sink_tokens)
    except TypeError:
        raise _arguments.ArgumentTypeError(
            f"{name}: sink_tokens must be token ids, got {type(sink_tokens).__name__}"
        ) from None
    last = model.vocab_size - 1
    sinks = [_arguments.integer(name, "sink_tokens", token, 0, last) for token in given]
    return _core.mudd_head_activation(core, ids, initial, sinks)


def rectified_connection_weights(model: MuddFormer, tokens: nn.Tokens) -> list[ConnectionStats]:
    """Returns how much each connection carries, where there are some (Figs. 12 and 13).

    A weight is rectified by the mean norm of the state that it weighs. ValueError if the variant is
    "hyper_connections" or "lime"; empty for "base".
    """
    core, ids = _checked("rectified_connection_weights", model, tokens)
    return [ConnectionStats(*stats) for stats in _core.mudd_rectified_weights(core, ids)]


def _checked(
    function: str, model: MuddFormer, tokens: nn.Tokens
) -> tuple[_core.Decoder, torch.Tensor]:
    if not isinstance(model, MuddFormer):
        raise _arguments.ArgumentTypeError(
            f"{function}: model must be a MuddFormer, got {type(model).__name__}"
        )
    model.bind()
    return model.core, model.token_ids(function, tokens)
