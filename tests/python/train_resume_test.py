"""`train.fit` that is killed, interrupted or prolonged goes on to the same bits."""

import json
import os
import random
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
from paperlab import data, nn, train
from training_cases import RATE, counting, same_bits

STEPS = cases.KILLED["steps"]

PROGRAM = """
import sys
import torch
import training_cases as cases
from paperlab import train

torch.set_num_threads(1)
train.fit(
    cases.model("float32", seed=int(sys.argv[2])),
    cases.counting,
    out=sys.argv[1],
    on_step=lambda record: print(record.step, flush=True),
    **cases.KILLED,
)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with cases.one_thread():
        yield


def start(package: Path, out: Path, seed: int = 1) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(package), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(out), str(seed)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(run: subprocess.Popen[str], step: int) -> None:
    assert run.stdout is not None
    for line in run.stdout:
        if int(line) >= step:
            return
    pytest.fail(f"ended before step {step}: {run.communicate()}")


def losses_of(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[nn.Decoder, dict[str, list[float]]]:
    model = cases.model("float32")
    history = train.fit(model, counting, **cases.KILLED)
    return model, history


def finish(
    out: Path, uninterrupted: tuple[nn.Decoder, dict[str, list[float]]], seed: int = 7
) -> None:
    """Resumes from other initial values; everything is as without interruption."""
    model = cases.model("float32", seed=seed)
    history = train.fit(model, counting, out=out, **cases.KILLED)
    assert history == uninterrupted[1] and same_bits(model, uninterrupted[0])
    assert losses_of(out) == history["loss"]
    assert not list(out.rglob("*.tmp"))
    assert len(list(out.glob("checkpoint-*"))) <= 2
    newest = max(out.glob("checkpoint-*"))
    assert same_bits(nn.load(newest), model)


def test_killed_at_random_moments(
    uninterrupted: tuple[nn.Decoder, dict[str, list[float]]], tmp_path: Path, package_path: Path
) -> None:
    moments = random.Random(3)
    out = tmp_path / "out"
    for kill in range(4):
        run = start(package_path, out, seed=kill + 1 if kill else 1)
        read_until(run, 13 * kill + moments.randrange(13))
        time.sleep(moments.uniform(0.0, 0.01))
        run.kill()
        run.communicate()
    finish(out, uninterrupted)


def test_killed_while_a_checkpoint_is_written(
    uninterrupted: tuple[nn.Decoder, dict[str, list[float]]], tmp_path: Path, package_path: Path
) -> None:
    hits = 0
    for attempt in range(6):
        out = tmp_path / str(attempt)
        run = start(package_path, out)
        read_until(run, 4 + attempt)
        while run.poll() is None:
            if any(entry.name.endswith(".tmp") for entry in os.scandir(out)):
                break
        run.kill()
        run.communicate()
        hits += bool(list(out.glob("*.tmp")))
        finish(out, uninterrupted)
        if hits == 2:
            return
    assert hits, "no kill met a checkpoint"


def test_a_leftover_of_a_kill_is_removed(tmp_path: Path) -> None:
    history = train.fit(cases.model(), counting, steps=2, learning_rate=RATE, out=tmp_path)
    (tmp_path / "checkpoint-00000099.tmp").mkdir()
    (tmp_path / "checkpoint-00000099.tmp/model.safetensors").write_bytes(b"x")
    (tmp_path / "others.tmp").write_bytes(b"x")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 1.0, "grad')  # of a step after the checkpoint
    model = cases.model(seed=3)
    assert train.fit(model, counting, steps=2, learning_rate=RATE, out=tmp_path) == history
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["others.tmp"]
    assert losses_of(tmp_path) == history["loss"]


def files_of(out: Path) -> dict[str, tuple[int, bytes]]:
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_a_finished_run_does_nothing_and_returns_its_history(tmp_path: Path) -> None:
    def no_data(step: int) -> torch.Tensor:
        raise AssertionError(f"step {step} was asked for")

    options: dict[str, Any] = {"steps": 5, "learning_rate": RATE, "schedule": "cosine"}
    model = cases.model()
    history = train.fit(model, counting, out=tmp_path, **options)
    before = files_of(tmp_path)
    before.pop(str(tmp_path / "lock"))
    again = cases.model(seed=5)
    assert train.fit(again, no_data, out=tmp_path, **options) == history
    assert same_bits(again, model)
    after = files_of(tmp_path)
    after.pop(str(tmp_path / "lock"))
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in before.items()}


OPTIMIZERS: list[dict[str, Any]] = [
    {},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "adafactor"},
    {"precision": "bfloat16"},
]


def test_the_state_of_half_parameters_is_saved(tmp_path: Path) -> None:
    whole, parts = (cases.model("float32").to(torch.float16) for _ in range(2))
    expected = train.fit(whole, counting, steps=4, learning_rate=1e-3, eps=1e-4)
    options: dict[str, Any] = {"learning_rate": 1e-3, "eps": 1e-4, "out": tmp_path}
    train.fit(parts, counting, steps=4, on_step=lambda record: record.step < 1, **options)
    assert train.fit(parts, counting, steps=4, **options) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path, optimizer: dict[str, Any], dtype: str
) -> None:
    if "precision" in optimizer and dtype != "float32":
        pytest.skip("is for float32")
    options: dict[str, Any] = {
        "steps": 9,
        "learning_rate": RATE,
        "schedule": "wsd",
        "warmup_steps": 2,
        "decay_steps": 3,
        "weight_decay": 0.1,
        "no_decay": ["*norm*"],
        "clip_norm": 0.5,
        "accumulate": 2,
        **optimizer,
    }
    whole, parts = cases.model(dtype), cases.model(dtype)
    expected = train.fit(whole, counting, **options)
    for last in (1, 4, 5):
        history = train.fit(
            parts,
            counting,
            out=tmp_path,
            on_step=lambda record, last=last: record.step < last,
            **options,
        )
        assert history["loss"] == expected["loss"][: last + 1]
        parts = cases.model(dtype, seed=last)
    assert train.fit(parts, counting, out=tmp_path, **options) == expected
    assert same_bits(parts, whole)


def test_frozen_and_tied_parameters_resume(tmp_path: Path) -> None:
    def fresh(seed: int) -> nn.Decoder:
        model = cases.model(seed=seed, tie_word_embeddings=True)
        model.get_parameter("model.norm.weight").requires_grad_(False)
        return model

    options: dict[str, Any] = {"steps": 6, "learning_rate": RATE}
    whole = fresh(1)
    expected = train.fit(whole, counting, **options)
    train.fit(fresh(1), counting, out=tmp_path, on_step=lambda r: r.step < 2, **options)
    again = fresh(2)
    assert train.fit(again, counting, out=tmp_path, **options) == expected
    assert same_bits(again, whole)
    with pytest.raises(ValueError, match="frozen parameters as in the run"):
        train.fit(cases.model(tie_word_embeddings=True), counting, out=tmp_path, **options)


def test_a_run_at_a_constant_rate_may_be_prolonged(tmp_path: Path) -> None:
    options: dict[str, Any] = {"learning_rate": RATE, "warmup_steps": 3, "momentum": 0.5}
    whole, parts = cases.model(), cases.model()
    expected = train.fit(whole, counting, steps=8, **options)
    for steps in (2, 5, 8):
        history = train.fit(parts, counting, steps=steps, out=tmp_path, **options)
        assert history == {key: column[:steps] for key, column in expected.items()}
        parts = cases.model(seed=steps) if steps < 8 else parts
    assert same_bits(parts, whole)
    with pytest.raises(ValueError, match="steps of at least the 8"):
        train.fit(cases.model(), counting, steps=7, out=tmp_path, **options)


BASE: dict[str, Any] = {
    "steps": 4,
    "learning_rate": RATE,
    "schedule": "wsd",
    "decay_steps": 2,
    "clip_norm": 1.0,
}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 5),
        ("learning_rate", 0.02),
        ("min_learning_rate", 0.001),
        ("schedule", "cosine"),
        ("warmup_steps", 1),
        ("decay_steps", 1),
        ("optimizer", "sgd"),
        ("betas", (0.9, 0.9)),
        ("eps", 1e-7),
        ("momentum", 0.1),
        ("weight_decay", 0.1),
        ("no_decay", ["*norm*"]),
        ("clip_norm", None),
        ("accumulate", 2),
        ("precision", "bfloat16"),
        ("seed", 1),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, setting: str, value: object) -> None:
    model = cases.model("float32")
    train.fit(model, counting, out=tmp_path, **BASE)
    before = files_of(tmp_path)
    other, untouched = cases.model("float32", seed=2), cases.model("float32", seed=2)
    with pytest.raises(ValueError, match=f"^fit: {setting} as in the run that "):
        train.fit(other, counting, out=tmp_path, **(BASE | {setting: value}))
    assert same_bits(other, untouched)
    after = files_of(tmp_path)
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in before.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}, "num_attention_h"),
        ({"num_key_value_heads": 4}, "a model with num_key_value_heads 2, got 4"),
        ({"num_hidden_layers": 3}, "a model with num_hidden_layers 2, got 3"),
        ({"attention_bias": True}, "lacks the tensors .*bias"),
    ],
)
def test_another_model_is_refused_and_stays(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    train.fit(cases.model(), counting, out=tmp_path, **BASE)
    model, untouched = cases.model(**changes), cases.model(**changes)
    with pytest.raises(ValueError, match=message):
        train.fit(model, counting, out=tmp_path, **BASE)
    assert same_bits(model, untouched)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    train.fit(cases.model("float32"), counting, out=tmp_path, **BASE)
    with pytest.raises(ValueError, match="a model in Float, got Double"):
        train.fit(cases.model("float64"), counting, out=tmp_path, **BASE)


def test_never_begins_anew(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 4, "checkpoint_every": 1, "keep": 9, "out": tmp_path}
    train.fit(cases.model(), counting, learning_rate=1.0, **options)
    options["steps"] = 2
    model, other = cases.model(), cases.model()
    history = train.fit(model, counting, learning_rate=RATE, resume="never", **options)
    assert history == train.fit(other, counting, steps=2, learning_rate=RATE)
    assert losses_of(tmp_path) == history["loss"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:2] == ["checkpoint-00000001", "checkpoint-00000002"] and len(names) == 5


def test_a_second_run_on_the_directory_is_refused(tmp_path: Path, package_path: Path) -> None:
    first = start(package_path, tmp_path)
    try:
        read_until(first, 1)
        begin = time.monotonic()
        for resume in ("auto", "never"):
            with pytest.raises(OSError, match="another run is writing there"):
                train.fit(
                    cases.model("float32"),
                    counting,
                    out=tmp_path,
                    resume=resume,
                    **cases.KILLED,
                )
        assert time.monotonic() - begin < 5
        _, errors = first.communicate(timeout=120)
        assert (first.returncode, errors) == (0, "")
    finally:
        first.kill()
        first.communicate()
    assert len(losses_of(tmp_path)) == STEPS


def test_ctrl_c_writes_a_checkpoint(
    uninterrupted: tuple[nn.Decoder, dict[str, list[float]]], tmp_path: Path, package_path: Path
) -> None:
    run = start(package_path, tmp_path / "out")
    read_until(run, 7)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors and run.returncode not in (0, None)
    done = len(losses_of(tmp_path / "out"))
    names = [path.name for path in (tmp_path / "out").glob("checkpoint-*")]
    assert 8 <= done < STEPS and f"checkpoint-{done:08}" in names
    finish(tmp_path / "out", uninterrupted)


def test_the_handler_of_ctrl_c_is_put_back(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def data(step: int) -> torch.Tensor:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return counting(step)

    with pytest.raises(KeyboardInterrupt):
        train.fit(cases.model(), data, steps=9, learning_rate=RATE, out=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(losses_of(tmp_path)) == 4  # the step is done
    assert (tmp_path / "checkpoint-00000004").is_dir()


def test_ctrl_c_interrupts_on_step(tmp_path: Path) -> None:
    seen: list[int] = []

    def on_step(record: train.StepRecord) -> None:
        if record.step == 3 and not seen:
            signal.raise_signal(signal.SIGINT)
            seen.append(record.step)

    options: dict[str, Any] = {"steps": 6, "learning_rate": RATE, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        train.fit(cases.model(), counting, on_step=on_step, **options)
    assert not seen and (tmp_path / "checkpoint-00000004").is_dir()
    expected = train.fit(cases.model(), counting, steps=6, learning_rate=RATE)
    assert train.fit(cases.model(), counting, **options) == expected


class Stateful:
    """Batches that depend on what was drawn before."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def __call__(self, step: int) -> torch.Tensor:
        assert step == len(self.drawn)
        self.drawn.append(step)
        return counting(100 * len(self.drawn))

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "large": 2**127}

    def load_state(self, state: dict[str, Any]) -> None:
        if state.get("large") != 2**127:
            raise ValueError("no state")
        self.drawn = list(state["drawn"])


