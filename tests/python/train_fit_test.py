"""`train.fit` against torch.optim in a plain loop, and what it writes."""

import io
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training_cases as cases
from paperlab import nn, train
from training_cases import RATE, counting, same_bits, values

STEPS = 12

# A sum of n doubles in another order is off by up to n eps of its terms; Adam's quotients of
# gradients keep that relative error until an element of a gradient is itself rounding, which the
# decoders here do not have.
TOLERANCE = 1e-12


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with cases.one_thread():
        yield


def assert_as_torch(
    options: dict[str, Any], learning_rates: list[float] | None = None, **settings: Any
) -> None:
    model = cases.model(**settings)
    chosen = {k: v for k, v in options.items() if k in ("optimizer", "weight_decay", "no_decay")}
    chosen |= {k: v for k, v in options.items() if k in ("clip_norm", "momentum", "betas", "eps")}
    rates = [RATE] * STEPS if learning_rates is None else learning_rates
    wanted, expected = cases.by_torch(model, counting, rates, **chosen)
    history = train.fit(model, counting, steps=STEPS, learning_rate=RATE, **options)
    assert list(history) == ["loss", "grad_norm", "learning_rate"]
    for key, column in history.items():
        assert column == pytest.approx(expected[key], rel=TOLERANCE, abs=0), key
    for name, value in values(model).items():
        torch.testing.assert_close(
            value, wanted.get_parameter(name).detach(), rtol=0, atol=TOLERANCE, msg=name
        )


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_betas": {"betas": (0.7, 0.8), "eps": 1e-3},
    "sgd": {"optimizer": "sgd"},
    "sgd_momentum": {"optimizer": "sgd", "momentum": 0.9},
    "adafactor": {"optimizer": "adafactor"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "no_decay": ["*norm*", "model.layers.1.mlp.*"]},
        {"clip_norm": 0.05},
        {"clip_norm": 1e6, "weight_decay": 0.1, "no_decay": ("*",)},
    ],
    ids=["plain", "decay", "groups", "clipped", "nothing_decays"],
)
def test_optimizers_are_those_of_torch(name: str, rest: dict[str, Any]) -> None:
    assert_as_torch(OPTIMIZERS[name] | rest)


@pytest.mark.parametrize("warmup", [0, 1, 5, STEPS, 2 * STEPS])
@pytest.mark.parametrize("least", [0.0, 0.004])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_learning_rates_are_as_documented(schedule: str, least: float, warmup: int) -> None:
    decay = max(1, (STEPS - warmup) // 2) if schedule == "wsd" else 0
    if warmup + decay > STEPS and schedule == "wsd":
        pytest.skip("no room for the decay, which is refused")
    rates = cases.rates(schedule, STEPS, warmup, least, decay)
    options = {"schedule": schedule, "warmup_steps": warmup, "min_learning_rate": least}
    model = cases.model()
    history = train.fit(
        model, counting, steps=STEPS, learning_rate=RATE, decay_steps=decay, **options
    )
    # The last rates of a cosine are differences of numbers near one.
    assert history["learning_rate"] == pytest.approx(rates, rel=4e-16, abs=4e-16 * RATE)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_schedules_reach_the_optimizer(name: str, schedule: str) -> None:
    rates = cases.rates(schedule, STEPS, 4, 1e-3, 5)
    options = {"schedule": schedule, "warmup_steps": 4, "min_learning_rate": 1e-3}
    options |= {"decay_steps": 5} if schedule == "wsd" else {}
    assert_as_torch(OPTIMIZERS[name] | options | {"weight_decay": 0.1}, rates)


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {
            "model_type": "gpt_neox",
            "architectures": ["GPTNeoXForCausalLM"],
            "hidden_size": 32,
            "rotary_pct": 0.5,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ],
    ids=["tied", "biases", "neox"],
)
def test_other_models(settings: dict[str, Any]) -> None:
    # No AdamW: the gradient of a key's bias may be rounding alone.
    options = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1}
    assert_as_torch(options | {"no_decay": ["*bias", "*norm*"]}, **settings)


