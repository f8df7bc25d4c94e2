"""What a row of the GPU benchmarks measures, and the goals that it is judged by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Tensors = Sequence[torch.Tensor]
Function = Callable[..., Any]
# Takes a set of inputs and returns what is run again and again.
Factory = Callable[..., Callable[[], Any]]
Row = dict[str, Any]

UNITS = {"copy": "% of copy", "matmul": "% of matmul", "memory": "% of the memory of"}


@dataclass(frozen=True)
class Goal:
    """One cell of the goals: `of` says what is compared with the bound.

    ratio: baseline time by ours, of the fastest of the baselines `than` that run (none named: of
    all). copy, matmul: share of the roof. memory: ours by that of the baseline, at most. tflops:
    against a published number, which `source` names. same_bits: in another run.
    """

    stage: str  # "A" or "stretch"
    bound: float
    of: str = "ratio"
    than: tuple[str, ...] = ()
    source: str = ""

    def text(self) -> str:
        than = " or ".join(self.than) or "the fastest"
        match self.of:
            case "ratio":
                return f"{self.stage}: >= {self.bound:g}x {than}"
            case "memory":
                return f"{self.stage}: <= {100 * self.bound:g} {UNITS[self.of]} {than}"
            case "tflops":
                return f"{self.stage}: >= {self.bound:g} TFLOP/s ({self.source})"
            case "same_bits":
                return f"{self.stage}: the same bits again"
        return f"{self.stage}: >= {100 * self.bound:g} {UNITS[self.of]}"

    def value(self, row: Row) -> float | None:
        """What was measured; nothing if the row doesn't have it."""
        if self.of == "same_bits":
            return float(row["same_bits"]) if "same_bits" in row else None
        if self.of == "memory":
            baseline = row.get("baselines_memory_mib", {}).get(self.than[0])
            return row["memory_mib"] / baseline if baseline else None
        if self.of != "ratio":
            keys = {"copy": "share_of_copy_roof", "matmul": "share_of_matmul_roof"}
            found = row.get(keys.get(self.of, self.of))
            return None if found is None else float(found)
        times: Mapping[str, float] = row.get("baselines_us", {})
        named = [us for name, us in times.items() if not self.than or name in self.than]
        return min(named) / row["ours_us"] if named else None

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.of == "memory" else value >= self.bound

    def shown(self, value: float) -> str:
        if self.of == "ratio":
            return f"{value:.2f}x"
        if self.of == "tflops":
            return f"{value:.0f}"
        if self.of == "same_bits":
            return "yes" if value else "no"
        return f"{100 * value:.0f} %"


def judged(row: Row, goals: Sequence[Goal]) -> Row:
    """goals: a word for each; judged: the same as data; missed: whether stage A has a miss."""
    words, data = {}, []
    for goal in goals:
        value = goal.value(row)
        verdict: Row = {"goal": goal.text(), "stage": goal.stage, "bound": goal.bound}
        if value is None:
            absent: Row = row.get("not_available", {})
            why = [f"{name}: {absent[name]}" for name in goal.than if name in absent]
            words[goal.text()] = "not judged"
            data.append(
                verdict
                | {"holds": None, "why": "; ".join(why) or row.get("not_timed", "not measured")}
            )
            continue
        holds = goal.holds(value)
        words[goal.text()] = f"{'met' if holds else 'missed'} ({goal.shown(value)})"
        data.append(verdict | {"value": value, "holds": holds})
    if not goals:
        return {}
    missed = any(each["stage"] == "A" and each["holds"] is False for each in data)
    return {"goals": words, "judged": data, "missed": missed}


@dataclass
class Case:
    """make(seed) makes a set of inputs; a contestant takes them and returns a tensor or several.

    is_prepared: contestants are factories, which do what is not timed. The definition is run on
    inputs in float64: those of `gate`, where float64 needs smaller ones; `gate_ours` stands for
    `ours` there. The error may be twice that of the best baseline of the same function or of
    `peer`, LibTorch's own kernel for it, which is not timed. Operations and bytes are the fewest
    that any form needs. ops: the operators of ours.
    compiled: names of baselines that are compiled, for the shapes of `make` alone. by_host,
    by_graph: of contestants that are never, or always, launched as a CUDA graph. variants: other
    paths of ours, factories.
    chosen: what LibTorch chooses for a baseline, by its name; inputs -> "flash".
    """

    ops: tuple[str, ...]
    table: str
    name: str
    make: Callable[[int], Tensors]
    ours: Function
    baselines: dict[str, Function]
    definition: Function
    goals: tuple[Goal, ...] = ()
    gate: Callable[[int], Tensors] | None = None
    gate_ours: Function | None = None
    peer: Function | None = None
    variants: dict[str, Factory] = field(default_factory=dict)
    chosen: dict[str, Callable[..., str]] = field(default_factory=dict)
    compiled: frozenset[str] = frozenset()
    by_host: frozenset[str] = frozenset()
    by_graph: frozenset[str] = frozenset()
    is_prepared: bool = False
    is_other_function: bool = False
    flops: float = 0.0
    bytes: float = 0.0
    steps: int = 1
    has_memory: bool = False
    least_error: float = 1e-6
    facts: dict[str, Any] = field(default_factory=dict)

    def thunk(self, function: Function, inputs: Tensors) -> Callable[[], Any]:
        if not self.is_prepared:
            return partial(function, *inputs)
        made: Callable[[], Any] = function(*inputs)
        return made

    def as_graph(self, name: str) -> bool | None:
        """Of a contestant: whether it is launched as a CUDA graph, where that is given. What was
        prepared on another stream than the capture's cannot be captured."""
        if name in self.by_graph | self.by_host or self.is_prepared:
            return name in self.by_graph
        return None


def with_gradients(function: Function, count: int | None = None) -> Function:
    """The function's result and its gradients of the first `count` inputs (all), for a gradient of
    its result that is the same for everyone."""

    def both(*inputs: torch.Tensor) -> Tensors:
        out, wanted, grad = forward(function, inputs, count)
        return (out.detach(), *torch.autograd.grad(out, wanted, grad))

    return both


def backward_of(function: Function, count: int | None = None) -> Factory:
    """Runs the function when it is prepared, and then its backward pass alone."""

    def prepare(*inputs: torch.Tensor) -> Callable[[], Any]:
        out, wanted, grad = forward(function, inputs, count)
        return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)

    return prepare


def forward(
    function: Function, inputs: Tensors, count: int | None
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """The result, the leaves that get gradients, and the result's gradient."""
    leaves = [x.detach().requires_grad_(count is None or i < count) for i, x in enumerate(inputs)]
    out = function(*leaves)
    # Ones would make sums of probabilities vanish: a ramp, the same in every dtype.
    ramp = torch.linspace(0.5, 1.0, out.shape[-1] if out.dim() else 1, device=out.device)
    grad = ramp.to(torch.bfloat16).to(out.dtype)
    # Dense: what a next layer would hand back.
    grad = grad.expand(out.shape).contiguous() if out.dim() else grad[0]
    return out, [leaf for leaf in leaves if leaf.requires_grad], grad
