"""A made-up paper with unpleasant texts, and Chromium as the judge of the report."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMON = ROOT / "experiments" / "common"
sys.path.insert(0, str(COMMON))

NASTY = '<script>throw new Error("ran")</script> "q" \'s\' & </td></table> --> ' + "long" * 40
NOT_TESTED = "not tested at this scale"


def _claim(name: str, verdict: str, **more: Any) -> dict[str, Any]:
    claim = {
        "id": name,
        "statement": "Accuracy is 1",
        "source": "Sec. 4",
        "published": 1.0,
        "measured": 0.9849999999,
        "relation": ">=",
        "bound": 0.985,
        "verdict": verdict,
        "why": "" if verdict == "holds" else "One sentence.",
    }
    return claim | more


def _result() -> dict[str, Any]:
    steps = [10**k for k in range(5)]
    cells = [(x, y) for x in range(1, 4) for y in range(1, 4)]
    series = {
        "F1 even": {"step": steps, "loss": [4.0 / s for s in steps]},
        "F1 odd": {"step": steps, "loss": [None, 3.0, 0.0, 0.1, 0.01]},
        "F2": {"lambda": [1, 2, 4], "t2": [289, 577, None]},
        "F3": {
            "query": [x for x, _ in cells],
            "key": [y for _, y in cells],
            "weight": [None if y > x else math.exp(-y) for x, y in cells],
        },
        NASTY: {NASTY: [1, None, NASTY]},
    }
    return {
        "schema": 1,
        "paper": "sample-paper",
        "preset": "small",
        "config": {"seed": 0, "note": NASTY, "nested": {"a": [1, None]}},
        "commit": "0123abc",
        "environment": {
            "cpu": NASTY,
            "isa": "avx2",
            "threads": 2,
            "rows_s": {"F1": 0.2, NASTY: None},
        },
        "seconds": 75.2,
        "series": series,
        "scalars": {"t2": 576, "slope": -1.157, "missing": None, NASTY: NASTY},
        "claims": [
            _claim("C1a", "holds", measured=0.99),
            _claim("C1b", "fails"),
            _claim("C2", "fails", statement=NASTY, source=NASTY, published=NASTY, why=NASTY),
            _claim(
                "C3", NOT_TESTED, published=None, measured=None, relation="within", bound=[0, 1]
            ),
            _claim(NASTY, NOT_TESTED, measured=None),
        ],
    }


def _config() -> dict[str, Any]:
    loss = [
        {"series": "F1 even", "x": "step", "y": "loss", "label": "even"},
        {"series": "F1 odd", "x": "step", "y": "loss", "style": "dashed"},
        {"series": "F1 on a GPU", "x": "step", "y": "loss", "label": "GPU"},
    ]
    log = {"x_scale": "log", "y_scale": "log", "x_label": "step", "y_label": "loss"}
    marks = [{"x": 100, "label": "t0"}, {"x": 120, "label": "t1"}, {"x": 1e9, "label": "beyond"}]
    weight = {"series": "F3", "x": "query", "y": "key", "value": "weight"}
    figures = [
        {"name": "loss", "title": "Loss", "kind": "line", "lines": loss, "vlines": marks} | log,
        {"name": "bars", "title": NASTY, "caption": NASTY, "kind": "bar"}
        | {"lines": [{"series": "F2", "x": "lambda", "y": "t2", "label": "$unpaired"}]},
        {"name": "map", "title": "Map", "kind": "heatmap", "lines": [weight]},
        {"name": "maps", "title": "Maps", "kind": "heatmap", "lines": [weight] * 3},
        {"name": "absent", "title": "Absent", "kind": "line"}
        | {"lines": [{"series": "G1", "x": "a", "y": "b"}]},
    ]
    return {
        "paper": {
            "name": "sample-paper",
            "title": "A Sample " + NASTY,
            "authors": "A. Author " + NASTY,
            "venue": "Venue 2025 " + NASTY,
            "url": "https://example.org/?a=1&b=2",
            "summary": "It claims much. " + NASTY,
        },
        "presets": {"small": {"rows": ["F1", "F2"]}},
        "figures": figures,
        "claims": [],
    }


@dataclass
class Sample:
    """An experiments folder and an out folder; change the dictionaries, then write()."""

    experiments: Path
    out: Path
    config: dict[str, Any]
    result: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.out / "sample-paper"

    @property
    def config_path(self) -> Path:
        return self.experiments / "sample_paper" / "config.json"

    @property
    def page(self) -> Path:
        return self.out / "report" / "index.html"

    def write(self) -> Sample:
        for path, value in (
            (self.config_path, self.config),
            (self.folder / "result.json", self.result),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value), encoding="utf-8")
        return self

    def figure(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(f for f in self.config["figures"] if f["name"] == name)
        return found


@pytest.fixture(scope="session")
def make_sample() -> Callable[[Path], Sample]:
    def make(folder: Path) -> Sample:
        return Sample(folder / "experiments", folder / "out", _config(), _result()).write()

    return make


@pytest.fixture
def sample(make_sample: Callable[[Path], Sample], tmp_path: Path) -> Sample:
    return make_sample(tmp_path)


@pytest.fixture
def add_paper(sample: Sample) -> Callable[[str, dict[str, Any]], Path]:
    """Writes the sample once more under another name, its result changed; returns the result."""

    def add(name: str, changes: dict[str, Any]) -> Path:
        config, result = copy.deepcopy(_config()), copy.deepcopy(_result())
        config["paper"]["name"] = result["paper"] = name
        path = sample.experiments / name.replace("-", "_") / "config.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(config), encoding="utf-8")
        path = sample.out / name / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result | changes), encoding="utf-8")
        return path

    return add


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script of experiments/common as the launcher does, in a process of its own."""

    def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(COMMON / name), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


