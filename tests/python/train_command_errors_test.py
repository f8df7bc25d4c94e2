"""`train`: configs, values and directories that are refused, with errors of one line."""

from pathlib import Path

import pytest
from train_command_cases import Capture, Write, files_of, run

pytestmark = pytest.mark.usefixtures("train_cache", "train_thread")


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
