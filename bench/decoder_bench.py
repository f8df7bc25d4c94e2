"""decoder_bench.py --out FILE --roofs PROGRAM [--model DIR] [--machine NAME] [--repetitions N]
[--only TEXT] [--quick]

A decoder from a real checkpoint beside transformers (SDPA): prefill, decoding, loading, by type of
number and threads. Prints a table and writes it as JSON. Exit code 1 if a result is wrong.
  --model DIR   a directory of a Llama-like model (default: what `./paperlab fetch smollm2` brings)
  --only TEXT   rows whose "table: case" contains TEXT
  --quick       a small random model, few repetitions: a test of this file
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paperlab
import torch
import transformers
from support.measured import (
    NOISY_PERCENT,
    Row,
    Times,
    machine_and_roofs,
    threads_text,
    write_result,
)

LONG, SHORT, STEPS = 2048, 512, 32


@dataclass
class Case:
    """A row before it is measured. A contestant prepares, untimed, what it then times."""

    table: str
    name: str
    threads: int
    target: float
    ours: Callable[[], Callable[[], object]]
    baseline: Callable[[], Callable[[], object]]
    backend: str
    steps: int = 1  # that one call is
    flops: float = 0.0  # of a step
    num_bytes: float = 0.0  # that a step must read
    share_target: float = 0.0


def timed(prepare: Callable[[], Callable[[], object]], steps: int, into: Times) -> None:
    step = prepare()
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    into.wall.append((time.perf_counter() - wall) / steps * 1e6)
    into.cpu.append((time.process_time() - cpu) / steps * 1e6)


def measured(case: Case, repetitions: int, roofs: Row) -> Row:
    """The row of a case; contestants take turns."""
    torch.set_num_threads(case.threads)
    ours, baseline = Times(), Times()
    for _ in range(repetitions + 1):
        timed(case.ours, case.steps, ours)
        timed(case.baseline, case.steps, baseline)
    for times in (ours, baseline):  # the first is warm-up
        del times.wall[0], times.cpu[0]
    ratio = baseline.median() / ours.median()
    row: Row = {
        "table": case.table,
        "case": f"{case.name}, {threads_text(case.threads)}",
        "threads": case.threads,
        "ours_us": ours.median(),
        "ours_cpu_us": ours.cpu_median(),
        "baseline_us": baseline.median(),
        "baseline_cpu_us": baseline.cpu_median(),
        "baseline_backend": case.backend,
        "ratio": ratio,
        "target": case.target,
        "repetitions": repetitions,
    }
    share = None
    if case.num_bytes:
        row["gb_s"] = case.num_bytes / ours.median() * 1e-3
        row["read_roof_gb_s"] = roofs["read_roofs_gb_s"][str(case.threads)]
        share = row["share_of_read_roof"] = row["gb_s"] / row["read_roof_gb_s"]
    elif case.flops:
        row["gflops"] = case.flops / ours.median() * 1e-3
        row["baseline_gflops"] = case.flops / baseline.median() * 1e-3
        roof = case.threads * roofs["float32_roof_gflops"]
        share = row["share_of_fma_roof"] = row["gflops"] / roof
    if case.share_target:
        row["share_target"] = case.share_target
    row["spread_percent"] = max(ours.spread_percent(), baseline.spread_percent())
    row["noisy"] = row["spread_percent"] > NOISY_PERCENT
    is_share_missed = bool(case.share_target) and (share or 0.0) < case.share_target
    row["missed"] = ratio < case.target or is_share_missed
    return row


class Pair:
    """One checkpoint in both libraries."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.ours = paperlab.nn.load(directory, dtype=dtype)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa"
        )
        self.theirs = loaded.eval()
        generator = torch.Generator().manual_seed(0)
        vocab_size = self.ours.vocab_size
        length = min(LONG, self.ours.max_positions - STEPS - 1)
        self.tokens = torch.randint(0, vocab_size, (1, length), generator=generator)
        config = self.theirs.config
        self.heads_width = config.num_attention_heads * self.ours.tensor("q", 0, 0).shape[0]
        self.num_layers = config.num_hidden_layers
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self.ours.parameters())
        embedding = self.ours.tensor("embed").numel()
        self.matrix_numbers = sum(p.numel() for p in self.ours.parameters() if p.ndim == 2)
        self.matrix_numbers -= embedding  # a tied head is counted where it is used
        self.head_numbers = self.ours.tensor("head").numel()

    def wrong(self) -> str:
        """Why nothing should be timed, or nothing."""
        tokens = self.tokens[:, :SHORT]
        with torch.no_grad():
            ours, theirs = self.ours(tokens), self.theirs(tokens).logits
        error = (ours - theirs).abs().max().item()
        scale = theirs.abs().max().item()
        limit = 1e-3 if ours.dtype == torch.float32 else 0.05 * scale
        return "" if error <= limit else f"logits differ by {error}"

    def flops(self, length: int, num_logits: int) -> float:
        """Of a prefill: products of matrices, and of keys that are seen."""
        seen = self.heads_width * self.num_layers * length * (length + 1) / 2
        return 2.0 * (self.matrix_numbers * length + self.head_numbers * num_logits) + 4.0 * seen

    def prefill(self, length: int, threads: int, last_only: bool, target: float) -> Case:
        tokens = self.tokens[:, :length]
        keep = 1 if last_only else 0
        return Case(
            "prefill, float32" + ("" if last_only else ", logits of every token"),
            f"T {tokens.shape[1]}",
            threads,
            target,
            lambda: lambda: self.ours(tokens, last_only=last_only),
            lambda: lambda: self.theirs(tokens, logits_to_keep=keep),
            "transformers, sdpa",
            flops=self.flops(tokens.shape[1], 1 if last_only else tokens.shape[1]),
        )

    def our_steps(self) -> Callable[[], object]:
        prompt = self.tokens[:, : SHORT - 1]
        cache = self.ours.new_cache(1, SHORT + STEPS)
        self.ours(prompt, cache=cache, last_only=True)
        token = self.tokens[:, :1]

        def run() -> None:
            for _ in range(STEPS):
                self.ours(token, cache=cache, last_only=True).argmax(-1)

        return run

    def their_steps(self) -> Callable[[], object]:
        prompt = self.tokens[:, : SHORT - 1]
        past = self.theirs(prompt, use_cache=True, logits_to_keep=1).past_key_values
        token = self.tokens[:, :1]

        def run() -> None:
            for _ in range(STEPS):
                self.theirs(token, past_key_values=past, use_cache=True).logits.argmax(-1)

        return run


