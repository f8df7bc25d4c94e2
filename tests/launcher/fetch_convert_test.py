"""The launcher's fetch and convert: what they pass on, errors before anything is built."""

import os
import signal
import subprocess

import pytest
from stub_checkout import Checkout, one_line


@pytest.fixture
def echo(checkout: Checkout) -> Checkout:
    """A package that prints its arguments and fails."""
    package = checkout.root / "build/release/python/paperlab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import sys; print(sys.argv[1:]); sys.exit(1)")
    checkout.run("build")
    return checkout


def test_fetch_passes_the_name(echo: Checkout) -> None:
    run = echo.run("fetch", "smollm2")
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout == "['fetch', '--', 'smollm2']\n"
    assert (
        echo.run("fetch").stdout == echo.run("fetch", "list").stdout == "['fetch', '--', 'list']\n"
    )


def test_convert_passes_files_and_options(echo: Checkout) -> None:
    run = echo.run("convert", "a file.gguf", "out")
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout == "['convert', '--dtype=float32', '--', 'a file.gguf', 'out']\n"
    run = echo.run("convert", "--force", "a.gguf", "--dtype", "bfloat16", "--", "-out")
    assert run.stdout == "['convert', '--dtype=bfloat16', '--force', '--', 'a.gguf', '-out']\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "a", "b"], "paperlab fetch: takes no argument 'b'"),
        (["fetch", "--force"], "paperlab fetch: unknown option '--force'; there is none"),
        (["fetsh"], "paperlab: unknown command 'fetsh'; did you mean 'fetch'?"),
        (["convrt"], "paperlab: unknown command 'convrt'; did you mean 'convert'?"),
        (["convert"], "paperlab convert: needs FILE.gguf and DIR"),
        (["convert", "a"], "paperlab convert: needs FILE.gguf and DIR"),
        (["convert", "a", "b", "c"], "paperlab convert: takes no argument 'c'"),
        (
            ["convert", "a", "b", "--dtype", "bfloat"],
            "paperlab convert: unknown dtype 'bfloat'; did you mean 'bfloat16'?",
        ),
        (
            ["convert", "a", "b", "--forced"],
            "paperlab convert: unknown option '--forced'; did you mean '--force'?",
        ),
    ],
)
def test_errors_of_the_command_line(bare: Checkout, arguments: list[str], message: str) -> None:
    run = bare.run(*arguments)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"{message}\n")
    assert one_line(run.stderr) and not bare.venv.exists()


def test_an_interrupt_during_the_imports_is_silent(echo: Checkout) -> None:
    package = echo.root / "build/release/python/paperlab"
    (package / "__init__.py").write_text(
        "import time; print('importing', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        echo.command("fetch", "smollm2"),
        env=echo.env,
        cwd=echo.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")
