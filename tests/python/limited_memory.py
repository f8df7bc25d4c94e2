"""LibTorch's memory of the CPU, of which one allocation can be refused."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("PAPERLAB_BUILD_DIR") or ROOT / "build" / "release")

DEVICE, ACCELERATOR, CPU = range(3)  # whose error is thrown

_library = ctypes.CDLL(str(BUILD / "tests" / "liblimited_memory.so"))
_library.refuse_allocation.argtypes = [ctypes.c_int64, ctypes.c_int]
_library.count_allocations.argtypes = [ctypes.c_int64]
_library.num_allocations.restype = ctypes.c_int64


@contextlib.contextmanager
def refused(number: int, kind: int = DEVICE) -> Iterator[None]:
    """Refuses allocation `number` within the block, if there are so many; 0 is the first."""
    _library.refuse_allocation(number, kind)
    try:
        yield
    finally:
        _library.refuse_allocation(-1, kind)


def allocations(function: Callable[[], Any], least_bytes: int = 0) -> int:
    """How many allocations of at least so many bytes a call makes."""
    _library.count_allocations(least_bytes)
    function()
    count: int = _library.num_allocations()
    return count
