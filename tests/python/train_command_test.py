"""`train`: a config to a Hugging Face directory; resumption, exit codes, errors of one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training_cases as cases
from paperlab import data, nn
from paperlab import eval as evaluation
from paperlab._commands import evaluate, train
from train_fit_test import scalars_of

Capture = pytest.CaptureFixture[str]

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
CONFIG: dict[str, Any] = {
    "model": {"config": MODEL, "seed": 3},
    "data": {"recipe": "sample", "domains": ["en", "c"], "length": 24, "separator": 0},
    "training": {
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 0.003,
        "schedule": "cosine",
        "warmup_steps": 2,
        "clip_norm": 1.0,
        "weight_decay": 0.1,
        "no_decay": ["*norm*"],
        "checkpoint_every": 2,
    },
    "eval": {"every": 3, "documents": 1, "prompt": "The", "sample_tokens": 5},
}


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with cases.one_thread():
        yield


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(section={...}): a file with CONFIG's sections changed key by key; None removes one."""

    def write(**changes: dict[str, Any] | str | None) -> str:
        config = json.loads(json.dumps(CONFIG))
        for section, values in changes.items():
            if isinstance(values, dict):
                config[section] = config.get(section, {}) | values
                config[section] = {k: v for k, v in config[section].items() if v != "absent"}
            elif values is None:
                del config[section]
            else:
                config[section] = values
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        return str(path)

    return write


def run(*arguments: object) -> int:
    try:
        return train.main([str(argument) for argument in arguments])
    except SystemExit as leave:
        return int(str(leave.code))


def start(package: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "paperlab", "train", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(package), "PAPERLAB_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


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


def files_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_finished_run_does_nothing(
    write: Write, tmp_path: Path, package_path: Path, capsys: Capture
) -> None:
    path, out = write(), tmp_path / "out"
    assert run("--config", path, "--out", out) == 0
    before = files_of(out)
    begin = os.times()
    again = start(package_path, "--config", path, "--out", out)
    text, errors = again.communicate(timeout=60)
    end = os.times()  # others may keep the machine busy
    assert sum(end[2:4]) - sum(begin[2:4]) < 5
    assert (again.returncode, errors) == (0, "") and text.startswith(f"{out} is complete: 6 steps")
    assert files_of(out) == before


RESULTS = ("result.json", "run.json", "evaluations.jsonl", "metrics.jsonl", "model/README.md")


def assert_same_results(one: Path, other: Path) -> None:
    for name in (*RESULTS, "model/model.safetensors", "model/tokenizer.json"):
        mine, theirs = (out / name for out in (one, other))
        assert mine.read_bytes() == theirs.read_bytes(), name


def test_killed_and_interrupted_runs_end_the_same(
    write: Write, tmp_path: Path, package_path: Path
) -> None:
    path = write(training={"steps": 400, "checkpoint_every": 7}, eval={"every": 50})
    whole, parts = tmp_path / "whole/out", tmp_path / "parts/out"
    assert start(package_path, "--config", path, "--out", whole).wait(timeout=120) == 0
    for number, lines in ((signal.SIGKILL, 20), (signal.SIGINT, 120), (signal.SIGKILL, 250)):
        work = start(package_path, "--config", path, "--out", parts)
        while work.poll() is None:
            metrics = parts / "metrics.jsonl"
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.002)
        work.send_signal(number)
        _, errors = work.communicate(timeout=60)
        assert work.returncode == (130 if number == signal.SIGINT else -number)
        assert errors == "" and not (parts / "result.json").exists()
    assert start(package_path, "--config", path, "--out", parts).wait(timeout=120) == 0
    assert_same_results(parts, whole)
    assert not list(parts.rglob("*.tmp"))


def test_never_begins_anew(write: Write, tmp_path: Path) -> None:
    one, other = tmp_path / "one/out", tmp_path / "other/out"
    assert run("--config", write(model={"seed": 9}), "--out", one) == 0
    assert run("--config", write(), "--out", one, "--resume", "never") == 0
    assert run("--config", write(), "--out", other) == 0
    assert_same_results(one, other)


