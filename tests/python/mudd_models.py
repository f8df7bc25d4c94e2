"""Small models with random parameters, their definitions and tokens for them."""

from typing import Any

import torch
from mudd_definition import Definition
from paperlab.mudd import MuddFormer

SIZES = {"vocab_size": 23, "num_layers": 4, "d_model": 24, "num_heads": 2, "d_ff": 40}
VARIANTS = (
    "mudd",
    "base",
    "static",
    "dynamic",
    "multiway_static",
    "multiway_dynamic",
    "hyper_connections",
    "lime",
)


def new(seed: int = 0, **options: Any) -> MuddFormer:
    """A model in float64 whose parameters are all random."""
    settings = SIZES | {"ffn_round": 8} | options
    model = MuddFormer(**settings, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.add_(0.3 * noise if "norm" in name else 0.2 * noise)
    return model


def definition(model: MuddFormer, **options: Any) -> Definition:
    heads = {"num_heads": SIZES["num_heads"]}
    return Definition(dict(model.named_parameters()), **(heads | options))


def some_tokens(batch: int = 2, length: int = 9, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SIZES["vocab_size"], (batch, length), generator=generator)


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """The largest difference, relative to the largest number."""
    assert x.shape == y.shape
    assert x.dtype == y.dtype
    return float((x - y).detach().abs().max() / y.detach().abs().max().clamp_min(1e-300))
