"""What connections through depth cost, by counting."""

from paperlab import _arguments, _core

_LARGEST = 2**31 - 1
_MAX_LAYERS = 10_000


def complexity(
    num_layers: int, d_model: int, seq_len: int, num_heads: int | None = None
) -> dict[str, int | float]:
    """Returns what multiway dynamic dense connections add to L blocks of width D on T tokens.

    num_layers, d_model, seq_len: L, D, T. num_heads: N, for the ratios of memory.

    With K_i = 4 (i + 1), the hidden size of the generator after block i = 1..L:
    - eta = (L + 3) / D, rho = T / D, param_ratio = eta / 6, flop_ratio = eta / (3 + rho / 4);
    - sum_hidden, sum_hidden_squared: of K_i and of K_i^2;
    - extra_params = sum of D K_i + K_i^2, base_params = 12 L D^2;
    - extra_flops = sum of T (4 D K_i + 2 K_i^2), base_flops = 2 L D T (12 D + T);
    - generator_params: extra_params and the static weights, four ways after every block;
      generator_params_released: with the hidden sizes of the released models, which are rounded up
      to more than K_i, and R alone after the last block;
    - with num_heads, peak activations over those of Transformer++: memory_ratio_denseformer =
      L / (L + 17 + 3 N T / D), memory_ratio_mudd = (L + 3) / (L + 17 + 3 N T / D).

    Counts are exact integers. ValueError if an argument is below 1, or a count is 2^63 or more.
    Source: arXiv:2502.12170, Appendix C (Eqs. 13-16), Tables 1 and 6.
    """
    name = "complexity"
    return _core.mudd_complexity(
        _arguments.integer(name, "num_layers", num_layers, 1, _MAX_LAYERS),
        _arguments.integer(name, "d_model", d_model, 1, _LARGEST),
        _arguments.integer(name, "seq_len", seq_len, 1, _LARGEST),
        None
        if num_heads is None
        else _arguments.integer(name, "num_heads", num_heads, 1, _LARGEST),
    )


def reallocated_ffn_dims(d_ff: int, num_layers: int, round_to: int = 128) -> list[int]:
    """Returns the FFN widths of blocks l = 0..L-1, from d_ff / 2 to 3 d_ff / 2 (Eq. 9).

    round(d_ff (l / (L - 1) + 1/2) / round_to) round_to, halves to even; for L = 1 the factor is 1.
    ValueError if an argument is below 1, or a width rounds to 0.
    """
    name = "reallocated_ffn_dims"
    return _core.reallocated_ffn_dims(
        _arguments.integer(name, "d_ff", d_ff, 1, _LARGEST),
        _arguments.integer(name, "num_layers", num_layers, 1, _MAX_LAYERS),
        _arguments.integer(name, "round_to", round_to, 1, _LARGEST),
    )
