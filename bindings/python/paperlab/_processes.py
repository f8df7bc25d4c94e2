"""The processes that train one model together, as torch.distributed knows them."""

import atexit
import math
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from paperlab import _core

T = TypeVar("T")

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = "PAPERLAB_PROCESS_TIMEOUT"  # seconds
_MINUTES = 30

_joined = threading.Event()


def timeout() -> timedelta:
    """How long a process waits for one that does not answer: $PAPERLAB_PROCESS_TIMEOUT seconds."""
    given = os.environ.get(_TIMEOUT, "")
    try:
        seconds = float(given or 60 * _MINUTES)
    except ValueError:
        seconds = math.nan
    if not 0.001 <= seconds <= 1e7:
        raise ValueError(f"fit: {_TIMEOUT} must be a number of seconds, got {given!a:.60}")
    return timedelta(seconds=seconds)


def group() -> str | None:
    """The name of this process's group, joined here if torchrun started it; None if it is alone.

    Raises ValueError if the environment says half of what torchrun says, ConnectionError if the
    processes do not find each other.
    """
    if not distributed.is_available():
        return None
    if not distributed.is_initialized():
        join()
    if not distributed.is_initialized():
        return None
    world = distributed.group.WORLD
    return None if world is None or world.size() < 2 else str(world.group_name)


def together(name: str | None, work: Callable[[], T]) -> T:
    """Returns work(); if it raises in one process of the group, all raise.

    Where it is another process that has, it is an OSError with the first line of its error.
    """
    if name is None:
        return work()
    results: list[T] = []
    _core.together(name, "cpu" if _has_backend("cpu") else "cuda", lambda: results.append(work()))
    return results[0]


def check_device(device: torch.device) -> None:
    """Raises ValueError if the group cannot exchange tensors of the device."""
    if not _has_backend(device):
        raise ValueError(
            f"fit: model must be on a device of the process group's backends "
            f"({distributed.get_backend()}), got {device.type}"
        )


def _has_backend(device: torch.device | str) -> bool:
    world = distributed.group.WORLD
    try:
        return world is not None and world._get_backend(torch.device(device)) is not None
    except RuntimeError:
        return False


def leave() -> None:
    """Ends the connections to the others, who may wait for this process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def leave_what_was_joined() -> None:
    """The same, unless the program made the group itself, whose it is."""
    if _joined.is_set():
        leave()


def join() -> None:
    """Joins the others that torchrun has started, if it has and this process has not joined."""
    size = os.environ.get("WORLD_SIZE", "1")
    if distributed.is_initialized() or not size.isdecimal() or int(size) < 2:
        return
    for name in _NEEDED:
        if not os.environ.get(name):
            raise ValueError(
                f"fit: {name} must be set where WORLD_SIZE is {size}: torchrun does it"
            )
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    patience = timeout()
    try:
        distributed.init_process_group(backends, timeout=patience)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"fit: the processes do not find each other: {reason}") from None
    _joined.set()
    atexit.register(leave)
