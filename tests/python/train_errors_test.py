"""What `train.fit` refuses, and what is left when a step or a checkpoint fails."""

import errno
import json
import math
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_cases as cases
from paperlab import nn, train
from training_cases import RATE, VOCABULARY, counting, same_bits


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with cases.one_thread():
        yield


def never(step: int) -> torch.Tensor:
    raise AssertionError("data was asked for")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("steps", -1),
        ("steps", 1.0),
        ("steps", True),
        ("optimizer", "adam"),
        ("optimizer", None),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", "fast"),
        ("betas", (0.9,)),
        ("betas", 0.9),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("eps", -1e-8),
        ("eps", math.nan),
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("no_decay", "*norm*"),
        ("no_decay", [1]),
        ("no_decay", None),
        ("schedule", "linear"),
        ("warmup_steps", -1),
        ("warmup_steps", 0.5),
        ("min_learning_rate", -0.1),
        ("min_learning_rate", 2 * RATE),
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
        ("clip_norm", math.nan),
        ("accumulate", 0),
        ("accumulate", 1.5),
        ("checkpoint_every", 0),
        ("keep", 0),
        ("resume", "maybe"),
        ("resume", True),
        ("seed", -1),
        ("seed", 2**64),
        ("momentum", -0.1),
        ("decay_steps", -1),
        ("out", ""),
        ("out", "a\0b"),
        ("out", 3),
        ("on_step", 3),
        ("precision", "float16"),
        ("precision", 16),
        ("shard_optimizer", "yes"),
        ("shard_optimizer", None),
        ("shard_optimizer", 0),
        ("no_decay", ["*.biassss", "["]),
        ("model", None),
        ("data", None),
    ],
)
def test_bad_arguments_are_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, value: object
) -> None:
    monkeypatch.chdir(tmp_path)
    model, untouched = cases.model(), cases.model()
    arguments: dict[str, Any] = {
        "model": model,
        "data": never,
        "steps": 3,
        "learning_rate": RATE,
        "out": "out",
        argument: value,
    }
    with pytest.raises((ValueError, TypeError), match=rf"^fit: {argument}\b"):
        train.fit(**arguments)
    assert same_bits(model, untouched) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("decay_steps", [0, 3])
def test_wsd_needs_room_for_its_decay(decay_steps: int) -> None:
    with pytest.raises(ValueError, match=r"^fit: decay_steps must be in 1..steps - warmup_steps"):
        train.fit(
            cases.model(),
            never,
            steps=4,
            learning_rate=RATE,
            schedule="wsd",
            warmup_steps=2,
            decay_steps=decay_steps,
        )


def test_something_must_be_trained() -> None:
    model = cases.model()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="parameter that requires a gradient"):
        train.fit(model, never, steps=1, learning_rate=RATE)


def test_a_computed_parameter_is_refused() -> None:
    model = cases.model()
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    torch.nn.utils.parametrizations.weight_norm(layer)
    with pytest.raises(ValueError, match=r"up_proj.weight' must be a leaf"):
        train.fit(model, never, steps=1, learning_rate=RATE)


def id_at(row: int, place: int, token: int) -> torch.Tensor:
    batch = counting(2)
    batch[row, place] = token
    return batch


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (counting(0)[0], r"data\(2\): tokens must be \[B, T\], got \[12\]"),
        (counting(0)[None], r"data\(2\): tokens must be"),
        (counting(0).float(), r"data\(2\): tokens must be integers, got torch.float32"),
        (counting(0).bool(), r"data\(2\): tokens must be integers"),
        (counting(0).numpy().astype(np.float64), r"data\(2\)"),
        ((counting(0), counting(0)), r"data\(2\) must return tokens .* alone .* a tuple of 2"),
        ((counting(0).tolist(), [0]), r"data\(2\) must return tokens .* alone for a decoder, got"),
        ([[1, 2], [3]], r"data\(2\): tokens must be an array, got rows of unequal length"),
        (None, r"data\(2\)"),
        ("text", r"data\(2\)"),
        (counting(0)[:0], r"data\(2\) must return \[B, T \+ 1\] with B, T >= 1, got \[0, 12\]"),
        (counting(0)[:, :1], r"data\(2\) must return \[B, T \+ 1\] with B, T >= 1, got \[4, 1\]"),
        (counting(0, length=33), r"data\(2\) must return at most .* \(33\) tokens a row, got 34"),
        (id_at(0, 0, VOCABULARY), r"data\(2\) must return tokens in 0..vocab_size - 1 .*got 61"),
        (id_at(3, 11, VOCABULARY), r"data\(2\) must return tokens in 0.*got 61"),
        (id_at(3, 11, -100), r"data\(2\) must return tokens in 0.*got -100"),
        (id_at(1, 4, -1), r"data\(2\) must return tokens in 0.*got -1"),
        (counting(0, rows=3), r"accumulate must divide the batch's rows \(3\), got 2"),
    ],
)
def test_bad_batches_are_named_and_change_nothing(tmp_path: Path, batch: Any, message: str) -> None:
    options: dict[str, Any] = {"learning_rate": RATE, "accumulate": 2}
    model, two_steps = cases.model(), cases.model()
    train.fit(two_steps, counting, steps=2, **options)
    with pytest.raises((ValueError, TypeError), match=f"^fit: {message}"):
        train.fit(
            model, lambda s: batch if s == 2 else counting(s), steps=4, out=tmp_path, **options
        )
    assert same_bits(model, two_steps)
    assert all(p.grad is None for p in model.parameters())


