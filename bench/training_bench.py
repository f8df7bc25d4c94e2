"""training_bench.py --out FILE --roofs PROGRAM [--machine NAME] [--steps N] [--only TEXT] [--quick]

Training a byte model (8 layers, width 256, 4 heads, feed-forward 688, float32) by train.fit beside
the same model from LibTorch's operators, eager and through torch.compile: the same initial values,
batches, AdamW and clipping, step by step in turns; then where a step's time goes, and the products
of a step by three libraries. Prints tables and writes them as JSON. Exit code 1 if a loss or a
product is wrong.
  --steps N     that each contestant does (default 20; the first two are warm-up)
  --only TEXT   tables whose name contains TEXT
  --quick       a tiny model, and no compiler: a test of this file
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from support import gemm_providers
from support.gemm_providers import Product
from support.measured import NOISY_PERCENT, Row, machine_and_roofs, threads_text, write_result
from support.training_case import (
    HAS_DIRECTION,
    Contestant,
    Shape,
    Training,
    loss_difference,
    measure_training,
)

SHAPES = (Shape(256, 16), Shape(1024, 4))
QUICK_SHAPES = (Shape(16, 2, layers=2, width=32, heads=2, ffn=48),)
MOST_LOSS_DIFFERENCE = 1e-4

STEPS = "training step, float32"
COMPILED = "training step beside torch.compile, float32"
PROVIDERS = "products of a training step by library, float32"

NOTE = (
    "torch {torch}. Ratios, tokens/s, GFLOP/s and shares of the roof are of CPU time, profiles of "
    "wall time. FLOPs: three times the products of a forward pass, attention's of the keys that "
    "are seen. Roof: {roof:.0f} GFLOP/s of one thread. Of eager code the head counts as a matrix "
    "product, elementwise products of the rotation and of SwiGLU as the rest. Libraries: the "
    "baseline is MKL (torch.mm), the other one {openblas}."
)


def profile_table(shape: Shape) -> str:
    tokens = f"{shape.batch_size} rows of {shape.length} tokens"
    return f"where a step's time goes, {tokens}, 1 thread"


def shape_text(shape: Shape) -> str:
    return f"T {shape.length} x {shape.batch_size}"


def in_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What the function returns in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.only: str = options.only
        self.steps: int = 3 if options.quick else options.steps
        self.rounds = 1 if options.quick else 11
        self.compiler = "aot_eager" if options.quick else "inductor"
        self.shapes = QUICK_SHAPES if options.quick else SHAPES
        self.result = machine_and_roofs(options.roofs, options.machine)
        self.threads = [int(n) for n in self.result["read_roofs_gb_s"]][: 1 if options.quick else 2]
        self.roof: float = self.result["float32_roof_gflops"]
        self.openblas = "not measured"
        self.rows: list[Row] = []

    def run(self) -> None:
        for shape in self.shapes:
            for threads in self.threads:
                self.training_rows(shape, threads)
        for threads in self.threads:
            self.provider_rows(threads)

    def add(self, row: Row) -> None:
        if self.only in row["table"]:
            self.rows.append(row)
            show(row)

    def training_rows(self, shape: Shape, threads: int) -> None:
        compiler = self.compiler if self.only in COMPILED else ""
        profiles = threads == 1 and self.only in profile_table(shape)
        if not (compiler or profiles or self.only in STEPS):
            return
        training = Training(shape, threads, self.steps, compiler, profiles)
        found = in_process(measure_training, training)
        ours, eager = found["ours"], found["eager"]
        target = 1.3 if shape.length >= 1024 else 1.15
        self.add(self.step_row(STEPS, training, target, ours, eager, eager))
        if "compiled" in found:
            self.add(self.step_row(COMPILED, training, 1.05, ours, found["compiled"], eager))
        if profiles:
            for row in self.profile_rows(shape, ours, eager):
                self.add(row)

    def step_row(
        self,
        table: str,
        training: Training,
        target: float,
        ours: Contestant,
        baseline: Contestant,
        eager: Contestant,
    ) -> Row:
        row: Row = {
            "table": table,
            "case": f"{shape_text(training.shape)}, {threads_text(training.threads)}",
            "threads": training.threads,
            "steps": training.steps,
            "baseline_backend": "eager"
            if baseline is eager
            else f"torch.compile, {training.compiler}",
            "target": target,
        }
        if baseline.failure:
            return row | {"baseline_backend": f"not available: {baseline.failure}"}
        tokens, flops = training.shape.tokens, training.shape.flops()
        for name, contestant in (("ours", ours), ("baseline", baseline)):
            us = contestant.times.cpu_median()
            row[f"{name}_wall_us"] = contestant.times.median()
            row[f"{name}_cpu_us"] = us
            row[f"{name}_tokens_s"] = tokens / us * 1e6
            row[f"{name}_gflops"] = flops / us * 1e-3
        row["ratio"] = row["baseline_cpu_us"] / row["ours_cpu_us"]
        row["wall_ratio"] = row["baseline_wall_us"] / row["ours_wall_us"]
        row["share_of_fma_roof"] = row["ours_gflops"] / self.roof
        row["baseline_share_of_fma_roof"] = row["baseline_gflops"] / self.roof
        row["loss_difference"] = loss_difference(ours, eager)
        row["baseline_loss_difference"] = loss_difference(baseline, eager)
        row["losses"] = ours.losses[: training.steps]
        row["spread_percent"] = max(c.times.cpu_spread_percent() for c in (ours, baseline))
        row["noisy"] = row["spread_percent"] > NOISY_PERCENT
        if not row["loss_difference"] <= MOST_LOSS_DIFFERENCE:
            row["case"] += ": wrong"
            row["wrong"] = f"the losses differ by {row['loss_difference']:.3g}"
        row["missed"] = row["ratio"] < target or "wrong" in row
        return row

    def profile_rows(self, shape: Shape, ours: Contestant, eager: Contestant) -> Iterator[Row]:
        forward = {
            "matrix products": shape.product_flops(),
            "attention": shape.attention_flops(),
        }
        names = dict.fromkeys([*ours.parts, *eager.parts])
        whole, whole_eager = sum(ours.parts.values()), sum(eager.parts.values())
        for name in sorted(names, key=lambda n: -ours.parts.get(n, 0.0)):
            us, eager_us = ours.parts.get(name, 0.0), eager.parts.get(name)
            row: Row = {
                "table": profile_table(shape),
                "case": name,
                "ours_us": us,
                "share": us / whole,
            }
            if eager_us:
                row |= {"baseline_us": eager_us, "baseline_share": eager_us / whole_eager}
                row["ratio"] = eager_us / us if us else None
            part, _, direction = name.partition(", ")
            if part in HAS_DIRECTION and us:
                flops = forward[part] * (1 if direction == "forward" else 2)
                row["gflops"] = flops / us * 1e-3
                row["share_of_fma_roof"] = row["gflops"] / self.roof
            yield row
        yield {
            "table": profile_table(shape),
            "case": "all",
            "ours_us": whole,
            "share": 1.0,
            "baseline_us": whole_eager,
            "baseline_share": 1.0,
            "ratio": whole_eager / whole,
            "gflops": shape.flops() / whole * 1e-3,
            "share_of_fma_roof": shape.flops() / whole * 1e-3 / self.roof,
        }

    def provider_rows(self, threads: int) -> None:
        if self.only not in PROVIDERS:
            return
        gemm_providers.set_environment(threads)
        self.openblas, products = in_process(
            gemm_providers.measure_products, self.shapes[0], threads, self.rounds
        )
        for product in products:
            self.add(self.product_row(product, threads))

    def product_row(self, product: Product, threads: int) -> Row:
        times = {"ours": product.ours, "baseline": product.mkl, "other": product.openblas}
        sizes = f"M {product.m}, N {product.n}, K {product.k}"
        row: Row = {
            "table": PROVIDERS,
            "case": f"{product.name}, {sizes}, {threads_text(threads)}",
            "threads": threads,
            "baseline_backend": "MKL",
            "other": self.openblas,
            "repetitions": len(product.ours.wall),
        }
        if product.wrong:
            return row | {"case": f"{row['case']}: wrong, not timed", "wrong": product.wrong}
        for name, of in times.items():
            row[f"{name}_wall_us"] = of.median()
            row[f"{name}_cpu_us"] = of.cpu_median()
        row["ratio"] = row["baseline_cpu_us"] / row["ours_cpu_us"]
        row["other_ratio"] = row["other_cpu_us"] / row["ours_cpu_us"]
        row["wall_ratio"] = row["baseline_wall_us"] / row["ours_wall_us"]
        row["other_wall_ratio"] = row["other_wall_us"] / row["ours_wall_us"]
        row["gflops"] = product.flops() / row["ours_cpu_us"] * 1e-3
        row["share_of_fma_roof"] = row["gflops"] / self.roof
        row["spread_percent"] = max(of.cpu_spread_percent() for of in times.values())
        row["noisy"] = row["spread_percent"] > NOISY_PERCENT
        return row

    def finished(self) -> Row:
        note = NOTE.format(torch=torch.__version__, roof=self.roof, openblas=self.openblas)
        tables = list(dict.fromkeys(row["table"] for row in self.rows))
        rows = sorted(self.rows, key=lambda row: tables.index(row["table"]))
        return self.result | {"note": note, "rows": rows, "claims": {}}


def show(row: Row) -> None:
    words = [f"{row['table']}: {row['case']},"]
    if "ours_tokens_s" in row:
        words.append(f"{row['ours_tokens_s']:.0f} : {row['baseline_tokens_s']:.0f} tokens/s,")
    if "share" in row:
        words.append(f"{row['ours_us'] / 1e3:.1f} ms, {100 * row['share']:.1f} %,")
        if "baseline_us" in row:
            words.append(f"eager {row['baseline_us'] / 1e3:.1f} ms,")
    words += [f"{row['ratio']:.2f}x"] if row.get("ratio") else []
    words += [f"of >= {row['target']}x"] if "target" in row else []
    words += [f"(wall {row['wall_ratio']:.2f}x)"] if "wall_ratio" in row else []
    words += [f"{row['other_ratio']:.2f}x OpenBLAS"] if "other_ratio" in row else []
    if "share_of_fma_roof" in row:
        words.append(f"{100 * row['share_of_fma_roof']:.0f} % of the roof")
    if "baseline_share_of_fma_roof" in row:
        words.append(f"(baseline {100 * row['baseline_share_of_fma_roof']:.0f} %)")
    if "loss_difference" in row:
        words.append(f"losses differ by {row['loss_difference']:.1e}")
    words += [row["baseline_backend"]] if "not available" in row.get("baseline_backend", "") else []
    words += [f"WRONG: {row['wrong']}"] if "wrong" in row else []
    words += ["noisy"] if row.get("noisy") else []
    words += ["MISSED"] if row.get("missed") else []
    print(" ".join(words), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True)
    parser.add_argument("--roofs", required=True)
    parser.add_argument("--machine", default="")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler misses a GPU
    bench = Bench(options)
    print(f"{bench.result['cpu']}; roof {bench.roof:.0f} GFLOP/s of one thread", flush=True)
    bench.run()
    result = bench.finished()
    print(result["note"])
    write_result(Path(options.out), result)
    return 1 if any("wrong" in row for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
