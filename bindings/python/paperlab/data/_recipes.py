"""The recipes as data: which files of which packages make which domain, and how they are read."""

import difflib
import hashlib
from dataclasses import dataclass
from typing import Literal

TOOL_VERSION = 1  # counts up whenever the same packages give other bytes

# The share of documents by SHA-256, in thousandths; the rest is the test split.
TRAIN_SHARE, VALID_SHARE = 900, 50
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Package:
    """A Debian package, by name or as the dependency of a metapackage that changes its name."""

    name: str
    dependency: str = ""  # pattern: take the dependency of `name` that matches

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Domain:
    """What makes one domain. Patterns match whole paths inside a package, as in usr/include/x.h."""

    packages: tuple[Package, ...]
    files: str
    reader: Literal["text", "roff", "html", "idx", "digits", "bundled", "drawn"] = "text"
    min_bytes: int = 400
    max_bytes: int = 1 << 24
    encodings: tuple[str, ...] = ()  # tried in order on what is not UTF-8 and declares nothing
    min_non_ascii: float = 0.0  # share of bytes; pages below it are not translated
    words: tuple[str, ...] = ()  # of the language: there must be more than English ones

    @property
    def rules(self) -> str:
        """Names what a stored domain was made by; another value means that it is out of date."""
        return hashlib.sha256(f"{TOOL_VERSION} {self!r}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Recipe:
    """Domains that are fetched together."""

    name: str
    summary: str
    domains: dict[str, Domain]


def _debian(*names: str) -> tuple[Package, ...]:
    return tuple(Package(name) for name in names)


def _manual(
    folder: str,
    *packages: str,
    encodings: str = "",
    words: str = "",
    min_non_ascii: float = 0.0,
) -> Domain:
    return Domain(
        packages=_debian(*packages),
        files=rf"usr/share/man/{folder}man\d\w*/[^/]+",
        reader="roff",
        encodings=tuple(encodings.split()),
        words=tuple(words.split()),
        min_non_ascii=min_non_ascii,
    )


ENGLISH_WORDS = frozenset("the of and is that for with this are be from which".split())

_MANUAL_PAGES = Recipe(
    "manual-pages",
    "manual pages of Linux in nine languages, without markup",
    {
        "en": _manual("", "manpages", "manpages-dev", encodings="latin-1"),
        "de": _manual(
            r"de(?:\.[^/]+)?/",
            "manpages-de",
            "manpages-de-dev",
            encodings="latin-1",
            words="der die und das ist den nicht mit von wird werden eine dem zu",
        ),
        "fr": _manual(
            r"fr(?:\.[^/]+)?/",
            "manpages-fr",
            "manpages-fr-dev",
            encodings="latin-1",
            words="le la les des est une pour dans que par sur du ou ne",
        ),
        "ru": _manual(
            r"ru(?:\.[^/]+)?/",
            "manpages-ru",
            "manpages-ru-dev",
            encodings="koi8-r",
            min_non_ascii=0.2,
        ),
        "ja": _manual(
            r"ja(?:\.[^/]+)?/",
            "manpages-ja",
            "manpages-ja-dev",
            encodings="euc-jp",
            min_non_ascii=0.2,
        ),
        # The pages of zh_TW are those of zh_CN in other characters: twins across splits.
        "zh": _manual(r"zh_CN(?:\.[^/]+)?/", "manpages-zh", encodings="gb18030", min_non_ascii=0.2),
        "es": _manual(
            r"es(?:\.[^/]+)?/",
            "manpages-es",
            "manpages-es-dev",
            encodings="latin-1",
            words="el la los las del que una para con por se es un de",
        ),
        "pl": _manual(
            r"pl(?:\.[^/]+)?/",
            "manpages-pl",
            "manpages-pl-dev",
            encodings="iso8859-2",
            words="jest nie lub dla przez oraz na z w i od o nazwa zostanie",
        ),
        "uk": _manual(r"uk(?:\.[^/]+)?/", "manpages-uk", encodings="koi8-u", min_non_ascii=0.2),
    },
)

_CODE = Recipe(
    "code",
    "C headers of Linux and glibc, Python's standard library",
    {
        "c": Domain(
            _debian("linux-libc-dev", "libc6-dev"), r"usr/include/.*\.h", max_bytes=200_000
        ),
        "python": Domain(
            (Package("libpython3-stdlib", r"libpython3\.\d+-stdlib"),),
            r"usr/lib/python3\.\d+/.*\.py",
            max_bytes=200_000,
        ),
    },
)

_BOOKS = Recipe(
    "books",
    "English books and documentation, about 60 MB to fetch",
    {
        "books": Domain(
            _debian("debian-handbook", "debian-faq", "developers-reference", "anarchism"),
            r"usr/share/doc/debian-handbook/html/en-US/[^/]+\.html"
            r"|usr/share/doc/debian/FAQ/[^/]+\.en\.html"
            r"|usr/share/developers-reference/(?!developers-reference|index|search)[^/]+\.html"
            r"|usr/share/doc/anarchism/html/[^/]+\.html",
            "html",
            min_bytes=2000,
        ),
        "docs": Domain(
            (Package("python3-doc", r"python3\.\d+-doc"),),
            r"usr/share/doc/python3\.\d+/html/_sources/.*\.rst\.txt(?:\.gz)?",
            min_bytes=2000,
        ),
    },
)

_FASHION_MNIST = Recipe(
    "fashion-mnist",
    "70,000 pictures of clothes, 28 x 28, in ten classes",
    {"images": Domain(_debian("dataset-fashion-mnist"), r".*/(train|t10k)-[^/]*-ubyte.gz", "idx")},
)

_DIGITS = Recipe(
    "digits",
    "1,797 handwritten digits, 8 x 8, of scikit-learn",
    {
        "images": Domain(
            _debian("python3-sklearn"), r".*/sklearn/datasets/data/digits\.csv\.gz", "digits"
        )
    },
)

_SAMPLE = Recipe(
    "sample",
    "a few kilobytes that come with paperlab, for tests; nothing is fetched",
    {
        domain: Domain((), f"{domain}.text", "bundled")
        for domain in ("en", "de", "ru", "ja", "c", "python")
    },
)

_SAMPLE_IMAGES = Recipe(
    "sample-images",
    "180 drawn digits, 8 x 8, that come with paperlab, for tests; nothing is fetched",
    {"images": Domain((), "digits.glyphs", "drawn")},
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        _MANUAL_PAGES,
        _CODE,
        _BOOKS,
        _FASHION_MNIST,
        _DIGITS,
        _SAMPLE,
        _SAMPLE_IMAGES,
    )
}


