"""Names of characters in roff. Source: groff_char(7)."""

import re
import unicodedata

_NAMED = {
    # quotes and dashes
    "aq": "'", "dq": '"', "lq": "\u201c", "rq": "\u201d", "oq": "\u2018", "cq": "\u2019",
    "bq": "\u201a", "Bq": "\u201e", "Fo": "\u00ab", "Fc": "\u00bb", "fo": "\u2039", "fc": "\u203a",
    "em": "\u2014", "en": "\u2013", "hy": "-", "mi": "\u2212", "-": "-", "sq": "\u25a1",
    # ASCII under other names
    "rs": "\\", "ti": "~", "ha": "^", "ga": "`", "aa": "\u00b4", "sl": "/", "ba": "|", "bv": "|",
    "br": "|", "ul": "_", "ru": "_", "lB": "[", "rB": "]", "lC": "{", "rC": "}", "at": "@",
    "sh": "#", "Do": "$", "pl": "+", "eq": "=", "**": "*", "or": "|", "a^": "^", "a~": "~",
    # signs
    "bu": "\u2022", "co": "\u00a9", "rg": "\u00ae", "tm": "\u2122", "de": "\u00b0", "sc": "\u00a7",
    "ps": "\u00b6", "ct": "\u00a2", "Po": "\u00a3", "Ye": "\u00a5", "Eu": "\u20ac", "eu": "\u20ac",
    "Cs": "\u00a4", "dg": "\u2020", "dd": "\u2021", "r!": "\u00a1", "r?": "\u00bf", "pc": "\u00b7",
    "md": "\u00b7", "ci": "\u25cb", "OK": "\u2713", "%0": "\u2030", "bb": "\u00a6", "lz": "\u25ca",
    # mathematics
    "+-": "\u00b1", "mu": "\u00d7", "tmu": "\u00d7", "di": "\u00f7", "<=": "\u2264",
    ">=": "\u2265", "!=": "\u2260", "==": "\u2261", "~=": "\u2245", "~~": "\u2248", "if": "\u221e",
    "<<": "\u226a", ">>": "\u226b", "12": "\u00bd", "14": "\u00bc", "34": "\u00be", "S1": "\u00b9",
    "S2": "\u00b2", "S3": "\u00b3", "no": "\u00ac", "sr": "\u221a", "su": "\u2211", "is": "\u222b",
    "pd": "\u2202", "mo": "\u2208", "fa": "\u2200", "te": "\u2203", "AN": "\u2227", "OR": "\u2228",
    "lc": "\u2308", "rc": "\u2309", "lf": "\u230a", "rf": "\u230b", "es": "\u2205", "|=": "\u2243",
    "->": "\u2192", "<-": "\u2190", "<>": "\u2194", "ua": "\u2191", "da": "\u2193", "rA": "\u21d2",
    "lA": "\u21d0", "hA": "\u21d4", "la": "\u27e8", "ra": "\u27e9", "nm": "\u2209", "pt": "\u221d",
    # letters
    "ss": "\u00df", "ae": "\u00e6", "AE": "\u00c6", "oe": "\u0153", "OE": "\u0152", "/o": "\u00f8",
    "/O": "\u00d8", "/l": "\u0142", "/L": "\u0141", "-D": "\u00d0", "Sd": "\u00f0", "TP": "\u00de",
    "Tp": "\u00fe", "oa": "\u00e5", "oA": "\u00c5", ".i": "\u0131", "Of": "\u00aa", "Om": "\u00ba",
    "fi": "fi", "fl": "fl", "ff": "ff", "Fi": "ffi", "Fl": "ffl", "mc": "\u00b5",
    # Greek
    "*a": "\u03b1", "*b": "\u03b2", "*g": "\u03b3", "*d": "\u03b4", "*e": "\u03b5", "*z": "\u03b6",
    "*y": "\u03b7", "*h": "\u03b8", "*l": "\u03bb", "*m": "\u03bc", "*p": "\u03c0", "*r": "\u03c1",
    "*s": "\u03c3", "*t": "\u03c4", "*f": "\u03c6", "*x": "\u03c7", "*q": "\u03c8", "*w": "\u03c9",
    "*D": "\u0394", "*G": "\u0393", "*L": "\u039b", "*P": "\u03a0", "*S": "\u03a3", "*W": "\u03a9",
}  # fmt: skip

_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", ":": "\u0308", "~": "\u0303",
            ",": "\u0327", "v": "\u030c"}  # fmt: skip


def character(name: str) -> str:
    """What a name such as `em`, `:a`, `u00E4`, `u0061_0308` or `char228` prints; "" if unknown."""
    if name in _NAMED:
        return _NAMED[name]
    if len(name) == 2 and name[0] in _ACCENTS and name[1].isalpha():
        return unicodedata.normalize("NFC", name[1] + _ACCENTS[name[0]])
    if re.fullmatch(r"u[0-9A-F]{4,6}(_[0-9A-F]{4,6})*", name):
        return unicodedata.normalize(
            "NFC", "".join(_of_code(int(code, 16)) for code in name[1:].split("_"))
        )
    if found := re.fullmatch(r"char(\d{1,7})", name):
        return _of_code(int(found[1]))
    return name if len(name) == 1 else ""


def _of_code(code: int) -> str:
    """The character of a code point; nothing for control characters and what UTF-8 cannot hold."""
    if code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        return ""
    return chr(code)
