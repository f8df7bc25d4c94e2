"""What is installed and in use: `python -m paperlab doctor`."""

import os
import platform
import sys
from pathlib import Path

import torch

import paperlab
from paperlab import _core

# What each instruction set of the kernels needs of the CPU, the widest first.
_CPU_FLAGS = {
    "avx512": ("avx2", "fma", "avx512f", "avx512dq", "avx512vl", "avx512bw"),
    "avx2": ("avx2", "fma"),
    "generic": (),
}

Report = dict[str, "str | int | bool | list[str] | dict[str, str]"]


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def _instruction_sets() -> dict[str, str]:
    """For each instruction set: in use, or why not."""
    present = _cpu_flags()
    in_use, detected = _core.cpu_isa(), _core.detected_cpu_isa()
    asked = os.environ.get("PAPERLAB_CPU", "auto")
    order = list(_CPU_FLAGS)
    states = {}
    for isa, needed in _CPU_FLAGS.items():
        missing = [flag for flag in needed if flag not in present]
        if isa == in_use:
            states[isa] = "in use"
        elif order.index(isa) > order.index(in_use):
            states[isa] = f"available; {in_use} is wider"
        elif order.index(isa) < order.index(detected):
            states[isa] = f"this CPU or system lacks {' '.join(missing) or isa}"
        else:
            states[isa] = f"available; PAPERLAB_CPU={asked} or set_cpu_isa chose {in_use}"
    return states


def _mapped(name: str) -> list[str]:
    """Paths of the mapped files whose name starts with `name`."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if Path(path).name.startswith(name))


def report() -> Report:
    """The installation as plain values."""
    build = _core.build_info()
    return {
        "version": build.version,
        "commit": build.commit,
        "package": str(Path(paperlab.__file__).parent),
        "python": f"{platform.python_version()} at {sys.executable}",
        "compiler": build.compiler,
        "flags": build.flags,
        "torch_built": build.torch,
        "torch_found": str(torch.__version__),
        "cuda_built": build.cuda or "none",
        "cuda_torch": torch.version.cuda or "none",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cpu_isa": _core.cpu_isa(),
        "instruction_sets": _instruction_sets(),
        "threads": paperlab.get_num_threads(),
        "threads_torch": torch.get_num_threads(),
        "libgomp": _mapped("libgomp"),
    }


def as_text(values: Report) -> str:
    """The report in aligned lines."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = [f"{key}: {text}" for key, text in value.items()]
        shown = value if isinstance(value, list) else [str(value)]
        for i, text in enumerate(shown or ["none"]):
            lines.append(f"{name if i == 0 else '':<18}{text}")
    return "\n".join(lines)
