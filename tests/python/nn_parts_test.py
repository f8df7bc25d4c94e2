"""paperlab.nn: hooks that see the linear layers' inputs, and layers in the place of others."""

import decoder_models as models
import pytest
import torch
from decoder_models import DECODERS, SOME

BATCH = models.tokens(2, 9)
UP = {True: "gpt_neox.layers.1.mlp.dense_h_to_4h", False: "model.layers.1.mlp.up_proj"}


def check_close(got, wanted, share=1e-12):
    assert got.shape == wanted.shape and got.isfinite().all()
    assert (got - wanted).abs().max() <= share * wanted.abs().max()


def up_of(name):
    return UP[name.startswith("neox")]


def seen_by_hooks(model, call):
    calls = []
    with model.on_linear_input(lambda name, x: calls.append((name, x))):
        call()
    return calls


@pytest.mark.parametrize("name", DECODERS)
def test_hooks_see_the_inputs_of_the_definition_in_its_order(name):
    model = models.ours(name)
    row = BATCH[:1]
    calls = seen_by_hooks(model, lambda: model(row))
    wanted = models.linear_calls(models.hf_config(name), models.values_of(model), row[0])
    assert [n for n, _ in calls] == model.linear_names()
    assert [n for n, _ in calls] == [n for n, _ in wanted]
    for (_, x), (_, y) in zip(calls, wanted, strict=True):
        check_close(x[0], y)


@pytest.mark.parametrize("name", SOME)
def test_hooks_see_what_forward_hooks_of_transformers_see(name):
    model = models.ours(name)
    other = models.theirs(name, model)
    wanted = []
    for module_name, module in other.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, inputs, n=module_name: wanted.append((n, inputs[0]))
            )
    other(BATCH)
    calls = seen_by_hooks(model, lambda: model(BATCH))
    mine = [models.name_in_transformers(f"{n}.weight", other)[:-7] for n, _ in calls]
    assert {*mine} == {n for n, _ in wanted} and len(mine) == len(wanted)
    by_name = dict(wanted)
    for n, (_, x) in zip(mine, calls, strict=True):
        check_close(x, by_name[n], 1e-5)  # their float32 norms


def test_hooks_run_in_every_kind_of_call():
    model = models.ours("llama")
    names = model.linear_names()
    cache = model.new_cache(2, 9)
    for call, lengths in [
        (lambda: model(BATCH, models.masks(9)["holes"][:2]), [9]),
        (lambda: model(BATCH[:, :4], cache=cache), [4]),
        (lambda: model(BATCH[:, 4:], cache=cache, last_only=True), [5]),
        (lambda: model.generate(BATCH, 3, eos_token_id=None), [9, 1, 1]),
    ]:
        calls = seen_by_hooks(model, call)
        assert [n for n, _ in calls] == names * len(lengths)
        for i, (n, x) in enumerate(calls):
            weight = model.get_parameter(f"{n}.weight")
            length = lengths[i // len(names)]
            is_last = n == "lm_head" and (len(lengths) > 1 or length == 5)
            assert x.shape == (2, 1 if is_last else length, weight.shape[1])
    assert [n for n, _ in seen_by_hooks(model, lambda: model.hidden(BATCH))] == names[:-1]


def test_hooks_are_called_in_order_until_they_are_removed():
    model, calls = models.ours("llama"), []
    handles = [model.on_linear_input(lambda _, x, i=i: calls.append(i)) for i in range(3)]
    count = len(model.linear_names())
    model(BATCH)
    assert calls == [0, 1, 2] * count
    calls.clear()
    handles[1].remove()
    handles[1].remove()
    model(BATCH)
    assert calls == [0, 2] * count
    for handle in handles:
        handle.remove()
    calls.clear()
    model(BATCH)
    with pytest.raises(KeyError), model.on_linear_input(lambda _, x: calls.append(1)):
        raise KeyError
    model(BATCH)
    assert not calls


def test_a_hooks_exception_passes_and_the_model_goes_on():
    model = models.ours("neox")
    wanted = model(BATCH)
    error = KeyboardInterrupt("mine")

    def fail(name, x):
        if name == up_of("neox"):
            raise error

    with model.on_linear_input(fail):
        for call in (model, model.hidden, lambda b: model.generate(b, 2)):
            with pytest.raises(KeyboardInterrupt) as caught:
                call(BATCH)
            assert caught.value is error
    assert torch.equal(model(BATCH), wanted)


def test_gradients_through_what_a_hook_kept():
    model, kept = models.ours("llama"), {}
    with model.on_linear_input(kept.__setitem__):
        logits = model(BATCH)
    grads = torch.autograd.grad(logits.sum(), [*kept.values()], retain_graph=True)
    assert all(
        g.isfinite().all() and g.shape == x.shape for g, x in zip(grads, kept.values(), strict=True)
    )
    (grad,) = torch.autograd.grad(kept[up_of("llama")].sum(), [model.model.embed_tokens.weight])
    assert grad.any()


def test_a_hook_may_use_the_model():
    model = models.ours("llama")
    wanted, inner = model(BATCH), model(BATCH[:1, :2])
    seen = []

    def nest(name, x):
        if not seen:
            seen.append(None)
            seen.append(model(BATCH[:1, :2]))

    with model.on_linear_input(nest):
        assert torch.equal(model(BATCH), wanted)
    assert torch.equal(seen[1], inner)


@pytest.mark.parametrize("name", SOME)
def test_a_replaced_layer_is_used_everywhere_and_learns(name):
    model = models.ours(name)
    cache_free = model(BATCH).detach()
    tokens = model.generate(BATCH, 5, eos_token_id=None)
    for linear in (up_of(name), *model.linear_names()):
        weight_name = f"{linear}.weight"
        known = dict(model.named_parameters())
        weight = known.get(weight_name, next(iter(known.values())))
        bias = known.get(f"{linear}.bias")
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None).double()
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        model.replace_linear(linear, layer)
        model.zero_grad()
        logits = model(BATCH)
        check_close(logits, cache_free)
        logits.square().sum().backward()
        got = [p.grad.clone() for p in layer.parameters()]
        model.restore_linear(linear)
        model.zero_grad()
        model(BATCH).square().sum().backward()
        if weight_name in known:
            check_close(got[0], weight.grad)
        if bias is not None:
            check_close(got[1], bias.grad)
        model.replace_linear(linear, layer)
        assert torch.equal(model.generate(BATCH, 5, eos_token_id=None), tokens)
        with torch.no_grad():
            layer.weight.mul_(0.5)
        assert not torch.equal(model(BATCH), cache_free)
        model.restore_linear(linear)
        model.restore_linear(linear)  # once more does nothing
        assert torch.equal(model(BATCH), cache_free)


