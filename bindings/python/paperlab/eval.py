"""How well a model predicts text: nats, perplexity, bits per byte; by position and by domain."""

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsInt

import numpy.typing as npt
import torch

from paperlab import _arguments, _core
from paperlab._tokens import token_tensor
from paperlab.nn import Decoder

__all__ = ["Scores", "Streamed", "Text", "by_domain", "encode", "perplexity", "score", "streamed"]

Tokens = torch.Tensor | npt.NDArray[Any] | Sequence[int]


@dataclass(frozen=True)
class Scores:
    """The negative log-likelihood of each token but the first of a text."""

    nll: torch.Tensor  #: [N - 1] float64, nats.
    position: torch.Tensor  #: [N - 1] int64: how many tokens of its window came before, 1..context.

    @staticmethod
    def joined(parts: Sequence["Scores"]) -> "Scores":
        """Returns the scores of several texts as one, in their order."""
        return Scores(
            torch.cat([part.nll for part in parts]), torch.cat([part.position for part in parts])
        )

    def summary(self, *, num_bytes: int | None = None) -> dict[str, float]:
        """Returns `nll` (total nats), `tokens`, `perplexity` = exp(nll / tokens).

        num_bytes: of the text's UTF-8; adds `bits_per_byte` = nll / ln 2 / num_bytes.
        """
        result = _summary(self.nll)
        if num_bytes is not None:
            count = _arguments.integer("summary", "num_bytes", num_bytes, 1, 2**62)
            result["bits_per_byte"] = result["nll"] / math.log(2.0) / count
        return result

    def by_position(self, edges: Sequence[int]) -> list[dict[str, float]]:
        """Returns the summary of each bucket of positions, with `begin` and `end`.

        edges: ascending; bucket i holds the tokens whose window position p - 1 (0-based, of the
        token that predicts them) is in edges[i] <= p - 1 < edges[i + 1]. Empty buckets have NaN.
        """
        edges = _edges(edges)
        reader = self.position - 1
        return [
            {"begin": a, "end": b, **_summary(self.nll[(reader >= a) & (reader < b)])}
            for a, b in itertools.pairwise(edges)
        ]


class Streamed:
    """A model whose weights stay in its files; what `streamed` returns."""

    def __init__(self, core: _core.Decoder) -> None:
        self._core = core

    @property
    def vocab_size(self) -> int:
        """V, the size of the logits."""
        return self._core.vocab_size

    @property
    def max_positions(self) -> int:
        """The longest window that the model reads."""
        return self._core.max_positions

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        return self._core.parameters()[0][1].dtype


Model = Decoder | Streamed | Callable[[torch.Tensor], torch.Tensor]


def streamed(
    directory: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    *,
    dtype: torch.dtype | str | None = None,
) -> Streamed:
    """Returns the decoder of a Hugging Face directory to be scored, which may exceed the memory.

    Each layer's matrices are read from the file when they are used, once a window, converted where
    `dtype` is not the files' own, and let go. In memory are one matrix, embedding and head, and the
    window's activations. The scores have the bits of a model that `nn.load` returns. Replace the
    files by rename, never rewrite them in place, while it lives. Raises as `nn.load`; ValueError
    for settings that ask for core-context attention.
    """
    name = None if dtype is None else _arguments.dtype_name("streamed", dtype)
    core = _core.Decoder.load_streamed(_arguments.directory("streamed", directory), name)
    settings = json.loads(core.config)
    named = settings.get("attn_implementation", settings.get("_attn_implementation"))
    if named == "paperlab_cca":
        raise ValueError(
            "streamed: attn_implementation of config.json must be that of full attention, "
            f"got {named!r}"
        )
    return Streamed(core)


@dataclass(frozen=True)
class Text:
    """A text as a model reads it."""

    tokens: torch.Tensor  #: [N] int64.
    num_bytes: int  #: of the UTF-8 of what tokens 1..N-1 stand for, those that are scored.


def encode(tokenizer: Any, text: str) -> Text:
    """Returns the tokens of a text, with the special ones that the tokenizer adds.

    tokenizer: of the package tokenizers. The first token is not scored, so the bytes that it stands
    for do not count in `num_bytes` (a character that it shares with the next token does). A special
    token stands for none: after one at the start every byte counts.
    """
    encoding = tokenizer.encode(text)
    ids = torch.tensor(encoding.ids, dtype=torch.int64)
    # Characters; None: a special token. Ends and starts alone, as a span may leave spaces out.
    spans = [encoding.token_to_chars(i) for i in range(min(2, len(ids)))]
    unscored = 0
    if spans and spans[0] is not None:
        unscored = spans[0][1]
        if len(spans) > 1 and spans[1] is not None:
            unscored = min(unscored, spans[1][0])
    return Text(ids, len(text[unscored:].encode()))


