"""`generate`: the text that comes, in whole characters and at once; exit codes, errors."""

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")

import tiny_decoder  # noqa: E402
from paperlab import nn  # noqa: E402
from paperlab._commands import generate  # noqa: E402
from tiny_decoder import END, chain_model, random_model, save  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

WORDS = "\u4e2d\u00e9\U0001f600"  # characters of 3, 2 and 4 bytes, all bytes different
CHAIN = f">{WORDS}z".encode()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Goes on after `>` with WORDS and z."""
    return save(chain_model(CHAIN), tmp_path_factory.mktemp("models") / "chain")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draws any byte."""
    return save(random_model(), tmp_path_factory.mktemp("models") / "noise")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a` and `b`, and never an end."""
    model = chain_model(b"ab", max_position_embeddings=2**20)
    model.get_parameter("lm_head.weight").data[ord("a"), ord("b")] = 2.0
    return save(model, tmp_path_factory.mktemp("models") / "endless")


def one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


def exit_code(*arguments: str) -> int:
    try:
        return generate.main(arguments)
    except SystemExit as leave:
        return int(str(leave.code))


def start(package: Path, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "paperlab", "generate", *arguments],
        env={**os.environ, "PYTHONPATH": str(package)},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )


def test_prints_the_continuation_and_nothing_else(chain: Path, package_path: Path) -> None:
    run = start(package_path, "--model", str(chain), "--prompt", "so >")
    out, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (0, b"")
    assert out == f"{WORDS}z\n".encode()


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(1, ""), (2, ""), (3, WORDS[:1]), (4, WORDS[:1]), (5, WORDS[:2]), (8, WORDS[:2]), (9, WORDS)],
)
def test_an_incomplete_character_is_not_printed(
    chain: Path, capsys: Capture, tokens: int, text: str
) -> None:
    assert exit_code("--model", str(chain), "--prompt=>", f"--max-new-tokens={tokens}") == 0
    assert capsys.readouterr() == (f"{text}\n", "")


class Terminal(io.StringIO):
    """Keeps what was written between two flushes."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[str] = []

    def flush(self) -> None:
        if self.tell():
            self.flushed.append(self.getvalue())
        self.seek(0)
        self.truncate()


def test_each_character_is_shown_at_once(chain: Path, monkeypatch: Patch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert exit_code("--model", str(chain), "--prompt=>") == 0
    assert terminal.flushed == [*WORDS, "z", "\n"]


def test_text_comes_while_the_model_works(endless: Path, package_path: Path) -> None:
    run = start(package_path, "--model", str(endless), "--prompt=a", "--max-new-tokens=1000000")
    assert run.stdout is not None and run.stderr is not None
    assert run.stdout.read(3) == b"bab" and run.poll() is None
    run.send_signal(signal.SIGINT)
    rest = run.stdout.read()
    assert run.wait(timeout=10) == 130
    assert run.stderr.read() == b""
    assert rest.endswith(b"\n") and rest.count(b"\n") == 1


def test_a_closed_pipe_is_a_quiet_end(endless: Path, package_path: Path) -> None:
    run = start(package_path, "--model", str(endless), "--prompt=a", "--max-new-tokens=1000000")
    assert run.stdout is not None and run.stderr is not None
    assert run.stdout.read(1) == b"b"
    run.stdout.close()
    assert run.wait(timeout=60) == 0
    assert run.stderr.read() == b""


def test_a_full_disk_is_one_line(chain: Path, package_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        run = start(package_path, "--model", str(chain), "--prompt=>", stdout=full)
        _, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (1, b"paperlab generate: No space left on device\n")


def test_the_speed_is_shown_on_a_terminal(chain: Path, package_path: Path) -> None:
    ours, theirs = pty.openpty()
    run = start(package_path, "--model", str(chain), "--prompt=>", stderr=theirs)
    os.close(theirs)
    out, _ = run.communicate(timeout=120)
    line = os.read(ours, 1000).decode()
    os.close(ours)
    assert (run.returncode, out) == (0, f"{WORDS}z\n".encode())
    assert line.startswith("prompt: 1 token in ") and "; 11 new tokens, " in line
    assert line.endswith(" tokens/s\r\n") and line.count("\n") == 1


def printed(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert exit_code(*arguments) == 0
    return capsys.readouterr().out


def test_the_seed_decides(noise: Path, capsys: Capture) -> None:
    base = ("--model", str(noise), "--prompt=ab", "--max-new-tokens=32", "--temperature=1.5")
    first = printed(capsys, *base, "--seed=7")
    assert printed(capsys, *base, "--seed=7") == first
    assert printed(capsys, *base, "--seed=8") != first
    tokens = nn.load(noise).generate([[97, 98]], 32, temperature=1.5, seed=7)[0, 2:].tolist()
    text = tiny_decoder.byte_tokenizer().decode(tokens)
    assert first == text.rstrip("\ufffd") + "\n"
    few = printed(capsys, *base, "--seed=7", "--top-p=0.3")
    tokens = nn.load(noise).generate([[97, 98]], 32, temperature=1.5, seed=7, top_p=0.3)[0, 2:]
    assert few == tiny_decoder.byte_tokenizer().decode(tokens.tolist()).rstrip("\ufffd") + "\n"


def test_dtype(noise: Path, capsys: Capture, monkeypatch: Patch) -> None:
    seen: list[object] = []
    load = nn.load

    def spy(directory: Path, *, dtype: str | None = None) -> nn.Decoder:
        model = load(directory, dtype=dtype)
        seen.append(next(model.parameters()).dtype)
        return model

    monkeypatch.setattr(nn, "load", spy)
    for dtype in ("float32", "float64", "bfloat16"):
        base = ("--model", str(noise), "--prompt=ab", "--max-new-tokens=4")
        printed(capsys, *base, f"--dtype={dtype}")
    assert [str(dtype) for dtype in seen] == ["torch.float32", "torch.float64", "torch.bfloat16"]


def feed(monkeypatch: Patch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_the_prompt_from_standard_input_is_taken_as_it_is(
    chain: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    feed(monkeypatch, "\u00e9\r\n>".encode())
    assert printed(capsys, "--model", str(chain), "--prompt", "-") == f"{WORDS}z\n"
    feed(monkeypatch, b">\n")  # the line break has no successor in the chain
    assert (
        printed(capsys, "--model", str(chain), "--prompt=-", "--max-new-tokens=2") != f"{WORDS}\n"
    )
    feed(monkeypatch, b"abc\xff>")
    assert exit_code("--model", str(chain), "--prompt", "-") == 1
    message = "paperlab generate: standard input: not UTF-8: byte 0xff at position 3\n"
    assert capsys.readouterr() == ("", message)


def test_chat(chain: Path, capsys: Capture, monkeypatch: Patch) -> None:
    pytest.importorskip("transformers")
    prompts: list[list[int]] = []
    make = nn.Decoder.generate

    def spy(self: nn.Decoder, tokens: list[list[int]], *rest: object, **options: object) -> object:
        prompts.append(tokens[0])
        return make(self, tokens, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.Decoder, "generate", spy)
    assert printed(capsys, "--model", str(chain), "--prompt=hi", "--chat") == f"{WORDS}z\n"
    assert prompts == [[tiny_decoder.USER, *b"hi>"]]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "chat template: there is none in tokenizer_config.json"),
        ("{{ raise_exception('no\nusers') }}", "chat template: no users"),
        ("{% for %}", "chat template: "),
    ],
)
def test_chat_templates_that_do_not_work(
    chain: Path, tmp_path: Path, capsys: Capture, template: str | None, message: str
) -> None:
    pytest.importorskip("transformers")
    directory = tmp_path / "model"
    shutil.copytree(chain, directory)
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {"chat_template": template} if template else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert exit_code("--model", str(directory), "--prompt=hi", "--chat") == 1
    out, err = capsys.readouterr()
    assert out == "" and one_line(err) and message in err
    assert err.startswith(f"paperlab generate: '{directory}': chat template: ")


@pytest.mark.parametrize(("missing", "options"), [("tokenizers", []), ("transformers", ["--chat"])])
def test_a_missing_package_is_named(
    chain: Path, capsys: Capture, monkeypatch: Patch, missing: str, options: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert exit_code("--model", str(chain), "--prompt=>", *options) == 1
    err = capsys.readouterr().err
    assert one_line(err) and f"needs the package {missing}: pip install {missing}" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --model"),
        (["--model=x"], "needs --prompt"),
        (["--model=x", "--promt=y"], "unknown option '--promt'; did you mean '--prompt'?"),
        (["--model=x", "--frobnicate"], "unknown option '--frobnicate'; did you mean one of"),
        (["--model=x", "--prompt=y", "z\nz"], "takes no argument, got 'z\\nz'"),
        (["--model"], "--model: expected one argument"),
        (["--max-new-tokens=0"], "--max-new-tokens: must be a whole number in 1.."),
        (["--max-new-tokens=1.5"], "got '1.5'"),
        (["--seed=-1"], "--seed: must be a whole number in 0..18446744073709551615, got '-1'"),
        (["--seed=18446744073709551616"], "--seed: must be a whole number"),
        (["--seed=" + "9" * 5000], "--seed: must be a whole number"),
        (["--temperature=-1"], "--temperature: must be >= 0, got '-1'"),
        (["--temperature=nan"], "--temperature: must be >= 0"),
        (["--top-p=0"], "--top-p: must be in (0, 1], got '0'"),
        (["--top-p=1.1"], "--top-p: must be in (0, 1]"),
        (["--dtype=float23"], "unknown dtype 'float23'; did you mean 'float32'?"),
        (["--chat=yes"], "--chat: ignored explicit argument"),
    ],
)
def test_errors_of_the_command_line(capsys: Capture, arguments: list[str], message: str) -> None:
    assert exit_code(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and one_line(err) and err.startswith("paperlab generate: ")
    assert message in err


def break_nothing(directory: Path) -> None:
    pass


def damage(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        if content is None:
            (directory / name).unlink()
        else:
            (directory / name).write_bytes(content)

    return change


def other_vocabulary(directory: Path) -> None:
    """Tokens 0 to 299 for a model of 258."""
    vocabulary = {c: b for b, c in enumerate(tiny_decoder.byte_characters())}
    vocabulary |= {f"extra{i}": i for i in range(256, 300)}
    Tokenizer(models.BPE(vocabulary, merges=[])).save(str(directory / "tokenizer.json"))


def one_token_too_many(directory: Path) -> None:
    tokenizer = tiny_decoder.byte_tokenizer()
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (damage("config.json", None), [], "not a model: it has no config.json"),
        (damage("config.json", b"{"), [], "config.json"),
        (damage("tokenizer.json", None), [], "tokenizer.json': No such file or directory"),
        (damage("tokenizer.json", b"{}"), [], "tokenizer.json': not a tokenizer: "),
        (damage("tokenizer.json", b"\xff"), [], "tokenizer.json': not a tokenizer: "),
        (damage("model.safetensors", None), [], "model.safetensors"),
        (damage("model.safetensors", b"x" * 40), [], "model.safetensors"),
        (break_nothing, ["--prompt="], "the prompt has no tokens"),
        (break_nothing, ["--prompt=a\udcffb"], "--prompt: not UTF-8: byte 0xff at position 1"),
        (
            break_nothing,
            ["--max-new-tokens=64"],
            "1 token of the prompt and 64 more do not fit into the model's 64 positions; "
            "--max-new-tokens 63 fits\n",
        ),
        (
            break_nothing,
            [f"--prompt={'a' * 64}"],
            "64 tokens of the prompt and 20 more do not fit into the model's 64 positions\n",
        ),
        (
            other_vocabulary,
            [],
            "vocabulary mismatch: the tokenizer knows 300 tokens, the model 258\n",
        ),
        (
            one_token_too_many,
            ["--prompt=a<|more|>"],
            "the tokenizer knows 259 tokens, the model 258; the text has token 258\n",
        ),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    noise: Path,
    capsys: Capture,
    change: Callable[[Path], None],
    options: list[str],
    message: str,
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(noise, directory)
    change(directory)
    base = ["--prompt=a", "--max-new-tokens=20"]
    assert exit_code("--model", str(directory), *base, *options) == 1
    out, err = capsys.readouterr()
    assert out == "" and one_line(err) and err.startswith("paperlab generate: ")
    assert message in err


def test_by_default_as_many_tokens_come_as_fit(noise: Path, capsys: Capture) -> None:
    assert exit_code("--model", str(noise), f"--prompt={'a' * 64}") == 1
    assert "64 tokens of the prompt and 1 more do not fit" in capsys.readouterr().err
    base = ("--model", str(noise), f"--prompt={'a' * 44}")
    assert printed(capsys, *base) == printed(capsys, *base, "--max-new-tokens=20")


def test_a_directory_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    for path, reason in (("nothing", "No such file or directory"), ("file", "Not a directory")):
        (tmp_path / "file").touch()
        assert exit_code("--model", str(tmp_path / path), "--prompt=a") == 1
        assert capsys.readouterr().err == f"paperlab generate: '{tmp_path / path}': {reason}\n"


def test_an_added_token_that_is_not_used_is_no_error(
    tmp_path: Path, noise: Path, capsys: Capture
) -> None:
    shutil.copytree(noise, tmp_path / "model")
    one_token_too_many(tmp_path / "model")
    printed(capsys, "--model", str(tmp_path / "model"), "--prompt=a", "--max-new-tokens=2")


def test_the_padding_token_in_a_prompt_is_read(tmp_path: Path, capsys: Capture) -> None:
    directory = save(chain_model(CHAIN, pad_token_id=ord(">")), tmp_path / "model")
    assert printed(capsys, "--model", str(directory), "--prompt=>") == f"{WORDS}z\n"


def test_a_tokenizer_that_cuts_and_fills_is_made_not_to(
    tmp_path: Path, chain: Path, capsys: Capture
) -> None:
    shutil.copytree(chain, tmp_path / "model")
    tokenizer = tiny_decoder.byte_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8, pad_id=END)
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    assert printed(capsys, "--model", str(tmp_path / "model"), "--prompt=abc>") == f"{WORDS}z\n"


def test_help_fits_a_screen(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for verb in ("generate", "eval"):
        run = run_python(["-m", "paperlab", verb, "--help"], env={"COLUMNS": "100"})
        lines = run.stdout.splitlines()
        assert (run.returncode, run.stderr) == (0, "")
        assert len(lines) <= 40 and max(map(len, lines)) <= 100
        assert verb in run_python(["-m", "paperlab", "--help"]).stdout


def test_ctrl_c_does_not_wait_for_the_model(
    noise: Path, package_path: Path, tmp_path: Path
) -> None:
    """A prompt that takes long to read: one call of the model."""
    model = random_model(max_position_embeddings=2**17, num_hidden_layers=8)
    directory = save(model, tmp_path / "model")
    prompt = tmp_path / "prompt"
    prompt.write_text("a b " * 25_000)
    with prompt.open("rb") as file:
        run = start(package_path, "--model", str(directory), "--prompt=-", stdin=file)
    assert run.stdout is not None and run.stderr is not None
    maps = Path(f"/proc/{run.pid}/maps")
    while "model.safetensors" not in maps.read_text():
        assert run.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    assert run.poll() is None
    begin = time.monotonic()
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 130
    assert time.monotonic() - begin < 2.0
    assert (run.stdout.read(), run.stderr.read()) == (b"\n", b"")
