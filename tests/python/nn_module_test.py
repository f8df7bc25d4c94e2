"""paperlab.nn: the model as a torch.nn.Module whose parameters the C++ side shares."""

import copy
import itertools
import threading

import decoder_models as models
import pytest
import torch
import torch.nn.utils.parametrize
import torch.nn.utils.prune
import torch.utils.checkpoint
from decoder_models import SOME
from torch.func import functional_call

BATCH = models.tokens(2, 9)


def check_close(got, wanted, share=1e-12):
    assert got.shape == wanted.shape and got.isfinite().all()
    assert (got - wanted).abs().max() <= share * wanted.abs().max()


def reference(name, model):
    return models.definition(models.hf_config(name), models.values_of(model), BATCH).detach()


@pytest.mark.parametrize("name", SOME)
def test_every_parameter_changed_in_place_changes_the_logits(name):
    model = models.ours(name)
    for parameter, value in model.named_parameters():
        before = model(BATCH).detach()
        with torch.no_grad():
            value.mul_(1.25).add_(0.05)
        assert not torch.equal(model(BATCH), before), parameter
    check_close(model(BATCH), reference(name, model))
    model.get_parameter(parameter).data = torch.full_like(value, 0.1)
    check_close(model(BATCH), reference(name, model))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_load_state_dict(name, assign):
    model, other = models.ours(name), models.ours(name, seed=8)
    kept = [*model.parameters()]
    assert not torch.equal(model(BATCH), other(BATCH))
    state = {n: t.clone() for n, t in other.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    assert torch.equal(model(BATCH), other(BATCH))
    assert torch.equal(model.generate(BATCH, 3), other.generate(BATCH, 3))
    assert all((a is b) != assign for a, b in zip(kept, model.parameters(), strict=True))
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    check_close(model(BATCH), reference(name, model))
    if assign:
        assert torch.equal(next(iter(state.values())), next(model.parameters()))
    model.load_state_dict(state | {n: t.float() for n, t in state.items()})
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({n: t[:1] for n, t in state.items()})


@pytest.mark.parametrize("name", SOME)
def test_functional_call_with_gradients_to_its_tensors(name):
    model, other = models.ours(name), models.ours(name, seed=8)
    before = model(BATCH).detach()
    values = models.values_of(other)
    logits = functional_call(model, values, (BATCH,))
    assert torch.equal(logits, other(BATCH))
    logits.square().sum().backward()
    other(BATCH).square().sum().backward()
    for parameter, value in other.named_parameters():
        check_close(values[parameter].grad, value.grad)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model(BATCH), before)
    part = {n: v for n, v in values.items() if "layers.1" in n}
    mixed = functional_call(model, part, (BATCH,), {"attention_mask": torch.ones_like(BATCH)})
    assert not torch.equal(mixed, before) and torch.equal(model(BATCH), before)


def test_deepcopy_is_independent():
    model = models.ours("llama_biases_tied").requires_grad_(False)
    model.tensor("embed").requires_grad_(True)
    model.train()
    before = model(BATCH).detach()
    other = copy.deepcopy(model)
    assert torch.equal(other(BATCH), before) and other.training
    flags = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in other.parameters()] == flags and sum(flags) == 1
    assert other.config == model.config
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    assert torch.equal(model(BATCH), before) and not torch.equal(other(BATCH), before)
    addresses = [{p.data_ptr() for p in m.parameters()} for m in (model, other)]
    assert not addresses[0] & addresses[1]


def test_deepcopy_with_an_optimizer_keeps_them_together():
    model = models.ours("llama")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    other, other_optimizer = copy.deepcopy((model, optimizer))
    mine = [id(p) for p in other.parameters()]
    assert [id(p) for p in other_optimizer.param_groups[0]["params"]] == mine
    other(BATCH).sum().backward()
    before = model(BATCH).detach()
    other_optimizer.step()
    assert torch.equal(model(BATCH), before) and not torch.equal(other(BATCH), before)


@pytest.mark.parametrize("name", SOME)
def test_other_dtypes(name, tmp_path):
    model = models.ours(name)
    for convert, dtype, share in (
        (lambda m: m.float(), torch.float32, 1e-5),
        (lambda m: m.to(torch.float64), torch.float64, 1e-12),
        (lambda m: m.to(torch.bfloat16), torch.bfloat16, 0.1),
        (lambda m: m.double(), torch.float64, 1e-12),
    ):
        assert convert(model) is model
        logits = model(BATCH)
        assert logits.dtype == dtype
        check_close(logits, reference(name, model), share)
        assert model.generate(BATCH, 2, eos_token_id=None).shape == (2, 11)
    wanted = model.half().float()(BATCH)  # what float16 can hold
    logits = model.half()(BATCH)
    assert logits.dtype == torch.float16
    check_close(logits, wanted.double(), 1e-3)  # computed in float32, rounded once
    assert model.generate(BATCH, 2, eos_token_id=None).shape == (2, 11)


def test_parameters_of_different_dtypes_or_shapes_are_refused():
    model = models.ours("llama")
    wanted = model(BATCH)
    for name, value in model.named_parameters():
        kept = value.data
        for other in (kept.float(), kept[:-1], kept[None]):
            value.data = other
            with pytest.raises((ValueError, TypeError)):
                model(BATCH)
            value.data = kept
        assert torch.equal(model(BATCH), wanted), name
    with pytest.raises(ValueError, match="meta"):
        model.to("meta")(BATCH)


