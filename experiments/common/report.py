"""Writes DIR/report/index.html: one self-contained page with a section for each paper in DIR.

    python experiments/common/report.py --out DIR [--experiments experiments]

The page is a function of result.json, config.json and the drawn figures: it has no date of its own
and is rewritten only if its bytes change. A result that cannot be read gets one line in its
section; the others are shown all the same, and the exit is 1.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from figure_declaration import Figure, check_columns, paper_of, read_figures
from placeholders import filled
from report_tables import DASH, by_name, facts_table, natural, plural, series_block, table_block
from result_file import (
    VERDICTS,
    Claim,
    InputError,
    Json,
    Result,
    describe,
    folder_of,
    format_criterion,
    format_measured,
    format_seconds,
    format_value,
    number,
    read_object,
    read_result,
    write_whole,
)
from table_declaration import Table, read_tables

SIGNS = {"<=": "\u2264", ">=": "\u2265", "==": "="}
COLOUR = dict(zip(VERDICTS, ("holds", "fails", "open"), strict=True))
ENVIRONMENT = {
    "cpu": "CPU",
    "isa": "instruction set",
    "gpu": "GPU",
    "threads": "threads",
    "compiler": "compiler",
    "torch": "torch",
}  # shown first, under these names; other keys follow as they are


@dataclass(frozen=True)
class Paper:
    """All that a section shows."""

    about: Json  # the "paper" object of config.json
    rows: list[str]  # that the preset asks for; [] if it does not say
    figures: list[Figure]
    tables: list[Table]
    result: Result

    @property
    def name(self) -> str:
        return self.result.paper

    @property
    def title(self) -> str:
        return str(self.about.get("title") or self.name)


@dataclass(frozen=True)
class Broken:
    """A paper whose files cannot be shown, and why."""

    name: str
    why: str


def read_paper(folder: Path, experiments: Path) -> Paper:
    result = read_result(folder / "result.json")
    if result.paper != folder.name:
        raise InputError(f"{result.path}: this is the result of {result.paper!r}")
    path = folder / "config.json"  # as the run resolved it
    if not path.is_file():
        path = experiments / folder_of(folder.name) / "config.json"
    config = read_object(path)
    about = paper_of(path, config)
    figures = [filled(figure, result) for figure in read_figures(path, config)]
    for figure in figures:
        check_columns(figure, result)
    tables = [filled(table, result) for table in read_tables(path, config)]
    for table in tables:
        table.rows(result)  # refuses columns that do not fit together
    presets = config.get("presets")
    preset = presets.get(result.preset) if isinstance(presets, dict) else None
    rows = preset.get("rows") if isinstance(preset, dict) else None
    asked = list(map(str, rows)) if isinstance(rows, list) else []
    return Paper(about, asked, figures, tables, result)


def read_papers(out: Path, experiments: Path) -> list[Paper | Broken]:
    papers: list[Paper | Broken] = []
    for path in sorted(out.glob("*/result.json")):
        try:
            papers.append(read_paper(path.parent, experiments))
        except InputError as error:
            papers.append(Broken(path.parent.name, describe(error)))
    return papers


def page(papers: Sequence[Paper | Broken]) -> str:
    style = Path(__file__).with_name("report_style.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="paperlab">
<title>paperlab reproduction report</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<h1>paperlab reproduction report</h1>
<p class="lead">{headline(papers)}</p>
</header>
<main>
{overview(papers)}
{"".join(section(paper) for paper in papers)}</main>
<footer>
<p>Every number on this page comes from the result.json of a run, every criterion from the
config.json of its paper. A verdict compares the one with the other; nothing is judged by hand.</p>
</footer>
</body>
</html>
"""


def headline(papers: Sequence[Paper | Broken]) -> str:
    good = [paper for paper in papers if isinstance(paper, Paper)]
    counts = [sum(paper.result.count(verdict) for paper in good) for verdict in VERDICTS]
    text = (
        f"{plural(sum(counts), 'claim')} from {plural(len(good), 'paper')}: "
        f"{counts[0]} {verb(counts[0], 'hold')}, {counts[1]} {verb(counts[1], 'fail')}, "
        f"{counts[2]} not tested at this scale."
    )
    broken = len(papers) - len(good)
    return f"{text} {plural(broken, 'result')} cannot be shown." if broken else text


def verb(count: int, stem: str) -> str:
    return stem + "s" if count == 1 else stem


