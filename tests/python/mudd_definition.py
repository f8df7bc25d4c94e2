"""MUDDFormer and its variants written down plainly: loops over layers, ways and sources."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

Parameters = dict[str, torch.Tensor]


def rms(x: torch.Tensor, eps: float, weight: torch.Tensor | None = None) -> torch.Tensor:
    y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def rotate(x: torch.Tensor, base: float, size: int) -> torch.Tensor:
    """x [B, T, H, D], the first `size` lanes rotated."""
    half = size // 2
    position = torch.arange(x.shape[1], dtype=torch.float64)[:, None]
    frequency = base ** (-2.0 * torch.arange(half, dtype=torch.float64) / size)
    angle = (position * frequency)[None, :, None, :]
    u, w, rest = x[..., :half], x[..., half:size], x[..., size:]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([u * cos - w * sin, w * cos + u * sin, rest], -1)


def gelu(x: torch.Tensor, form: str) -> torch.Tensor:
    if form == "exact":
        return x / 2 * (1 + torch.erf(x / math.sqrt(2.0)))
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / 2 * (1 + torch.tanh(inner))


class Definition:
    """The logits of a model with these parameters (published names) and the contract's options."""

    def __init__(self, parameters: Parameters, **options: Any) -> None:
        self.p = parameters
        self.o = {
            "variant": "mudd",
            "ways": "QKVR",
            "norm_eps": 1e-6,
            "rope_base": 10000.0,
            "qk_norm": False,
            "gelu": "exact",
            "dilation": 1,
            "period": 1,
            "window": None,
            "pre_post_norm": False,
            "num_streams": 4,
            "parallel_block": False,
            "parallel_residual": None,  # of the parallel block's sublayers; None: as the block
            "rotary_pct": None,
        } | options
        self.eps = self.o["norm_eps"]
        self.layers = 1 + max(int(n.split(".")[1]) for n in parameters if n.startswith("layers."))
        self.is_multiway = self.o["variant"] in ("mudd", "multiway_static", "multiway_dynamic")
        self.is_dense = self.is_multiway or self.o["variant"] in ("static", "dynamic")
        own = self.o["parallel_residual"]
        self.is_parallel = self.o["parallel_block"] if own is None else own
        self.states: list[torch.Tensor] = []
        self.weights: dict[int, torch.Tensor] = {}
        self.streams: dict[int, torch.Tensor] = {}
        self.attended: dict[int, torch.Tensor] = {}  # [B, H, T, S]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self.p[name + ".weight"]
        if name + ".bias" not in self.p:
            return rms(x, self.eps, weight)
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + self.eps) * weight + self.p[name + ".bias"]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.p[name + ".weight"].T
        return y + self.p[name + ".bias"] if name + ".bias" in self.p else y

    def attention(
        self,
        layer: int,
        xs: list[torch.Tensor],
        route: Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        name = f"layers.{layer}.attention."
        heads = self.o["num_heads"]
        q, k, v = (self.linear(name + w, x) for w, x in zip(("wq", "wk", "wv"), xs, strict=True))
        size = q.shape[-1] // heads
        q, k, v = (x.view(*x.shape[:2], -1, size) for x in (q, k, v))
        if self.o["qk_norm"]:
            q = rms(q, self.eps, self.p[name + "q_norm.weight"])
            k = rms(k, self.eps, self.p[name + "k_norm.weight"])
        k, v = route(layer, k, v)
        part = self.o["rotary_pct"] or (0.25 if self.o["parallel_block"] else 1.0)
        turned = max(2, int(size * part) // 2 * 2)
        q, k = (rotate(x, self.o["rope_base"], turned) for x in (q, k))
        k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(size)
        length = scores.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mix = self.attended[layer] = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.linear(name + "wo", torch.einsum("bhts,bshd->bthd", mix, v).flatten(2))

    def ffn(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        name = f"layers.{layer}.feed_forward."
        up = self.linear(name + "w1", x)
        if self.o["parallel_block"]:
            return self.linear(name + "w2", gelu(up, "exact"))
        return self.linear(name + "w2", up / (1 + torch.exp(-up)) * self.linear(name + "w3", x))

    def block(self, layer: int, qkvr: list[torch.Tensor], route: Any) -> torch.Tensor:
        name = f"layers.{layer}."
        one = f"{name}attention_norm"
        many = [f"{name}attention_norms.{i}" for i in range(3)]
        names = [one] * 3 if one + ".weight" in self.p else many
        xs = [self.norm(n, x) for n, x in zip(names, qkvr[:3], strict=True)]
        out = self.attention(layer, xs, route)
        if self.is_parallel:
            return qkvr[3] + out + self.ffn(layer, self.norm(name + "ffn_norm", qkvr[3]))
        y = qkvr[3] + out
        return y + self.ffn(layer, self.norm(name + "ffn_norm", y))

    def sources(self, layer: int) -> list[int]:
        newest = layer + 1
        if self.o["window"] is not None:
            return [0, *range(max(1, newest - self.o["window"] + 1), newest + 1)]
        return [
            j for j in range(newest + 1) if j % self.o["dilation"] == newest % self.o["dilation"]
        ]

    def aggregate(self, layer: int) -> list[torch.Tensor]:
        """The streams Q, K, V, R after block `layer`."""
        x = self.states[-1]
        a = self.p.get(f"dense_bs.{layer}")
        if a is None:
            return [x] * 4
        sources = self.sources(layer)
        weights = a[:, None, None, :].expand(-1, *x.shape[:2], -1)
        generator = f"dynamic_dense.{layer}."
        if generator + "w1.weight" in self.p:
            n = rms(x, self.eps, self.p.get(generator + "norm.weight"))
            hidden = gelu(n @ self.p[generator + "w1.weight"].T, self.o["gelu"])
            flat = hidden @ self.p[generator + "w2.weight"].T
            weights = weights + flat.view(*x.shape[:2], *a.shape).permute(2, 0, 1, 3)
        self.weights[layer] = weights
        ways = "R" if layer == self.layers - 1 or not self.is_multiway else self.o["ways"]
        result = []
        for c, way in enumerate(ways):
            total = torch.zeros_like(x)
            for j, source in enumerate(sources):
                state = self.states[source]
                if self.o["pre_post_norm"]:
                    state = rms(state, self.eps, self.p[f"source_norms.{source}.weight"])
                total = total + weights[c, :, :, j, None] * state
            if self.o["pre_post_norm"] is True or (self.o["pre_post_norm"] and way == "R"):
                total = rms(total, self.eps, self.p[f"post_norms.{layer}.weight"][c])
            if self.o["pre_post_norm"]:
                total = total + x
            result.append(total)
        self.streams[layer] = torch.stack(result)
        if not self.is_multiway:
            return result * 4
        by_way = dict(zip(ways, result, strict=True))
        return [by_way.get(way, x) for way in "QKVR"]

    def hyper_weights(
        self, number: int, streams: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Rows of alpha and beta of site `number`, for each stream."""
        name = f"hyper_connections.{number}."
        alpha, beta = [], []
        for r, stream in enumerate(streams):
            normed = rms(stream, self.eps, self.p[name + "norm.weight"])
            dynamic = torch.tanh(normed @ self.p[name + "dynamic_alpha_fn"])
            scale = self.p[name + "dynamic_alpha_scale"]
            alpha.append(scale * dynamic + self.p[name + "static_alpha"][r])
            dynamic = torch.tanh(normed @ self.p[name + "dynamic_beta_fn"])
            scale = self.p[name + "dynamic_beta_scale"]
            beta.append((scale * dynamic + self.p[name + "static_beta"][r])[..., None])
        return alpha, beta

    def hyper(self, x: torch.Tensor) -> torch.Tensor:
        n = self.o["num_streams"]
        streams = [x] * n

        def row(alpha: list[torch.Tensor], m: int) -> torch.Tensor:
            return sum((alpha[r][..., m, None] * streams[r] for r in range(n)), torch.zeros_like(x))

        def write(alpha: list[torch.Tensor], beta: list[torch.Tensor], out: torch.Tensor) -> None:
            streams[:] = [beta[r] * out + row(alpha, r + 1) for r in range(n)]

        for layer in range(self.layers):
            name = f"layers.{layer}."
            alpha, beta = self.hyper_weights(2 * layer, streams)
            y = self.norm(name + "attention_norm", row(alpha, 0))
            out = self.attention(layer, [y] * 3, lambda _, k, v: (k, v))
            if self.is_parallel:  # both read before either writes
                of_ffn = self.hyper_weights(2 * layer + 1, streams)
                y = self.norm(name + "ffn_norm", row(of_ffn[0], 0))
                write(alpha, beta, out)
            else:
                write(alpha, beta, out)
                of_ffn = self.hyper_weights(2 * layer + 1, streams)
                y = self.norm(name + "ffn_norm", row(of_ffn[0], 0))
            write(*of_ffn, self.ffn(layer, y))
        return torch.stack(streams).sum(0)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.p["tok_embeddings.weight"][tokens]
        self.states = [x]
        memory: list[tuple[torch.Tensor, torch.Tensor]] = []

        def route(
            layer: int, k: torch.Tensor, v: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if self.o["variant"] != "lime":
                return k, v
            memory.append((k, v))
            if layer == 0:
                return k, v
            router = self.p[f"routers.{layer}"]
            keys, values = (torch.cat(parts, 2) for parts in zip(*memory, strict=True))
            return tuple(torch.einsum("hm,btmd->bthd", router, x) for x in (keys, values))

        if self.o["variant"] == "hyper_connections":
            final = self.hyper(x)
        else:
            qkvr = [x] * 4
            for layer in range(self.layers):
                self.states.append(self.block(layer, qkvr, route))
                qkvr = self.aggregate(layer) if self.is_dense else [self.states[-1]] * 4
            final = qkvr[3]
        head = self.p.get("output.weight", self.p["tok_embeddings.weight"])
        return self.norm("norm", final) @ head.T

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of the next token."""
        logits = self(tokens)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