def score(
    model: Model,
    tokens: Tokens,
    *,
    context: int,
    stride: int | None = None,
    on_window: Callable[[int], bool | None] | None = None,
) -> Scores:
    """Returns the negative log-likelihood of each token of a text but the first.

    Window w reads tokens[w*stride : w*stride+context] and predicts the token after each; the first
    window that reaches a token scores it.

    model: what `nn.load` or `streamed` returns, or a function of tokens [1, T] that returns logits
    [1, T, V].
    tokens: [N] integers, N >= 2. stride: 1..context, by default context. on_window: gets the number
    of tokens scored so far; False stops (what is missing is NaN).

    Raises ValueError or TypeError before any work if an argument is not as above.
    """
    plain, context, stride = _checked("score", tokens, context, stride)
    if on_window is not None and not callable(on_window):
        raise TypeError(f"score: on_window must be callable, got {type(on_window).__name__}")
    reports = None if on_window is None else (lambda count: on_window(count) is not False)
    return _scored("score", model, plain, context, stride, reports)


def perplexity(
    model: Model,
    tokens: Tokens,
    *,
    context: int,
    stride: int | None = None,
    batch_size: int = 1,
) -> dict[str, float]:
    """Returns `nll` (total nats), `tokens` (how many were scored) and `perplexity` of a text.

    Arguments and errors as `score`. batch_size: windows that may be read side by side; the bits do
    not depend on it (on the CPU they are read one by one, which costs nothing).
    """
    _arguments.integer("perplexity", "batch_size", batch_size, 1, 2**31)
    plain, context, stride = _checked("perplexity", tokens, context, stride)
    return _scored("perplexity", model, plain, context, stride).summary()


def by_domain(
    model: Model,
    texts: Mapping[str, Sequence[Tokens]],
    num_bytes: Mapping[str, int],
    *,
    context: int,
    stride: int | None = None,
) -> dict[str, dict[str, float]]:
    """Returns the summary of each domain's documents, each read from its own beginning.

    texts: documents as tokens by domain. num_bytes: of the UTF-8 of what is scored, by domain.
    """
    for domain, documents in texts.items():
        if domain not in num_bytes:
            raise ValueError(f"by_domain: num_bytes must hold every domain, got none of {domain}")
        if len(documents) == 0:
            raise ValueError(f"by_domain: texts must hold documents, got none of {domain}")
    result = {}
    for domain, documents in texts.items():
        parts = [score(model, t, context=context, stride=stride) for t in documents]
        result[domain] = Scores.joined(parts).summary(num_bytes=num_bytes[domain])
    return result


def _scored(
    function: str,
    model: Model,
    tokens: torch.Tensor,
    context: int,
    stride: int,
    reports: Callable[[SupportsInt], bool] | None = None,
) -> Scores:
    if isinstance(model, Decoder):
        model.bind()
        nll = _core.token_nll(model.core, tokens, context, stride, reports)
    elif isinstance(model, Streamed):
        nll = _core.token_nll(model._core, tokens, context, stride, reports)
    elif callable(model):
        nll = _core.token_nll(_checked_model(function, model), tokens, context, stride, reports)
    else:
        raise TypeError(f"{function}: model must be callable, got {type(model).__name__}")
    return Scores(nll, _core.tokens_read(tokens.shape[0], context, stride))


def _checked_model(
    function: str, model: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    def logits(tokens: torch.Tensor) -> torch.Tensor:
        result = model(tokens)
        is_tensor = isinstance(result, torch.Tensor) and result.is_floating_point()
        if not is_tensor or result.ndim != 3 or result.shape[:2] != tokens.shape:
            got = list(result.shape) if is_tensor else type(result).__name__
            wanted = f"[{tokens.shape[0]}, {tokens.shape[1]}, V]"
            raise ValueError(f"{function}: model must return logits {wanted}, got {got}")
        return result

    return logits


def _edges(edges: Sequence[int]) -> list[int]:
    array = _arguments.integer_array("by_position", "edges", edges, "[M]", 1)
    values = [int(edge) for edge in array]
    if len(values) < 2 or any(a >= b for a, b in itertools.pairwise(values)):
        raise ValueError(f"by_position: edges must be ascending, at least 2, got {values}")
    return values


def _summary(nll: torch.Tensor) -> dict[str, float]:
    count = nll.shape[0]
    total = math.fsum(nll.tolist())
    mean = total / count if count else math.nan
    perplexity = math.inf if mean > 709.0 else math.exp(mean)  # NaN stays
    return {"nll": total, "tokens": count, "perplexity": perplexity if count else math.nan}


def _checked(
    function: str, tokens: Tokens, context: int, stride: int | None
) -> tuple[torch.Tensor, int, int]:
    plain = token_tensor(function, tokens, "[N]", 1)
    if plain.shape[0] < 2:
        raise ValueError(f"{function}: tokens must be [N] with N >= 2, got {list(plain.shape)}")
    context = _arguments.integer(function, "context", context, 1, 2**40)
    stride = (
        context if stride is None else _arguments.integer(function, "stride", stride, 1, context)
    )
    return plain.to(torch.int64), context, stride
