"""paperlab.ops.linear_cross_entropy: values, gradients, registration, memory, wrong arguments."""

import math
import sys

import paperlab
import pytest
import torch
from paperlab.ops import linear_cross_entropy
from torch.nn import functional

OPERATOR = torch.ops.paperlab.linear_cross_entropy
BACKWARD = torch.ops.paperlab.linear_cross_entropy_backward
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-23}


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def targets(shape, vocabulary, ignored=0.3, ignore_index=-100):
    generator = torch.Generator().manual_seed(9)
    target = torch.randint(0, vocabulary, shape, generator=generator)
    return target.masked_fill(torch.rand(shape, generator=generator) < ignored, ignore_index)


def formula(x, weight, target, bias=None, ignore_index=-100, reduction="mean", z_loss=0.0):
    """In the dtype of x; the loss of bfloat16 in float32."""
    logits = functional.linear(x, weight, bias)
    rows = logits.reshape(-1, logits.shape[-1])
    rows = rows.float() if rows.dtype == torch.bfloat16 else rows
    flat = target.reshape(-1)
    loss = functional.cross_entropy(rows, flat, ignore_index=ignore_index, reduction="none")
    counted = flat != ignore_index
    loss = loss + torch.where(counted, z_loss * torch.logsumexp(rows, 1).square(), 0.0)
    if reduction == "none":
        return loss.reshape(target.shape)
    return loss.sum() / counted.sum() if reduction == "mean" else loss.sum()


