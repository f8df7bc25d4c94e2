"""Tokens of a recipe: files, marks, tokenizers, interruptions, damaged folders."""

import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paperlab import data
from paperlab.data._command import main
from paperlab.data._corpus import Corpus, Documents
from paperlab.data._recipes import RECIPES

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the recipe `sample` needs no fetch."""
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def documents(*texts: bytes) -> Documents:
    ends = np.cumsum([0, *map(len, texts)], dtype=np.uint64)
    return Documents(np.frombuffer(b"".join(texts), np.uint8), ends)


def corpus(monkeypatch: pytest.MonkeyPatch, **domains: list[bytes]) -> Corpus:
    """The recipe `sample` with other documents in its train splits."""
    whole = data.load("sample", list(domains))
    empty = documents()
    splits = {
        name: {"train": documents(*texts), "valid": empty, "test": empty}
        for name, texts in domains.items()
    }
    monkeypatch.setattr(whole, "_domains", splits)
    whole.sha256 = hashlib.sha256(repr(domains).encode()).hexdigest()
    return whole


@pytest.mark.parametrize(
    ("marks", "vocab_size", "dtype"),
    [
        ({}, 256, "uint8"),
        ({"separator": 0}, 256, "uint8"),
        ({"separator": 256}, 257, "uint16"),
        ({"separator": 0, "bos": 256}, 257, "uint16"),
        ({"separator": 9, "vocab_size": 300}, 300, "uint16"),
        ({"bos": 300, "vocab_size": 70_000}, 70_000, "uint32"),
    ],
)
def test_bytes_are_tokens(marks: dict[str, int], vocab_size: int, dtype: str) -> None:
    tokens = data.tokenize("sample", "bytes", **marks)
    whole = data.load("sample")
    assert tokens.vocab_size == vocab_size and tokens.tokenizer == "bytes"
    assert (tokens.separator, tokens.bos) == (marks.get("separator"), marks.get("bos"))
    assert list(tokens) == list(whole) == "en de ru ja c python".split()
    head = [marks["bos"]] if "bos" in marks else []
    tail = [marks["separator"]] if "separator" in marks else []
    for domain, splits in whole.items():
        assert list(tokens[domain]) == ["train", "valid", "test"]
        for split, texts in splits.items():
            array = tokens[domain][split]
            rows = [[*head, *text, *tail] for text in texts]
            assert array.tolist() == [token for row in rows for token in row]
            assert array.dtype == dtype and not array.flags.writeable
            ends = np.cumsum([0, *map(len, rows)])
            assert (tokens.documents(domain, split) == ends).all()
            assert tokens.counts[domain][split] == (len(texts), len(array), len(texts.text))


def test_the_format_on_disk(cache: Path) -> None:
    tokens = data.tokenize("sample", domains=["de", "en"], separator=0)
    assert tokens.folder.parent == cache / "tokens/sample"
    assert tokens.folder.name.startswith("bytes-") and tokens.tokenizer_path is None
    text = (tokens.folder / "manifest.json").read_bytes()
    manifest = json.loads(text)
    assert tokens.sha256 == hashlib.sha256(text).hexdigest() and tokens.manifest == manifest
    assert [domain["name"] for domain in manifest["domains"]] == ["en", "de"]
    assert manifest["recipe"] == {
        "name": "sample",
        "sha256": data.load("sample", ["en", "de"]).sha256,
    }
    assert sorted(manifest["files"]) == sorted(
        f"{domain}/{split}{kind}.npy"
        for domain in ("en", "de")
        for split in ("train", "valid", "test")
        for kind in ("", "_documents")
    )
    for name, record in manifest["files"].items():
        content = (tokens.folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert record == {"bytes": len(content), "sha256": digest}
    assert np.load(tokens.folder / "en/train.npy").dtype == np.uint8
    assert not list(cache.rglob("*.tmp"))
    tokens.verify()


def test_made_once_and_the_same_everywhere(cache: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    first = data.tokenize("sample", domains=["en"], notice=lines.append)
    assert lines == ["en: 2,044 tokens"]
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    again = data.tokenize("sample", domains=["en"], notice=lines.append)
    assert again.folder == first.folder and len(lines) == 1
    assert (again.folder / "manifest.json").stat().st_mtime_ns == stamp
    other = data.tokenize("sample", domains=["en"], cache=tmp_path / "other")
    assert other.sha256 == first.sha256 and other.folder.name == first.folder.name
    assert data.tokenize("sample", domains=["en"], separator=0).folder != first.folder


def test_a_corpus_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [bytes([65 + i % 26]) * (i % 50) for i in range(1000)]
    tokens = data.tokenize(corpus(monkeypatch, en=texts), separator=0)
    assert tokens["en"]["train"].tobytes() == b"".join(text + b"\0" for text in texts)
    assert len(tokens["en"]["valid"]) == 0 and tokens.counts["en"]["valid"] == (0, 0, 0)


def test_documents_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from paperlab.data import _encoders

    whole = data.tokenize("sample", separator=256)
    path = data.train_bpe("sample", 300)
    whole_bpe = data.tokenize("sample", path, separator=0)
    for size in (1, 700):
        monkeypatch.setattr(_encoders, "_TEXT_BYTES", size)
        monkeypatch.setattr(_encoders, "_BATCH_BYTES", size)
        cache = Path(os.environ["PAPERLAB_CACHE"]) / str(size)
        assert data.tokenize("sample", separator=256, cache=cache).sha256 == whole.sha256
        assert data.tokenize("sample", path, separator=0, cache=cache).sha256 == whole_bpe.sha256


# Tokenizers of Hugging Face.


def test_a_trained_vocabulary(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = data.train_bpe("sample", 400)
    assert path.name == "tokenizer.json" and data.train_bpe("sample", 400) == path
    again = data.train_bpe("sample", 400, cache=tmp_path / "other")
    assert again.read_bytes() == path.read_bytes()
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    assert tokenizer.get_vocab_size() == 400 and tokenizer.token_to_id("<|endoftext|>") == 0
    tokens = data.tokenize("sample", path, separator="<|endoftext|>")
    assert (tokens.vocab_size, tokens.separator, tokens.bos) == (400, 0, None)
    assert tokens.tokenizer_path is not None
    assert tokens.tokenizer_path.read_bytes() == path.read_bytes()
    for domain, splits in data.load("sample").items():
        for split, texts in splits.items():
            ids, ends = tokens[domain][split], tokens.documents(domain, split)
            assert ids.dtype == np.uint16
            for i, text in enumerate(texts):
                row = ids[int(ends[i]) : int(ends[i + 1])].tolist()
                expected = tokenizer.encode(text.decode(), add_special_tokens=False).ids
                assert row == [*expected, 0]
                assert tokenizer.decode(row[:-1]).encode() == text  # nothing is lost
    # What is trained is shorter than bytes.
    assert tokens.counts["en"]["train"].tokens < 0.75 * tokens.counts["en"]["train"].bytes


def test_training_does_not_depend_on_threads(run_python, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = data.train_bpe("sample", 400)
    code = "from paperlab import data; print(data.train_bpe('sample', 400))"
    for threads in ("1", "3"):
        run = run_python(
            code, env={"PAPERLAB_CACHE": str(tmp_path / threads), "RAYON_NUM_THREADS": threads}
        )
        assert run.returncode == 0, run.stderr
        assert Path(run.stdout.strip()).read_bytes() == path.read_bytes()


def test_special_tokens_in_a_text_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    path = data.train_bpe("sample", 300)
    tokens = data.tokenize(corpus(monkeypatch, en=[b"a<|endoftext|>b"]), path, separator=0)
    assert tokens["en"]["train"].tolist().count(0) == 1


def test_errors_of_tokenizers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = data.train_bpe("sample", 400)
    place = "tokenize: sample: domain en, split train"
    with pytest.raises(ValueError, match=rf"{place}: document 0 has token \d+, vocab_size is 300"):
        data.tokenize("sample", path, vocab_size=300)
    with pytest.raises(ValueError, match=f"{place}: document 1 is not UTF-8: byte 1 is 0xff"):
        data.tokenize(corpus(monkeypatch, en=[b"good", b"b\xffad"]), path)
    with pytest.raises(ValueError, match=r"document 1 is not UTF-8"):
        data.train_bpe(corpus(monkeypatch, en=[b"good", b"b\xffad"]), 300)
    with pytest.raises(ValueError, match=r"separator must be a token of bpe-400-\w+, got '<s>'"):
        data.tokenize("sample", path, separator="<s>")
    with pytest.raises(ValueError, match=r"separator must be None or in 0\.\.399, got 400"):
        data.tokenize("sample", path, separator=400)
    with pytest.raises(ValueError, match=r"data.train_bpe: vocab_size must be at most \d+, since"):
        data.train_bpe("sample", 50_000)
    with pytest.raises(ValueError, match=r"vocab_size must be in 257"):
        data.train_bpe("sample", 256)
    with pytest.raises(FileNotFoundError):
        data.tokenize("sample", tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json': not a tokenizer"):
        data.tokenize("sample", tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for call in (lambda: data.tokenize("sample", path), lambda: data.train_bpe("sample", 301)):
        with pytest.raises(ImportError, match="pip install tokenizers"):
            call()
    assert data.tokenize("sample").vocab_size == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("samples",), "unknown recipe 'samples'; did you mean 'sample'"),
        ((3,), "recipe must be a str"),
        (("sample", 3), "tokenizer must be 'bytes' or the path"),
        (("digits",), "holds pictures"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], message: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=message):
        data.tokenize(*arguments)
    assert not (cache / "tokens").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": 257}, r"separator must be None or in 0\.\.256, got 257"),
        ({"separator": -1}, "separator must be"),
        ({"separator": True}, "separator must be"),
        ({"separator": "<s>"}, "separator must be"),
        ({"bos": 1.0}, "bos must be"),
        ({"vocab_size": 255}, "vocab_size must be 256 or more"),
        ({"vocab_size": 256, "separator": 256}, r"0\.\.255, got 256"),
        ({"domains": ["english"]}, "unknown domain of sample 'english'"),
        ({"domains": []}, "domains must name at least one"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=message):
        data.tokenize("sample", **options)
    assert not (cache / "tokens").exists()


def test_empty_and_missing_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="sample: domain de has no documents"):
        data.tokenize(corpus(monkeypatch, en=[b"x"], de=[]))
    with pytest.raises(ValueError, match="domains must be None"):
        data.tokenize(corpus(monkeypatch, en=[b"x"]), domains=["en"])
    partial = corpus(monkeypatch, en=[b"some text"])
    partial.missing = {"de": "no such package"}
    tokens = data.tokenize(partial)
    assert tokens.missing == {"de": "no such package"} and list(tokens) == ["en"]
    with pytest.raises(KeyError, match="de is missing: no such package"):
        tokens["de"]
    with pytest.raises(ValueError, match="no domain 'de': no such package"):
        data.Sampler(tokens, length=2, domains=["de"])
    nothing = corpus(monkeypatch, en=[b"x"])
    monkeypatch.setattr(nothing, "_domains", {})
    nothing.missing = {"en": "no network"}
    with pytest.raises(FileNotFoundError, match="every domain is missing: en: no network"):
        data.tokenize(nothing)
    with pytest.raises(FileNotFoundError, match="data fetch code"):
        data.tokenize("code")


# Interruptions and neighbours.

SLOW = """
import time
from paperlab import data
from paperlab.data import _shards
write = _shards._write_split
def slow(*arguments):
    print("writing", flush=True)
    time.sleep(0.05)
    return write(*arguments)
