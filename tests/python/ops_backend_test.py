"""paperlab.ops.set_backend: names, the environment variable, what each backend takes."""

import paperlab.ops as ops
import pytest
import torch


@pytest.fixture(autouse=True)
def backend_is_restored():
    before = ops.get_backend()
    yield
    ops.set_backend(before)


@pytest.mark.parametrize("name", ["auto", "kernels", "portable", "torch"])
def test_a_backend_is_what_was_set(name):
    ops.set_backend(name)
    assert ops.get_backend() == name


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("cuda", "one of auto, kernels, portable, torch, got 'cuda'"),
        ("", "one of auto, kernels, portable, torch, got ''"),
        (None, "a str, got NoneType"),
        (1, "a str, got int"),
    ],
)
def test_other_names_are_refused_and_change_nothing(name, part):
    ops.set_backend("kernels")
    with pytest.raises(ValueError, match=f"^set_backend: name must be {part}"):
        ops.set_backend(name)
    assert ops.get_backend() == "kernels"


def test_the_environment_variable(run_python):
    code = "import paperlab.ops as ops; print(ops.get_backend())"
    done = run_python(code, {"PAPERLAB_BACKEND": "kernels"})
    assert done.returncode == 0 and done.stdout.split() == ["kernels"], done.stderr
    done = run_python(code, {"PAPERLAB_BACKEND": "Torch"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ValueError: PAPERLAB_BACKEND must be one of auto, kernels, portable, torch, got 'Torch'"
    )


# Tensors of a GPU that need not be there; of so many states there is no CUDA kernel.
NOTICES = """
import sys, threading, warnings
import paperlab, torch
from torch._subclasses.fake_tensor import FakeTensorMode

def call():
    with FakeTensorMode():
        states = torch.empty(5000, 1, 2, 4, device="cuda")
        weights = torch.empty(1, 1, 2, 5000, device="cuda")
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        for _ in range(2):
            torch.ops.paperlab.depth_aggregate.default.redispatch(keys, states, weights)

with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter(sys.argv[1])
    try:
        if sys.argv[2] == "thread":
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        else:
            call()
        print(*(f"{w.category.__name__}: {w.message}" for w in seen), sep="\\n")
    except UserWarning as error:
        print("raised", error)
"""
NOTICE = "paperlab::depth_aggregate: CUDA tensors are left to LibTorch's operations, because this "


@pytest.mark.parametrize("where", ["here", "thread"])
def test_notices_are_warnings_once_a_process(run_python, where):
    done = run_python(["-c", NOTICES, "always", where])
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith(f"UserWarning: {NOTICE}") and done.stdout.count("\n") == 1
    done = run_python(["-c", NOTICES, "error", where])
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith(f"raised {NOTICE}")


def calls(dtype):
    x, weight = torch.ones(2, 4, dtype=dtype), torch.ones(4, dtype=dtype)
    heads, table = torch.ones(1, 2, 3, 4, dtype=dtype), torch.ones(1, 2, 2)
    return {
        "rms_norm": lambda: ops.rms_norm(x, weight),
        "swiglu": lambda: ops.swiglu(x, x),
        "rope": lambda: ops.rope(heads, table, table),
        "linear": lambda: ops.linear(x, x),
        "attention": lambda: ops.attention(heads, heads, heads),
        "linear_cross_entropy": lambda: ops.linear_cross_entropy(x, x, torch.tensor([0, 1])),
    }


@pytest.mark.parametrize("name", calls(torch.float16))
def test_half_precision_on_the_cpu_is_for_torch_alone(name):
    call = calls(torch.float16)[name]
    for backend in ("auto", "kernels"):
        ops.set_backend(backend)
        with pytest.raises(TypeError, match="must be float32, float64 or bfloat16, got Half"):
            call()
    ops.set_backend("torch")
    wanted = torch.float32 if name == "linear_cross_entropy" else torch.float16
    assert call().dtype == wanted


def test_other_dtypes_are_refused_by_every_backend():
    ops.set_backend("torch")
    for call in calls(torch.int32).values():
        with pytest.raises(TypeError, match="must be float32, float64, bfloat16 or float16"):
            call()


def test_a_backward_pass_may_have_another_backend():
    x, weight = torch.randn(3, 8).requires_grad_(), torch.randn(8).requires_grad_()
    wanted = torch.autograd.grad(ops.rms_norm(x, weight).square().sum(), (x, weight))
    loss = ops.rms_norm(x, weight).square().sum()
    ops.set_backend("torch")
    found = torch.autograd.grad(loss, (x, weight))
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected)
