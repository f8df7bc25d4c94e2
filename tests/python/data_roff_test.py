"""Text of manual pages and of HTML."""

import pytest
from paperlab.data._html import html_to_text
from paperlab.data._roff import is_link, roff_to_text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        # paragraphs are filled, headings stand alone
        (".TH LS 1 2020\n.SH NAME\nls \\- list\nfiles\n", "NAME\nls - list files\n"),
        (".SH\nNAME\nls\n", "NAME\nls\n"),
        ("one\n.PP\ntwo\n\nthree\n", "one\n\ntwo\n\nthree\n"),
        ("one\n.br\ntwo\n.sp 2\nthree\n", "one\ntwo\n\nthree\n"),
        ("one\n  two\n", "one\ntwo\n"),
        # fonts
        (".B bold\n.I italic\n.BR ls (1),\n", "bold italic ls(1),\n"),
        ('.BI "a b" c "d ""e"""\n', 'a bcd "e"\n'),
        (r"\fBbold\fP \f(CWmono\fR \f[I]it\f[]", "bold mono it\n"),
        # characters
        (r"\-\-all \(aqx\(aq \(lqy\(rq a\(emb", "--all 'x' \u201cy\u201d a\u2014b\n"),
        (
            r"\[u00E4]\(:o\[u0061_0308]\N'252'\[char233]\C'ss'",
            "\u00e4\u00f6\u00e4\u00fc\u00e9\u00df\n",
        ),
        (r"\[uD800]\[u110000]\N'7'\[nosuch]x\(zz", "x\n"),
        (r"C:\e path\\n \&.x \%hy\:ph a\|b\~c\ d", "C:\\ path\\n .x hyph ab c d\n"),
        (r"\s-1SMALL\s0 \s+(10x \v'-1'up\h'2n'\m[red]r\m[]\n(xx\k(yy", "SMALL x upr\n"),
        # lists
        (".TP\n.B \\-a\nall of\nthem\n.TP\n\\-b\nmore\n", "-a\nall of them\n\n-b\nmore\n"),
        (".IP \\(bu 2\nfirst\n.IP tagged\nsecond\n", "\u2022 first\n\ntagged\nsecond\n"),
        # preformatted
        (".nf\nint  x;\n\tint y;\n.fi\nend of\nit\n", "int  x;\n\tint y;\nend of it\n"),
        (".EX\na\\c\nb\n.EE\n", "ab\n"),
        # links
        (".UR http://e.org\nsite\n.UE .\n", "site <http://e.org>.\n"),
        (".MR ls 1 ,\n", "ls(1),\n"),
        # what is dropped
        ('.\\" comment\ntext \\" comment\n\'\\" t\n.\n', "text\n"),
        ("a\n.TS\nl l.\nx y\n.TE\nb\n.EQ\nz\n.EN\nc\n", "a\nb\nc\n"),
        (".de XX\n.B hidden\n..\nseen\n.ig\nnot\n..\n.ig zz\nnot\n.zz\nend\n", "seen\nend\n"),
        (".IX Title x\n.nh\n.hy 0\n.unknown words\nseen\n", "seen\n"),
        # conditions
        (".if n seen\n.if t not\n.ie n yes\n.el no\n.ie t no\n.el yes\n", "seen yes yes\n"),
        (".if t \\{\\\nnot\n.if n \\{\nnot\n.\\}\n.\\}\nseen\n", "seen\n"),
        (".ie \\n(.g .ds x y\n.el .ds x z\n.if !\\nF not\n.if 'a'a' eq\n\\*x\n", "eq z\n"),
        # strings
        (
            '.ds a one\n.as a two\n.ds b "\\*a!\n\\*b \\*(lqq\\*(rq \\*[R]\n',
            "onetwo! \u201cq\u201d \u00ae\n",
        ),
        # lines that go on
        ("one \\\ntwo\n.B x\\c\ny\n", "one two xy\n"),
        ("one\\c two\\c\n.PP\nb\\c", "one two\n\nb\n"),
        # no spaces between lines of Chinese and Japanese, but of Korean
        ("\u65e5\u672c\n\u8a9e\nls\n\ud55c\n\uad6d\n", "\u65e5\u672c\u8a9e ls \ud55c \uad6d\n"),
        ("", ""),
        (".TH X 1\n.nf\n", ""),
    ],
)
def test_man(source: str, text: str) -> None:
    assert roff_to_text(source) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (".Dd 2020\n.Dt X 1\n.Os\n.Sh NAME\n.Nm ftpd\n.Nd a server\n", "NAME\nftpd - a server\n"),
        (".Nm x\n.Op Fl a Ar file\n.Op Fl bc\n.Nm\n.Ar\n", "x [-a file] [-bc] x file ...\n"),
        (".Xr ls 1 ,\n.Pa /etc/x .\n.Dq Em word ;\n", "ls(1), /etc/x. \u201cword;\u201d\n"),
        (".Fn open path flags ;\n.In sys/x.h\n", "open(path, flags); <sys/x.h>\n"),
        (".Bl -tag\n.It Fl a\nall\n.It Fl long Ar x\nother\n.El\n", "-a all\n-long x\nother\n"),
        (".Bd -literal\na  b\nc\n.Ed\n.Pp\n.Dl ls -l\n", "a  b\nc\n\nls -l\n"),
        (".No a Ns b Pf ( c Ap d\n.Ux\n", "ab (c'd UNIX\n"),
        (".Oo\n.Ar x\n.Oc\n", "[ x ]\n"),
    ],
)
def test_mdoc(source: str, text: str) -> None:
    assert roff_to_text(source) == text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (".so man1/ls.1\n", True),
        (".\\\" generated\n'so man1/ls.1\n", True),
        (".so man1/ls.1\ntext\n", False),
        ("", False),
        (".TH X 1\n", False),
    ],
)
def test_links(source: str, expected: bool) -> None:
    assert is_link(source) == expected


def test_hostile_pages_end() -> None:
    for source in (
        ".ds a " + "\\*a" * 300 + "\n\\*a\n",
        ".if " * 500 + "x",
        ".ie n " * 300 + "x",
        "\\" * 10_001,
        '.B "' + "\\" * 99,
        "\\[" * 1000,
        ".if 'a" * 100,
        ".if n \\{" * 1000,
        ".as a xxxxxxxxxx\n" * 10_000 + "\\*a",
        ".Op " + "Op " * 5000,
    ):
        roff_to_text(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<title>T</title><p>One\n two</p><p>Three &amp; four</p>", "One two\n\nThree & four\n"),
        ("<h1>A</h1>x<br>y<hr/>z<ul><li>a<li>b</ul>", "A\n\nx\ny\nz\n\na\nb\n"),
        ("a<script>b</script><style>c</style><nav>d<p>e</nav>f", "af\n"),
        ("a<div role=navigation><img>b</div>c<a class='x headerlink'>#</a>", "ac\n"),
        ("<pre>if x:\n    y\n</pre>z", "if x:\n    y\n\nz\n"),
        ("&#233;&nosuch;<!-- c -->", "\u00e9&nosuch;\n"),
        ("<p><p></div></p>", ""),
    ],
)
def test_html(source: str, text: str) -> None:
    assert html_to_text(source) == text
