"""Every setting of a published config.json, against the plain definition with that setting."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mudd_definition import Definition
from paperlab.mudd import MuddFormer
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent.parent / "data" / "mudd"
Tensors = dict[str, torch.Tensor]


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    """Drops the tensors whose names hold one of `parts`."""
    return lambda tensors: {n: v for n, v in tensors.items() if not any(p in n for p in parts)}


def rows(count: int, *parts: str) -> Callable[[Tensors], Tensors]:
    """Keeps the first rows of the tensors whose names hold one of `parts`."""
    return lambda tensors: {
        n: v[:count].clone() if any(p in n for p in parts) else v for n, v in tensors.items()
    }


def one_norm(tensors: Tensors) -> Tensors:
    """One attention norm instead of three."""
    return {
        n.replace("attention_norms.0", "attention_norm"): v
        for n, v in tensors.items()
        if "attention_norms.1" not in n and "attention_norms.2" not in n
    }


def one_way(tensors: Tensors) -> Tensors:
    """The connections of way Q, with generators of 64 hidden numbers (K <= 5 before the last)."""
    result = {}
    for name, value in one_norm(tensors).items():
        last = ".3" in name
        if name.startswith("dense_bs"):
            result[name] = value[:1].clone()
        elif name.startswith("dynamic_dense") and not last:
            sources = int(name.split(".")[1]) + 2
            size = 64 if ".w1." in name else sources
            result[name] = value[:size, : 32 if ".w1." in name else 64].clone()
        else:
            result[name] = value
    return result


def two_ways(tensors: Tensors) -> Tensors:
    """Q and V of four ways, with generators of 64 hidden numbers."""
    result = dict(tensors)
    for layer in range(3):
        shape = result[f"dense_bs.{layer}"].shape
        result[f"dense_bs.{layer}"] = result[f"dense_bs.{layer}"][[0, 2]].clone()
        name = f"dynamic_dense.{layer}.w2.weight"
        result[name] = result[name].unflatten(0, shape)[[0, 2]].flatten(0, 1)[:, :64].clone()
        name = f"dynamic_dense.{layer}.w1.weight"
        result[name] = result[name][:64].clone()
    return {n: v for n, v in result.items() if n != "dense_bs.3" and "dynamic_dense.3" not in n}


def eights(tensors: Tensors) -> Tensors:
    """Heads of 4 numbers instead of 8."""
    result = {}
    for name, value in tensors.items():
        if name.endswith(("wq.weight", "wk.weight", "wv.weight")):
            result[name] = value[:16].clone()
        elif name.endswith("wo.weight"):
            result[name] = value[:, :16].clone()
        elif "q_norm" in name or "k_norm" in name:
            result[name] = value[:4].clone()
        else:
            result[name] = value
    return result


def same(tensors: Tensors) -> Tensors:
    return tensors


FORMER, PYTHIA = "muddformer", "muddpythia"
STATIC = {"variant": "multiway_static"}
CASES: list[tuple[str, dict[str, Any], Callable[[Tensors], Tensors], dict[str, Any]]] = [
    (FORMER, {"norm_eps": 1e-2}, same, {"norm_eps": 1e-2}),
    (FORMER, {"rope_base": 50}, same, {"rope_base": 50.0}),
    (FORMER, {"rotary_pct": 0.5}, same, {"rotary_pct": 0.5}),
    (FORMER, {"use_qk_norm": False}, without("q_norm", "k_norm"), {"qk_norm": False}),
    (FORMER, {"n_local_heads": 2}, rows(16, "wk.", "wv."), {}),
    (FORMER, {"n_local_heads": 1}, rows(8, "wk.", "wv."), {}),
    (FORMER, {"n_local_heads": -1}, same, {}),
    (FORMER, {"head_dim": 4}, eights, {}),
    (FORMER, {"tie_word_embeddings": True}, without("output."), {}),
    (FORMER, {"dynamic_dense": False}, without("dynamic_dense"), STATIC),
    (FORMER, {"dense_type": "qv"}, two_ways, {"ways": "QV"}),
    (FORMER, {"dense_type": "l", "sepln": False}, one_way, {"variant": "dynamic"}),
    (
        FORMER,
        {"dense": False, "sepln": False},
        lambda t: one_norm(without("dense")(t)),
        {"variant": "base"},
    ),
    (PYTHIA, {"use_parallel_residual": False}, same, {"parallel_residual": False}),
    (
        PYTHIA,
        {"use_linear_bias": False},
        without("feed_forward.w1.bias", "feed_forward.w2.bias"),
        {},
    ),
    (PYTHIA, {"rotary_pct": 1.0}, same, {"rotary_pct": 1.0}),
    (PYTHIA, {"rotary_pct": 0.5}, same, {"rotary_pct": 0.5}),
    (PYTHIA, {"n_local_heads": 2}, rows(32, "wk.", "wv."), {}),
    (PYTHIA, {"dynamic_dense": False}, without("dynamic_dense"), STATIC),
]


# A function's text has its address, and every process must have the same names.
def case_id(value: object) -> str:
    return "" if callable(value) else str(value)


@pytest.mark.parametrize(("name", "settings", "change", "options"), CASES, ids=case_id)
def test_a_setting_means_what_the_definition_says(
    name: str,
    settings: dict[str, Any],
    change: Callable[[Tensors], Tensors],
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    config = json.loads((DATA / name / "config.json").read_text()) | settings
    tensors = change(load_file(DATA / name / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    model = MuddFormer.from_pretrained(tmp_path, dtype=torch.float64)
    is_pythia = name == PYTHIA
    wanted = Definition(
        {n: v.double() for n, v in tensors.items()},
        **{
            "num_heads": config["n_head"],
            "norm_eps": 1e-5 if is_pythia else 1e-6,
            "qk_norm": True,
            "parallel_block": is_pythia,
        }
        | options,
    )
    tokens = load_file(DATA / name / "expected.safetensors")["tokens"]
    logits = model(tokens).detach()
    plain = wanted(tokens)
    # As for the models of mudd_model_test.py.
    assert float((logits - plain).abs().max()) < 1e-11 * float(plain.abs().max())
    official = load_file(DATA / name / "expected.safetensors")["logits"]
    is_the_same_model = settings == {"n_local_heads": -1}
    assert torch.allclose(logits, official, atol=1e-9) == is_the_same_model
    model.to(torch.float32).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[n]) for n, value in again.items())


def test_settings_without_a_number_come_back(tmp_path: Path) -> None:
    """Where the released code keeps its states, and what it is used for, changes no result."""
    config = json.loads((DATA / FORMER / "config.json").read_text())
    for key in ("stack_hidden", "use_layer_cache", "is_training", "use_gradient_checkpointing"):
        config[key] = not config[key]
    config |= {"auto_map": {"AutoModel": "modeling.MUDDFormer"}, "eos_token_id": -1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(DATA / FORMER / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    MuddFormer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_longer_sequences_than_the_block_size_are_refused() -> None:
    model = MuddFormer.from_pretrained(DATA / FORMER)
    assert model.max_positions == 64
    tokens = torch.zeros(1, 65, dtype=torch.int64)
    assert model(tokens[:, :64]).shape == (1, 64, 97)
    with pytest.raises(ValueError, match="forward: tokens must be at most 64"):
        model(tokens)
    cache = model.new_cache(batch_size=1, max_length=65)
    model(tokens[:, :64], cache)
    with pytest.raises(ValueError, match="forward: tokens must be at most 64"):
        model(tokens[:, :1], cache)
    assert cache.length == 64
