"""The report page: as Chromium lays it out at 390 and 1280 px, and as a file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import pytest
import report

if TYPE_CHECKING:
    from conftest import Sample, View

    Open = Callable[[Path, int], View]
    Run = Callable[..., subprocess.CompletedProcess[str]]

WIDTHS = (390, 1280)


@pytest.fixture(scope="session")
def drawn(make_sample: Callable[[Path], Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's figures, drawn once."""
    sample = make_sample(tmp_path_factory.mktemp("drawn"))
    figures.draw_all(sample.config_path, sample.out)
    return sample.folder / "figures"


@pytest.fixture(autouse=True)
def with_figures(sample: Sample, drawn: Path) -> None:
    shutil.copytree(drawn, sample.folder / "figures")


def write_page(sample: Sample) -> str:
    figures.draw_all(sample.config_path, sample.out)
    assert report.write_report(sample.out, sample.experiments) == []
    return sample.page.read_text(encoding="utf-8")


def claims_of(sample: Sample) -> list[tuple[str, str]]:
    return [("sample-paper", claim["id"]) for claim in sample.result["claims"]]


def problems(sample: Sample, view: Open, width: int) -> list[str]:
    return view(sample.page, width).problems(claims_of(sample), len(sample.config["figures"]))


@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_good_in_chromium(sample: Sample, view: Open, width: int) -> None:
    write_page(sample)
    seen = view(sample.page, width)
    assert seen.problems(claims_of(sample), len(sample.config["figures"])) == []
    assert seen.measured["scripts"] == 0  # the nasty texts stayed texts
    for words in ('<script>throw new Error("ran")</script>', "0.9849999999", "1 min 15 s"):
        assert words in seen.measured["text"]


EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]], int]:
    """The page of the committed results, its claims and how many figures it has."""
    out = tmp_path_factory.mktemp("committed") / "results"
    claims: list[tuple[str, str]] = []
    num_figures = 0
    for path in sorted(EXPERIMENTS.glob("*/results/small.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        folder = out / result["paper"]
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "result.json")
        config = path.parents[1] / "config.json"
        figures.draw_all(config, out)
        claims += [(result["paper"], claim["id"]) for claim in result["claims"]]
        num_figures += len(json.loads(config.read_text(encoding="utf-8"))["figures"])
    assert claims
    assert report.write_report(out, EXPERIMENTS) == []
    return out / "report" / "index.html", claims, num_figures


@pytest.mark.parametrize("width", WIDTHS)
def test_page_of_the_committed_results_is_good(
    committed: tuple[Path, list[tuple[str, str]], int], view: Open, width: int
) -> None:
    page, claims, num_figures = committed
    assert view(page, width).problems(claims, num_figures) == []


PLANTED = {
    "broken image": ("figure: 1 not rendered", r'src="data:image/svg[^"]{99}', 'src="data:,'),
    "missing image": ("figure: 4 images", r"<img [^>]*>", ""),
    "wide table": (
        "scroll: ",
        "</main>",
        "<table><tr>" + "<td>unbreakable</td>" * 60 + "</tr></table></main>",
    ),
    "missing row": (
        "claim: no row for",
        r'<tr data-paper="sample-paper" data-claim="C1b">',
        "<tr>",
    ),
    "hidden row": ("claim: the row of C1b", 'data-claim="C1b"', r'\g<0> style="display:none"'),
    "twice": ("more than once", r'data-claim="C1b"', 'data-claim="C1a"'),
    "throwing script": (
        "console: ",
        "</main>",
        "</main><script>throw new Error('planted')</script>",
    ),
    "console message": ("console: ", "</main>", "</main><script>console.log('planted')</script>"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_check_finds_a_planted_fault(sample: Sample, view: Open, fault: str) -> None:
    message, old, new = PLANTED[fault]
    text, count = re.subn(old, new, write_page(sample), count=1)
    assert count == 1
    sample.page.write_text(text, encoding="utf-8")
    assert any(message in problem for problem in problems(sample, view, 390))


def test_wide_table_inside_its_box_is_no_page_scroll(sample: Sample, view: Open) -> None:
    sample.result["series"]["wide"] = {f"column_{i}": [1 / 3] * 40 for i in range(40)}
    sample.write()
    write_page(sample)
    assert problems(sample, view, 390) == []


def test_page_is_self_contained(sample: Sample) -> None:
    text = write_page(sample)
    links = re.findall(r'\b(?:src|href|url)\s*[=(]\s*"?([^")\s>]+)', text)
    outside = [link for link in links if not link.startswith(("data:", "#"))]
    assert outside == ["https://example.org/?a=1&amp;b=2"]  # the venue
    assert "<script" not in text


def test_page_is_byte_stable_and_written_only_when_changed(sample: Sample) -> None:
    text = write_page(sample)
    before = sample.page.stat()
    assert write_page(sample) == text
    after = sample.page.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(sample.out.rglob("*.tmp")) == []


def test_missing_numbers_print_as_a_dash(sample: Sample) -> None:
    row = re.search(r'data-claim="C3">.*?</tr>', write_page(sample), re.DOTALL)
    assert row
    for label in ("Published", "Ours"):
        assert f'data-label="{label}">\u2013</td>' in row[0]
    assert 'data-label="Criterion">within [0, 1]</td>' in row[0]


def test_overview_counts_the_verdicts(sample: Sample) -> None:
    text = write_page(sample)
    assert "5 claims from 1 paper: 1 holds, 2 fail, 2 not tested at this scale." in text
    row = re.search(r'<tr data-overview="sample-paper">.*?</tr>', text, re.DOTALL)
    assert row
    assert re.findall(r'<span class="verdict \w+">(\d+)</span>', row[0]) == ["1", "2", "2"]


def test_smoke_says_that_nothing_was_reproduced(sample: Sample) -> None:
    assert "Nothing was reproduced" not in write_page(sample)
    sample.result["preset"] = "smoke"
    sample.write()
    assert "Nothing was reproduced at this scale." in write_page(sample)


def test_untested_run_says_so(sample: Sample) -> None:
    sample.result["claims"] = [
        claim | {"verdict": "not tested at this scale"} for claim in sample.result["claims"]
    ]
    sample.write()
    assert "No claim was tested in this run" in write_page(sample)


def test_partial_run_and_missing_lines_are_named(sample: Sample) -> None:
    text = write_page(sample)
    assert "This run holds 1 of 2 rows of the preset; not run: F2." in text
    assert "Not run in this preset: GPU." in text


def test_figure_not_drawn_is_said(sample: Sample) -> None:
    write_page(sample)
    (sample.folder / "figures" / "loss.svg").unlink()
    report.write_report(sample.out, sample.experiments)
    assert "Loss: not drawn yet." in sample.page.read_text(encoding="utf-8")


def test_declared_tables_are_shown_and_scroll_in_their_box(sample: Sample, view: Open) -> None:
    wide = [{"label": f"column {i}", "values": [f"unbreakable_{i}", "<b>"]} for i in range(30)]
    sample.config["tables"] = [{"name": "wide", "title": "Wide", "columns": wide}]
    sample.write()
    page = write_page(sample)
    assert 'data-table="wide"' in page and "<td>&lt;b&gt;</td>" in page
    assert problems(sample, view, 390) == []


def test_tables_whose_columns_do_not_fit_are_not_shown(sample: Sample) -> None:
    columns = [{"label": str(count), "values": [0] * count} for count in (1, 2)]
    sample.config["tables"] = [{"name": "odd", "title": "Odd", "columns": columns}]
    sample.write()
    broken = report.write_report(sample.out, sample.experiments)
    assert [paper.name for paper in broken] == ["sample-paper"]
    assert 'table "odd": columns of 1, 2 rows' in broken[0].why


def test_a_url_that_is_no_web_address_is_not_linked(sample: Sample) -> None:
    sample.config["paper"]["url"] = "javascript:alert(1)"
    sample.write()
    assert "javascript:" not in write_page(sample)


FAULTS: dict[str, tuple[dict[str, Any] | str, str]] = {
    "newer schema": ({"schema": 2}, "schema 2 is newer than 1"),
    "no schema": ({"schema": None}, "schema must be an integer"),
    "unknown verdict": ({"claims": [{"id": "C1"}]}, "statement is missing"),
    "series": ({"series": {"F1 even": {"step": [1], "loss": []}}}, "differ in length"),
    "other paper": ({"paper": "some-other"}, "some-other"),
    "column": ({"series": {"F1 even": {"loss": [1]}}}, 'has no column "step"'),
    "malformed": ('{\n"schema": 1,\n!', "line 3: "),
    "not finite": ('{"schema": NaN}', "NaN is not JSON"),
    "no object": ("[]", "a JSON object is required"),
    "empty": ("", "line 1: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_result_does_not_hide_the_others(
    sample: Sample,
    add_paper: Callable[[str, dict[str, Any]], Path],
    run_script: Run,
    fault: str,
) -> None:
    change, message = FAULTS[fault]
    path = add_paper("bad-paper", change if isinstance(change, dict) else {})
    if isinstance(change, str):
        path.write_text(change, encoding="utf-8")
    done = run_script("report.py", "--out", sample.out, "--experiments", sample.experiments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    text = sample.page.read_text(encoding="utf-8")
    section = re.search(r'<section id="bad-paper" data-broken.*?</section>', text, re.DOTALL)
    assert section
    assert "This result cannot be shown: " in section[0]
    assert 'data-paper="sample-paper" data-claim="C1a"' in text
    assert 'data-paper="bad-paper"' not in text


def test_page_with_a_bad_result_is_good_in_chromium(
    sample: Sample, add_paper: Callable[[str, dict[str, Any]], Path], view: Open
) -> None:
    add_paper("bad-paper", {"schema": "x" * 500})
    figures.draw_all(sample.config_path, sample.out)
    assert len(report.write_report(sample.out, sample.experiments)) == 1
    assert problems(sample, view, 390) == []


def test_no_result_is_one_line_and_no_page(tmp_path: Path, run_script: Run) -> None:
    empty = tmp_path / "empty"
    done = run_script("report.py", "--out", empty)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no <paper>/result.json here" in done.stderr
    assert not empty.exists()


def test_out_that_cannot_be_written_is_one_line(sample: Sample, run_script: Run) -> None:
    (sample.out / "report").write_text("a file where the folder should be", encoding="utf-8")
    done = run_script("report.py", "--out", sample.out, "--experiments", sample.experiments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert str(sample.out / "report") in done.stderr


def test_config_of_the_paper_is_required(sample: Sample, run_script: Run) -> None:
    sample.config_path.unlink()
    done = run_script("report.py", "--out", sample.out, "--experiments", sample.experiments)
    assert done.returncode == 1
    assert "config.json: No such file" in done.stderr


def test_the_config_of_the_run_goes_before_that_of_the_paper(sample: Sample) -> None:
    sample.config["figures"][0]["caption"] = "As this run had it."
    (sample.folder / "config.json").write_text(json.dumps(sample.config), encoding="utf-8")
    assert "As this run had it." in write_page(sample)


def test_names_with_numbers_are_in_natural_order(sample: Sample) -> None:
    sample.result["scalars"] = {"F10 a": 1, "F1 b": 2, "F2": 3, "10": 4, "e": 5}
    sample.write()
    text = write_page(sample).split("Measured values")[1]
    names = re.findall(r"<th scope=row>([^<]*)</th>", text)
    assert names[:5] == ["10", "F1 b", "F2", "F10 a", "e"]


def test_result_keys_may_be_added(sample: Sample) -> None:
    path = sample.folder / "result.json"
    path.write_text(json.dumps(sample.result | {"extra": 1}), encoding="utf-8")
    assert 'data-claim="C1a"' in write_page(sample)
