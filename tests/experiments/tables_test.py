"""The READMEs' marked tables: rewritten from committed results, compared by --check."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tables
from result_file import format_number, format_seconds, format_value

if TYPE_CHECKING:
    from conftest import Sample

    Run = Callable[..., subprocess.CompletedProcess[str]]

BENCH: dict[str, Any] = {
    "machine": "desk",
    "cpu": "A CPU",
    "commit": "0123abc",
    "date": "2025-01-02",
    "rows": [
        {
            "case": "fold L=6, 1 thread",
            "ours_us": 0.5,
            "baseline_us": 120.25,
            "ratio": 240.5,
            "target": 150,
            "spread_percent": 3.21,
            "noisy": False,
            "share_of_fma_roof": 0.123,
        },
        {"case": "a|b", "ours_us": None, "noisy": True},
    ],
}
README = """# Sample

<!-- table: claims sample-paper small -->
old
<!-- /table -->

text

<!-- table: bench sample-paper -->
<!-- /table -->
"""


@pytest.fixture
def root(sample: Sample, tmp_path: Path) -> Path:
    """A checkout with one README, committed results and one measured machine."""
    root = tmp_path / "checkout"
    results = root / "experiments" / "sample_paper" / "results"
    bench = root / "bench" / "results" / "desk"
    for folder in (results, bench, root / "build"):
        folder.mkdir(parents=True)
    (results / "small.json").write_text(json.dumps(sample.result), encoding="utf-8")
    (bench / "sample-paper.json").write_text(json.dumps(BENCH), encoding="utf-8")
    (root / "README.md").write_text(README, encoding="utf-8")
    (root / "build" / "README.md").write_text(README, encoding="utf-8")
    return root


def test_tables_are_rewritten_and_then_current(root: Path) -> None:
    assert tables.main(["--root", str(root), "--check"]) == 1
    assert tables.main(["--root", str(root)]) == 0
    assert tables.main(["--root", str(root), "--check"]) == 0
    before = (root / "README.md").stat().st_mtime_ns
    assert tables.main(["--root", str(root)]) == 0
    assert (root / "README.md").stat().st_mtime_ns == before
    assert (root / "build" / "README.md").read_text(encoding="utf-8") == README


def test_claims_table(root: Path) -> None:
    tables.main(["--root", str(root)])
    lines = (root / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[2:6] == [
        "<!-- table: claims sample-paper small -->",
        "",
        "| id | claim | published | ours | criterion | verdict | why |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    assert "| C1a | Accuracy is 1 | 1 | 0.99 | >= 0.985 | holds | - |" in lines
    assert "| C1b | Accuracy is 1 | 1 | 0.9849999999 | >= 0.985 | fails | One sentence. |" in lines
    untested = "| C3 | Accuracy is 1 | - | - | within [0, 1] | not tested at this scale |"
    assert f"{untested} One sentence. |" in lines
    assert not any("<script" in line for line in lines)
    assert "text" in lines


def test_verdicts_of_all_papers(root: Path) -> None:
    (root / "README.md").write_text("<!-- table: verdicts small -->\n<!-- /table -->\n")
    tables.process(root, check=False)
    lines = (root / "README.md").read_text().splitlines()
    claims = json.loads(
        (root / "experiments" / "sample_paper" / "results" / "small.json").read_text()
    )["claims"]
    verdicts = [claim["verdict"] for claim in claims]
    counts = [verdicts.count(v) for v in ("holds", "fails", "not tested at this scale")]
    failing = ", ".join(claim["id"] for claim in claims if claim["verdict"] == "fails") or "-"
    assert lines[2] == "| paper | holds | fails | not tested at this scale | that fail |"
    assert lines[4] == f"| sample-paper | {' | '.join(map(str, counts))} | {failing} |"


def test_bench_table_has_the_columns_present(root: Path) -> None:
    tables.main(["--root", str(root)])
    text = (root / "README.md").read_text(encoding="utf-8")
    expected = """<!-- table: bench sample-paper -->

Machine desk: A CPU, commit 0123abc, 2025-01-02.

| case | ours, us | baseline, us | ratio | target | share of FMA roof | spread | noisy |
| --- | --- | --- | --- | --- | --- | --- | --- |
| fold L=6, 1 thread | 0.5 | 120 | 240x | >= 150x | 12 % | 3 % | no |
| a\\|b | - | - | - | - | - | - | yes |

<!-- /table -->
"""
    assert text.endswith(expected)


def test_rows_of_a_benchmark_are_grouped_by_table(root: Path) -> None:
    rows = [
        {"table": "forward", "case": "T 128", "ratio": 1.5, "gflops": 150.26, "missed": True},
        {"table": "forward", "case": "T 256", "ratio": 2, "share_target": 0.75, "missed": False},
        {"table": "one query", "case": "S 4096", "gb_s": 20, "share_of_read_roof": 0.816},
    ]
    text = json.dumps(BENCH | {"rows": rows, "note": "Baseline: a|b."})
    (root / "bench" / "results" / "desk" / "sample-paper.json").write_text(text, encoding="utf-8")
    tables.main(["--root", str(root)])
    expected = """Machine desk: A CPU, commit 0123abc, 2025-01-02.

Baseline: a\\|b.

Forward:

| case | ratio | GFLOP/s | least share | missed |
| --- | --- | --- | --- | --- |
| T 128 | 1.5x | 150 | - | yes |
| T 256 | 2x | - | >= 75 % | no |

One query:

