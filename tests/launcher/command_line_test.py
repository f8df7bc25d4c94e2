"""The launcher's verbs: help, errors of the command line, exit codes, pass-through."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from stub_checkout import ROOT, Checkout, one_line, write_script

VERBS = sorted(
    set(re.findall(r"^#:   ([a-z-]+)   ", (ROOT / "scripts/help.sh").read_text(), re.MULTILINE))
)


def test_help_lists_every_command(bare: Checkout) -> None:
    listed = re.search(r"VERBS=\(([^)]*)\)", (ROOT / "scripts/common.sh").read_text())
    assert listed is not None
    assert {*VERBS, "help"} == set(listed[1].split())


@pytest.mark.parametrize("verb", [*VERBS, "help"])
def test_help_of_a_verb_fits_a_screen_and_changes_nothing(bare: Checkout, verb: str) -> None:
    run = bare.run(verb, "--help")
    lines = run.stdout.splitlines()
    assert (run.returncode, run.stderr) == (0, "")
    assert lines[0].startswith("Usage: ./paperlab")
    assert 3 < len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert bare.run("help", verb).stdout == run.stdout
    assert not bare.venv.exists()


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"]])
def test_help_without_a_verb(bare: Checkout, arguments: list[str]) -> None:
    run = bare.run(*arguments)
    assert (run.returncode, run.stderr) == (0, "")
    assert "reproduce" in run.stdout


def test_works_from_bash_and_coreutils_alone(bare: Checkout, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "readlink", "basename", "env"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    run = bare.run("tets", env={"PATH": str(tools)})
    assert run.returncode == 2
    assert one_line(run.stderr) and "did you mean 'test'?" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reprodcue"], "unknown command 'reprodcue'; did you mean 'reproduce'?"),
        (["gpucheck"], "did you mean 'gpu-check'?"),
        (["frobnicate"], "did you mean one of reproduce, test,"),
        (["line\nbreak"], "unknown command 'line break'"),
        (["help", "tset"], "did you mean 'test'?"),
        (["build", "--al"], "unknown option '--al'; did you mean '--all'?"),
        (["build", "--all=yes"], "--all takes no value"),
        (["build", "--preset", "assan"], "did you mean 'asan'?"),
        (["build", "everything"], "takes no argument, got 'everything'"),
        (["setup", "--devlop"], "did you mean '--develop'?"),
        (["test", "-k"], "-k needs a value"),
        (["lint", "--all", "--staged"], "exclude each other"),
        (["install"], "needs --prefix DIR"),
        (["report", "--tables", "--out", "x"], "--tables takes no --out"),
        (["bench", "regular-langage"], "did you mean 'regular-language'?"),
        (["doctor", "--jsn"], "did you mean '--json'?"),
        (["gpu-check", "--ot", "x"], "did you mean '--out'?"),
        (["data"], "needs a command: list, fetch, stats or tokens"),
        (["data", "fecth", "code"], "unknown command 'fecth'; did you mean 'fetch'?"),
        (["data", "fetch"], "fetch needs the NAME of a recipe; list shows them"),
        (["data", "list", "code"], "list takes no argument 'code'"),
        (["data", "stats", "code", "books"], "stats takes no argument 'books'"),
        (["data", "fetch", "code", "--domain", "c"], "did you mean '--domains'?"),
        (["data", "stats", "code", "--domains", "c"], "stats takes no --domains"),
        (["data", "fetch", "code", "--json"], "fetch takes no --json"),
        (["data", "tokens", "code", "--verify"], "tokens takes no --verify"),
        (["data", "stats", "code", "--bpe", "9"], "stats takes no --bpe"),
        (["data", "tokens"], "tokens needs the NAME of a recipe"),
        (["data", "tokens", "code", "--bpe", "4k"], "--bpe needs a number of tokens, got '4k'"),
        (["data", "tokens", "code", "--bpe=9", "--tokenizer=x"], "exclude each other"),
    ],
)
def test_error_of_the_command_line(bare: Checkout, arguments: list[str], message: str) -> None:
    (bare.root / "bench").mkdir()
    (bare.root / "bench/regular_language_bench.cpp").write_text("")
    run = bare.run(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert one_line(run.stderr) and message in run.stderr
    assert not bare.venv.exists() and not (bare.root / "build").exists()


def test_python_passes_arguments_streams_and_exit_code_through(checkout: Checkout) -> None:
    program = "import sys; print(sys.argv[1:], sys.stdin.read())"
    program += "; print('e', file=sys.stderr); sys.exit(7)"
    arguments = ["two words", "", "--help", "-h", "*", "a\nb"]
    checkout.run("build")
    run = checkout.run("python", "-c", program, *arguments, stdin="from stdin")
    assert run.returncode == 7
    assert run.stdout == f"{arguments} from stdin\n"
    assert run.stderr == "e\n"


def test_python_speaks_on_stderr_while_it_builds(checkout: Checkout) -> None:
    run = checkout.run("python", "-c", "print('out')")
    assert run.stdout == "out\n"
    assert "build:" in run.stderr


def test_python_finds_the_built_package_in_child_processes(checkout: Checkout) -> None:
    package = checkout.root / "build/release/python/paperlab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("answer = 42")
    child = "import paperlab; print(paperlab.answer)"
    program = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    assert checkout.run("python", "-c", program).stdout == "42\n"


def test_python_without_a_build_says_so_and_runs_nothing(checkout: Checkout) -> None:
    run = checkout.run("python", "-c", "print(1)", env={"STUB_BUILD_FAILS": "1"})
    assert (run.returncode, run.stdout) == (1, "")


@pytest.mark.parametrize("preset", ["asan", "tsan", "free", "fuzz"])
def test_torch_free_trees_are_built_with_their_tests(checkout: Checkout, preset: str) -> None:
    run = checkout.run("build", "--preset", preset)
    assert (run.returncode, "-DPAPERLAB_DEVELOPER=ON" in checkout.log) == (0, True)
    assert any(
        line.startswith("ninja") and line.endswith(" all") for line in checkout.log.splitlines()
    )


def test_tests_stay_built_once_they_were(checkout: Checkout) -> None:
    checkout.run("build", "--all")
    (checkout.root / "CMakePresets.json").write_text('{"version": 6}')
    checkout.run("build")
    calls = [line for line in checkout.log.splitlines() if line.startswith("cmake")]
    assert len(calls) == 2 and all("-DPAPERLAB_DEVELOPER=ON" in call for call in calls)


def test_test_runs_every_runner_and_fails_if_one_failed(checkout: Checkout) -> None:
    write_script(checkout.stubs / "ctest", 'echo "ctest $*"; [[ $* != *release* ]]\n')
    (checkout.root / "tests").mkdir()
    (checkout.root / "tests/sample_test.py").write_text("def test_sample() -> None:\n    pass\n")
    run = checkout.run("test")
    assert run.returncode == 1
    assert "ctest --test-dir" in run.stdout and "/build/asan" in run.stdout
    assert "1 passed" in run.stdout
    assert run.stderr.splitlines()[-1] == "paperlab test: failed: ctest in build/release"


def test_fuzzers_run_where_clang_has_the_library(checkout: Checkout, tmp_path: Path) -> None:
    write_script(checkout.stubs / "ctest", 'echo "ctest $*"\n')
    (checkout.root / "tests").mkdir()
    (checkout.root / "tests/sample_test.py").write_text("def test_sample() -> None:\n    pass\n")
    write_script(checkout.stubs / "clang++", f'echo "{tmp_path}"\n')
    without = checkout.run("test")
    assert without.returncode == 0 and "skipped: the fuzzers: no clang++" in without.stdout
    (tmp_path / "libclang_rt.fuzzer-x86_64.a").touch()
    run = checkout.run("test")
    assert run.returncode == 0 and "skipped: the fuzzers" not in run.stdout
    assert "== ctest in build/fuzz" in run.stdout


def test_bench_lists_and_runs(checkout: Checkout) -> None:
    (checkout.root / "bench").mkdir()
    (checkout.root / "bench/two_words_bench.cpp").write_text("")
    write_script(checkout.root / "build/release/bin/two_words_bench", 'printf "<%s>" "$@"\n')
    assert checkout.run("bench").stdout == "two-words\n"
    run = checkout.run("bench", "two-words", "--", "--quick")
    assert run.stdout == "<--out><results/bench/two-words.json><--quick>"
    assert checkout.run("bench", "two_words", "--", "--quick").stdout == run.stdout


def test_data_passes_its_arguments_and_exit_code_on(checkout: Checkout) -> None:
    package = checkout.root / "build/release/python/paperlab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import sys; print(sys.argv[1:]); sys.exit(1)")
    checkout.run("build")
    run = checkout.run("data", "fetch", "manual-pages", "--domains", "en,de")
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout == "['data', 'fetch', '--domains=en,de', '--', 'manual-pages']\n"
    assert checkout.run("data", "list").stdout == "['data', 'list']\n"
    run = checkout.run("data", "stats", "code", "--verify", "--json")
    assert run.stdout == "['data', 'stats', '--json', '--verify', '--', 'code']\n"
    run = checkout.run("data", "tokens", "code", "--bpe", "999", "--separator=none")
    assert run.stdout == "['data', 'tokens', '--bpe=999', '--separator=none', '--', 'code']\n"


def test_doctor_json_before_set_up(bare: Checkout) -> None:
    run = bare.run("doctor", "--json")
    assert (run.returncode, run.stderr) == (0, "")
    report = json.loads(run.stdout)
    assert report["cores"] == os.cpu_count() or report["cores"] == len(os.sched_getaffinity(0))
    assert report["environment"] == "not made"
    assert {"what": "a build of this checkout", "mend": "./paperlab build"} in report["missing"]
    assert not bare.venv.exists()


def test_ci_runs_documented_commands_only() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    commands = re.findall(r"^\s*(?:- )?run: *(.*)$", workflow, re.MULTILINE)
    documented = {f"./paperlab {verb}" for verb in VERBS} | {".ci/run"}
    assert "./paperlab gpu-check" in commands and ".ci/run" in commands
    assert set(commands) <= documented


def test_ci_run_calls_lint_and_test_and_nothing_else() -> None:
    script = ROOT / ".ci/run"
    lines = script.read_text().splitlines()
    assert lines[0].startswith("#!") and lines[1].startswith("cd ")
    assert lines[2:] == ["./paperlab lint && ./paperlab test"]
    assert os.access(script, os.X_OK)


def test_scripts_parse() -> None:
    for script in [ROOT / "paperlab", *(ROOT / "scripts").glob("*.sh")]:
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0, script
