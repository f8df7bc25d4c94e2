"""paperlab.regular_language.train against the definition and the sentences of its contract."""

import inspect
import math
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import one_layer
import pytest
import torch
from paperlab import _core
from paperlab.regular_language import train

METHODS = ["two_class", "strings", "fold"]
OPTIMIZERS = ["gd", "heavy_ball", "normalized_gd", "adam", "sign_gd"]
TASKS = {
    "even_pairs": ({"task": "even_pairs", "max_length": 4}, one_layer.even_pairs(4)),
    "parity_cot": (
        {"task": "parity_cot", "max_length": 4, "base_length": 3},
        one_layer.parity_cot(3),
    ),
}


def test_the_signature_is_the_contract():
    parameters = inspect.signature(train).parameters.values()
    positional = {
        p.name: p.default for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }
    assert list(positional.items()) == [
        ("task", "even_pairs"),
        ("max_length", 6),
        ("base_length", 4),
        ("learning_rate", 0.1),
        ("attention_scale", 2.0),
        ("boost_steps", 100),
        ("num_steps", 2000),
        ("method", "two_class"),
        ("optimizer", "gd"),
        ("init_std", 0.0),
        ("seed", 0),
        ("record", None),
    ]
    assert all(p.default is not inspect.Parameter.empty for p in parameters)


def test_results_are_numpy_arrays_over_the_records():
    result = train()
    assert set(result) == {"step", "loss", "accuracy", "u", "w_norm", "u_norm", "w"}
    assert result["step"].dtype == np.int64 and result["step"].tolist() == [0, 100, 600, 1000, 2000]
    for key in ("loss", "accuracy", "w_norm", "u_norm"):
        assert result[key].shape == (5,) and result[key].dtype == np.float64
    assert result["u"].shape == (5, 12) and result["u"].dtype == np.float64
    assert result["w"].shape == (12, 12) and result["w"].dtype == np.float64


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(0, [0]), (99, [0]), (100, [0, 100]), (1999, [0, 100, 600, 1000])],
)
def test_the_default_record_is_what_num_steps_reaches(num_steps, expected):
    assert train(num_steps=num_steps)["step"].tolist() == expected


@pytest.mark.parametrize("method", METHODS)
def test_record_t_is_the_state_after_t_updates_and_w_the_last(method):
    long = train(method=method, num_steps=7, record=[3])
    short = train(method=method, num_steps=3, record=[3])
    for key in ("loss", "accuracy", "u", "w_norm", "u_norm"):
        np.testing.assert_array_equal(long[key], short[key])
    end = train(method=method, num_steps=7, record=[7])
    np.testing.assert_array_equal(long["w"], end["w"])
    assert end["w_norm"][0] == pytest.approx(np.linalg.norm(end["w"]), rel=1e-14)
    assert end["u_norm"][0] == pytest.approx(np.linalg.norm(end["u"]), rel=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["even_pairs", "parity_cot"])
def test_without_steps_the_state_is_zero(task, method):
    result = train(task=task, method=method, num_steps=0)
    terms = {"even_pairs": 6, "parity_cot": 6}[task]  # 6 lengths; 3 steps and 3 lengths
    assert result["loss"][0] == pytest.approx(terms * math.log(2.0), rel=1e-14)
    assert result["accuracy"][0] == 0.0  # y T > 0, strictly
    assert not result["u"].any() and not result["w"].any()


def test_an_empty_record_is_allowed():
    result = train(num_steps=3, record=[])
    assert result["step"].shape == (0,) and result["u"].shape == (0, 12)
    np.testing.assert_array_equal(result["w"], train(num_steps=3)["w"])


class Reference:
    """Gradient descent by the definition, from the library's initial state."""

    def __init__(self, optimizer, u, w):
        self.optimizer = optimizer
        self.x = np.concatenate([u, w.ravel()])
        self.width = u.size
        self.first = np.zeros_like(self.x)
        self.second = np.zeros_like(self.x)
        self.count = 0

    def parts(self):
        return self.x[: self.width], self.x[self.width :].reshape(self.width, self.width)

    def direction(self, g):
        self.count += 1
        if self.optimizer == "heavy_ball":
            self.first = 0.9 * self.first + g
            return self.first
        if self.optimizer == "normalized_gd":
            return g / np.linalg.norm(g)
        if self.optimizer == "sign_gd":
            return np.sign(g)
        if self.optimizer == "adam":
            self.first = 0.9 * self.first + 0.1 * g
            self.second = 0.999 * self.second + 0.001 * g * g
            mean = self.first / (1.0 - 0.9**self.count)
            return mean / (np.sqrt(self.second / (1.0 - 0.999**self.count)) + 1e-8)
        return g

    def step(self, data, scale, rate, boost):
        _, _, grad_u, grad_w = one_layer.objective(*self.parts(), data, scale)
        rates = np.full(self.x.size, rate)
        rates[self.width :] *= boost
        self.x = self.x - rates * self.direction(np.concatenate([grad_u, grad_w.ravel()]))


