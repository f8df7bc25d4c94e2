"""Times on a GPU by CUDA events, with contestants that take turns; the roofs of copy and product.

The same functions run on the CPU by a clock, for tests of the benchmarks.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Thunk = Callable[[], object]

WARM_UPS = 10
# Repetitions of a contestant: the most and the least, between them as many as take a second.
REPETITIONS, LEAST_REPETITIONS, ENOUGH_US = 50, 10, 1e6
GRAPH_BELOW_US = 500.0  # faster ones are launched by a graph, or the host's time would be measured
RUN_US = 2000.0  # of one repetition: many launches of short ones
SLOW_US = 20000.0  # needs no long warm-up


@dataclass(frozen=True)
class Contestant:
    """thunks: one for each set of inputs, run in turns. steps: what one call does so many times.

    as_graph: launched by a CUDA graph, or never, since launches are part of what is measured; none
    of both: where it is short.
    """

    thunks: Sequence[Thunk]
    steps: int = 1
    as_graph: bool | None = None


@dataclass
class Roofs:
    """Measured: bytes read and written, operations of a product of bfloat16."""

    copy_gb_s: float
    matmul_tflops: float


@dataclass(frozen=True)
class Prepared:
    """What one repetition runs, the steps in it, and how often it is repeated."""

    run: Thunk
    steps: int
    repetitions: int
    is_graph: bool

    def is_due(self, turn: int, turns: int) -> bool:
        """Whether it runs in this turn: the slow ones are spread over all turns."""
        share = self.repetitions / turns
        return math.ceil((turn + 1) * share - 1e-9) > math.ceil(turn * share - 1e-9)


@dataclass(frozen=True)
class Measured:
    """times: microseconds of a step in each repetition. graphs: who ran as a CUDA graph."""

    times: dict[str, list[float]]
    graphs: list[str]
    failures: dict[str, str]


def reason_of(error: Exception) -> str:
    """The first line of an error, or its name."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "out of memory"
    return str(error).strip().split("\n", 1)[0][:160] or type(error).__name__


class Timer:
    def __init__(self, device: torch.device, quick: bool = False) -> None:
        self.device = device
        self.quick = quick

    def launch(self, call: Thunk, steps: int) -> float:
        """Microseconds of one of the `steps` steps of a call."""
        if self.device.type == "cpu":
            began = time.perf_counter()
            call()
            return (time.perf_counter() - began) / steps * 1e6
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / steps

    def prepared(self, contestant: Contestant) -> Prepared:
        """Warmed up."""
        thunks = contestant.thunks
        turns = itertools.cycle(thunks)

        def calls(count: int) -> Thunk:
            def run() -> None:
                for _ in range(count):
                    next(turns)()

            return run

        calls(len(thunks))()  # loads libraries, compiles, makes plans
        us = self.launch(calls(len(thunks)), len(thunks))  # of a call
        if self.quick:
            return Prepared(calls(1), contestant.steps, 2, False)
        if us < SLOW_US:
            calls(WARM_UPS)()
            us = self.launch(calls(len(thunks)), len(thunks))
        count = max(1, min(200, int(RUN_US / max(us, 1.0))))
        repetitions = math.ceil(ENOUGH_US / (us * count))
        repetitions = max(LEAST_REPETITIONS, min(REPETITIONS, repetitions))
        as_graph = us < GRAPH_BELOW_US if contestant.as_graph is None else contestant.as_graph
        if as_graph and self.device.type == "cuda":
            whole = math.ceil(count / len(thunks)) * len(thunks)  # every set equally often
            if (graph := captured(calls(whole))) is not None:
                graph()
                return Prepared(graph, whole * contestant.steps, REPETITIONS, True)
            if contestant.as_graph:
                raise RuntimeError("cannot be captured as a CUDA graph")
        return Prepared(calls(count), count * contestant.steps, repetitions, False)

    def measure(self, contestants: Mapping[str, Contestant], deadline: float) -> Measured:
        """Contestants in turns; fewer repetitions, but three, where time is short. The first one
        must run, others may fail."""
        runs: dict[str, Prepared] = {}
        failures: dict[str, str] = {}
        for name, each in contestants.items():
            try:
                runs[name] = self.prepared(each)
            except Exception as error:
                if not runs:
                    raise
                failures[name] = reason_of(error)
        times: dict[str, list[float]] = {name: [] for name in runs}
        turns = max(run.repetitions for run in runs.values())
        for turn in range(turns):
            is_late = time.monotonic() > deadline
            if is_late and all(len(each) >= min(3, turns) for each in times.values()):
                break
            for name, run in runs.items():
                if run.is_due(turn, turns):
                    times[name].append(self.launch(run.run, run.steps))
        return Measured(times, [name for name, run in runs.items() if run.is_graph], failures)


def captured(run: Thunk) -> Thunk | None:
    """The same as a graph, or nothing for what cannot be captured."""
    stream = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    try:
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            run()
    except Exception:  # any library may refuse in its own way
        torch.cuda.set_stream(stream)  # a failed capture leaves its own behind
        torch.cuda.synchronize()  # raises if the device is lost
        return None
    return graph.replay


def band(values: Sequence[float]) -> tuple[float, float]:
    """The 10th and the 90th percentile."""
    tenths = sorted(values)
    return tenths[len(tenths) // 10], tenths[-1 - len(tenths) // 10]


def measured_roofs(device: torch.device, quick: bool) -> Roofs:
    """A large copy and a product of 8192^3 of random numbers, medians."""
    elements = 2**16 if quick else 2**29
    source = torch.randn(elements, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    size = 64 if quick else 8192
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    contestants = {
        "copy": Contestant([lambda: target.copy_(source)]),
        "matmul": Contestant([lambda: torch.mm(a, b, out=out)]),
    }
    times = Timer(device, quick).measure(contestants, time.monotonic() + 10).times
    medians = {name: statistics.median(each) for name, each in times.items()}
    bytes_moved = 2 * source.numel() * source.element_size()
    return Roofs(bytes_moved / medians["copy"] * 1e-3, 2 * size**3 / medians["matmul"] * 1e-6)