def overview(papers: Sequence[Paper | Broken]) -> str:
    heads = "".join(
        f"<th scope=col>{head}</th>"
        for head in ("Paper", "Preset", "Holds", "Fails", "Not tested", "Time")
    )
    rows = "".join(map(overview_row, papers))
    return f"""<div class="card"><table class="stack overview">
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}</tbody>
</table></div>
"""


def overview_row(paper: Paper | Broken) -> str:
    link = f'<a href="#{escape(paper.name)}">'
    if isinstance(paper, Broken):
        return (
            f'<tr data-overview="{escape(paper.name)}"><td class="name">{link}'
            f'{escape(paper.name)}</a></td><td colspan="5">cannot be shown</td></tr>\n'
        )
    result = paper.result
    counts = "".join(count_cell(verdict, result.count(verdict)) for verdict in VERDICTS)
    return (
        f'<tr data-overview="{escape(paper.name)}"><td class="name">{link}{escape(paper.title)}</a>'
        f"{verdict_bar(result)}</td>{cell('Preset', result.preset)}{counts}"
        f"{cell('Time', format_seconds(result.seconds))}</tr>\n"
    )


def count_cell(verdict: str, count: int) -> str:
    label = {"holds": "Holds", "fails": "Fails"}.get(verdict, "Not tested")
    colour = COLOUR[verdict] if count else "none"
    return (
        f'<td class="number" data-label="{label}"><span class="verdict {colour}">{count}</span>'
        "</td>"
    )


def verdict_bar(result: Result) -> str:
    """The verdicts as a strip of three lengths; the numbers stand beside it."""
    parts = "".join(
        f'<span class="{COLOUR[verdict]}" style="flex:{count}"></span>'
        for verdict in VERDICTS
        if (count := result.count(verdict))
    )
    return f'<div class="bar" aria-hidden="true">{parts}</div>' if parts else ""


def cell(label: str, text: str, kind: str = "number") -> str:
    """A table cell; `label` names it where the table is stacked on a phone."""
    return f'<td class="{kind}" data-label="{label}">{escape(text) or DASH}</td>'


def section(paper: Paper | Broken) -> str:
    if isinstance(paper, Broken):
        return (
            f'<section id="{escape(paper.name)}" data-broken="{escape(paper.name)}">\n'
            f'<h2>{escape(paper.name)}</h2>\n<p class="banner">This result cannot be shown: '
            f"{escape(paper.why)}</p>\n</section>\n"
        )
    parts = [
        heading(paper),
        *(f'<p class="banner{kind}">{escape(text)}</p>\n' for kind, text in notices(paper)),
        claims_table(paper.result),
        figures_block(paper),
        tables_block(paper),
        "<h3>The run</h3>\n",
        facts_table("Environment", environment_facts(paper.result), is_open=True),
        facts_table("Measured values", by_name(paper.result.scalars)),
        series_block(paper.result),
        facts_table("Configuration", paper.result.config.items()),
    ]
    return f'<section id="{escape(paper.name)}">\n{"".join(parts)}</section>\n'


def heading(paper: Paper) -> str:
    about = {key: str(paper.about.get(key) or "") for key in ("authors", "venue", "url", "summary")}
    venue = escape(about["venue"] or about["url"])
    if venue and about["url"].startswith(("https://", "http://")):
        venue = f'<a href="{escape(about["url"])}" rel="noreferrer">{venue}</a>'
    byline = ". ".join(part for part in (escape(about["authors"]), venue) if part)
    return (
        f"<h2>{escape(paper.title)}</h2>\n"
        + (f'<p class="byline">{byline}</p>\n' if byline else "")
        + (f'<p class="summary">{escape(about["summary"])}</p>\n' if about["summary"] else "")
    )


def notices(paper: Paper) -> list[tuple[str, str]]:
    """What a reader must know before the table: (class suffix, sentence)."""
    result, found = paper.result, []
    if result.preset == "smoke":
        found.append(
            ("", "Smoke run: it shows that the code runs. Nothing was reproduced at this scale.")
        )
    elif result.claims and not result.count("holds") + result.count("fails"):
        found.append(("", "No claim was tested in this run: nothing was reproduced."))
    done = result.environment.get("rows_s")
    if paper.rows and isinstance(done, dict):
        absent = [row for row in paper.rows if row not in done]
        if absent:
            count = f"{len(paper.rows) - len(absent)} of {plural(len(paper.rows), 'row')}"
            text = f"This run holds {count} of the preset; not run: {', '.join(absent)}."
            found.append((" quiet", text))
    return found


