r"""Text of manual pages: a small reader of roff with the macros man(7) and mdoc(7).

Paragraphs become lines, preformatted lines stay lines. Comments, tables, equations, pictures, macro
definitions, index entries and the title line (.TH) are dropped. Requests that shape the page are
ignored. Of conditions, `n` (a terminal) is true and everything that is not constant is false.
Sources: man(7), mdoc(7), groff(7) and groff_char(7).
"""

import re
import unicodedata

from paperlab.data._roff_characters import character

_COMMENT = re.compile(r'(?<!\\)((?:\\\\)*)\\["#].*')
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s\\]|\\$)+)')
_REQUEST = re.compile(r"[.'][ \t]*(\\?[^\s\\]*)[ \t]*(.*)")
_LINK = re.compile(r"[.'][ \t]*so[ \t]")
_NAME = r"(?:\[(?P<{0}l>[^\]]*)\]|\((?P<{0}m>..)|(?P<{0}s>[^\[(]))"
_ESCAPE = re.compile(
    r"""\\(?:
      [fFmM](?:\[[^\]]*\]|\(..|.)                       # fonts and colours
    | s(?:\[[^\]]*\]|[-+]?(?:\[[^\]]*\]|\(\d\d|'[^']*'|\d))
    | \*"""
    + _NAME.format("string")
    + r"""
    | N'(?P<code>\d+)'
    | C'(?P<named>[^']*)'
    | [nkVYgO][-+]?(?:\[[^\]]*\]|\(..|.)                # registers, files
    | [hvwxlLDbXZABHSRo](?P<quote>['"]).*?(?P=quote)    # motions, lines
    | \$(?:\[[^\]]*\]|\(..|.)
    | \[(?P<long>[^\]]*)\]
    | \((?P<pair>..)
    | (?P<other>.)
    )""",
    re.VERBOSE,
)
_JOIN = "\x1f"  # \c: what follows joins without a space
_SPACES = {" ": " ", "~": " ", "0": " ", "t": "\t"}
_PLAIN = {"-": "-", "e": "\\", "\\": "\\", "'": "\u00b4", "`": "`", "_": "_", "c": _JOIN}
_MAX_DEPTH = 8  # strings that name strings
_MAX_STRINGS = 100_000  # uses of strings in a page

# Requests that open something dropped, and the line that ends it.
_DROPPED = {"TS": "TE", "EQ": "EN", "PS": "PE", "ig": ".", "de": ".", "am": ".", "de1": "."}
_CONDITIONS = set("if ie el while".split())
_PARAGRAPH = set("PP P LP HP Pp Lp sp Sp Rs Re Ed El YS".split())
_LINE_BREAK = set("br RS RE ti in ce Bl bp".split())
_ALTERNATING = set("BR RB BI IB IR RI".split())
_ARGUMENTS = set("B I SM SB R".split())
_UNFILLED = set("nf EX Vb".split())
_FILLED = set("fi EE Ve".split())

# mdoc: what stands around the arguments, and what a macro is by itself.
_QUOTES = {
    "Op": "[]", "Oo": "[]", "Pq": "()", "Po": "()", "Bq": "[]", "Bo": "[]", "Aq": "<>",
    "Ao": "<>", "Brq": "{}", "Bro": "{}", "Dq": "\u201c\u201d", "Do": "\u201c\u201d",
    "Sq": "\u2018\u2019", "So": "\u2018\u2019", "Ql": "\u2018\u2019", "Qq": '""', "Qo": '""',
}  # fmt: skip
_CLOSERS = {"Oc": "]", "Pc": ")", "Bc": "]", "Ac": ">", "Brc": "}", "Dc": "\u201d",
            "Sc": "\u2019", "Qc": '"', "Fc": ")"}  # fmt: skip
_OPENERS = {"Oo", "Po", "Bo", "Ao", "Bro", "Do", "So", "Qo"}
_SYSTEMS = {"Ux": "UNIX", "Bx": "BSD", "Fx": "FreeBSD", "Nx": "NetBSD", "Ox": "OpenBSD",
            "At": "AT&T UNIX", "Dx": "DragonFly"}  # fmt: skip