def decode_cases(single: Pair, half: Pair, threads: int) -> Iterator[Case]:
    name = f"after {SHORT} tokens"
    yield Case(
        "decoding, float32", name, threads, 2.5, single.our_steps, single.their_steps,
        "transformers, sdpa", STEPS, num_bytes=single.weight_bytes, share_target=0.65,
    )  # fmt: skip
    yield Case(
        "decoding, bfloat16", name, threads, 1.6, half.our_steps, single.our_steps,
        "ours in float32", STEPS, num_bytes=half.weight_bytes,
    )  # fmt: skip
    yield Case(
        "decoding, bfloat16", name, threads, 1.0, half.our_steps, half.their_steps,
        "transformers, sdpa", STEPS, num_bytes=half.weight_bytes,
    )  # fmt: skip


# Loads twice in a process of its own: each time in microseconds, and the peak of memory over what
# was there, which the first load added.
_LOAD = """
import sys, time, torch, transformers, paperlab
from transformers import AutoModelForCausalLM, LlamaForCausalLM
ours = sys.argv[1] == "ours"
load = paperlab.nn.load if ours else AutoModelForCausalLM.from_pretrained
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")][0]
open("/proc/self/clear_refs", "w").write("5")  # the peak is what is there now
before, times = peak(), []
for _ in range(2):
    begin = time.perf_counter()
    model = load(sys.argv[2])
    times.append((time.perf_counter() - begin) * 1e6)
    if len(times) == 1:
        added = peak() - before
        del model
print(*times, added)
"""


