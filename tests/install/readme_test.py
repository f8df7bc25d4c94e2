"""The README stays true: its code runs, and so do its commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = (
    Path(os.environ.get("PAPERLAB_BUILD_DIR", ROOT / "build" / "release")) / "python" / "paperlab"
)
README = (ROOT / "README.md").read_text()

# Every command that the README shows and what runs it.
COMMANDS = {
    "./paperlab reproduce": "test_reproduce_ends_with_the_report",
    "./paperlab test": "the command that runs this file",
    "./paperlab help": "test_help_lists_every_verb_of_the_readme",
    "./paperlab python FILE": "test_python_example",
    "./paperlab fetch smollm2": "smollm2_test.py",
    "./paperlab generate": "generate_command_test.py",
    "./paperlab eval": "eval_command_test.py",
    "./paperlab train": "train_command_test.py",
    "./paperlab convert": "convert_test.py",
    "pip install . --no-build-isolation": "install_test.py",
    "./paperlab install --prefix DIR": "install_test.py",
}


def block(language: str, index: int = 0) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert len(found) > index, f"README.md has no such {language} block"
    return str(found[index])


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )


def test_every_command_is_known() -> None:
    shown = re.findall(r"^(\./paperlab[^#\n]*?)\s*(?:#.*)?$", block("sh"), re.MULTILINE)
    shown += re.findall(r"`((?:\./paperlab |pip install )[^`]*)`", README)
    assert {command.strip() for command in shown} == set(COMMANDS)


def test_python_example(tmp_path: Path) -> None:
    example = tmp_path / "example.py"
    example.write_text(block("python"))
    done = run(ROOT / "paperlab", "python", example)
    assert done.returncode == 0, done.stderr
    assert "odd number of b: [1 0]" in done.stdout
    assert "gradient of q: [1, 8, 100, 64]" in done.stdout


def test_decoder_example(tmp_path: Path) -> None:
    example = tmp_path / "example.py"
    example.write_text(block("python", 1))
    done = run(ROOT / "paperlab", "python", example)
    assert done.returncode == 0, done.stderr
    first, last = re.findall(r"loss (\S+) to (\S+)", done.stdout)[0]
    assert float(last) < float(first) - 1.0
    assert re.search(r"perplexity \d", done.stdout) and "new tokens: [" in done.stdout


def test_cpp_example(tmp_path: Path) -> None:
    source = tmp_path / "example.cpp"
    source.write_text(block("cpp"))
    program = tmp_path / "example"
    flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    built = run(
        os.environ.get("CXX", "g++"),
        *flags,
        f"-I{ROOT / 'libpaperlab'}",
        source,
        LIBRARY / "libpaperlab.so",
        f"-Wl,-rpath,{LIBRARY}",
        "-Wl,--allow-shlib-undefined",
        "-o",
        program,
    )
    assert built.returncode == 0, built.stderr
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss 0.39821")  # the two-class value at step 2000


def test_help_lists_every_verb_of_the_readme() -> None:
    text = run(ROOT / "paperlab", "help").stdout
    for verb in ("reproduce", "test", "bench", "doctor", "install", "python"):
        assert verb in text


# The preset of the README's command, small, takes minutes a paper.
@pytest.mark.parametrize("preset", ["smoke", pytest.param("small", marks=pytest.mark.slow)])
def test_reproduce_ends_with_the_report(preset: str, tmp_path: Path) -> None:
    done = run(ROOT / "paperlab", "reproduce", "--preset", preset, "--out", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.rstrip().endswith("results/report/index.html")
    assert (tmp_path / "results" / "report" / "index.html").stat().st_size > 10_000


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
