"""paperlab.integrations.transformers: tiny models give what they give with "sdpa"."""

import paperlab
import pytest
import torch
import transformers
from paperlab.integrations import transformers as integration
from transformers_models import (
    DECODERS,
    WINDOW,
    bart,
    bert,
    check_equals_sdpa,
    decoder,
    padding,
    randomised,
    tokens,
    vit,
)

integration.register()

LENGTH = 13


@pytest.mark.parametrize("side", ["none", "left", "right", "both"])
@pytest.mark.parametrize("name", DECODERS)
def test_logits_equal_those_of_sdpa_at_every_position(name, side):
    model, mask = decoder(name), padding(side, LENGTH)

    def logits(model):
        with torch.no_grad():
            return model(tokens(3, LENGTH), attention_mask=mask).logits

    check_equals_sdpa(model, logits)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_equal_those_of_eager(name):
    # Without padding: the float32 softmax of "eager" gives NaN at hidden rows of a float64 model.
    def logits(model):
        with torch.no_grad():
            return model(tokens(3, LENGTH)).logits

    check_equals_sdpa(decoder(name), logits, exact="eager")


@pytest.mark.parametrize("length", [1, 2, WINDOW, WINDOW + 1, 2 * WINDOW + 1])
def test_lengths_about_the_window(length):
    def logits(model):
        with torch.no_grad():
            return model(tokens(2, length)).logits

    check_equals_sdpa(decoder("gemma3_text"), logits)


def cache_of(kind, model, length):
    if kind == "dynamic":
        return transformers.DynamicCache(config=model.config)
    return transformers.StaticCache(config=model.config, max_cache_len=length)


def check_generation_equals_sdpa(model, kind, side, **options):
    """The logits [B, new, V] and the tokens of greedy generation."""
    sequences = []

    def logits(model):
        out = model.generate(
            tokens(3, LENGTH),
            attention_mask=padding(side, LENGTH),
            past_key_values=cache_of(kind, model, LENGTH + 6),
            do_sample=False,
            max_new_tokens=6,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
        sequences.append(out.sequences)
        return torch.stack(out.logits, 1)

    check_equals_sdpa(model, logits)
    assert len(sequences) == 4 and all(torch.equal(x, sequences[0]) for x in sequences)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS)
def test_generation_equals_that_of_sdpa_token_for_token(name, kind):
    if (name, kind) == ("deepseek_v3", "static") and transformers.__version__ < "5":
        pytest.skip("static caches of transformers 4 have one head size")
    check_generation_equals_sdpa(decoder(name), kind, "left")


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_generation_without_padding_equals_that_of_sdpa(kind):
    check_generation_equals_sdpa(decoder("gemma3_text"), kind, "none")


def test_beam_search_equals_that_of_sdpa():
    check_generation_equals_sdpa(decoder("mistral"), "dynamic", "left", num_beams=3)


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_a_prompt_in_pieces_equals_that_of_sdpa(name, kind, side):
    prompt, mask = tokens(3, LENGTH), padding(side, LENGTH)

    def logits(model):
        cache, pieces = cache_of(kind, model, LENGTH + 6), []
        with torch.no_grad():
            for first, last in ((0, 4), (4, 5), (5, 12), (12, LENGTH)):
                seen = None if mask is None else mask[:, :last]
                out = model(
                    prompt[:, first:last],
                    attention_mask=seen,
                    past_key_values=cache,
                    position_ids=torch.arange(first, last)[None],
                )
                pieces.append(out.logits)
        return torch.cat(pieces, 1)

    check_equals_sdpa(decoder(name), logits)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_neox"])
def test_the_gradients_of_a_training_step_equal_those_of_sdpa(name, side):
    prompt, mask = tokens(3, LENGTH), padding(side, LENGTH)
    labels = prompt if mask is None else prompt.masked_fill(mask == 0, -100)

    def gradients(model):
        model.train().zero_grad(set_to_none=True)
        model(prompt, attention_mask=mask, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    check_equals_sdpa(decoder(name), gradients)


@pytest.mark.parametrize("side", ["none", "left", "right", "both"])
def test_bert_sees_both_ways(side):
    mask = padding(side, LENGTH)

    def states(model):
        with torch.no_grad():
            return model(tokens(3, LENGTH), attention_mask=mask).last_hidden_state

    check_equals_sdpa(bert(), states)


def test_vit_equals_sdpa():
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))

    def states(model):
        with torch.no_grad():
            return model(pixels.to(model.dtype)).last_hidden_state

    check_equals_sdpa(vit(), states)


@pytest.mark.parametrize("side", ["none", "right"])
def test_an_encoder_and_a_decoder_with_cross_attention_equal_sdpa(side):
    mask = padding(side, LENGTH)

    def states(model):
        with torch.no_grad():
            return model(
                tokens(3, LENGTH), attention_mask=mask, decoder_input_ids=tokens(3, 7)
            ).last_hidden_state

    check_equals_sdpa(bart(), states)


