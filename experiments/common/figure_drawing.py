"""The drawing of one declared figure with matplotlib: the same bytes for the same data.

Colours are Okabe and Ito's, which stay apart in the common forms of colour blindness.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from figure_declaration import Figure, Line, VLine
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from result_file import Result, format_number, number

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#333333", "#56B4E9", "#E69F00", "#7A5C00")
INK, FAINT, GRID = "#222222", "#6B6B6B", "#E4E4E4"
SIZE = (5.4, 3.7)  # inches; a phone shows it at two thirds, where 10.5 points become 7
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.xmargin": 0.02,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.06,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "paperlab",
    "text.color": INK,
    "text.parse_math": False,  # titles are shown as they stand, on the page too
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}
MATPLOTLIB_STYLE: Mapping[str, dict[str, Any]] = {
    "solid": {"linestyle": "-"},
    "dashed": {"linestyle": (0, (4, 2))},
    "dotted": {"linestyle": (0, (1, 1.6))},
    "points": {"linestyle": "none", "marker": "o", "markersize": 5},
}
DIRECT_LABEL = 16  # longer labels go below the axes: beside them they would take half the width
SUPERSCRIPT = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)


def draw(figure: Figure, result: Result, digest: str) -> tuple[bytes, bytes]:
    """The figure as SVG and as PNG; both carry `digest` in their first bytes."""
    matplotlib.rcdefaults()  # not the user's matplotlibrc
    use_bundled_fonts()
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=SIZE)
        title = textwrap.fill(figure.title, 50)
        canvas.suptitle(title, x=0.015, ha="left", fontsize=12, fontweight="bold")
        lines = figure.present(result)
        if not lines:
            _note(canvas, figure, result)
        elif figure.kind == "line":
            _lines(canvas.subplots(), figure, result)
        elif figure.kind == "bar":
            _bars(canvas.subplots(), figure, lines, result)
        else:
            _heatmaps(canvas, figure, lines, result)
        svg, png = io.BytesIO(), io.BytesIO()
        canvas.savefig(
            svg, format="svg", metadata={"Date": None, "Creator": None, "Identifier": digest}
        )
        canvas.savefig(png, format="png", metadata={"Software": None, "Source": digest})
    return svg.getvalue(), png.getvalue()


def use_bundled_fonts() -> None:
    """A system's own DejaVu of another version would draw other outlines."""
    bundled = matplotlib.get_data_path()
    manager = font_manager.fontManager
    manager.ttflist = [font for font in manager.ttflist if font.fname.startswith(bundled)]


def _note(canvas: Canvas, figure: Figure, result: Result) -> None:
    run = any(line.series in result.series for line in figure.lines)
    text = "no finite value to show" if run else "not run in this preset"
    axes = canvas.subplots()
    axes.set(xticks=[], yticks=[], xlabel=figure.x_label, ylabel=figure.y_label)
    axes.set_facecolor("#F6F6F6")
    axes.spines[:].set_visible(False)
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": FAINT, "fontsize": 12}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **style)


def _lines(axes: Axes, figure: Figure, result: Result) -> None:
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    axes.set_xscale(figure.x_scale)
    axes.set_yscale(figure.y_scale)
    drawn = []
    for line in figure.present(result):
        points = _points(figure, result.series[line.series], line)
        colour = _colour(figure, line)
        style = dict(MATPLOTLIB_STYLE[line.style])
        if len(points) <= 12 and "marker" not in style:
            style |= {"marker": "o", "markersize": 4}
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=colour, label=line.label, **style)
        last = [point for point in points if math.isfinite(point[1])][-1]
        drawn.append((line.label, colour, last))
    _format_axis(axes, "x", figure.x_scale)
    _format_axis(axes, "y", figure.y_scale)
    _vlines(axes, figure.vlines)
    if len(drawn) > 1 or (drawn and drawn[0][0] != figure.y_label):
        _label_lines(axes, drawn)


def _points(
    figure: Figure, columns: Mapping[str, list[object]], line: Line
) -> list[tuple[float, float]]:
    """The points to draw; NaN, a gap, where there is no y or none that a log axis can show."""
    points = []
    for x, y in zip(columns[line.x], columns[line.y], strict=True):
        if figure.shows(x, figure.x_scale):
            points.append((_float(x), _float(y) if figure.shows(y, figure.y_scale) else math.nan))
    return points