def test_the_state_of_the_data_is_in_the_checkpoints(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 7, "learning_rate": RATE}
    whole, again = cases.model(), cases.model(seed=2)
    expected = train.fit(whole, Stateful(), **options)
    options |= {"checkpoint_every": 2, "out": tmp_path}
    train.fit(cases.model(), Stateful(), on_step=lambda record: record.step < 4, **options)
    saved = json.loads((tmp_path / "checkpoint-00000005/training.json").read_text())
    assert json.loads(saved["data"]) == {"drawn": [0, 1, 2, 3, 4], "large": 2**127}
    assert train.fit(again, Stateful(), **options) == expected and same_bits(again, whole)


def test_a_state_that_cannot_be_kept_or_restored(tmp_path: Path) -> None:
    data = Stateful()
    data.drawn.append(object())  # type: ignore[arg-type]
    options: dict[str, Any] = {"learning_rate": RATE, "out": tmp_path}
    with pytest.raises(TypeError, match=r"^fit: data.state\(\) must return JSON values"):
        train.fit(cases.model(), data, steps=2, **options)
    assert not list(tmp_path.iterdir())
    train.fit(cases.model(), Stateful(), steps=2, **options)
    path = tmp_path / "checkpoint-00000002"
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(b"")
    fresh, model = Stateful(), cases.model(seed=3)
    with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
        train.fit(model, fresh, steps=3, **options)
    assert fresh.drawn == []
    (path / "model.safetensors").write_bytes(weights)
    training = json.loads((path / "training.json").read_text())
    for state, message in (
        ("{}", "no state"),
        ({}, "the state of the data as a text"),
        ("x", "Expecting"),
    ):
        (path / "training.json").write_text(json.dumps(training | {"data": state}))
        with pytest.raises(ValueError, match=message):
            train.fit(model, fresh, steps=3, **options)
    assert fresh.drawn == [] and same_bits(model, cases.model(seed=3))