def check_against_reference(settings, data, optimizer, num_steps=5, boost_steps=2):
    scale = settings.get("attention_scale", 2.0)
    settings = {**settings, "optimizer": optimizer, "boost_steps": boost_steps}
    result = train(**settings, num_steps=num_steps, record=range(num_steps + 1))
    start = train(**settings, num_steps=0)
    reference = Reference(optimizer, start["u"][0], start["w"])
    for t in range(num_steps + 1):
        u, w = reference.parts()
        loss, accuracy, _, _ = one_layer.objective(u, w, data, scale)
        assert result["loss"][t] == pytest.approx(loss, rel=1e-12)
        if settings["method"] != "two_class":  # there scores that are 0 in exact arithmetic are
            assert result["accuracy"][t] == accuracy
        np.testing.assert_allclose(result["u"][t], u, rtol=0, atol=1e-12)
        if t < num_steps:
            reference.step(data, scale, 0.1, scale if t < boost_steps else 1.0)
    np.testing.assert_allclose(result["w"], reference.parts()[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["strings", "fold"])
@pytest.mark.parametrize("task", TASKS)
def test_steps_from_a_random_state_follow_the_definition(task, method, optimizer):
    settings, data = TASKS[task]
    settings = {**settings, "method": method, "init_std": 0.7, "seed": 2**63 + 5}
    check_against_reference(settings, data, optimizer)


@pytest.mark.parametrize("attention_scale", [0.25, 2.0, 7.5])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_steps_from_zero_follow_the_definition(task, method, attention_scale):
    settings, data = TASKS[task]
    settings = {**settings, "method": method, "attention_scale": attention_scale}
    check_against_reference(settings, data, "gd")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("task", "num_strings"), [("even_pairs", 126), ("parity_cot", 62)])
def test_accuracy_counts_every_training_string_once(task, num_strings, method):
    result = train(task=task, method=method, num_steps=300, record=range(0, 301, 10))
    counts = result["accuracy"] * num_strings
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-10)
    assert counts[0] == 0.0 and counts[-1] == num_strings
    assert result["accuracy"][-1] == 1.0


def test_accuracy_is_exact_at_the_longest_length():
    result = train(max_length=4096, num_steps=2, record=[0, 1, 2])
    assert result["w"] is None
    assert result["accuracy"][0] == 0.0
    # After an update half of each length (its positive or its negative strings) is right.
    assert 0.0 < result["accuracy"][1] <= 1.0
    assert result["u"].shape == (3, 8192) and np.isfinite(result["loss"]).all()


def test_w_is_none_above_max_length_512():
    assert train(max_length=512, num_steps=1)["w"].shape == (1024, 1024)
    assert train(max_length=513, num_steps=1)["w"] is None


