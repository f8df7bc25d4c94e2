"""paperlab.mudd.complexity and reallocated_ffn_dims: the paper's counts, and exact ones."""

import math

import numpy as np
import pytest
import torch
from paperlab.mudd import complexity, reallocated_ffn_dims

KEYS = [
    "eta",
    "rho",
    "param_ratio",
    "flop_ratio",
    "sum_hidden",
    "sum_hidden_squared",
    "extra_params",
    "base_params",
    "extra_flops",
    "base_flops",
    "generator_params",
    "generator_params_released",
]


# Layers, width; parameters and FLOPs in percent, as Table 1 prints them, eta and rho. T = 4096.
@pytest.mark.parametrize(
    ("layers", "width", "params", "flops", "eta", "rho"),
    [
        (24, 2048, "0.22", "0.38", "0.0132", "2"),
        (42, 1536, "0.49", "0.8", "0.0293", "2.67"),
        (32, 2560, "0.23", "0.4", "0.0137", "1.6"),
        (32, 4096, "0.14", "0.26", "0.0085", "1"),
    ],
)
def test_the_ratios_are_those_of_table_1(layers, width, params, flops, eta, rho):
    def printed(value: float, like: str) -> str:
        return f"{value:.{len(like.partition('.')[2])}f}"

    got = complexity(layers, width, 4096)
    assert printed(100 * got["param_ratio"], params) == params
    assert printed(100 * got["flop_ratio"], flops) == flops
    assert printed(got["eta"], eta) == eta
    assert printed(got["rho"], rho) == rho


@pytest.mark.parametrize("layers", [1, 2, 7, 24, 34])
def test_counts_are_sums_over_the_blocks(layers):
    width, length = 96, 40
    got = complexity(layers, width, length)
    assert list(got) == KEYS
    hidden = [4 * (i + 1) for i in range(1, layers + 1)]
    assert got["sum_hidden"] == sum(hidden) == 2 * layers * (layers + 3)
    assert got["sum_hidden_squared"] == sum(k * k for k in hidden)
    assert got["extra_params"] == sum(width * k + k * k for k in hidden)
    assert got["base_params"] == 12 * layers * width**2
    assert got["extra_flops"] == sum(length * (4 * width * k + 2 * k * k) for k in hidden)
    assert got["base_flops"] == 2 * layers * width * length * (12 * width + length)
    assert got["generator_params"] == sum(width * k + k * k + k for k in hidden)

    def rounded(k: int) -> int:
        return (k // 64 + 1) * 64

    released = sum(rounded(4 * j) * (width + 4 * j) + 4 * j for j in range(2, layers + 1))
    last = layers + 1
    released += rounded(4 * last) * (width + last) + last
    assert got["generator_params_released"] == released
    assert all(isinstance(got[key], int) for key in KEYS[4:])
    assert all(isinstance(got[key], float) for key in KEYS[:4])


@pytest.mark.parametrize(
    ("layers", "width", "paper", "released"),
    [
        (24, 1024, 1_416_784, 2_355_269),
        (32, 2560, 5_937_088, 8_775_709),
        (32, 4096, 9_377_728, 13_887_517),
    ],
)
def test_generators_of_the_released_shapes(layers, width, paper, released):
    got = complexity(layers, width, 2048)
    assert (got["generator_params"], got["generator_params_released"]) == (paper, released)


# Table 6: DenseFormer adds 2 L B T D, MUDD 6 B T D more, to 2 L B T D + B T D (34 + 6 N T / D).
def test_memory_ratios():
    got = complexity(24, 1024, 2048, 16)
    assert list(got) == [*KEYS, "memory_ratio_denseformer", "memory_ratio_mudd"]
    base = 2 * 24 + 34 + 6 * 16 * 2048 / 1024
    assert math.isclose(got["memory_ratio_denseformer"], 2 * 24 / base, rel_tol=1e-15)
    assert math.isclose(got["memory_ratio_mudd"], (2 * 24 + 6) / base, rel_tol=1e-15)
    assert complexity(24, 1024, 2048, num_heads=16) == got


def test_counts_are_exact_beyond_float64():
    got = complexity(101, 10_007, 1_000_003)
    assert got["base_flops"] == 2 * 101 * 10_007 * 1_000_003 * (12 * 10_007 + 1_000_003)
    assert got["base_flops"] > 2**53


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 8, 8), "num_layers"),
        ((10_001, 8, 8), "num_layers"),
        ((8, 0, 8), "d_model"),
        ((8, 8, -1), "seq_len"),
        ((8, 8, 8, 0), "num_heads"),
        ((2.0, 8, 8), "num_layers"),
        ((8, True, 8), "d_model"),
        ((8, 8, "8"), "seq_len"),
        ((8, 8, 8, 1.5), "num_heads"),
        ((10_000, 2**31 - 1, 2**31 - 1), "2^63"),
    ],
)
def test_complexity_names_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=rf"complexity: .*{name}".replace("^", r"\^")):
        complexity(*arguments)


@pytest.mark.parametrize(
    ("d_ff", "layers"), [(2816, 24), (6912, 32), (8192, 24), (10240, 32), (4096, 42), (333, 5)]
)
def test_widths_are_those_of_the_published_rule(d_ff, layers):
    got = reallocated_ffn_dims(d_ff, layers)
    assert got == [round(d_ff * (i / (layers - 1) + 0.5) / 128) * 128 for i in range(layers)]
    if d_ff in {2816, 6912, 8192, 10240}:
        assert sum(got) == layers * d_ff


def test_widths_of_small_models():
    assert reallocated_ffn_dims(256, 4) == [128, 256, 256, 384]
    assert reallocated_ffn_dims(172, 3) == [128, 128, 256]
    assert reallocated_ffn_dims(5, 2, round_to=1) == [2, 8]  # 2.5 and 7.5
    assert reallocated_ffn_dims(2816, 1) == [2816]
    assert reallocated_ffn_dims(np.int32(200), torch.tensor(1), 8) == [200]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 4), "d_ff"),
        ((128, 4), "d_ff"),  # 64 goes to 0
        ((64, 1), "d_ff"),
        ((256, 0), "num_layers"),
        ((256, 4, 0), "round_to"),
        ((256.0, 4), "d_ff"),
        ((256, None), "num_layers"),
    ],
)
def test_widths_name_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=rf"reallocated_ffn_dims: {name}"):
        reallocated_ffn_dims(*arguments)
