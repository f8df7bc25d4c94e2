"""paperlab.nn: the parts of the parameters by role, layer and head."""

import decoder_models as models
import pytest
import torch
from decoder_models import DECODERS

BATCH = models.tokens(2, 9)

_LLAMA = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
_FFN = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_NORMS = {
    "norm": "input_layernorm",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def check_view(got, wanted, parameter):
    """`got` is `wanted` of the parameter, and a view of it through which gradients flow."""
    assert torch.equal(got, wanted) and got.requires_grad
    assert got.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    assert got.data_ptr() == wanted.data_ptr()
    (grad,) = torch.autograd.grad(got.sum(), parameter)
    (wanted_grad,) = torch.autograd.grad(wanted.sum(), parameter)
    assert torch.equal(grad, wanted_grad)


@pytest.mark.parametrize("name", [n for n in DECODERS if not n.startswith("neox")])
def test_roles_of_llama_are_views_of_the_parameters(name):
    model, config = models.ours(name), models.hf_config(name)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        block = model.get_submodule(f"model.layers.{layer}")
        for role, leaf in _LLAMA.items():
            weight = block.self_attn.get_parameter(f"{leaf}.weight")
            check_view(model.tensor(role, layer), weight, weight)
            heads = config.num_key_value_heads if role in "kv" else config.num_attention_heads
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                wanted = weight[:, part] if role == "o" else weight[part]
                check_view(model.tensor(role, layer, head), wanted, weight)
        for role, leaf in {**_FFN, **_NORMS}.items():
            weight = (block.mlp if role in _FFN else block).get_parameter(f"{leaf}.weight")
            check_view(model.tensor(role, layer=layer), weight, weight)
    embedding = model.model.embed_tokens.weight
    head = embedding if config.tie_word_embeddings else model.lm_head.weight
    check_view(model.tensor("embed"), embedding, embedding)
    check_view(model.tensor("head"), head, head)
    check_view(model.tensor("norm"), model.model.norm.weight, model.model.norm.weight)


@pytest.mark.parametrize("name", [n for n in DECODERS if n.startswith("neox")])
def test_roles_of_gpt_neox(name):
    model, config = models.ours(name), models.hf_config(name)
    heads = config.num_attention_heads
    size = config.hidden_size // heads
    for layer in range(config.num_hidden_layers):
        block = model.get_submodule(f"gpt_neox.layers.{layer}")
        fused = block.attention.query_key_value.weight
        parts = fused.view(heads, 3, size, config.hidden_size)
        for i, role in enumerate("qkv"):
            whole = model.tensor(role, layer)  # a copy
            assert torch.equal(whole, parts[:, i].reshape(heads * size, -1))
            (grad,) = torch.autograd.grad(whole.sum(), fused)
            assert torch.equal(grad.view_as(parts).sum((0, 2, 3)), torch.eye(3)[i] * whole.numel())
            for head in range(heads):
                check_view(model.tensor(role, layer, head), parts[head, i], fused)
        dense = block.attention.dense.weight
        check_view(model.tensor("o", layer), dense, dense)
        for head in range(heads):
            part = dense[:, head * size : (head + 1) * size]
            check_view(model.tensor("o", layer, head), part, dense)
        up, down = block.mlp.dense_h_to_4h.weight, block.mlp.dense_4h_to_h.weight
        check_view(model.tensor("up", layer), up, up)
        check_view(model.tensor("down", layer), down, down)
        for role, leaf in _NORMS.items():
            weight = block.get_parameter(f"{leaf}.weight")
            check_view(model.tensor(role, layer), weight, weight)
        with pytest.raises(ValueError, match=r"tensor: .*gate"):
            model.tensor("gate", layer)
    embedding = model.gpt_neox.embed_in.weight
    head = embedding if config.tie_word_embeddings else model.embed_out.weight
    check_view(model.tensor("embed"), embedding, embedding)
    check_view(model.tensor("head"), head, head)


def check_logits(name, model):
    logits = models.definition(models.hf_config(name), models.values_of(model), BATCH)
    assert (model(BATCH) - logits).abs().max() <= 1e-12 * logits.abs().max()


def test_writing_to_a_part_changes_the_logits():
    for name in ("llama", "neox"):
        model = models.ours(name)
        before = model(BATCH).detach()
        with torch.no_grad():
            model.tensor("v", 1, 1).zero_()
        assert not torch.equal(model(BATCH), before)
        check_logits(name, model)
        with torch.no_grad():
            model.tensor("o", 1, 0).mul_(3)
        check_logits(name, model)


def test_parts_follow_exchanged_parameters():
    model, other = models.ours("llama"), models.ours("llama", seed=8)
    model.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(model.tensor("q", 0, 1), other.tensor("q", 0, 1))
    assert model.tensor("q", 0, 1).data_ptr() == other.tensor("q", 0, 1).data_ptr()
