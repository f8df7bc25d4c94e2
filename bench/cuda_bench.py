"""cuda_bench.py --out FILE [--only NAME,...] [--seconds S] [--device DEVICE] [--quick] [--list]

The CUDA kernels beside LibTorch's operations (SDPA by backend, cuBLAS, eager code, torch.compile,
FlexAttention), with CUDA events, in turns, as shares of the roofs of a copy and a product that are
measured first, and judged by goals. Results are compared with float64 before anything is timed.
Rows are written as they come. Exit code 1 if a result is wrong, or without a GPU.
  --only NAME,...   depth_aggregate, core_context, attention, one_layer, linear_cross_entropy,
                    rows, gemm
  --seconds S       ends after so many seconds of this process with what it has (default 500)
  --device DEVICE   cuda (default), or cpu: a test of this file
  --quick           tiny shapes, few repetitions
  --list            print cases and goals; runs nothing and needs no GPU
  --resume          go on behind the rows that FILE has; a kernel that breaks the device or does
                    not return ends in such a start
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paperlab
import torch
from paperlab import cca, mudd, ops, regular_language  # noqa: F401, named by cases
from support.cuda_case import Case, Function, Row, Tensors, judged
from support.cuda_gate import differing, gated, tensors_of
from support.cuda_machine import Clocks, age, described, give_python_headers
from support.cuda_notices import Notices
from support.cuda_row_cases import Cases
from support.cuda_timing import Contestant, Measured, Roofs, Timer, band, measured_roofs, reason_of
from support.measured import NOISY_PERCENT, spread_percent, write_result

SETS = 3  # of inputs, so that no cache serves them
# Of a call of ours for the first time, and of a case's timed part: then it counts as hanging.
FIRST_SECONDS, TIMED_SECONDS = 12.0, 40.0
NOTE = (
    "torch {torch}, CUDA {cuda}, cuDNN {cudnn}, driver {driver}. Medians of CUDA events around "
    "many launches, of a CUDA graph below 500 us; contestants take turns. Roofs, measured in the "
    "same process: copy {copy:.0f} GB/s read and written, product of 8192^3 in bfloat16 "
    "{matmul:.0f} TFLOP/s. Random normal inputs, {sets} sets in turns. The ratio is to the fastest "
    "baseline, which is named; goals name theirs."
)


class Bench:
    def __init__(self, options: argparse.Namespace, words: Sequence[str]) -> None:
        self.out = Path(options.out)
        self.words = list(words)
        self.device = torch.device(options.device)
        self.quick: bool = options.quick
        self.deadline = time.monotonic() - age() + options.seconds
        self.rows: list[Row] = []
        if options.resume and self.out.is_file():
            self.rows = json.loads(self.out.read_text())["rows"]
        self.case: Case | None = None
        self.notices = Notices()
        self.clocks = Clocks(self.device)
        ops.set_backend("kernels")
        self.result = described(self.device, paperlab._core.build_info().commit)
        self.roofs: Roofs = measured_roofs(self.device, self.quick)
        found = {key: self.result.get(key, "none") for key in ("torch", "cuda", "cudnn", "driver")}
        self.result |= {
            "copy_roof_gb_s": self.roofs.copy_gb_s,
            "matmul_roof_tflops": self.roofs.matmul_tflops,
            "note": NOTE.format(
                **found, copy=self.roofs.copy_gb_s, matmul=self.roofs.matmul_tflops, sets=SETS
            ),
        }
        self.write()

    def write(self) -> None:
        write_result(self.out, self.result | {"rows": self.rows, "claims": {}})

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.write()
        show(row)

    def run(self, names: Sequence[str]) -> bool:
        cases = Cases(self.device, self.quick, paperlab)
        known = len(self.rows)
        for number, case in enumerate(each for name in names for each in cases.names[name]()):
            if number < known:
                continue
            self.case = case
            if time.monotonic() > self.deadline:
                self.add(left_out(case, "no time was left"))
                continue
            self.add(self.row(case))
            if self.is_lost():
                self.restart()
        self.clocks.stop()
        return not any("wrong" in row for row in self.rows)

    def row(self, case: Case) -> Row:
        began = time.monotonic()
        row = row_of(case)
        try:
            row |= self.measured(case)
        except torch.cuda.OutOfMemoryError as error:
            row |= left_out(case, reason_of(error))
        except Exception as error:  # the next case may work
            row |= left_out(case, "failed") | {"wrong": reason_of(error)}
        row |= self.clocks.since(began)
        return row | {"seconds": round(time.monotonic() - began, 2)}

    # --- kernels that break the device ---------------------------------------------------------

    def is_lost(self) -> bool:
        """Whether a kernel has broken the context: nothing else runs in this process then."""
        if self.device.type == "cpu":
            return False
        try:
            torch.ones(1, device=self.device).item()
        except RuntimeError:
            return True
        return False

    def restart(self) -> None:
        """The same command in the place of this process, behind the rows that are there."""
        self.clocks.stop()
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, __file__, *self.words, "--resume"])

    @contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """For kernels that may never return: the process is then replaced."""

        def lost() -> None:
            assert self.case is not None
            text = f"did not return in {seconds:.0f} s"
            self.add(left_out(self.case, "hangs") | {"wrong": text})
            self.restart()

        timer = threading.Timer(seconds, lost)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    # --- a case --------------------------------------------------------------------------------

    def measured(self, case: Case) -> Row:
        gate = (case.gate or case.make)(SETS)
        with self.watched(FIRST_SECONDS):
            ours, again = (
                tensors_of(case.thunk(case.gate_ours or case.ours, gate)()) for _ in range(2)
            )
            self.wait()
        if missing := [
            self.notices.operators[op] for op in case.ops if op in self.notices.operators
        ]:
            return left_out(case, "left to LibTorch") | {"why": "; ".join(missing)}
        row: Row = {"same_bits": all(map(torch.equal, ours, again))}
        row |= gated(case, ours, gate, case.baselines)
        del ours, again, gate
        if "wrong" in row:
            return row | left_out(case, "wrong, not timed")
        inputs = [case.make(seed) for seed in range(SETS)]
        baselines, failures = self.working(case, case.baselines, inputs[0])
        variants, other = self.working(case, case.variants, inputs[0], is_prepared=True)
        row["chosen"] = self.chosen(case, baselines, inputs[0])
        row["not_available"] = failures | other | misnamed(row["chosen"])
        baselines = {k: f for k, f in baselines.items() if k not in row["not_available"]}
        if case.has_memory and self.device.type == "cuda":
            row |= self.memory(case, baselines, inputs[0])
        with self.watched(TIMED_SECONDS):
            times = self.times(case, baselines, variants, inputs)
        row["not_available"] |= times.failures
        row |= summary(case, times, self.roofs)
        row |= judged(row, case.goals)
        return {key: value for key, value in row.items() if value != {}}

    def working(
        self,
        case: Case,
        given: dict[str, Function],
        inputs: Tensors,
        *,
        is_prepared: bool = False,
    ) -> tuple[dict[str, Function], dict[str, str]]:
        """Those that run here, and why others don't. What the gate could not see is compared with
        ours for these inputs."""
        works, failures, results = {}, {}, {}
        unseen = case.compiled if case.gate is not None else frozenset[str]()
        for name, function in given.items():
            heard = len(self.notices.others)
            try:
                thunk = function(*inputs) if is_prepared else case.thunk(function, inputs)
                result = thunk()
                self.wait()
                works[name] = function
                if name in unseen:
                    results[name] = result
                del thunk, result
            except Exception as error:  # a compiler or a backend may fail in any way
                said = [reason_of(error), *self.notices.others[heard:]]  # SDPA warns of its reasons
                failures[name] = "; ".join(dict.fromkeys(said))[:600]
                if self.is_lost():
                    raise
        if results:
            failures |= differing(case, case.thunk(case.ours, inputs)(), results)
        return {name: f for name, f in works.items() if name not in failures}, failures

    def chosen(self, case: Case, baselines: dict[str, Function], inputs: Tensors) -> dict[str, str]:
        """What LibTorch says that it runs for a baseline that names its backend."""
        found = {}
        for name, choice in case.chosen.items():
            if name in baselines:
                try:
                    found[name] = choice(*inputs)
                except Exception as error:  # a function that LibTorch keeps to itself
                    found[name] = f"not known: {reason_of(error)}"
        return found

    def memory(self, case: Case, baselines: dict[str, Any], inputs: Tensors) -> Row:
        """MiB beyond what is there before."""
        used = {}
        for name, function in {"ours": case.ours, **baselines}.items():
            thunk = case.thunk(function, inputs)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            thunk()
            used[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        ours = used.pop("ours")
        least = min(used.values(), default=0.0)
        return {"memory_mib": ours, "baseline_memory_mib": least, "baselines_memory_mib": used}

    def times(
        self,
        case: Case,
        baselines: dict[str, Function],
        variants: dict[str, Function],
        inputs: list[Tensors],
    ) -> Measured:
        def contestant(name: str, function: Function, make: Callable[..., Any]) -> Contestant:
            thunks = [make(function, each) for each in inputs]
            return Contestant(thunks, case.steps if name == "ours" else 1, case.as_graph(name))

        contestants = {
            name: contestant(name, function, case.thunk)
            for name, function in {"ours": case.ours, **baselines}.items()
        }
        for name, factory in variants.items():
            contestants[name] = contestant(name, factory, lambda make, each: make(*each))
        return Timer(self.device, self.quick).measure(contestants, self.deadline)


def misnamed(chosen: dict[str, str]) -> dict[str, str]:
    """The baselines of which LibTorch says that they run another backend than they are named by."""
    return {
        name: f"LibTorch runs {backend}"
        for name, backend in chosen.items()
        if not backend.startswith("not known") and name != f"SDPA {backend}"
    }


def row_of(case: Case) -> Row:
    return {"table": case.table, "case": case.name} | case.facts


def left_out(case: Case, why: str) -> Row:
    """A row without times; its goals are not judged."""
    row = row_of(case) | {"case": f"{case.name}: {why}"}
    return row | judged({"not_timed": why}, case.goals)


def summary(case: Case, measured: Measured, roofs: Roofs) -> Row:
    """A row's times, ratios and rates."""
    medians = {name: statistics.median(each) for name, each in measured.times.items()}
    bands = {name: band(each) for name, each in measured.times.items()}
    us = medians["ours"]
    row: Row = {
        "ours_us": us,
        "ours_band_us": bands["ours"],
        "repetitions": len(measured.times["ours"]),
        "graphs": measured.graphs,
    }
    baselines = {name: each for name, each in medians.items() if name in case.baselines}
    if baselines:
        best = min(baselines, key=lambda name: baselines[name])
        row |= {
            "baseline_us": baselines[best],
            "baseline_band_us": bands[best],
            "baseline_backend": best,
            "ratio": baselines[best] / us,
            "baselines_us": baselines,
            "baselines_bands_us": {name: bands[name] for name in baselines},
        }
        if "ideal_ratio" in case.facts:
            like = baselines.get("own dense", baselines[best])
            row["share_of_ideal"] = like / us / case.facts["ideal_ratio"]
    others = {name: each for name, each in medians.items() if name in case.variants}
    row["variants_us"] = others
    row["variants"] = {name: f"{each:.1f} us" for name, each in others.items()}
    if case.flops:
        row["tflops"] = case.flops / us * 1e-6
        row["share_of_matmul_roof"] = row["tflops"] / roofs.matmul_tflops
    elif case.bytes:
        row["gb_s"] = case.bytes / us * 1e-3
        row["share_of_copy_roof"] = row["gb_s"] / roofs.copy_gb_s
    row["spread_percent"] = max(spread_percent(each) for each in measured.times.values())
    row["noisy"] = row["spread_percent"] > NOISY_PERCENT
    return row


