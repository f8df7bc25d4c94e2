"""Writes a folder of tokens: streamed into FOLDER.tmp, which gets its name when it is whole."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from paperlab.data import _store
from paperlab.data._corpus import Corpus, Documents
from paperlab.data._encoders import Encoder, Mark, token_type
from paperlab.data._store import MANIFEST, Record

FORMAT = 1
TOKENIZER = "tokenizer.json"

_HEADER_BYTES = 128  # room for every length, at a multiple of 64


class ArrayStream:
    """A .npy file of one dimension that grows; its header is written last."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._file = path.open("wb")
        self._file.write(bytes(_HEADER_BYTES))
        self.length = 0

    def append(self, values: npt.NDArray[Any]) -> None:
        """Adds the elements of a vector."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self.length += len(values)

    def __enter__(self) -> "ArrayStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._file.write(self._header())

    def _header(self) -> bytes:
        shape = f"({self.length},)"
        text = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
        start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
        return start + text.encode().ljust(_HEADER_BYTES - 11) + b"\n"


def write_tokens(
    folder: Path,
    corpus: Corpus,
    encoder: Encoder,
    marks: tuple[Mark, Mark],
    identity: Mapping[str, Any],
    notice: Callable[[str], None],
) -> None:
    """Fills FOLDER.tmp, replaces `folder` by it; removes it if something fails."""
    corpus.verify()
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        domains, files = [], {}
        for domain, splits in corpus.items():
            records = {}
            (temporary / domain).mkdir()
            for split, documents in splits.items():
                path = temporary / domain / f"{split}.npy"
                place = f"{corpus.name}: domain {domain}, split {split}"
                records[split] = _write_split(path, place, documents, encoder, marks)
            domains.append({"name": domain, "splits": records})
            tokens = sum(record["tokens"] for record in records.values())
            notice(f"{domain}: {tokens:,} tokens")
        if encoder.content is not None:
            (temporary / TOKENIZER).write_bytes(encoder.content)
        for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
            files[path.relative_to(temporary).as_posix()] = _store.file_record(path)
        _write_manifest(temporary, {**identity, "domains": domains, "files": files})
        shutil.rmtree(folder, ignore_errors=True)  # not whole; who has it mapped keeps its files
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(
    path: Path, place: str, documents: Documents, encoder: Encoder, marks: tuple[Mark, Mark]
) -> Record:
    offsets_path = path.with_name(f"{path.stem}_documents.npy")
    with (
        ArrayStream(path, token_type(encoder.vocab_size)) as tokens,
        ArrayStream(offsets_path, np.dtype("<u8")) as offsets,
    ):
        offsets.append(np.zeros(1, np.uint64))
        for piece, sizes in encoder.encode(place, documents, *marks):
            offsets.append(np.cumsum(sizes, dtype=np.uint64) + np.uint64(tokens.length))
            tokens.append(piece)
    return {
        "documents": len(documents),
        "tokens": tokens.length,
        "bytes": int(documents.offsets[-1] - documents.offsets[0]),
    }


def _write_manifest(folder: Path, content: Record) -> None:
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def is_whole(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder was written to the end, for this identity, and no file was cut since."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(content[key] == value for key, value in identity.items()) and all(
            (folder / name).stat().st_size == record["bytes"]
            for name, record in content["files"].items()
        )
    return False
