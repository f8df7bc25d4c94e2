"""The texts of a training run: tokens to train on, held-out documents, samples as text."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paperlab import _tokenizer, data
from paperlab._commands._line import UsageError, decoded
from paperlab._commands._train_config import Config
from paperlab.data._corpus import Corpus, Documents
from paperlab.data._recipes import SPLITS, UnknownNameError
from paperlab.eval import Text, encode

if TYPE_CHECKING:
    import tokenizers

_TRAIN, _HELD_OUT = SPLITS[0], SPLITS[1]


class FileCorpus(Corpus):
    """Files as domains, each of one document.

    named: the domains that have a file, by split.
    """

    def __init__(
        self, source: str, train: Sequence[str], held_out: Sequence[str], mark: int | None
    ) -> None:
        parts = {
            _TRAIN: _named(f"{source}: data.files", train),
            _HELD_OUT: _named(f"{source}: eval.files", held_out),
        }
        self.name, self.missing, self.paths = "files", {}, {}
        self.named = {split: list(paths) for split, paths in parts.items()}
        self._domains = {
            name: {split: _document(parts.get(split, {}).get(name), mark) for split in SPLITS}
            for name in dict.fromkeys([*parts[_TRAIN], *parts[_HELD_OUT]])
        }
        self.manifest = {
            name: {split: _record(path) for split in parts if (path := parts[split].get(name))}
            for name in self._domains
        }
        text = json.dumps(self.manifest, sort_keys=True)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()


def _named(key: str, arguments: Sequence[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        has_name = bool(equals and name) and "/" not in name
        path = Path(file if has_name else argument)
        domain = name if has_name else path.name
        if domain in paths:
            raise UsageError(
                f"{key}: two files are named {domain!a:.60}; NAME=FILE tells them apart"
            )
        if not domain or domain.startswith(".") or not domain.isprintable():
            raise UsageError(f"{key}: a file cannot be named {domain!a:.60}; NAME=FILE names it")
        paths[domain] = path
    return paths


def _document(path: Path | None, mark: int | None) -> Documents:
    """The file as a document, in which the byte `mark` must not occur."""
    content = b"" if path is None else path.read_bytes()
    if path is not None:
        decoded(f"'{path}'", content)
        if not content:
            raise ValueError(f"'{path}': is empty")
        if mark is not None and (place := content.find(mark)) >= 0:
            raise ValueError(
                f"'{path}': byte {place} is {mark}, the separator; data.separator 256 is no byte"
            )
    ends = [0] if path is None else [0, len(content)]
    return Documents(np.frombuffer(content, np.uint8), np.array(ends, np.uint64))


def _record(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@dataclass(frozen=True)
class Texts:
    """What a run reads."""

    tokens: data.Tokens
    sampler: data.Sampler
    corpus: Corpus
    tokenizer: "tokenizers.Tokenizer | None"  #: None: bytes.
    left_out: dict[str, str]  #: Domains that nobody named and nothing is drawn from, and why.

    @property
    def record(self) -> dict[str, Any]:
        """Hashes that say which data these are."""
        return {
            "corpus": self.corpus.name,
            "manifest_sha256": self.corpus.sha256,
            "tokens_sha256": self.tokens.sha256,
            "left_out": self.left_out,
        }

    def ids(self, text: str) -> list[int]:
        """The tokens of a prompt."""
        if self.tokenizer is None:
            return list(text.encode())
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text."""
        if self.tokenizer is None:
            return bytes(t for t in tokens if t < 256).decode(errors="replace")
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def held_out(
        self, source: str, options: Config, notice: Callable[[str], None]
    ) -> dict[str, list[Text]]:
        """The documents on which the model is measured, by domain, as a model reads them.

        A domain without one is refused if the config names it; else one notice names them all.
        """
        key, named = "eval.domains", options["domains"]
        if isinstance(self.corpus, FileCorpus):
            key, named = "eval.files", self.corpus.named.get(options["split"])
        texts = {}
        for name in named or self.corpus:
            if name not in list(self.corpus):
                why = self.corpus.missing.get(name, "the data have no such domain")
                raise UsageError(f"{source}: {key}: {name}: {why}")
            documents = self.corpus[name][options["split"]]
            texts[name] = self._first(documents, options["documents"], options["tokens"])
        found = {name: some for name, some in texts.items() if some}
        lacking = ", ".join(name for name, some in texts.items() if not some)
        reason = f"the split {options['split']} has no document of two tokens"
        if not found or (named and lacking):
            raise UsageError(f"{source}: {key}: {lacking or 'nothing to measure'}: {reason}")
        if lacking:
            notice(f"not measured: {lacking}: {reason}")
        return found

    def _first(
        self, documents: Documents, num_documents: int | None, num_tokens: int | None
    ) -> list[Text]:
        """Whole documents, so many or until they have so many tokens; all without a limit."""
        texts: list[Text] = []
        for i in range(len(documents)):
            is_enough = num_tokens and sum(len(text.tokens) for text in texts) >= num_tokens
            if is_enough or len(texts) == num_documents:
                break
            text = self._encoded(documents[i])
            if len(text.tokens) > 1 and text.num_bytes:
                texts.append(text)
        return texts

    def _encoded(self, document: bytes) -> Text:
        """With the separator in front, where there is one, every byte is scored."""
        mark = self.tokens.separator
        if self.tokenizer is None:
            ids, unscored = list(document), 1
        elif mark is None:
            return encode(self.tokenizer, document.decode())
        else:
            ids, unscored = self.ids(document.decode()), 0
        head = [] if mark is None else [mark]
        num_bytes = len(document) - (0 if head else unscored)
        return Text(torch.tensor([*head, *ids], dtype=torch.int64), num_bytes)