def spoil(model: nn.Decoder, name: str, value: float) -> None:
    with torch.no_grad():
        model.get_parameter(name)[0] = value


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_the_tensor(
    tmp_path: Path, value: float, accumulate: int
) -> None:
    model, good = cases.model(), cases.model()
    options: dict[str, Any] = {"learning_rate": RATE, "accumulate": accumulate}
    train.fit(good, counting, steps=3, **options)
    name = "model.layers.1.mlp.up_proj.weight"

    def data(step: int) -> torch.Tensor:
        if step == 3:
            spoil(model, name, value)
        return counting(step)

    with pytest.raises(
        ValueError, match=rf"^fit: step 3: the loss must be finite.*'{name}' is the"
    ):
        train.fit(model, data, steps=6, checkpoint_every=2, out=tmp_path, **options)
    spoil(good, name, value)
    for (key, x), (_, y) in zip(model.named_parameters(), good.named_parameters(), strict=True):
        assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), key
        assert x.grad is None
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000002"]
    whole, again = cases.model(), cases.model(seed=3)
    expected = train.fit(whole, counting, steps=6, **options)
    options |= {"checkpoint_every": 2, "out": tmp_path}
    assert train.fit(again, counting, steps=6, **options) == expected and same_bits(again, whole)


def test_an_overflow_between_the_layers_is_named() -> None:
    model = cases.model("float32")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1e38)
        model.get_parameter("model.layers.1.mlp.gate_proj.weight").mul_(1e38)
    untouched = cases.values(model)
    with pytest.raises(
        ValueError, match=r"step 0: the loss .* the input of 'model.layers.1.mlp.down_proj' is the"
    ):
        train.fit(model, counting, steps=1, learning_rate=RATE)
    assert all(torch.equal(untouched[n], p) for n, p in model.named_parameters())


class Infinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * math.inf


def test_gradients_that_are_not_finite_are_named() -> None:
    model = cases.model()
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    model.replace_linear(
        "model.layers.1.mlp.down_proj", lambda x: Infinite.apply(x @ weight.detach().T)
    )
    before = cases.values(model)
    with pytest.raises(ValueError, match=r"step 0: gradients must be finite; that of 'model\."):
        train.fit(model, counting, steps=1, learning_rate=RATE, clip_norm=1.0)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) and value.grad is None


def test_gradients_are_freed_after_an_exception_within_a_step() -> None:
    model = cases.model()
    weight = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    calls: list[int] = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:  # the second part of the second step
            raise LookupError("gone")
        return x @ weight.T

    model.replace_linear("model.layers.0.mlp.down_proj", layer)
    with pytest.raises(LookupError, match="gone"):
        train.fit(model, counting, steps=3, learning_rate=RATE, accumulate=2)
    assert all(p.grad is None for p in model.parameters())


def few_tokens(step: int) -> torch.Tensor:
    return counting(step) % 8  # the others' rows of the embedding have no gradient


# 0 / 0 in the rows without a gradient; a rate that float32 does not hold.
@pytest.mark.parametrize(
    ("data", "last", "options"),
    [
        (few_tokens, 0, {"eps": 0.0, "learning_rate": RATE}),
        (
            counting,
            3,
            {
                "optimizer": "sgd",
                "learning_rate": 1e39,
                "schedule": "wsd",
                "warmup_steps": 3,
                "decay_steps": 1,
            },
        ),
    ],
    ids=["eps", "rate"],
)
def test_parameters_that_are_not_finite_are_no_checkpoint(
    tmp_path: Path, data: Any, last: int, options: dict[str, Any]
) -> None:
    model = cases.model("float32")
    message = rf"^fit: step {last}: parameters must be finite; 'model.embed_tokens.weight' is the"
    if "optimizer" in options:
        message = r"^fit: step \d: (parameters|the loss|gradients) must be finite"
    with pytest.raises(ValueError, match=message):
        train.fit(model, data, steps=9, out=tmp_path / "out", checkpoint_every=1, **options)
    for path in (tmp_path / "out").glob("checkpoint-*"):
        assert all(value.isfinite().all() for value in nn.load(path).parameters())
    with pytest.raises(ValueError, match="must be finite"):
        train.fit(cases.model("float32"), data, steps=1 if last == 0 else 9, **options)


def test_a_bad_end_keeps_the_good_checkpoints(tmp_path: Path) -> None:
    model = cases.model("float32")

    def on_step(record: train.StepRecord) -> None:
        if record.step == 4:
            spoil(model, "model.embed_tokens.weight", math.inf)

    options: dict[str, Any] = {"learning_rate": RATE, "out": tmp_path, "checkpoint_every": 1}
    with pytest.raises(ValueError, match=r"^fit: step 4: parameters must be finite; 'model.embed"):
        train.fit(model, counting, steps=9, keep=1, on_step=on_step, **options)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000004"]
    again = train.fit(cases.model("float32"), counting, steps=9, keep=1, **options)
    assert again == train.fit(cases.model("float32"), counting, steps=9, learning_rate=RATE)


def contents(out: Path) -> dict[str, bytes]:
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_refused_first_batch_changes_nothing(tmp_path: Path, resume: str) -> None:
    old, new = tmp_path / "old", tmp_path / "a/b/new"
    if resume == "never":
        train.fit(cases.model(), counting, steps=2, learning_rate=RATE, out=old)
    before = contents(tmp_path)
    for out in (old, new):
        for options in ({"accumulate": 3}, {}):
            with pytest.raises(ValueError, match=r"^fit: "):
                train.fit(
                    cases.model(),
                    counting if options else lambda step: counting(step) - 100,
                    steps=2,
                    learning_rate=RATE,
                    out=out,
                    resume=resume,
                    **options,
                )
    assert contents(tmp_path) == before and not (tmp_path / "a").exists()
    assert old.exists() == bool(before)


