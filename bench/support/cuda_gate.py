"""Whether a result is right, by the definition in float64, before it is timed."""

from typing import Any

import torch
from support.cuda_case import Case, Function, Row, Tensors
from support.cuda_timing import reason_of

OTHER_BOUND = 0.02  # where nothing of LibTorch is the same function: bfloat16's rounding


def tensors_of(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def in_float64(inputs: Tensors) -> list[torch.Tensor]:
    return [x.double() if x.is_floating_point() else x for x in inputs]


def error_of(result: Any, exact: Any) -> float:
    """The largest relative error, by norm, of the tensors of a result; NaN counts as infinite."""
    errors = []
    for x, y in zip(tensors_of(result), tensors_of(exact), strict=True):
        size = float(y.double().norm())
        error = float((x.double() - y.double()).norm()) / (size or 1.0)
        errors.append(error if error == error else float("inf"))
    return max(errors)


def gated(case: Case, ours: Any, inputs: Tensors, baselines: dict[str, Function]) -> Row:
    """The errors of ours and of others, and `wrong` if ours is too large: more than twice the
    smallest of LibTorch's own for the same function."""
    exact = case.thunk(case.definition, in_float64(inputs))()
    row: Row = {"error": error_of(ours, exact)}
    same = {} if case.is_other_function else dict(baselines)
    if case.gate is not None:  # other shapes would be compiled anew
        same = {name: each for name, each in same.items() if name not in case.compiled}
    if case.peer is not None:
        same["LibTorch, masked"] = case.peer
    errors: dict[str, float] = {}
    for name, function in same.items():
        try:
            errors[name] = error_of(case.thunk(function, inputs)(), exact)
        except Exception as error:  # the measurement of it will say so too
            row.setdefault("not_compared", {})[name] = reason_of(error)
    row["baseline_errors"] = errors
    bound = 2.0 * min(errors.values()) + case.least_error if errors else OTHER_BOUND
    row["error_bound"] = bound
    if not row["error"] <= bound:
        row["wrong"] = f"an error of {row['error']:.3g}, {bound:.3g} is the bound"
    return row


def differing(case: Case, ours: Any, compiled: dict[str, Any]) -> dict[str, str]:
    """The compiled baselines that the gate left out and whose results are not those of ours."""
    errors = {name: error_of(result, ours) for name, result in compiled.items()}
    return {
        name: f"its result differs by {error:.3g}"
        for name, error in errors.items()
        if not error <= 2 * OTHER_BOUND
    }