_shards._write_split = slow
data.tokenize("sample", separator=0)
"""


def start_slow(package_path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        env={**os.environ, "PYTHONPATH": str(package_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_a_killed_writer_leaves_nothing_that_counts(package_path: Path, cache: Path) -> None:
    with start_slow(package_path) as process:
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    left = {path.name.rpartition(".")[2] for path in (cache / "tokens/sample").iterdir()}
    assert left == {"lock", "tmp"}
    tokens = data.tokenize("sample", separator=0)
    tokens.verify()
    assert not list(cache.rglob("*.tmp"))


def test_a_second_writer_is_refused(package_path: Path, cache: Path) -> None:
    with start_slow(package_path) as process:
        with pytest.raises(BlockingIOError, match="another process writes these tokens"):
            data.tokenize("sample", separator=0)
        assert data.tokenize("sample", separator=256).vocab_size == 257  # other tokens
        assert process.wait() == 0
    data.tokenize("sample", separator=0).verify()


def test_an_error_leaves_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from paperlab.data import _store

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    whole = data.load("sample", ["en"])
    monkeypatch.setattr(_store, "file_record", full)
    with pytest.raises(OSError, match="No space left"):
        data.tokenize(whole)
    assert [path.suffix for path in (cache / "tokens/sample").iterdir()] == [".lock"]


# Hostile folders.


def folder_of_tokens() -> Path:
    return data.tokenize("sample", domains=["en"], separator=256).folder


def test_cut_files_are_made_anew_or_named() -> None:
    folder = folder_of_tokens()
    path = folder / "en/train.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"en/train.npy: has \d+ bytes of data"):
        data.Tokens(folder)
    tokens = data.tokenize("sample", domains=["en"], separator=256)
    assert tokens.folder == folder and path.read_bytes() == content


def test_changed_bytes_are_found_by_verify() -> None:
    folder = folder_of_tokens()
    path = folder / "en/valid.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"en/valid.npy: has the SHA-256 \w+, the manifest says"):
        data.Tokens(folder).verify()


@pytest.mark.parametrize(
    ("name", "array", "kind", "message"),
    [
        ("train", np.zeros(9, np.uint16), ValueError, "the manifest says"),
        ("train", np.zeros(1380, np.int64), TypeError, "tokens must be U8, U16 or U32, got I64"),
        ("train", np.zeros(1380, ">u2"), TypeError, "little-endian"),
        ("train", np.zeros((1380, 1), np.uint16), ValueError, "one dimension, got 2"),
        ("train", np.zeros(1380, np.uint32), TypeError, "holds U32, the manifest says U16"),
        ("train_documents", np.array([0, 9, 5, 1380], "u8"), ValueError, "offset 2 is 5, must be"),
        ("train_documents", np.array([0, 1381], "u8"), ValueError, r"must be in 0\.\.1380"),
        ("train_documents", np.array([0, 1380], "u8"), ValueError, "in 1 documents, the manifest"),
        ("train_documents", np.array([0, 1380], "i8"), TypeError, "must be U64, got I64"),
    ],
)
def test_hostile_files(name: str, array: Any, kind: type[Exception], message: str) -> None:
    folder = folder_of_tokens()
    assert len(np.load(folder / "en/train.npy")) == 1380
    documents = np.load(folder / "en/train_documents.npy")
    np.save(folder / f"en/{name}.npy", array)
    if array.shape[0] == 9:
        np.save(folder / "en/train_documents.npy", np.minimum(documents, 9))
    with pytest.raises(kind, match=message) as caught:
        data.Tokens(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "manifest.json: line 1"),
        ("[]", "manifest.json: 'format' is missing"),
        ('{"format": 2}', "manifest.json: is of another format, 2"),
        ('{"format": 1, "vocab_size": -1}', "'vocab_size' must be in 1"),
    ],
)
def test_hostile_manifests(text: str, message: str) -> None:
    folder = folder_of_tokens()
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        data.Tokens(folder)
    data.tokenize("sample", domains=["en"], separator=256).verify()  # made anew
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError):
        data.Tokens(folder)


def test_a_manifest_without_our_keys() -> None:
    folder = folder_of_tokens()
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("recipe", "tokenizer", "separator", "missing", "files"):
        (folder / "manifest.json").write_text(
            json.dumps({name: value for name, value in manifest.items() if name != key})
        )
        with pytest.raises(ValueError, match=r"manifest.json: is no manifest of tokens"):
            data.Tokens(folder)


# The command line.


def test_the_command_prints_a_table(capsys: Capture, cache: Path) -> None:
    assert main(["tokens", "sample", "--domains", "de,en", "--separator", "0"]) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    assert captured.err == "" and lines[0] == "data: en: 2,050 tokens".split()
    assert lines[2][:4] == "sample: bytes, 256 tokens,".split()
    assert lines[3] == "domain split documents tokens bytes/token".split()
    assert lines[4] == "en train 4 1,380 0.997".split() and len(lines) == 10
    assert main(["tokens", "sample", "--bpe", "400"]) == 0
    out = capsys.readouterr().out
    assert "sample: bpe-400-" in out and "python   train " in out
    path = next(cache.rglob("bpe-400-*/tokenizer.json"))
    assert main(["tokens", "sample", "--tokenizer", str(path)]) == 0
    assert main(["tokens", "sample", "--bpe", "400", "--separator", "none"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sampel"], 2, "paperlab data tokens: unknown recipe 'sampel'; did you mean 'sample'?"),
        (["sample", "--domains", "xx"], 2, "unknown domain of sample 'xx'"),
        (["code"], 1, "data fetch code brings it"),
        (["sample", "--separator", "300"], 1, "separator must be None or in 0..256, got 300"),
        (["sample", "--tokenizer", "a/b.json"], 1, "'a/b.json': No such file"),
        (["sample", "--bpe", "100"], 1, "vocab_size must be in 257"),
    ],
)
def test_errors_of_the_command(
    capsys: Capture, arguments: list[str], code: int, message: str
) -> None:
    assert main(["tokens", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


def test_a_busy_folder_is_one_line(capsys: Capture) -> None:
    folder = data.tokenize("sample").folder
    (folder / "manifest.json").unlink()
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["tokens", "sample"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "another process writes these tokens" in error


def test_recipes_have_names_that_folders_can_have() -> None:
    for recipe in RECIPES.values():
        assert all(name.replace("-", "").isalnum() for name in (recipe.name, *recipe.domains))


def test_errors_say_who_was_called() -> None:
    with pytest.raises(ValueError, match=r"^data.tokenize: unknown domain of sample 'xx'"):
        data.tokenize("sample", domains=["xx"])
    with pytest.raises(ValueError, match=r"^data.load: unknown domain of sample 'xx'"):
        data.load("sample", ["xx"])
    with pytest.raises(ValueError, match=r"^data.tokenize: digits holds pictures"):
        data.tokenize("digits")
    with pytest.raises(FileNotFoundError, match=r"^data.train_bpe: code: domain c is absent"):
        data.train_bpe("code", 300)


@pytest.mark.parametrize("file", ["train.bin", "valid.bin", "train.npy"])
def test_a_corpus_that_was_changed_is_refused(file: str, cache: Path) -> None:
    corpus = data.load("sample")
    path = corpus.paths["de"] / file
    content = bytearray(path.read_bytes())
    content[100] ^= 1  # size and manifest stay
    path.write_bytes(content)
    message = rf"^{path}: has the SHA-256 \w+, the manifest says"
    for refused in (
        corpus.verify,
        lambda: data.tokenize(corpus),
        lambda: data.train_bpe(corpus, 300),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert not list((cache / "tokens").rglob("manifest.json"))
    assert data.tokenize("sample", domains=["en"])["en"]
