"""Runs the parts of gpu-check, each within its time: run_gpu_parts.py --out DIR [options].

After each part DIR/gpu-check.json holds all that is known so far, whole at any moment, and
DIR/cuda.json the rows of the benchmarks. A part that outlasts its time, or for which none is left,
is stopped or left out and said so. Exit code 0 if every required part passed, else 1.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import join_gpu_check
from sources import ROOT

LIMIT = 540.0
# Of a part: less is not begun. Of the whole: kept for stopping and writing.
LEAST_SECONDS, RESERVE_SECONDS = 3.0, 6.0
SMALL_TESTS = "Gpu*:*/Gpu*:-*SeveralChunks*:*Large*:*Long*:*ManySteps*:*Repeated*:*EveryDType*"
# Attention's copies by tensor maps are nobody's writes for racecheck, and reads by wgmma are not
# seen: what it finds there a person has to read.
RACECHECK_TESTS = f"{SMALL_TESTS}:*GpuAttention*"
RACECHECK_ATTENTION = "*GpuAttention*:-*Large*:*Long*:*Ring*:*Repeated*"
# What is measured, in the order of its worth if time is short, with seconds for each.
BENCHMARKS = {
    "depth_aggregate": 30,
    "core_context": 46,
    "attention": 28,
    "one_layer": 28,
    "linear_cross_entropy": 18,
    "rows": 10,
    "gemm": 8,
}
# The tests of a program, shared out among as many processes; "$@" is one of them.
SHARDS = 8
SHARDED = """
children=()
for ((i = 0; i < GTEST_TOTAL_SHARDS; i++)); do
  GTEST_SHARD_INDEX=$i "$@" &
  children+=($!)
done
status=0
for child in "${children[@]}"; do
  wait "$child" || status=$?