_INLINE = set(
    "Ad An Ap Ar Cd Cm Dv Em Er Ev Fa Fl Fn Ft Fd Ic In Li Lk Ms Mt Nd Nm No Ns Pa Pf St Sx Sy Tn "
    "Ta Va Vt Xr %A %B %C %D %I %J %N %O %P %Q %R %T %U %V Fo".split()
)
_MDOC = _INLINE | set(_QUOTES) | set(_CLOSERS) | set(_SYSTEMS)
_CLOSING_MARKS = set(".,:;)]?!")
_OPENING_MARKS = set("([")


def is_link(source: str) -> bool:
    """Whether the page is nothing but a reference to another one (.so)."""
    lines = (_COMMENT.sub(r"\1", line).strip() for line in source.splitlines())
    used = [line for line in lines if line not in {"", ".", "'"}]
    return bool(used) and all(map(_LINK.match, used))


def roff_to_text(source: str) -> str:
    """The text of a manual page, ending in one line break; empty if there is none."""
    page = _Page()
    lines = iter(source.split("\n"))
    for line in lines:
        while (len(line) - len(line.rstrip("\\"))) % 2 == 1:  # the line goes on
            line = line[:-1] + next(lines, "")
        page.read(line)
    return page.text()


def _split(rest: str) -> list[str]:
    """Arguments of a macro; quotes group, a doubled quote stands for itself."""
    return [
        bare if bare else quoted.replace('""', '"')
        for quoted, bare in _ARGUMENT.findall(rest.rstrip())
    ]


def _is_wide(text: str) -> bool:
    return unicodedata.east_asian_width(text) in {"W", "F"} and not "\uac00" <= text <= "\ud7a3"


def _glue(before: str, after: str) -> str:
    """Two pieces of a paragraph: with a space, but for scripts that are written without."""
    if before.endswith(_JOIN):
        return before[:-1] + after
    if before and after and _is_wide(before[-1]) and _is_wide(after[0]):
        return before + after
    return f"{before} {after}"