def test_queries_dropped_behind_the_mask_keep_their_positions():
    if not hasattr(transformers, "Gemma4TextConfig"):
        pytest.skip(f"transformers {transformers.__version__} has no Gemma 4")
    config = transformers.Gemma4TextConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=61,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
    )
    model = randomised(transformers.Gemma4ForCausalLM(config))
    for kind in ("dynamic", "static"):
        for keep in (1, 3):

            def logits(model, kind=kind, keep=keep):
                cache = cache_of(kind, model, LENGTH + 4)
                with torch.no_grad():
                    out = model(tokens(2, LENGTH), past_key_values=cache, logits_to_keep=keep)
                return out.logits

            check_equals_sdpa(model, logits)


def logits_of(implementation, model, **inputs):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(tokens(2, 6), **inputs).logits


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_four_dimensions_is_looked_at(dtype):
    model = decoder("llama")
    causal = torch.ones(6, 6).tril().bool().expand(2, 1, 6, 6).clone()
    causal[1, :, :, 4:] = False
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool().expand(2, 1, 6, 6)

    def of(mask):
        if dtype == torch.bool:
            return mask
        return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)

    ours, sdpa = (
        logits_of(name, model, attention_mask=of(causal)) for name in ("paperlab", "sdpa")
    )
    torch.testing.assert_close(ours, sdpa, rtol=0, atol=1e-5 * float(sdpa.abs().max()))
    with pytest.raises(ValueError, match="attention_mask must be causal, full or a sliding window"):
        logits_of("paperlab", model, attention_mask=of(blocks))


def test_packed_sequences_are_refused():
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(2, -1)
    with pytest.raises(ValueError, match="attention_mask must be causal"):
        logits_of("paperlab", decoder("llama"), position_ids=positions, use_cache=False)


def test_attention_dropout_is_refused_in_training_only():
    model = decoder("llama", attention_dropout=0.25)
    assert torch.isfinite(logits_of("paperlab", model)).all()
    with pytest.raises(ValueError, match=r"dropout must be 0 in training, got 0\.25"):
        logits_of("paperlab", model.train())


def test_soft_capping_is_refused_by_name():
    with pytest.raises(ValueError, match="softcap must be None"):
        logits_of("paperlab", decoder("gemma2"))


def test_the_implementation_can_be_changed_and_changed_back():
    model = decoder("llama")
    before = logits_of("sdpa", model)
    ours = logits_of("paperlab", model)
    assert model.config._attn_implementation == "paperlab"
    assert not torch.equal(ours, before)  # another order of additions, so it did run
    assert torch.equal(logits_of("sdpa", model), before)
    assert torch.equal(logits_of("paperlab", model), ours)


def test_any_name_can_be_registered_again_and_given_to_a_config():
    for _ in range(2):
        integration.register("another")
    config = decoder("llama").config
    config._attn_implementation = "another"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="another")
    model = randomised(model)
    assert torch.equal(logits_of("another", model), logits_of("paperlab", model))


def test_a_mask_is_read_once_a_forward(monkeypatch):
    read, model = [], decoder("llama", num_hidden_layers=3)
    derive = integration._derive
    monkeypatch.setattr(integration, "_derive", lambda mask: read.append(1) or derive(mask))
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    for _ in range(2):
        logits_of("paperlab", model, attention_mask=mask)
    assert len(read) == 2


def test_bfloat16_under_autocast():
    model, mask = decoder("llama"), padding("left", LENGTH)

    def logits(implementation, dtype):
        model.set_attn_implementation(implementation)
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model(tokens(3, LENGTH), attention_mask=mask).logits.float()

    exact = logits("sdpa", torch.float32)
    plain = (logits("sdpa", torch.bfloat16) - exact).abs().max()
    ours = (logits("paperlab", torch.bfloat16) - exact).abs().max()
    assert plain > 0
    assert ours <= 2 * plain + torch.finfo(torch.bfloat16).eps * exact.abs().max()


@pytest.mark.parametrize("side", ["none", "left"])
def test_a_compiled_model_equals_itself(side):
    model, mask = decoder("mistral"), padding(side, LENGTH)
    model.set_attn_implementation("paperlab")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = model(tokens(3, LENGTH), attention_mask=mask).logits
        logits = compiled(tokens(3, LENGTH), attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_importing_paperlab_does_not_import_transformers(run_python):
    code = """
import sys, paperlab, paperlab.integrations.transformers
assert "transformers" not in sys.modules
paperlab.integrations.transformers.register()
assert "transformers" in sys.modules
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ('raise ImportError("no such thing")', "cannot be imported: no such thing"),
        ('__version__ = "4.56.2"', "got 4.56.2"),
        ('__version__ = "6.0.0.dev0"', "got 6.0.0.dev0"),
        ('__version__ = "new"', "got new"),
    ],
)
def test_another_transformers_is_an_import_error(run_python, package_path, tmp_path, source, part):
    (tmp_path / "transformers.py").write_text(source + "\n", encoding="ascii")
    code = """
import paperlab
try:
    paperlab.integrations.transformers.register()
except ImportError as error:
    print(error)
"""
    done = run_python(code, {"PYTHONPATH": f"{tmp_path}:{package_path}"})
    assert done.stdout.startswith("register: paperlab needs transformers >= 4.57, < 6, "), done
    assert done.stdout.rstrip().endswith(part) and done.stdout.count("\n") == 1


@pytest.mark.parametrize("name", [None, 3, "a\nb", ""])
def test_a_bad_name_is_a_value_error(name):
    with pytest.raises(ValueError, match=r"^register: name must (not )?be "):
        paperlab.integrations.transformers.register(name)
