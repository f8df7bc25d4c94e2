"""Tables of what the CUDA kernels take: made from a build tree, compared with the READMEs."""

import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("PAPERLAB_BUILD_DIR") or ROOT / "build" / "release")
sys.path.insert(0, str(ROOT / "scripts"))

import kernel_resources  # noqa: E402

SOURCE = """
// ptxas-budget fold_kernel: 120 registers, 40000 bytes
// dynamic-shared tile_kernel: 99328 bytes
"""
REPORT = """# kernels/fold/cuda.cu
fold_kernel\tsm_80\t116\t36928\t424\t0\t0
fold_kernel\tsm_90a\t104\t36928\t600\t0\t0
tile_kernel<float, 4>\tsm_80\t30\t0\t400\t0\t0
tile_kernel<float, 4>\tsm_90a\t30\t0\t-\t0\t0
"""
README = """# fold

<!-- resources: kernels/fold/cuda.cu -->
<!-- /resources -->

text
"""
TABLE = """# fold

<!-- resources: kernels/fold/cuda.cu -->

nvcc 13.0; registers of a thread, bytes of a block; a budget that is passed fails the build.

| kernel | registers | shared memory | constant memory | budget |
| --- | --- | --- | --- | --- |
| `fold_kernel` | sm_80 116, sm_90a 104 | 36928 | sm_80 424, sm_90a 600 | 120, 40000 |
| `tile_kernel<float, 4>` | 30 | 0 and 99328 at the launch | sm_80 400 | 128, 49152 |

<!-- /resources -->

text
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "kernels/fold"
    objects = tmp_path / "build/kernels/CMakeFiles/fold.dir"
    for each in (folder, objects):
        each.mkdir(parents=True)
    (folder / "cuda.cu").write_text(SOURCE)
    (folder / "README.md").write_text(README)
    (objects / "cuda.cu.o").write_text("")
    (objects / "cuda.cu.o.resources").write_text(REPORT)
    (tmp_path / "build/nvcc_release").write_text("13.0\n")
    return tmp_path


def run(root: Path, *options: str) -> int:
    return kernel_resources.main([*options, "--root", str(root), str(root / "build")])


def readme(root: Path) -> Path:
    return root / "kernels/fold/README.md"


def test_tables_are_written_and_then_current(root: Path) -> None:
    assert run(root, "--check") == 1
    assert readme(root).read_text() == README
    assert run(root) == 0
    assert readme(root).read_text() == TABLE
    assert run(root, "--check") == 0


def test_a_change_of_the_kernel_makes_the_table_stale(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(root)
    report = next(root.rglob("*.resources"))
    report.write_text(REPORT.replace("116", "117"))
    assert run(root, "--check") == 1
    assert "kernels/fold/README.md" in capsys.readouterr().err


def test_a_kernel_without_a_table_is_an_error(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme(root).write_text("# fold\n")
    assert run(root, "--check") == 1
    assert "kernels/fold/cuda.cu: no README has its table" in capsys.readouterr().err


def test_tables_of_another_nvcc_are_not_compared(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme(root).write_text(TABLE.replace("nvcc 13.0", "nvcc 12.8"))
    assert run(root, "--check") == 0
    assert "has the table of nvcc 12.8, not 13.0" in capsys.readouterr().out
    assert run(root) == 0
    assert readme(root).read_text() == TABLE


def test_without_cuda_there_is_nothing_to_compare(root: Path) -> None:
    (root / "build/nvcc_release").unlink()
    assert run(root, "--check") == 0


@pytest.mark.parametrize("text", [README.replace("<!-- /resources -->", ""), README + README[8:30]])
def test_marks_that_are_not_closed_are_refused(root: Path, text: str) -> None:
    readme(root).write_text(text + "<!-- /resources -->\n<!-- /resources -->\n")
    assert run(root, "--check") == 1


def test_what_is_gone_has_no_table(root: Path) -> None:
    next(root.rglob("*.cu.o")).unlink()
    readme(root).write_text("# fold\n")
    assert run(root, "--check") == 0


def test_committed_tables_are_current() -> None:
    build = kernel_resources.read_build(BUILD)
    if build is None:
        pytest.skip("a build without CUDA")
    stale, others = kernel_resources.process(build, ROOT, check=True)
    assert stale == []
    if others:
        pytest.skip(others[0])


def kernels_with_cuda() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "kernels").glob("*/cuda.cu"))


@pytest.mark.parametrize("kernel", kernels_with_cuda())
def test_each_kernel_says_on_which_gpu_it_was_verified(kernel: str) -> None:
    lines = (ROOT / "kernels" / kernel / "README.md").read_text().splitlines()
    head = lines.index("| verified on | date | commit |")
    rows = lines[head + 2 :]
    last = next((i for i, line in enumerate(rows) if not line.startswith("|")), len(rows))
    assert lines[head + 1] == "|---|---|---|" and last >= 1
    for row in rows[:last]:
        assert re.fullmatch(r"\| none yet \| \| \||\| .+ \| \d{4}-\d\d-\d\d \| \w{7,} \|", row)
