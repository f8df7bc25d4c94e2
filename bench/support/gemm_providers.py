"""The matrix products of a training step by three libraries: LibTorch's (MKL), OpenBLAS as numpy
has it, and paperlab's. In a process of its own: OpenBLAS reads its threads from the environment."""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import paperlab
import torch
from support.measured import Times
from support.training_case import Shape, sleep_until_idle

TOLERANCE = 1e-3  # of sums of some thousand products of normal numbers


@dataclass
class Product:
    name: str
    m: int
    n: int
    k: int
    ours: Times = field(default_factory=Times)
    mkl: Times = field(default_factory=Times)
    openblas: Times = field(default_factory=Times)
    wrong: str = ""

    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k


Step = Callable[[], object]


def normal(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def products_of(shape: Shape) -> Iterator[tuple[Product, torch.Tensor, torch.Tensor]]:
    """Each with A [M, K] and B [N, K] as views of what a step has in memory."""
    tokens = shape.tokens
    weights = ((shape.width, shape.width), (shape.ffn, shape.width), (shape.width, shape.ffn))
    for out, inner in dict.fromkeys(weights):
        x, y, weight = normal(tokens, inner, 1), normal(tokens, out, 2), normal(out, inner, 3)
        yield Product("forward", tokens, out, inner), x, weight
        yield Product("gradient of the input", tokens, inner, out), y, weight.t()
        yield Product("gradient of the weight", out, inner, tokens), y.t(), x.t()


def measure_product(product: Product, a: torch.Tensor, b: torch.Tensor, rounds: int) -> None:
    a_numpy, b_numpy = a.numpy(), b.numpy().T
    contestants: list[tuple[Times, Step]] = [
        (product.ours, lambda: paperlab.ops.linear(a, b)),
        (product.mkl, lambda: torch.mm(a, b.t())),
        (product.openblas, lambda: np.matmul(a_numpy, b_numpy)),
    ]
    exact = torch.mm(a.double(), b.t().double())
    for _, step in contestants:
        error = (torch.as_tensor(step()).double() - exact).abs().max().item()
        if not error <= TOLERANCE * product.k**0.5:
            product.wrong = f"an element is {error} off"
    for _ in range(rounds):
        for times, step in contestants:
            sleep_until_idle()
            step()
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            times.wall.append((time.perf_counter() - wall) * 1e6)
            times.cpu.append((time.process_time() - cpu) * 1e6)


def measure_products(shape: Shape, threads: int, rounds: int) -> tuple[str, list[Product]]:
    """The name of numpy's library, and the products."""
    torch.set_num_threads(threads)
    found = []
    with torch.no_grad():
        for product, a, b in products_of(shape):
            measure_product(product, a, b, rounds)
            found.append(product)
    return library_of_numpy(), found


def library_of_numpy() -> str:
    """Its name, version and the processor that it takes this one for."""
    config = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"] if isinstance(config, dict) else {}
    name = f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()
    for file in Path(np.__file__).parents[1].glob("numpy.libs/*openblas*"):
        library = ctypes.CDLL(str(file))
        for symbol in ("scipy_openblas_get_corename64_", "openblas_get_corename64_"):
            if hasattr(library, symbol):
                function = getattr(library, symbol)
                function.restype = ctypes.c_char_p
                return f"{name}, kernels for {function().decode()}"
    return name


def set_environment(threads: int) -> None:
    """Of the process to come: nothing but the threads, so that OpenBLAS knows this processor."""
    for name in [name for name in os.environ if name.startswith("OPENBLAS_")]:
        del os.environ[name]
    os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
