"""Refuses another minor version of torch than the compiled core was built for.

LibTorch's C++ interface changes between minor versions: without this check the core would fail to
load with an undefined symbol, or crash later.
"""

from pathlib import Path


def built_version() -> str:
    """The version of torch that the compiled core was built for."""
    return (Path(__file__).parent / "torch_version.txt").read_text(encoding="ascii").strip()


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check() -> None:
    """Imports torch; raises ImportError unless it is of the minor version that was built for."""
    built = built_version()
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ImportError(
            f"paperlab needs torch {_minor(built)}, which is not installed"
        ) from error
    found = str(torch.__version__)
    if _minor(found) != _minor(built):
        raise ImportError(
            f"paperlab was built for torch {_minor(built)} (version {built}), got torch {found}: "
            f"install torch {_minor(built)}, or build paperlab again with this torch"
        )