done
exit "$status"
"""
GPU_SUITE = re.compile(r"^TEST(_F|_P)?\(Gpu", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """One command. reads: what join_gpu_check.py makes of its log."""

    name: str
    seconds: float
    command: tuple[str, ...]
    reads: str
    required: bool = True
    stops: bool = False  # the next ones need it
    missing: str = ""  # why it cannot run here
    beside: bool = False  # runs beside the next ones until the first benchmark


def plan(tree: Path, folder: Path, python: str, jobs: int) -> list[Part]:
    """All parts in their order."""
    warm = ("nice", "-n", "10", python, str(ROOT / "bench/cuda_warm.py"))
    parts = [
        Part("warm", LIMIT, warm, "", required=False, beside=True),
        Part(
            "build",
            270,
            ("ninja", "-C", str(tree), "-j", str(jobs), "paperlab_run", *test_programs()),
            "",
            stops=True,
        ),
        Part("machine", 15, (str(ROOT / "paperlab"), "doctor", "--json"), "machine", False),
        Part(
            "tests",
            60,
            (
                *("ctest", "--test-dir", str(tree), "-L", "gpu", "--no-tests=error"),
                *("-j", "8", "--output-on-failure"),
            ),
            "ctest",
        ),
    ]
    if has_gpu_marker():
        parts.append(python_tests(tree, python))
    # A first look at everything, then the slow tools, then what else time allows.
    if sanitizer := find_sanitizer():
        for name, seconds, filtered in (
            ("memcheck", 40, SMALL_TESTS),
            ("racecheck", 30, RACECHECK_TESTS),
            ("racecheck_attention", 10, RACECHECK_ATTENTION),
        ):
            tool = name.partition("_")[0]
            shards = ("env", f"GTEST_TOTAL_SHARDS={SHARDS}", "bash", "-c", SHARDED, "shards")
            watched = (*shards, sanitizer, "--tool", tool, "--error-exitcode", "9")
            tests = (str(tree / "bin/kernels_tests"), f"--gtest_filter={filtered}")
            is_advice = name == "racecheck_attention"
            parts.append(Part(name, seconds, (*watched, *tests), "sanitizer", not is_advice))
    for name, seconds in BENCHMARKS.items():
        out = folder / f"{name}.json"
        bench = (python, str(ROOT / "bench/cuda_bench.py"), "--only", name, "--out", str(out))
        parts.append(Part(name, seconds, (*bench, "--seconds", str(seconds - 4)), "bench", False))
    return parts


def python_tests(tree: Path, python: str) -> Part:
    """The operators first, where a notice that a kernel was not taken is seen; then whole models;
    last what a device might not survive."""
    files = [f"tests/python/gpu_{name}_test.py" for name in ("ops", "calls", "models", "values")]
    # The settings' pythonpath, of another build, would come before PYTHONPATH.
    package = ("-o", f"pythonpath={tree / 'python'}")
    pytest = (python, "-m", "pytest", "-v", "--tb=short", "-m", "gpu", "-p", "no:cacheprovider")
    needed = ("pytest", "numpy", "torch")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    why = f"this Python has no {', '.join(missing)}" if missing else ""
    return Part("python_tests", 90, (*pytest, *package, *files), "pytest", missing=why)


def test_programs() -> list[str]:
    """Those that have tests for a GPU: one for each folder of tests."""
    return sorted(
        {
            f"{path.parent.name}_tests"
            for path in (ROOT / "tests").rglob("*_test.cpp")
            if GPU_SUITE.search(path.read_text(encoding="utf-8"))
        }
    )


def has_gpu_marker() -> bool:
    """Whether there are Python tests that need a GPU."""
    try:
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        markers = settings["tool"]["pytest"]["ini_options"]["markers"]
    except (OSError, KeyError):
        return False
    return any(marker.startswith("gpu:") for marker in markers)


def find_sanitizer() -> str | None:
    usual = "/usr/local/cuda/bin/compute-sanitizer"
    return shutil.which("compute-sanitizer") or (usual if os.access(usual, os.X_OK) else None)


def library_folders() -> list[str]:
    """Where the wheel of torch and the toolkit keep their libraries."""
    spec = importlib.util.find_spec("torch")
    folders = (
        sorted(Path(spec.origin).parents[1].glob("nvidia/*/lib")) if spec and spec.origin else []
    )
    return [str(folder) for folder in (*folders, Path("/usr/local/cuda/lib64")) if folder.is_dir()]


def write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Run:
    def __init__(self, parts: Sequence[Part], out: Path, folder: Path, limit: float, began: float):
        self.parts = parts
        self.out = out
        self.folder = folder
        self.limit = limit
        self.began = began
        self.child: subprocess.Popen[bytes] | None = None
        self.beside: tuple[Part, subprocess.Popen[bytes]] | None = None
        self.interrupted = False
        planned = [
            {"name": p.name, "budget_s": p.seconds, "reads": p.reads, "required": p.required}
            for p in parts
        ]
        self.write(folder / "plan.json", {"limit_s": limit, "parts": planned})

    def write(self, path: Path, value: object) -> None:
        write_whole(path, json.dumps(value, indent=2) + "\n")

    def left(self) -> float:
        return self.limit - RESERVE_SECONDS - (time.time() - self.began)

    def report(self) -> str:
        """Writes what is known and returns the outcome."""
        joined = join_gpu_check.join(self.folder) | {"seconds": round(time.time() - self.began, 1)}
        self.write(self.out / "gpu-check.json", joined)
        if (rows := join_gpu_check.bench_file(joined)) is not None:
            self.write(self.out / "cuda.json", rows)
        logs = [
            f"== {p.name}\n{self.log(p).read_text(errors='replace')}"
            for p in self.parts
            if self.log(p).is_file()
        ]
        write_whole(self.out / "gpu-check.log", "".join(logs))
        return str(joined["outcome"])

    def log(self, part: Part) -> Path:
        return self.folder / f"{part.name}.log"

    def note(self, part: Part, outcome: str, **facts: object) -> None:
        self.write(self.folder / f"{part.name}.part.json", {"outcome": outcome, **facts})

    def run(self) -> str:
        outcome = self.report()
        stopped_by = ""
        for part in self.parts:
            seconds = min(part.seconds, self.left())
            if self.interrupted or stopped_by or part.missing or seconds < LEAST_SECONDS:
                reason = "interrupted" if self.interrupted else stopped_by or part.missing
                reason = reason or "no time was left"
                self.note(part, "not run", why=reason)
                continue
            if part.beside:
                self.start_beside(part)
                continue
            if part.reads == "bench":
                self.end_beside()
            result = self.run_part(part, seconds)
            outcome = self.report()
            if part.stops and result != "passed":
                stopped_by = f"{part.name} {result}"
        self.end_beside()
        return self.report() or outcome

    def start_beside(self, part: Part) -> None:
        """What it leaves saves the next ones time; nothing waits for it."""
        with self.log(part).open("wb") as log:
            try:
                self.beside = (part, start(part.command, log.fileno()))
            except OSError as error:
                log.write(f"{error}\n".encode())
                self.note(part, "failed", status=127)
                return
        self.note(part, "running")

    def end_beside(self) -> None:
        if self.beside is None:
            return
        part, child = self.beside
        self.beside = None
        status = child.poll()
        if status is None:
            stop(child)
        result = "stopped" if status is None else "passed" if status == 0 else "failed"
        self.note(part, result, **({"status": status} if status else {}))

    def run_part(self, part: Part, seconds: float) -> str:
        self.note(part, "running")
        self.report()
        print(f"gpu-check: {part.name}, at most {seconds:.0f} s", flush=True)
        began = time.time()
        with self.log(part).open("wb") as log:
            try:
                status = self.wait(part.command, log.fileno(), seconds)
            except OSError as error:
                log.write(f"{error}\n".encode())
                status = 127
        result = "timed out" if status is None else "passed" if status == 0 else "failed"
        facts: dict[str, object] = {"seconds": round(time.time() - began, 1)}
        if self.interrupted:
            result = "interrupted"
        elif status not in (0, None):
            facts["status"] = status
        text = self.log(part).read_text(errors="replace")
        if result == "passed" and (why := join_gpu_check.doubt(part.reads, text)):
            result, facts["why"] = "failed", why
        self.note(part, result, **facts)
        print(f"gpu-check: {part.name}: {result}, {facts['seconds']} s", flush=True)
        return result

    def wait(self, command: Sequence[str], log: int, seconds: float) -> int | None:
        """The exit code, or nothing if the command was stopped after its time."""
        self.child = start(command, log)
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            stop(self.child)
            return None
        finally:
            self.child = None

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupted = True
        if self.child is not None:
            os.killpg(self.child.pid, signal.SIGTERM)


def start(command: Sequence[str], log: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=ROOT,
        start_new_session=True,
    )


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ends the command and what it has started: politely, then at once."""
    for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def with_signals(run: Run, body: Callable[[], str]) -> str:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, run.interrupt)
    return body()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tree", type=Path, default=ROOT / "build/cuda")
    parser.add_argument("--limit", type=float, default=LIMIT)
    parser.add_argument("--began", type=float, default=0.0, help="when the clock started, in s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and run nothing")
    parser.add_argument("--parts", type=Path, help="a list of other parts, for tests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = plan(options.tree, folder, sys.executable, options.jobs)
        if options.parts:
            parts = [
                Part(
                    **{**part, "command": tuple(w.replace("PARTS", name) for w in part["command"])}
                )
                for part in json.loads(options.parts.read_text(encoding="utf-8"))
            ]
        if options.dry_run:
            for part in parts:
                print(f"{part.seconds:4.0f} s  {part.name}")
            return 0
        options.out.mkdir(parents=True, exist_ok=True)
        paths = [*library_folders(), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        os.environ["LD_LIBRARY_PATH"] = ":".join(paths)
        python_path = [str(options.tree / "python"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = ":".join(filter(None, python_path))
        os.environ["PAPERLAB_BUILD_DIR"] = str(options.tree)
        run = Run(parts, options.out, folder, options.limit, options.began or time.time())
        outcome = with_signals(run, run.run)
    return 0 if outcome == "passed" else 1


if __name__ == "__main__":
    sys.exit(main())
