"""The header of a GGUF file, checked: nothing that reads the file later meets a surprise.

Source: the GGUF specification, versions 2 and 3, little endian: magic, version, counts of tensors
and of metadata, the metadata (key, type, value), the tensors (name, dimensions, type, offset),
padding, the tensors' bytes.
"""

import itertools
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32

# Far above every real file; what is larger is no header, and reading it would take for ever.
_MAX_KEYS = 100_000
_MAX_TENSORS = 1_000_000
_MAX_ELEMENTS = 10_000_000  # of an array
_MAX_TEXT = 1 << 24  # bytes of a string
_MAX_NAME = 65_535  # bytes of a key or of a tensor's name
_MAX_DIMS = 4
_MAX_SIZE = 1 << 48  # elements of a tensor

# Types of metadata: the number in the file -> struct's letter.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file: rows of `row_bytes` bytes, each `shape[-1]` numbers."""

    name: str
    shape: tuple[int, ...]  # row-major, as torch has it
    type: int  # of gguf.GGMLQuantizationType
    offset: int  # of its first byte in the file
    row_bytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


@dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path}: {reason}")


def read_header(path: Path) -> Header:
    """The header of a GGUF file.

    Raises ValueError, "FILE: reason", if the file is not of this form, truncated, or says of
    itself what cannot be; FileNotFoundError or another OSError if it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: must be a file")
    with path.open("rb") as file:
        return _Reader(path, file).header()


class _Reader:
    """Reads forward; each step is checked against the bytes that are left."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path}: {reason}")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.position:
            raise self.error(f"is truncated: {what} needs {count} bytes at byte {self.position}")
        data = self.file.read(count)
        if len(data) != count:
            raise self.error(f"has become shorter while it was read, at byte {self.position}")
        self.position += count
        return data

    def integer(self, letter: str, what: str) -> int:
        return int(struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0])

    def count(self, what: str, most: int, bytes_each: int) -> int:
        """A number of things that follow, of at least `bytes_each` bytes each."""
        count = self.integer("Q", what)
        if count > most or count * bytes_each > self.size - self.position:
            raise self.error(f"{what} cannot be {count} in a file of {self.size} bytes")
        return count

    def text(self, what: str, most: int = _MAX_TEXT) -> str:
        length = self.integer("Q", what)
        if length > most:
            raise self.error(f"{what} cannot have {length} bytes")
        data = self.take(length, what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8: {data!r:.60}") from None

    def header(self) -> Header:
        self.check_version()
        num_tensors = self.count("the number of tensors", _MAX_TENSORS, 8 + 4 + 4 + 8)
        num_keys = self.count("the number of metadata keys", _MAX_KEYS, 8 + 4 + 1)
        metadata: dict[str, Value] = {}
        for _ in range(num_keys):
            key = self.text("a metadata key", _MAX_NAME)
            if key in metadata:
                raise self.error(f"metadata key {key!a:.80} is there twice")
            metadata[key] = self.value(f"metadata {key!a:.80}")
        entries = [self.tensor_entry() for _ in range(num_tensors)]
        start = _aligned(self.position, self.alignment(metadata))
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise self.error(f"tensor {name!a:.80} is there twice")
            tensors[name] = self.tensor(name, shape, kind, start + offset)
        self.check_overlaps(list(tensors.values()))
        return Header(self.path, metadata, tensors)

    def check_version(self) -> None:
        magic = self.file.read(4)
        if magic != _MAGIC:
            raise self.error("is not a GGUF file: it does not start with 'GGUF'")
        self.position = 4
        version = self.integer("I", "the version")
        if version not in _VERSIONS:
            order = ", in the other byte order" if version & 0xFFFF == 0 else ""
            raise self.error(f"has GGUF version {version}{order}; known are 2 and 3, little endian")

    def value(self, what: str) -> Value:
        kind = self.integer("I", what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            value: Value = self.scalars(kind, 1, what)[0]
            return value
        kind = self.integer("I", what)
        if kind == _STRING:
            count = self.count(f"the length of {what}", _MAX_ELEMENTS, 8)
            return [self.text(what) for _ in range(count)]
        count = self.count(f"the length of {what}", _MAX_ELEMENTS, 1)
        return list(self.scalars(kind, count, what))

    def scalars(self, kind: int, count: int, what: str) -> tuple[bool | int | float, ...]:
        if kind not in _SCALARS:
            raise self.error(f"{what} has the unknown type {kind}")
        form = f"<{count}{_SCALARS[kind]}"
        return struct.unpack(form, self.take(struct.calcsize(form), what))

    def alignment(self, metadata: dict[str, Value]) -> int:
        value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        is_power = type(value) is int and 0 < value <= 1 << 30 and value & (value - 1) == 0
        if not is_power:
            raise self.error(f"general.alignment must be a power of two, got {value!r:.40}")
        return int(value)  # type: ignore[arg-type]

    def tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type, and offset from the start of the data."""
        name = self.text("a tensor's name", _MAX_NAME)
        what = f"tensor {name!a:.80}"
        num_dims = self.integer("I", what)
        if not 1 <= num_dims <= _MAX_DIMS:
            raise self.error(f"{what} cannot have {num_dims} dimensions")
        sizes = struct.unpack(f"<{num_dims}Q", self.take(8 * num_dims, what))
        if not 1 <= math.prod(sizes) <= _MAX_SIZE:
            raise self.error(f"{what} cannot have the shape {list(reversed(sizes))}")
        return name, tuple(reversed(sizes)), self.integer("I", what), self.integer("Q", what)

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorInfo:
        import gguf

        what = f"tensor {name!a:.80}"
        try:
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise self.error(f"{what} has the unknown type {kind}") from None
        if shape[-1] % block:
            raise self.error(
                f"{what} must have rows of a multiple of {block} numbers, got shape {list(shape)}"
            )
        info = TensorInfo(name, shape, kind, offset, shape[-1] // block * block_bytes)
        if offset + info.rows * info.row_bytes > self.size:
            raise self.error(
                f"is truncated: {what} ends at byte {offset + info.rows * info.row_bytes} of "
                f"{self.size}"
            )
        return info

    def check_overlaps(self, tensors: list[TensorInfo]) -> None:
        tensors.sort(key=lambda tensor: tensor.offset)
        for before, after in itertools.pairwise(tensors):
            if after.offset < before.offset + before.rows * before.row_bytes:
                raise self.error(f"tensors {before.name!a:.80} and {after.name!a:.80} overlap")


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
