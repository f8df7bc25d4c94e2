"""Draws the figures that a paper's config.json declares, from its result.json alone.

    python experiments/common/figures.py --config experiments/<p>/config.json --out DIR

writes DIR/<paper>/figures/<name>.svg and .png. Each file carries a digest of all it was drawn from
and is drawn again only if that changes, so that a second call does not even import matplotlib.
With --check FILE in place of --out it draws nothing and checks the figures of an override file.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import logging
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from figure_declaration import Figure, check_columns, overridden, paper_of, read_figures
from placeholders import filled
from result_file import InputError, Result, describe, read_object, read_result, write_whole

CODE = ("figure_declaration.py", "figure_drawing.py")
HEAD_BYTES = 4096  # the digest stands before this offset in both formats


def digest_of(figure: Figure, result: Result) -> str:
    """A hash of all that the figure depends on: declaration, data, this code, matplotlib."""
    data = {
        line.series: {name: result.series[line.series][name] for name in line.columns()}
        for line in figure.lines
        if line.series in result.series
    }
    code = [Path(__file__).with_name(name).read_bytes() for name in CODE]
    parts = [
        json.dumps([asdict(figure), [[n, c] for n, c in data.items()]], sort_keys=True).encode(),
        importlib.metadata.version("matplotlib").encode(),
        *code,
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_current(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            return digest.encode() in file.read(HEAD_BYTES)
    except OSError:
        return False


def draw_all(config_path: Path, out: Path) -> list[Path]:
    """Draws what is not current; returns the files written."""
    config = read_object(config_path)
    folder = out / str(paper_of(config_path, config)["name"])
    declared = read_figures(config_path, config)
    result = read_result(folder / "result.json")
    figures = [filled(figure, result) for figure in declared]
    for figure in figures:
        check_columns(figure, result)
    written = []
    for figure in figures:
        paths = [folder / "figures" / f"{figure.name}.{form}" for form in ("svg", "png")]
        digest = digest_of(figure, result)
        if all(is_current(path, digest) for path in paths):
            continue
        for path, data in zip(paths, _draw(figure, result, digest), strict=True):
            if write_whole(path, data):
                written.append(path)
    return written


def _draw(figure: Figure, result: Result, digest: str) -> tuple[bytes, bytes]:
    """Imports matplotlib, which costs a second, only when there is something to draw."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # building its font cache is no error
    from figure_drawing import draw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stderr holds errors only; 1e300 on a log axis is none
        return draw(figure, result, digest)


def check_override(config_path: Path, override_path: Path) -> None:
    """InputError if the figures of an override file would not be accepted over the config's."""
    changes = read_object(override_path)
    if "figures" in changes:
        config = read_object(config_path)
        merged = overridden(config.get("figures", []), changes["figures"])
        read_figures(override_path, {"figures": merged})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="figures.py", description="Draws a paper's figures.")
    parser.add_argument("--config", type=Path, required=True, help="the paper's config.json")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="holds <paper>/result.json")
    action.add_argument("--check", type=Path, help="a file that overrides values of the config")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            check_override(options.config, options.check)
            return 0
        for path in draw_all(options.config, options.out):
            print(f"drew {path}")
    except InputError as error:
        print(f"figures: {describe(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"figures: {describe(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
