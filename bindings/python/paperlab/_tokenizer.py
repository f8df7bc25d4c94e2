"""The tokenizer of a model's directory, and text that grows token by token."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

FILE = "tokenizer.json"

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes that are no UTF-8


def load(directory: Path) -> "tuple[tokenizers.Tokenizer, str]":
    """The tokenizer of a directory, see `load_file`."""
    return load_file(directory / FILE)


def load_file(path: Path) -> "tuple[tokenizers.Tokenizer, str]":
    """The tokenizer of a file, which reads texts of any length, and the file's SHA-256.

    Raises ImportError without the package tokenizers, FileNotFoundError without the file,
    ValueError if it is no tokenizer.
    """
    try:
        import tokenizers
    except ImportError:
        raise ImportError("text needs the package tokenizers: pip install tokenizers") from None
    content = path.read_bytes()
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # what Rust calls an error is no class of its own
        raise ValueError(f"'{path}': not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, hashlib.sha256(content).hexdigest()


def check_vocabulary(
    tokenizer: "tokenizers.Tokenizer", vocab_size: int, tokens: Iterable[int]
) -> None:
    """Raises ValueError, naming both sizes, if a model of `vocab_size` cannot read the tokens.

    A model may have more, as padding; a tokenizer may have more that were added and are not used.
    """
    own = tokenizer.get_vocab_size(with_added_tokens=False)
    largest = max(tokens, default=0)
    if max(own, largest + 1) > vocab_size:
        everything = tokenizer.get_vocab_size(with_added_tokens=True)
        known = f"the tokenizer knows {everything} tokens, the model {vocab_size}"
        example = f"; the text has token {largest}" if largest >= vocab_size else ""
        raise ValueError(f"vocabulary mismatch: {known}{example}")


class Stream:
    """Generated text in pieces, which together are the text of all tokens.

    A character comes when its last byte is there: a piece never holds a part of one. Special
    tokens are left out.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer", prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # What comes before the new tokens decides how they are written (a space at the start, say).
        self._before = list(prompt)
        self._before_text = self._text(self._before)
        self._new: list[int] = []
        self._printed = 0  # characters of the new tokens' text

    def add(self, token: int) -> str:
        """Returns the text that this token completes, perhaps none."""
        self._new.append(token)
        text = self._text_of_new()
        whole = text.rstrip(_INCOMPLETE)
        piece = whole[self._printed :]
        self._printed = max(self._printed, len(whole))
        if whole == text:
            # Only whole characters in both, so that neither starts in the midst of one.
            self._before = self._new if text else self._before + self._new
            self._before_text = self._text(self._before)
            self._new, self._printed = [], 0
        return piece

    def _text_of_new(self) -> str:
        text = self._text(self._before + self._new)
        if text.startswith(self._before_text):
            return text[len(self._before_text) :]
        return self._text(self._new)  # the new bytes made the ones before look wrong

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