def test_frozen_parameters_stay_and_keep_their_gradients() -> None:
    model = cases.model()
    for name, value in model.named_parameters():
        value.requires_grad_("layers.0" not in name)
    frozen = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    frozen.grad = torch.ones_like(frozen)
    before = values(model)
    wanted, expected = cases.by_torch(model, counting, [RATE] * STEPS)
    history = train.fit(model, counting, steps=STEPS, learning_rate=RATE)
    assert history["grad_norm"] == pytest.approx(expected["grad_norm"], rel=TOLERANCE)
    for name, value in model.named_parameters():
        torch.testing.assert_close(
            value, wanted.get_parameter(name), rtol=0, atol=TOLERANCE, msg=name
        )
        assert torch.equal(value, before[name]) == ("layers.0" in name), name
    assert frozen.grad is not None and torch.equal(frozen.grad, torch.ones_like(frozen))


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_are_the_whole_batch_to_rounding(parts: int) -> None:
    whole, divided = cases.model(), cases.model()
    options: dict[str, Any] = {"steps": STEPS, "learning_rate": RATE, "clip_norm": 0.5}
    expected = train.fit(whole, counting, **options)
    history = train.fit(divided, counting, accumulate=parts, **options)
    for key, column in history.items():
        assert column == pytest.approx(expected[key], rel=TOLERANCE, abs=0), key
    for name, value in values(divided).items():
        torch.testing.assert_close(value, values(whole)[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_learn(dtype: str) -> None:
    model = cases.model(dtype)
    history = train.fit(model, counting, steps=60, learning_rate=RATE, clip_norm=1.0)
    assert all(p.dtype == getattr(torch, dtype) for p in model.parameters())
    assert history["loss"][-1] < history["loss"][0] - 1.0


def test_bfloat16_computes_and_float32_is_kept() -> None:
    model, half = cases.model("float32"), cases.model("float32").to(torch.bfloat16)
    before = values(model)
    batch = counting(0)
    loss = torch.nn.functional.cross_entropy(
        half(batch[:, :-1]).flatten(0, 1).float(), batch[:, 1:].flatten()
    )
    loss.backward()
    rate = 1e-4  # whose changes bfloat16 would round away
    options: dict[str, Any] = {"optimizer": "sgd", "precision": "bfloat16"}
    history = train.fit(model, counting, steps=1, learning_rate=rate, **options)
    # The head's products may be summed in float32 here and be rounded to bfloat16 there.
    assert history["loss"] == pytest.approx([loss.item()], rel=2**-7)
    for name, value in model.named_parameters():
        assert value.dtype == torch.float32 and value.grad is None and value.is_leaf
        gradient = half.get_parameter(name).grad
        assert gradient is not None
        moved = (before[name] - value.detach()) / rate
        error = (moved - gradient.float()).norm() / gradient.float().norm()
        assert error < 2**-4, name
    assert not torch.equal(values(model)["lm_head.weight"], before["lm_head.weight"])


def test_bfloat16_with_float32_parameters_learns_as_float32_does() -> None:
    histories = [
        train.fit(cases.model("float32"), counting, steps=60, learning_rate=RATE, precision=kind)
        for kind in (None, "bfloat16")
    ]
    assert histories[1]["loss"] == pytest.approx(histories[0]["loss"], abs=0.15)


def test_bfloat16_needs_float32() -> None:
    with pytest.raises(ValueError, match="precision bfloat16 needs parameters in float32, got Do"):
        train.fit(cases.model(), counting, steps=1, learning_rate=RATE, precision="bfloat16")


def test_float32_follows_float64() -> None:
    """20 steps keep the loss within 1e-4: rounding of 6e-8 grows no faster than that."""
    histories = [
        train.fit(cases.model(dtype), counting, steps=20, learning_rate=RATE)["loss"]
        for dtype in ("float32", "float64")
    ]
    assert histories[0] == pytest.approx(histories[1], abs=1e-4)


def test_the_same_bits_from_run_to_run(tmp_path: Path) -> None:
    models, histories = [], []
    for name in ("a", "b"):
        models.append(cases.model("float32"))
        options: dict[str, Any] = {"out": tmp_path / name} if name == "b" else {}
        histories.append(
            train.fit(
                models[-1], counting, steps=STEPS, learning_rate=RATE, clip_norm=0.5, **options
            )
        )
    assert histories[0] == histories[1] and same_bits(*models)


def test_no_step_returns_nothing_and_changes_nothing(tmp_path: Path) -> None:
    model, untouched = cases.model(), cases.model()
    history = train.fit(model, counting, steps=0, learning_rate=RATE, out=tmp_path / "out")
    assert history == {"loss": [], "grad_norm": [], "learning_rate": []}
    assert same_bits(model, untouched)


def test_gradients_are_cleared_and_grad_mode_does_not_matter() -> None:
    model, other = cases.model(), cases.model()
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    with torch.no_grad():
        history = train.fit(model, counting, steps=3, learning_rate=RATE)
    assert history == train.fit(other, counting, steps=3, learning_rate=RATE)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_batches_may_be_arrays_and_views() -> None:
    def arrays(step: int) -> Any:
        return counting(step).numpy().astype(">i4")

    def views(step: int) -> torch.Tensor:
        return counting(step).T.contiguous().T.to(torch.uint8)

    wanted = train.fit(cases.model(), counting, steps=3, learning_rate=RATE)
    for data in (arrays, views):
        assert train.fit(cases.model(), data, steps=3, learning_rate=RATE) == wanted


def test_metrics_have_a_line_a_step_that_is_there_at_once(tmp_path: Path) -> None:
    seen: list[int] = []
    records: list[train.StepRecord] = []

    def on_step(record: train.StepRecord) -> None:
        records.append(record)
        seen.append(len((tmp_path / "metrics.jsonl").read_bytes().split(b"\n")) - 1)

    history = train.fit(
        cases.model("float32"),
        counting,
        steps=STEPS,
        learning_rate=RATE,
        out=tmp_path,
        on_step=on_step,
    )
    assert seen == list(range(1, STEPS + 1))
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert text.endswith("\n") and [line["step"] for line in lines] == list(range(STEPS))
    assert [record.step for record in records] == list(range(STEPS))
    for key, column in history.items():
        assert [line[key] for line in lines] == column  # the same doubles
        assert [getattr(record, key) for record in records] == column


def steps_of(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [10]),
        ({"checkpoint_every": 5}, [5, 10]),
        ({"checkpoint_every": 3}, [9, 10]),
        ({"checkpoint_every": 3, "keep": 1}, [10]),
        ({"checkpoint_every": 3, "keep": 9}, [3, 6, 9, 10]),
        ({"checkpoint_every": 99}, [10]),
    ],
)
def test_the_newest_checkpoints_are_kept(
    tmp_path: Path, options: dict[str, int], wanted: list[int]
) -> None:
    train.fit(cases.model(), counting, steps=10, learning_rate=RATE, out=tmp_path, **options)
    assert steps_of(tmp_path) == wanted
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_is_a_hugging_face_directory(tmp_path: Path, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model = cases.model("float32", tie_word_embeddings=tied)
    train.fit(model, counting, steps=4, learning_rate=RATE, out=tmp_path)
    (path,) = tmp_path.glob("checkpoint-*")
    assert same_bits(nn.load(path), model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    batch = counting(9)[:, :-1]
    with torch.no_grad():
        # float32, two layers of sums of at most 40 terms
        torch.testing.assert_close(theirs(batch).logits, model(batch), rtol=1e-4, atol=1e-4)


def test_a_loaded_model_keeps_its_file_and_its_tokenizer(tmp_path: Path) -> None:
    source = tmp_path / "source"
    cases.model("float32").save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    before = (source / "model.safetensors").read_bytes()
    train.fit(nn.load(source), counting, steps=2, learning_rate=RATE, out=tmp_path / "out")
    assert (source / "model.safetensors").read_bytes() == before
    (path,) = (tmp_path / "out").glob("checkpoint-*")
    assert (path / "tokenizer.json").read_text() == "{}"


# The file for TensorBoard, read by the formats' definitions.


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records_of(path: Path) -> list[bytes]:
    records, data = [], io.BytesIO(path.read_bytes())
    while head := data.read(12):
        size, check = struct.unpack("<QI", head)
        assert check == masked(head[:8])
        records.append(data.read(size))
        assert struct.unpack("<I", data.read(4))[0] == masked(records[-1])
    return records


def varint(data: io.BytesIO) -> int:
    value, shift = 0, 0
    while True:
        byte = data.read(1)[0]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def fields(message: bytes) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    data = io.BytesIO(message)
    while data.tell() < len(message):
        key = varint(data)
        kind = key & 7
        if kind == 0:
            value: Any = varint(data)
        elif kind == 2:
            value = data.read(varint(data))
        else:
            value = struct.unpack("<d" if kind == 1 else "<f", data.read(8 if kind == 1 else 4))[0]
        found.setdefault(key >> 3, []).append(value)
    return found


def scalars_of(path: Path) -> tuple[list[tuple[int, str, float]], list[int]]:
    """(step, tag, value) of all scalars, and the steps of restarts."""
    events = [fields(record) for record in records_of(path)]
    assert events[0][3] == [b"brain.Event:2"]
    assert all(abs(event[1][0] - path.stat().st_mtime) < 600 for event in events)
    scalars, restarts = [], []
    for event in events[1:]:
        if 7 in event:
            assert fields(event[7][0]) == {1: [1]}
            restarts += event[2]
        for value in fields(event[5][0])[1] if 5 in event else []:
            parts = fields(value)
            scalars.append((event[2][0], parts[1][0].decode(), parts[2][0]))
    return scalars, restarts


def as_float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def test_the_event_file_holds_the_history_and_measures(tmp_path: Path) -> None:
    def on_step(record: train.StepRecord) -> dict[str, float] | None:
        return {"valid/de": record.step / 3} if record.step % 2 else None

    history = train.fit(
        cases.model(), counting, steps=5, learning_rate=RATE, out=tmp_path, on_step=on_step
    )
    (path,) = tmp_path.glob("events.out.tfevents.*")
    wanted = []
    for step in range(5):
        wanted += [(step, key, as_float32(column[step])) for key, column in history.items()]
        wanted += [(step, "valid/de", as_float32(step / 3))] if step % 2 else []
    assert scalars_of(path) == (wanted, [])


def test_a_resumed_run_goes_on_in_a_new_event_file(tmp_path: Path) -> None:
    def run(steps: int) -> None:
        train.fit(cases.model(), counting, steps=steps, learning_rate=RATE, out=tmp_path)

    run(2)
    run(2)  # does nothing
    run(4)
    first, second = sorted(tmp_path.glob("events.out.tfevents.*"))
    assert {step for step, _, _ in scalars_of(first)[0]} == {0, 1}
    assert {step for step, _, _ in scalars_of(second)[0]} == {2, 3}
    assert scalars_of(second)[1] == [2]
    train.fit(cases.model(), counting, steps=1, learning_rate=RATE, out=tmp_path, resume="never")
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert {step for step, _, _ in scalars_of(path)[0]} == {0}


def test_the_reader_of_event_files_is_right() -> None:
    # The check value of CRC-32C, and a record of the format's own documentation: an empty one.
    assert crc32c(b"123456789") == 0xE3069283
    assert masked(b"") == 0xA282EAD8
    summary = b"\x0a\x09" + b"\x0a\x02ab" + b"\x15" + struct.pack("<f", 0.5)
    event = b"\x09" + struct.pack("<d", 7.0) + b"\x10\xac\x02" + b"\x2a\x0b" + summary
    assert fields(event) == {1: [7.0], 2: [300], 5: [summary]}
    assert fields(fields(summary)[1][0]) == {1: [b"ab"], 2: [0.5]}


@pytest.mark.parametrize("place", [0, 8, 12, -1])
def test_a_changed_byte_of_an_event_file_is_seen(tmp_path: Path, place: int) -> None:
    train.fit(cases.model(), counting, steps=2, learning_rate=RATE, out=tmp_path)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert len(records_of(path)) == 3  # the version, two steps
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(AssertionError):
        records_of(path)


def test_the_loss_is_the_mean_over_all_tokens() -> None:
    model = cases.model()
    history = train.fit(model, counting, steps=1, learning_rate=1e-12)
    logits = cases.model()(counting(0)[:, :-1]).log_softmax(-1)
    picked = logits.gather(-1, counting(0)[:, 1:, None])
    assert history["loss"] == pytest.approx([-picked.mean().item()], rel=TOLERANCE)
    assert history["loss"][0] == pytest.approx(math.log(cases.VOCABULARY), rel=0.2)