def test_replacing_twice_restores_the_first():
    model = models.ours("llama")
    wanted, linear = model(BATCH), up_of("llama")
    model.replace_linear(linear, lambda x: x.new_zeros(*x.shape[:-1], 80))
    zero = model(BATCH)
    model.replace_linear(linear, lambda x: x.new_ones(*x.shape[:-1], 80))
    assert not torch.equal(model(BATCH), zero)
    model.restore_linear(linear)
    assert torch.equal(model(BATCH), wanted)


def test_an_adapter_trains_beside_the_frozen_model():
    model = models.ours("llama", torch.float32).requires_grad_(False)
    linear = up_of("llama")
    weight = model.get_parameter(f"{linear}.weight")
    a = torch.nn.Parameter(torch.randn(4, weight.shape[1]) * 0.1)
    b = torch.nn.Parameter(torch.zeros(weight.shape[0], 4))
    before = model(BATCH)
    model.replace_linear(linear, lambda x: x @ weight.T + x @ a.T @ b.T)
    check_close(model(BATCH), before, 1e-5)
    optimizer = torch.optim.SGD([a, b], 0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(-model(BATCH).log_softmax(-1)[..., 3].mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_hooks_see_replaced_layers_too():
    model = models.ours("llama")
    model.replace_linear(up_of("llama"), lambda x: x.new_zeros(*x.shape[:-1], 80))
    calls = seen_by_hooks(model, lambda: model(BATCH))
    assert [n for n, _ in calls] == model.linear_names()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: None,
        lambda x: 3.0,
        lambda x: x.numpy(force=True),
        lambda x: x[..., :7],
        lambda x: x[0],
        lambda x: x[:1, :1].expand(1, 1, -1),
        lambda x: x.new_zeros(2, 80),
        lambda x: x.new_zeros(*x.shape[:-1], 80).float(),
    ],
)
def test_what_a_replaced_layer_may_not_return(wrong):
    model = models.ours("llama")
    wanted = model(BATCH)
    for linear in ("model.layers.0.self_attn.q_proj", up_of("llama"), "lm_head"):
        model.replace_linear(linear, wrong)
        with pytest.raises((ValueError, TypeError)):
            model(BATCH)
        model.restore_linear(linear)
        assert torch.equal(model(BATCH), wanted)


def test_an_exception_of_a_replaced_layer_passes():
    model = models.ours("llama")
    model.replace_linear(up_of("llama"), lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(BATCH)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda m: m.on_linear_input(None), "on_linear_input: hook must be callable"),
        (lambda m: m.on_linear_input(3), "on_linear_input: hook must be callable"),
        (lambda m: m.replace_linear("lm_head", None), "replace_linear: layer must be callable"),
        (lambda m: m.replace_linear("lm_head", 3), "replace_linear: layer must be callable"),
        (lambda m: m.replace_linear(3, abs), "replace_linear: name must be a str"),
        (lambda m: m.replace_linear("no.such", abs), "no.such"),
        (lambda m: m.replace_linear("lm_head.weight", abs), "lm_head.weight"),
        (lambda m: m.replace_linear("", abs), "name of a linear layer"),
        (lambda m: m.restore_linear("no.such"), "no.such"),
        (lambda m: m.restore_linear(None), "restore_linear: name must be a str"),
    ],
)
def test_wrong_arguments_are_refused(call, part):
    model = models.ours("llama")
    wanted = model(BATCH)
    with pytest.raises((ValueError, TypeError), match=part):
        call(model)
    assert torch.equal(model(BATCH), wanted)
