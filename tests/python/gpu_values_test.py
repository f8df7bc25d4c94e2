"""What a GPU must not be asked: values that the CPU refuses, mixed devices, too much memory. Each
is NaN or one clear error, and the process goes on."""

import gpu_models_test
import paperlab
import paperlab.ops as ops
import pytest
import torch
import training_cases as cases
from gpu_cases import BACKENDS, DOUBLE, FLOAT, backend, moved, on_devices, random
from paperlab import cca, mudd, train

OPS = torch.ops.paperlab
EACH_BACKEND = on_devices("which", [(which,) for which in BACKENDS], [("kernels",), ("torch",)])


@pytest.fixture(autouse=True)
def the_device_lives():
    """A device on which an assertion failed answers nothing any more."""
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        assert torch.ones(3, device="cuda").sum().item() == 3


def refused_or(device, call, part):
    """The call's results; on the CPU it is refused."""
    if device == "cpu":
        with pytest.raises(ValueError, match=part):
            call()
        return None
    return moved(call(), "cpu")


@EACH_BACKEND
def test_even_pairs_of_what_is_not_finite(which, device):
    with backend(which):
        for bad in (torch.nan, torch.inf):
            for name in ("u", "w"):
                u, w = random(6), random(6, 6, seed=1)
                (u if name == "u" else w)[2] = bad
                leaves = [x.to(device).requires_grad_() for x in (u, w)]

                def call(leaves=leaves):
                    loss = ops.even_pairs_loss(*leaves)
                    return loss, *torch.autograd.grad(loss, leaves)

                found = refused_or(device, call, f"even_pairs_loss: {name} must be finite")
                assert found is None or all(x.isnan().all() for x in found)


@EACH_BACKEND
@pytest.mark.parametrize("bad", [-1, 7, 2**40])
def test_targets_outside_of_the_vocabulary(which, bad, device):
    x, weight = random(5, 4, dtype=FLOAT), random(7, 4, dtype=FLOAT, seed=1)
    target = torch.tensor([3, bad, 6, -100, 0])
    right = target.clone()
    right[1] = -100
    leaves = [tensor.to(device).requires_grad_() for tensor in (x, weight)]

    def call():
        loss = ops.linear_cross_entropy(*leaves, target.to(device), reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), leaves[:1])
        mean = ops.linear_cross_entropy(*leaves, target.to(device))
        return loss, grad, mean

    with backend(which):
        found = refused_or(device, call, f"target must be 0..6 or ignore_index, got {bad}")
        wanted = ops.linear_cross_entropy(*leaves, right.to(device), reduction="none").cpu()
    if found is not None:
        loss, grad, mean = found
        rest = [0, 2, 3, 4]
        assert loss[1].isnan() and torch.equal(loss[rest], wanted[rest])
        assert grad[1].isnan().all() and grad[rest].isfinite().all() and mean.isnan()


@EACH_BACKEND
def test_key_ranges_outside_count_as_the_nearest_inside(which, device):
    q, k = random(3, 4, 5, 8, dtype=FLOAT), random(3, 2, 7, 8, dtype=FLOAT, seed=1)
    q, k = moved([q, k], device)
    start, end = torch.tensor([-(2**50), 8, 3]), torch.tensor([2**50, 7, -1])

    def call(start=start, end=end):
        leaves = [x.requires_grad_() for x in (q, k)]
        out = ops.attention(*leaves, k, key_start=start.to(device), key_end=end.to(device))
        return out, *torch.autograd.grad(out.sin().sum(), leaves)

    with backend(which):
        found = refused_or(device, call, "attention: key_start must be in 0..7")
        inside = moved(call(start.clamp(0, 7), end.clamp(0, 7)), "cpu")
    assert found is None or all(torch.equal(x, y) for x, y in zip(found, inside, strict=True))


@EACH_BACKEND
def test_starts_of_groups(which, device):
    q = random(3, 4, 7, 8, dtype=FLOAT).to(device)
    k = random(3, 2, 7, 8, dtype=FLOAT, seed=1).to(device)

    def call(start):
        leaves = [x.detach().requires_grad_() for x in (q, k)]
        core = OPS.group_pool(*leaves, k, 2, 0, torch.tensor(start, device=device))
        return *core, *torch.autograd.grad(core[0].sum(), leaves)

    with backend(which):
        wanted = moved(call([0, 1, 7]), "cpu")
        for bad in (-1, 8):
            found = refused_or(device, lambda bad=bad: call([0, bad, 7]), "start must be in 0..7")
            if found is not None:
                for x, y in zip(found, wanted, strict=True):
                    assert x[1].isnan().all()
                    assert torch.equal(x[[0, 2]], y[[0, 2]])


