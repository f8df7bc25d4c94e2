"""`generate --attention cca`: the text, the options and their errors."""

import inspect
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")

import tiny_decoder
from paperlab import cca, nn
from paperlab._commands import generate
from tiny_decoder import random_model, save

Capture = pytest.CaptureFixture[str]
PROMPT = "abcdefghijklmnop"


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_model(), tmp_path_factory.mktemp("models") / "noise")


def exit_code(*arguments: str) -> int:
    try:
        return generate.main(arguments)
    except SystemExit as leave:
        return int(str(leave.code))


def printed(capsys: Capture, model: Path, *arguments: str) -> str:
    capsys.readouterr()
    assert exit_code("--model", str(model), f"--prompt={PROMPT}", *arguments) == 0
    return capsys.readouterr().out


def text_of(model: nn.Decoder, count: int) -> str:
    tokens = model.generate([list(PROMPT.encode())], count)[0, len(PROMPT) :].tolist()
    return tiny_decoder.byte_tokenizer().decode(tokens).rstrip("\ufffd") + "\n"


def test_the_text_is_that_of_the_library(noise: Path, capsys: Capture) -> None:
    full = printed(capsys, noise, "--max-new-tokens=40")
    assert printed(capsys, noise, "--max-new-tokens=40", "--attention=full") == full
    for group_size, window in ((3, 4), (2, 0), (5, 9)):
        wanted = text_of(cca.apply(nn.load(noise), group_size, window), 40)
        options = (f"--group-size={group_size}", "--window", str(window))
        got = printed(capsys, noise, "--max-new-tokens=40", "--attention", "cca", *options)
        assert got == wanted != full
    assert printed(capsys, noise, "--max-new-tokens=40", "--attention=cca", "--window=56") == full


def test_the_defaults_are_those_of_the_library(
    noise: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(cca, "apply", lambda model, g, s: seen.append((g, s)))
    full = printed(capsys, noise, "--max-new-tokens=4")
    assert printed(capsys, noise, "--max-new-tokens=4", "--attention=cca") == full
    printed(capsys, noise, "--max-new-tokens=4", "--attention=cca", "--group-size=4")
    printed(capsys, noise, "--max-new-tokens=4", "--attention=cca", "--window=0")
    monkeypatch.undo()
    defaults: Any = inspect.signature(cca.apply).parameters
    group_size, window = defaults["group_size"].default, defaults["window"].default
    assert seen == [(group_size, window), (4, window), (group_size, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-size=4"], "--group-size needs --attention cca"),
        (["--window=4"], "--window needs --attention cca"),
        (["--attention=full", "--window=4"], "--window needs --attention cca"),
        (["--attention=ccaa"], "unknown attention 'ccaa'; did you mean 'cca'?"),
        (["--attention=cca", "--group-size=0"], "--group-size: must be a whole number in 1.."),
        (["--attention=cca", "--group-size=1.5"], "got '1.5'"),
        (["--attention=cca", "--window=-1"], "--window: must be a whole number in 0.."),
        (["--attention=cca", "--pooling=mean"], "unknown option '--pooling'; did you mean"),
    ],
)
def test_errors_of_the_command_line(
    noise: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    assert exit_code("--model", str(noise), "--prompt=a", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("paperlab generate: ")
    assert message in err


def test_a_model_with_windows_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    model = save(random_model(**mistral, sliding_window=8), tmp_path / "model")
    assert exit_code("--model", str(model), "--prompt=a", "--attention=cca") == 1
    out, err = capsys.readouterr()
    assert out.strip() == "" and err.count("\n") == 1
    assert "apply: a model without sliding windows of its own, got layer 0 with one of 8" in err