@pytest.mark.parametrize("content", ["precious\n", "precious", '{"step": 1}\n', "\n"])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_metrics_of_something_else_are_not_overwritten(
    tmp_path: Path, content: str, resume: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"metrics.jsonl: a record of step 0, got"):
        train.fit(cases.model(), never, steps=1, learning_rate=RATE, out=tmp_path, resume=resume)
    assert path.read_text() == content and [path.name for path in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", ["", '{"grad_norm": 1.0, "lea'])
def test_a_run_that_was_killed_in_its_first_line_begins_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    history = train.fit(cases.model(), counting, steps=2, learning_rate=RATE, out=tmp_path)
    assert history == train.fit(cases.model(), counting, steps=2, learning_rate=RATE)


def test_inference_mode_is_refused(tmp_path: Path) -> None:
    model = cases.model()
    with torch.inference_mode():
        with pytest.raises(ValueError, match=r"^fit: model must be trained outside of inference"):
            train.fit(model, never, steps=1, learning_rate=RATE, out=tmp_path / "out")
        other = cases.model()
    with pytest.raises(
        ValueError, match=r"^fit: model must be made outside of inference.*tensor '"
    ):
        train.fit(other, never, steps=1, learning_rate=RATE, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())

    def data(step: int) -> torch.Tensor:
        with torch.inference_mode():
            return counting(step)

    wanted = train.fit(cases.model(), counting, steps=2, learning_rate=RATE)
    assert train.fit(model, data, steps=2, learning_rate=RATE) == wanted


def test_patterns_of_other_architectures_may_match_nothing() -> None:
    options: dict[str, Any] = {"steps": 2, "learning_rate": RATE, "weight_decay": 0.1}
    one, other = cases.model(), cases.model()
    train.fit(one, counting, no_decay=["*norm*", "*.bias"], **options)
    train.fit(other, counting, no_decay=["*norm*"], **options)
    assert same_bits(one, other)


def test_settings_are_stored_by_name(tmp_path: Path) -> None:
    train.fit(
        cases.model(),
        counting,
        steps=1,
        learning_rate=RATE,
        out=tmp_path,
        schedule="cosine",
        optimizer="adafactor",
    )
    saved = json.loads((tmp_path / "checkpoint-00000001/training.json").read_text())
    assert saved["settings"]["schedule"] == "cosine"
    assert saved["settings"]["optimizer"] == "adafactor" and "data" not in saved


def run_limited(model: nn.Decoder, out: Path, num_bytes: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def on_step(record: train.StepRecord) -> None:
        if record.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))

    try:
        train.fit(
            model,
            counting,
            steps=6,
            learning_rate=RATE,
            checkpoint_every=2,
            out=out,
            on_step=on_step,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# Either the weights do not fit, or they do and the optimizer's state, twice as much, does not.
@pytest.mark.parametrize("share", [0.5, 1.5])
def test_a_file_that_cannot_grow_leaves_the_last_checkpoint(tmp_path: Path, share: float) -> None:
    model = cases.model()
    size = 8 * sum(value.numel() for value in model.parameters())
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        run_limited(model, tmp_path, int(size * share))
    assert caught.value.errno == errno.EFBIG
    assert_resumable(tmp_path, 2)


def assert_resumable(out: Path, step: int) -> None:
    names = [path.name for path in out.glob("checkpoint-*")]
    assert names == [f"checkpoint-{step:08}"]
    whole, again = cases.model(), cases.model(seed=4)
    options: dict[str, Any] = {"steps": 6, "learning_rate": RATE}
    expected = train.fit(whole, counting, **options)
    assert train.fit(again, counting, checkpoint_every=2, out=out, **options) == expected
    assert same_bits(again, whole)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == expected["loss"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(small_disk: Path) -> None:
    def on_step(record: train.StepRecord) -> None:
        if record.step == 3:
            room = shutil.disk_usage(small_disk).free
            (small_disk / "ballast").write_bytes(b"x" * (room - 20_000))

    out = small_disk / "out"
    options: dict[str, Any] = {"steps": 6, "learning_rate": RATE, "checkpoint_every": 2}
    with pytest.raises(OSError, match="No space left on device") as caught:
        train.fit(cases.model(), counting, out=out, on_step=on_step, **options)
    assert caught.value.errno == errno.ENOSPC
    (small_disk / "ballast").unlink()
    assert_resumable(out, 2)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file") as caught:
            train.fit(cases.model(), never, steps=1, learning_rate=RATE, out=out)
        assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", b'{"step": 0}\n{"step": 1}\n', r"metrics.jsonl: a record of step 0"),
        ("metrics.jsonl", b"", r"metrics.jsonl: 2 lines, got 0"),
        ("metrics.jsonl", None, r"metrics.jsonl: 2 lines, got 0"),
        ("checkpoint-00000002/training.json", b"{", r"training.json: line 1: "),
        ("checkpoint-00000002/training.json", b"{}", r"accumulate as in the run"),
        (
            "checkpoint-00000002/training.json",
            b"[]",
            r"training.json: an object of step 2, got \[\]",
        ),
        (
            "checkpoint-00000002/training.json",
            b'{"step": 1}',
            r"training.json: an object of step 2",
        ),
        ("checkpoint-00000002/training.json", b'{"settings": 3}', r"accumulate as in the run"),
        ("checkpoint-00000002/training.json", None, r"training.json: No such file"),
        ("checkpoint-00000002/optimizer.safetensors", b"", r"optimizer.safetensors"),
        ("checkpoint-00000002/optimizer.safetensors", None, r"optimizer.safetensors"),
        ("checkpoint-00000002/model.safetensors", b"", r"model.safetensors"),
    ],
)
def test_a_damaged_run_is_refused_and_the_model_stays(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    train.fit(cases.model(), counting, steps=2, learning_rate=RATE, out=tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    model, untouched = cases.model(seed=2), cases.model(seed=2)
    with pytest.raises((OSError, ValueError), match=message):
        train.fit(model, never, steps=3, learning_rate=RATE, out=tmp_path)
    assert same_bits(model, untouched)