def is_bundled(recipe: Recipe) -> bool:
    """Whether it comes with the package, so that nothing is fetched."""
    return not any(domain.packages for domain in recipe.domains.values())


def is_of_images(recipe: Recipe) -> bool:
    """Whether it holds pictures with labels, not text."""
    return "images" in recipe.domains


class UnknownNameError(ValueError):
    """A name of a recipe or a domain that is not known."""


def _unknown(function: str, kind: str, word: str, known: list[str]) -> UnknownNameError:
    near = difflib.get_close_matches(word, known, n=1)
    choice = f"'{near[0]}'" if near else f"one of {', '.join(known)}"
    return UnknownNameError(f"{function}: unknown {kind} {word!a:.60}; did you mean {choice}?")


def recipe_named(function: str, name: str) -> Recipe:
    """The recipe; raises ValueError with the nearest name."""
    if not isinstance(name, str) or name not in RECIPES:
        raise _unknown(function, "recipe", str(name), list(RECIPES))
    return RECIPES[name]


def chosen_domains(function: str, recipe: Recipe, domains: object) -> list[str]:
    """The chosen domains in the recipe's order, None for all; ValueError with the nearest name."""
    known = list(recipe.domains)
    if domains is None:
        return known
    if isinstance(domains, str) or not isinstance(domains, list | tuple):
        raise ValueError(f"{function}: domains must be a list of names, got {domains!a:.60}")
    for name in domains:
        if not isinstance(name, str) or name not in known:
            raise _unknown(function, f"domain of {recipe.name}", str(name), known)
    if not domains:
        raise ValueError(f"{function}: domains must name at least one of {', '.join(known)}")
    return [name for name in known if name in domains]
