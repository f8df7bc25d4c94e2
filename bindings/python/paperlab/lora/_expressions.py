"""Regular expressions of files that nobody vouches for.

`re` tries one way after another: for (a+)+$ there are 2^n of them in a name of n letters. Here a
part of an expression is a function from a place in the name to the set of places where it may end,
kept once known, so n letters and m parts take some n^2 m steps (Thompson, CACM 11(6), 1968).
Whether an expression fits is what `re` says; what depends on the order of tries (back-references,
atomic groups, possessive repetition) is refused. `re`'s own parser reads the expression.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from re import _parser  # type: ignore[attr-defined]
from typing import Any

_MOST_LETTERS = 1 << 16  # of an expression
_MOST_DEPTH = 50  # of parts in parts
_MOST_STEPS = 2_000_000  # of an adapter's patterns in all; some seconds

_Part = tuple[str, Any]
_SPECIAL = frozenset("*+?{|(")  # without these, there is one way for `re` to go


class Matcher:
    """Answers for any number of expressions and names, in a bounded number of steps in all."""

    def __init__(self, source: str = "") -> None:
        self._source = source  # before the message of an error
        self._parts: dict[str, list[_Part]] = {}
        self._plain: dict[str, re.Pattern[str]] = {}
        self._first: dict[tuple[str, str], str | None] = {}
        self._steps = 0

    def fullmatch(self, pattern: str, name: str) -> bool:
        """As `re.fullmatch`."""
        return bool(self._ends(pattern, name) >> len(name) & 1)

    def first(self, kind: str, patterns: Iterable[str], name: str) -> str | None:
        """The first of the patterns of that kind that fits the name's end, as peft looks it up."""
        key = (kind, name)
        if key not in self._first:
            self._first[key] = next((x for x in patterns if self._fits(x, name)), None)
        return self._first[key]

    def _fits(self, pattern: str, name: str) -> bool:
        self._spend()
        if not _SPECIAL.isdisjoint(pattern):
            return bool(self._ends(_of_end(pattern), name))
        if pattern not in self._plain:
            self._plain[pattern] = re.compile(_of_end(pattern))
        return self._plain[pattern].match(name) is not None

    def _ends(self, pattern: str, name: str) -> int:
        if pattern not in self._parts:
            self._parts[pattern] = _compiled(pattern)
        return _Run(name, self._spend).sequence(self._parts[pattern], 1)

    def _spend(self) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise ValueError(
                f"{self._source}patterns must take at most {_MOST_STEPS} steps for the names of "
                "the model's layers, got some that take more"
            )


