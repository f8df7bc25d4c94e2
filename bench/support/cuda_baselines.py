"""What the GPU kernels are measured beside and compared with: LibTorch's operations alone."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from support.cuda_case import Function, Tensors
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

Tensor = torch.Tensor

# Backward passes are timed again and again over what one forward pass kept.
torch._functorch.config.donated_buffer = False

SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CHOICES = {0: "math", 1: "flash", 2: "efficient", 3: "cuDNN", 4: "overrideable"}

# --- attention ----------------------------------------------------------------------------------


def in_backend(backend: SDPBackend, function: Function) -> Function:
    """With no other backend allowed: LibTorch raises where it cannot run."""

    def call(*inputs: Tensor) -> Any:
        with sdpa_kernel(backend):
            return function(*inputs)

    return call


def chosen_backend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> str:
    """The name of the backend that scaled_dot_product_attention takes."""
    choice = torch._fused_sdp_choice(
        q, k, v, None, 0.0, causal, enable_gqa=q.shape[1] != k.shape[1]
    )
    return CHOICES.get(int(choice), f"none ({choice})")


def causal_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def full_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def softmax_rows(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Head by head, so that one matrix of logits is in memory at a time."""
    group = q.shape[1] // k.shape[1]
    rows = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            logits = q[b, h] @ k[b, h // group].T / math.sqrt(q.shape[3])
            if visible is not None:
                logits = logits.masked_fill(~visible, -math.inf)
            rows.append(torch.softmax(logits, -1) @ v[b, h // group])
    return torch.stack(rows).reshape(q.shape)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    length = q.shape[2]
    return softmax_rows(q, k, v, torch.ones(length, length, device=q.device).tril().bool())


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax_rows(q, k, v, None)


# --- core-context attention ----------------------------------------------------------------------


def num_visible(length: int, group: int, window: int) -> int:
    """Core tokens that the last of `length` tokens sees."""
    return max(0, (length - window) // group)


def num_pairs(length: int, group: int, window: int) -> int:
    """Of a query and a key, core or raw, that it sees."""
    total = length * (length + 1) // 2
    for i in range(window + group, length + 1):
        total -= (group - 1) * num_visible(i, group, window)
    return total


def pooled(q: Tensor, k: Tensor, v: Tensor, group: int, core: int) -> tuple[Tensor, Tensor]:
    """The first `core` groups' keys and values, weighted by the query of the group's last token."""
    shape = (*k.shape[:2], core, group, k.shape[3])
    keys, values = (x[:, :, : core * group].reshape(shape) for x in (k, v))
    last = q[:, :, group - 1 : core * group : group]
    logits = (keys @ last.unsqueeze(-1)) / math.sqrt(q.shape[3])
    weights = torch.softmax(logits, 3)
    return (weights * keys).sum(3), (weights * values).sum(3)


def cca_mask(length: int, group: int, window: int, device: torch.device) -> Tensor:
    """[length, core + length]: what each query sees."""
    core = num_visible(length, group, window)
    at = torch.arange(1, length + 1, device=device)[:, None]
    visible = torch.clamp((at - window) // group, min=0)
    of_core = torch.arange(core, device=device)[None] < visible
    tokens = torch.arange(1, length + 1, device=device)[None]
    return torch.cat([of_core, (tokens > group * visible) & (tokens <= at)], 1)


def cca_streams(
    q: Tensor, k: Tensor, v: Tensor, group: int, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Core keys and values before the raw ones, and the mask."""
    core_k, core_v = pooled(q, k, v, group, num_visible(q.shape[2], group, window))
    mask = cca_mask(q.shape[2], group, window, q.device)
    return torch.cat([core_k, k], 2), torch.cat([core_v, v], 2), mask


def cca_attention(q: Tensor, k: Tensor, v: Tensor, group: int, window: int) -> Tensor:
    keys, values, mask = cca_streams(q, k, v, group, window)
    return softmax_rows(q, keys, values, mask)


def cca_masked_sdpa(q: Tensor, k: Tensor, v: Tensor, group: int, window: int) -> Tensor:
    """The same by LibTorch's kernels: all keys and a mask."""
    keys, values, mask = cca_streams(q, k, v, group, window)
    return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


def flex_cca(group: int, window: int, compiled: Callable[[Function], Function]) -> Function:
    """The same by FlexAttention with a mask of blocks, which is made once for a length."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    kernel = compiled(flex_attention)
    masks: dict[int, Any] = {}

    def block_mask(length: int, core: int, device: torch.device) -> Any:
        def sees(_b: Tensor, _h: Tensor, row: Tensor, key: Tensor) -> Tensor:
            visible = torch.clamp((row + 1 - window) // group, min=0)
            token = key - core
            return ((key < core) & (key < visible)) | (
                (token >= group * visible) & (token <= row) & (key >= core)
            )

        return create_block_mask(sees, None, None, length, core + length, device=device)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, core = q.shape[2], num_visible(q.shape[2], group, window)
        if length not in masks:
            masks[length] = block_mask(length, core, q.device)
        core_k, core_v = pooled(q, k, v, group, core)
        keys, values = torch.cat([core_k, k], 2), torch.cat([core_v, v], 2)
        out: Tensor = kernel(q, keys, values, block_mask=masks[length])
        return out

    return function


# --- the loss ------------------------------------------------------------------------------------


def eager_loss(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    logits = functional.linear(x, weight)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide, target)


def chunked_loss(x: Tensor, weight: Tensor, target: Tensor, rows: int = 1024) -> Tensor:
    """Chunks of rows, whose logits the backward pass computes again."""

    def part(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = functional.linear(x, weight)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(wide, target, reduction="sum")

    total = x.new_zeros((), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    for first in range(0, x.shape[0], rows):
        chunk = slice(first, first + rows)
        total = total + checkpoint(part, x[chunk], weight, target[chunk], use_reentrant=False)
    return total / x.shape[0]


# --- what moves memory ---------------------------------------------------------------------------


def sum_of_states(states: Tensor, weights: Tensor) -> Tensor:
    """Way by way and source by source."""
    return torch.stack(
        [
            sum(
                (w[..., j, None] * states[j] for j in range(1, len(states))),
                w[..., 0, None] * states[0],
            )
            for w in weights
        ]
    )


def einsum_of_states(states: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("cbtj,jbtd->cbtd", weights, states)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


# --- the one-layer transformer -------------------------------------------------------------------

SCALE = 2.0  # divides the logits
RATES = (0.1, 0.2)  # of u and w in the first hundred steps


def length_tokens(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All strings of a length, bool [2^length, length], and -y of each: y = +1 iff the first token
    equals the last."""
    numbers = torch.arange(2**length, device=device)[:, None]
    tokens = (numbers >> torch.arange(length, device=device)[None]).bitwise_and(1).bool()
    minus_y = torch.where(tokens[:, 0] == tokens[:, -1], -1.0, 1.0).to(torch.float64)
    return tokens, minus_y


def length_loss(tokens: Tensor, minus_y: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """The mean over the strings of a length. u: [length, 2]; w: logits [2 last, length, 2]."""
    first, second = (torch.where(tokens, of[:, 1], of[:, 0]) for of in (w[0], w[1]))
    logits = torch.where(tokens[:, -1:], second, first)
    values = torch.where(tokens, u[:, 1], u[:, 0])
    score = (torch.softmax(logits, 1) * values).sum(1)
    return functional.softplus(minus_y * score).mean()


class ExplicitBatch:
    """All strings of lengths 1..max_length as tokens: the sum of the lengths' mean losses."""

    def __init__(self, max_length: int, device: torch.device, compiled: Function | None) -> None:
        self.lengths = [length_tokens(n, device) for n in range(1, max_length + 1)]
        self.compiled = compiled

    def loss(self, u: Tensor, w: Tensor) -> Tensor:
        """u: [2 max_length]; w: [2 max_length keys, 2 max_length queries]."""
        total = u.new_zeros(())
        for n, (tokens, minus_y) in enumerate(self.lengths, 1):
            of_length = w[: 2 * n, 2 * n - 2 : 2 * n].t().reshape(2, n, 2) / SCALE
            # Shorter ones have equal sizes by chance, for which they would be compiled anew.
            function = self.compiled if self.compiled is not None and n > 2 else length_loss
            total = total + function(tokens, minus_y, u[: 2 * n].reshape(n, 2), of_length)
        return total


class GatheredBatch:
    """The same with parameters chosen by index, as a training script writes it."""

    def __init__(self, max_length: int, device: torch.device) -> None:
        self.keys = 2 * max_length
        self.lengths = []
        for n in range(1, max_length + 1):
            tokens, minus_y = length_tokens(n, device)
            key = 2 * torch.arange(n, device=device) + tokens
            query = 2 * (n - 1) + tokens[:, -1:].long()
            self.lengths.append((key, key * self.keys + query, minus_y))

    def loss(self, u: Tensor, w: Tensor) -> Tensor:
        total, logits = u.new_zeros(()), w.reshape(-1) / SCALE
        for key, entry, minus_y in self.lengths:
            weights = torch.softmax(logits.index_select(0, entry.reshape(-1)).view(key.shape), 1)
            values = u.index_select(0, key.reshape(-1)).view(key.shape)
            score = (weights * values).sum(1)
            total = total + functional.softplus(minus_y * score).mean()
        return total


def training_step(make: Callable[[], ExplicitBatch | GatheredBatch]) -> Function:
    """A factory: one step of gradient descent from u and w, which it keeps; the batch is made once
    and kept for other sets of inputs."""
    batches: list[ExplicitBatch | GatheredBatch] = []

    def prepare(u: Tensor, w: Tensor, _seed: Tensor) -> Callable[[], Tensors]:
        if not batches:
            batches.append(make())
        own = [x.detach().clone().requires_grad_() for x in (u, w)]

        def step() -> Tensors:
            gradients = torch.autograd.grad(batches[0].loss(*own), own)
            with torch.no_grad():
                for x, gradient, rate in zip(own, gradients, RATES, strict=True):
                    x.sub_(gradient, alpha=rate)
            return [x.detach() for x in own]

        return step

    return prepare
