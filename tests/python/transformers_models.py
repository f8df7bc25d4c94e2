"""Tiny transformers models with random weights, for the tests of the integration."""

import pytest
import torch
import transformers

VOCABULARY = 61
WINDOW = 5

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_GQA = {"num_key_value_heads": 2}
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

# Name: what it shows, as arguments of its config.
_DECODERS = {
    "llama": _GQA,
    "mistral": {**_GQA, "sliding_window": WINDOW},
    "qwen2": {**_GQA, **_MIXED, "use_sliding_window": True},
    "gpt_neox": {"attention_dropout": 0.0, "hidden_dropout": 0.0},
    "granite": {**_GQA, "attention_multiplier": 1.3},
    "gemma3_text": {**_GQA, **_MIXED, "head_dim": 8},
    "deepseek_v3": {  # the head size of the values is not that of the keys
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 2,
    },
}
DECODERS = list(_DECODERS)


def decoder(name, **changes):
    arguments = {**_SIZES, **_DECODERS.get(name, _GQA), **changes}
    config = transformers.AutoConfig.for_model(name, **arguments)
    return randomised(transformers.AutoModelForCausalLM.from_config(config))


def bert():
    if not hasattr(transformers.models.bert.modeling_bert, "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip(f"BERT of transformers {transformers.__version__} has its own attention")
    return randomised(transformers.BertModel(transformers.BertConfig(**_SIZES)))


def vit():
    config = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=12,
        patch_size=4,
    )
    return randomised(transformers.ViTModel(config))


def bart():
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return randomised(transformers.BartModel(config))


def randomised(model):
    """`model` with weights so large that attention is far from uniform."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            std = 1.0 if "embed" in name else 2.0 * parameter.shape[-1] ** -0.5
            parameter.data.normal_(0.0, std, generator=generator)
    return model.eval()


def tokens(batch, length):
    generator = torch.Generator().manual_seed(batch + length)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def padding(side, length):
    """The mask [3, length] of rows with none, some and all but one token padded."""
    mask = torch.ones(3, length, dtype=torch.long)
    for row, count in ((1, length // 2), (2, length - 1)):
        if side == "left":
            mask[row, :count] = 0
        elif side == "right":
            mask[row, length - count :] = 0
        elif side == "both":
            mask[row, : count // 2] = mask[row, length - (count + 1) // 2 :] = 0
    return mask if side != "none" else None


def run(model, implementation, dtype, call):
    """call(model) with that attention and dtype, leaving the model's weights as they are."""
    model.set_attn_implementation(implementation)
    return call(model.to(dtype))


def check_equals_sdpa(model, call, exact="sdpa"):
    """`call(model)`, a tensor, is that of `exact` in float64, to twice the error of float32 "sdpa".

    Norms round to float32 in a float64 model too, so that float64 has the same bound.
    """
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exact = run(model, exact, torch.float64, call)
    ours = {torch.float64: run(model, "paperlab", torch.float64, call)}
    model.float().load_state_dict(state)
    plain = run(model, "sdpa", torch.float32, call)
    ours[torch.float32] = run(model, "paperlab", torch.float32, call)
    largest = exact.abs().max()
    bound = 2 * (plain - exact).abs().max() + torch.finfo(torch.float32).eps * largest
    assert 0 < bound < 1e-3 * largest
    for result in ours.values():
        assert result.shape == exact.shape and result.isfinite().all()
        error = (result - exact).abs()
        worst = torch.unravel_index(error.argmax(), error.shape)
        assert error.max() <= bound, f"{error.max()} > {bound} at {[int(i) for i in worst]}"
