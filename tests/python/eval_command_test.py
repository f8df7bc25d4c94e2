"""`eval`: the same numbers as paperlab.eval, by domain and by position; files, errors."""

import hashlib
import json
import math
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

tokenizers = pytest.importorskip("tokenizers")

import tiny_decoder  # noqa: E402
from paperlab import data, nn  # noqa: E402
from paperlab import eval as evaluation  # noqa: E402
from paperlab._commands import evaluate  # noqa: E402
from tiny_decoder import END, chain_model, random_model, save  # noqa: E402
from tokenizers import processors  # noqa: E402

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

ZHONG = "\u4e2d"
TEXTS = {"a.txt": f"{ZHONG} a text of some length. " * 9, "b.txt": "b" * 40 + "\u00e9\n"}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_model(), tmp_path_factory.mktemp("models") / "noise")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, text in TEXTS.items():
        (tmp_path / name).write_bytes(text.encode())
    return [tmp_path / name for name in TEXTS]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: Patch) -> Path:
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


def exit_code(*arguments: str) -> int:
    try:
        return evaluate.main(arguments)
    except SystemExit as leave:
        return int(str(leave.code))


def result_of(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "result.json"
    assert exit_code(*arguments, "--json", str(out)) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def table_of(capsys: Capture) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_numbers_are_those_of_the_library(
    noise: Path, files: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    texts = [f"--text={path}" for path in files]
    settings = ["--context=32", "--stride=8", "--buckets=0,4,16,64"]
    result = result_of(tmp_path, "--model", str(noise), *texts, *settings)
    table = table_of(capsys)
    model = nn.load(noise)
    total, count, size = 0.0, 0, 0
    for row, path in enumerate(files):
        content = path.read_bytes()
        tokens = torch.tensor(list(content))
        expected = evaluation.perplexity(model, tokens, context=32, stride=8)
        found = result["domains"][path.name]
        assert {key: found[key] for key in expected} == expected
        assert found["nats_per_token"] == expected["nll"] / expected["tokens"]
        # The first token is a byte; of a longer character the whole counts.
        scored = len(content) - (0 if path.name == "a.txt" else 1)
        assert (found["documents"], found["bytes"]) == (1, scored)
        assert found["bits_per_byte"] == expected["nll"] / math.log(2.0) / scored
        assert table[row + 1] == [
            path.name, "1", str(expected["tokens"]), f"{found['nats_per_token']:.4f}",
            f"{expected['perplexity']:.3f}", f"{found['bits_per_byte']:.4f}",
        ]  # fmt: skip
        total, count, size = total + expected["nll"], count + expected["tokens"], size + scored
    overall = result["overall"]
    assert (overall["documents"], overall["tokens"], overall["bytes"]) == (2, count, size)
    assert overall["nll"] == pytest.approx(total, rel=1e-14)
    assert overall["bits_per_byte"] == overall["nll"] / math.log(2.0) / size
    assert table[3][:3] == ["overall", "2", str(count)]
    assert table[0] == ["domain", "documents", "tokens", "nats/token", "perplexity", "bits/byte"]


def test_positions(noise: Path, files: list[Path], tmp_path: Path, capsys: Capture) -> None:
    base = ["--model", str(noise), f"--text={files[0]}", "--context=32"]
    result = result_of(tmp_path, *base, "--buckets=0,4,16,64,128")
    tokens = torch.tensor(list(files[0].read_bytes()))
    scores = evaluation.score(nn.load(noise), tokens, context=32)
    expected = scores.by_position([0, 4, 16, 64, 128])
    for found, bucket in zip(result["positions"], expected, strict=True):
        kept = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in bucket.items()}
        assert {key: found[key] for key in bucket} == kept
    assert sum(bucket["tokens"] for bucket in result["positions"]) == len(tokens) - 1
    assert result["positions"][3]["nats_per_token"] is None
    rows = table_of(capsys)[4:]
    assert [row[0] for row in rows] == ["position", "0-3", "4-15", "16-63"]
    assert [int(row[1]) for row in rows[1:]] == [bucket["tokens"] for bucket in expected[:3]]


@pytest.mark.parametrize(
    ("context", "edges"),
    [
        (64, [0, 128]),
        (129, [0, 128, 512]),
        (1024, [0, 128, 512, 1024]),
        (3000, [0, 128, 512, 1024, 2048, 4096]),
    ],
)
def test_the_buckets_reach_up_to_the_context(context: int, edges: list[int]) -> None:
    assert evaluate.default_edges(context) == edges


def test_settings_and_sources_are_in_the_result(
    noise: Path, files: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    result = result_of(
        tmp_path, "--model", str(noise), f"--text=first={files[0]}", "--dtype=bfloat16"
    )
    assert list(result) == [
        "schema", "model", "tokenizer_sha256", "settings", "domains", "overall", "positions",
        "evaluation_s",
    ]  # fmt: skip
    assert (result["schema"], result["model"]) == (1, str(noise))
    tokenizer = (noise / "tokenizer.json").read_bytes()
    assert result["tokenizer_sha256"] == hashlib.sha256(tokenizer).hexdigest()
    assert result["settings"] == {
        "context": 64, "stride": 64, "buckets": [0, 128], "dtype": "bfloat16",
    }  # fmt: skip
    sha256 = hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert result["domains"]["first"]["source"] == {"file": str(files[0]), "sha256": sha256}
    again = result_of(
        tmp_path, "--model", str(noise), f"--text=first={files[0]}", "--dtype=bfloat16"
    )
    assert result.pop("evaluation_s") >= 0 and again.pop("evaluation_s") >= 0
    assert result == again
    assert not list(tmp_path.glob("*.tmp"))


def test_a_recipe_is_read_document_by_document(
    noise: Path, tmp_path: Path, capsys: Capture
) -> None:
    base = ["--model", str(noise), "--data=sample", "--split=train"]
    result = result_of(tmp_path, *base, "--domains=de,en")
    corpus = data.load("sample", ["en", "de"])
    model = nn.load(noise)
    assert list(result["domains"]) == ["en", "de"]
    for name, found in result["domains"].items():
        documents = [torch.tensor(list(document)) for document in corpus[name]["train"]]
        sizes = {name: sum(len(document) - 1 for document in documents)}
        expected = evaluation.by_domain(model, {name: documents}, sizes, context=64)[name]
        assert {key: found[key] for key in expected} == expected
        source = {"recipe": "sample", "split": "train", "manifest_sha256": corpus.sha256}
        assert (found["documents"], found["source"]) == (len(documents), source)
    few = result_of(tmp_path, *base, "--domains=en", "--documents=1")
    assert few["domains"]["en"]["documents"] == 1
    both = result_of(tmp_path, *base, "--domains=en", f"--text={__file__}", "--documents=1")
    assert list(both["domains"]) == ["eval_command_test.py", "en"]


def test_text_that_is_one_character_has_bits_but_a_lone_special_token_has_none(
    noise: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "x").write_text("a<|end|>")
    result = result_of(tmp_path, "--model", str(noise), f"--text={tmp_path / 'x'}")
    assert result["overall"]["bytes"] == len("<|end|>")
    tokenizer = tiny_decoder.byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", END)]
    )
    shutil.copytree(noise, tmp_path / "model")
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    (tmp_path / "x").write_text("a")
    result = result_of(tmp_path, "--model", str(tmp_path / "model"), f"--text={tmp_path / 'x'}")
    assert result["overall"]["bytes"] == 0 and result["overall"]["bits_per_byte"] is None
    assert capsys.readouterr().out.splitlines()[-4].endswith(" -")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text=x"], "needs --model"),
        (["--model=x"], "needs --text FILE or --data RECIPE"),
        (["--model=x", "--text=a", "--domains=en"], "--domains goes with --data RECIPE"),
        (["--model=x", "--text=a", "--documents=1"], "--documents goes with --data RECIPE"),
        (["--modle=x"], "unknown option '--modle'; did you mean '--model'?"),
        (["--split=tset"], "unknown split 'tset'; did you mean 'test'?"),
        (["--dtype=half"], "unknown dtype 'half'; did you mean one of float32, float64,"),
        (["--context=0"], "--context: must be a whole number in 1.."),
        (["--stride=x"], "--stride: must be a whole number in 1.."),
        (["--model=x", "--text=a", "--context=4", "--stride=5"], "--stride 5 is more than --con"),
        (["--buckets=0"], "--buckets: must ascend and be at least two, got '0'"),
        (["--buckets=4,4"], "--buckets: must ascend"),
        (["--buckets=0,-1"], "--buckets: must be whole numbers and commas"),
        (["--documents=0"], "--documents: must be a whole number in 1.."),
    ],
)
def test_errors_of_the_command_line(capsys: Capture, arguments: list[str], message: str) -> None:
    assert exit_code(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and one_line(err) and err.startswith("paperlab eval: ") and message in err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--text=a.txt", "--text=./a.txt"], 2, "two texts are named 'a.txt'; NAME=FILE tells"),
        (["--text=en=a.txt", "--data=sample"], 2, "a text is named as the domain 'en'"),
        (["--text=nothing"], 1, "'nothing': No such file or directory"),
        (["--text=./x=y"], 1, "'x=y': No such file or directory"),
        (["--text=cache"], 1, "'cache': Is a directory"),
        (["--text=bad"], 1, "'bad': not UTF-8: byte 0xe9 at position 4"),
        (["--text=empty"], 1, "'empty': holds nothing; a score needs two tokens"),
        (["--text=one"], 1, "'one': holds 1 token; a score needs two tokens"),
        (["--data=smaple"], 2, "unknown recipe 'smaple'; did you mean 'sample'?"),
        (["--data=sample", "--domains=xx"], 2, "unknown domain of sample 'xx'"),
        (["--data=digits"], 1, "digits holds pictures"),
        (["--data=manual-pages"], 1, "./paperlab data fetch manual-pages brings it"),
        (["--text=a.txt", "--context=65"], 1, "--context 65 is more than the model's 64 positions"),
        (["--text=a.txt", "--stride=65"], 1, "--stride 65 is more than the context 64"),
        (["--text=a.txt", "--json=cache"], 1, "'cache': Is a directory"),
        (["--text=a.txt", "--json=nowhere/x"], 1, "'nowhere': No such file or directory"),
        (["--text=a.txt", "--json=a.txt/x"], 1, "'a.txt': Not a directory"),
    ],
)
def test_errors_are_one_line(
    noise: Path,
    files: list[Path],
    cache: Path,
    capsys: Capture,
    monkeypatch: Patch,
    options: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(files[0].parent)
    cache.mkdir()
    Path("bad").write_bytes(b"abcd\xe9fg")
    Path("empty").touch()
    Path("one").write_text("x")
    before = sorted(Path().iterdir())
    assert exit_code("--model", str(noise), *options) == code
    out, err = capsys.readouterr()
    assert out == "" and one_line(err) and err.startswith("paperlab eval: ") and message in err
    assert sorted(Path().iterdir()) == before


def test_a_vocabulary_of_another_size_is_named(
    noise: Path, files: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(noise, tmp_path / "model")
    tokenizer = tiny_decoder.byte_tokenizer()
    tokenizer.add_tokens(["length"])
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    base = ["--model", str(tmp_path / "model")]
    assert exit_code(*base, f"--text={files[1]}") == 0
    capsys.readouterr()
    assert exit_code(*base, f"--text={files[0]}") == 1
    assert capsys.readouterr().err == (
        f"paperlab eval: '{files[0]}': vocabulary mismatch: the tokenizer knows 259 tokens, "
        "the model 258; the text has token 258\n"
    )


def test_a_model_that_gives_no_number_is_an_error(
    tmp_path: Path, files: list[Path], capsys: Capture
) -> None:
    model = chain_model(b"ab")
    with torch.no_grad():  # NaN itself would be refused when the model is loaded
        model.get_parameter("lm_head.weight")[0, ord("x")] = 3e38  # the product is infinite
    directory = save(model, tmp_path / "model")
    (tmp_path / "text").write_text("abxcd")
    out = tmp_path / "result.json"
    paths = [f"--text={files[1]}", f"--text={tmp_path / 'text'}", f"--json={out}"]
    assert exit_code("--model", str(directory), *paths) == 1
    assert capsys.readouterr() == (
        "", f"paperlab eval: '{tmp_path / 'text'}': the model's score of token 3 is nan nats\n"
    )  # fmt: skip
    assert not out.exists()


def test_a_result_that_cannot_be_written_leaves_the_old_one(
    noise: Path, files: list[Path], tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    out = tmp_path / "result.json"
    out.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(os, "fsync", full)
    arguments = ["--model", str(noise), f"--text={files[1]}", f"--json={out}"]
    assert exit_code(*arguments) == 1
    err = capsys.readouterr().err
    assert err == f"paperlab eval: '{out}': No space left on device\n"
    assert out.read_text() == "old" and not list(tmp_path.glob("*.tmp"))


def start(package: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "paperlab", "eval", *arguments],
        env={**os.environ, "PYTHONPATH": str(package)},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def read_until(descriptor: int, is_enough: Callable[[bytes], bool]) -> bytes:
    content = b""
    while not is_enough(content):
        try:
            more = os.read(descriptor, 4096)
        except OSError:  # a terminal that everybody has left
            break
        content += more
        if not more:
            break
    return content


def test_progress_on_a_terminal_and_ctrl_c(noise: Path, tmp_path: Path, package_path: Path) -> None:
    (tmp_path / "long").write_text("some text " * 200_000)
    out = tmp_path / "result.json"
    ours, theirs = pty.openpty()
    arguments = ["--model", str(noise), f"--text={tmp_path / 'long'}", f"--json={out}"]
    run = start(package_path, *arguments, stderr=theirs)
    os.close(theirs)
    shown = read_until(ours, lambda content: b" left" in content)
    assert shown.startswith(b"\r\x1b[K") and b" of 1,999,999 tokens, " in shown
    run.send_signal(signal.SIGINT)
    begin = time.monotonic()
    rest = read_until(ours, lambda _: False)
    assert run.wait(timeout=60) == 130 and time.monotonic() - begin < 5.0
    assert rest.endswith(b"\r\x1b[K") and b"Traceback" not in rest
    assert run.stdout is not None and run.stdout.read() == b""
    assert not out.exists() and not list(tmp_path.glob("*.tmp"))
    os.close(ours)


def test_no_progress_elsewhere_and_a_closed_pipe_is_quiet(
    noise: Path, files: list[Path], package_path: Path
) -> None:
    arguments = ["--model", str(noise), f"--text={files[0]}"]
    run = start(package_path, *arguments)
    out, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (0, b"") and out.startswith(b"domain ")
    run = start(package_path, *arguments)
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    assert (run.wait(timeout=120), run.stderr.read()) == (0, b"")


def test_missing_domains_are_said_or_refused(
    noise: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    def load(name: str, domains: list[str] | None) -> data.Corpus:
        corpus = original(name, ["en"])
        corpus.missing = {"de": "no package", "ja": "none either"}
        return corpus

    original = data.load
    monkeypatch.setattr(data, "load", load)
    arguments = ["--model", str(noise), "--data=sample", "--split=valid"]
    assert exit_code(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "not measured: de (no package), ja (none either)"
    assert exit_code(*arguments, "--domains=en,de") == 1
    assert capsys.readouterr().err == "paperlab eval: sample: de is missing: no package\n"
