"""The processes of `./paperlab train --processes N`: the one that was called, and N - 1 others.

The others are its children. They have no terminal and no files of the run; their input is a pipe
that ends when the first process does, and they end with it.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import distributed

import paperlab
from paperlab import _processes

_READY = b"ready\n"
_FOLLOW = "import sys; from paperlab._commands import train; sys.exit(train.follow(sys.argv[1:]))"
_PATIENCE = 5.0  # seconds in which a process that lost another one, or its input, has ended


def size(processes: int) -> int:
    """How many train together, whoever has started them."""
    count = os.environ.get("WORLD_SIZE", "1")
    return max(processes, int(count) if count.isdecimal() else 1)


def is_follower() -> bool:
    """Whether torchrun started this process, and another one is the first."""
    return size(1) > 1 and os.environ.get("RANK", "0") != "0"


def join() -> None:
    """Waits for the others that torchrun has started."""
    _processes.join()


@contextlib.contextmanager
def followers(count: int, words: Sequence[str]) -> Iterator[None]:
    """Inside, count - 1 other processes train too, with these options of the command line.

    Raises OSError if one of them cannot; a ConnectionError of the work says why one ended.
    """
    if count == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="paperlab-train-") as folder:
        children: list[_Child] = []
        threads = paperlab.get_num_threads(), torch.get_num_threads()
        try:
            if "PAPERLAB_NUM_THREADS" not in os.environ:
                paperlab.set_num_threads(max(1, threads[0] // count))
            children += [_Child(rank, count, Path(folder), words) for rank in range(1, count)]
            for child in children:
                child.wait_until_ready()
            with _local_interface():
                _init(folder, 0, count)
            yield
        except ConnectionError as error:
            raise ConnectionError(f"{error}{_why(children)}") from None
        finally:
            for child in children:
                child.end()
            _processes.leave()
            paperlab.set_num_threads(threads[0])
            torch.set_num_threads(threads[1])


def attach(words: Sequence[str]) -> None:
    """Makes this process one of the others: rank, count and folder as _Child gives them."""
    rank, count, folder = words
    threading.Thread(target=_end_with_input, daemon=True).start()
    os.write(1, _READY)
    with _local_interface():
        _init(folder, int(rank), int(count))


def detach(code: int) -> None:
    """Where all went well, keeps the connections until the first process needs them no more."""
    if code == 0:
        threading.Event().wait()  # _end_with_input() ends the process


class _Child:
    """One of the others."""

    def __init__(self, rank: int, count: int, folder: Path, words: Sequence[str]) -> None:
        self._rank = rank
        self._errors = folder / f"errors-{rank}"
        place = str(Path(paperlab.__file__).parent.parent)
        paths = [place, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PAPERLAB_NUM_THREADS": str(paperlab.get_num_threads()),
        }
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _FOLLOW, str(rank), str(count), str(folder), *words],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C comes to the first process, which tells them
            )

    def wait_until_ready(self) -> None:
        """Raises OSError if it ends before."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != _READY:
            self._process.wait()
            raise OSError(f"process {self._rank} did not start{self.reason()}")

    def reason(self) -> str:
        """Why it has ended: a signal, else the last line that it has written; empty if it lives."""
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return ""
        if code < 0:
            return f"; process {self._rank} was ended by signal {-code}"
        lines = self._errors.read_text(errors="replace").splitlines()
        last = lines[-1].removeprefix("paperlab train: ") if lines else f"exit code {code}"
        return f"; process {self._rank}: {last}"

    def end(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _why(children: Sequence[_Child]) -> str:
    """The reason of the one that ended first: the others say that they have lost another."""
    reasons = [child.reason() for child in children]
    first = [reason for reason in reasons if reason and "another process" not in reason]
    return first[0] if first else ""


def _init(folder: str, rank: int, count: int) -> None:
    path = str(Path(folder).resolve() / "store")
    store = distributed.FileStore(path, count)  # type: ignore[attr-defined]  # torch's stub lacks it
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)


@contextlib.contextmanager
def _local_interface() -> Iterator[None]:
    """All processes are on this machine, whatever its name means elsewhere."""
    name = "GLOO_SOCKET_IFNAME"
    before = os.environ.get(name)
    os.environ.setdefault(name, "lo")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _end_with_input() -> None:
    """Ends this process when its input does; a read of sys.stdin would hold a lock at exit."""
    while os.read(0, 4096):
        pass
    os._exit(0)
