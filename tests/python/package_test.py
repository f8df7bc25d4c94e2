"""The package itself: attributes, threads, torch's version, the environment, types."""

import re
from pathlib import Path

import paperlab
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_is_that_of_the_build_files():
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"project\(paperlab VERSION ([0-9.]+)", text)[1] == paperlab.__version__


def test_modules_are_attributes_loaded_on_first_use(run_python):
    code = """
import sys, paperlab
modules = ("data", "integrations", "io", "ops", "regular_language")
assert not any(f"paperlab.{name}" in sys.modules for name in modules)
assert dir(paperlab) == sorted(paperlab.__all__) and set(modules) <= set(paperlab.__all__)
assert paperlab.regular_language.train(num_steps=0)["step"].tolist() == [0]
assert paperlab.ops.even_pairs_loss
from paperlab import *
assert regular_language is paperlab.regular_language
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'paperlab' has no attribute 'regular'"):
        _ = paperlab.regular


def test_set_num_threads_governs_paperlab_and_torch():
    before = paperlab.get_num_threads(), torch.get_num_threads()
    try:
        for n in (1, 3, 2):
            paperlab.set_num_threads(n)
            assert paperlab.get_num_threads() == n and torch.get_num_threads() == n
        for bad in (0, -1, 1025, 2.0, True, "2", None):
            with pytest.raises(ValueError, match=r"^set_num_threads: n "):
                paperlab.set_num_threads(bad)
        assert paperlab.get_num_threads() == 2 and torch.get_num_threads() == 2
    finally:
        paperlab.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def test_one_openmp_runtime_is_mapped(run_python):
    code = """
import paperlab, torch
torch.set_num_threads(2)
u, w = torch.ones(32).double(), torch.zeros(32, 32).double()
paperlab.ops.even_pairs_loss(u, w)
paths = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(*sorted(p for p in paths if any(x in p for x in ("libgomp", "libomp", "libiomp"))))
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) == 1, run.stdout
    assert str(Path(torch.__file__).resolve().parent) in run.stdout


def fake_torch(folder, version):
    package = folder / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    return folder


@pytest.mark.parametrize("version", ["2.12.0", "2.10.1+cpu", "3.11.0", "2.1.1"])
def test_another_minor_version_of_torch_is_an_import_error(
    run_python, package_path, tmp_path, version
):
    built = (package_path / "paperlab/torch_version.txt").read_text(encoding="ascii").strip()
    path = f"{fake_torch(tmp_path, version)}:{package_path}"
    code = """
try:
    import paperlab
except ImportError as error:
    print(type(error).__name__, error)
"""
    run = run_python(code, env={"PYTHONPATH": path})
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("ImportError paperlab was built for torch ")
    assert built in run.stdout and version in run.stdout


def test_without_torch_the_import_error_says_so(run_python, package_path):
    code = f"""
import sys
sys.path.insert(0, {str(package_path)!r})
import paperlab
"""
    run = run_python(["-I", "-S", "-c", code])
    assert run.returncode == 1
    assert "ImportError: paperlab needs torch" in run.stderr


def test_the_environment_is_read_once_at_import(run_python):
    code = """
import os, paperlab, torch
from paperlab import _core
os.environ["PAPERLAB_NUM_THREADS"] = "1"
print(paperlab.get_num_threads(), torch.get_num_threads(), _core.cpu_isa())
"""
    run = run_python(code, env={"PAPERLAB_NUM_THREADS": "3", "PAPERLAB_CPU": "generic"})
    assert run.stdout == "3 3 generic\n", run.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("PAPERLAB_NUM_THREADS", "many"), ("PAPERLAB_NUM_THREADS", "0"), ("PAPERLAB_CPU", "mmx")],
)
def test_a_bad_variable_is_named(run_python, name, value):
    run = run_python("import paperlab", env={name: value})
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("ValueError: ") and name in last and value in last


def test_the_package_is_typed(package_path):
    folder = package_path / "paperlab"
    assert (folder / "py.typed").exists() and (folder / "_core.pyi").exists()