| case | GB/s | share of read roof |
| --- | --- | --- |
| S 4096 | 20 | 82 % |
"""
    assert expected in (root / "README.md").read_text(encoding="utf-8")


TABLE: dict[str, Any] = {
    "name": "costs",
    "title": "Costs",
    "columns": [
        {"label": "model", "values": ["a|b", "c"]},
        {"label": "published", "values": [0.5, None]},
        {"label": "ours", "scalars": ["cost of a", "not run"]},
        {"label": "loss", "series": "curve", "column": "loss", "digits": 2},
        {"label": "absent", "series": "not run", "column": "loss"},
    ],
}


def declare(root: Path, sample: Sample, table: dict[str, Any]) -> None:
    folder = root / "experiments" / "sample_paper"
    result = sample.result | {"scalars": {"cost of a": 1 / 3}}
    result["series"] = {"curve": {"loss": [1.234, None]}}
    (folder / "results" / "small.json").write_text(json.dumps(result), encoding="utf-8")
    config = sample.config | {"tables": [table]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mark = "<!-- table: values sample-paper small costs -->\n<!-- /table -->\n"
    (root / "README.md").write_text(mark, encoding="utf-8")


def test_declared_table_shows_published_values_beside_ours(root: Path, sample: Sample) -> None:
    declare(root, sample, TABLE)
    tables.process(root, check=False)
    lines = (root / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[2] == "| model | published | ours | loss | absent |"
    assert lines[4:6] == ["| a\\|b | 0.5 | 0.3333 | 1.2 | - |", "| c | - | - | - | - |"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, 'no table "costs"'),
        ({"name": "a b"}, "name must be letters, digits, - and _"),
        ({"titel": "x"}, 'unknown key "titel" (did you mean "title"?)'),
        ({"columns": []}, "columns must be a list of columns"),
        ({"columns": [{"label": "x"}]}, "must have values, scalars, or a series and its column"),
        ({"columns": [{"label": "x", "series": "curve"}]}, "a series and its column"),
        ({"columns": [{"label": "x", "values": [], "digits": 0}]}, "digits must be 1 to 17"),
        ({"columns": TABLE["columns"] + [{"label": "x", "values": [1]}]}, "columns of 1, 2 rows"),
    ],
)
def test_wrong_declaration_is_one_line(
    root: Path, sample: Sample, run_script: Run, change: dict[str, Any], message: str
) -> None:
    declare(root, sample, TABLE | change)
    done = run_script("tables.py", "--root", root)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr


def test_each_machine_has_a_table(root: Path) -> None:
    other = root / "bench" / "results" / "a-server"
    other.mkdir()
    text = json.dumps({"machine": "a-server", "rows": []})
    (other / "sample-paper.json").write_text(text, encoding="utf-8")
    tables.main(["--root", str(root)])
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.index("Machine a-server.") < text.index("Machine desk:")


def test_a_table_that_nobody_has_measured_yet(root: Path) -> None:
    mark = "<!-- table: bench {}, if measured -->\n<!-- /table -->\n"
    (root / "README.md").write_text(mark.format("other") + mark.format("sample-paper"))
    tables.main(["--root", str(root)])
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.index("Not measured yet.") < text.index("Machine desk:")
    assert text.count("Not measured yet.") == 1


def test_check_names_the_stale_file_and_changes_nothing(root: Path, run_script: Run) -> None:
    done = run_script("tables.py", "--root", root, "--check")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert 'README.md: table "claims sample-paper small"' in done.stderr
    assert (root / "README.md").read_text(encoding="utf-8") == README


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n<!-- table: claims sample-paper small -->\n", "line 2: the table has no"),
        (README.replace("<!-- /table -->", "", 1), "line 3: the table has no"),
        (README.replace("claims", "claim"), 'line 3: unknown table "claim sample-paper small"'),
        (README.replace("small", "full"), "full.json: No such file"),
        (README.replace("bench sample", "bench other"), "other-paper.json: no such file"),
    ],
)
def test_wrong_mark_is_one_line(root: Path, run_script: Run, text: str, message: str) -> None:
    (root / "README.md").write_text(text, encoding="utf-8")
    done = run_script("tables.py", "--root", root)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
    assert (root / "README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", "a\\|b"),
        ("u_1 _x_", "u_1 \\_x\\_"),
        ("2 * 3\n4", "2 \\* 3 4"),
        ("<b> & c", "&lt;b> &amp; c"),
    ],
)
def test_markdown_prints_texts_as_they_stand(text: str, expected: str) -> None:
    assert tables.escaped(text) == expected


@pytest.mark.parametrize(
    ("value", "beside", "expected"),
    [
        (231.0, [], "231"),
        (0.1234567, [], "0.123457"),
        (0.98499999, [0.985], "0.98499999"),
        (0.985, [0.985], "0.985"),
        (3.2e-12, [1e-8], "3.2e-12"),
        (1.5e300, [], "1.5e300"),
        (-0.0, [], "0"),
    ],
)
def test_printed_number_stays_on_its_side_of_the_bound(
    value: float, beside: list[float], expected: str
) -> None:
    assert format_number(value, beside) == expected


def test_values_and_durations() -> None:
    assert [format_value(v) for v in (None, True, 7, [1, None], "x")] == [
        "",
        "yes",
        "7",
        "[1, ]",
        "x",
    ]
    seconds = [None, 0.04, 59.7, 75.2, 4000.0]
    assert [*map(format_seconds, seconds)] == ["", "0.0 s", "1 min 0 s", "1 min 15 s", "1 h 6 min"]


def test_committed_tables_are_current() -> None:
    assert tables.process(Path(tables.__file__).parents[2], check=True) == []
