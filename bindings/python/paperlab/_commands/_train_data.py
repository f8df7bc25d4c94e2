"""The texts of a training run: tokens to train on, held-out documents, samples as text."""

import hashlib
import json
from collections.abc import Mapping, Sequence
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
    """Files as domains, each of one document."""

    def __init__(self, train: Sequence[str], held_out: Sequence[str]) -> None:
        parts = {_TRAIN: _named(train), _HELD_OUT: _named(held_out)}
        self.name, self.missing, self.paths = "files", {}, {}
        self._domains = {
            name: {split: _document(parts.get(split, {}).get(name)) for split in SPLITS}
            for name in dict.fromkeys([*parts[_TRAIN], *parts[_HELD_OUT]])
        }
        self.manifest = {
            name: {split: _record(path) for split in parts if (path := parts[split].get(name))}
            for name in self._domains
        }
        text = json.dumps(self.manifest, sort_keys=True)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()


def _named(arguments: Sequence[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        has_name = bool(equals and name) and "/" not in name
        path = Path(file if has_name else argument)
        key = name if has_name else path.name
        if key in paths:
            raise UsageError(f"two files are named {key!a:.60}; NAME=FILE tells them apart")
        if not key or key.startswith(".") or not key.isprintable():
            raise UsageError(f"a file cannot be named {key!a:.60}; NAME=FILE names it")
        paths[key] = path
    return paths


def _document(path: Path | None) -> Documents:
    content = b"" if path is None else path.read_bytes()
    if path is not None:
        decoded(f"'{path}'", content)
        if not content:
            raise ValueError(f"'{path}': is empty")
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

    @property
    def record(self) -> dict[str, Any]:
        """Hashes that say which data these are."""
        return {
            "corpus": self.corpus.name,
            "manifest_sha256": self.corpus.sha256,
            "tokens_sha256": self.tokens.sha256,
            "missing": self.tokens.missing,
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

    def held_out(self, options: Config) -> dict[str, list[Text]]:
        """The documents on which the model is measured, by domain, as a model reads them."""
        chosen = options["domains"] or list(self.corpus)
        texts = {}
        for name in chosen:
            if name not in list(self.corpus):
                why = self.corpus.missing.get(name, "the data have no such domain")
                raise ValueError(f"eval.domains: {name}: {why}")
            documents = self.corpus[name][options["split"]]
            texts[name] = self._first(documents, options["documents"], options["tokens"])
        found = {name: some for name, some in texts.items() if some}
        if not found:
            raise ValueError(f"the split {options['split']} has no document to measure on")
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


def open_texts(config: Config) -> Texts:
    """Reads, and where it is not yet done makes, the tokens of a config's data."""
    options, training = config["data"], config["training"]
    corpus = _corpus(config)
    tokenizer = options["tokenizer"]
    if tokenizer == "model":
        tokenizer = Path(config["model"]["from"])
    elif tokenizer != "bytes":
        tokenizer = Path(tokenizer)
    tokens = data.tokenize(corpus, tokenizer, separator=options["separator"])
    trained = [name for name in tokens if tokens.counts[name][_TRAIN].tokens]
    sampler = data.Sampler(
        tokens,
        length=options["length"],
        batch_size=training["batch_size"],
        weights=options["weights"],
        seed=training["seed"],
        domains=trained,
    )
    reader = _tokenizer.load_file(tokens.tokenizer_path)[0] if tokens.tokenizer_path else None
    return Texts(tokens, sampler, corpus, reader)


def _corpus(config: Config) -> Corpus:
    options = config["data"]
    if options["files"] is not None:
        return FileCorpus(options["files"], (config["eval"] or {}).get("files") or [])
    try:
        corpus = data.load(options["recipe"], options["domains"])
    except UnknownNameError as error:
        raise UsageError(str(error).removeprefix("data.load: ")) from None
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