def results(function, tensors, target, grad, **options):
    """The loss and the gradients of x, weight and, if it is there, bias."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    bias = leaves[2] if len(leaves) > 2 else None
    loss = function(leaves[0], leaves[1], target, bias=bias, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves, grad.to(loss.dtype))


def norms(tensors, target, grad, ignore_index=-100, reduction="mean", z_loss=0.0):
    """The sums of absolute values behind the results, and the largest |logit|."""
    x, weight = (tensor.double() for tensor in tensors[:2])
    bias = tensors[2].double() if len(tensors) > 2 else None
    logits = functional.linear(x, weight, bias).reshape(-1, len(weight))
    lse = torch.logsumexp(logits, 1)
    flat = target.reshape(-1)
    counted = (flat != ignore_index).double()
    share = counted / counted.sum() if reduction == "mean" else counted
    onehot = functional.one_hot(flat.clamp(0, len(weight) - 1), len(weight))
    size = share * grad.double().reshape(-1).expand(len(flat)).abs()
    p = torch.exp(logits - lse[:, None]) * (1 + 2 * z_loss * lse.abs())[:, None]
    p = p.clamp_min(2.0**-103)  # times eps: below float32's smallest normal number p is 0
    of_logits = size[:, None] * (p + onehot)
    of_rows = share * (lse.abs() + (logits * onehot).sum(1).abs() + z_loss * lse.square())
    loss = of_rows.reshape(target.shape) if reduction == "none" else of_rows.sum()
    rows = x.reshape(-1, x.shape[-1])
    of_x = (of_logits @ weight.abs()).reshape(x.shape)
    return (loss, of_x, of_logits.t() @ rows.abs(), of_logits.sum(0)), logits.abs().max()


def assert_within_the_bound(tensors, target, grad, **options):
    """Twice the error of the formula in the working dtype, half an ulp, and eps times norms."""
    dtype = tensors[0].dtype
    # What is called exact is not in float64: a rounding for each term of a sum.
    terms = tensors[0].numel() + len(tensors[1]) if dtype == torch.float64 else 4
    got = results(linear_cross_entropy, tensors, target, grad, **options)
    plain = results(formula, tensors, target, grad, **options)
    exact = results(formula, [tensor.double() for tensor in tensors], target, grad, **options)
    sums, largest = norms(tensors, target, grad, **options)
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for index, (found, simple, wanted) in enumerate(zip(got, plain, exact, strict=True)):
        assert found.shape == wanted.shape
        error = (simple.double() - wanted).abs()
        half_ulp = torch.finfo(found.dtype).eps / 2 * wanted.abs()
        rounding = EPS[dtype] * sums[index] * (terms + largest)
        assert ((found.double() - wanted).abs() <= 2 * error + half_ulp + rounding).all(), index


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.02])
@pytest.mark.parametrize(
    ("shape", "vocabulary"),
    [((1, 3), 1), ((5, 7), 13), ((2, 9, 48), 300), ((70, 33), 1025), ((3, 2, 4, 5), 2200)],
)
def test_values_and_gradients_are_those_of_the_formula(
    dtype, reduction, adds, z_loss, shape, vocabulary
):
    tensors = [random(*shape, dtype=dtype, seed=1), random(vocabulary, shape[-1], dtype=dtype)]
    if adds:
        tensors.append(random(vocabulary, dtype=dtype, seed=3))
    target = targets(shape[:-1], vocabulary, ignored=0.3 if math.prod(shape[:-1]) > 1 else 0.0)
    grad = random(*(shape[:-1] if reduction == "none" else ()), seed=4)
    assert_within_the_bound(tensors, target, grad, reduction=reduction, z_loss=z_loss)


@DTYPES
def test_chunks_of_rows_and_columns(dtype):
    tensors = [random(4300, 8, dtype=dtype, seed=1), random(1100, 8, dtype=dtype, seed=2)]
    assert_within_the_bound(tensors, targets((4300,), 1100), torch.ones(()))


@DTYPES
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_large_logits(dtype, scale):
    tensors = [scale * random(20, 16, dtype=dtype, seed=1), random(90, 16, dtype=dtype, seed=2)]
    assert_within_the_bound(tensors, targets((20,), 90), torch.ones(()))


@pytest.mark.parametrize("ignore_index", [-100, -1, 3, 10**12])
def test_any_index_may_be_ignored(ignore_index):
    tensors = [random(20, 6, seed=1), random(9, 6, seed=2)]
    target = targets((20,), 9, ignore_index=ignore_index)
    assert_within_the_bound(tensors, target, torch.ones(()), ignore_index=ignore_index)


@DTYPES
def test_all_ignored(dtype):
    tensors = [random(n, 6, dtype=dtype, seed=n).requires_grad_() for n in (4, 9)]
    target = torch.full((4,), -100)
    for reduction, wanted in (("mean", math.nan), ("sum", 0.0), ("none", 0.0)):
        loss = linear_cross_entropy(*tensors, target, reduction=reduction, z_loss=0.1)
        assert torch.equal(loss.isnan(), torch.full_like(loss, wanted).isnan())
        assert (loss.nan_to_num(nan=0.0) == 0).all()
        grads = torch.autograd.grad(loss.sum(), tensors)
        assert all((grad == 0).all() for grad in grads)


def test_no_rows():
    x, weight = random(0, 3, 6).requires_grad_(), random(9, 6).requires_grad_()
    target = torch.zeros(0, 3, dtype=torch.int64)
    assert linear_cross_entropy(x, weight, target).isnan()
    assert linear_cross_entropy(x, weight, target, reduction="none").shape == (0, 3)
    loss = linear_cross_entropy(x, weight, target, reduction="sum")
    grads = torch.autograd.grad(loss, (x, weight))
    assert loss == 0 and grads[0].shape == x.shape and (grads[1] == 0).all()


def test_one_row_without_leading_dimensions():
    x, weight, target = random(6), random(9, 6, seed=1), torch.tensor(4)
    loss = linear_cross_entropy(x, weight, target, reduction="none")
    assert loss.shape == ()
    torch.testing.assert_close(loss, formula(x, weight, target))


@REDUCTIONS
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradcheck(reduction, z_loss):
    x, weight = random(2, 3, 5).requires_grad_(), random(7, 5, seed=1).requires_grad_()
    bias, target = random(7, seed=2).requires_grad_(), targets((2, 3), 7)
    assert torch.autograd.gradcheck(
        lambda x, weight, bias: linear_cross_entropy(
            x, weight, target, bias=bias, reduction=reduction, z_loss=z_loss
        ),
        (x, weight, bias),
    )


def test_a_tied_embedding_gets_both_gradients():
    embedding, tokens = random(11, 6).requires_grad_(), targets((3, 4), 11, ignored=0.0)

    def loss(function):
        x = torch.tanh(functional.embedding(tokens, embedding))
        return torch.autograd.grad(function(x, embedding, tokens.roll(1)), embedding)[0]

    torch.testing.assert_close(loss(linear_cross_entropy), loss(formula))


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_gradients_of_one_tensor_alone(wanted):
    tensors = {"x": random(3, 5), "weight": random(4, 5), "bias": random(4)}
    tensors[wanted].requires_grad_()
    target = targets((3,), 4)
    loss = linear_cross_entropy(target=target, **tensors)
    loss.backward()
    exact = torch.autograd.grad(formula(target=target, **tensors), tensors[wanted])[0]
    torch.testing.assert_close(tensors[wanted].grad, exact)
    assert all((tensor.grad is not None) == (name == wanted) for name, tensor in tensors.items())


def test_without_a_gradient_no_node_is_made():
    x, weight, target = random(3, 5), random(4, 5).requires_grad_(), targets((3,), 4)
    assert linear_cross_entropy(x, weight, target).grad_fn is not None
    with torch.no_grad():
        assert linear_cross_entropy(x, weight, target).grad_fn is None
    with torch.inference_mode():
        assert linear_cross_entropy(x, weight, target).isfinite()


@DTYPES
def test_the_operators_results(dtype):
    x, weight, target = random(2, 3, 5, dtype=dtype), random(7, 5, dtype=dtype), targets((2, 3), 7)
    options = {"bias": random(7, dtype=dtype), "ignore_index": -100, "z_loss": 0.1}
    loss, lse = OPERATOR(x=x, weight=weight, target=target, reduction="none", **options)
    logits = functional.linear(x.double(), weight.double(), options["bias"].double())
    tolerance = 100 * EPS[dtype]
    wanted = torch.logsumexp(logits, -1).reshape(-1)
    torch.testing.assert_close(lse.double(), wanted, atol=tolerance, rtol=tolerance)
    assert loss.shape == target.shape and lse.shape == (6,) and lse.dtype == loss.dtype
    grads = BACKWARD(
        grad_loss=torch.ones_like(loss), x=x, weight=weight, target=target, lse=lse,
        reduction="none", **options
    )  # fmt: skip
    assert [grad.shape for grad in grads] == [x.shape, weight.shape, (7,)]
    assert all(grad.dtype == dtype for grad in grads)


@REDUCTIONS
@pytest.mark.parametrize("adds", [False, True])
def test_opcheck(reduction, adds):
    x, weight = random(2, 4, 6).requires_grad_(), random(3, 6, seed=1).requires_grad_()
    bias = random(3, seed=2).requires_grad_() if adds else None
    target = targets((2, 4), 3)
    options = (bias, -100, reduction, 0.1)
    torch.library.opcheck(OPERATOR, (x, weight, target, *options))
    loss, lse = (result.detach() for result in OPERATOR(x, weight, target, *options))
    fixed = [None if tensor is None else tensor.detach() for tensor in (x, weight, bias)]
    torch.library.opcheck(
        BACKWARD,
        (torch.ones_like(loss), *fixed[:2], target, lse, fixed[2], -100, reduction, 0.1),
    )


@pytest.mark.parametrize("dynamic", [True, False])
def test_compiles_as_one_graph(dynamic):
    def loss(x, weight, bias, target):
        return 2 * linear_cross_entropy(torch.tanh(x), weight, target, bias=bias, z_loss=0.1)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (3, 8):
        leaves = [random(*s, seed=sum(s)).requires_grad_() for s in ((2, rows, 6), (9, 6), (9,))]
        target = targets((2, rows), 9)
        got = torch.autograd.grad(compiled(*leaves, target), leaves)
        wanted = torch.autograd.grad(loss(*leaves, target), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@DTYPES
def test_strided_inputs_are_neither_changed_nor_aliased(dtype):
    base, target = random(40, 30, dtype=dtype), targets((60,), 50)[::2]
    big = random(60, 80, dtype=dtype, seed=1)
    before, big_before, target_before = base.clone(), big.clone(), target.clone()
    for x, weight in (
        (base.t(), big[:50, :40]),
        (base[:30, :20], big[:20, :50].t()),
        (base[:30, ::3], big[:50, ::8]),
        (base[:1].expand(30, 30), big[3:53, 2:32]),
        (base[:30, 1:2], big[:1, :50].t()),
        (base[:30, :6], big[:50, :1].expand(50, 6)),
    ):
        dense = [x.contiguous(), weight.contiguous()]
        ones = torch.ones(())
        got = results(linear_cross_entropy, [x, weight], target, ones)
        wanted = results(linear_cross_entropy, dense, target.contiguous(), ones)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)
    assert torch.equal(base, before) and torch.equal(big, big_before)
    assert torch.equal(target, target_before)


@DTYPES
def test_the_bits_do_not_depend_on_the_threads(dtype):
    tensors = [random(300, 64, dtype=dtype), random(5000, 64, dtype=dtype, seed=1)]
    tensors.append(random(5000, dtype=dtype, seed=2))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(
                results(linear_cross_entropy, tensors, targets((300,), 5000), torch.ones(()))
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# Prints the bytes that one step takes beyond what lives before it and its gradients. The peak is
# reset after a small step, which loads what a first call loads.
MEMORY = """
import sys, torch
from torch.nn import functional
from paperlab.ops import linear_cross_entropy

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def eager(x, weight, target):
    return functional.cross_entropy(functional.linear(x, weight), target)

