"""The processes of `./paperlab train --processes N`: the one that was called, and N - 1 others.

The others are its children. They have no terminal; what they are to do comes through their input,
a pipe. Where it ends without a farewell the first process is lost: they keep the last step and end.
"""

import collections
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import distributed

import paperlab
from paperlab import _processes

Task = dict[str, Any]

_READY, _END = b"ready\n", b"end\n"
_FOLLOW = "import sys; from paperlab._commands import train; sys.exit(train.follow(sys.argv[1:]))"
_HOST = "127.0.0.1"
_START = 300.0  # seconds in which a process has loaded its libraries
_PATIENCE = 5.0  # seconds in which a process that lost another one, or its input, has ended
_LAST_WORK = 600.0  # seconds in which one that lost the first has written a checkpoint


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
def followers(count: int, task: Task) -> Iterator[None]:
    """Inside, count - 1 other processes train too; the task, JSON values, tells them what.

    Raises OSError if one of them cannot; a ConnectionError of the work says why one ended.
    """
    if count == 1:
        yield
        return
    children: list[_Child] = []
    threads = paperlab.get_num_threads(), torch.get_num_threads()
    try:
        if "PAPERLAB_NUM_THREADS" not in os.environ:
            paperlab.set_num_threads(max(1, threads[0] // count))
        store = _store(count)
        for rank in range(1, count):
            children.append(_Child(rank, count, store.port, task))
        deadline = time.monotonic() + _START
        for child in children:
            child.wait_until_ready(deadline)
        with _local_interface():
            _init(store, 0, count)
        yield
    except ConnectionError as error:
        raise ConnectionError(f"{error}{_why(children)}") from None
    finally:
        for child in children:
            child.dismiss()
        for child in children:
            child.end()
        _processes.leave()
        paperlab.set_num_threads(threads[0])
        torch.set_num_threads(threads[1])


def attach(words: Sequence[str]) -> Task:
    """Makes this process one of the others: rank, count and port as _Child gives them."""
    rank, count, port = map(int, words)
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            os._exit(1)
        line += piece
    threading.Thread(target=_end_with_input, daemon=True).start()
    os.write(1, _READY)
    with _local_interface():
        _init(_store(count, port), rank, count)
    task: Task = json.loads(line)
    return task


_is_done = threading.Event()


def detach(code: int) -> None:
    """Where all went well, keeps the connections until the first process needs them no more."""
    if code == 0:
        _is_done.set()
        threading.Event().wait()  # _end_with_input() ends the process


class _Child:
    """One of the others."""

    def __init__(self, rank: int, count: int, port: int, task: Task) -> None:
        self._rank = rank
        place = str(Path(paperlab.__file__).parent.parent)
        paths = [place, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PAPERLAB_NUM_THREADS": str(paperlab.get_num_threads()),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FOLLOW, str(rank), str(count), str(port)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C comes to the first process, which tells them
        )
        self._lines: collections.deque[bytes] = collections.deque(maxlen=20)
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        self._tell(json.dumps(task).encode() + b"\n")

    def wait_until_ready(self, deadline: float) -> None:
        """Raises OSError if it ends before, or time.monotonic() passes the deadline."""
        output = _pipe(self._process.stdout)
        left = max(0.0, deadline - time.monotonic())
        if not select.select([output], [], [], left)[0]:
            raise OSError(f"process {self._rank} did not start within {_START:g} s")
        if os.read(output.fileno(), len(_READY)) != _READY:
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
        self._reader.join(_PATIENCE)
        lines = [line.decode(errors="replace").rstrip("\n") for line in self._lines]
        last = lines[-1].removeprefix("paperlab train: ") if lines else f"exit code {code}"
        return f"; process {self._rank}: {last}"

    def dismiss(self) -> None:
        """Tells it that it is not needed any more."""
        self._tell(_END)
        with contextlib.suppress(OSError):
            _pipe(self._process.stdin).close()

    def end(self) -> None:
        """Ends it, once it is dismissed."""
        try:
            self._process.wait(_PATIENCE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
        self._reader.join(_PATIENCE)
        _pipe(self._process.stdout).close()
        _pipe(self._process.stderr).close()

    def _tell(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended, which is seen elsewhere
            stdin = _pipe(self._process.stdin)
            stdin.write(line)
            stdin.flush()

    def _read_errors(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed
            self._lines.extend(_pipe(self._process.stderr))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _why(children: Sequence[_Child]) -> str:
    """The reason of the one that ended first: the others say that they have lost another."""
    reasons = [child.reason() for child in children]
    first = [reason for reason in reasons if reason and "another process" not in reason]
    return first[0] if first else ""


def _store(count: int, port: int | None = None) -> Any:
    """Where the processes of this machine find each other, and nobody from elsewhere.

    port: of the first one's, in which it lives; None: this is the first.
    """
    options: dict[str, Any] = {"timeout": _processes.timeout(), "wait_for_workers": False}
    if port is None:
        listener = socket.create_server((_HOST, 0))
        port = listener.getsockname()[1]
        options |= {"is_master": True, "master_listen_fd": listener.detach()}
    return distributed.TCPStore(  # type: ignore[attr-defined]  # torch's stub lacks it
        _HOST, port, count, **options
    )


def _init(store: Any, rank: int, count: int) -> None:
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=count, timeout=_processes.timeout()
    )


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
    last = b""
    while piece := os.read(0, 4096):
        last = piece
    if last.endswith(_END):
        os._exit(0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)  # nobody reads them any more
    _is_done.wait(_LAST_WORK)
    os._exit(1)