def loading(directory: Path, repetitions: int) -> Iterator[Row]:
    """Rows of loading, and of the memory that it takes."""
    found: dict[str, list[list[float]]] = {"ours": [], "transformers": []}
    for _ in range(repetitions):
        for which, results in found.items():
            words = [sys.executable, "-c", _LOAD, which, str(directory)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            results.append([float(word) for word in done.stdout.split()])
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    medians = {
        which: [statistics.median(c) for c in zip(*r, strict=True)] for which, r in found.items()
    }
    names = ("first in a process", "once more in the same process")
    for i, (name, target) in enumerate(zip(names, (3.0, None), strict=True)):
        ours, theirs = medians["ours"][i], medians["transformers"][i]
        row: Row = {
            "table": "loading, libraries imported, file in the page cache",
            "case": name,
            "ours_us": ours,
            "baseline_us": theirs,
            "baseline_backend": "transformers, from_pretrained",
            "ratio": theirs / ours,
            "repetitions": repetitions,
            "missed": target is not None and theirs / ours < target,
        }
        if target is not None:
            row["target"] = target
        yield row
    share = medians["ours"][2] / size
    theirs = medians["transformers"][2] / size
    yield {
        "table": "memory of loading, as a share of the file",
        "case": f"ours {share:.3f} (at most 1.1), transformers {theirs:.3f}; {size} bytes",
        "peak_bytes": medians["ours"][2],
        "file_bytes": size,
        "missed": share > 1.1,
    }


def cases(directory: Path, threads: list[int]) -> Iterator[Case]:
    single, half = Pair(directory, torch.float32), Pair(directory, torch.bfloat16)
    for pair in (single, half):
        if why := pair.wrong():
            raise SystemExit(f"decoder_bench: {why}")
    for count in threads:
        for length in (SHORT, LONG):
            yield single.prefill(length, count, True, 1.2)
        yield single.prefill(SHORT, count, False, 1.2)
        yield from decode_cases(single, half, count)


def small_model(folder: Path) -> Path:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 300,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    }  # fmt: skip
    paperlab.nn.from_config(config).save_pretrained(folder / "model")
    return folder / "model"


def run(options: argparse.Namespace, directory: Path) -> int:
    result = machine_and_roofs(options.roofs, options.machine)
    result["note"] = (
        f"Baseline: transformers {transformers.__version__} with torch {torch.__version__}. "
        f"Roofs: {result['float32_roof_gflops']:.0f} GFLOP/s of one thread in float32; reading "
        + ", ".join(f"{rate:.1f} GB/s ({n})" for n, rate in result["read_roofs_gb_s"].items())
        + f". Model: {directory.name}. CPU-time ratios are in the JSON."
    )
    print(f"{result['cpu']}; {result['note']}", flush=True)
    result["rows"], result["claims"] = [], {}
    threads = [int(n) for n in result["read_roofs_gb_s"]]
    repetitions = 1 if options.quick else options.repetitions
    with torch.no_grad():
        for case in cases(directory, threads):
            if options.only in f"{case.table}: {case.name}, {threads_text(case.threads)}":
                result["rows"].append(measured(case, repetitions, result))
                show(result["rows"][-1])
    tables = list(dict.fromkeys(row["table"] for row in result["rows"]))
    result["rows"].sort(key=lambda row: tables.index(row["table"]))
    if options.only in "loading":
        for row in loading(directory, repetitions):
            result["rows"].append(row)
            show(row)
    write_result(Path(options.out), result)
    return 0


def show(row: Row) -> None:
    shares = [f"{100 * row[k]:.0f} % of roof" for k in row if k.startswith("share_of")]
    target = f" (>= {row['target']}x)" if "target" in row else ""
    numbers = f"{row['ratio']:.2f}x{target}" if "ratio" in row else ""
    times = f"{row['ours_us'] / 1e3:.2f} ms" if "ours_us" in row else ""
    missed = "MISSED" if row.get("missed") else ""
    noisy = "noisy" if row.get("noisy") else ""
    words = [row["table"] + ":", row["case"] + ",", times, numbers, *shares, noisy, missed]
    print(" ".join(word for word in words if word), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True)
    parser.add_argument("--roofs", required=True)
    parser.add_argument("--model")
    parser.add_argument("--machine", default="")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            directory = small_model(Path(folder))
        else:
            directory = Path(options.model or paperlab.models.fetch("smollm2"))
        return run(options, directory)


if __name__ == "__main__":
    sys.exit(main())
