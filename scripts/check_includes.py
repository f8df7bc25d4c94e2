"""Checks the include graph against the dependency rules: check_includes.py [--root DIR].

Prints `FILE:LINE: reason` for each include that breaks one and exits with 1.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from sources import CPP_SUFFIXES, ROOT, project_files

# What each room may include besides itself. A folder of libpaperlab that is not listed is a
# paper: it may use every shared room, and no other paper.
ALLOWED = {
    "core": set[str](),
    "kernels": {"core"},
    "ops": {"core", "kernels"},
    "io": {"core", "kernels", "ops"},
    "data": {"core", "io"},
    "nn": {"core", "kernels", "ops", "io"},
    "train": {"core", "kernels", "ops", "nn", "io", "data"},
    "eval": {"core", "kernels", "ops", "nn", "io", "data"},
    "regular_language": {"core", "kernels"},
}
SHARED = ["core", "kernels", "ops", "io", "data", "nn", "train", "eval"]
CLIENTS = {"bindings", "experiments", "bench", "tests"}

TORCH = re.compile(r"(torch|ATen|c10|c10d)/")
PYTHON = re.compile(r"(pybind11/|Python\.h$|torch/csrc/utils/pybind\.h$)")
TOO_WIDE = re.compile(r"torch/(torch|extension|all)\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def room_of(path: str) -> str:
    """The room of a file below the root: `core`, `kernels`, `mudd`, `tests`, ..."""
    parts = path.split("/")
    if parts[:2] == ["libpaperlab", "paperlab"] and len(parts) > 3:
        return parts[2]
    return parts[0]


def kernel_of(path: str) -> str:
    """The kernel's folder, or nothing for files that every kernel shares."""
    parts = path.split("/")
    is_kernel = len(parts) > 2 and parts[0] == "kernels" and parts[1] != "common"
    return parts[1] if is_kernel else ""


def included_file(root: Path, includer: str, name: str) -> str:
    """The included file below the root, or nothing if it is not one of ours."""
    for folder in ("", "libpaperlab"):
        if (root / folder / name).is_file():
            return str(Path(folder) / name)
    beside = Path(includer).parent / name
    return str(beside) if (root / beside).is_file() else ""


def outside_reason(includer: str, name: str) -> str:
    """Why this file may not include that header of somebody else, or nothing."""
    room = room_of(includer)
    if TOO_WIDE.match(name):
        return f"{name} takes half a minute to compile; include single headers"
    if room in {"core", "kernels", "regular_language"} and TORCH.match(name):
        return f"{room} knows nothing of LibTorch"
    if PYTHON.match(name) and includer.split("/")[0] != "bindings":
        return "only bindings/ knows Python"
    if room in {"core", "kernels"} and name == "omp.h":
        return f"{room} knows nothing of OpenMP; use the injected parallel_for"
    return ""


def inside_reason(includer: str, included: str) -> str:
    """Why this file of ours may not include that one, or nothing."""
    here, there = room_of(includer), room_of(included)
    if included.startswith("experiments/") and Path(included).name.startswith("main."):
        return "nothing includes a driver"
    if kernel_of(includer) and kernel_of(included) not in {"", kernel_of(includer)}:
        return "a kernel includes its own folder and kernels/common only"
    if includer.startswith("kernels/common/") and kernel_of(included):
        return "kernels/common serves every kernel and knows none"
    if here == there:
        return experiments_reason(includer, included) if here == "experiments" else ""
    if here in CLIENTS:
        return client_reason(here, included)
    allowed = ALLOWED.get(here, set(SHARED))
    names = ", ".join(sorted(allowed)) or "nothing"
    return "" if there in allowed else f"{here} may include {names}"


def experiments_reason(includer: str, included: str) -> str:
    """No paper's experiment includes another's; common knows none."""
    here, there = includer.split("/")[1], included.split("/")[1]
    return "" if there in {here, "common"} else "no experiment includes another"


def client_reason(here: str, included: str) -> str:
    """Clients use the library, never one another, but tests/support serves bench too."""
    there = included.split("/")[0]
    if there in {"libpaperlab", "kernels"}:
        return ""
    if here == "bench" and included.startswith("tests/support/"):
        return ""
    if here == "tests" and there in CLIENTS:
        return ""
    return f"{here} may not include {there}"


def includes(text: str) -> Iterator[tuple[int, str]]:
    """Line number and name of each include."""
    for number, line in enumerate(text.splitlines(), start=1):
        match = INCLUDE.match(line)
        if match:
            yield number, match[2]


def violations(root: Path) -> Iterator[str]:
    """One line for each include that breaks a rule."""
    for path in project_files(root):
        if path.suffix not in CPP_SUFFIXES:
            continue
        includer = path.as_posix()
        for number, name in includes((root / path).read_text(encoding="utf-8")):
            included = included_file(root, includer, name)
            if included:
                reason = inside_reason(includer, included)
            else:
                reason = outside_reason(includer, name)
            if reason:
                yield f"{includer}:{number}: {name}: {reason}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT)
    found = list(violations(parser.parse_args().root))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
