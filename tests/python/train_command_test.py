"""`train`: a config to a Hugging Face directory; what it trains on, measures and says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from paperlab import data, nn
from paperlab import eval as evaluation
from paperlab._commands import evaluate, train
from train_command_cases import MODEL, Capture, Write, read_json, run
from train_fit_test import scalars_of

pytestmark = pytest.mark.usefixtures("train_cache", "train_thread")


def test_a_config_becomes_a_model_with_a_card(
    write: Write, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert run("--config", write(licence="CC0-1.0"), "--out", out) == 0
    text, errors = capsys.readouterr()
    assert errors == ""
    assert "step 6 of 6  loss " in text and "tokens/s" in text and "GFLOP/s" in text
    assert len(re.findall(r"^step [36]  held out, bits per byte: en .*, c ", text, re.M)) == 2
    assert len(re.findall(r'^step [36]  sample: "The', text, re.M)) == 2

    record, result = read_json(out / "run.json"), read_json(out / "result.json")
    corpus = data.load("sample", ["en", "c"])
    assert record["data"]["manifest_sha256"] == corpus.sha256
    assert record["config"] == result["config"] and result["steps"] == 6
    assert record["config"]["training"]["betas"] == [0.9, 0.95]  # defaults are written out

    card = (out / "model/README.md").read_text()
    assert card.startswith('---\nlicense: "CC0-1.0"\n')
    for part in (corpus.sha256, "AdamW", '"steps": 6', "paperlab 0.", "## Parents\n\nNone"):
        assert part in card
    bits = result["evaluation"]["domains"]["en"]["bits_per_byte"]
    assert f"{bits:.4f}" in card
    assert not list(out.rglob("*.tmp"))


def test_the_measures_are_those_of_the_library(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("--config", write(), "--out", out) == 0
    lines = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in lines] == [3, 6]
    assert lines[-1] == read_json(out / "result.json")["evaluation"]
    model = nn.load(out / "model")
    for name in ("en", "c"):
        document = data.load("sample")[name]["valid"][0]
        tokens = torch.tensor([0, *document])  # the separator, then every byte is scored
        wanted = evaluation.score(model, tokens, context=24).summary(num_bytes=len(document))
        assert lines[-1]["domains"][name] == {"documents": 1, **wanted}
    sample = model.generate([list(b"The")], 5, pad_token_id=None)[0].tolist()
    assert lines[-1]["sample"] == bytes(sample).decode(errors="replace")
    (events,) = out.glob("events.out.tfevents.*")
    scalars = scalars_of(events)[0]
    assert {(step, tag) for step, tag, _ in scalars if "/" in tag} == {
        (step, f"bits_per_byte/{name}") for step in (2, 5) for name in ("en", "c")
    }


def test_the_model_can_be_evaluated_and_read_by_transformers(
    write: Write, tmp_path: Path, capsys: Capture
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    out = tmp_path / "out"
    assert run("--config", write(eval=None), "--out", out) == 0
    assert "Not measured." in (out / "model/README.md").read_text()
    directory = str(out / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    text = "caf\u00e9 \u4e2d"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode()) and tokenizer.decode(ids) == text
    batch = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(batch).logits, nn.load(directory)(batch), rtol=1e-4, atol=1e-4
        )
    capsys.readouterr()
    assert evaluate.main(["--model", directory, "--data", "sample", "--domains", "en"]) == 0
    assert "bits/byte" in capsys.readouterr().out


def test_files_from_a_model_with_its_tokenizer(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("--config", write(), "--out", first) == 0
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text("A text of our own. " * 40)
    other.write_text("Another one, held out. " * 5)
    sources = {"recipe": "absent", "domains": "absent", "files": [f"own={text}"]}
    changes: dict[str, Any] = {
        "model": {"config": "absent", "seed": "absent", "from": str(first / "model")},
        "data": {**sources, "tokenizer": "model", "separator": "absent"},
        "eval": {"files": [f"own={other}"]},
        "training": {"steps": 30, "schedule": "constant"},
    }
    assert run("--config", write(**changes), "--out", second) == 0
    result = read_json(second / "result.json")
    assert list(result["evaluation"]["domains"]) == ["own"]
    lines = (second / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < json.loads(lines[0])["loss"]
    card = (second / "model/README.md").read_text()
    assert f"base_model: {json.dumps(str(first / 'model'))}" in card
    tokenizers = [(out / "model/tokenizer.json").read_bytes() for out in (first, second)]
    assert tokenizers[0] == tokenizers[1]
    text.write_text("A changed text. " * 40)
    assert run("--config", write(**changes), "--out", second, "--set=training.steps=31") == 1


def test_values_may_be_set(write: Write, capsys: Capture) -> None:
    settings = ["training.steps=9", 'data.domains=["de"]', "data.tokenizer=a b", "eval=null"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    assert run("--config", write(), "--print-config", *arguments) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["training"]["steps"] == 9 and config["data"]["domains"] == ["de"]
    assert config["data"]["tokenizer"] == "a b" and config["eval"] is None
    assert config["licence"] == "unknown" and config["training"]["keep"] == 2


def test_the_result_names_its_data_and_checkpoints_can_be_used(
    write: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("--config", write(), "--out", out) == 0
    record = read_json(out / "result.json")["data"]
    assert record["manifest_sha256"] == data.load("sample", ["en", "c"]).sha256
    assert record["corpus"] == "sample" and set(record["tokens"]) == {"en", "c"}
    newest = max(out.glob("checkpoint-*"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (newest / name).read_bytes() == (out / "model" / name).read_bytes()
    state = json.loads(read_json(newest / "training.json")["data"])
    assert state["samples"] == 6 * 4


def test_domains_are_not_dropped_silently(write: Write, tmp_path: Path, capsys: Capture) -> None:
    every = {"domains": "absent", "length": 800}  # ja has 684 tokens
    model = {"config": {**MODEL, "max_position_embeddings": 2000}}
    path = write(data=every, model=model, training={"steps": 0})
    assert run("--config", path, "--out", tmp_path / "out", "--set", "eval=null") == 0
    lines = capsys.readouterr().out.splitlines()
    notices = [line for line in lines if line.startswith("left out of training: ")]
    assert len(notices) == 1
    assert re.search(r"\bja \(\d+ tokens to train on, a row needs 801\)", notices[0])
    record = read_json(tmp_path / "out/run.json")["data"]
    assert "ja" in record["left_out"] and "ja" not in record["weights"]
    assert "Left out: ja: " in (tmp_path / "out/model/README.md").read_text()
    for setting in ('data.domains=["en","ja"]', 'data.weights={"en":1,"ja":1}', "data.length=1999"):
        assert run("--config", path, "--out", tmp_path / "no", "--set", setting) == 2
        error = capsys.readouterr().err
        key = setting.partition("=")[0]
        assert error.startswith(f"paperlab train: {path}: {key}: ") and error.count("\n") == 1
    setting = 'data.weights={"en":1,"ja":0}'
    assert (
        run("--config", path, "--out", tmp_path / "yes", "--set", setting, "--set=eval=null") == 0
    )


def files_config(write: Write, tmp_path: Path, texts: dict[str, bytes], **changes: Any) -> str:
    """A config of files; those whose names end in _v are held out."""
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    words = {
        split: [f"{name.removesuffix('_v')}={tmp_path / name}" for name in texts if is_in(name)]
        for split, is_in in (
            ("train", lambda name: not name.endswith("_v")),
            ("held_out", lambda name: name.endswith("_v")),
        )
    }
    sources = {"recipe": "absent", "domains": "absent", "files": words["train"], "separator": 0}
    return write(
        data=sources | changes,
        eval={"files": words["held_out"]} if words["held_out"] else None,
    )


@pytest.mark.parametrize(
    ("texts", "code", "message"),
    [
        ({"a": b"abc " * 40, "b": b"short"}, 2, "data.files: b: 6 tokens to train on, a row needs"),
        ({"a": b"abc " * 40, "b": b""}, 1, "b': is empty"),
        ({"a": b"abc " * 40, "b": b"x\0y" * 40}, 1, "b': byte 1 is 0, the separator; data.sep"),
        ({"a": b"abc " * 40, "a_v": b"x\0y"}, 1, "a_v': byte 1 is 0, the separator; data.sep"),
        ({"a": b"abc " * 40, "a_v": b"held out", "b_v": b"so is this"}, 0, ""),
    ],
)
def test_an_empty_domain_of_files(
    write: Write,
    tmp_path: Path,
    capsys: Capture,
    texts: dict[str, bytes],
    code: int,
    message: str,
) -> None:
    path = files_config(write, tmp_path, texts)
    assert run("--config", path, "--out", tmp_path / "out") == code
    text, error = capsys.readouterr()
    assert message in error and error.count("\n") == bool(code) and "left out" not in text
    if code == 0:
        assert list(read_json(tmp_path / "out/result.json")["evaluation"]["domains"]) == ["a", "b"]


def test_two_files_of_one_name(write: Write, tmp_path: Path, capsys: Capture) -> None:
    path = files_config(write, tmp_path, {"a": b"text " * 40})
    setting = f'data.files=["{tmp_path}/a","{tmp_path}/b/a"]'
    assert run("--config", path, "--out", tmp_path / "out", "--set", setting) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"paperlab train: {path}: data.files: two files are named 'a'; NAME=")


def test_a_separator_that_is_no_byte_takes_any_file(write: Write, tmp_path: Path) -> None:
    path = files_config(write, tmp_path, {"a": b"x\0y" * 40}, separator=256)
    assert run("--config", path, "--out", tmp_path / "out") == 0


def test_what_is_not_measured_is_said(
    write: Write, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train._train_data.Texts._first

    def first(texts: Any, documents: Any, *limits: Any) -> Any:
        found = original(texts, documents, *limits)
        is_c = documents[0] == data.load("sample")["c"]["valid"][0]
        return [] if is_c else found

    monkeypatch.setattr(train._train_data.Texts, "_first", first)
    assert run("--config", write(), "--out", tmp_path / "out") == 0
    reason = "the split valid has no document of two tokens"
    assert f"not measured: c: {reason}\n" in capsys.readouterr().out
    setting = 'eval.domains=["en","c"]'
    assert run("--config", write(), "--out", tmp_path / "no", "--set", setting) == 2
    assert f"eval.domains: c: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("license: mit", "mit"),
        ('tags:\n- x\nlicense: "cc-by-4.0"', "cc-by-4.0"),
        ("tags:\n- x", "unknown"),
        ("license:\n- mit", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_card_inherits_the_licence(
    write: Write, tmp_path: Path, head: str | None, licence: str
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    nn.from_config(MODEL | {"vocab_size": 256}).save_pretrained(source)
    if head is not None:
        (source / "README.md").write_text(f"---\n{head}\n---\n\nlicense: other\n")
    model = {"config": "absent", "seed": "absent", "from": str(source)}
    path = write(model=model, eval=None, training={"steps": 1})
    assert run("--config", path, "--out", out) == 0
    card = (out / "model/README.md").read_text()
    assert card.startswith(f'---\nlicense: "{licence}"\n') and f"## Licence\n\n{licence}" in card
    assert "## Limitations\n\nIt continues text" in card
    assert run("--config", path, "--out", out, "--set", "licence=own") == 0
    assert (out / "model/README.md").read_text().startswith('---\nlicense: "own"\n')


def test_the_example_of_the_readme(tmp_path: Path, capsys: Capture) -> None:
    root = Path(__file__).resolve().parents[2]
    text = (root / "libpaperlab/paperlab/train/README.md").read_text()
    (config,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    path, out = tmp_path / "tiny.json", tmp_path / "out"
    path.write_text(config)
    assert run("--config", path, "--out", out, "--set", "training.steps=20") == 0
    assert read_json(out / "result.json")["steps"] == 20
    assert capsys.readouterr().err == ""
    assert "tiny.json" in text and "train/README.md" in (root / "scripts/train.sh").read_text()
