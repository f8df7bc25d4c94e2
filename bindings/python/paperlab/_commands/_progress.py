"""How far a long work is, on a terminal's last line."""

import sys
import time

_EVERY = 0.2  # seconds between two lines


class Progress:
    """Tokens done, tokens per second and the time that is left, on stderr if it is a terminal."""

    def __init__(self, total: int) -> None:
        self.seconds = 0.0  #: Since the first token.
        self._total, self._done = total, 0
        self._start = self._last = time.perf_counter()
        self._is_shown = sys.stderr.isatty()

    def start(self) -> None:
        """The clock starts here."""
        self._start = time.perf_counter()

    def add(self, count: int) -> None:
        """A document of so many tokens is done."""
        self._done += count
        self.seconds = time.perf_counter() - self._start

    def show(self, count: int) -> None:
        """So many tokens of the present document are done."""
        now = time.perf_counter()
        if self._is_shown and now - self._last >= _EVERY:
            self._last = now
            done, seconds = self._done + count, max(now - self._start, 1e-9)
            left = int((self._total - done) * seconds / done)
            print(
                f"\r\033[K{done:,} of {self._total:,} tokens, {done / seconds:.0f} tokens/s, "
                f"{left // 60}:{left % 60:02} left",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        """Removes the line."""
        if self._is_shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
