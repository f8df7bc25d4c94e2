"""Files that a training run keeps beside its checkpoints."""

import contextlib
import json
import os
from pathlib import Path

from paperlab import _core, nn
from paperlab._commands._train_config import Config
from paperlab._commands._train_data import Texts, byte_tokenizer

TOKENIZER = "tokenizer"  # a folder of the run


def write(path: Path, text: str) -> None:
    """Writes the file as a whole, by rename."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tokenizer(config: Config, out: Path, texts: Texts) -> None:
    """Writes the files that checkpoints and the model copy, where there are none elsewhere."""
    if config["data"]["tokenizer"] == "model":
        return
    folder = out / TOKENIZER
    folder.mkdir(exist_ok=True)
    if texts.tokens.tokenizer_path is None:
        content = byte_tokenizer(texts.tokens.separator)
        write(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False, indent=1))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write(folder / "tokenizer_config.json", json.dumps(settings) + "\n")


def set_tokenizer(model: nn.Decoder, config: Config, out: Path, texts: Texts) -> None:
    """Says which files checkpoints and the model copy; one with a tokenizer of its own knows."""
    if config["data"]["tokenizer"] != "model":
        path = texts.tokens.tokenizer_path or out / TOKENIZER / "tokenizer.json"
        files = [str(path), str(out / TOKENIZER / "tokenizer_config.json")]
        _core.set_tokenizer_files(model.core, files)


class Evaluations:
    """evaluations.jsonl: a line for each measurement, of the steps that count.

    Raises ValueError naming file and line if an earlier run's are damaged. An unfinished last line
    is that of a killed process and is dropped.
    """

    def __init__(self, path: Path, goes_on: bool) -> None:
        self._path = path
        self._lines: list[Config] = []
        with contextlib.suppress(FileNotFoundError):
            whole = path.read_bytes().split(b"\n")[:-1] if goes_on else []
            self._lines = [self._parsed(i, line) for i, line in enumerate(whole, start=1)]

    def _parsed(self, number: int, line: bytes) -> Config:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        is_right = isinstance(value, dict) and isinstance(value.get("domains"), dict)
        if not is_right or not isinstance(value.get("steps"), int):
            raise ValueError(f"'{self._path}': line {number}: not a measurement")
        return dict(value)

    def keep(self, steps: int) -> None:
        """Drops those after so many steps."""
        self._lines = [value for value in self._lines if value["steps"] <= steps]
        if self._lines or self._path.exists():
            write(self._path, "".join(f"{json.dumps(value)}\n" for value in self._lines))

    def after(self, steps: int) -> Config | None:
        """The one after so many steps."""
        return next((value for value in self._lines if value["steps"] == steps), None)

    def append(self, value: Config) -> None:
        """Writes one that is later than all others."""
        self._lines.append(value)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
