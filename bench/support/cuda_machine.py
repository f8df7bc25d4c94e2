"""The machine, the software and the commit of a GPU benchmark; the GPU's clocks while it runs."""

import atexit
import contextlib
import datetime
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "power_w": "power.draw",
    "temperature_c": "temperature.gpu",
}
LIMITS = {"driver": "driver_version", "sm_mhz_most": "clocks.max.sm", "power_w_most": "power.limit"}


def commit(built: str = "") -> str:
    """Of the checkout; else of the library; else what the file .commit says: a copy without git."""
    with contextlib.suppress(OSError):
        words = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        found = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
        if found:  # the library knows whether it was built from changed files
            return built if built.startswith(found) else found
    if built not in ("", "unknown"):
        return built
    with contextlib.suppress(OSError):
        return (ROOT / ".commit").read_text().split()[0]
    return ""


def age() -> float:
    """Seconds since this process began; a process that replaces itself keeps its beginning."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def give_python_headers(deps: Path = ROOT / ".deps") -> None:
    """For torch.compile, whose Triton compiles a file with Python.h: those of .deps, where this
    Python has none."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = deps / "usr/include" / version
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file() and found.is_dir():
        given = [str(found), str(found.parent), os.environ.get("CPATH", "")]
        os.environ["CPATH"] = os.pathsep.join(filter(None, given))


def number(text: str) -> float | str:
    """As nvidia-smi prints it: "[N/A]" stays."""
    try:
        return float(text)
    except ValueError:
        return text


def query(device: torch.device) -> list[str]:
    """Of this GPU where there are several."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = ["-i", f"GPU-{uuid}"] if uuid and torch.cuda.device_count() > 1 else []
    return ["nvidia-smi", *which, "--format=csv,noheader,nounits"]


def asked(device: torch.device, names: dict[str, str]) -> dict[str, Any]:
    """What nvidia-smi says at once; nothing where it cannot be asked."""
    words = [*query(device), f"--query-gpu={','.join(names.values())}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [each.strip() for each in done.stdout.split("\n", 1)[0].split(",")]
    numbers = {key: number(value) for key, value in zip(names, values, strict=False)}
    return numbers | {"driver": values[0]} if "driver" in names else numbers


def cudnn_version() -> int | None:
    """As LibTorch loads it; nothing where it cannot."""
    with contextlib.suppress(Exception):
        found: int | None = torch.backends.cudnn.version()
        return found
    return None


def described(device: torch.device, built: str = "") -> dict[str, Any]:
    """The head of a file of bench/results/<machine>/."""
    head: dict[str, Any] = {
        "commit": commit(built),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type != "cuda":
        name = platform.processor() or "cpu"
        return head | {"machine": "-".join(name.lower().split()), "cpu": name}
    of = torch.cuda.get_device_properties(device)
    head |= {
        "machine": "-".join(of.name.lower().split()),
        "cpu": of.name,  # the heading of a table
        "cuda": torch.version.cuda,
        "cudnn": cudnn_version(),
        "multiprocessors": of.multi_processor_count,
        "memory_gib": round(of.total_memory / 2**30, 1),
        "l2_mib": round(getattr(of, "L2_cache_size", 0) / 2**20, 1),
    }
    return head | asked(device, LIMITS) | {"clocks_before": asked(device, CLOCKS)}


class Clocks:
    """Asks for the clocks twice a second until it is stopped; harmless where it cannot."""

    def __init__(self, device: torch.device) -> None:
        self.samples: list[tuple[float, dict[str, Any]]] = []
        self.process: subprocess.Popen[str] | None = None
        if device.type == "cuda":
            words = [*query(device), f"--query-gpu={','.join(CLOCKS.values())}", "-lms", "500"]
            with contextlib.suppress(OSError):
                self.process = subprocess.Popen(
                    words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
                atexit.register(self.stop)
                threading.Thread(target=self.read, args=[self.process], daemon=True).start()

    def read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self.add(line)

    def add(self, line: str) -> None:
        values = map(number, (each.strip() for each in line.split(",")))
        self.samples.append((time.monotonic(), dict(zip(CLOCKS, values, strict=False))))

    def since(self, began: float) -> dict[str, Any]:
        """Medians from then on; the last sample before it if there is none."""
        found = [sample for at, sample in self.samples if at >= began]
        found = found or [sample for _, sample in self.samples[-1:]]
        numbers = {
            key: [each[key] for each in found if isinstance(each.get(key), float)]
            for key in ("sm_mhz", "power_w")
        }
        return {key: statistics.median(values) for key, values in numbers.items() if values}

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            self.process = None
