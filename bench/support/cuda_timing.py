"""Times on a GPU by CUDA events, with contestants that take turns; the roofs of copy and product.

The same functions run on the CPU by a clock, for tests of the benchmarks.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

# Called with the number of a set of inputs.
Contestant = Callable[[int], object]

WARM_UPS, REPETITIONS = 10, 50
GRAPH_BELOW_US = 20.0  # faster ones are launched by a graph, or the host's time would be measured
RUN_US = 2000.0  # of one repetition: many launches of short ones


@dataclass
class Roofs:
    """Measured: bytes read and written, operations of a product of bfloat16."""

    copy_gb_s: float
    matmul_tflops: float


class Timer:
    def __init__(self, device: torch.device, sets: int, quick: bool = False) -> None:
        self.device = device
        self.sets = sets
        self.warm_ups = 1 if quick else WARM_UPS
        self.repetitions = 2 if quick else REPETITIONS
        self.run_us = 0.0 if quick else RUN_US

    def launch(self, call: Callable[[], None], calls: int) -> float:
        """Microseconds of one of the `calls` calls that `call` makes."""
        if self.device.type == "cpu":
            began = time.perf_counter()
            call()
            return (time.perf_counter() - began) / calls * 1e6
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / calls

    def calls(self, contestant: Contestant, count: int) -> Callable[[], None]:
        def call() -> None:
            for i in range(count):
                contestant(i % self.sets)

        return call

    def prepared(self, contestant: Contestant) -> tuple[Callable[[], None], int]:
        """What one repetition runs, warmed up, and its number of calls."""
        self.calls(contestant, self.warm_ups)()
        few = self.sets
        us = self.launch(self.calls(contestant, few), few)
        count = max(1, min(200, int(self.run_us / max(us, 1.0))))
        count = (count + self.sets - 1) // self.sets * self.sets
        run = self.calls(contestant, count)
        if us < GRAPH_BELOW_US and self.device.type == "cuda":
            run = self.captured(run) or run
        run()
        return run, count

    def captured(self, run: Callable[[], None]) -> Callable[[], None] | None:
        """The same as a graph, or nothing for what cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return graph.replay

    def measure(
        self, contestants: Mapping[str, Contestant], deadline: float
    ) -> dict[str, list[float]]:
        """Microseconds of each repetition; fewer of them, but three, where time is short."""
        runs = {name: self.prepared(each) for name, each in contestants.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repetition in range(self.repetitions):
            if repetition >= 3 and time.monotonic() > deadline:
                break
            for name, (run, count) in runs.items():
                times[name].append(self.launch(run, count))
        return times


def measured_roofs(device: torch.device, quick: bool) -> Roofs:
    """A large copy and a product of 8192^3 of random numbers, medians."""
    timer = Timer(device, 1, quick)
    timer.repetitions = min(timer.repetitions, 20)
    elements = 2**16 if quick else 2**30
    source = torch.randn(elements // 2, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    size = 64 if quick else 8192
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    contestants: dict[str, Contestant] = {
        "copy": lambda _: target.copy_(source),
        "matmul": lambda _: torch.mm(a, b, out=out),
    }
    times = timer.measure(contestants, time.monotonic() + 10)
    medians = {name: float(torch.tensor(each).median()) for name, each in times.items()}
    bytes_moved = 2 * source.numel() * source.element_size()
    return Roofs(bytes_moved / medians["copy"] * 1e-3, 2 * size**3 / medians["matmul"] * 1e-6)