def open_texts(source: str, config: Config, notice: Callable[[str], None]) -> Texts:
    """Reads, and where it is not yet done makes, the tokens of a config's data.

    source: the config's file. notice: gets a line about domains that are left out; one that the
    config names is refused.
    """
    options, training = config["data"], config["training"]
    corpus = _corpus(source, config)
    tokenizer = options["tokenizer"]
    if tokenizer == "model":
        tokenizer = Path(config["model"]["from"])
    elif tokenizer != "bytes":
        tokenizer = Path(tokenizer)
    with _errors_of(source):
        tokens = data.tokenize(corpus, tokenizer, separator=options["separator"])
    left_out = _left_out(source, options, corpus, tokens)
    with _errors_of(source):
        sampler = data.Sampler(
            tokens,
            length=options["length"],
            batch_size=training["batch_size"],
            weights=options["weights"]
            and {name: w for name, w in options["weights"].items() if name not in left_out},
            seed=training["seed"],
            domains=[name for name in tokens if not _lack(tokens, name, options["length"])],
        )
    if left_out:
        reasons = ", ".join(f"{name} ({why})" for name, why in left_out.items())
        notice(f"left out of training: {reasons}")
    reader = _tokenizer.load_file(tokens.tokenizer_path)[0] if tokens.tokenizer_path else None
    return Texts(tokens, sampler, corpus, reader, left_out)


def _lack(tokens: data.Tokens, name: str, length: int) -> str | None:
    """Why nothing can be drawn from a domain."""
    count = tokens.counts[name][_TRAIN].tokens
    if count > length:
        return None
    return f"{count} tokens to train on, a row needs {length + 1}"


def _left_out(source: str, options: Config, corpus: Corpus, tokens: data.Tokens) -> dict[str, str]:
    """The domains from which nothing is drawn; UsageError for one that the config names."""
    left_out = dict(corpus.missing)
    left_out |= {name: why for name in tokens if (why := _lack(tokens, name, options["length"]))}
    weighted = [name for name, weight in (options["weights"] or {}).items() if weight > 0]
    named = {"data.weights": weighted, "data.domains": options["domains"] or []}
    if isinstance(corpus, FileCorpus):
        named["data.files"] = corpus.named[_TRAIN]
    for key, names in named.items():
        for name in names:
            if name in left_out:
                raise UsageError(f"{source}: {key}: {name}: {left_out[name]}")
    if len(left_out) == len(tokens) + len(corpus.missing):
        raise UsageError(f"{source}: data.length: no domain has so many tokens")
    if isinstance(corpus, FileCorpus):  # the others are there to be measured on
        return {}
    return left_out


_PLACES = {
    "weights": "data.weights",
    "separator": "data.separator",
    "length": "data.length",
    "batch_size": "training.batch_size",
    "seed": "training.seed",
}
_NAMED = re.compile(rf"(?:data\.tokenize|Sampler): ({'|'.join(_PLACES)})\b(.*)", re.DOTALL)


@contextlib.contextmanager
def _errors_of(source: str) -> Iterator[None]:
    """An argument is a key of the config."""
    try:
        yield
    except ValueError as error:
        match = _NAMED.match(str(error))
        if match is None:
            raise
        raise UsageError(f"{source}: {_PLACES[match[1]]}{match[2]}") from None


def _corpus(source: str, config: Config) -> Corpus:
    options = config["data"]
    if options["files"] is not None:
        mark = 0 if options["separator"] == 0 and options["tokenizer"] == "bytes" else None
        held_out = (config["eval"] or {}).get("files") or []
        return FileCorpus(source, options["files"], held_out, mark)
    try:
        corpus = data.load(options["recipe"], options["domains"])
    except UnknownNameError as error:
        key = "data.domains" if "unknown domain" in str(error) else "data.recipe"
        raise UsageError(f"{source}: {key}: {str(error).removeprefix('data.load: ')}") from None
    for name in corpus.missing if options["domains"] is not None else ():
        raise ValueError(f"{options['recipe']}: {name} is missing: {corpus.missing[name]}")
    return corpus


def byte_tokenizer(separator: int | None) -> Mapping[str, Any]:
    """A tokenizer.json whose token b < 256 is the byte b; 256 is the separator if it is used."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]
    style = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": 256, "content": "<|endoftext|>", "special": True, **plain}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added if separator == 256 else [],
        "normalizer": None,
        "pre_tokenizer": {**style, "use_regex": True},
        "post_processor": None,
        "decoder": {**style, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: byte for byte, letter in enumerate(letters)},
            "merges": [],
        },
    }
