"""The texts of an evaluation: files, and documents of recipes."""

import argparse
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperlab import _tokenizer, data
from paperlab._commands import _line
from paperlab.data._recipes import UnknownNameError
from paperlab.eval import Text, encode

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class Domain:
    """Documents that are read each from its own beginning."""

    source: dict[str, Any]  #: Where they come from, for the result.
    names: list[str]  #: Of each document, for messages.
    texts: list[Text]

    def check_vocabulary(self, tokenizer: "tokenizers.Tokenizer", vocab_size: int) -> None:
        """Raises ValueError if a model of `vocab_size` cannot read the texts."""
        for name, text in zip(self.names, self.texts, strict=True):
            try:
                _tokenizer.check_vocabulary(tokenizer, vocab_size, [int(text.tokens.max())])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def from_files(arguments: Sequence[str], tokenizer: "tokenizers.Tokenizer") -> dict[str, Domain]:
    """A domain for each [NAME=]FILE; its name is NAME or the file's."""
    domains: dict[str, Domain] = {}
    for argument in arguments:
        name, path = _named(argument)
        if name in domains:
            raise _line.UsageError(f"two texts are named {name!a:.60}; NAME=FILE tells them apart")
        content = path.read_bytes()
        source = {"file": str(path), "sha256": hashlib.sha256(content).hexdigest()}
        place = f"'{path}'"
        domains[name] = Domain(source, [place], [_encoded(tokenizer, place, content)])
    return domains


def from_recipe(
    options: argparse.Namespace, tokenizer: "tokenizers.Tokenizer", taken: Collection[str]
) -> dict[str, Domain]:
    """The domains that options.data, domains, split and documents choose, from the cache."""
    recipe, split = options.data, options.split or "test"
    chosen = options.domains.split(",") if options.domains is not None else None
    try:
        corpus = data.load(recipe, chosen)
    except UnknownNameError as error:
        raise _line.UsageError(str(error).removeprefix("data.load: ")) from None
    for name in corpus.missing if chosen is not None else ():
        raise ValueError(f"{recipe}: {name} is missing: {corpus.missing[name]}")
    if corpus.missing:
        reasons = ", ".join(f"{name} ({why})" for name, why in corpus.missing.items())
        print(f"not measured: {reasons}")
    source = {"recipe": recipe, "split": split, "manifest_sha256": corpus.sha256}
    domains = {}
    for name in corpus:
        if name in taken:
            raise _line.UsageError(f"a text is named as the domain {name!a:.60}")
        documents = corpus[name][split][: options.documents]
        if not documents:
            raise ValueError(f"{recipe}: {name} has no documents in the split {split}")
        names = [f"{recipe} {name}, document {i} of {split}" for i in range(len(documents))]
        texts = [_encoded(tokenizer, *named) for named in zip(names, documents, strict=True)]
        domains[name] = Domain(source, names, texts)
    return domains


def _named(argument: str) -> tuple[str, Path]:
    """A slash before the = makes it a part of the path."""
    name, equals, file = argument.partition("=")
    if equals and name and "/" not in name:
        return name, Path(file)
    return Path(argument).name, Path(argument)


def _encoded(tokenizer: "tokenizers.Tokenizer", name: str, content: bytes) -> Text:
    text = encode(tokenizer, _line.decoded(name, content))
    count = len(text.tokens)
    if count < 2:
        what = _line.counted(count, "token") if content else "nothing"
        raise ValueError(f"{name}: holds {what}; a score needs two tokens, the first has none")
    return text