def test_training_decreases_the_loss():
    for name in SOME:
        model = models.ours(name, torch.float32).train()
        text = models.tokens(4, 17)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            logits = model(text[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0], name
        assert all(a > b for a, b in itertools.pairwise(losses)), name


def test_gradients_accumulate_and_a_graph_may_be_kept():
    model = models.ours("neox")
    loss = model(BATCH).square().mean()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    loss.backward()
    for parameter, grad in zip(model.parameters(), once, strict=True):
        check_close(parameter.grad, 2 * grad)
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["llama", "llama_biases_tied", "neox"])
def test_frozen_parameters_get_no_gradient_and_the_others_the_same(name):
    model = models.ours(name)
    model(BATCH).square().sum().backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters()}
    for trained in ("q_proj", "query_key_value", "norm", "embed", "layers.0.mlp", "head", "bias"):
        model.zero_grad()
        for n, p in model.named_parameters():
            p.requires_grad_(trained in n)
        if not any(p.requires_grad for p in model.parameters()):
            assert not model(BATCH).requires_grad
            continue
        model(BATCH).square().sum().backward()
        for n, p in model.named_parameters():
            assert (p.grad is not None) == (trained in n)
            if p.grad is not None:
                check_close(p.grad, wanted[n])


def test_no_grad_and_inference_mode():
    model = models.ours("mistral")
    mask = models.masks(9)["holes"][:2]
    for batch_mask in (None, mask):
        wanted = model(BATCH, batch_mask)
        assert wanted.requires_grad
        with torch.no_grad():
            plain = model(BATCH, batch_mask)
        assert torch.equal(plain, wanted) and not plain.requires_grad
        with torch.inference_mode():
            inference = model(BATCH, batch_mask)
            cache = model.new_cache(2, 9)
            model(BATCH[:, :4], cache=cache)
            model(BATCH[:, 4:], cache=cache)
        assert torch.equal(inference, wanted)
        model(BATCH, batch_mask).sum().backward()


def test_a_graph_refuses_parameters_that_changed_in_place():
    model = models.ours("llama")
    logits = model(BATCH)
    with torch.no_grad():
        model.tensor("down", 0).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_gradcheck_of_the_whole():
    model = models.ours("qwen3", num_hidden_layers=1, vocab_size=5, eos_token_id=None)
    names, values = zip(*models.values_of(model).items(), strict=True)
    small = [v.detach()[:2] if v.dim() == 2 else v.detach() for v in values]
    leaves = [v.clone().requires_grad_() for v in small]

    def logits(*parts):
        whole = [torch.cat([p, v[len(p) :].detach()]) for p, v in zip(parts, values, strict=True)]
        return functional_call(model, dict(zip(names, whole, strict=True)), (BATCH[:1, :3] % 5,))

    assert torch.autograd.gradcheck(logits, leaves, fast_mode=True)


def test_models_in_threads():
    pair = [models.ours("llama"), models.ours("neox")]
    wanted = [(m(BATCH).detach(), m.generate(BATCH, 6, temperature=1.0)) for m in pair]
    results, errors = [[], [], [], []], []

    def work(index):
        model = pair[index % 2]
        try:
            for _ in range(10):
                tokens = model.generate(BATCH, 6, temperature=1.0)
                results[index].append((model(BATCH).detach(), tokens))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for index, runs in enumerate(results):
        assert len(runs) == 10
        for logits, tokens in runs:
            check_close(logits, wanted[index % 2][0])
            assert torch.equal(tokens, wanted[index % 2][1])


class _Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, weight):
        return weight * self.scale


def test_parametrized_weights_are_computed_in_each_call():
    model, other = models.ours("llama"), models.ours("llama")
    up = model.get_submodule("model.layers.0.mlp.up_proj")
    torch.nn.utils.parametrize.register_parametrization(up, "weight", _Scale())
    for scale in (2.0, -0.5):
        with torch.no_grad():
            up.parametrizations.weight[0].scale.fill_(scale)
            other.load_state_dict(models.ours("llama").state_dict())
            other.tensor("up", 0).mul_(scale)
        check_close(model(BATCH), other(BATCH))
        model.zero_grad()
        other.zero_grad()
        model(BATCH).square().sum().backward()
        other(BATCH).square().sum().backward()
        grad = other.get_submodule("model.layers.0.mlp.up_proj").weight.grad
        check_close(up.parametrizations.weight.original.grad, scale * grad)
        wanted = (grad * up.parametrizations.weight.original).sum()
        check_close(up.parametrizations.weight[0].scale.grad, wanted, 1e-10)


def test_pruned_weights_follow_their_originals():
    model = models.ours("llama")
    up = model.get_submodule("model.layers.0.mlp.up_proj")
    torch.nn.utils.prune.l1_unstructured(up, "weight", 0.3)
    assert (model.tensor("up", 0) == 0).float().mean() == pytest.approx(0.3, abs=1e-3)
    for _ in range(2):
        model(BATCH).square().sum().backward()
        assert (
            up.weight_orig.grad is not None and not up.weight_orig.grad[up.weight_mask == 0].any()
        )
        before = model(BATCH).detach()
        with torch.no_grad():
            up.weight_orig.mul_(1.5)
        assert not torch.equal(model(BATCH), before)
    torch.nn.utils.prune.remove(up, "weight")
    wanted = model(BATCH)
    model.load_state_dict(model.state_dict())
    assert torch.equal(model(BATCH), wanted)


def test_a_parameter_that_is_gone_is_named():
    model = models.ours("llama")
    model.model.norm.weight = None
    with pytest.raises(ValueError, match=r"model\.norm\.weight must be a tensor, got None"):
        model(BATCH)


def test_activation_checkpoints():
    model = models.ours("neox")
    model(BATCH).sum().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.utils.checkpoint.checkpoint(model, BATCH, use_reentrant=False).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), wanted, strict=True))