def tensors(rows, width, vocabulary):
    return (torch.randn(rows, width, requires_grad=True),
            torch.randn(vocabulary, width, requires_grad=True),
            torch.randint(0, vocabulary, (rows,)))

function = {"eager": eager, "ours": linear_cross_entropy}[sys.argv[1]]
sizes = [int(size) for size in sys.argv[2:]]
function(*(small := tensors(64, 32, 300))).backward()
x, weight, target = tensors(*sizes)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
function(x, weight, target).backward()
print(status("VmHWM") - before - x.nbytes - weight.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("sizes", [(2048, 64, 16384), (1024, 128, 32000)])
def test_extra_memory_is_a_tenth_of_the_eager_forms(run_python, sizes):
    def extra(name):
        done = run_python(["-c", MEMORY, name, *map(str, sizes)])
        if "clear_refs" in done.stderr:
            pytest.skip("the peak cannot be reset here")
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    ours, eager = extra("ours"), extra("eager")
    assert eager > 2 * 4 * sizes[0] * sizes[2]
    assert ours <= 0.1 * eager + 2**23, (ours, eager)  # pages that a first large call touches


X, W, T, B = torch.ones(2, 4), torch.ones(3, 4), torch.tensor([0, 2]), torch.ones(3)
WRONG = [
    (([1.0], W, T), {}, "x must be a torch.Tensor"),
    ((X, None, T), {}, "weight must be a torch.Tensor"),
    ((X, W, [0, 2]), {}, "target must be a torch.Tensor"),
    ((X, W, T), {"bias": 1.0}, "bias must be a torch.Tensor"),
    ((X.int(), W.int(), T), {}, "x must be float32"),
    ((X.half(), W.half(), T), {}, "x must be float32"),
    ((X, W.double(), T), {}, "weight must be of the dtype"),
    ((X, W, T.int()), {}, "target must be int64"),
    ((X, W, T.float()), {}, "target must be int64"),
    ((X, W, T), {"bias": B.double()}, "bias must be of the dtype"),
    ((torch.ones(()), W, T), {}, "x must be"),
    ((X, torch.ones(4), T), {}, "weight must be"),
    ((X, torch.ones(3, 5), T), {}, "weight must be"),
    ((X, torch.ones(0, 4), T), {}, "weight must be"),
    ((X, W, T[:1]), {}, "target must be"),
    ((X, W, T[None]), {}, "target must be"),
    ((X, W, T), {"bias": torch.ones(4)}, "bias must be"),
    ((X, W, T), {"bias": torch.ones(1, 3)}, "bias must be"),
    ((X, W, torch.tensor([0, 3])), {}, "target must be"),
    ((X, W, torch.tensor([-1, 0])), {}, "target must be"),
    ((X, W, torch.tensor([-100, 0])), {"ignore_index": 0}, "target must be"),
    ((X, W, T), {"ignore_index": 1.5}, "ignore_index must be"),
    ((X, W, T), {"reduction": "average"}, "reduction must be"),
    ((X, W, T), {"reduction": None}, "reduction must be"),
    ((X, W, T), {"z_loss": -1.0}, "z_loss must be"),
    ((X, W, T), {"z_loss": math.nan}, "z_loss must be"),
    ((X, W, T), {"z_loss": "a"}, "z_loss must be"),
    ((X.to_sparse(), W, T), {}, "x must be strided"),
    ((X, W.to_sparse(), T), {}, "weight must be strided"),
    ((X.to("meta"), W, T), {}, "weight must be on the device"),
    ((X, W, T.to("meta")), {}, "target must be on the device"),
]


@pytest.mark.parametrize(("arguments", "options", "part"), WRONG)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_wrong_arguments_are_refused(arguments, options, part, needs_grad):
    if needs_grad and isinstance(arguments[1], torch.Tensor) and arguments[1].is_floating_point():
        arguments = (arguments[0], arguments[1].clone().requires_grad_(), arguments[2])
    with pytest.raises((ValueError, TypeError), match=f"linear_cross_entropy: {part}"):
        linear_cross_entropy(*arguments, **options)


def is_of_the_operators_types(arguments, options):
    tensors = [*arguments, *([options["bias"]] if "bias" in options else [])]
    plain = {"ignore_index": int, "reduction": str, "z_loss": float}
    return all(isinstance(tensor, torch.Tensor) for tensor in tensors) and all(
        isinstance(options.get(name, kind()), kind) for name, kind in plain.items()
    )


DIRECT = [case for case in WRONG if is_of_the_operators_types(*case[:2])]


@pytest.mark.parametrize(("arguments", "options", "part"), DIRECT)
def test_the_operators_refuse_them_too(arguments, options, part):
    with pytest.raises((ValueError, TypeError), match=f"linear_cross_entropy: {part}"):
        OPERATOR(*arguments, **options)
    loss, lse = torch.zeros(()), torch.zeros(2)
    with pytest.raises((ValueError, TypeError), match="linear_cross_entropy_backward: "):
        BACKWARD(loss, *arguments, lse, **options)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"grad_loss": torch.ones(2)}, "grad_loss must be"),
        ({"grad_loss": torch.ones((), dtype=torch.float64)}, "grad_loss must be"),
        ({"lse": torch.ones(3)}, "lse must be"),
        ({"lse": torch.ones(2, 1)}, "lse must be"),
        ({"lse": torch.ones(2).double()}, "lse must be"),
        ({"lse": torch.ones(2, device="meta")}, "lse must be on the device"),
    ],
)
def test_wrong_arguments_of_the_gradient_are_refused(change, part):
    arguments = {"grad_loss": torch.ones(()), "x": X, "weight": W, "target": T}
    with pytest.raises((ValueError, TypeError), match=part):
        BACKWARD(**(arguments | {"lse": torch.ones(2)} | change))


def test_the_module_lists_it():
    assert "linear_cross_entropy" in paperlab.ops.__all__


def test_autocast_is_that_of_linear():
    x, weight, bias = random(5, 7), random(11, 7, seed=1), random(11, seed=2)
    target = targets((5,), 11, ignored=0.0)
    floats, halves = ([t.to(d) for t in (x, weight, bias)] for d in (torch.float32, torch.bfloat16))
    wanted = linear_cross_entropy(*halves[:2], target, bias=halves[2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for x_, weight_, bias_ in (floats, halves, [halves[0], *floats[1:]]):
            leaf = weight_.clone().requires_grad_()
            loss = linear_cross_entropy(x_, leaf, target, bias=bias_)
            assert loss.dtype == torch.float32 and torch.equal(loss, wanted)
            loss.backward()
            assert leaf.grad.dtype == weight_.dtype and leaf.grad.abs().sum() > 0
        wide = linear_cross_entropy(x, weight, target, bias=bias)
        assert wide.dtype == torch.float64
    assert torch.equal(wide, linear_cross_entropy(x, weight, target, bias=bias))
    with pytest.raises(TypeError, match="weight must be of the dtype of x"):
        linear_cross_entropy(halves[0], floats[1], target)