def _float(value: object) -> float:
    x = number(value)
    return math.nan if x is None else x


def _colour(figure: Figure, line: Line) -> str:
    """By the place of its declaration, so that a line keeps its colour when others are missing."""
    return COLOURS[figure.lines.index(line) % len(COLOURS)]


def _label_lines(axes: Axes, drawn: Sequence[tuple[str, str, tuple[float, float]]]) -> None:
    """Names each line at its end, or all of them below the axes if the names are long."""
    if len(drawn) > 8 or max(len(label) for label, _, _ in drawn) > DIRECT_LABEL:
        longest = max(len(label) for label, _, _ in drawn)
        canvas = axes.figure
        assert isinstance(canvas, Canvas)
        canvas.legend(loc="outside lower left", ncols=2 if longest <= 30 else 1)
        return
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    to_axes = axes.transScale + axes.transLimits
    ends = sorted((float(to_axes.transform(last)[1]), label, c, last) for label, c, last in drawn)
    heights = spread([end[0] for end in ends], gap=0.078)
    for (_, label, colour, last), height in zip(ends, heights, strict=True):
        axes.annotate(
            label,
            xy=last,
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=_ink(colour),
            va="center",
            fontweight="bold",
            fontsize=10,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8, "relpos": (0, 0.5)},
        )


def _ink(colour: str) -> tuple[float, ...]:
    """A colour dark enough for letters on white."""
    rgb = to_rgb(colour)
    return tuple(0.7 * part for part in rgb) if sum(rgb) > 1.55 else rgb


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights moved apart to at least `gap`, as little as that takes (least squares)."""
    blocks: list[list[float]] = []  # of what is left of each height without its gaps
    for i, height in enumerate(heights):
        blocks.append([height - i * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [_mean(block) for block in blocks for _ in block]
    return [base + i * gap for i, base in enumerate(level)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _vlines(axes: Axes, vlines: Sequence[VLine]) -> None:
    left, right = axes.get_xlim()
    axes.set_xlim(left, right)
    previous, row = -1.0, 0
    for vline in sorted(vlines, key=lambda item: item.x):
        if not min(left, right) <= vline.x <= max(left, right):
            continue
        axes.axvline(vline.x, color=FAINT, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        place = float((axes.transScale + axes.transLimits).transform((vline.x, 1.0))[0])
        row = row + 1 if place - previous < 0.022 * (len(vline.label) + 2) else 0
        previous = place
        axes.annotate(
            vline.label,
            xy=(vline.x, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 11 * row),
            textcoords="offset points",
            ha="center",
            color=FAINT,
            fontsize=9,
        )


def _format_axis(axes: Axes, which: str, scale: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    if scale == "linear":
        axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
        return
    low, high = axis.get_view_interval()
    narrow = math.log10(high / low) < 2
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    return format_number(value, digits=4).replace("-", "\u2212")


def _power(value: float) -> str:
    """1000 and 0.01 as they are, 10 to a power beyond."""
    exponent = math.floor(math.log10(value) + 1e-9)
    if -3 <= exponent <= 3:
        return f"{value:.6g}"
    mantissa = value / 10.0**exponent
    factor = "" if abs(mantissa - 1) < 1e-9 else f"{mantissa:.3g}\u00b7"
    return f"{factor}10{str(exponent).translate(SUPERSCRIPT)}"


def _category(value: object) -> str:
    place = number(value)
    return str(value) if place is None else format_number(place).replace("-", "\u2212")


def _bars(axes: Axes, figure: Figure, lines: Sequence[Line], result: Result) -> None:
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    axes.grid(visible=False, axis="x")
    axes.set_yscale(figure.y_scale)
    places: dict[str, int] = {}
    for line in lines:
        for value in result.series[line.series][line.x]:
            places.setdefault(_category(value), len(places))
    width = 0.8 / len(lines)
    few = len(places) * len(lines) <= 14
    for index, line in enumerate(lines):
        columns = result.series[line.series]
        colour = _colour(figure, line)
        offset = (index - (len(lines) - 1) / 2) * width
        xs = [places[_category(value)] + offset for value in columns[line.x]]
        ys = [_float(value) for value in columns[line.y]]
        bars = axes.bar(xs, ys, width * 0.92, color=colour, label=line.label)
        if few:
            texts = ["" if math.isnan(y) else _plain(y) for y in ys]
            axes.bar_label(bars, labels=texts, fontsize=9, padding=2, color=INK)
    crowded = sum(map(len, places)) > 44
    axes.set_xticks(range(len(places)), [textwrap.fill(place, 14) for place in places])
    axes.tick_params(axis="x", length=0, labelrotation=35 if crowded else 0)
    _format_axis(axes, "y", figure.y_scale)
    if len(lines) > 1:
        canvas = axes.figure
        assert isinstance(canvas, Canvas)
        canvas.legend(loc="outside lower left", ncols=2)


def _heatmaps(canvas: Canvas, figure: Figure, lines: Sequence[Line], result: Result) -> None:
    grids = [_grid(result.series[line.series], line) for line in lines]
    colours = _colour_scale([cell for grid in grids for row in grid.rows for cell in row])
    columns = 1 if len(lines) == 1 else 2
    panels = -(-len(lines) // columns)
    canvas.set_size_inches(SIZE[0], SIZE[1] if columns == 1 else 0.8 + 2.4 * panels)
    panes = canvas.subplots(panels, columns, squeeze=False).flatten()
    for axes, line, grid in zip(panes, lines, grids, strict=False):
        axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
        if len(lines) > 1:
            axes.set_title(line.label, fontsize=10.5)
        mesh = _heatmap(axes, grid, colours, columns)
    for axes in panes[len(lines) :]:
        axes.set_axis_off()
    bar = canvas.colorbar(mesh, ax=list(panes), label=figure.value_label, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))


def _colour_scale(cells: Sequence[float]) -> dict[str, Any]:
    """One scale for all panes; two-sided about 0 if there are both signs."""
    finite = [cell for cell in cells if math.isfinite(cell)]
    low, high = min(finite), max(finite)
    if low < 0 < high:
        limit = max(-low, high)
        return {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit}
    return {"cmap": "cividis", "vmin": low, "vmax": high if high > low else low + 1}


@dataclass(frozen=True)
class Grid:
    """A heat map's column names, row names and rows; cells that the series lacks are NaN."""

    across: list[str]
    down: list[str]
    rows: list[list[float]]


