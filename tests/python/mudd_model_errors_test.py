"""MuddFormer refuses what it cannot be or read, by name, and nothing changes."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from mudd_models import SIZES, new, some_tokens
from paperlab.mudd import MuddFormer

BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_heads": 5}, "num_heads|d_model"),
    ({"d_model": 6, "num_heads": 2}, "head_dim|d_model"),
    ({"ways": "QX"}, "ways"),
    ({"ways": "QQ"}, "ways"),
    ({"dilation": 0}, "dilation"),
    ({"period": 0}, "period"),
    ({"window": 0}, "window"),
    ({"num_layers": 0}, "num_layers"),
    ({"norm_eps": 0.0}, "norm_eps"),
    ({"norm_eps": float("nan")}, "norm_eps"),
    ({"norm_eps": 1e-46}, "norm_eps must be > 0 in float32"),
    ({"norm_eps": 1e-46, "dtype": torch.bfloat16}, "norm_eps must be > 0 in float32"),
    ({"d_model": 2**30, "num_heads": 2**26}, "d_model"),
    ({"vocab_size": 2**31 - 1, "d_model": 2**20, "num_heads": 2**16}, "vocab_size"),
    ({"hidden_round": -1}, "hidden_round"),
    ({"last_hidden_expand": 0}, "last_hidden_expand"),
    ({"num_streams": 0}, "num_streams"),
    ({"variant": "none"}, "variant"),
    ({"gelu": "fast"}, "gelu"),
    ({"pre_post_norm": "yes"}, "pre_post_norm"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"d_model": 516}, "head_dim"),
    ({"dtype": torch.float16}, "dtype"),
    ({"d_ff": 1.5}, "d_ff"),
    ({"qk_norm": 1}, "qk_norm"),
    ({"ffn_round": 128}, "d_ff|ffn_round|width"),
    ({"rope_base": -1.0}, "rope_base"),
    ({"seed": -1}, "seed"),
    ({"dtype": torch.int64}, "dtype"),
]


@pytest.mark.parametrize(("options", "name"), BAD, ids=[str(o)[:40] for o, _ in BAD])
def test_bad_options_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^MuddFormer: .*({name})"):
        MuddFormer(**(SIZES | {"ffn_round": 8} | options))


def test_bad_calls_are_refused_and_change_nothing() -> None:
    model = new()
    cache = model.new_cache(batch_size=2, max_length=4)
    tokens = some_tokens(length=3)
    model(tokens, cache)
    for part, bad in (
        ("forward: tokens must fit into the cache", lambda: model(tokens, cache)),
        ("forward: tokens must", lambda: model(some_tokens(batch=3, length=1), cache)),
        ("forward: tokens must", lambda: model(torch.full((2, 1), SIZES["vocab_size"]))),
        ("forward: tokens must", lambda: model(torch.full((2, 1), -1), cache)),
        ("forward: tokens must", lambda: model(torch.zeros(2, 1))),
        ("forward: tokens must", lambda: model(tokens[0])),
        ("forward: cache must", lambda: model(tokens, "cache")),
        ("generate: max_new_tokens must", lambda: model.generate(tokens, max_new_tokens=-1)),
        ("generate: tokens must", lambda: model.generate(tokens[:, :0], max_new_tokens=1)),
        ("trace: variant must", lambda: new(variant="lime").trace(tokens)),
        ("new_cache: batch_size must", lambda: model.new_cache(batch_size=0, max_length=1)),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^{part}"):
            bad()
    assert cache.length == 3
    for other in (
        MuddFormer(**(SIZES | {"num_layers": 2}), ffn_round=8, dtype=torch.float64),
        new(seed=3),
        new(variant="base", ffn_reallocation=True),
    ):
        with pytest.raises(ValueError, match="cache"):
            other(tokens[:, :1], cache)
    assert cache.length == 3


def test_a_cache_that_memory_cannot_hold_is_refused() -> None:
    model = new()
    for batch, length in ((2**31, 2**40), (1, 2**40), (2**31, 2**13)):
        with pytest.raises(ValueError, match=f"^new_cache: batch_size and max_length .*{length}"):
            model.new_cache(batch_size=batch, max_length=length)


def test_an_eps_that_only_float64_has() -> None:
    model = MuddFormer(**(SIZES | {"norm_eps": 1e-46, "dtype": torch.float64}), ffn_round=8)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(some_tokens()), model(some_tokens()))
    with pytest.raises(ValueError, match="eps"):
        model.float()(some_tokens())


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_eps_of_config_json_that_float32_lacks(tmp_path: Path, form: str) -> None:
    model = MuddFormer(**(SIZES | {"norm_eps": 1e-46, "dtype": torch.float64}), ffn_round=8)
    model.save_pretrained(tmp_path, safe_serialization=form == "safetensors")
    for dtype in (torch.float64, None):
        MuddFormer.from_pretrained(tmp_path, dtype=dtype)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=r"config\.json: norm_eps must be > 0 in float32"):
            MuddFormer.from_pretrained(tmp_path, dtype=dtype)


def test_torchs_default_device_is_not_asked() -> None:
    with torch.device("meta"):
        model = MuddFormer(**SIZES, ffn_round=8)
    assert {value.device.type for value in model.parameters()} == {"cpu"}
    torch.manual_seed(3)
    first = MuddFormer(**SIZES, ffn_round=8).state_dict()
    torch.manual_seed(3)
    with torch.device("meta"):
        second = MuddFormer(**SIZES, ffn_round=8).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_options_that_a_variant_has_no_use_for_are_checked_and_ignored() -> None:
    tokens = some_tokens()
    plain = new(variant="base")(tokens)
    assert torch.equal(new(variant="base", ways="Q", num_streams=3, period=2)(tokens), plain)
    with pytest.raises(ValueError, match=r"^MuddFormer: .*ways"):
        new(variant="base", ways="X")
