"""One-layer transformers that learn even pairs, and parity by chain of thought.

Source: Huang, Liang, Yang, "How Transformers Learn Regular Language Recognition", ICML 2025.
Token s (a = 0, b = 1) at position l = 1..L is entry 2(l-1)+s of u, and of a row (key) or column
(query) of w; logits are w / attention_scale. A positive score T means a (0), or label +1.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from paperlab import _arguments, _core

__all__ = ["MaxMargin", "TrainResult", "chain_of_thought", "max_margin", "train"]

Array = npt.NDArray[Any] | torch.Tensor
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_MAX_INT64 = 2**63 - 1
_MAX_LENGTH = 4096
_DEFAULT_RECORD = (0, 100, 600, 1000, 2000)


class TrainResult(TypedDict):
    """The recorded states, R of them, and the last matrix."""

    step: Int64Array  # [R]
    loss: Float64Array  # [R], the whole objective
    accuracy: Float64Array  # [R], share of the training strings with y T > 0
    u: Float64Array  # [R, 2 max_length]
    w_norm: Float64Array  # [R], Frobenius norm
    u_norm: Float64Array  # [R]
    w: Float64Array | None  # [2 max_length keys, 2 max_length queries]; None above max_length 512


class MaxMargin(TypedDict):
    """What max_margin() finds."""

    direction: Float64Array  # [D], a unit vector
    margin: float  # min y <direction, z>, in the units of the features; > 0
    gap: float  # relative duality gap of |v|^2, at most 1e-10


def train(
    task: Literal["even_pairs", "parity_cot"] = "even_pairs",
    max_length: int = 6,
    base_length: int = 4,
    learning_rate: float = 0.1,
    attention_scale: float = 2.0,
    boost_steps: int = 100,
    num_steps: int = 2000,
    method: Literal["two_class", "strings", "fold"] = "two_class",
    optimizer: Literal["gd", "heavy_ball", "normalized_gd", "adam", "sign_gd"] = "gd",
    init_std: float = 0.0,
    seed: int = 0,
    record: Sequence[int] | Array | None = None,
    *,
    boost: float | None = None,
    freeze_attention_from: int | None = None,
    regularizer_length: int | None = None,
    uniform_weights: bool = False,
    embedding: Literal["orthonormal", "gaussian", "token_position"] = "orthonormal",
    embedding_dim: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
) -> TrainResult:
    """Trains by full-batch gradient descent on all binary strings; returns the recorded states.

    task: "even_pairs", all strings of lengths 1..max_length, y = +1 iff the first token equals the
        last; or "parity_cot", the teacher-forced chain of thought of all strings of base_length,
        plus even pairs of lengths 1..base_length-1.
    max_length: 1..4096 for method "two_class", 1..20 for "strings", 1..24 for "fold"; for
        parity_cot it must be 2 * base_length - 2.
    base_length: read by parity_cot only; at least 2, at most 16 for "fold".
    learning_rate, attention_scale: finite, > 0.
    boost_steps: while t < boost_steps w moves by learning_rate * attention_scale, afterwards and
        for u always by learning_rate.
    method: how the same gradient is computed: the exact two-class model (init_std = 0 only), every
        string, or every string as a row part plus a column part.
    optimizer: "gd"; "heavy_ball" (0.9); "normalized_gd" (joint norm over u and w); "adam" (0.9,
        0.999, 1e-8, bias-corrected); "sign_gd".
    init_std: every entry of u and w is drawn from N(0, init_std^2); the draw depends on `seed`
        (0..2^64-1) and max_length alone and scales with init_std.
    record: strictly increasing steps within 0..num_steps; None means those of 0, 100, 600, 1000,
        2000 that are <= num_steps. Record t is the state after t updates.

    Controls that the paper does not vary:
    boost: multiplier of w's step while t < boost_steps; None means attention_scale.
    freeze_attention_from: w stays as it is from this step on.
    regularizer_length: parity_cot adds even pairs of lengths 1..this; None means base_length - 1.
    uniform_weights: each string counts the same, not each length.
    embedding: "orthonormal"; "gaussian", entries N(0, 1 / embedding_dim); "token_position",
        (token + position) / sqrt(2). Others than the first need method "strings" or "fold".
    embedding_dim: 1..4096, read by "gaussian" only.
    device: "cuda" serves methods "strings" and "fold" with optimizer "gd", where a GPU is found. As
        long as its kernels have passed their tests on no GPU, a UserWarning says so once.

    Raises ValueError before any work, naming the argument; ValueError too once the loss is no
    longer finite. float64; the same bits for any number of threads.
    """
    name = "train"
    options = _core.TrainOptions()
    options.task = _arguments.text(name, "task", task)
    options.method = _arguments.text(name, "method", method)
    options.optimizer = _arguments.text(name, "optimizer", optimizer)
    options.max_length = _arguments.integer(name, "max_length", max_length, 1, _MAX_LENGTH)
    if options.task == "parity_cot":
        options.base_length = _arguments.integer(name, "base_length", base_length, 2, _MAX_LENGTH)
    options.learning_rate = _arguments.positive(name, "learning_rate", learning_rate)
    options.attention_scale = _arguments.positive(name, "attention_scale", attention_scale)
    options.boost_steps = _arguments.integer(name, "boost_steps", boost_steps, 0, _MAX_INT64)
    options.num_steps = _arguments.integer(name, "num_steps", num_steps, 0, _MAX_INT64)
    options.init_std = _arguments.real(name, "init_std", init_std)
    options.seed = _arguments.integer(name, "seed", seed, 0, 2**64 - 1)
    options.record = _record(record, options.num_steps)
    if boost is not None:
        options.boost = _arguments.positive(name, "boost", boost)
    if freeze_attention_from is not None:
        options.freeze_attention_from = _arguments.integer(
            name, "freeze_attention_from", freeze_attention_from, 0, _MAX_INT64
        )
    if regularizer_length is not None:
        options.regularizer_length = _arguments.integer(
            name, "regularizer_length", regularizer_length, 0, _MAX_LENGTH
        )
    options.uniform_weights = _arguments.boolean(name, "uniform_weights", uniform_weights)
    options.embedding = _arguments.text(name, "embedding", embedding)
    if options.embedding == "gaussian":
        options.embedding_dim = _arguments.integer(name, "embedding_dim", embedding_dim, 1, 4096)
    options.device = _arguments.text(name, "device", device)
    if options.device == "cuda" and not _core.cuda_train_is_verified():
        _say_unverified()
    result = _core.train(options)
    return {
        "step": result.step,
        "loss": result.loss,
        "accuracy": result.accuracy,
        "u": result.u,
        "w_norm": result.w_norm,
        "u_norm": result.u_norm,
        "w": result.w,
    }


@functools.cache
def _say_unverified() -> None:
    text = (
        'train: device "cuda" runs kernels that were not yet seen to pass their tests on a GPU '
        "(one_layer_fold, one_layer_loop)"
    )
    warnings.warn(text, UserWarning, stacklevel=3)


def _record(record: Sequence[int] | Array | None, num_steps: int) -> list[int]:
    """`record` as a list of ints; the core checks its order."""
    if record is None:
        return [step for step in _DEFAULT_RECORD if step <= num_steps]
    steps = record.tolist() if isinstance(record, np.ndarray | torch.Tensor) else record
    if isinstance(steps, str | bytes) or not hasattr(steps, "__iter__"):
        raise _arguments.ArgumentTypeError(
            f"train: record must be a sequence of integers, got {type(record).__name__}"
        )
    return [_arguments.integer("train", "record", step, 0, num_steps) for step in steps]


def chain_of_thought(
    u: Array,
    w: Array,
    strings: Array,
    truncated: bool = True,
    attention_scale: float = 2.0,
) -> Int64Array:
    """Returns the last token that each chain of thought appends, int64 [N]: 1 means odd parity.

    Each of the L0 - 1 steps appends a (0) iff T > 0, else b (1).
    u: [2 max_length], real; w: [2 max_length keys, 2 max_length queries], real.
    strings: [N, L0] of 0 and 1, any integer dtype, L0 >= 2. The chain must fit max_length: L0
        tokens if truncated, else 2 L0 - 2.
    truncated: drop the first token before the next step, so that every step sees L0 tokens.
    attention_scale: finite, > 0.

    Raises ValueError if a shape or value is not as above, TypeError for a dtype. float64; the same
    bits for any number of threads.
    """
    name = "chain_of_thought"
    u_array = _arguments.real_array(name, "u", u, "[2 * max_length]", 1)
    width = u_array.size
    if width < 2 or width % 2:
        raise ValueError(f"{name}: u must be [2 * max_length], got [{width}]")
    w_array = _arguments.real_array(name, "w", w, f"[{width}, {width}]", 2)
    if w_array.shape != (width, width):
        raise ValueError(f"{name}: w must be [{width}, {width}], got {list(w_array.shape)}")
    tokens = _arguments.integer_array(name, "strings", strings, "[N, L0]", 2)
    if tokens.shape[1] < 2:
        raise ValueError(f"{name}: strings must be [N, L0] with L0 >= 2, got {list(tokens.shape)}")
    wrong = tokens[(tokens != 0) & (tokens != 1)]
    if wrong.size:
        raise ValueError(f"{name}: strings must hold 0 and 1, got {wrong[0]}")
    return _core.chain_of_thought(
        u_array,
        w_array,
        np.ascontiguousarray(tokens, dtype=np.uint8),
        _arguments.boolean(name, "truncated", truncated),
        _arguments.positive(name, "attention_scale", attention_scale),
    )


def max_margin(features: Array, labels: Array) -> MaxMargin:
    """Finds the max-margin direction through the origin: argmin |v| with y_n <v, z_n> >= 1.

    features: [N, D], real and finite, N and D at least 1. labels: [N], each +1 or -1.

    Raises ValueError if a shape or value is not as above, or the data are not separable (a zero
    row is not; the message holds "separable"); a margin below about 1e-7 of the largest row cannot
    be certified in float64 and raises too. TypeError for a dtype. Always ends; float64.
    """
    name = "max_margin"
    z = _arguments.real_array(name, "features", features, "[N, D]", 2)
    if z.size == 0:
        raise ValueError(f"{name}: features must be [N, D] with N, D >= 1, got {list(z.shape)}")
    y = _arguments.real_array(name, "labels", labels, "[N]", 1)
    if y.size != z.shape[0]:
        raise ValueError(f"{name}: labels must be [{z.shape[0]}], got {list(y.shape)}")
    found = _core.max_margin(z, y)
    return {"direction": found.direction, "margin": found.margin, "gap": found.gap}