def _grid(columns: Mapping[str, list[object]], line: Line) -> Grid:
    across, down = _ordered(columns[line.x]), _ordered(columns[line.y])
    rows = [[math.nan] * len(across) for _ in down]
    for x, y, value in zip(columns[line.x], columns[line.y], columns[line.value], strict=True):
        cell = number(value)
        if cell is not None:
            rows[down.index(_category(y))][across.index(_category(x))] = cell
    return Grid(across, down, rows)


def _ordered(values: Sequence[object]) -> list[str]:
    """The names of numbers by size, other names by first appearance."""
    numbers = [value for value in map(number, values) if value is not None]
    ordered: Sequence[object] = sorted(numbers) if len(numbers) == len(values) else values
    return list(dict.fromkeys(map(_category, ordered)))


def _heatmap(axes: Axes, grid: Grid, colours: dict[str, Any], panes_across: int) -> QuadMesh:
    axes.set_facecolor("#DDDDDD")  # what is missing is grey, not a colour of the scale
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    mesh = axes.pcolormesh(np.array(grid.rows), edgecolors="white", linewidth=0.6, **colours)
    axes.invert_yaxis()  # rows from the top, as in a matrix
    for axis, names in ((axes.xaxis, grid.across), (axes.yaxis, grid.down)):
        step = -(-len(names) // 12)
        axis.set_ticks([i + 0.5 for i in range(0, len(names), step)], names[::step])
        axis.set_tick_params(length=0)
    if panes_across * len(grid.across) <= 7 and len(grid.down) <= 7:
        _write_cells(axes, grid, mesh)
    return mesh


def _write_cells(axes: Axes, grid: Grid, mesh: QuadMesh) -> None:
    for i, row in enumerate(grid.rows):
        for j, value in enumerate(row):
            if not math.isfinite(value):
                continue
            dark = sum(mesh.to_rgba(np.array([value]))[0, :3]) < 1.6
            text = _plain(float(f"{value:.2g}"))
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5}
            axes.text(j + 0.5, i + 0.5, text, color="white" if dark else INK, **place)