HARNESS = """<!DOCTYPE html>
<title>harness</title>
<iframe id="frame" src="PAGE" style="width:WIDTHpx;height:800px;border:0"></iframe>
<pre id="measured"></pre>
<script>
const frame = document.getElementById("frame");
async function measure() {
  const page = frame.contentDocument;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const images = [...page.images];
  await Promise.all(images.map((image) => image.decode().catch(() => null)));
  const root = page.documentElement;
  document.getElementById("measured").textContent = JSON.stringify({
    width: frame.contentWindow.innerWidth,
    images: images.map((image) => image.naturalWidth),
    figures: page.querySelectorAll("figure").length,
    claims: [...page.querySelectorAll("tr[data-claim]")].map(
      (row) => [row.dataset.paper, row.dataset.claim, row.cells.length, row.offsetHeight]),
    scripts: page.scripts.length,
    client: root.clientWidth,
    scroll: Math.max(root.scrollWidth, page.body.scrollWidth),
    text: page.body.innerText,
  });
}
frame.addEventListener("load", measure);
</script>
"""


@dataclass
class View:
    """What Chromium saw of a page in a frame of one width."""

    width: int
    messages: list[str]
    measured: dict[str, Any]

    def problems(self, claims: list[tuple[str, str]], figures: int) -> list[str]:
        """All that is wrong with the page; [] if it is good."""
        seen = self.measured
        found = [f"console: {message}" for message in self.messages]
        if seen["width"] != self.width:
            found.append(f"frame: {seen['width']} px wide, not {self.width}")
        broken = seen["images"].count(0)
        if broken:
            found.append(f"figure: {broken} not rendered")
        if len(seen["images"]) != figures or seen["figures"] != figures:
            found.append(f"figure: {len(seen['images'])} images, {figures} required")
        rows = [(paper, claim) for paper, claim, _, _ in seen["claims"]]
        found += [f"claim: no row for {claim}" for claim in claims if claim not in rows]
        found += [f"claim: {row} more than once" for row in set(rows) if rows.count(row) > 1]
        for _, claim, cells, height in seen["claims"]:
            if cells != 6 or height == 0:
                found.append(f"claim: the row of {claim} has {cells} cells, {height} px")
        if seen["scroll"] > seen["client"]:
            found.append(f"scroll: {seen['scroll']} px in {seen['client']} px")
        return found


def _chromium(folder: Path, url: str) -> tuple[str, str]:
    programs = (shutil.which(name) for name in ("chromium", "google-chrome", "chromium-browser"))
    program = next(filter(None, programs), None)
    if program is None and "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        pytest.skip("no Chromium: this system packages it as a snap alone; install google-chrome")
    assert program, "chromium is not installed; ./paperlab setup installs it for developers"
    home = folder / "home"
    home.mkdir(exist_ok=True)
    command = [
        program,
        *("--headless", "--disable-gpu", "--disable-dev-shm-usage"),
        *(("--no-sandbox",) if os.geteuid() == 0 else ()),
        *("--allow-file-access-from-files", "--enable-logging=stderr", "--log-level=0"),
        *("--window-size=1400,900", "--virtual-time-budget=10000", "--dump-dom", url),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"HOME": str(home), "XDG_CONFIG_HOME": str(home)},
    )
    return done.stdout, done.stderr


@pytest.fixture
def view(tmp_path: Path) -> Callable[[Path, int], View]:
    """Opens a page in a frame: a window itself is never narrower than 500 px."""

    def open_page(page: Path, width: int) -> View:
        harness = tmp_path / f"harness{width}.html"
        text = HARNESS.replace("PAGE", page.as_uri()).replace("WIDTH", str(width))
        harness.write_text(text, encoding="utf-8")
        dom, log = _chromium(tmp_path, harness.as_uri())
        measured = re.search(r'<pre id="measured">(.+?)</pre>', dom, re.DOTALL)
        assert measured, f"the page was not measured:\n{log}"
        messages = re.findall(r":CONSOLE[:(].*", log)
        return View(width, messages, json.loads(unescape(measured[1])))

    return open_page


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, or of the test's own parameter."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={getattr(request, 'param', '64k')}"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
