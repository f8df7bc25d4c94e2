"""The timer, the machine and the baselines of the benchmark of the CUDA kernels."""

import os
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from paperlab import cca

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from support import cuda_baselines, cuda_machine, cuda_timing  # noqa: E402

CPU = torch.device("cpu")

# --- times ---------------------------------------------------------------------------------------


class FakeGpu:
    """torch.cuda's events and graphs: a clock that thunks move, and captures that may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.us, self.captures, self.refuses = 0.0, 0, False
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.us

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: "Event") -> float:
                return (other.at - self.at) / 1e3

        class Graph:
            def replay(self) -> None:
                gpu.us += self.length

        class Capture:
            def __init__(self, graph: Graph) -> None:
                self.graph = graph

            def __enter__(self) -> None:
                self.began = gpu.us

            def __exit__(self, *_error: object) -> None:
                gpu.captures += 1
                self.graph.length = gpu.us - self.began
                if gpu.refuses:
                    raise RuntimeError("operation not permitted when stream is capturing")

        fakes = {"Event": Event, "CUDAGraph": Graph, "graph": Capture}
        fakes |= {"current_stream": lambda: None, "set_stream": lambda _: None}
        fakes |= {"synchronize": lambda: None}
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def contestant(self, us: float, **more: Any) -> cuda_timing.Contestant:
        def thunk() -> None:
            self.us += us

        return cuda_timing.Contestant([thunk] * 3, **more)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def test_times_of_short_and_long_contestants(gpu: FakeGpu) -> None:
    timer = cuda_timing.Timer(torch.device("cuda"))
    found = timer.measure(
        {
            "short": gpu.contestant(10.0),
            "by the host": gpu.contestant(10.0, as_graph=False),
            "always": gpu.contestant(500.0, as_graph=True),
            "long": gpu.contestant(60000.0),
            "of steps": gpu.contestant(40000.0, steps=1000),
        },
        time.monotonic() + 1e6,
    )
    assert found.graphs == ["short", "always"] and gpu.captures == 2
    expected = [10.0, 10.0, 500.0, 60000.0, 40.0]
    assert [each[0] for each in found.times.values()] == pytest.approx(expected)
    # Fifty repetitions, or a second: 17 of 60 ms, 25 of 40 ms.
    assert [len(each) for each in found.times.values()] == [50, 50, 50, 17, 25]


def test_a_graph_that_cannot_be_captured(gpu: FakeGpu) -> None:
    gpu.refuses = True
    timer = cuda_timing.Timer(torch.device("cuda"))
    contestants = {"ours": gpu.contestant(10.0), "graph": gpu.contestant(10.0, as_graph=True)}
    found = timer.measure(contestants, time.monotonic() + 1e6)
    assert found.graphs == [] and list(found.times) == ["ours"]
    assert found.failures == {"graph": "cannot be captured as a CUDA graph"}


def test_late_measurements_end_after_three(gpu: FakeGpu) -> None:
    timer = cuda_timing.Timer(torch.device("cuda"))
    late = timer.measure({"a": gpu.contestant(1e5), "b": gpu.contestant(3e3)}, 0.0).times
    assert len(late["a"]) == 3 and 3 <= len(late["b"]) < 50


# --- the machine ---------------------------------------------------------------------------------


def test_the_gpu_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\n"
        'case "$*" in *-lms*) echo "1980, 3201, 650.5, 60"; exec sleep 60;; '
        '*driver_version*) echo "580.159.04, 1980, 700.00";; *) echo "345, 3201, 75.20, [N/A]";;'
        " esac\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    facts = {"name": "NVIDIA H200", "uuid": "1-2", "multi_processor_count": 132}
    facts |= {"total_memory": 2**37, "L2_cache_size": 60 * 2**20}
    properties = types.SimpleNamespace(**facts)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    device = torch.device("cuda")
    head = cuda_machine.described(device, built="unknown")
    assert (head["machine"], head["cpu"]) == ("nvidia-h200", "NVIDIA H200")
    assert (head["driver"], head["sm_mhz_most"]) == ("580.159.04", 1980.0)
    assert head["clocks_before"]["temperature_c"] == "[N/A]"
    assert {"commit", "date", "torch", "cuda", "cudnn", "l2_mib", "memory_gib"} <= set(head)
    clocks = cuda_machine.Clocks(device)
    deadline = time.monotonic() + 10
    while not clocks.samples and time.monotonic() < deadline:
        time.sleep(0.01)
    assert clocks.since(time.monotonic()) == {"sm_mhz": 1980.0, "power_w": 650.5}
    clocks.stop()
    monkeypatch.setenv("PATH", "/nowhere")
    assert cuda_machine.asked(device, cuda_machine.LIMITS) == {}
    assert cuda_machine.Clocks(device).since(0.0) == {}
    assert cuda_machine.commit("abc-dirty") == "abc-dirty"  # git is not there
    assert 0.0 < cuda_machine.age() < 1e6


def test_headers_of_python_for_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"usr/include/python{sys.version_info.major}.{sys.version_info.minor}"
    folder.mkdir(parents=True)
    monkeypatch.setenv("CPATH", "/mine")
    monkeypatch.setattr(cuda_machine.sysconfig, "get_paths", lambda: {"include": str(folder)})
    (folder / "Python.h").touch()
    cuda_machine.give_python_headers(tmp_path)
    assert os.environ["CPATH"] == "/mine"  # this Python has its own
    (folder / "Python.h").unlink()
    cuda_machine.give_python_headers(tmp_path)
    assert os.environ["CPATH"] == f"{folder}:{folder.parent}:/mine"


# --- baselines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "group", "window"), [(41, 4, 8), (7, 4, 8), (100, 3, 0)])
def test_the_definition_of_core_context_attention(length: int, group: int, window: int) -> None:
    expected = cca.mask(length, group, window)
    assert torch.equal(cuda_baselines.cca_mask(length, group, window, CPU), expected)
    pairs = cuda_baselines.num_pairs(length, group, window)
    assert pairs == cca.cost(length, group, window)["pairs"] == int(expected.sum())


def test_flex_attention_has_the_same_mask() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 150, 16) for _ in range(3)]
    with warnings.catch_warnings(action="ignore"):  # not compiled
        out = cuda_baselines.flex_cca(4, 16, lambda f: f)(*inputs)
    exact = cuda_baselines.cca_attention(*(x.double() for x in inputs), 4, 16)
    # Rounding of float32 and of the inputs' scores, far below the weight of one key.
    assert float((out - exact).abs().max()) < 1e-5
