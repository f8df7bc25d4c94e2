"""Core-context attention: autocast, results that no memory holds, settings in config.json."""

import copy
import json
import pickle

import decoder_models as models
import pytest
import torch
import transformers_models
from paperlab import cca, nn
from paperlab.cca import baselines
from paperlab.integrations import transformers as integration

LOW, FLOAT, DOUBLE = torch.bfloat16, torch.float32, torch.float64


def inputs(*dtypes, length=20):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, 8) for heads in (4, 2, 2)]
    return [
        torch.randn(shape, generator=generator).to(dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


FUNCTIONS = {
    "attention": lambda q, k, v: cca.attention(q, k, v, 4, 8),
    "attention_mean": lambda q, k, v: cca.attention(q, k, v, 4, 8, "mean"),
    "pool": lambda q, k, v: cca.pool(q, k, v, 4)[1],
    "prefill": lambda q, k, v: cca.KVCache(4, 8).prefill(q, k, v),
    "full": baselines.full,
    "sliding_window": lambda q, k, v: baselines.sliding_window(q, k, v, 8),
    "streaming_llm": lambda q, k, v: baselines.streaming_llm(q, k, v, 2, 8),
    "lm_infinite": lambda q, k, v: baselines.lm_infinite(q, k, v, 2, 8, 8),
    "a_shape": lambda q, k, v: baselines.a_shape(q, k, v, 2, 8),
    "vertical_slash": lambda q, k, v: baselines.vertical_slash(q, k, v, 4, 4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtypes", [(FLOAT, FLOAT, LOW), (LOW, FLOAT, FLOAT), (FLOAT,) * 3])
def test_autocast_takes_mixed_dtypes(name, dtypes):
    tensors = [x.requires_grad_() for x in inputs(*dtypes)]
    with torch.autocast("cpu", LOW):
        found = FUNCTIONS[name](*tensors)
    assert found.dtype == LOW
    assert torch.equal(found, FUNCTIONS[name](*(x.detach().to(LOW) for x in tensors)))
    if name != "prefill":
        found.float().sum().backward()
        assert all(x.grad is None or x.grad.dtype == x.dtype for x in tensors)
    if dtypes[0] != dtypes[2]:
        with pytest.raises(TypeError):
            FUNCTIONS[name](*tensors)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_leaves_float64(name):
    with torch.autocast("cpu", LOW):
        assert FUNCTIONS[name](*inputs(DOUBLE, DOUBLE, DOUBLE)).dtype == DOUBLE
        with pytest.raises(TypeError):
            FUNCTIONS[name](*inputs(DOUBLE, DOUBLE, FLOAT))


def test_autocast_of_the_effective_attention():
    q, k, _ = inputs(FLOAT, LOW, LOW)
    with torch.autocast("cpu", LOW):
        found = cca.effective_attention(q, k, 4, 8)
    assert torch.equal(found, cca.effective_attention(q, k.float(), 4, 8))
    with pytest.raises(TypeError):
        cca.effective_attention(q, k, 4, 8)


def test_a_cache_keeps_its_dtype_under_autocast():
    first, rest = inputs(FLOAT, FLOAT, FLOAT), inputs(FLOAT, FLOAT, LOW, length=1)
    cache, plain = cca.KVCache(4, 8), cca.KVCache(4, 8)
    cache.prefill(*first)
    plain.prefill(*first)
    with torch.autocast("cpu", LOW):
        found = cache.step(*rest)
    assert found.dtype == FLOAT
    assert torch.equal(found, plain.step(*(x.float() for x in rest)))


def test_results_that_memory_does_not_hold_are_refused():
    with pytest.raises(ValueError, match=r"^mask: length must give a result that memory holds"):
        cca.mask(6_000_000)
    q = torch.zeros(1, 1, 600_000, 1).expand(1, 8, -1, -1)
    with pytest.raises(ValueError, match=r"^effective_attention: T must give a result"):
        cca.effective_attention(q, q)


def test_float16_in_transformers_is_named():
    integration.register()
    model = transformers_models.decoder("llama").half()
    model.set_attn_implementation("paperlab_cca")
    model.config.cca_group_size, model.config.cca_window = 2, 2
    with pytest.raises(TypeError, match=r"^paperlab cca attention: query must be float32"):
        model(torch.arange(12)[None])


def saved(tmp_path, **settings):
    """A directory of transformers with settings of core-context attention in its config.json."""
    integration.register()
    theirs = models.theirs("llama", models.ours("llama"))
    theirs.set_attn_implementation("paperlab_cca")
    theirs.config.cca_group_size, theirs.config.cca_window = 4, 6
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with torch.no_grad():
        return theirs, nn.load(tmp_path, dtype=DOUBLE)


TOKENS = torch.arange(23)[None]
NARROW = 2e-5  # of the largest logit: their rotary tables, and some of their norms, are float32


def check_close(ours, theirs):
    found, wanted = ours(TOKENS), theirs.double()(TOKENS).logits
    assert (found - wanted).abs().max() <= NARROW * wanted.abs().max()


def test_their_directory_loads(tmp_path):
    theirs, ours = saved(tmp_path)
    assert ours.config["cca_group_size"] == 4
    cca.apply(ours, 4, 6)
    check_close(ours, theirs)
    cca.remove(ours)
    theirs.set_attn_implementation("sdpa")
    check_close(ours, theirs)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_their_directory_loads_with_the_attention_that_it_names(tmp_path, key):
    theirs, ours = saved(tmp_path, **{key: "paperlab_cca"})
    check_close(ours, theirs)
    check_close(nn.load(tmp_path, dtype=DOUBLE), theirs)


def test_without_that_name_they_change_nothing(tmp_path):
    theirs, ours = saved(tmp_path, attn_implementation="sdpa", cca_pooling="none at all")
    theirs.set_attn_implementation("sdpa")
    check_close(ours, theirs)
    with pytest.raises(ValueError, match="load: pooling must be one of"):
        saved(tmp_path, attn_implementation="paperlab_cca", cca_pooling="none at all")


def test_a_decoder_names_what_carries_it_over():
    model = models.ours("llama")
    with pytest.raises(TypeError, match="save_pretrained"):
        pickle.dumps(model)
    assert copy.copy(model).core is model.core
    assert torch.equal(copy.deepcopy(model)(TOKENS), model(TOKENS))
