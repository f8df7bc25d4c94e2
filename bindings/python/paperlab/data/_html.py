"""Text of HTML pages: what a reader sees of the main part, paragraphs as lines."""

import re
from html.parser import HTMLParser

_DROPPED = set(
    "head title script style nav header footer aside svg math form button noscript".split()
)
_BLOCKS = set(
    "address article blockquote body br caption dd details div dl dt figcaption figure h1 h2 h3 h4 "
    "h5 h6 hr li main ol p pre section summary table tbody td th thead tr ul".split()
)
_PARAGRAPHS = set("p pre h1 h2 h3 h4 h5 h6 ul ol dl table blockquote section".split())
_VOID = set("area base br col embed hr img input link meta source track wbr".split())
_DROPPED_ROLES = {"navigation", "search", "banner", "contentinfo", "complementary"}
_DROPPED_CLASSES = set("headerlink toc navheader navfooter sphinxsidebar related footer".split())


def html_to_text(source: str) -> str:
    """The text of an HTML page, ending in one line break; empty if there is none."""
    page = _Page()
    page.feed(source)
    page.close()
    text = re.sub(r" *\n *", "\n", "".join(page.pieces)).replace("\x1f", "")
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return f"{text}\n" if text else ""


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.dropped: list[str] = []  # open elements, from the first dropped one on
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        classes = set((attributes.get("class") or "").split())
        is_dropped = (
            tag in _DROPPED
            or attributes.get("role") in _DROPPED_ROLES
            or bool(classes & _DROPPED_CLASSES)
        )
        if self.dropped or is_dropped:
            if tag not in _VOID:
                self.dropped.append(tag)
            return
        self.preformatted += tag == "pre"
        self.break_block(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self.dropped:
            self.break_block(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.dropped:
            if tag in self.dropped:  # unclosed elements end with the one around them
                while self.dropped.pop() != tag:
                    pass
            return
        self.preformatted = max(0, self.preformatted - (tag == "pre"))
        self.break_block(tag)

    def handle_data(self, data: str) -> None:
        if self.dropped:
            return
        if self.preformatted:
            # The mark keeps the indentation of lines from the last clean-up.
            self.pieces.append(data.replace("\n", "\n\x1f"))
            return
        text = re.sub(r"\s+", " ", data)
        at_start = not self.pieces or self.pieces[-1].endswith("\n")
        self.pieces.append(text.lstrip() if at_start else text)

    def break_block(self, tag: str) -> None:
        if tag in _BLOCKS and self.pieces:
            self.pieces.append("\n\n" if tag in _PARAGRAPHS else "\n")
