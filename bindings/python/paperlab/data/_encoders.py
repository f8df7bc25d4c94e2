"""From documents to tokens: bytes, or any tokenizer.json; training of byte-level BPE."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from paperlab import _core, _tokenizer
from paperlab.data._corpus import Corpus, Documents
from paperlab.data._store import cache_folder, locked_once

if TYPE_CHECKING:
    import tokenizers

END = "<|endoftext|>"  # the separator of a vocabulary that is trained here

_TEXT_BYTES = 8 << 20  # of documents that are read at a time
_BATCH_BYTES = 1 << 20  # of documents that Hugging Face tokenizers get at a time

UIntArray = npt.NDArray[Any]
Mark = int | None


class Encoder(Protocol):
    """Documents in, their tokens out, marks included."""

    name: str  # "bytes" or that of the file's folder
    sha256: str | None  # of tokenizer.json
    vocab_size: int
    content: bytes | None  # tokenizer.json

    def mark(self, what: str, value: object) -> Mark:
        """The id of a separator; ValueError if it is not in the vocabulary."""

    def encode(
        self, place: str, documents: Documents, before: Mark, after: Mark
    ) -> Iterator[tuple[UIntArray, UIntArray]]:
        """Pieces: tokens of some documents, and how many each of them has."""


def token_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every token."""
    return np.dtype("<u1" if vocab_size <= 1 << 8 else "<u2" if vocab_size <= 1 << 16 else "<u4")


def _mark_id(what: str, value: object, high: int) -> Mark:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise ValueError(f"data.tokenize: {what} must be None or in 0..{high}, got {value!a:.60}")
    return value


class ByteEncoder:
    """Every byte is a token. A separator of 256 enlarges the vocabulary to 257."""

    name = "bytes"
    sha256: str | None = None
    content: bytes | None = None

    def __init__(self, vocab_size: int | None = None) -> None:
        self._fixed = vocab_size is not None
        self.vocab_size = 256 if vocab_size is None else vocab_size
        if self.vocab_size < 256:
            raise ValueError(
                f"data.tokenize: vocab_size must be 256 or more for bytes, got {vocab_size}"
            )

    def mark(self, what: str, value: object) -> Mark:
        """Documents hold no byte 0, so that 0 is a separator inside the vocabulary of 256."""
        high = self.vocab_size - 1 if self._fixed else 256
        number = _mark_id(what, value, min(high, 65535))
        if number is not None:
            self.vocab_size = max(self.vocab_size, number + 1)
        return number

    def encode(
        self, place: str, documents: Documents, before: Mark, after: Mark
    ) -> Iterator[tuple[UIntArray, UIntArray]]:
        """The bytes of some megabytes of documents at a time."""
        is_wide = token_type(self.vocab_size).itemsize > 1
        marks = (before is not None) + (after is not None)
        for begin, end in _pieces(documents, _TEXT_BYTES):
            offsets = np.array(documents.offsets[begin : end + 1])
            first, last = int(offsets[0]), int(offsets[-1])
            text = np.array(documents.text[first:last])  # the map's pages may go again
            tokens = _core.byte_tokens(text, offsets - np.uint64(first), before, after, is_wide)
            yield tokens, np.diff(offsets) + np.uint64(marks)


