"""A checkout of stubs: the real launcher over fake papers; nothing is installed or built."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]

STUBS = {
    # Every package is installed.
    "dpkg-query": """
        for word in "${@:3}"; do printf '%s install ok installed\\n' "$word"; done
    """,
    "cmake": """
        printf 'cmake %s\\n' "$*" >>"$STUB_LOG"
        [[ ! -v STUB_CONFIGURE_FAILS ]] || exit 1
        while [[ $# -gt 0 ]]; do
          if [[ $1 == -B ]]; then mkdir -p "$2" && : >"$2/build.ninja"; fi
          shift
        done
    """,
    # The first build takes place, the next ones have no work to do.
    "ninja": """
        dir=$2
        if [[ -e $dir/built ]]; then echo 'ninja: no work to do.'; exit 0; fi
        [[ $3 == -n ]] && exit 0
        [[ ! -v STUB_BUILD_FAILS ]] || { echo 'error: no such header'; exit 1; }
        printf 'ninja %s\\n' "$*" >>"$STUB_LOG"
        echo '[1/1] compiling'
        : >"$dir/built"
    """,
}

# Writes a result like a driver; DRIVER_<NAME> holds shell code that runs before.
DRIVER = """
name=$(basename "$0")
printf '%s' "$name" >>"$STUB_LOG"
printf ' <%s>' "$@" >>"$STUB_LOG"
printf '\\n' >>"$STUB_LOG"
while [[ $1 != --out=* ]]; do shift; done
out=${1#--out=}
mkdir -p -- "$out/$name"
hook=DRIVER_${name//-/_}
eval "${!hook:-}"
[[ -e $out/$name/result.json ]] || echo '{}' >"$out/$name/result.json"
echo "C1 holds"
"""

FIGURES = """
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("--config", required=True)
parser.add_argument("--out")
parser.add_argument("--check")
options = parser.parse_args()
if options.check and "captoin" in open(options.check).read():
    print("figures: unknown key", file=sys.stderr)
    sys.exit(2)
assert options.check or options.config.endswith("/config.json")
print("drew loss.svg")
"""
REPORT = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path, required=True)
out = parser.parse_args().out
report = out / "report" / "index.html"
report.parent.mkdir(exist_ok=True)
papers = sorted(path.parent.name for path in out.glob("*/result.json"))
report.write_text(" ".join(papers))
"""

# The texts that a run reads are there.
CORPORA = """
import os, sys
os.execv(sys.argv[1], sys.argv[1:])
"""


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text, encoding="utf-8")
    path.chmod(0o755)


@dataclass
class Checkout:
    """A copy of the launcher with stubs before everything else on PATH."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def stubs(self) -> Path:
        return self.root / "stubs"

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def log(self) -> str:
        """What the stubs were called with."""
        return (self.root / "stub.log").read_text(encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        return [str(self.root / "paperlab"), *arguments]

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] = MappingProxyType({}),
        stdin: str = "",
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.env | dict(env),
            input=stdin,
            cwd=cwd or self.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    def add_paper(self, name: str, expected_seconds: float) -> None:
        config = {"presets": {"small": {"expected_seconds": expected_seconds}}}
        folder = self.root / "experiments" / name.replace("-", "_")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        write_script(self.root / "build/release/bin" / name, DRIVER)

    def fake_environment(self) -> None:
        """An environment that set-up takes for finished."""
        write_script(self.venv / "bin/python", f'exec "{sys.executable}" "$@"\n')
        pins = hashlib.sha256((self.root / "scripts/requirements.txt").read_bytes()).hexdigest()
        stamp = f"pins={pins}\nlevel=develop\ntorch=\n"
        (self.venv / ".paperlab-setup").write_text(stamp, encoding="utf-8")


def one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
