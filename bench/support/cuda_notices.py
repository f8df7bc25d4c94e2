"""Warnings: which operators leave their work to LibTorch (each says so once in a process), and what
LibTorch says of backends that cannot run."""

import re
import sys
import warnings
from typing import Any, TextIO

NO_KERNEL = re.compile(r"paperlab::(\w+): CUDA tensors are left to LibTorch")


class Notices:
    """Listens to warnings from now on. operators: the notice of each. others: all other texts."""

    def __init__(self) -> None:
        self.operators: dict[str, str] = {}
        self.others: list[str] = []
        warnings.filterwarnings("always", category=UserWarning)
        self.shown_before = warnings.showwarning
        warnings.showwarning = self.show

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> Any:
        text = str(message).strip().split(" (Triggered internally", 1)[0].split("\n", 1)[0]
        if found := NO_KERNEL.search(text):
            self.operators[found[1]] = text
            print(text, file=sys.stderr)
            return
        if text not in self.others:
            self.shown_before(message, category, filename, lineno, file, line)
        self.others.append(text)

    def stop(self) -> None:
        warnings.showwarning = self.shown_before