class FileEncoder:
    """A tokenizer.json through the package tokenizers, on all cores.

    Special tokens that stand in a document's text are read as text, so that no document can hold
    a separator.
    """

    def __init__(self, path: Path, vocab_size: int | None = None) -> None:
        file = path / _tokenizer.FILE if path.is_dir() else path
        self.sha256: str | None
        self._tokenizer, self.sha256 = _tokenizer.load_file(file)
        self._tokenizer.encode_special_tokens = True
        self.name = file.parent.name if file.name == _tokenizer.FILE else file.stem
        self.content: bytes | None = file.read_bytes()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        largest = max(ids.values(), default=0)
        self.vocab_size = largest + 1 if vocab_size is None else vocab_size

    def mark(self, what: str, value: object) -> Mark:
        """An id, or the text of a token."""
        if not isinstance(value, str):
            return _mark_id(what, value, self.vocab_size - 1)
        number = self._tokenizer.token_to_id(value)
        if number is None:
            raise ValueError(
                f"data.tokenize: {what} must be a token of {self.name}, got {value!a:.60}"
            )
        return _mark_id(what, number, self.vocab_size - 1)

    def encode(
        self, place: str, documents: Documents, before: Mark, after: Mark
    ) -> Iterator[tuple[UIntArray, UIntArray]]:
        """About a megabyte of documents at a time."""
        head = [] if before is None else [before]
        tail = [] if after is None else [after]
        for begin, end in _pieces(documents, _BATCH_BYTES):
            texts = list(_texts(place, documents, begin, end))
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            rows = [np.array([*head, *one.ids, *tail], np.int64) for one in encoded]
            for i, row in enumerate(rows, start=begin):
                largest = int(row.max(initial=0))
                if largest >= self.vocab_size:
                    raise ValueError(
                        f"data.tokenize: {place}: document {i} has token {largest}, vocab_size is "
                        f"{self.vocab_size}"
                    )
            sizes = np.array([len(row) for row in rows], np.uint64)
            yield np.concatenate(rows).astype(token_type(self.vocab_size)), sizes


def _pieces(documents: Documents, size: int) -> Iterator[tuple[int, int]]:
    """Runs begin..end of documents with at least `size` bytes, the last one aside."""
    offsets, begin = documents.offsets, 0
    while begin < len(documents):
        wanted = np.uint64(int(offsets[begin]) + size)
        end = min(max(int(np.searchsorted(offsets, wanted)), begin + 1), len(documents))
        yield begin, end
        begin = end


def _texts(place: str, documents: Documents, begin: int, end: int) -> Iterator[str]:
    for i in range(begin, end):
        try:
            yield documents[i].decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"data.tokenize: {place}: document {i} is not UTF-8: byte {error.start} is "
                f"0x{error.object[error.start]:02x}"
            ) from None


def encoder_of(tokenizer: object, vocab_size: int | None) -> Encoder:
    """The encoder that `tokenizer` names."""
    if isinstance(tokenizer, str) and tokenizer == "bytes":
        return ByteEncoder(vocab_size)
    if not isinstance(tokenizer, str | os.PathLike):
        raise ValueError(
            "data.tokenize: tokenizer must be 'bytes' or the path of a tokenizer.json, got "
            f"{type(tokenizer).__name__}"
        )
    return FileEncoder(Path(tokenizer), vocab_size)


def train_bpe(corpus: Corpus, vocab_size: int, cache: Path | None = None) -> Path:
    """The tokenizer.json of a byte-level BPE that is trained on the train splits; made once."""
    trained = {"corpus": corpus.sha256, "vocab_size": vocab_size, "kind": "byte-level BPE 1"}
    key = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:12]
    parent = (cache_folder() if cache is None else cache) / "tokens" / corpus.name
    path = parent / f"bpe-{vocab_size}-{key}" / _tokenizer.FILE
    if path.is_file():
        return path
    with locked_once(path.parent.with_name(f"{path.parent.name}.lock")):
        if not path.is_file():
            corpus.verify()
            path.parent.mkdir(exist_ok=True)
            _write(path, _trained(corpus, vocab_size).to_str(pretty=True).encode())
    return path


def _trained(corpus: Corpus, vocab_size: int) -> "tokenizers.Tokenizer":
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise ImportError("BPE needs the package tokenizers: pip install tokenizers") from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(corpus), trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise ValueError(
            f"data.train_bpe: vocab_size must be at most {found}, since {corpus.name} has no more "
            f"pairs to merge; got {vocab_size}"
        )
    return tokenizer


def _training_texts(corpus: Mapping[str, Mapping[str, Documents]]) -> Iterable[str]:
    for domain, splits in corpus.items():
        documents: Sequence[bytes] = splits["train"]
        yield from _texts(f"{domain} train", splits["train"], 0, len(documents))


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
