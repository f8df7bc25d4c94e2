"""cuda_bench.py --out FILE [--only NAME,...] [--seconds S] [--device DEVICE] [--quick]

The CUDA kernels beside LibTorch's operations (SDPA by backend, cuBLAS, eager code, torch.compile),
with CUDA events, in turns, and as shares of the roofs of a copy and a product that are measured
first. Results are compared with float64 before anything is timed. Rows are written as they come.
Exit code 1 if a result is wrong, or without a GPU.
  --only NAME,...   gemm, depth_aggregate, attention, core_context, linear_cross_entropy, rows
  --seconds S       ends after so many seconds with what it has (default 500)
  --device DEVICE   cuda (default), or cpu: a test of this file
  --quick           tiny shapes, few repetitions
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from paperlab import ops
from support.cuda_cases import Case, Cases, Tensors
from support.cuda_timing import Contestant, Roofs, Timer, measured_roofs
from support.measured import NOISY_PERCENT, Row, spread_percent, write_result

NO_KERNEL = re.compile(r"paperlab::(\w+): CUDA tensors are left to LibTorch")
SETS = 3  # of inputs, so that no cache serves them
NOTE = (
    "torch {torch}, CUDA {cuda}. Medians of CUDA events around many launches, of a graph below 20 "
    "us; contestants take turns. Roofs, measured in the same process: copy {copy:.0f} GB/s read "
    "and written, product of 8192^3 in bfloat16 {matmul:.0f} TFLOP/s. Random normal inputs, {sets} "
    "sets in turns. The ratio is to the fastest baseline, which is named."
)


def commit() -> str:
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


def describe(device: torch.device) -> Row:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "machine": "-".join((name or "cpu").lower().split()),
        "cpu": name or "cpu",
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
    }


def tensors_of(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def in_float64(inputs: Tensors) -> list[torch.Tensor]:
    return [x.double() if x.is_floating_point() else x for x in inputs]


def error_of(result: Any, exact: Any) -> float:
    """The largest relative error, by norm, of the tensors of a result; NaN counts as infinite."""
    errors = []
    for x, y in zip(tensors_of(result), tensors_of(exact), strict=True):
        size = float(y.double().norm())
        error = float((x.double() - y).norm()) / (size or 1.0)
        errors.append(error if error == error else float("inf"))
    return max(errors)


@contextmanager
def native_stderr() -> Iterator[list[str]]:
    """What is written to stderr meanwhile, by any language, as the one text of the list."""
    texts: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield texts
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            sys.stderr.write(texts[0])


def operators_without_kernel(text: str) -> set[str]:
    """Those whose notice is in the text: an operator says so once in a process."""
    return set(NO_KERNEL.findall(text))


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.out = Path(options.out)
        self.device = torch.device(options.device)
        self.quick: bool = options.quick
        self.deadline = time.monotonic() + options.seconds
        self.rows: list[Row] = []
        self.without_kernel: set[str] = set()
        self.result = describe(self.device)
        ops.set_backend("kernels")
        self.roofs: Roofs = measured_roofs(self.device, self.quick)
        self.result |= {
            "copy_roof_gb_s": self.roofs.copy_gb_s,
            "matmul_roof_tflops": self.roofs.matmul_tflops,
            "note": NOTE.format(
                torch=torch.__version__,
                cuda=torch.version.cuda,
                copy=self.roofs.copy_gb_s,
                matmul=self.roofs.matmul_tflops,
                sets=SETS,
            ),
        }
        self.write()

    def write(self) -> None:
        write_result(self.out, self.result | {"rows": self.rows, "claims": {}})

    def run(self, names: list[str]) -> bool:
        cases = Cases(self.device, self.quick)
        for name in names or list(cases.names):
            for case in cases.names[name]():
                if time.monotonic() > self.deadline:
                    print(f"{name}: no time was left for {case.name}", flush=True)
                    break
                self.rows.append(self.row(case))
                self.write()
                show(self.rows[-1])
        return not any("wrong" in row for row in self.rows)

    def row(self, case: Case) -> Row:
        row: Row = {"table": case.table, "case": case.name, "target": case.target}
        row |= {key: value for key, value in case.facts.items() if value is not None}
        try:
            return row | self.measured(case)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return row | {"case": f"{case.name}: out of memory"}
        except Exception as error:  # the next case may work
            text = str(error).split("\n", 1)[0][:200]
            return row | {"case": f"{case.name}: failed", "wrong": text or type(error).__name__}

    def measured(self, case: Case) -> Row:
        gate = (case.gate or case.make)(SETS)
        with native_stderr() as texts:
            ours = tensors_of(case.ours(*gate))
        self.without_kernel |= operators_without_kernel(texts[0])
        if self.without_kernel.intersection(case.ops):
            return {"case": f"{case.name}: no kernel of ours yet"}
        baselines, failures = self.working(case, gate)
        row: Row = {"not_available": failures} if failures else {}
        exact = case.definition(*in_float64(gate))
        row["error"] = error_of(ours, exact)
        if not case.facts.get("is_other_function"):
            errors = {name: error_of(f(*gate), exact) for name, f in baselines.items()}
            row["baseline_errors"] = errors
            bound = 2.0 * min(errors.values(), default=0.0) + case.least_error
        else:
            bound = 0.02  # of another function there is no baseline: bfloat16's rounding
        del exact
        if not row["error"] <= bound:
            return row | {
                "case": f"{case.name}: wrong, not timed",
                "wrong": f"an error of {row['error']:.3g}, {bound:.3g} is the bound",
            }
        again = tensors_of(case.ours(*gate))
        row["same_bits"] = all(map(torch.equal, ours, again))
        del ours, again, gate
        inputs = [case.make(seed) for seed in range(SETS)]
        if case.has_memory and self.device.type == "cuda":
            row |= self.memory(case, baselines, inputs[0])
        return row | self.timed(case, baselines, inputs)

    def working(self, case: Case, inputs: Tensors) -> tuple[dict[str, Any], dict[str, str]]:
        """The baselines that this machine has, and why others are missing."""
        baselines, failures = {}, {}
        for name, function in case.baselines.items():
            try:
                function(*inputs)
                baselines[name] = function
            except Exception as error:  # a compiler or a backend may fail in any way
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    torch.cuda.empty_cache()
                failures[name] = str(error).split("\n", 1)[0][:120]
        return baselines, failures

    def memory(self, case: Case, baselines: dict[str, Any], inputs: Tensors) -> Row:
        """MiB beyond what is there before, of ours and of the most frugal baseline."""
        used = {}
        for name, function in {"ours": case.ours, **baselines}.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function(*inputs)
            used[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return {
            "memory_mib": used.pop("ours"),
            "baseline_memory_mib": min(used.values(), default=0),
        }

    def timed(self, case: Case, baselines: dict[str, Any], inputs: list[Tensors]) -> Row:
        def contestant(function: Any) -> Contestant:
            return lambda i: function(*inputs[i])

        timer = Timer(self.device, SETS, self.quick)
        contestants = {"ours": contestant(case.ours)}
        contestants |= {name: contestant(function) for name, function in baselines.items()}
        times = timer.measure(contestants, self.deadline)
        medians = {name: float(torch.tensor(each).median()) for name, each in times.items()}
        us = medians.pop("ours")
        row: Row = {"ours_us": us, "repetitions": len(times["ours"])}
        if medians:
            best = min(medians, key=lambda name: medians[name])
            row |= {
                "baseline_us": medians[best],
                "baseline_backend": best,
                "ratio": medians[best] / us,
                "baselines_us": medians,
            }
        if case.flops:
            row["tflops"] = case.flops / us * 1e-6
            row["share_of_matmul_roof"] = row["tflops"] / self.roofs.matmul_tflops
        else:
            row["gb_s"] = case.bytes / us * 1e-3
            row["share_of_copy_roof"] = row["gb_s"] / self.roofs.copy_gb_s
        row["spread_percent"] = max(spread_percent(each) for each in times.values())
        row["noisy"] = row["spread_percent"] > NOISY_PERCENT
        if case.target is not None and "ratio" in row:
            row["missed"] = row["ratio"] < case.target
        return row


def show(row: Row) -> None:
    words = [f"{row['table']}: {row['case']}"]
    if "ours_us" in row:
        words.append(f"{row['ours_us']:.1f} us")
    if "ratio" in row:
        words.append(f"{row['ratio']:.2f}x {row['baseline_backend']} ({row['baseline_us']:.1f} us)")
    for key, unit in (("tflops", "TFLOP/s"), ("gb_s", "GB/s")):
        words += [f"{row[key]:.0f} {unit}"] if key in row else []
    for key in ("share_of_matmul_roof", "share_of_copy_roof"):
        words += [f"{100 * row[key]:.0f} % of the roof"] if key in row else []
    words += [f"WRONG: {row['wrong']}"] if "wrong" in row else []
    words += ["other bits in another run"] if row.get("same_bits") is False else []
    words += ["noisy"] if row.get("noisy") else []
    words += ["MISSED"] if row.get("missed") else []
    print(", ".join(words), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True)
    parser.add_argument("--roofs", help="not used here: a program that measures the CPU")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("cuda_bench: needs an NVIDIA GPU, and this machine has none", file=sys.stderr)
        return 1
    names = [name for name in options.only.split(",") if name]
    known = list(Cases(torch.device("cpu"), True).names)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown {unknown[0]!r}; one of {', '.join(known)} is required")
    return 0 if Bench(options).run(names) else 1


if __name__ == "__main__":
    sys.exit(main())