def claims_table(result: Result) -> str:
    if not result.claims:
        return '<p class="note">This run states no claims.</p>\n'
    rows = "".join(claim_row(result.paper, claim) for claim in result.claims)
    heads = "".join(
        f"<th scope=col>{head}</th>"
        for head in ("Claim", "Published", "Ours", "Criterion", "Verdict", "Why")
    )
    kinds = ("claim", "value", "value", "criterion", "verdict", "why")
    columns = "".join(f'<col class="{kind}">' for kind in kinds)
    return f"""<h3>Claims</h3>
<div class="card"><table class="stack claims">
<colgroup>{columns}</colgroup>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}</tbody>
</table></div>
"""


def claim_row(paper: str, claim: Claim) -> str:
    criterion = format_criterion(claim)
    relation, _, bound = criterion.partition(" ")
    source = f'<span class="source">{escape(claim.source)}</span>' if claim.source else ""
    verdict = f'<span class="verdict {COLOUR[claim.verdict]}">{escape(claim.verdict)}</span>'
    return (
        f'<tr data-paper="{escape(paper)}" data-claim="{escape(claim.id)}">'
        f'<td class="claim"><span class="id">{escape(claim.id)}</span>{escape(claim.statement)}'
        f"{source}</td>"
        f"{cell('Published', format_value(claim.published, digits=15))}"
        f"{cell('Ours', format_measured(claim))}"
        f"{cell('Criterion', f'{SIGNS.get(relation, relation)} {bound}'.strip())}"
        f'<td data-label="Verdict">{verdict}</td>'
        f"{cell('Why', claim.why, 'why' if claim.why else 'why missing')}</tr>\n"
    )


def figures_block(paper: Paper) -> str:
    if not paper.figures:
        return ""
    blocks = "".join(figure_block(figure, paper.result) for figure in paper.figures)
    return f'<h3>Figures</h3>\n<div class="figures">\n{blocks}</div>\n'


def figure_block(figure: Figure, result: Result) -> str:
    caption = [escape(figure.caption)] if figure.caption else []
    missing = figure.missing(result)
    if missing and len(missing) < len(figure.lines):
        labels = ", ".join(line.label for line in missing)
        caption.append(f'<span class="note">Not run in this preset: {escape(labels)}.</span>')
    path = result.path.parent / "figures" / f"{figure.name}.svg"
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        image = f'<p class="note">{escape(figure.title)}: not drawn yet.</p>'
    else:
        alt = escape(f"{figure.title}. {figure.caption}".strip())
        image = f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}">'
    text = f"<figcaption>{' '.join(caption)}</figcaption>" if caption else ""
    return f'<figure data-figure="{escape(figure.name)}">{image}{text}</figure>\n'


def tables_block(paper: Paper) -> str:
    if not paper.tables:
        return ""
    blocks = "".join(table_block(table, paper.result) for table in paper.tables)
    return f"<h3>Tables</h3>\n{blocks}"


def environment_facts(result: Result) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        (label, result.environment[key])
        for key, label in ENVIRONMENT.items()
        if key in result.environment
    ]
    rest = [item for item in result.environment.items() if item[0] not in (*ENVIRONMENT, "rows_s")]
    rows = result.environment.get("rows_s")
    if isinstance(rows, dict):
        names = sorted(rows, key=natural)
        rest += [(f"time of {row}", format_seconds(number(rows[row]))) for row in names]
    run = [("commit", result.commit), ("preset", result.preset)]
    return [*facts, *run, ("run time", format_seconds(result.seconds)), *rest]


def write_report(out: Path, experiments: Path) -> list[Broken]:
    """Writes the page; returns the papers that it could not show."""
    papers = read_papers(out, experiments)
    if not papers:
        raise InputError(f"{out}: no <paper>/result.json here; run ./paperlab reproduce first")
    path = out / "report" / "index.html"
    write_whole(path, page(papers).encode("utf-8", errors="replace"))
    print(path)
    return [paper for paper in papers if isinstance(paper, Broken)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="report.py", description="Writes the report page.")
    parser.add_argument("--out", type=Path, required=True, help="holds <paper>/result.json")
    parser.add_argument(
        "--experiments", type=Path, default=Path(__file__).parents[1], help="holds the config.json"
    )
    options = parser.parse_args(arguments)
    try:
        broken = write_report(options.out, options.experiments)
    except (InputError, OSError) as error:
        print(f"report: {describe(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if broken:
        whys = "; ".join(item.why for item in broken)
        print(f"report: {plural(len(broken), 'result')} cannot be shown: {whys}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