def test_a_sampler_whose_weights_change_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "cache"))
    tokens = data.tokenize("sample")

    def run(last: int, **options: Any) -> list[float]:
        sampler = data.Sampler(tokens, length=16, batch_size=4, weights={"en": 1.0}, seed=1)

        def on_step(record: train.StepRecord) -> bool:
            if record.step == 4:
                sampler.set_weights({"ru": 1.0})
            return record.step < last

        model = cases.model("float32", vocab_size=256)
        history = train.fit(
            model, sampler, steps=12, learning_rate=RATE, on_step=on_step, **options
        )
        return history["loss"]

    expected = run(12)
    run(7, out=tmp_path / "out", checkpoint_every=3)
    assert run(12, out=tmp_path / "out", checkpoint_every=3) == expected


class WrongError(Exception):
    pass


def at_step(step: int) -> Callable[[int], None]:
    def check(now: int) -> None:
        if now == step:
            raise WrongError(f"step {step}")

    return check


@pytest.mark.parametrize("place", ["data", "on_step"])
def test_exceptions_of_callbacks_come_through(tmp_path: Path, place: str) -> None:
    check = at_step(5)

    def data(step: int) -> torch.Tensor:
        if place == "data":
            check(step)
        return counting(step)

    def on_step(record: train.StepRecord) -> None:
        if place == "on_step":
            check(record.step)

    options: dict[str, Any] = {"steps": 8, "learning_rate": RATE, "checkpoint_every": 2}
    with pytest.raises(WrongError, match="step 5"):
        train.fit(cases.model(), data, on_step=on_step, out=tmp_path, **options)
    assert (tmp_path / "checkpoint-00000004").is_dir()
    whole, again = cases.model(), cases.model(seed=2)
    expected = train.fit(whole, counting, **options)
    assert train.fit(again, counting, out=tmp_path, **options) == expected
    assert same_bits(again, whole)


def test_measures_are_numbers(tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match="on_step"):
        train.fit(
            cases.model(),
            counting,
            steps=2,
            learning_rate=RATE,
            out=tmp_path,
            on_step=lambda record: {"x": "many"},  # type: ignore[dict-item]
        )
