"""The wheel, built from the checkout and from an sdist."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import paperlab
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

# Without CUDA: what is tested is the package, and kernels take a minute to compile.
BUILD = ["--no-build-isolation", "--no-deps", "-C", "cmake.define.PAPERLAB_WITH_CUDA=OFF"]

CODE = """
import sys, paperlab, torch
assert paperlab.__file__.startswith(sys.argv[1]), paperlab.__file__
print(paperlab.__version__, paperlab.regular_language.train()["accuracy"][-1])
u, w = torch.zeros(8).double(), torch.zeros(8, 8).double()
print(round(paperlab.ops.even_pairs_loss(u, w).item(), 6))
"""


def python(*arguments: str | Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *(str(word) for word in arguments)],
        env={**os.environ, "PYTHONPATH": "", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_rpath(site: Path) -> None:
    """The libraries look for torch beside themselves, not where it was at build time."""
    libraries = list((site / "paperlab").glob("*.so"))
    assert len(libraries) == 2
    for library in libraries:
        done = subprocess.run(
            ["readelf", "-d", library], check=True, capture_output=True, text=True
        )
        paths = re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", done.stdout)
        assert paths == ["$ORIGIN:$ORIGIN/../torch/lib"]


def check_import(site: Path) -> None:
    output = python("-c", CODE, site, PYTHONPATH=str(site))
    assert output == f"{paperlab.__version__} 1.0\n2.772589\n"


def make_sdist(folder: Path) -> Path:
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def test_pip_installs_a_checkout(tmp_path: Path) -> None:
    python("-m", "pip", "install", *BUILD, "--target", tmp_path / "site", ROOT)
    check_rpath(tmp_path / "site")
    check_import(tmp_path / "site")


def test_an_sdist_makes_a_wheel_without_strangers(tmp_path: Path) -> None:
    sdist = make_sdist(tmp_path)
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"CMakeLists.txt", "LICENSE", "paperlab", "kernels/CMakeLists.txt"} <= names
    assert not [name for name in names if name.startswith(("build/", "results/", ".venv/"))]

    python("-m", "pip", "wheel", *BUILD, "-w", tmp_path, sdist)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        files = archive.namelist()
    top = {name.split("/")[0] for name in files}
    assert top == {"paperlab", f"paperlab-{paperlab.__version__}.dist-info"}
    assert "paperlab/py.typed" in files and "paperlab/libpaperlab.so" in files
    assert not [name for name in files if name.endswith((".h", ".a", ".cmake", "_test.py"))]
    check_rpath(tmp_path / "site")
    check_import(tmp_path / "site")
