"""The launcher's generate and eval: what they pass on, errors before anything is built."""

import pytest
from stub_checkout import Checkout, one_line


@pytest.fixture
def echo(checkout: Checkout) -> Checkout:
    """A package that prints its arguments and what it reads, and fails."""
    package = checkout.root / "build/release/python/paperlab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(1)"
    )
    checkout.run("build")
    return checkout


@pytest.mark.parametrize("prompt", ["-", "a=b", "--chat", "two\nlines ", "*", "'\"$HOME"])
def test_generate_passes_the_prompt_as_it_is(echo: Checkout, prompt: str) -> None:
    for arguments in (["--prompt", prompt], [f"--prompt={prompt}"]):
        run = echo.run("generate", "--model", "a dir", *arguments, stdin="input")
        assert (run.returncode, run.stderr) == (1, "")
        words = ["generate", "--model=a dir", f"--prompt={prompt}"]
        assert run.stdout == f"{words} input\n"


def test_generate_passes_its_options(echo: Checkout) -> None:
    options = "--max-new-tokens=7 --temperature=0.5 --top-p=0.9 --seed=3 --dtype=bfloat16"
    options += " --attention=cca --group-size=4 --window=0 --chat"
    run = echo.run("generate", *options.split(), "--prompt=x", "--model=m")
    assert run.stdout == f"{['generate', '--model=m', '--prompt=x', *options.split()]} \n"


def test_eval_passes_its_options_and_all_texts(echo: Checkout) -> None:
    options = "--data=d --domains=a,b --split=valid --documents=2 --context=8 --stride=4"
    options += " --buckets=0,8 --dtype=float64 --json=out.json"
    run = echo.run(
        "eval", "--text", "a=x y", "--model=m", "--text", "z", *reversed(options.split())
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout == f"{['eval', '--model=m', *options.split(), '--text=a=x y', '--text=z']} \n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat"], "paperlab: unknown command 'generat'; did you mean 'generate'?"),
        (["evl"], "paperlab: unknown command 'evl'; did you mean 'eval'?"),
        (["generate"], "paperlab generate: needs --model DIR"),
        (["generate", "--model", "x"], "paperlab generate: needs --prompt TEXT"),
        (["generate", "--prompt", ""], "paperlab generate: --prompt needs a value"),
        (["generate", "hello"], "paperlab generate: takes no argument, got 'hello'"),
        (
            ["generate", "--model=x", "--promt=y"],
            "paperlab generate: unknown option '--promt'; did you mean '--prompt'?",
        ),
        (
            ["generate", "--model=x", "--prompt=y", "--dtype=float23"],
            "paperlab generate: unknown dtype 'float23'; did you mean 'float32'?",
        ),
        (
            ["generate", "--model=x", "--prompt=y", "--attention=cc"],
            "paperlab generate: unknown attention 'cc'; did you mean 'cca'?",
        ),
        (
            ["generate", "--model=x", "--prompt=y", "--group-size=4"],
            "paperlab generate: --group-size needs --attention cca",
        ),
        (
            ["generate", "--model=x", "--prompt=y", "--attention=full", "--window=4"],
            "paperlab generate: --window needs --attention cca",
        ),
        (["eval", "--model=x"], "paperlab eval: needs --text FILE or --data RECIPE"),
        (["eval", "--text=x"], "paperlab eval: needs --model DIR"),
        (
            ["eval", "--model=x", "--text=y", "--split=test"],
            "paperlab eval: --split goes with --data RECIPE",
        ),
        (
            ["eval", "--model=x", "--data=y", "--split=tset"],
            "paperlab eval: unknown split 'tset'; did you mean 'test'?",
        ),
        (
            ["eval", "--model=x", "--texts=y"],
            "paperlab eval: unknown option '--texts'; did you mean '--text'?",
        ),
    ],
)
def test_errors_of_the_command_line(bare: Checkout, arguments: list[str], message: str) -> None:
    run = bare.run(*arguments)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"{message}\n")
    assert one_line(run.stderr) and not bare.venv.exists()
