"""What the linker sees: objects compiled per instruction set, and the shared library's symbols."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("PAPERLAB_BUILD_DIR") or ROOT / "build" / "release")
LIBRARY = BUILD / "python" / "paperlab" / "libpaperlab.so"
KERNELS = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/cpu.cpp"))
ISAS = ["generic", "avx2", "avx512"]

# The linker keeps one copy of a weak symbol for the whole program. One that was compiled for
# AVX-512 would then run on a CPU without it.
WEAK = set("WwVvu")


def output(*command: str | Path) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def symbols(*options: str | Path) -> list[tuple[str, str]]:
    """Type and name of each symbol that nm lists."""
    lines = output("nm", "--demangle", "--format=posix", *options).splitlines()
    matches = (re.match(r"(.+?) ([A-Za-z])(?: [0-9a-f]+){0,2} *$", line) for line in lines)
    return [(match[2], match[1]) for match in matches if match]


def weak_symbols(path: Path) -> list[str]:
    return [name for kind, name in symbols(path) if kind in WEAK]


def test_kernels_exist() -> None:
    assert KERNELS, "no kernel has a cpu.cpp"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_objects_of_an_instruction_set_hold_no_weak_symbols(kernel: str, isa: str) -> None:
    folder = BUILD / "kernels" / "CMakeFiles" / f"kernel_{kernel}_{isa}.dir"
    path = folder / kernel / "cpu.cpp.o"
    assert path.is_file(), f"{path} is not there: build the project first"
    assert weak_symbols(path) == []
    own = [name for kind, name in symbols("--defined-only", "--extern-only", path)]
    assert own, "the object exports nothing"
    assert all(name.startswith(f"paperlab::kernels::{isa}::") for name in own), own


def test_a_weak_symbol_is_found(tmp_path: Path) -> None:
    source, compiled = tmp_path / "weak.cpp", tmp_path / "weak.o"
    source.write_text(
        "template <class T> T twice(T x) { return 2 * x; }\ntemplate int twice(int);\n"
    )
    output("g++", "-c", source, "-o", compiled)
    assert weak_symbols(compiled) == ["int twice<int>(int)"]


def test_the_library_finds_all_its_symbols() -> None:
    done = subprocess.run(
        ["ldd", "-r", str(LIBRARY)], capture_output=True, text=True, timeout=120, check=True
    )
    text = done.stdout + done.stderr
    assert "undefined symbol" not in text, text
    assert "not found" not in text, text
    assert "libtorch_cpu.so" in text


def is_ours(name: str) -> bool:
    """Whether a name, its type information or its virtual table is of namespace paperlab."""
    kinds = r"(typeinfo for |typeinfo name for |vtable for |guard variable for )?"
    return re.match(kinds + r"paperlab::", name) is not None


def is_instantiation(name: str) -> bool:
    """Whether a name comes from a template or inline function of another library's header."""
    return (
        re.search(r"\b(std|__gnu_cxx|c10|c10d|at|torch|caffe2|nlohmann|Eigen|fmt)\b", name)
        is not None
    )


def test_the_library_exports_our_names_alone() -> None:
    exported = symbols("--dynamic", "--defined-only", "--extern-only", LIBRARY)
    assert any(name.startswith("paperlab::regular_language::train") for _, name in exported)
    foreign = [
        name
        for kind, name in exported
        if not is_ours(name) and not (kind in WEAK and is_instantiation(name))
    ]
    assert foreign == []


def test_the_library_hides_the_kernels() -> None:
    exported = symbols("--dynamic", "--defined-only", "--extern-only", LIBRARY)
    assert [name for _, name in exported if name.startswith("paperlab::kernels::")] == []
