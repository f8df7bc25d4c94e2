"""Model techniques of research papers: exact, fast on CPU and CUDA, reproduced honestly.

Each module is an attribute, loaded on first use: `paperlab.regular_language`, `paperlab.ops`,
`paperlab.mudd`, `paperlab.cca`, `paperlab.nn`, `paperlab.eval`, `paperlab.data`, `paperlab.io`,
`paperlab.models`, `paperlab.convert`, `paperlab.lora`, `paperlab.integrations`.
"""

import importlib
import os
import signal
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from paperlab import _torch_check

# Ctrl-C is silent while `python -m paperlab` imports torch; its main takes over from here.
_IS_COMMAND = sys.argv[:1] == ["-m"] and "paperlab" in sys.orig_argv
if _IS_COMMAND and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

_torch_check.check()

import torch  # noqa: E402

from paperlab import _arguments, _core  # noqa: E402

if TYPE_CHECKING:
    from paperlab import (
        cca,
        convert,
        data,
        eval,  # noqa: A004
        integrations,
        io,
        lora,
        models,
        mudd,
        nn,
        ops,
        regular_language,
        train,
    )

__all__ = [
    "__version__",
    "cca",
    "convert",
    "data",
    "eval",
    "get_num_threads",
    "integrations",
    "io",
    "lora",
    "models",
    "mudd",
    "nn",
    "ops",
    "regular_language",
    "set_num_threads",
    "train",
]

__version__: str = _core.build_info().version

_MODULES = (
    "cca",
    "convert",
    "data",
    "eval",
    "integrations",
    "io",
    "lora",
    "models",
    "mudd",
    "nn",
    "ops",
    "regular_language",
    "train",
)


def set_num_threads(n: int) -> None:
    """Sets the number of threads of paperlab's own loops and of torch.

    Raises ValueError if `n` is outside 1..1024. Results do not depend on it.
    """
    count = _arguments.integer("set_num_threads", "n", n, 1, 1024)
    _core.set_num_threads(count)
    torch.set_num_threads(count)


def get_num_threads() -> int:
    """The number of threads of paperlab's own loops; at first, the CPUs this process may use."""
    return _core.get_num_threads()


def _read_environment() -> None:
    threads = os.environ.get("PAPERLAB_NUM_THREADS", "")
    if threads:
        if not (threads.isdecimal() and 1 <= int(threads) <= 1024):
            raise ValueError(f"PAPERLAB_NUM_THREADS must be in 1..1024, got '{threads}'")
        set_num_threads(int(threads))
    isa = os.environ.get("PAPERLAB_CPU", "")
    if isa:
        try:
            _core.set_cpu_isa(isa)
        except ValueError as error:
            raise ValueError(f"PAPERLAB_CPU: {error}") from None
    _core.get_backend()  # reads PAPERLAB_BACKEND, which must be right


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"paperlab.{name}")
    raise AttributeError(f"module 'paperlab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)


_read_environment()
