"""Figures from declarations: every kind, the same bytes, drawn only when something changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figure_drawing
import figures
import pytest
from figure_declaration import read_figures
from result_file import InputError

if TYPE_CHECKING:
    from conftest import Sample

    Run = Callable[..., subprocess.CompletedProcess[str]]


def draw(sample: Sample) -> list[str]:
    return [path.name for path in figures.draw_all(sample.config_path, sample.out)]


def bytes_of(sample: Sample) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (sample.folder / "figures").iterdir()}


def only(sample: Sample, *names: str) -> None:
    """Declares these figures and no others."""
    sample.config["figures"] = [sample.figure(name) for name in names]
    sample.write()


def svg(sample: Sample, name: str) -> str:
    only(sample, name)
    draw(sample)
    return (sample.folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")


def test_every_figure_is_drawn_as_svg_and_png(sample: Sample) -> None:
    names = [figure["name"] for figure in sample.config["figures"]]
    assert draw(sample) == [f"{name}.{form}" for name in names for form in ("svg", "png")]
    for name, data in bytes_of(sample).items():
        assert data.startswith(b"<?xml" if name.endswith("svg") else b"\x89PNG")
    assert set(bytes_of(sample)) == {f"{n}.{form}" for n in names for form in ("svg", "png")}


def test_bytes_are_the_same_in_another_process_and_under_another_matplotlibrc(
    sample: Sample, tmp_path: Path
) -> None:
    draw(sample)
    first = bytes_of(sample)
    for path in (sample.folder / "figures").iterdir():
        path.unlink()
    style = tmp_path / "matplotlibrc"
    style.write_text("font.size: 20\nlines.linewidth: 9\nsavefig.dpi: 30\n", encoding="utf-8")
    command = [sys.executable, figures.__file__, "--config", str(sample.config_path), "--out"]
    done = subprocess.run(
        [*command, str(sample.out)],
        env=os.environ | {"MATPLOTLIBRC": str(style), "PYTHONHASHSEED": "7", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert bytes_of(sample) == first


OVERRIDES: dict[str, tuple[object, str]] = {
    "key": ([{"name": "loss", "captoin": "x"}], 'unknown key "captoin" (did you mean "caption"?)'),
    "new figure": ([{"name": "other"}], "kind must be line | bar | heatmap"),
    "no list": ({"loss": {}}, '"figures" must be a list'),
}


@pytest.mark.parametrize("fault", OVERRIDES)
def test_check_refuses_figures_of_an_override(sample: Sample, run_script: Run, fault: str) -> None:
    changes, message = OVERRIDES[fault]
    path = sample.out / "override.json"
    path.write_text(json.dumps({"figures": changes}), encoding="utf-8")
    done = run_script("figures.py", f"--config={sample.config_path}", f"--check={path}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr and str(path) in done.stderr


def test_check_accepts_a_change_of_one_key(sample: Sample, run_script: Run) -> None:
    path = sample.out / "override.json"
    path.write_text('{"figures": [{"name": "loss", "caption": "Mine"}]}', encoding="utf-8")
    done = run_script("figures.py", f"--config={sample.config_path}", f"--check={path}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_second_call_writes_nothing_and_does_not_import_matplotlib(sample: Sample) -> None:
    draw(sample)
    before = {p: p.stat().st_mtime_ns for p in (sample.folder / "figures").iterdir()}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import figures\n"
        "assert figures.main(sys.argv[2:]) == 0\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    common = str(Path(figures.__file__).parent)
    arguments = ["--config", str(sample.config_path), "--out", str(sample.out)]
    subprocess.run([sys.executable, "-c", code, common, *arguments], check=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_times_of_a_run_do_not_redraw_but_its_data_do(sample: Sample) -> None:
    only(sample, "loss", "map")
    draw(sample)
    sample.result["seconds"] = 1.0
    sample.result["environment"]["rows_s"] = {"F1": 9.0}
    sample.write()
    assert draw(sample) == []
    sample.result["series"]["F1 even"]["loss"][0] = 5.0
    sample.write()
    assert draw(sample) == ["loss.svg", "loss.png"]
    sample.figure("map")["title"] = "Another title"
    sample.write()
    assert draw(sample) == ["map.svg", "map.png"]


def test_a_lost_or_foreign_file_is_drawn_again(sample: Sample) -> None:
    only(sample, "loss", "map")
    draw(sample)
    first = bytes_of(sample)
    (sample.folder / "figures" / "loss.svg").unlink()
    (sample.folder / "figures" / "map.png").write_bytes(b"something else")
    assert draw(sample) == ["loss.svg", "map.png"]
    assert bytes_of(sample) == first


def test_line_without_a_series_is_left_out(sample: Sample) -> None:
    text = svg(sample, "loss")
    assert "<!-- even -->" in text
    assert "<!-- F1 odd -->" in text
    assert "<!-- GPU -->" not in text
    assert "<!-- t0 -->" in text
    assert "<!-- beyond -->" not in text


def test_figure_without_any_line_says_so(sample: Sample) -> None:
    assert "<!-- not run in this preset -->" in svg(sample, "absent")
    sample.result["series"]["G1"] = {"a": [1, 2], "b": [None, None]}
    sample.write()
    assert "<!-- no finite value to show -->" in svg(sample, "absent")


def test_log_axes_skip_what_they_cannot_show(sample: Sample) -> None:
    sample.result["series"]["F1 even"] = {"step": [0, 10, 100], "loss": [1.0, -1.0, None]}
    sample.result["series"]["F1 odd"] = {"step": [0, 10, 1000], "loss": [1.0, 2e-9, 3e3]}
    sample.write()
    text = svg(sample, "loss")
    assert "<!-- even -->" not in text
    assert "<!-- F1 odd -->" in text


@pytest.mark.parametrize(
    "values", [[5.0], [1e-300, 1e300], [0.0, 0.0], [1e22, -1e22], [None, 1], list(range(5000))]
)
def test_awkward_values_are_drawn(sample: Sample, values: list[Any]) -> None:
    steps = list(range(len(values)))
    sample.result["series"]["F1 even"] = {"step": steps, "loss": values}
    sample.result["series"]["F2"] = {"lambda": steps[:40], "t2": values[:40]}
    sample.result["series"]["F3"] = {
        "query": steps[:40],
        "key": steps[:40],
        "weight": values[:40],
    }
    only(sample, "loss", "bars", "map")
    for scale in ("linear", "log"):
        sample.figure("loss")["x_scale"] = sample.figure("loss")["y_scale"] = scale
        sample.write()
        draw(sample)


def test_bar_names_may_be_texts(sample: Sample) -> None:
    sample.result["series"]["F2"] = {"lambda": ["GD", "Adam", "sign"], "t2": [1, 2, 3]}
    sample.write()
    assert "<!-- Adam -->" in svg(sample, "bars")


def test_long_or_many_labels_go_below_the_axes(sample: Sample) -> None:
    lines = [
        {"series": "F1 even", "x": "step", "y": "loss", "label": f"curve {i}"} for i in range(10)
    ]
    sample.figure("loss")["lines"] = lines
    sample.write()
    assert "legend_1" in svg(sample, "loss")
    sample.figure("loss")["lines"] = lines[:3]
    sample.write()
    assert "legend_1" not in svg(sample, "loss")


def test_spread_moves_labels_apart_as_little_as_possible() -> None:
    assert figure_drawing.spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert figure_drawing.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    placed = figure_drawing.spread([0.1, 0.11, 0.12, 0.9], 0.1)
    assert placed == pytest.approx([0.01, 0.11, 0.21, 0.9])


def no_lines(figure: dict[str, Any]) -> None:
    figure["lines"] = []


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "key": (lambda f: f.update(xlabel="x"), 'unknown key "xlabel" (did you mean "x_label"?)'),
    "line key": (lambda f: f["lines"][0].update(colour=1), 'unknown key "colour"'),
    "vline key": (lambda f: f["vlines"][0].update(y=1), 'unknown key "y"'),
    "kind": (lambda f: f.update(kind="lines"), '(did you mean "line"?)'),
    "scale": (lambda f: f.update(x_scale="logarithmic"), "x_scale must be linear | log"),
    "style": (lambda f: f["lines"][0].update(style="dash"), "style must be solid | dashed"),
    "no title": (lambda f: f.pop("title"), "title must be a text"),
    "no series": (lambda f: f["lines"][0].pop("series"), "series must be a text"),
    "no lines": (no_lines, "lines must name at least one series"),
    "name": (lambda f: f.update(name="../x"), "name must be letters"),
    "twice": (lambda f: f.update(name="map"), "declared twice"),
    "bar": (lambda f: f.update(kind="bar"), "style belongs to kind line"),
    "heatmap": (lambda f: f.update(kind="heatmap"), "value is the third column"),
    "vline": (lambda f: f["vlines"][0].update(x="1"), "x must be a number"),
    "column": (lambda f: f["lines"][0].update(y="los"), 'no column "los" (has: step, loss)'),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_before_anything_is_drawn(
    sample: Sample, capfd: pytest.CaptureFixture[str], mistake: str
) -> None:
    change, message = MISTAKES[mistake]
    change(sample.figure("loss"))
    sample.write()
    code = figures.main(["--config", str(sample.config_path), "--out", str(sample.out)])
    error = capfd.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("figures: ")
    assert message in error
    assert not (sample.folder / "figures").exists()


def test_text_in_a_numeric_column_is_refused(sample: Sample) -> None:
    sample.result["series"]["F1 even"]["loss"][0] = "four"
    sample.write()
    with pytest.raises(InputError, match='column "loss" is not numeric'):
        draw(sample)


@pytest.mark.parametrize(
    ("text", "message"), [("{\n\n]", "config.json: line 3: "), ("{}", '"paper" must be an object')]
)
def test_malformed_config_names_file_and_line(
    sample: Sample, run_script: Run, text: str, message: str
) -> None:
    sample.config_path.write_text(text, encoding="utf-8")
    done = run_script("figures.py", "--config", sample.config_path, "--out", sample.out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_newer_result_is_refused(sample: Sample, run_script: Run) -> None:
    sample.result["schema"] = 2
    sample.write()
    done = run_script("figures.py", "--config", sample.config_path, "--out", sample.out)
    assert done.returncode == 2
    assert "schema 2 is newer than 1" in done.stderr


def test_failed_write_leaves_nothing(sample: Sample, run_script: Run) -> None:
    (sample.folder / "figures").write_text("in the way", encoding="utf-8")
    done = run_script("figures.py", "--config", sample.config_path, "--out", sample.out)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert list(sample.out.rglob("*.tmp")) == []


def test_figures_without_declarations_are_none(sample: Sample) -> None:
    assert read_figures(sample.config_path, {}) == []
