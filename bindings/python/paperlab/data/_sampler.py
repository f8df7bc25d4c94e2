"""Batches of tokens: which windows, as a function of seed, weights and step."""

import ctypes
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch

from paperlab import _arguments, _core
from paperlab.data._tokens import Tokens

Weights = Mapping[str, float] | Sequence[float]


class Sampler:
    """Draws windows of `length` + 1 tokens from the domains of a split.

        data = Sampler(tokens, length=256, batch_size=16, weights={"en": 0.7, "de": 0.3})
        data(0)       # LongTensor [16, 257]: step 0; for train.fit
        data.domains  # LongTensor [16]: the domain of each row, an index into data.names

    Each row draws its domain on its own, by the weights, then takes the next window of that domain
    in a shuffled order; every window of a domain is seen once before any is seen twice. Windows
    start at tokens 0, length, 2 length, ... of the domain's documents back to back, so that each
    token is predicted once in an epoch. With `within_documents` they start so in each document and
    stay inside it: what is left of a document, and shorter documents, are never drawn.

    While weights stay the same, a batch is a function of seed, step and batch size alone, whatever
    was drawn before. A change of weights counts from the next sample on; steps before the last
    change can then no longer be drawn, and a resumed run needs `state` and `load_state`.

    tokens: of `tokenize`. split: train, valid or test. length: T >= 1. batch_size: of `data(step)`,
    and where none is given. weights: by name (0 for a name that is left out) or one for each of
    `names`; >= 0, any positive sum; None: in proportion to the domains' windows. seed: 0..2^64 - 1.
    domains: some of the tokens' domains; None for all.

    Raises ValueError naming the argument, and the domain where a positive weight meets a domain
    without windows.
    """

    def __init__(
        self,
        tokens: Tokens,
        split: str = "train",
        *,
        length: int,
        batch_size: int | None = None,
        weights: Weights | None = None,
        seed: int = 0,
        within_documents: bool = False,
        domains: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(tokens, Tokens):
            raise _arguments.ArgumentTypeError(
                f"Sampler: tokens must be of data.tokenize, got {type(tokens).__name__}"
            )
        self.tokens = tokens
        self.names = _names(tokens, domains)
        self.split = _arguments.text("Sampler", "split", split)
        self.length = _arguments.integer("Sampler", "length", length, 1, 1 << 32)
        self.batch_size = None if batch_size is None else _batch_size(batch_size)
        for name in self.names:
            if self.split not in tokens[name]:
                raise ValueError(
                    f"Sampler: split must be one of {', '.join(tokens[name])}, got {split!a:.60}"
                )
        self._core = _core.Sampler(
            tokens._core,
            self.names,
            self.split,
            self.length,
            _arguments.integer("Sampler", "seed", seed, 0, (1 << 64) - 1),
            _arguments.boolean("Sampler", "within_documents", within_documents),
            [] if weights is None else self._weights(weights),
        )
        self._domains = torch.empty(0, dtype=torch.int64)

    @property
    def domains(self) -> torch.Tensor:
        """int64 [B]: the domain of each row of the last batch, an index into `names`."""
        return self._domains

    @property
    def windows(self) -> dict[str, int]:
        """How many windows each domain has."""
        return dict(zip(self.names, self._core.num_windows, strict=True))

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the domains; they add up to 1."""
        return dict(zip(self.names, self._core.weights, strict=True))

    @property
    def samples(self) -> int:
        """How many rows come before the next batch."""
        return self._core.num_samples

    @property
    def counts(self) -> dict[str, int]:
        """How many of those rows were of each domain."""
        return dict(zip(self.names, self._core.counts, strict=True))

    def next(self, batch_size: int | None = None) -> torch.Tensor:
        """The next batch, int64 [batch_size, length + 1]."""
        return self._draw(self._core.num_samples, self._size(batch_size), None)

    def batch(
        self,
        step: int,
        batch_size: int | None = None,
        *,
        rows: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """The batch of a step, int64 [batch_size, length + 1]; `next` goes on after it.

        Where steps follow each other this costs no more than `next`; elsewhere the domains of the
        samples in between are drawn, some nanoseconds each. rows: begin and end of the rows that
        are wanted, for a process that has its share of the global batch; None for all.

        Raises ValueError if the weights were changed after that step.
        """
        size = self._size(batch_size)
        number = _arguments.integer("Sampler.batch", "step", step, 0, (1 << 40) // size - 1)
        return self._draw(number * size, size, _row_range(rows, size))

    def __call__(self, step: int) -> torch.Tensor:
        """The batch of a step, of the sampler's batch_size."""
        return self.batch(step)

    def in_order(self, domain: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Windows begin..end of a domain in the order of its text, int64 [end - begin, length + 1].

        For evaluation; the position stays. end: None for all.
        """
        if domain not in self.names:
            raise ValueError(
                f"Sampler.in_order: domain must be one of {', '.join(self.names)}, got "
                f"{domain!a:.60}"
            )
        count = self.windows[domain]
        first = _arguments.integer("Sampler.in_order", "begin", begin, 0, count)
        last = count if end is None else end
        last = _arguments.integer("Sampler.in_order", "end", last, first, count)
        return self._filled(self._core.windows(self.names.index(domain), first, last))

    def set_weights(self, weights: Weights) -> None:
        """Weights from the next sample on, as the constructor's."""
        self._core.set_weights(self._weights(weights))

    def state(self) -> dict[str, Any]:
        """Where the sampler stands, as JSON values: some numbers for each domain."""
        state: dict[str, Any] = json.loads(self._core.state())
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state` was taken: the same weights, the same batches.

        Raises ValueError if it is no state, or that of a sampler of other domains, windows, length
        or seed; nothing is changed then.
        """
        try:
            text = json.dumps(dict(state), allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("Sampler.load_state: state must be what state() returned") from None
        self._core.load_state(text)

    def _draw(self, first: int, size: int, rows: tuple[int, int] | None) -> torch.Tensor:
        before = self._core.num_samples
        if first != before:
            self._core.seek(first)
        try:
            windows = self._core.next(size)
            if rows is not None:
                windows = windows[rows[0] : rows[1]]
            tokens = self._filled(windows)
        except BaseException:
            self._core.seek(before)  # a refused call changes nothing
            raise
        self._domains = torch.tensor(windows[:, 0], dtype=torch.int64, device="cpu")
        return tokens

    def _filled(self, windows: npt.NDArray[Any]) -> torch.Tensor:
        """The tokens of rows of (domain, first token)."""
        tokens = torch.empty((len(windows), self.length + 1), dtype=torch.int64, device="cpu")
        self._core.fill(windows, _memory(tokens))
        return tokens

    def _size(self, batch_size: int | None) -> int:
        if batch_size is not None:
            return _batch_size(batch_size)
        if self.batch_size is None:
            raise ValueError("Sampler: batch_size must be given, here or to the constructor")
        return self.batch_size

    def _weights(self, weights: object) -> list[float]:
        if isinstance(weights, Mapping):
            for name in weights:
                if name not in self.names:
                    raise ValueError(
                        f"Sampler: weights: unknown domain {name!a:.60}; there are "
                        f"{', '.join(self.names)}"
                    )
            values: list[Any] = [weights.get(name, 0.0) for name in self.names]
        else:
            try:
                values = list(weights)  # type: ignore[call-overload]
            except TypeError:
                raise _arguments.ArgumentTypeError(
                    "Sampler: weights must map names to numbers or be a sequence, got "
                    f"{type(weights).__name__}"
                ) from None
            if len(values) != len(self.names):
                raise ValueError(
                    f"Sampler: weights must be one for each of {', '.join(self.names)}, got "
                    f"{len(values)}"
                )
        return [_weight(name, value) for name, value in zip(self.names, values, strict=True)]


def _weight(name: str, value: object) -> float:
    number = _arguments.real("Sampler", f"weights['{name}']", value)
    if number < 0 or math.isnan(number):
        raise ValueError(f"Sampler: weights['{name}'] must be >= 0, got {number}")
    return number


def _batch_size(value: object) -> int:
    return _arguments.integer("Sampler", "batch_size", value, 1, 1 << 32)


def _row_range(rows: object, size: int) -> tuple[int, int] | None:
    if rows is None:
        return None
    if not isinstance(rows, tuple | list) or len(rows) != 2:
        raise ValueError(f"Sampler.batch: rows must be (begin, end), got {rows!a:.60}")
    begin = _arguments.integer("Sampler.batch", "rows[0]", rows[0], 0, size)
    return begin, _arguments.integer("Sampler.batch", "rows[1]", rows[1], begin, size)


def _names(tokens: Tokens, domains: Sequence[str] | None) -> list[str]:
    if domains is None:
        return list(tokens)
    if isinstance(domains, str) or not isinstance(domains, list | tuple):
        raise ValueError(f"Sampler: domains must be a list of names, got {domains!a:.60}")
    for name in domains:
        if name not in list(tokens):
            why = f": {tokens.missing[name]}" if name in tokens.missing else ""
            raise ValueError(
                f"Sampler: domains: the tokens have no domain {name!a:.60}{why}; there are "
                f"{', '.join(tokens)}"
            )
    if not domains:
        raise ValueError("Sampler: domains must name at least one")
    return list(dict.fromkeys(domains))


def _memory(tokens: torch.Tensor) -> "ctypes.Array[ctypes.c_int64]":
    """A contiguous tensor's memory. Sharing it with NumPy would forbid resizing the tensor."""
    return (ctypes.c_int64 * tokens.numel()).from_address(tokens.data_ptr())
