"""The processes that train one model together, as torch.distributed knows them."""

import atexit
import os
import threading

import torch
from torch import distributed

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")

_joined = threading.Event()


def group_of(device: torch.device) -> str | None:
    """The name of this process's group, joined here if torchrun started it; None if it is alone.

    Raises ValueError if the environment says half of what torchrun says, or if the group cannot
    exchange tensors of the device; ConnectionError if the processes do not find each other.
    """
    if not distributed.is_available():
        return None
    if not distributed.is_initialized():
        join()
    if not distributed.is_initialized():
        return None
    group = distributed.group.WORLD
    if group is None or group.size() < 2:
        return None
    try:
        group._get_backend(device)
    except RuntimeError:
        raise ValueError(
            f"fit: model must be on a device of the process group's backends "
            f"({distributed.get_backend(group)}), got {device.type}"
        ) from None
    return str(group.group_name)


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
    try:
        distributed.init_process_group(backends)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"fit: the processes do not find each other: {reason}") from None
    _joined.set()
    atexit.register(leave)