NAMES = [(name,) for name in ("llama", "gpt2", "cca", "mudd")]


@on_devices("name", NAMES, [("llama",)])
def test_tokens_outside_of_the_vocabulary(name, device):
    model = gpu_models_test.DECODERS[name]().to(device)
    tokens = cases.counting(0)[:, :9]
    wanted = model(tokens).detach()
    for bad in (-1, cases.VOCABULARY, 2**40):
        wrong = tokens.clone()
        wrong[2, 5] = bad
        for call in (
            lambda: model(wrong),  # noqa: B023
            lambda: model(wrong.to(device)),  # noqa: B023
            lambda: model.generate(wrong, 2),  # noqa: B023
            lambda: paperlab.eval.perplexity(model, wrong.flatten(), context=8),  # noqa: B023
            lambda: train.fit(model, lambda _: wrong, steps=1, learning_rate=0.1),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=r"tokens"):
                call()
    assert torch.equal(model(tokens), wanted)


@on_devices("name", [("bert",)], [("bert",)])
def test_tokens_and_their_types_of_an_encoder(name, device):
    model = gpu_models_test.ENCODERS[name]().to(device)
    tokens = cases.counting(0)[:, :9].to(device)
    kinds = torch.zeros_like(tokens)
    for bad in (-1, 2**40):
        wrong = tokens.clone()
        wrong[1, 3] = bad
        with pytest.raises(ValueError, match="tokens must be in 0"):
            model(wrong)
        kinds[1, 3] = bad
        with pytest.raises(ValueError, match="token_type_ids must be in 0"):
            model(tokens, None, kinds)
    assert model(tokens).isfinite().all()


def calls_of(device):
    """Functions of one tensor that lies elsewhere, with others on the device."""
    x, weight = random(5, 8).to(device), random(8).to(device)
    heads = random(1, 2, 5, 8).to(device)
    table, target = random(1, 5, 4).to(device), torch.zeros(5, dtype=torch.int64, device=device)
    states, weights = random(3, 1, 5, 8).to(device), random(2, 1, 5, 3).to(device)
    return {
        "rms_norm: weight": (lambda y: ops.rms_norm(x, y), weight),
        "swiglu: up": (lambda y: ops.swiglu(x, y), x),
        "rope: cos": (lambda y: ops.rope(heads.transpose(1, 2), y, table), table),
        "linear: weight": (lambda y: ops.linear(x, y), x),
        "linear_cross_entropy: target": (
            lambda y: ops.linear_cross_entropy(x, x, y),
            target,
        ),
        "attention: value": (lambda y: ops.attention(heads, heads, y), heads),
        "attention: key_start": (
            lambda y: ops.attention(heads, heads, heads, key_start=y),
            target[:1],
        ),
        "even_pairs_loss: w": (
            lambda y: ops.even_pairs_loss(weight, y),
            random(8, 8).to(device),
        ),
        "group_pool: start": (lambda y: OPS.group_pool(heads, heads, heads, 2, 0, y), target[:1]),
        "depth_aggregate: weights": (lambda y: mudd.depth_aggregate(states, y), weights),
        "attention: k": (lambda y: cca.attention(heads, y, heads, 2, 2), heads),
    }


@on_devices("name", [(name,) for name in calls_of("cpu")], [(name,) for name in calls_of("cpu")])
def test_tensors_of_two_devices(name, device):
    call, right = calls_of(device)[name]
    wrong = right.to("meta" if device == "cpu" else "cpu")
    with pytest.raises(ValueError, match=f"^{name} must be .*on the"):
        call(wrong)
    call(right)


@on_devices("which", [(which,) for which in BACKENDS], [("kernels",)])
def test_more_memory_than_there_is(which, device):
    # A result of 128 TiB: as much as a process can address.
    x = torch.zeros(2**22, 1, dtype=FLOAT, device=device)
    weight = torch.zeros(2**23, 1, dtype=FLOAT, device=device)
    error = torch.OutOfMemoryError if device == "cuda" else RuntimeError
    with backend(which):
        with pytest.raises(error):
            ops.linear(x, weight)
        assert torch.equal(ops.linear(x[:3], weight[:5]), x.new_zeros(3, 5))
    small = random(2, 3, dtype=DOUBLE).to(device)
    assert ops.swiglu(small, small).shape == (2, 3)