def test_a_run_at_a_constant_rate_is_prolonged(write: Write, tmp_path: Path) -> None:
    options = {"schedule": "constant"}
    one, other = tmp_path / "one/out", tmp_path / "other/out"
    for steps in (2, 6):
        assert run("--config", write(training={**options, "steps": steps}), "--out", one) == 0
    assert run("--config", write(training={**options, "steps": 6}), "--out", other) == 0
    for name in ("metrics.jsonl", "model/model.safetensors", "result.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"model": {},\n}', ": line 3: "),
        ("", ": line 1: "),
        ('{"model": {},\n "model": {}}', ": line 2: the key 'model' comes twice"),
        (
            '{"model": {"\\u0061": 1, "b": [{"a": 1}],\n"a": 2}}',
            ": line 2: the key 'a' comes twice",
        ),
        ('{"NaN": 1,\n\n"licence": NaN}', ": line 3: NaN is no JSON value"),
        ('{"licence": -Infinity}', ": line 1: -Infinity is no JSON value"),
        ("\n" + "[" * 100_000, ": line 2: nested more than 64 deep"),
        ("\n1" + "0" * 5000, ": line 2: a number of 5001 digits"),
        ("\ufeff{}", ": line 1: "),
        ("[]", ": must be an object, got []"),
        ('{"modle": {}}', ": unknown key 'modle'; did you mean 'model'?"),
        ('{"model": {"frm": "x"}}', ": model: unknown key 'frm'; did you mean 'from'?"),
        ('{"model": 3}', ": model must be an object, got 3"),
        ("{}", ": data.length must be given"),
    ],
)
def test_malformed_configs(tmp_path: Path, capsys: Capture, text: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    assert run("--config", path, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"paperlab train: {path}{message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.stpes=3", "training: unknown key 'stpes'; did you mean 'steps'?"),
        ("training.steps=many", 'training.steps must be a whole number >= 0, got "many"'),
        ("training.steps=true", "training.steps must be a whole number >= 0, got true"),
        ("training.batch_size=0", "training.batch_size must be a whole number >= 1, got 0"),
        ("training.learning_rate=-1", "training.learning_rate must be finite and > 0"),
        ("training.optimizer=adam", "training.optimizer must be one of adamw, sgd, adafactor"),
        ("training.betas=[1]", "training.betas must be two numbers, got [1]"),
        ("training.accumulate=3", "training.accumulate must divide the batch's rows (4), got 3"),
        ("training.no_decay=x", "training.no_decay must be a list of texts"),
        ("model.from=x", "model needs either from or config"),
        ("model.config.hidden_size=15", "model.config: setting 'hidden_size'"),
        ("model.config.hiden_size=16", "model.config: setting 'hiden_size'"),
        ('data.files=["x"]', "data needs either recipe or files"),
        ("data.tokenizer=model", "data.tokenizer 'model' goes with model.from"),
        ("data.length=65", "data.length 65 is more than the model's 64 positions"),
        ("eval.tokens=5", "eval.documents and eval.tokens exclude each other"),
        ("data.separator=257", "data.separator must be None or in 0..256, got 257"),
        ("data.separator=</s>", "data.separator must be None or in 0..256, got '</s>'"),
        ('data.weights={"en":1,"xx":1}', "data.weights: unknown domain 'xx'; there are en, c"),
        ('data.weights={"en":0}', "data.weights: a finite sum > 0, got"),
        ('data.weights={"en":-1}', "data.weights['en'] must be >= 0, got -1"),
        ('data.domains=["en","dee"]', "data.domains: unknown domain of sample 'dee'; did you mean"),
        ("data.recipe=samlpe", "data.recipe: unknown recipe 'samlpe'; did you mean 'sample'?"),
        ('eval.domains=["de"]', "eval.domains: de: the data have no such domain"),
        ("eval.prompt=" + "x" * 64, "eval.prompt must have 1..63 tokens, got 64"),
        ("training.seed=18446744073709551616", "training.seed must be a whole number <= 184467"),
        ("training.batch_size=9007199254740993", "training.batch_size must be a whole number <="),
        ("training.batch_size=1099511627776", "training.steps times training.batch_size must be"),
        ('training.no_decay=["x"]', "training.no_decay must match the name of a parameter, got"),
        ("model.seed=18446744073709551616", "model.seed must be a whole number <= 1844674407"),
        ("model.config.vocab_size=99", "model.config.vocab_size: vocabulary mismatch: the data"),
        ('eval.files=["x"]', "eval.files goes with data.files"),
        ("licence=3", "licence must be a text, got 3"),
    ],
)
def test_errors_of_values(
    write: Write, tmp_path: Path, capsys: Capture, setting: str, message: str
) -> None:
    path = write()
    assert run("--config", path, "--out", tmp_path / "out", "--set", setting) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"paperlab train: {path}: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("data.tokenizer=nothing.json", 1, "nothing.json"),
        ("training", 2, "--set needs KEY=VALUE, got 'training'"),
        ("licence.x=1", 2, "--set licence.x: licence is no object"),
    ],
)
def test_errors_of_the_surroundings(
    write: Write, tmp_path: Path, capsys: Capture, setting: str, code: int, message: str
) -> None:
    path = write(licence="own")
    assert run("--config", path, "--out", tmp_path / "out", "--set", setting) == code
    error = capsys.readouterr().err
    assert error.startswith("paperlab train: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out/run.json").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.batch_size=8", "training.batch_size 4, here it is 8"),
        ("training.steps=7", "training.steps 6, here it is 7"),
        ("model.seed=4", "model.seed 3, here it is 4"),
        ("model.config.initializer_range=0.1", "model.config.initializer_range null, here it is"),
        ("data.length=32", "data.length 24, here it is 32"),
    ],
)
def test_another_config_does_not_go_on(
    write: Write, tmp_path: Path, capsys: Capture, setting: str, message: str
) -> None:
    path, out = write(), tmp_path / "out"
    assert run("--config", path, "--out", out) == 0
    before = files_of(out)
    capsys.readouterr()
    assert run("--config", path, "--out", out, "--set", setting) == 2
    assert f"'{out}' holds a run with {message}" in capsys.readouterr().err
    assert files_of(out) == before
    assert run("--config", path, "--out", out, "--set", "eval.documents=2") == 0


