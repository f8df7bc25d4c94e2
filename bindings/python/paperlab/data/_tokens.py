"""Tokens of a recipe: made once, then memory-mapped."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from paperlab import _arguments, _core
from paperlab.data import _encoders, _shards, _store
from paperlab.data._corpus import Corpus, load_for
from paperlab.data._encoders import encoder_of, token_type
from paperlab.data._recipes import SPLITS
from paperlab.data._shards import FORMAT

UIntArray = npt.NDArray[Any]


class Count(NamedTuple):
    """What a split holds: documents, tokens with the marks between them, bytes of text."""

    documents: int
    tokens: int
    bytes: int


class Tokens(Mapping[str, Mapping[str, UIntArray]]):
    """Domain -> split (train, valid, test) -> tokens, uint8, uint16 or uint32 [N], memory-mapped.

    folder: where they lie. recipe: name of the recipe. tokenizer: "bytes" or a name;
    tokenizer_path: its tokenizer.json, None for bytes. vocab_size: tokens are below it.
    separator, bos: ids after and before each document, or None. counts: Count by domain and split.
    missing: reason by domain that could not be fetched. manifest: all of manifest.json.
    sha256: the hash of that file, for results.

    Raises, when made, ValueError naming the file if one is malformed, cut or not what the manifest
    says, FileNotFoundError if one is missing. Hashes are compared by `verify` only.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._core = _core.TokenFolder(os.fsencode(self.folder))
        self.manifest: dict[str, Any] = json.loads(self._core.manifest)
        self.sha256 = _hash(self.folder / _store.MANIFEST)
        self.vocab_size = int(self.manifest["vocab_size"])
        try:
            self.recipe = str(self.manifest["recipe"]["name"])
            self.tokenizer = str(self.manifest["tokenizer"]["name"])
            has_file = self.manifest["tokenizer"]["sha256"] is not None
            self.separator = self.manifest["separator"]
            self.bos = self.manifest["bos"]
            self.missing: dict[str, str] = dict(self.manifest["missing"])
            self._files: dict[str, Any] = dict(self.manifest["files"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{self.folder / _store.MANIFEST}: is no manifest of tokens") from None
        self.tokenizer_path = self.folder / _shards.TOKENIZER if has_file else None
        self.counts: dict[str, dict[str, Count]] = {}
        self._arrays: dict[str, dict[str, UIntArray]] = {}
        for record in self.manifest["domains"]:
            self._open(record["name"], record["splits"])

    def _open(self, domain: str, splits: Mapping[str, Any]) -> None:
        order = [*SPLITS, *sorted(splits)]
        self.counts[domain], self._arrays[domain] = {}, {}
        for split in sorted(splits, key=order.index):
            self._core.check(domain, split)
            record = splits[split]
            count = Count(record["documents"], record["tokens"], record["bytes"])
            self.counts[domain][split] = count
            path = self.folder / domain / f"{split}.npy"
            self._arrays[domain][split] = (
                np.load(path, mmap_mode="r", allow_pickle=False)
                if count.tokens
                else np.zeros(0, token_type(self.vocab_size))
            )

    def __getitem__(self, domain: str) -> Mapping[str, UIntArray]:
        if domain in self.missing:
            raise KeyError(f"{domain} is missing: {self.missing[domain]}")
        return self._arrays[domain]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        total = sum(count.tokens for splits in self.counts.values() for count in splits.values())
        domains = ", ".join(self)
        return f"Tokens({self.recipe}: {domains}; {self.tokenizer}, {total} tokens)"

    def documents(self, domain: str, split: str) -> npt.NDArray[np.uint64]:
        """uint64 [D + 1]: document i is the tokens offsets[i] .. offsets[i + 1]."""
        _ = self[domain][split]
        path = self.folder / domain / f"{split}_documents.npy"
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))

    def verify(self) -> None:
        """Reads every file; raises ValueError naming the first whose hash is not the manifest's."""
        for name, record in self._files.items():
            _store.check_hash(self.folder / name, record["sha256"])


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenize(
    recipe: str | Corpus,
    tokenizer: str | os.PathLike[str] = "bytes",
    *,
    domains: Sequence[str] | None = None,
    separator: int | str | None = None,
    bos: int | str | None = None,
    vocab_size: int | None = None,
    cache: Path | None = None,
    notice: Callable[[str], None] | None = None,
) -> Tokens:
    """The tokens of a fetched recipe of text; made on the first call, with bounded memory.

    recipe: its name, or a corpus of `load`; its files' hashes are compared with the manifest before
    they are read. tokenizer: "bytes" (the vocabulary is the 256 bytes),
    or a tokenizer.json or the folder that holds one, see also `train_bpe`. domains: some of the
    recipe's; None for all. separator: the id (or, of a tokenizer.json, the text) of a token that
    follows each document; for bytes 0, which no document holds, or 256, which makes the vocabulary
    257. bos: likewise, before each document. vocab_size: the model's, if it has more than the
    tokenizer. cache: the folder; None for PAPERLAB_CACHE. notice: called with each line of
    progress.

    The tokenizer's own special tokens are not added, and are not seen in a document's text. The
    folder gets its name when it is whole: a killed call is made anew by the next. Equal arguments
    and documents give equal bytes. A tokenizer.json needs the package tokenizers.

    Raises ValueError if an argument is not as above, a domain has no documents, a file is not what
    the manifest says, a token is beyond `vocab_size`, or a document is not UTF-8 (it is named);
    ImportError without the package;
    FileNotFoundError if a domain was never fetched; BlockingIOError if another process makes the
    same tokens; OSError if the cache cannot be written.
    """
    if vocab_size is not None:
        vocab_size = _arguments.integer("data.tokenize", "vocab_size", vocab_size, 1, 1 << 32)
    corpus = _corpus("data.tokenize", recipe, domains, cache)
    encoder = encoder_of(tokenizer, vocab_size)
    marks = (encoder.mark("bos", bos), encoder.mark("separator", separator))
    identity = {
        "format": FORMAT,
        "recipe": {"name": corpus.name, "sha256": corpus.sha256},
        "tokenizer": {"name": encoder.name, "sha256": encoder.sha256},
        "vocab_size": encoder.vocab_size,
        "dtype": token_type(encoder.vocab_size).name,
        "bos": marks[0],
        "separator": marks[1],
        "missing": corpus.missing,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    parent = (_store.cache_folder() if cache is None else cache) / "tokens" / corpus.name
    folder = parent / f"{_file_name(encoder.name)}-{key}"
    if not _shards.is_whole(folder, identity):
        with _store.locked_once(folder.with_name(f"{folder.name}.lock")):
            if not _shards.is_whole(folder, identity):
                say = notice or (lambda line: None)
                _shards.write_tokens(folder, corpus, encoder, marks, identity, say)
    return Tokens(folder)


def _file_name(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in text)[:60]


def _corpus(
    function: str, recipe: object, domains: Sequence[str] | None, cache: Path | None
) -> Corpus:
    """The corpus, none of whose domains is empty."""
    if isinstance(recipe, Corpus):
        if domains is not None:
            raise ValueError(f"{function}: domains must be None, the corpus has its own")
        corpus = recipe
    else:
        corpus = load_for(function, _arguments.text(function, "recipe", recipe), domains, cache)
    if not corpus:
        reasons = "; ".join(f"{domain}: {why}" for domain, why in corpus.missing.items())
        raise FileNotFoundError(f"{function}: {corpus.name}: every domain is missing: {reasons}")
    for domain, splits in corpus.items():
        if not any(len(documents.text) for documents in splits.values()):
            raise ValueError(f"{function}: {corpus.name}: domain {domain} has no documents")
    return corpus


def train_bpe(
    recipe: str | Corpus,
    vocab_size: int,
    *,
    domains: Sequence[str] | None = None,
    cache: Path | None = None,
) -> Path:
    """Trains a byte-level BPE on the train splits; returns the path of its tokenizer.json.

    vocab_size: tokens in all: the 256 bytes, "<|endoftext|>" (id 0, a separator) and the merges.
    Made on the first call, deterministic. Raises ValueError if the text has too few pairs to merge,
    ImportError without the package tokenizers; errors of `tokenize` too.
    """
    size = _arguments.integer("data.train_bpe", "vocab_size", vocab_size, 257, 1 << 24)
    return _encoders.train_bpe(_corpus("data.train_bpe", recipe, domains, cache), size, cache)