@pytest.mark.parametrize("method", METHODS)
def test_base_length_is_read_by_parity_cot_only(method):
    expected = train(method=method, num_steps=5)["loss"]
    for base_length in (-3, 0, 100, 2**70):
        result = train(base_length=base_length, method=method, num_steps=5)
        np.testing.assert_array_equal(result["loss"], expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_shortest_chain_has_two_tokens(method):
    settings = {"task": "parity_cot", "max_length": 2, "base_length": 2, "method": method}
    check_against_reference(settings, one_layer.parity_cot(2), "gd")


def test_the_draw_is_the_same_for_every_method_and_scales_with_init_std():
    settings = {"max_length": 3, "seed": 11, "num_steps": 0}
    strings = train(**settings, method="strings", init_std=0.5)
    fold = train(**settings, method="fold", init_std=0.5)
    double = train(**settings, method="fold", init_std=1.0)
    for key in ("u", "w"):
        np.testing.assert_array_equal(strings[key], fold[key])
        np.testing.assert_array_equal(2.0 * fold[key], double[key])
        assert np.unique(fold[key]).size == fold[key].size


def test_the_draw_is_standard_normal():
    result = train(method="fold", max_length=20, init_std=3.0, num_steps=0, record=[])
    w = result["w"].ravel() / 3.0
    assert abs(w.mean()) < 4 / math.sqrt(w.size)
    assert abs(w.var() - 1) < 4 * math.sqrt(2 / w.size)


def test_every_bit_of_the_seed_counts():
    seeds = [0, 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63, 2**64 - 1]
    draws = {
        train(method="fold", max_length=1, init_std=1.0, num_steps=0, seed=seed)["u"].tobytes()
        for seed in seeds
    }
    assert len(draws) == len(seeds)


@pytest.mark.parametrize(
    "record",
    [
        (0, 2, 5),
        np.array([0, 2, 5]),
        np.array([0, 9, 2, 9, 5, 9], dtype=np.uint8)[::2],
        torch.tensor([0, 2, 5]),
        [np.int32(0), torch.tensor(2), np.array(5)],
    ],
)
def test_record_may_be_any_sequence_of_integers(record):
    assert train(num_steps=5, record=record)["step"].tolist() == [0, 2, 5]


def test_numbers_may_be_numpy_or_torch_scalars():
    plain = train(max_length=3, num_steps=4, learning_rate=0.5)
    other = train(
        max_length=np.int8(3),
        num_steps=torch.tensor(4),
        learning_rate=np.float64(0.5),
        seed=np.uint64(2**64 - 1),
        attention_scale=np.array(2),
        init_std=0,
    )
    np.testing.assert_array_equal(plain["w"], other["w"])


BAD = [
    ("task", {"task": "parity"}, "'even_pairs', 'parity_cot'"),
    ("task", {"task": None}, "str"),
    ("method", {"method": "folds"}, "'two_class', 'strings', 'fold'"),
    ("optimizer", {"optimizer": "sgd"}, "'gd'"),
    ("embedding", {"embedding": "random", "method": "fold"}, "'orthonormal'"),
    ("max_length", {"max_length": 0}, "0"),
    ("max_length", {"max_length": 4097}, "4097"),
    ("max_length", {"max_length": 21, "method": "strings"}, "1..20"),
    ("max_length", {"max_length": 25, "method": "fold"}, "1..24"),
    ("max_length", {"max_length": 2**40}, str(2**40)),
    ("max_length", {"max_length": True}, "bool"),
    ("max_length", {"max_length": 6.0}, "float"),
    ("max_length", {"max_length": "6"}, "str"),
    ("max_length", {"max_length": None}, "None"),
    ("max_length", {"max_length": np.array([6, 6])}, "int64"),
    ("max_length", {"task": "parity_cot", "max_length": 7}, "2 * base_length - 2 = 6"),
    ("base_length", {"task": "parity_cot", "base_length": 1, "max_length": 6}, "1"),
    ("base_length", {"task": "parity_cot", "base_length": 2.0, "max_length": 2}, "float"),
    (
        "base_length",
        {"task": "parity_cot", "base_length": 17, "max_length": 32, "method": "fold"},
        "17",
    ),
    ("learning_rate", {"learning_rate": math.nan}, "nan"),
    ("learning_rate", {"learning_rate": math.inf}, "inf"),
    ("learning_rate", {"learning_rate": 0.0}, "> 0"),
    ("learning_rate", {"learning_rate": -0.1}, "-0.1"),
    ("learning_rate", {"learning_rate": "fast"}, "str"),
    ("learning_rate", {"learning_rate": True}, "bool"),
    ("learning_rate", {"learning_rate": 0.1j}, "complex"),
    ("learning_rate", {"learning_rate": 10**400}, "finite"),
    ("attention_scale", {"attention_scale": 0}, "> 0"),
    ("attention_scale", {"attention_scale": -math.inf}, "finite"),
    ("boost_steps", {"boost_steps": -1}, "-1"),
    ("boost_steps", {"boost_steps": 1.5}, "float"),
    ("num_steps", {"num_steps": -1}, "-1"),
    ("num_steps", {"num_steps": 2**63}, str(2**63)),
    ("num_steps", {"num_steps": math.nan}, "float"),
    ("init_std", {"init_std": -1.0, "method": "fold"}, "-1"),
    ("init_std", {"init_std": math.nan, "method": "fold"}, "nan"),
    ("init_std", {"init_std": 0.1}, "two_class"),
    ("seed", {"seed": -1}, "-1"),
    ("seed", {"seed": 2**64}, str(2**64)),
    ("seed", {"seed": 0.0}, "float"),
    ("record", {"record": [0, 0]}, "strictly increasing"),
    ("record", {"record": [5, 3]}, "3"),
    ("record", {"record": [-1]}, "-1"),
    ("record", {"record": [2001]}, "2001"),
    ("record", {"record": [0.5]}, "float"),
    ("record", {"record": [True]}, "bool"),
    ("record", {"record": 5}, "int"),
    ("record", {"record": "012"}, "str"),
    ("record", {"record": np.array(5)}, "sequence"),
    ("record", {"record": np.array([[0, 1]])}, "integer"),
    ("boost", {"boost": 0.0}, "> 0"),
    ("freeze_attention_from", {"freeze_attention_from": -1}, "-1"),
    ("regularizer_length", {"task": "parity_cot", "method": "fold", "regularizer_length": 7}, "7"),
    ("uniform_weights", {"uniform_weights": 1}, "bool"),
    ("embedding_dim", {"embedding": "gaussian", "method": "fold"}, "None"),
    ("task", {"task": "\udcff"}, r"'\udcff'"),
    ("task", {"task": "even\npairs"}, r"'even\npairs'"),
    ("device", {"device": "tpu", "method": "fold"}, "'cpu', 'cuda'"),
    ("device", {"device": "cuda", "method": "two_class"}, "fold"),
    ("seed", {"seed": torch.tensor(1, device="meta")}, "int64"),
]


@pytest.mark.parametrize(("argument", "settings", "part"), BAD)
def test_bad_arguments_are_value_errors_that_name_them(argument, settings, part):
    with pytest.raises(ValueError, match=rf"^train: .*\b{argument}\b") as caught:
        train(**settings)
    assert part in str(caught.value)


def test_a_diverging_run_is_a_value_error():
    with pytest.raises(ValueError, match="train: learning_rate"):
        train(learning_rate=1e308, num_steps=50)


def test_attention_can_be_frozen():
    result = train(method="fold", num_steps=20, record=[5, 20], freeze_attention_from=5)
    assert result["w_norm"][0] == result["w_norm"][1] > 0
    assert result["u_norm"][0] < result["u_norm"][1]


def test_boost_replaces_attention_scale():
    settings = {"method": "fold", "num_steps": 20, "attention_scale": 3.0}
    plain = train(**settings)["w"]
    np.testing.assert_array_equal(plain, train(**settings, boost=3.0)["w"])
    assert np.abs(plain - train(**settings, boost=1.0)["w"]).max() > 1e-3


def test_the_regularizer_can_be_left_out():
    result = train("parity_cot", method="fold", num_steps=0, regularizer_length=0)
    assert result["loss"][0] == pytest.approx(3 * math.log(2.0))


@pytest.mark.parametrize(
    "controls",
    [
        {"uniform_weights": True},
        {"embedding": "gaussian", "embedding_dim": 40},
        {"embedding": "token_position"},
    ],
)
def test_controls_run_and_keep_the_shapes(controls):
    result = train(method="strings", num_steps=3, **controls)
    assert result["u"].shape == (1, 12) and result["w"].shape == (12, 12)
    assert np.isfinite(result["loss"]).all()


BITS = """
import hashlib, paperlab
from paperlab.regular_language import train
assert paperlab.get_num_threads() == int({threads})
digest = hashlib.sha256()
for settings in (
    dict(method="fold", max_length=15),
    dict(method="strings", max_length=13),
    dict(task="parity_cot", method="fold", base_length=12, max_length=22),
    dict(method="two_class", max_length=40),
):
    init_std = 0.0 if settings["method"] == "two_class" else 0.3
    result = train(**settings, num_steps=3, record=[0, 1, 3], init_std=init_std)
    for key in sorted(result):
        digest.update(result[key].tobytes())
print(digest.hexdigest())
"""


def test_the_bits_do_not_depend_on_the_number_of_threads(run_python):
    runs = [
        run_python(BITS.format(threads=n), env={"PAPERLAB_NUM_THREADS": n}) for n in ("1", "2", "3")
    ]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert len({run.stdout for run in runs}) == 1


def test_the_bits_do_not_depend_on_the_instruction_set():
    detected = _core.detected_cpu_isa()
    names = ["generic", "avx2", "avx512"]
    try:
        results = []
        for isa in names[: names.index(detected) + 1]:
            _core.set_cpu_isa(isa)
            results.append(train(method="fold", init_std=0.5, num_steps=10)["w"].tobytes())
    finally:
        _core.set_cpu_isa("auto")
    assert len(set(results)) == 1


INTERRUPTED = """
from paperlab.regular_language import train
print("started", flush=True)
try:
    train(method="fold", max_length=16, num_steps=10**12)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_training(package_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        env={**os.environ, "PYTHONPATH": str(package_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "started\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
        assert output == "interrupted\n" and process.returncode == 0
    finally:
        process.kill()


def test_other_threads_run_during_a_training():
    started, ended = threading.Event(), threading.Event()

    def work():
        started.set()
        train(max_length=300, num_steps=100)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    turns = 0
    while not ended.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 5
