"""Decoders: load a Hugging Face directory, run it, generate, save.

The model is C++; its parameters are torch tensors that both see. Architectures: Llama, Mistral,
Qwen2, Qwen3, GPT-NeoX.
"""

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from paperlab import _arguments, _core
from paperlab._hooks import HookHandle
from paperlab._tokens import mask_tensor, token_tensor

__all__ = ["Cache", "Decoder", "HookHandle", "from_config", "load"]

Tokens = torch.Tensor | npt.NDArray[Any] | Sequence[Sequence[int]]
Path = _arguments.Path
Cache = _core.Cache


class _Default:
    def __repr__(self) -> str:
        return "the model's own"


_MODELS_OWN = _Default()


class Decoder(torch.nn.Module):
    """A causal decoder; `load` and `from_config` make one.

    `named_parameters()` have the names of Hugging Face checkpoints and share memory with the C++
    model; a tied head is listed once, as the embedding. Training, moving and exchanging parameters
    work as with any `torch.nn.Module`.
    """

    def __init__(self, core: _core.Decoder) -> None:
        super().__init__()
        self._core = core
        self._bound: dict[str, torch.Tensor] = {}
        self._places: list[tuple[str, torch.nn.Module, str]] = []
        for name, value in core.parameters():
            *path, leaf = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, torch.nn.Parameter(value))
            self._places.append((name, module, leaf))
        self.eval()

    @property
    def config(self) -> dict[str, Any]:
        """The settings of config.json, as they were read."""
        settings: dict[str, Any] = json.loads(self._core.config)
        return settings

    @property
    def vocab_size(self) -> int:
        """V, the size of the logits."""
        return self._core.vocab_size

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model reads; a longer one is refused."""
        return self._core.max_positions

    def forward(
        self,
        tokens: Tokens,
        attention_mask: torch.Tensor | npt.NDArray[Any] | None = None,
        token_type_ids: None = None,
        *,
        cache: _core.Cache | None = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        """Returns the logits [B, T, V] of the token after each; differentiable.

        tokens: [B, T] integers in 0..V-1; of no rows or no tokens the logits are empty.
        attention_mask: [B, T], not zero where a token counts; positions count these alone, and
        logits at the others mean nothing. token_type_ids: a decoder has none. cache: from
        `new_cache`; the tokens are appended to it (no gradients; a mask comes with the first call
        and hides tokens on the left). last_only: [B, 1, V].

        Raises ValueError or TypeError, before any work and with the cache as it was, if an argument
        is not as above, or if more tokens count than `max_positions`.
        """
        if token_type_ids is not None:
            raise ValueError("forward: token_type_ids must be None for a decoder")
        if cache is not None and not isinstance(cache, _core.Cache):
            raise TypeError(f"forward: cache must be of new_cache, got {type(cache).__name__}")
        last_only = _arguments.boolean("forward", "last_only", last_only)
        self.bind()
        return self._core.forward(
            self.token_ids("forward", tokens),
            mask_tensor("forward", attention_mask),
            cache,
            last_only,
        )

    def hidden(
        self, tokens: Tokens, attention_mask: torch.Tensor | npt.NDArray[Any] | None = None
    ) -> torch.Tensor:
        """Returns the state [B, T, E] that the head reads, after the final norm. As `forward`."""
        self.bind()
        return self._core.hidden(
            self.token_ids("hidden", tokens), mask_tensor("hidden", attention_mask)
        )

    def new_cache(self, batch_size: int, max_length: int) -> _core.Cache:
        """Returns an empty cache for `max_length` tokens of `batch_size` sequences.

        It has `length`, `max_length`, `batch_size`, `num_bytes`. ValueError unless both are >= 1
        and memory holds it.
        """
        self.bind()
        return self._core.new_cache(
            _arguments.integer("new_cache", "batch_size", batch_size, 1, 2**31),
            _arguments.integer("new_cache", "max_length", max_length, 1, 2**40),
        )

    def generate(
        self,
        tokens: Tokens,
        max_new_tokens: int,
        *,
        attention_mask: torch.Tensor | npt.NDArray[Any] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        prefill_chunk: int = 0,
        eos_token_id: int | Sequence[int] | _Default | None = _MODELS_OWN,
        pad_token_id: int | _Default | None = _MODELS_OWN,
        on_tokens: Callable[[torch.Tensor], bool | None] | None = None,
    ) -> torch.Tensor:
        """Returns the prompt and up to `max_new_tokens` new tokens, [B, T + n] int64.

        Greedy, or sampled where `temperature` > 0, among the most likely tokens whose probabilities
        first sum to `top_p`; the draws are a function of `seed`, row and step. A row ends with a
        token of `eos_token_id` and is then filled with `pad_token_id` (by default the directory's
        ids; without padding the first end token); when all rows have ended, fewer tokens come.

        tokens: [B, T] integers. attention_mask: [B, T]; by default padding tokens in the prompt are
        hidden if the padding is not an end token too, as in transformers. prefill_chunk: the prompt
        is read in pieces of this many tokens (less memory). on_tokens: gets each step's tokens [B];
        False stops.

        Raises ValueError or TypeError before any work if an argument is not as above or the prompt
        and the new tokens are more than `max_positions`.
        """
        self.bind()
        prompt = self.token_ids("generate", tokens)
        options = _core.GenerateOptions()
        options.max_new_tokens = _arguments.integer(
            "generate", "max_new_tokens", max_new_tokens, 0, 2**40
        )
        options.temperature = _arguments.real("generate", "temperature", temperature)
        options.top_p = _arguments.real("generate", "top_p", top_p)
        options.seed = _arguments.integer("generate", "seed", seed, 0, 2**64 - 1)
        options.prefill_chunk = _arguments.integer(
            "generate", "prefill_chunk", prefill_chunk, 0, 2**40
        )
        options.eos = self._end_tokens(eos_token_id)
        options.pad = self._pad_token(pad_token_id)
        if on_tokens is not None:
            function = _callable("generate", "on_tokens", on_tokens)
            options.on_tokens = lambda step: function(step) is not False
        mask = mask_tensor("generate", attention_mask)
        if mask is None and options.pad is not None and options.pad not in options.eos:
            visible = prompt.ne(options.pad)
            mask = None if bool(visible.all()) else visible
        return self._core.generate(prompt, mask, options)

    def save_pretrained(self, directory: Path, *, max_shard_size: int | str = "5GB") -> None:
        """Writes a Hugging Face directory: the same tensors' names and bytes, the same settings.

        max_shard_size: bytes, or a text as "200MB" or "1GiB": more tensors are shards of at most
        this size (a larger tensor has one of its own) with an index.

        The tokenizer's files are copied from where the model was loaded. What was in the directory
        stays whole until everything is written. Raises OSError or ValueError naming the file.
        """
        path = _arguments.directory("save_pretrained", directory)
        size = _arguments.num_bytes("save_pretrained", "max_shard_size", max_shard_size)
        self.bind()
        self._core.save(os.fsdecode(path), size)

    def tensor(self, role: str, layer: int | None = None, head: int | None = None) -> torch.Tensor:
        """Returns the weights of a role, a differentiable view of the parameter.

        role: q, k, v, o, gate, up, down, norm (before the attention of `layer`; without a layer the
        final one; also attention_norm, ffn_norm), embed, head. head: the rows of q, k and v, the
        columns of o, that belong to it. q, k and v of all heads are a copy where they are one
        matrix (GPT-NeoX). ValueError if the model has no such part.
        """
        self.bind()
        if not isinstance(role, str):
            raise TypeError(f"tensor: role must be a str, got {type(role).__name__}")
        return self._core.tensor(role, _index("layer", layer), _index("head", head))

    def linear_names(self) -> list[str]:
        """The names of all linear layers, in the order of their use; the head is last."""
        return self._core.linear_names()

    def on_linear_input(self, hook: Callable[[str, torch.Tensor], None]) -> HookHandle:
        """Calls `hook(name, x)` with each linear layer's input [..., in] before it is applied."""
        function = _callable("on_linear_input", "hook", hook)
        return HookHandle(self._core, self._core.add_linear_hook(function))

    def replace_linear(self, name: str, layer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Puts a function of [..., in] -> [..., out] in the place of a linear layer.

        A `torch.nn.Module` is one; its parameters stay its own. ValueError if there is no such
        layer.
        """
        function = _callable("replace_linear", "layer", layer)
        name = _arguments.text("replace_linear", "name", name)
        weight = dict(self._current()).get(f"{name}.weight")  # none: a tied head
        size = self.vocab_size if weight is None else weight.shape[0]

        def call(x: torch.Tensor) -> torch.Tensor:
            y = function(x)
            if not isinstance(y, torch.Tensor) or y.shape != (*x.shape[:-1], size):
                got = list(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
                wanted = [*x.shape[:-1], size]
                raise ValueError(f"replace_linear: layer of {name} must return {wanted}, got {got}")
            return y

        self._core.replace_linear(name, call)

    def restore_linear(self, name: str) -> None:
        """Undoes `replace_linear`."""
        self._core.restore_linear(_arguments.text("restore_linear", "name", name))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = type(self).__new__(type(self))
        Decoder.__init__(other, self._core.copy())
        memo[id(self)] = other
        for (_, value), (_, module, leaf) in zip(self._current(), other._places, strict=True):
            setattr(module, leaf, copy.deepcopy(value, memo))
        other.train(self.training)
        return other

    def _current(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, module, leaf in self._places:
            value = module._parameters.get(leaf)
            if value is None:
                value = _computed(module, leaf)
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"parameter {name} must be a tensor, got {value!r:.60}")
            yield name, value

    @property
    def core(self) -> _core.Decoder:
        """The C++ model."""
        return self._core

    def bind(self) -> None:
        """Gives the C++ model the parameters as they are now; every call does so first.

        Somebody may have exchanged one: `load_state_dict(assign=True)`, `functional_call`.
        """
        for name, value in self._current():
            if self._bound.get(name) is not value:
                if torch._C._functorch.is_functorch_wrapped_tensor(value):
                    raise NotImplementedError(
                        f"forward: torch.func.grad, vmap and the like cannot reach {name} in C++; "
                        "functional_call and torch.autograd can"
                    )
                self._core.set_parameter(name, value)
                self._bound[name] = value

    def token_ids(self, function: str, tokens: Tokens) -> torch.Tensor:
        """Tokens as int64 on the device of the model; `function` is for messages."""
        plain = token_tensor(function, tokens, "[B, T]", 2)
        return plain.to(device=next(self.parameters()).device, dtype=torch.int64)

    def _end_tokens(self, token: int | Sequence[int] | _Default | None) -> list[int]:
        if isinstance(token, _Default):
            return self._core.eos_token_ids
        if token is None:
            return []
        tokens = list(token) if np.iterable(token) else [token]
        return [_arguments.integer("generate", "eos_token_id", t, 0, 2**40) for t in tokens]

    def _pad_token(self, token: int | _Default | None) -> int | None:
        if isinstance(token, _Default):
            return self._core.pad_token_id
        if token is None:
            return None
        return _arguments.integer("generate", "pad_token_id", token, 0, self.vocab_size - 1)


def load(
    directory: Path,
    *,
    dtype: torch.dtype | str | None = None,
    mmap: bool = True,
    device: torch.device | str | int | None = None,
) -> Decoder:
    """Returns the model of a Hugging Face directory, in eval mode; parameters require gradients.

    directory: config.json and safetensors, in shards or not, of a Llama, Mistral, Qwen2, Qwen3 or
    GPT-NeoX model. dtype: float32, float64, bfloat16 or float16; None: the files' own. Tensors of
    that dtype are the mapped file: replace the file by rename, never rewrite it in place, while the
    model lives; mmap=False reads into memory instead. Writing to parameters leaves the file alone.
    device: where the parameters go, "cpu" (None too) or "cuda"; `model.to` moves them later.

    Raises FileNotFoundError or another OSError, or ValueError naming the file and the tensor or
    setting: missing, unknown or misshapen tensors, NaN, settings that would change the numbers and
    are not known (with the list of those that are), architectures likewise.
    """
    name = None if dtype is None else _arguments.dtype_name("load", dtype)
    path = _arguments.directory("load", directory)
    place = _arguments.device("load", device)
    try:
        return _on(place, Decoder(_core.Decoder.load(path, name, mmap)))
    except ValueError as error:
        hint = _OTHER_LOADERS.get(_model_type(path))
        if hint is None:
            raise
        raise ValueError(f"{error}; {hint} loads it") from None


_OTHER_LOADERS: Mapping[object, str] = dict.fromkeys(
    ("muddformer", "muddpythia"), "paperlab.mudd.MuddFormer.from_pretrained"
)


def _model_type(directory: bytes) -> str | None:
    try:
        with open(os.path.join(directory, b"config.json"), "rb") as file:
            value = json.load(file)["model_type"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def from_config(
    config: Mapping[str, Any],
    *,
    init: str = "normal",
    seed: int = 0,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | int | None = None,
) -> Decoder:
    """Returns a new model with the settings of a config.json and random values.

    init: standard deviations, "normal" (initializer_range), "gpt_neox" (sqrt(2 / 5E), of outputs
    2 / (L sqrt(E)); arXiv:2204.06745), "xavier" (sqrt(2 / (in + out))). The values are a function
    of `seed` and the element for any number of threads, on any `device`. Raises ValueError as
    `load`.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"from_config: config must be a mapping, got {type(config).__name__}")
    try:
        text = json.dumps(dict(config), allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"from_config: config must be as config.json: {error}") from None
    init = _arguments.text("from_config", "init", init)
    number = _arguments.integer("from_config", "seed", seed, 0, 2**64 - 1)
    name = _arguments.dtype_name("from_config", dtype)
    if name == "float16":
        raise ValueError(f"from_config: dtype must be float32, float64 or bfloat16, got {name}")
    place = _arguments.device("from_config", device)
    return _on(place, Decoder(_core.Decoder.from_config(text, init, number, name)))


def _on(device: torch.device, model: Decoder) -> Decoder:
    return model if device.type == "cpu" else model.to(device)  # mapped files stay as they are


def _index(name: str, value: int | None) -> int | None:
    return None if value is None else _arguments.integer("tensor", name, value, 0, 2**31)


def _computed(module: torch.nn.Module, leaf: str) -> Any:
    """What stands in a parameter's place: torch.nn.utils' parametrize, prune, weight_norm, ..."""
    for hook in module._forward_pre_hooks.values():  # some compute it there
        hook(module, ())
    return getattr(module, leaf, None)


def _callable(function: str, name: str, value: Callable[..., Any]) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"{function}: {name} must be callable, got {type(value).__name__}")
    return value
