"""Depth-wise aggregation as torch modules."""

import torch

from paperlab import _arguments
from paperlab.mudd._functions import (
    Gelu,
    States,
    check_gelu,
    checked,
    connection_weights,
    summed,
)

__all__ = ["ConnectionWeightGenerator", "DepthAggregate"]

_LARGEST = 2**31 - 1
_MOST_WEIGHTS = 2**44  # their bytes fit into the addresses of a process


class ConnectionWeightGenerator(torch.nn.Module):
    """Weights of J sources in C ways for each token, from its newest state.

    Parameters: `w1.weight` [K, D] with K = C*J, `w2.weight` [C*J, K], `a` [C, J]; w1 is drawn from
    N(0, 1/D), w2 is 0 and a is 1 for the newest source (the last) and 0 for the others, so that at
    first every stream is the newest state.
    d_model: D. num_sources: J. ways: C. eps, gelu: as in `connection_weights`.

    Raises ValueError or TypeError if an argument is not as above, or memory does not hold the
    weights.
    Source: MUDDFormer (Xiao et al., ICML 2025, arXiv:2502.12170), Eq. (6).
    """

    def __init__(
        self,
        d_model: int,
        num_sources: int,
        ways: int = 4,
        *,
        eps: float = 1e-6,
        gelu: Gelu = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.d_model, self.num_sources, self.ways = _sizes(name, d_model, num_sources, ways)
        self.eps = _arguments.positive(name, "eps", eps)
        check_gelu(name, gelu)
        self.gelu: Gelu = gelu
        count = self.ways * self.num_sources
        _check_memory(name, count * (self.d_model + count), device, dtype)
        self.w1 = torch.nn.Linear(self.d_model, count, bias=False, device=device, dtype=dtype)
        self.w2 = torch.nn.Linear(count, count, bias=False, device=device, dtype=dtype)
        self.a = torch.nn.Parameter(
            torch.empty(self.ways, self.num_sources, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws w1 anew; w2 and a become what they are at first."""
        with torch.no_grad():
            self.w1.weight.normal_(0.0, self.d_model**-0.5)
            self.w2.weight.zero_()
            self.a.zero_()
            self.a[:, -1] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weights [C, B, T, J] of x [B, T, D]; dtypes and errors as the function's."""
        return connection_weights(
            x,
            self.w1.weight.t(),
            self.w2.weight.t(),
            self.a,
            ways=self.ways,
            eps=self.eps,
            gelu=self.gelu,
        )

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, num_sources={self.num_sources}, ways={self.ways}"


class DepthAggregate(torch.nn.Module):
    """C sums over J states with weights that each token generates from the newest of them.

    Parameters: those of its `generator`, a ConnectionWeightGenerator of the same arguments; at
    first every stream is the newest state.
    """

    def __init__(
        self,
        d_model: int,
        num_sources: int,
        ways: int = 4,
        *,
        eps: float = 1e-6,
        gelu: Gelu = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d_model, num_sources, ways = _sizes(type(self).__name__, d_model, num_sources, ways)
        self.generator = ConnectionWeightGenerator(
            d_model, num_sources, ways, eps=eps, gelu=gelu, device=device, dtype=dtype
        )

    def forward(self, states: States) -> torch.Tensor:
        """Returns the streams [C, B, T, D] of states [J, B, T, D], or of a list of J [B, T, D].

        A list is not copied: `depth_aggregate`.

        Raises ValueError or TypeError, before any work, if there are not J states of width D, or
        for dtypes and layouts that `depth_aggregate` refuses.
        """
        given = checked("DepthAggregate", states)
        if isinstance(given, torch.Tensor):
            shape = list(given.shape)
        else:
            shape = [len(given), *given[0].shape]
        sources, width = self.generator.num_sources, self.generator.d_model
        if len(shape) != 4 or (shape[0], shape[3]) != (sources, width):
            raise ValueError(
                f"DepthAggregate: states must be [{sources}, B, T, {width}], got {shape}"
            )
        return summed(given, self.generator(given[-1]))


def _sizes(name: str, d_model: int, num_sources: int, ways: int) -> tuple[int, int, int]:
    width = _arguments.integer(name, "d_model", d_model, 1, _LARGEST)
    sources = _arguments.integer(name, "num_sources", num_sources, 1, _LARGEST)
    count = _arguments.integer(name, "ways", ways, 1, _LARGEST)
    hidden = count * sources
    if hidden * (width + hidden) > _MOST_WEIGHTS:
        raise ValueError(
            f"{name}: d_model, num_sources and ways must make at most 2^44 weights, got "
            f"{width}, {sources} and {count}"
        )
    return width, sources, count


def _check_memory(
    name: str, size: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    if size < 2**24:
        return
    try:
        torch.empty(size, device=device, dtype=dtype)
    except RuntimeError as error:
        raise ValueError(
            f"{name}: d_model, num_sources and ways must make weights that memory holds, got {size}"
        ) from error