def show(row: Row) -> None:
    words = [f"{row['table']}: {row['case']}"]
    if "ours_us" in row:
        words.append(f"{row['ours_us']:.1f} us")
    for name, us in row.get("baselines_us", {}).items():
        words.append(f"{us / row['ours_us']:.2f}x {name} ({us:.1f} us)")
    words += [f"{name} {text}" for name, text in row.get("variants", {}).items()]
    for key, unit in (("tflops", "TFLOP/s"), ("gb_s", "GB/s")):
        words += [f"{row[key]:.0f} {unit}"] if key in row else []
    for key in ("share_of_matmul_roof", "share_of_copy_roof"):
        words += [f"{100 * row[key]:.0f} % of the roof"] if key in row else []
    words += [f"WRONG: {row['wrong']}"] if "wrong" in row else []
    words += ["other bits in another run"] if row.get("same_bits") is False else []
    words += ["noisy"] if row.get("noisy") else []
    words += [f"[{goal}: {word}]" for goal, word in row.get("goals", {}).items()]
    words += [f"without {name}: {why}" for name, why in row.get("not_available", {}).items()]
    print(", ".join(words), flush=True)


def show_goals(rows: Sequence[Row]) -> None:
    """One line for each stage."""
    verdicts = [each for row in rows for each in row.get("judged", [])]
    for stage in ("A", "stretch"):
        of = [each["holds"] for each in verdicts if each["stage"] == stage]
        counts = f"{of.count(True)} met, {of.count(False)} missed, {of.count(None)} not judged"
        print(f"goals, {stage}: {counts}", flush=True)


def list_cases(names: Sequence[str]) -> None:
    cases = Cases(torch.device("cuda"), quick=False)
    for name in names:
        for case in cases.names[name]():
            print(f"{name}: {case.table}: {case.name}; beside {', '.join(case.baselines)}")
            for goal in case.goals:
                print(f"    {goal.text()}")


def main(words: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True)
    parser.add_argument("--roofs", help="not used here: a program that measures the CPU")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(words)
    known = list(Cases(torch.device("cpu"), True).names)
    names = [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown {unknown[0]!r}; one of {', '.join(known)} is required")
    if options.list:
        list_cases(names or known)
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("cuda_bench: needs an NVIDIA GPU, and this machine has none", file=sys.stderr)
        return 1
    warnings.simplefilter("ignore", category=FutureWarning)
    give_python_headers()
    bench = Bench(options, words)
    is_right = bench.run(names or known)
    show_goals(bench.rows)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