def test_a_refused_config_does_not_block_the_corrected_one(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "new/out"
    assert run("--config", write(training={"betas": [1, 2]}), "--out", out) == 2
    assert run("--config", write(training={"accumulate": 3}), "--out", out) == 2
    assert not out.parent.exists()
    assert run("--config", write(), "--out", out) == 0


def test_a_run_without_a_step_counts_as_absent(write: Write, tmp_path: Path) -> None:
    one, other = tmp_path / "one/out", tmp_path / "other/out"
    for out, seed in ((one, 3), (other, 9)):
        assert run("--config", write(model={"seed": seed}), "--out", out) == 0
    for name in ("metrics.jsonl", "result.json"):
        (other / name).write_text("" if name == "metrics.jsonl" else '{"schema": 1, "config": {}}')
    for path in other.glob("checkpoint-*"):
        shutil.rmtree(path)
    assert run("--config", write(), "--out", other) == 0
    assert_same_results(one, other)


def test_the_directory_is_taken_until_all_is_written(
    write: Write, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(eval={"every": None}), tmp_path / "out"
    codes: list[int] = []

    def and_again(module: Any, name: str) -> None:
        original = getattr(module, name)

        def function(*arguments: Any, **options: Any) -> Any:
            for resume in ("auto", "never"):
                codes.append(run("--config", path, "--out", out, "--resume", resume))
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, function)

    and_again(train.evaluation, "score")  # the final one of two domains: every is null
    assert run("--config", path, "--out", out) == 0
    assert codes == [1] * 4
    and_again(train._train_card, "card")
    assert run("--config", path, "--out", out, "--set", "licence=mine") == 0
    assert codes == [1] * 6
    assert capsys.readouterr().err.count("another run is writing there") == 6


def interrupted_in(
    name: str, write: Write, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[str]]:
    """The exit code of a run that gets Ctrl-C in its measurement after step 3; its checkpoints."""
    original = getattr(evaluation, name)
    calls: list[int] = []

    def function(*arguments: Any, on_window: Any, **options: Any) -> Any:
        calls.append(1)

        def after_window(count: int) -> Any:
            if len(calls) == 1 and count > 24:
                signal.raise_signal(signal.SIGINT)
            return on_window(count)

        return original(*arguments, on_window=after_window, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, name, function)
        code = run("--config", write(training={"checkpoint_every": 10}), "--out", out)
    assert len(calls) == 1
    return code, [path.name for path in out.glob("checkpoint-*")]


def test_ctrl_c_in_a_measurement(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one/out", tmp_path / "other/out"
    code, checkpoints = interrupted_in("score", write, one, monkeypatch)
    assert (code, checkpoints) == (130, ["checkpoint-00000003"])
    assert not (one / "evaluations.jsonl").exists()
    path = write(training={"checkpoint_every": 10})
    assert run("--config", path, "--out", one) == 0
    assert run("--config", path, "--out", other) == 0
    assert_same_results(one, other)


def test_ctrl_c_while_torch_is_imported(package_path: Path) -> None:
    for verb in ("train", "data"):
        process = subprocess.Popen(
            [sys.executable, "-m", "paperlab", verb, "--help"],
            env={**os.environ, "PYTHONPATH": str(package_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        maps = Path(f"/proc/{process.pid}/maps")
        while "libc10" not in maps.read_text():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        text, errors = process.communicate(timeout=60)
        assert (process.returncode, text, errors) == (130, "", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"steps": 3}\n', "line 1: not a measurement"),
        (b'{"steps": 0, "domains": {}}\nx\n', "line 2: not a measurement"),
        (b"[]\n", "line 1: not a measurement"),
        (b"\xff\n", "line 1: not a measurement"),
        (b'{"steps": 0, "domains": {}}\n{"steps": 3, "dom', None),
        (b"", None),
    ],
)
def test_damaged_evaluations(
    write: Write, tmp_path: Path, capsys: Capture, text: bytes, message: str | None
) -> None:
    path, out = write(training={"schedule": "constant"}), tmp_path / "out"
    assert run("--config", path, "--out", out) == 0
    (out / "evaluations.jsonl").write_bytes(text)
    before = files_of(out)
    capsys.readouterr()
    code = run("--config", path, "--out", out, "--set", "training.steps=7")
    error = capsys.readouterr().err
    if message is None:
        assert (code, error) == (0, "")
    else:
        assert code == 1 and error.count("\n") == 1
        assert f"'{out / 'evaluations.jsonl'}': {message}" in error and files_of(out) == before


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("text", ["{}", "[]", '{"schema": 1}', '{"schema": 1, "config": 3}', "{"])
def test_files_of_wrong_content(
    write: Write, tmp_path: Path, capsys: Capture, name: str, text: str
) -> None:
    path, out = write(), tmp_path / "out"
    assert run("--config", path, "--out", out) == 0
    (out / name).write_text(text)
    capsys.readouterr()
    assert run("--config", path, "--out", out, "--set", "training.keep=3") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"paperlab train: '{out / name}': ") and error.count("\n") == 1


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


def test_two_runs_on_one_directory(write: Write, tmp_path: Path, package_path: Path) -> None:
    path, out = write(training={"steps": 100000}, eval=None), tmp_path / "out"
    first = start(package_path, "--config", path, "--out", out)
    try:
        while not (out / "run.json").exists():  # with the first step
            assert first.poll() is None
            time.sleep(0.01)
        before = (out / "run.json").read_bytes()
        for words in ([], ["--resume", "never", "--set", "model.seed=8"]):
            second = start(package_path, "--config", path, "--out", out, *words)
            _, errors = second.communicate(timeout=60)
            assert second.returncode == 1 and errors.count("\n") == 1
            assert "another run is writing there" in errors
        assert first.poll() is None and (out / "run.json").read_bytes() == before
    finally:
        first.kill()
        first.communicate()


def test_a_result_of_a_newer_version_is_refused(
    write: Write, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "result.json").write_text('{"schema": 99}')
    assert run("--config", write(), "--out", tmp_path) == 2
    assert "newer version" in capsys.readouterr().err
    assert (tmp_path / "result.json").read_text() == '{"schema": 99}'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --config"),
        (["--confg=x"], "unknown option '--confg'; did you mean '--config'?"),
        (["--config=nowhere.json"], "'nowhere.json': No such file or directory"),
        (["--config=x", "--resume=nver"], "unknown value of --resume 'nver'; did you mean"),
        (["config.json"], "takes no argument, got 'config.json'"),
    ],
)
def test_errors_of_the_command_line(
    arguments: list[str], message: str, capsys: Capture, tmp_path: Path
) -> None:
    assert run(*arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("paperlab train: ") and error.count("\n") == 1
