"""Trains transformers' ViT by the recipe of a request: the other side of the driver `vision`.

    make(requests, cache, notice)   as corpora.py asks for; a folder in CACHE/runs for each request

A folder is named by a hash of the request, the pictures, vit_worker.py and the versions of torch
and transformers; vit_worker.py says what it holds. Runs go side by side, a process each.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Notice = Callable[[str], None]

_COST_OF_START = 1e7  # a process takes some seconds to import transformers
WORKER = Path(__file__).with_name("vit_worker.py")
_NEEDED = ("torch", "transformers")


def make(requests: Sequence[Request], cache: Path | None, notice: Notice) -> list[Path | str]:
    """The folder of each run, or why it cannot be had."""
    data = importlib.import_module("paperlab.data")
    try:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in _NEEDED]
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"{error.name} is not installed") from None
    folder = (data.cache_folder() if cache is None else cache) / "runs"
    jobs: list[Request] = []
    made: list[Path | str] = []
    for request in requests:
        try:
            images = data.load_images(request["images"], cache=cache)
        except (OSError, ValueError) as error:
            made.append(str(error))
            continue
        (of_images,) = images.paths.values()
        key = _hash({
            "request": request,
            "images": images.sha256,
            "program": hashlib.sha256(WORKER.read_bytes()).hexdigest(),
            "versions": versions,
        })  # fmt: skip
        path = folder / f"vit-{key[:24]}"
        made.append(path)
        if not (path / "manifest.json").exists():
            manifest = {
                "recipe": {"sha256": key},
                "made_by": ", ".join(versions),
                "request": request,
            }
            jobs.append({
                "folder": str(path),
                "images": str(of_images),
                "manifest": manifest,
                "cost": _cost(request, images["train"][0].shape),
            })  # fmt: skip
    if jobs:
        folder.mkdir(parents=True, exist_ok=True)
        _run_workers(jobs, notice)
    return made


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _cost(request: Request, shape: Sequence[int]) -> float:
    """About the time of a run, in no unit: pictures by layers, tokens and their width."""
    count, height, width = shape
    pictures = request["max_steps"] * request["batch_size"] or request["epochs"] * count
    tokens = 1 + (height // request["patch"]) * (width // request["patch"])
    return float(pictures * tokens * request["num_layers"] * request["d_model"])


def _run_workers(jobs: list[Request], notice: Notice) -> None:
    """Runs the jobs, longest first, on as many processes of one thread as there are CPUs."""
    cpus = int(os.environ.get("PAPERLAB_NUM_THREADS") or len(os.sched_getaffinity(0)))
    waiting = sorted(jobs, key=_cost_of)
    worth = int(sum(map(_cost_of, jobs)) / _COST_OF_START) + 1
    workers = [_Worker() for _ in range(min(cpus, len(jobs), worth))]
    begin = shown = time.monotonic()
    notice(f"transformers trains {len(jobs)} models by the same recipes")
    try:
        while waiting or any(worker.job for worker in workers):
            for worker in workers:
                worker.check()
                if waiting and not worker.job:
                    worker.start(waiting.pop())
            if time.monotonic() - shown >= 5:
                shown = time.monotonic()
                running = [worker for worker in workers if worker.job]
                left = sum(_cost_of(w.job) * (1 - w.share) for w in running)
                left += sum(map(_cost_of, waiting))
                notice(_progress(1 - left / sum(map(_cost_of, jobs)), shown - begin))
            time.sleep(0.02)
    finally:
        for worker in workers:
            worker.stop()


def _cost_of(job: Request) -> float:
    return float(job["cost"])


def _progress(share: float, elapsed: float) -> str:
    left = f", about {elapsed * (1 - share) / share:.0f} s left" if share > 0.02 else ""
    return f"transformers: {100 * share:.0f} %{left}"


class _Worker:
    """A process that trains jobs one by one. It ends when its stdin does: with its parent."""

    def __init__(self) -> None:
        self.job: Request = {}  # what it does; empty: nothing
        self.share = 0.0
        self._tail: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, job: Request) -> None:
        assert self._process.stdin is not None
        self.job, self.share = job, 0.0
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def check(self) -> None:
        """Raises ValueError if the process has ended."""
        if self._process.poll() is not None:
            self._reader.join(timeout=5)
            why = self._tail[-1] if self._tail else f"exit code {self._process.returncode}"
            raise ValueError(f"training with transformers failed: {why}")

    def stop(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "SHARE":
                self.share = float(rest)
            elif word == "DONE":
                self.job = {}
            elif word:
                self._tail = [*self._tail[-20:], line.strip()]
