"""Decoders with core-context attention by definition: the formulas of both put together."""

import contextlib
import dataclasses
import itertools
import json
from pathlib import Path

import cca_definition
import decoder_models as models
import paperlab
import torch
from cca_definition import Case
from paperlab import cca

GOLDEN = Path(__file__).parents[1] / "data/cca/llama_tiny.safetensors"

# The sizes in a Case are those of one call of `attend`; options alone count here.
CASE = Case(batch=1, group_size=3, window=4)
CASES = [
    CASE,
    dataclasses.replace(CASE, group_size=4, window=0),
    dataclasses.replace(CASE, group_size=2, window=7, weights_per="kv_head"),
    dataclasses.replace(CASE, pooling="mean"),
    dataclasses.replace(CASE, pooling="max", window=5),
    dataclasses.replace(CASE, keep_first=2),
    dataclasses.replace(CASE, group_size=1, window=3),
]


def applied(name, case, dtype=torch.float64, **changes):
    return cca.apply(models.ours(name, dtype, **changes), **case.options())


def other_boundaries():
    return [
        dataclasses.replace(CASE, boundary="paper_equation"),
        dataclasses.replace(CASE, boundary="triton_truncation", window=6),
    ]


@contextlib.contextmanager
def _attention(case):
    """Lets the definition of decoders attend as `case` says."""

    def attend(config, q, k, v, window):  # [T, heads, D] each
        if case.pooling != "attention":  # the same whatever the heads
            this = dataclasses.replace(case, length=len(q), weights_per="kv_head")
        else:
            this = dataclasses.replace(case, length=len(q))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return cca_definition.attention(q, k, v, this)[0][0].transpose(0, 1)

    before = models._attend
    models._attend = attend
    try:
        yield
    finally:
        models._attend = before


def definition(case, name, model, batch, mask=None, values=None):
    """Logits [B, T, V] in float64, row by row without what the mask hides (zeros there)."""
    with _attention(case):
        values = models.values_of(model) if values is None else values
        return models.definition(models.hf_config(name), values, batch, mask)


def check_close(got, wanted, share=1e-12):
    """To `share` of the largest: in float64 the same sums in another order."""
    assert got.shape == wanted.shape and bool(torch.isfinite(got).all())
    assert (got - wanted).abs().max() <= share * wanted.abs().max()


def read(model, batch, sizes, mask=None):
    """The logits of all pieces; the mask covers the first."""
    cache, logits = model.new_cache(len(batch), batch.shape[1]), []
    for begin, end in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
        first_mask = mask[:, :end] if mask is not None and begin == 0 else None
        logits.append(model(batch[:, begin:end], first_mask, cache=cache))
        assert cache.length == end
    return torch.cat(logits, 1)


def golden():
    """The tensors of a Llama with core-context attention, g 4 and s 12, by the official code."""
    return paperlab.io.load_file(GOLDEN)


def golden_directory(tensors, directory):
    """`directory` with that Llama as a Hugging Face directory."""
    weights = {n: t for n, t in tensors.items() if n.startswith(("model.", "lm_head."))}
    paperlab.io.save_file(weights, directory / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory
