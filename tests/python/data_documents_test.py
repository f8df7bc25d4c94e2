"""From bytes to documents: encodings, what is dropped, splits; the recipes themselves."""

import hashlib
import re

import pytest
from paperlab.data._documents import (
    DroppedError,
    is_translated,
    normalized_hash,
    read_document,
    split_of,
)
from paperlab.data._recipes import RECIPES, Domain, chosen_domains, recipe_named

MANUAL = RECIPES["manual-pages"].domains
PLAIN = Domain((), "", min_bytes=1)


def test_the_manual_pages_are_those_of_sixteen_packages() -> None:
    assert list(MANUAL) == "en de fr ru ja zh es pl uk".split()
    assert sum(len(domain.packages) for domain in MANUAL.values()) == 16
    assert list(RECIPES["code"].domains) == ["c", "python"]
    for recipe in RECIPES.values():
        for domain in recipe.domains.values():
            re.compile(domain.files)


@pytest.mark.parametrize(
    ("domain", "path", "expected"),
    [
        ("en", "usr/share/man/man3/printf.3.gz", True),
        ("en", "usr/share/man/man3/printf.3posix.gz", True),
        ("en", "usr/share/man/de/man1/ls.1.gz", False),
        ("de", "usr/share/man/de/man1/ls.1.gz", True),
        ("ja", "usr/share/man/ja.eucJP/man1/ls.1.gz", True),
        ("de", "usr/share/doc/manpages-de/README.md", False),
        ("zh", "usr/share/man/zh_TW/man1/ls.1.gz", False),
    ],
)
def test_files_of_a_domain(domain: str, path: str, expected: bool) -> None:
    assert bool(re.fullmatch(MANUAL[domain].files, path)) == expected


@pytest.mark.parametrize(
    ("data", "encodings", "text"),
    [
        ("\u00e4\r\nb\n\n".encode(), (), "\u00e4\nb\n"),
        (b"\xef\xbb\xbfa", (), "a\n"),
        ("\u65e5\u672c".encode("euc-jp"), ("euc-jp",), "\u65e5\u672c\n"),
        ("# -*- coding: latin-1 -*-\n\u00e9".encode("latin-1"), (), None),
        ("'\\\" -*- coding: koi8-r -*-\n\u0444".encode("koi8-r"), ("latin-1",), None),
    ],
)
def test_encodings(data: bytes, encodings: tuple[str, ...], text: str | None) -> None:
    domain = Domain((), "", encodings=encodings, min_bytes=1)
    found = read_document(data, domain)
    assert found == text if text is not None else found[-2] in "\u00e9\u0444"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xfe\xfa", "undecodable"),
        (b"# coding: nonsense\n\xff", "undecodable"),
        (b"# coding: hex\n\xff", "undecodable"),
        (b"# coding: undefined\n\xff", "undecodable"),
        (b"a\0b", "undecodable"),
        (b"", "short"),
        (b"x" * 1001, "long"),
    ],
)
def test_what_is_dropped(data: bytes, reason: str) -> None:
    with pytest.raises(DroppedError, match=reason):
        read_document(data, Domain((), "", min_bytes=2, max_bytes=1000))


def test_a_page_that_is_a_link_is_dropped() -> None:
    with pytest.raises(DroppedError, match="link"):
        read_document(b".so man1/ls.1\n", MANUAL["de"])


ENGLISH = "This is the description of a program that reads from the input and is for all. " * 9
GERMAN = "Das Programm liest die Eingabe und schreibt das Ergebnis, wenn der Schalter nicht ist. "


@pytest.mark.parametrize("language", ["de", "fr", "es", "pl", "ru", "ja", "zh", "uk"])
def test_english_pages_in_a_translation_are_dropped(language: str) -> None:
    page = f".TH X 1\n.SH NAME\n{ENGLISH}\n".encode()
    assert read_document(page, MANUAL["en"])
    with pytest.raises(DroppedError, match="untranslated"):
        read_document(page, MANUAL[language])


def test_translated_pages_are_kept() -> None:
    assert is_translated(GERMAN * 9 + ENGLISH[:200], MANUAL["de"])
    assert not is_translated(GERMAN + ENGLISH, MANUAL["de"])
    assert is_translated("\u0444" * 100 + "x" * 790, MANUAL["ru"])
    assert not is_translated("\u0444" * 100 + "x" * 810, MANUAL["ru"])  # below 20 % of the bytes


def test_duplicates_differ_in_white_space_only() -> None:
    assert normalized_hash("a b\n\nc\n") == normalized_hash("a\nb c\n")
    assert normalized_hash("a b") != normalized_hash("a c")


def test_splits_depend_on_the_document_alone_and_stay() -> None:
    def rule(document: bytes) -> str:
        share = int(hashlib.sha256(document).hexdigest()[:16], 16) / 2**64
        return "train" if share < 0.9 else "valid" if share < 0.95 else "test"

    documents = [f"document {i}".encode() for i in range(4000)]
    splits = [split_of(document) for document in documents]
    assert splits == [rule(document) for document in documents]
    assert splits[:12].count("train") == 11 and split_of(b"document 3") == splits[3]
    for split, share in (("train", 0.9), ("valid", 0.05), ("test", 0.05)):
        deviation = (share * (1 - share) / 4000) ** 0.5
        assert abs(splits.count(split) / 4000 - share) < 4 * deviation


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("manual-page", "did you mean 'manual-pages'"),
        ("xyz", "one of manual-pages, code"),
        (3, "3"),
    ],
)
def test_an_unknown_recipe(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"data.load: unknown recipe .*{message}"):
        recipe_named("data.load", name)


@pytest.mark.parametrize("domains", ["en", ["english"], [], [1], 5])
def test_bad_domains(domains: object) -> None:
    with pytest.raises(ValueError, match=r"data.load: .*domain"):
        chosen_domains("data.load", RECIPES["manual-pages"], domains)


def test_domains_come_in_the_order_of_the_recipe() -> None:
    assert chosen_domains("x", RECIPES["manual-pages"], ["de", "en", "de"]) == ["en", "de"]