def check(pattern: str, *, is_whole: bool) -> None:
    """Raises ValueError, saying why, for what is no expression or one that `Matcher` refuses."""
    if len(pattern) > _MOST_LETTERS:
        raise ValueError(f"more than {_MOST_LETTERS} letters")
    try:
        _compiled(pattern)
        if not is_whole:
            _compiled(_of_end(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _of_end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _compiled(pattern: str) -> list[_Part]:
    parsed = _parser.parse(pattern)
    return list(_parts(parsed, parsed.state.flags, 1))


def _parts(parsed: Any, flags: int, depth: int) -> Iterator[_Part]:
    """What the parser gives, with each single letter as a question."""
    if depth > _MOST_DEPTH:
        raise ValueError(f"parts must be nested at most {_MOST_DEPTH} deep")
    for operation, value in parsed:
        kind = str(operation)
        if kind == "BRANCH":
            yield "branch", [list(_parts(part, flags, depth + 1)) for part in value[1]]
        elif kind == "SUBPATTERN":
            _, added, removed, inner = value
            yield "branch", [list(_parts(inner, flags & ~removed | added, depth + 1))]
        elif kind in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = value
            yield "repeat", (int(least), int(most), list(_parts(inner, flags, depth + 1)))
        elif kind in ("ASSERT", "ASSERT_NOT"):
            direction, inner = value
            back = inner.getwidth()[0] if direction < 0 else 0
            is_wanted = kind == "ASSERT"
            yield "look", (direction, back, is_wanted, list(_parts(inner, flags, depth + 1)))
        elif kind == "AT":
            yield "at", str(value)
        else:
            yield "letter", cache(_letter(kind, value, flags))


def _letter(kind: str, value: Any, flags: int) -> Callable[[str], bool]:
    """Whether a letter fits a part that is one letter long."""
    if kind == "ANY":
        return lambda letter: letter != "\n" or bool(flags & re.DOTALL)
    items = value if kind == "IN" else [(kind, value)]
    is_not = kind == "NOT_LITERAL" or str(items[0][0]) == "NEGATE"
    tests = [_item(str(k), v) for k, v in items if str(k) != "NEGATE"]
    if not flags & re.IGNORECASE:
        return lambda letter: is_not != any(test(letter) for test in tests)
    return lambda letter: (
        is_not != any(test(x) for x in (letter.lower(), letter.upper()) for test in tests)
    )


def _item(kind: str, value: Any) -> Callable[[str], bool]:
    if kind in ("LITERAL", "NOT_LITERAL"):
        return lambda letter: ord(letter) == value
    if kind == "RANGE":
        return lambda letter: value[0] <= ord(letter) <= value[1]
    if kind == "CATEGORY":
        *_, name = str(value).split("_", 1)
        is_not = name.startswith("NOT_")
        ask = _CATEGORIES[name.removeprefix("NOT_")]
        return lambda letter: is_not != ask(letter)
    raise ValueError(f"{kind.lower()} is not supported: it depends on the order of tries")


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": _is_word,
}


class _Run:
    """Expressions on one text. A set of places 0..n is the bits of an int."""

    def __init__(self, text: str, spend: Callable[[], None]) -> None:
        self._text = text
        self._spend = spend
        self._known: dict[tuple[int, int], int] = {}

    def sequence(self, parts: list[_Part], places: int) -> int:
        """Where the parts, one after the other, may end if they begin at one of the places."""
        for part in parts:
            if not places:
                break
            places = self._each(part, places)
        return places

    def _each(self, part: _Part, places: int) -> int:
        found = 0
        while places:
            lowest = places & -places
            found |= self._ends(part, lowest.bit_length() - 1)
            places ^= lowest
        return found

    def _ends(self, part: _Part, place: int) -> int:
        key = (id(part), place)
        found = self._known.get(key)
        if found is None:
            self._spend()
            found = self._known[key] = self._new_ends(part, place)
        return found

    def _new_ends(self, part: _Part, place: int) -> int:
        kind, value = part
        here = 1 << place
        if kind == "letter":
            return here << 1 if place < len(self._text) and value(self._text[place]) else 0
        if kind == "branch":
            found = 0
            for parts in value:
                found |= self.sequence(parts, here)
            return found
        if kind == "repeat":
            least, most, parts = value
            return self._repeated(least, most, parts, here)
        if kind == "look":
            direction, back, is_wanted, parts = value
            return here if self._sees(direction, back, is_wanted, parts, place) else 0
        return here if self._is_at(value, place) else 0

    def _repeated(self, least: int, most: int, parts: list[_Part], here: int) -> int:
        """`least` to `most` times; after n + 1 rounds a set of places does not change any more."""
        for _ in range(min(least, len(self._text) + 1)):
            here = self.sequence(parts, here)
        found = new = here
        for _ in range(min(most - least, len(self._text) + 1)):
            new = self.sequence(parts, new) & ~found
            if not new:
                break
            found |= new
        return found

    def _sees(
        self, direction: int, back: int, is_wanted: bool, parts: list[_Part], place: int
    ) -> bool:
        if back > place:
            return not is_wanted
        ends = self.sequence(parts, 1 << place - back)
        return is_wanted == bool(ends if direction > 0 else ends >> place & 1)

    def _is_at(self, where: str, place: int) -> bool:
        text = self._text
        if where in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return place == 0
        if where == "AT_END_STRING":
            return place == len(text)
        if where == "AT_END":
            return place == len(text) or text[place:] == "\n"
        around = [_is_word(x) for x in (text[place - 1 : place] if place else "", text[place:][:1])]
        return (around[0] != around[1]) == (where == "AT_BOUNDARY")