class _Page:
    """What has been read: finished lines, the open paragraph, and the state of the macros."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.open = ""
        self.is_filled = True
        self.dropping_until = ""  # name of the request that ends what is dropped
        self.false_depth = 0  # open braces of a condition that is false
        self.last_condition = False
        self.tag = ""  # "next": the next text is a tag; "now": it has been read
        self.url = ""
        self.name = ""  # mdoc .Nm
        self.num_strings = 0
        self.strings = {"R": "\u00ae", "Tm": "\u2122", "lq": "\u201c", "rq": "\u201d"}

    def text(self) -> str:
        self.break_line()
        text = "\n".join(line.rstrip() for line in self.lines).strip("\n")
        text = re.sub(r"\n{3,}", "\n\n", text).replace(_JOIN, "")
        return f"{text}\n" if text.strip() else ""

    # --- lines ---------------------------------------------------------------------------------

    def break_line(self) -> None:
        if self.open:
            self.lines.append(self.open)
        self.open = ""

    def break_paragraph(self) -> None:
        self.break_line()
        if self.lines and self.lines[-1]:
            self.lines.append("")

    def add(self, text: str) -> None:
        """Adds expanded text: to the open paragraph, or as a line where nothing is filled."""
        if not self.is_filled:
            self.open = self.open[:-1] + text if self.open.endswith(_JOIN) else text
            if not text.endswith(_JOIN):
                self.lines.append(self.open)
                self.open = ""
        elif text.strip():
            text = text.strip(" \t")
            self.open = _glue(self.open, text) if self.open else text
        if self.tag and not self.open.endswith(_JOIN):
            self.break_line()
            self.tag = ""

    def read(self, line: str) -> None:
        """One input line."""
        if self.dropping_until:
            found = _REQUEST.match(line)
            if found and found[1] == self.dropping_until:
                self.dropping_until = ""
            return
        if self.false_depth:
            self.false_depth += line.count(r"\{") - line.count(r"\}")
            return
        line = _COMMENT.sub(r"\1", line)
        while (found := _REQUEST.match(line)) and found[1] in _CONDITIONS:
            line = self.condition(found[1], found[2])
            if not line:
                return
        if found:
            self.request(found[1], found[2])
        elif not line.strip():
            self.break_paragraph()
        else:
            if self.is_filled and line[0] == " ":
                self.break_line()
            self.add(self.expand(line))

    # --- requests ------------------------------------------------------------------------------

    def request(self, name: str, rest: str) -> None:
        if name in _DROPPED:
            self.break_line()
            own_end = _split(rest)[0 if name == "ig" else 1 :] if _DROPPED[name] == "." else []
            self.dropping_until = own_end[0] if own_end else _DROPPED[name]
        elif name in {"ds", "as"}:
            self.define_string(name, rest)
        elif name in _PARAGRAPH:
            self.break_paragraph()
        elif name in _LINE_BREAK:
            self.break_line()
        elif name in _UNFILLED or name in _FILLED:
            self.break_line()
            self.is_filled = name in _FILLED
        elif name in {"Bd", "D1", "Dl"}:
            self.display(name, rest)
        else:
            self.macro(name, [self.expand(word) for word in _split(rest)])

    def condition(self, name: str, rest: str) -> str:
        """What is left to read of a line whose condition holds; nothing if it does not."""
        holds = name == "el" and not self.last_condition
        if name != "el":
            holds, rest = _evaluate(rest)
            holds = holds and name != "while"
            self.last_condition = holds
        rest = rest.lstrip()
        if not holds:
            self.false_depth = max(0, rest.count(r"\{") - rest.count(r"\}"))
            return ""
        return rest.removeprefix(r"\{").strip()

    def define_string(self, request: str, rest: str) -> None:
        name, _, value = rest.partition(" ")
        before = self.strings.get(name, "") if request == "as" else ""
        if len(before) + len(value) < 1000:
            self.strings[name] = before + value.lstrip().removeprefix('"')

    def display(self, name: str, rest: str) -> None:
        """mdoc displays: a block (.Bd, which .Ed ends), or one line."""
        if name == "Bd":
            self.break_paragraph()
            self.is_filled = "-literal" not in rest and "-unfilled" not in rest
            return
        self.break_line()
        self.add(self.mdoc([self.expand(word) for word in _split(rest)]))
        self.break_line()

    def macro(self, name: str, words: list[str]) -> None:
        if name in _ALTERNATING:
            self.add("".join(words))
        elif name in _ARGUMENTS:
            self.add(" ".join(words))
        elif name in {"SH", "SS", "Sh", "Ss"}:
            self.is_filled = True
            self.break_paragraph()
            self.tag = "next"
            if words:
                self.add(self.mdoc(words) if name in {"Sh", "Ss"} else " ".join(words))
        elif name in {"TP", "TQ", "IP", "It"}:
            self.item(name, words)
        elif name in {"UR", "MT"}:
            self.url = words[0] if words else ""
        elif name in {"UE", "ME"}:
            self.add(f"<{self.url}>{words[0] if words else ''}")
        elif name == "MR" and words:
            section = f"({words[1]})" if len(words) > 1 else ""
            self.add(words[0] + section + "".join(words[2:3]))
        elif name == "SY":
            self.break_line()
            self.add(" ".join(words))
        elif name == "OP":
            self.add(f"[{' '.join(words)}]")
        elif name in _MDOC:
            self.add(self.mdoc([name, *words]))

    def item(self, name: str, words: list[str]) -> None:
        """A tag on a line of its own; a mark such as a bullet stays beside its text."""
        if name in {"TQ", "It"}:
            self.break_line()
        else:
            self.break_paragraph()
        if name in {"TP", "TQ"}:
            self.tag = "next"
        elif words and words[0].strip():
            text = self.mdoc(words) if name == "It" else words[0]
            self.tag = "next" if len(text) > 3 else ""
            self.add(text)

    # --- mdoc ----------------------------------------------------------------------------------

    def mdoc(self, words: list[str]) -> str:
        """A line of mdoc: macros call each other, quotes close at its end."""
        parts, closers, index = _Parts(), [], 0
        while index < len(words):
            name = words[index]
            index += 1
            count = 0
            while index + count < len(words) and words[index + count] not in _MDOC:
                count += 1
            arguments = words[index : index + count]
            if name in _QUOTES:
                parts.append(_QUOTES[name][0], joins_next=True)
                if name not in _OPENERS:
                    closers.append(_QUOTES[name][1])
            elif name in _CLOSERS:
                parts.append(_CLOSERS[name], joins=True)
            elif name in {"Ns", "Pf", "Ap"}:
                for word in {"Ns": [], "Ap": ["'"]}.get(name, arguments[:1]):
                    parts.append(word, joins=name == "Ap")
                parts.joins_next = True
                index += min(count, 1) if name == "Pf" else 0
            elif name in _MDOC:
                index += self.mdoc_inline(name, arguments, parts)
            else:
                parts.append(name)
        for closer in reversed(closers):
            parts.append(closer, joins=True)
        return parts.text

    def mdoc_inline(self, name: str, arguments: list[str], parts: "_Parts") -> int:
        """Adds what a macro makes of its arguments; returns how many of them it has used."""
        marks = _CLOSING_MARKS | _OPENING_MARKS
        own = [word for word in arguments if word not in marks]
        first = own[0] if own else ""
        if name == "Nm":
            self.name = self.name or first
        if name == "Xr" and len(own) > 1:
            parts.append(f"{first}({own[1]})")
            return arguments.index(own[1], arguments.index(first) + 1) + 1
        if name in {"Fn", "Fo"} and own:
            inner = ", ".join(own[1:])
            parts.append(f"{first}({inner})" if name == "Fn" else f"{first}(")
            return len(arguments) - len(arguments[arguments.index(own[-1]) + 1 :])
        if name == "Fl":
            for word in own or [""]:
                parts.append(f"-{word}")
            return arguments.index(own[-1]) + 1 if own else 0
        default = {"Nm": self.name, "Ar": "file ...", **_SYSTEMS}
        if name in _SYSTEMS or (name in default and not own):
            parts.append(default[name])
        elif name == "Nd":
            parts.append("-")
        elif name == "In" and own:
            parts.append(f"<{first}>")
            return arguments.index(first) + 1
        return 0

    # --- escapes -------------------------------------------------------------------------------

    def expand(self, text: str, depth: int = 0) -> str:
        """Text with its escapes replaced by what they print."""
        if "\\" not in text:
            return text

        def replace(match: re.Match[str]) -> str:
            groups = match.groupdict()
            name = groups["stringl"] or groups["stringm"] or groups["strings"]
            if name is not None:
                self.num_strings += 1
                is_bounded = depth < _MAX_DEPTH and self.num_strings < _MAX_STRINGS
                return self.expand(self.strings.get(name, ""), depth + 1) if is_bounded else ""
            if groups["code"]:
                return character(f"char{groups['code']}")
            glyph = groups["long"] or groups["pair"] or groups["named"]
            if glyph:
                return character(glyph)
            other = groups["other"] or ""
            return _SPACES.get(other) or _PLAIN.get(other) or ("." if other == "." else "")

        return _ESCAPE.sub(replace, text)


class _Parts:
    """Words of an mdoc line; punctuation joins its neighbour."""

    def __init__(self) -> None:
        self.text = ""
        self.joins_next = False

    def append(self, word: str, *, joins: bool = False, joins_next: bool = False) -> None:
        joins = joins or self.joins_next or not self.text or word in _CLOSING_MARKS
        self.text += word if joins else f" {word}"
        self.joins_next = joins_next or word in _OPENING_MARKS


def _evaluate(rest: str) -> tuple[bool, str]:
    """The value of a condition at the start of `rest`, and what follows it."""
    rest = rest.lstrip()
    negated = rest.startswith("!")
    rest = rest[1:] if negated else rest
    found: re.Match[str] | None
    if re.match(r"[nteo](?![\w'])", rest):
        holds, rest = rest[0] in "no", rest[1:]
    elif found := re.match(r"([^\w\s\\(])(.*?)\1(.*?)\1", rest):
        holds, rest = found[2] == found[3], rest[found.end() :]
    else:
        found = re.match(r"[dr] *\S+|(?:\\[^{]|[^\s\\])*", rest)
        holds, rest = False, rest[found.end() :] if found else ""
        negated = False  # what is not constant counts as false either way
    return holds != negated, rest
