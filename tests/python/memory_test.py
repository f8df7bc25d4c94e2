"""Memory that runs out: one clear error, and the process goes on as if the call had not been."""

import cca_models
import decoder_models as models
import paperlab.ops as ops
import pytest
import torch
import training_cases as cases
from limited_memory import ACCELERATOR, CPU, DEVICE, allocations, refused
from paperlab import cca, train

KINDS = {DEVICE: torch.OutOfMemoryError, ACCELERATOR: torch.AcceleratorError, CPU: RuntimeError}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with cases.one_thread():
        yield


def llama():
    return models.ours("llama", torch.float64, max_position_embeddings=400)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_memory(kind):
    model, tokens = llama(), models.tokens(2, 9)
    calls = {
        "forward": lambda: model(tokens),
        "generate": lambda: model.generate(tokens, 3, eos_token_id=None),
        "core": lambda: cca.KVCache(2, 3).prefill(*torch.ones(3, 1, 2, 9, 4)),
    }
    for call in calls.values():
        wanted, count = call(), allocations(call)
        assert count > 2
        for number in (0, count // 2, count - 1):
            with refused(number, kind), pytest.raises(KINDS[kind], match="no memory left") as error:
                call()
            assert error.type is KINDS[kind]
        assert torch.equal(call(), wanted)


def test_a_cache_that_the_cpu_has_no_memory_for_names_its_sizes():
    model = llama()
    sizes = "new_cache: batch_size and max_length must be such that the keys fit into memory"
    for number in range(4):  # keys and values of two layers
        with refused(number, CPU), pytest.raises(ValueError, match=f"^{sizes}, got 3 and 17: "):
            model.new_cache(3, 17)
        for kind in (DEVICE, ACCELERATOR):
            with refused(number, kind), pytest.raises(KINDS[kind], match="no memory left"):
                model.new_cache(3, 17)
    assert model.new_cache(3, 17).num_bytes > 0


# Every allocation of a call fails once; the same call again continues the text. A layer before the
# one that failed has taken the tokens already.
@pytest.mark.parametrize("sizes", [(14, 1), (5, 8), (90, 90), (12, 90)], ids=str)
@pytest.mark.parametrize("name", ["full", "cca"])
def test_a_call_without_memory_leaves_its_cache_as_it_was(name, sizes):
    model = llama() if name == "full" else cca.apply(llama(), **cca_models.CASE.options())
    first, count = sizes
    batch = models.tokens(1, first + 2 * count)
    whole = model(batch)
    cache = model.new_cache(1, batch.shape[1])
    model(batch[:, :first], cache=cache)
    copy = model.new_cache(1, batch.shape[1])
    model(batch[:, :first], cache=copy)
    last = allocations(lambda: model(batch[:, first : first + count], cache=copy))
    for number in range(0, last, 3):
        with refused(number), pytest.raises(torch.OutOfMemoryError):
            model(batch[:, first : first + count], cache=cache)
        assert cache.length == first
    rest = [model(batch[:, first : first + count], cache=cache)]
    rest += [model(batch[:, first + count :], cache=cache)]
    cca_models.check_close(torch.cat(rest, 1), whole[:, first:])


def fitted(model):
    return train.fit(model, lambda step: models.tokens(2, 9), steps=1, learning_rate=1e-3)


# Python code that LibTorch calls: its own exception comes back.
def test_an_exception_of_a_hook_stays_what_it_is():
    model = llama()
    parameter = model.get_parameter("model.norm.weight")

    def fail(grad):
        raise KeyError("no")

    handle = parameter.register_hook(fail)
    with pytest.raises(KeyError, match="no"):
        model(models.tokens(1, 3)).sum().backward()
    with pytest.raises(KeyError, match="no"):
        fitted(model)
    handle.remove()
    assert len(fitted(model)["loss"]) == 1


# Logits of 4 rows and float32 copies of a part of the vocabulary are smaller than the gradient.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_gradient_of_a_head_is_summed_where_it_lies(dtype):
    before = ops.get_backend()
    ops.set_backend("torch")
    try:
        weight = torch.randn(20000, 64).to(dtype).requires_grad_()
        loss = ops.linear_cross_entropy(torch.randn(4, 64).to(dtype), weight, torch.arange(4))
        size = weight.numel() * weight.element_size()
        assert allocations(lambda: torch.autograd.grad(loss, weight), size) == 1
    finally:
        ops.set_backend(before)
