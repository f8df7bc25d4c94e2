"""Small GPT-2, OPT and Gemma models, ours and transformers', with the same random weights."""

import json
import types

import decoder_models
import paperlab
import pytest
import torch
import transformers
from decoder_models import VOCABULARY, randomise, tokens

__all__ = ["CASES", "exact", "ours", "settings", "theirs", "tokens"]

END = 5
WINDOW = 6

_IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": None}
_GPT2 = {**_IDS, "n_embd": 24, "n_head": 4, "n_layer": 3, "n_positions": 40}
_OPT = {
    **_IDS,
    "hidden_size": 24,
    "ffn_dim": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
_GEMMA = {
    **_IDS,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 40,
}
_LATER = {"attn_logit_softcapping": None, "query_pre_attn_scalar": 14, "sliding_window": WINDOW}

# Name: model type, settings.
CASES = {
    "gpt2": ("gpt2", _GPT2),
    "gpt2_scales_untied": (
        "gpt2",
        {
            **_GPT2,
            "n_inner": 20,
            "activation_function": "gelu",
            "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "tie_word_embeddings": False,
        },
    ),
    "opt": ("opt", _OPT),
    "opt_after_projected": (
        "opt",
        {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 14},
    ),
    "opt_plain": (
        "opt",
        {
            **_OPT,
            "word_embed_proj_dim": 14,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "tie_word_embeddings": False,
        },
    ),
    "opt_no_final_norm": ("opt", {**_OPT, "_remove_final_layer_norm": True}),
    "gemma": ("gemma", _GEMMA),
    "gemma_biases_untied": (
        "gemma",
        {**_GEMMA, "attention_bias": True, "tie_word_embeddings": False, "hidden_act": "gelu"},
    ),
    "gemma2": ("gemma2", {**_GEMMA, **_LATER, "final_logit_softcapping": 3.0}),
    "gemma3": (
        "gemma3_text",
        {
            **_GEMMA,
            **_LATER,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_theta": 5e4, "rope_type": "linear", "factor": 4.0},
                "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
            },
        },
    ),
}


def hf_config(name):
    model_type, given = CASES[name]
    if not decoder_models.IS_NEW and model_type.startswith("gemma"):
        pytest.skip("the settings are those of transformers 5")
    return transformers.AutoConfig.for_model(model_type, **given)


def settings(name):
    """What config.json would hold."""
    return json.loads(hf_config(name).to_json_string())


def ours(name, dtype=torch.float64):
    model = randomise(paperlab.nn.from_config(settings(name), dtype=torch.float64))
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if "wte" in parameter or "wpe" in parameter:  # as other embeddings
                value.mul_(2.0)
    return model.to(dtype)


def theirs(name, model, dtype=torch.float64):
    """transformers' model with the values of ours."""
    other = transformers.AutoModelForCausalLM.from_config(hf_config(name)).eval().to(dtype)
    missing = other.load_state_dict(
        {n: p.detach() for n, p in model.named_parameters()}, strict=False
    )
    assert not missing.unexpected_keys
    assert {*missing.missing_keys} <= {"lm_head.weight"}
    return other


def exact(name, model):
    """As `theirs`, in float64 where transformers rounds to float32: norms, angles, softmax."""
    other = theirs(name, model)
    if name.startswith("gemma2"):
        paperlab.integrations.transformers.register()
        other.set_attn_implementation("paperlab")
    for module in other.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_norm, module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(_angles, module)
    return other


def _norm(self, x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


def _angles(self, x, position_ids, layer_type=None):
    rope = self.config.rope_parameters
    rope = rope if layer_type is None else rope[layer_type]
    size = self.config.head_dim
    frequency = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = position_ids[..., None] * frequency / rope.get("factor", 1.0)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()
