"""The installed C++ package: found, compiled against, moved, and run in an empty environment."""

import os
import re
import subprocess
from pathlib import Path

import paperlab
import pytest
import torch

BUILD = Path(paperlab.__file__).parents[2]  # of the package in build/<preset>/python/paperlab
SITE = Path(torch.__file__).parents[1]

CMAKE_LISTS = """
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
find_package(paperlab {version} REQUIRED)
foreach(name train headers tensors)
  add_executable(${{name}} ${{name}}.cpp)
  target_link_libraries(${{name}} PRIVATE paperlab::paperlab)
  target_compile_options(${{name}} PRIVATE -Wall -Wextra -Wpedantic -Werror)
endforeach()
"""

SOURCES = {
    "train": """
#include <paperlab/regular_language/train.h>

#include <cstdio>

int main() {
  namespace rl = paperlab::regular_language;
  rl::TrainOptions options;
  options.method = rl::Method::kFold;
  options.init_std = 0.1;
  const rl::History history = rl::train(options);
  std::printf("accuracy %.1f, %zu x %zu\\n", history.accuracy.back(), history.u.size(),
              history.w.size());
  try {
    options.learning_rate = -1.0;
    rl::train(options);
  } catch (const paperlab::ValueError& error) {
    std::printf("%s\\n", error.what());
  }
}
""",
    "tensors": """
#include <paperlab/ops/even_pairs_loss.h>

#include <ATen/ops/zeros.h>

#include <cstdio>

int main() {
  const at::Tensor u = at::zeros({8}, at::kDouble).requires_grad_();
  at::Tensor loss = paperlab::ops::even_pairs_loss(u, at::zeros({8, 8}, at::kDouble), 2.0);
  loss.backward();
  std::printf("loss %.6f, gradient of %d entries\\n", loss.item<double>(),
              static_cast<int>(u.grad().numel()));
}
""",
}


def run(
    *command: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed tree that was moved afterwards."""
    folder = tmp_path_factory.mktemp("installed")
    done = run("cmake", "--install", BUILD, "--prefix", folder / "first", "--component", "cpp")
    assert done.returncode == 0, done.stderr
    return (folder / "first").rename(folder / "moved")


class Consumer:
    """A project of somebody else."""

    def __init__(self, folder: Path, prefix: Path, version: str = "0.1") -> None:
        self.folder = folder
        self.prefix = prefix
        sources = dict(SOURCES)
        headers = sorted((prefix / "include").rglob("*.h"))
        names = [header.relative_to(prefix / "include") for header in headers]
        sources["headers"] = "".join(f"#include <{name}>\n" for name in names) + "int main() {}\n"
        folder.mkdir()
        (folder / "CMakeLists.txt").write_text(CMAKE_LISTS.format(version=version))
        for name, text in sources.items():
            (folder / f"{name}.cpp").write_text(text)

    def configure(self, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        return run(
            *("cmake", "-G", "Ninja", "-S", self.folder, "-B", self.folder / "build"),
            f"-DCMAKE_PREFIX_PATH={self.prefix}",
            *options,
            env={"PATH": os.environ["PATH"], **env},
        )

    def build(self, *targets: str) -> None:
        done = run("ninja", "-j2", "-C", self.folder / "build", *targets)
        assert done.returncode == 0, done.stdout

    def program(self, name: str) -> str:
        done = run("env", "-i", self.folder / "build" / name)
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_the_tree_holds_public_headers_and_one_absolute_path(prefix: Path) -> None:
    names = [path.relative_to(prefix).as_posix() for path in prefix.rglob("*") if path.is_file()]
    assert "include/paperlab/regular_language/train.h" in names
    assert "lib/libpaperlab.so" in names
    assert not [name for name in names if "_internal" in name or name.endswith((".py", ".cpp"))]
    texts = [prefix / name for name in names if not name.endswith(".so")]
    found = {
        path
        for text in texts
        for path in re.findall(r'"(/[^"$]*)"', text.read_text(encoding="utf-8"))
        if Path(path).exists() and path != "/"
    }
    assert found == {str(SITE)}


def test_a_consumer_compiles_and_runs_in_an_empty_environment(prefix: Path, tmp_path: Path) -> None:
    consumer = Consumer(tmp_path / "consumer", prefix)
    done = consumer.configure()
    assert done.returncode == 0, done.stderr
    consumer.build()
    output = consumer.program("train").splitlines()
    assert output[0] == "accuracy 1.0, 5 x 144"
    assert output[1] == "train: learning_rate must be finite and > 0, got -1"
    assert consumer.program("tensors") == "loss 2.772589, gradient of 8 entries\n"
    assert consumer.program("headers") == ""


@pytest.mark.parametrize("as_variable", [False, True])
def test_another_folder_of_torch_can_be_given(
    prefix: Path, tmp_path: Path, as_variable: bool
) -> None:
    other = tmp_path / "other site"
    other.mkdir()
    (other / "torch").symlink_to(SITE / "torch")
    consumer = Consumer(tmp_path / "consumer", prefix)
    if as_variable:
        done = consumer.configure(PAPERLAB_TORCH=str(other))
    else:
        done = consumer.configure(f"-DPAPERLAB_TORCH={other}")
    assert done.returncode == 0, done.stderr
    consumer.build("train")
    linked = run("ldd", consumer.folder / "build" / "train").stdout
    assert f"{other}/torch/lib/libtorch_cpu.so" in linked
    assert str(SITE) not in linked
    assert consumer.program("train").startswith("accuracy 1.0")


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The reason that CMake gives, its line breaks undone."""
    assert done.returncode != 0
    return " ".join(done.stderr.split())


def test_a_missing_torch_stops_find_package_with_one_sentence(prefix: Path, tmp_path: Path) -> None:
    consumer = Consumer(tmp_path / "consumer", prefix)
    reason = sentence(consumer.configure("-DPAPERLAB_TORCH=/nowhere"))
    assert "paperlab needs torch >= 2.11: set PAPERLAB_TORCH to the folder" in reason
    assert "'/nowhere'" in reason and reason.count("CMake Error") == 1


def test_another_minor_version_of_torch_stops_find_package(prefix: Path, tmp_path: Path) -> None:
    other = tmp_path / "site" / "torch"
    (other / "lib").mkdir(parents=True)
    (other / "lib" / "libtorch_cpu.so").touch()
    (other / "version.py").write_text("__version__ = '99.1.0+cpu'\n")
    consumer = Consumer(tmp_path / "consumer", prefix)
    reason = sentence(consumer.configure(f"-DPAPERLAB_TORCH={other.parent}"))
    assert f"paperlab was built with torch {torch.__version__}, got 99.1.0+cpu" in reason


@pytest.mark.parametrize("version", ["0.2", "1.0", "0.1.99"])
def test_another_version_of_paperlab_is_not_found(
    prefix: Path, tmp_path: Path, version: str
) -> None:
    consumer = Consumer(tmp_path / "consumer", prefix, version)
    assert "paperlab" in sentence(consumer.configure())
