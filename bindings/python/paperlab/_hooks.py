"""What ends the calls of a hook."""

from typing import Self

from paperlab import _core


class HookHandle:
    """What `on_linear_input` returns: `remove()` ends the calls; also a context manager."""

    def __init__(self, core: _core.Decoder | _core.Encoder, number: int) -> None:
        self._core = core
        self._number: int | None = number

    def remove(self) -> None:
        """Ends the calls. A second time does nothing."""
        if self._number is not None:
            self._core.remove_linear_hook(self._number)
            self._number = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
