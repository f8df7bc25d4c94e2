"""The one-layer transformer written from its definition, a string at a time, for the tests."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LabelledString = tuple[tuple[int, ...], int, float]  # tokens, label, weight in the loss


def strings_of(length: int) -> Iterator[tuple[int, ...]]:
    return itertools.product((0, 1), repeat=length)


def even_pairs(max_length: int) -> list[LabelledString]:
    return [
        (x, 1 if x[0] == x[-1] else -1, 2.0**-length)
        for length in range(1, max_length + 1)
        for x in strings_of(length)
    ]


def parity_cot(base_length: int) -> list[LabelledString]:
    """Each step of the right chain of thought, and even pairs below base_length."""
    data = even_pairs(base_length - 1)
    for x in strings_of(base_length):
        chain = list(x)
        for step in range(base_length - 1):
            is_equal = chain[step] == chain[-1]
            data.append((tuple(chain), 1 if is_equal else -1, 2.0**-base_length))
            chain.append(0 if is_equal else 1)
        assert chain[-1] == sum(x) % 2
    return data


def attention(w: Array, x: Sequence[int], scale: float) -> tuple[list[int], int, Array]:
    """Indices of the keys, of the query, and the softmax over the keys."""
    keys = [2 * position + token for position, token in enumerate(x)]
    logits = w[keys, keys[-1]] / scale
    phi = np.exp(logits - logits.max())
    return keys, keys[-1], phi / phi.sum()


def score(u: Array, w: Array, x: Sequence[int], scale: float) -> float:
    keys, _, phi = attention(w, x, scale)
    return float(phi @ u[keys])


def objective(
    u: Array, w: Array, data: list[LabelledString], scale: float
) -> tuple[float, float, Array, Array]:
    """Loss, accuracy, and the gradients with respect to u and w."""
    loss, correct = 0.0, 0
    grad_u, grad_w = np.zeros_like(u), np.zeros_like(w)
    for x, y, weight in data:
        keys, query, phi = attention(w, x, scale)
        t = phi @ u[keys]
        loss += weight * np.logaddexp(0.0, -y * t)
        correct += y * t > 0
        c = -y * weight / (1.0 + np.exp(y * t))
        np.add.at(grad_u, keys, c * phi)
        np.add.at(grad_w, (keys, query), c * phi * (u[keys] - t) / scale)
    return loss, correct / len(data), grad_u, grad_w


def chain_of_thought(u: Array, w: Array, x: Sequence[int], truncated: bool, scale: float) -> int:
    chain = list(x)
    for step in range(len(x) - 1):
        seen = chain[step:] if truncated else chain
        chain.append(0 if score(u, w, seen, scale) > 0 else 1)
    return chain[-1]
