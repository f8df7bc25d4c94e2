"""From the bytes of a file to the text of a document, or to the reason why it is dropped."""

import hashlib
import re
from collections.abc import Iterator

from paperlab.data._html import html_to_text
from paperlab.data._recipes import ENGLISH_WORDS, TRAIN_SHARE, VALID_SHARE, Domain
from paperlab.data._roff import is_link, roff_to_text

_DECLARED = re.compile(rb"coding[:=][ \t]*([-\w.]+)")
_NO_TEXT = re.compile(r"[\x00\x80-\x9f]")  # NUL separates documents; C1 marks a wrong encoding
_WORD = re.compile(r"[^\W\d_]+")


class DroppedError(Exception):
    """A file that makes no document; the message is one word."""


def read_document(data: bytes, domain: Domain) -> str:
    """The text of a file, ending in one line break; raises DroppedError."""
    text = _decode(data, domain.encodings)
    if domain.reader == "roff":
        if is_link(text):
            raise DroppedError("link")
        text = roff_to_text(text)
    elif domain.reader == "html":
        text = html_to_text(text)
    else:
        text = text.strip("\n") + "\n"
    size = len(text.encode())
    if size < domain.min_bytes:
        raise DroppedError("short")
    if size > domain.max_bytes:
        raise DroppedError("long")
    if not is_translated(text, domain):
        raise DroppedError("untranslated")
    return text


def _decode(data: bytes, fallbacks: tuple[str, ...]) -> str:
    """UTF-8 unless the first two lines declare another encoding or the domain has known ones."""
    head = b"\n".join(data.split(b"\n", 2)[:2])
    declared = [match[1].decode("ascii", "replace") for match in _DECLARED.finditer(head)]
    for encoding in ("utf-8-sig", *declared, *fallbacks):
        try:
            text = data.decode(encoding)
        except (UnicodeError, LookupError, ValueError):
            continue
        if not _NO_TEXT.search(text):
            return text.replace("\r\n", "\n")
    raise DroppedError("undecodable")


def is_translated(text: str, domain: Domain) -> bool:
    """Whether a document is in the domain's language, not an English page in its folder."""
    data = text.encode()
    if domain.min_non_ascii:
        return sum(byte > 127 for byte in data) >= domain.min_non_ascii * len(data)
    if not domain.words:
        return True
    words = _WORD.findall(text.lower())
    own = sum(word in domain.words for word in words)
    return own > sum(word in ENGLISH_WORDS for word in words)


def normalized_hash(text: str) -> bytes:
    """SHA-256 of a document without its white space: equal ones are duplicates."""
    return hashlib.sha256("".join(text.split()).encode()).digest()


def split_of(document: bytes) -> str:
    """train, valid or test: a function of the document's bytes alone."""
    number = int.from_bytes(hashlib.sha256(document).digest()[:8], "big") * 1000 >> 64
    if number < TRAIN_SHARE:
        return "train"
    return "valid" if number < TRAIN_SHARE + VALID_SHARE else "test"


def bundled_parts(text: str) -> Iterator[tuple[str, str]]:
    """What a file that comes with the package holds: a line `==== WORD` before each part."""
    words = re.split(r"^==== (\w+)\n", text, flags=re.MULTILINE)
    yield from zip(words[1::2], (part.strip("\n") + "\n" for part in words[2::2]), strict=True)
