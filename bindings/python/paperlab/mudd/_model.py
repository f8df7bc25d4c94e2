"""MUDDFormer and the models it is compared with, as a torch module over the C++ decoder."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt
import torch

from paperlab import _arguments, _core, nn
from paperlab.mudd._bin import BinFiles, find_bin, read_bin

_LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Trace:
    """Of one pass: what each connection read and gave."""

    states: list[torch.Tensor]
    """X_0, the embedding, and X_(l+1), the output of block l; [B, T, D] each."""
    weights: list[torch.Tensor | None]
    """Of the aggregate after block l, [C, B, T, J]; None where there is none."""
    streams: list[dict[str, torch.Tensor]]
    """Inputs "Q", "K", "V", "R" of block l, [B, T, D]; the last: "R" is the final norm's."""
    logits: torch.Tensor
    """[B, T, V]"""


class MuddFormer(nn.Decoder):
    """A decoder whose blocks read weighted sums over the outputs of all blocks before them.

    Source: Xiao, Meng, Li, Yuan, "MUDDFormer: Breaking Residual Bottlenecks in Transformers via
    Multiway Dynamic Dense Connections", ICML 2025, arXiv:2502.12170.

    vocab_size, num_layers, d_model, num_heads, d_ff: sizes; d_model is a multiple of num_heads.
    variant: "mudd" (multiway dynamic dense, Eqs. 3-8, and FFN re-allocation, Eq. 9), "base" (a
    plain Transformer++), "static" (DenseFormer, arXiv:2402.02622), "dynamic", "multiway_static",
    "multiway_dynamic", "hyper_connections" (arXiv:2409.19606, `num_streams` streams), "lime"
    (arXiv:2502.09245).
    ways: the streams that have an aggregate, some of "QKVR" in that order; the others are the last
    block's output. The last aggregate computes R alone; without R there is none.
    gelu: "exact" or "tanh", of the generators. hidden_round: a generator's hidden size K becomes
    (K // hidden_round + 1) * hidden_round (64 in the released models); 0: no rounding.
    last_hidden_expand: factor of the last generator's K.
    ffn_reallocation: whether FFN widths grow from d_ff / 2 to 3 d_ff / 2, rounded to multiples of
    `ffn_round`; None: for "mudd" alone.
    dilation, period, window: aggregates stand only after blocks i with i % period == 0 (1-based)
    and read X_j with j % dilation == i % dilation, or X_0 and the last `window` states (a window
    needs dilation 1).
    pre_post_norm: False, True (Eq. 10) or "later_revision" (a later form of the authors' code: only
    R has the norm after the sum). parallel_block: the block of Pythia (GPT-NeoX). qk_norm: RMSNorm
    of queries and keys over a head.
    seed: of the initial values; None: drawn from torch's generator. dtype: of the parameters.
    Options that a variant has no use for are checked and then ignored, as `ways` is by "static".

    Parameters have the published names and the official initial values: at first every stream is
    the newest state, so the model is the plain one. A new model is in training mode, its
    parameters on the CPU. `torch.compile(model, fullgraph=True)` does not work: the blocks run in
    C++, outside of what torch can trace (the functions and modules of `paperlab.mudd` compile).
    ValueError (a TypeError for types) if an argument is not as above, naming it.
    """

    def __init__(
        self,
        vocab_size: int,
        num_layers: int,
        d_model: int,
        num_heads: int,
        d_ff: int,
        variant: str = "mudd",
        ways: str = "QKVR",
        norm_eps: float = 1e-6,
        rope_base: float = 10000.0,
        qk_norm: bool = False,
        gelu: str = "exact",
        hidden_round: int = 0,
        last_hidden_expand: int = 4,
        ffn_reallocation: bool | None = None,
        ffn_round: int = 128,
        dilation: int = 1,
        period: int = 1,
        window: int | None = None,
        pre_post_norm: bool | str = False,
        num_streams: int = 4,
        parallel_block: bool = False,
        *,
        seed: int | None = None,
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        config = _core.MuddConfig()

        def size(name: str, value: int, low: int = 1) -> None:
            setattr(config, name, _arguments.integer("MuddFormer", name, value, low, _LARGEST))

        size("vocab_size", vocab_size)
        size("num_layers", num_layers)
        size("d_model", d_model)
        size("num_heads", num_heads)
        size("d_ff", d_ff)
        size("hidden_round", hidden_round, 0)
        size("last_hidden_expand", last_hidden_expand)
        size("ffn_round", ffn_round)
        size("dilation", dilation)
        size("period", period)
        size("num_streams", num_streams)
        if window is not None:
            size("window", window)
        config.set_variant(_arguments.text("MuddFormer", "variant", variant))
        config.ways = _arguments.text("MuddFormer", "ways", ways)
        config.norm_eps = _arguments.positive("MuddFormer", "norm_eps", norm_eps)
        config.rope_base = _arguments.positive("MuddFormer", "rope_base", rope_base)
        config.has_qk_norm = _arguments.boolean("MuddFormer", "qk_norm", qk_norm)
        config.set_gelu(_arguments.text("MuddFormer", "gelu", gelu))
        if ffn_reallocation is not None:
            config.ffn_reallocation = _arguments.boolean(
                "MuddFormer", "ffn_reallocation", ffn_reallocation
            )
        config.set_pre_post_norm(pre_post_norm_name("MuddFormer", pre_post_norm))
        config.parallel_block = _arguments.boolean("MuddFormer", "parallel_block", parallel_block)
        if seed is None:
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        seed = _arguments.integer("MuddFormer", "seed", seed, 0, 2**64 - 1)
        super().__init__(_core.new_mudd(config, seed, _arguments.dtype_name("MuddFormer", dtype)))
        self.train()

    @classmethod
    def from_pretrained(
        cls, directory: nn.Path, dtype: torch.dtype | str | None = torch.float32
    ) -> Self:
        """Returns the model of a directory in the published layout, in evaluation mode.

        directory: config.json of model_type muddformer or muddpythia and model.safetensors or
        pytorch_model.bin (which is read without running code from it), either in shards with an
        index or not. dtype: float32, float64, bfloat16 or float16, as the tensors' own must be;
        None: the files' own. The rotary table is computed in float64, so results differ from the
        released code's, whose table is quantised. Raises FileNotFoundError or another OSError, or
        ValueError naming the file and the tensor or setting: missing, unknown or misshapen
        tensors, types that are no weights', NaN, unknown settings, shards not as in their index.
        """
        name = None if dtype is None else _arguments.dtype_name("from_pretrained", dtype)
        path = _arguments.directory("from_pretrained", directory)
        file = find_bin(Path(os.fsdecode(path)))
        if file is None:
            return cls._of(_core.load_mudd(path, name))
        tensors = read_bin(file)
        values = list(tensors.values())
        return cls._of(_core.mudd_of_tensors(path, str(file), list(tensors), values, name))

    def save_pretrained(
        self,
        directory: nn.Path,
        *,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
    ) -> None:
        """Writes a directory in the published layout, which `from_pretrained` reads back.

        safe_serialization: model.safetensors; False: pytorch_model.bin, as `torch.save` writes it,
        for `torch.load(weights_only=True)`; safetensors in the directory are removed then, because
        readers prefer them. max_shard_size and the rest: as `paperlab.nn.Decoder.save_pretrained`.
        """
        if _arguments.boolean("save_pretrained", "safe_serialization", safe_serialization):
            super().save_pretrained(directory, max_shard_size=max_shard_size)
            return
        path = os.fsdecode(_arguments.directory("save_pretrained", directory))
        size = _arguments.num_bytes("save_pretrained", "max_shard_size", max_shard_size)
        self.bind()
        self.core.save_with(path, BinFiles(Path(path), size))

    @classmethod
    def _of(cls, core: _core.Decoder) -> Self:
        model = cls.__new__(cls)
        nn.Decoder.__init__(model, core)
        return model

    def __getstate__(self) -> dict[str, Any]:
        """What pickles: settings, those of `cca.apply` too, and tensors; no hooks or layers."""
        applied = _core.cca_applied(self.core)
        return self.__dict__ | {"_core": self._core.config, "_bound": {}, "_cca": applied}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        applied = rest.pop("_cca", None)
        super().__setstate__(rest)  # type: ignore[no-untyped-call]
        self._core = _core.mudd_of_config(state["_core"])
        if applied is not None:
            _core.cca_apply(self.core, applied)

    def forward(  # type: ignore[override]
        self,
        tokens: nn.Tokens,
        cache: _core.Cache | None = None,
        *,
        attention_mask: torch.Tensor | npt.NDArray[Any] | None = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        """Returns the logits [B, T, V] of the token after each; differentiable.

        tokens: [B, T] integers in 0..V-1; of no rows or no tokens the logits are empty. cache: from
        `new_cache`; the tokens are appended to it, in chunks of any length, and the logits equal
        those of one pass over all of them (no gradients). Connections mix no positions, so it holds
        keys and values alone. The others, and the errors, are those of `paperlab.nn.Decoder`.
        """
        return super().forward(tokens, attention_mask, cache=cache, last_only=last_only)

    def trace(self, tokens: nn.Tokens) -> Trace:
        """Returns what passes through the connections in one pass over tokens [B, T].

        Differentiable. ValueError if the variant is "hyper_connections" or "lime", or as `forward`.
        """
        self.bind()
        ids = self.token_ids("trace", tokens)
        states, weights, streams, logits = _core.trace_mudd(self.core, ids)
        return Trace(
            states, weights, [dict(zip("QKVR", of, strict=True)) for of in streams], logits
        )

    def generate(
        self,
        tokens: nn.Tokens,
        max_new_tokens: int,
        *,
        attention_mask: torch.Tensor | npt.NDArray[Any] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        prefill_chunk: int = 0,
        eos_token_id: Any = None,
        pad_token_id: Any = None,
        on_tokens: Callable[[torch.Tensor], bool | None] | None = None,
    ) -> torch.Tensor:
        """Returns the prompt and `max_new_tokens` new tokens, [B, T + n] int64; greedy by default.

        As `paperlab.nn.Decoder.generate`, but no token ends a row unless `eos_token_id` is given.
        """
        return super().generate(
            tokens,
            max_new_tokens,
            attention_mask=attention_mask,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            prefill_chunk=prefill_chunk,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            on_tokens=on_tokens,
        )


def pre_post_norm_name(function: str, value: bool | str) -> str:
    """What C++ calls it; `function` is for messages."""
    names: Mapping[object, str] = {False: "none", True: "eq10", "later_revision": "later_revision"}
    if not isinstance(value, bool | str) or value not in names:
        raise _arguments.ArgumentTypeError(
            f'{function}: pre_post_norm must be False, True or "later_revision", got {value!r:.60}'
        )
    return names[value]
