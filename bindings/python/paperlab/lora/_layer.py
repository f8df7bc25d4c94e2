"""A linear layer with a low-rank adapter, and its place in a model."""

import math
import zlib

import torch

from paperlab import ops
from paperlab._module import CppModule
from paperlab.nn import Decoder

_PIECE = 4 << 20  # numbers of a weight that are merged at a time


class Matrix(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)


class Layer:
    """A linear layer with an adapter. It holds modules below the model, never the model."""

    def __init__(self, base: torch.nn.Module, place: torch.nn.Module, *, is_transposed: bool):
        self.base = base  # has weight, and perhaps bias
        self.place = place  # gets lora_A and lora_B
        self.is_transposed = is_transposed
        self.scaling = 1.0
        self.dropout = 0.0
        self.kept: torch.Tensor | None = None  # the base's weight while the adapter is merged

    @property
    def is_tied(self) -> bool:
        """Whether the matrix is the embedding too."""
        return self.base is not self.place

    @property
    def a(self) -> torch.nn.Parameter:
        matrix: torch.nn.Parameter = self.place.get_parameter("lora_A.weight")
        return matrix

    @property
    def b(self) -> torch.nn.Parameter:
        matrix: torch.nn.Parameter = self.place.get_parameter("lora_B.weight")
        return matrix

    def weight(self) -> torch.Tensor:
        """[out, in]."""
        stored: torch.Tensor = self.base.weight  # type: ignore[assignment]
        return stored.t() if self.is_transposed else stored

    def base_weight(self) -> torch.Tensor:
        """The base's matrix as the model stores it, without what was merged."""
        stored: torch.Tensor = self.base.weight  # type: ignore[assignment]
        return (
            stored.detach()
            if self.kept is None
            else (self.kept.t() if self.is_transposed else self.kept)
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + b + scaling (x A^T) B^T, in x's dtype; the sum is rounded once."""
        bias: torch.Tensor | None = getattr(self.base, "bias", None)
        y = ops.linear(x, _like(x, self.weight()), None if bias is None else _like(x, bias))
        dtype = computing(torch.promote_types(x.dtype, self.a.dtype))
        low = torch.nn.functional.dropout(x.to(dtype), self.dropout, self.place.training)
        low = ops.linear(ops.linear(low, self.a.to(dtype)), self.b.to(dtype))
        return (y + low * self.scaling).to(y.dtype)

    def merge(self, name: str) -> None:
        """W + scaling B A, made in float64."""
        weight = self.weight().detach()
        self.kept = weight.clone()
        a, b = self.a.detach().double(), self.b.detach().double()
        rows = max(1, _PIECE // max(1, weight.shape[1]))
        for begin in range(0, weight.shape[0], rows):
            piece = weight[begin : begin + rows]
            merged = piece.double() + self.scaling * (b[begin : begin + rows] @ a)
            piece.copy_(merged)
            if not torch.isfinite(piece).all():
                raise ValueError(
                    f"merge: the weight of {name} must stay finite in {weight.dtype}, got "
                    "infinity or NaN"
                )

    def unmerge(self) -> None:
        if self.kept is not None:
            self.weight().detach().copy_(self.kept)
            self.kept = None


def new_layer(function: str, model: CppModule, name: str) -> Layer:
    """The layer without its adapter; of a tied head the base is the embedding's module."""
    names = [known for known, _ in model.named_parameters()]
    if f"{name}.weight" in names:
        module = model.get_submodule(name)
        is_head = name == model.linear_names()[-1]
        return Layer(module, module, is_transposed=_is_gpt2(model) and not is_head)
    if not isinstance(model, Decoder):
        raise ValueError(
            f"{function}: target_modules must name layers with a matrix of their own, got {name}"
        )
    base = model.get_submodule(names[0].rpartition(".")[0])
    return Layer(base, torch.nn.Module(), is_transposed=False)


def _is_gpt2(model: CppModule) -> bool:
    """Whether the matrices are stored as [in, out]."""
    return model.config.get("model_type") == "gpt2"


def initial(
    weight: torch.Tensor, name: str, rank: int, seed: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    num_out, num_in = weight.shape
    generator = torch.Generator().manual_seed((seed ^ zlib.crc32(name.encode())) & (2**63 - 1))
    bound = 1.0 / math.sqrt(num_in)
    a = torch.empty(rank, num_in, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
    return a.to(dtype), torch.zeros(num_out, rank, dtype=dtype)


def computing(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _like(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """float16 parameters are computed with in float32, which the input then is."""
    return value.to(x.dtype) if value.dtype == torch.float16 else value
