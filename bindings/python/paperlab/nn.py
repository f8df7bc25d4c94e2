"""Models: load a Hugging Face directory, run it, generate, save.

The model is C++; its parameters are torch tensors that both see. Decoders: Llama, Mistral, Qwen2,
Qwen3, GPT-NeoX, GPT-2, OPT, Gemma (2 and 3, of text, where attention has no softcapping). Encoders:
BERT, RoBERTa, DistilBERT, DeBERTa-v2 (and -v3), ViT.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from paperlab import _arguments, _core, _encoder
from paperlab._encoder import Encoder, ImageEncoder
from paperlab._hooks import HookHandle
from paperlab._module import CppModule, callable_argument
from paperlab._module import Path as Path
from paperlab._module import Tokens as Tokens
from paperlab._tokens import mask_tensor

__all__ = [
    "Cache",
    "Decoder",
    "Encoder",
    "HookHandle",
    "ImageEncoder",
    "as_decoder",
    "from_config",
    "load",
]

Cache = _core.Cache


class _Default:
    def __repr__(self) -> str:
        return "the model's own"


_MODELS_OWN = _Default()


class Decoder(CppModule):
    """A causal decoder; `load` and `from_config` make one.

    `named_parameters()` have the names of Hugging Face checkpoints and share memory with the C++
    model; a tied head is listed once, as the embedding. Training, moving and exchanging parameters
    work as with any `torch.nn.Module`.
    """

    @property
    def core(self) -> _core.Decoder:
        """The C++ model."""
        core: _core.Decoder = self._core
        return core

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
        return self.core.forward(
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
        return self.core.hidden(
            self.token_ids("hidden", tokens), mask_tensor("hidden", attention_mask)
        )

    def new_cache(self, batch_size: int, max_length: int) -> _core.Cache:
        """Returns an empty cache for `max_length` tokens of `batch_size` sequences.

        It has `length`, `max_length`, `batch_size`, `num_bytes`. ValueError unless both are >= 1
        and memory holds it.
        """
        self.bind()
        return self.core.new_cache(
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
            function = callable_argument("generate", "on_tokens", on_tokens)
            options.on_tokens = lambda step: function(step) is not False
        mask = mask_tensor("generate", attention_mask)
        if mask is None and options.pad is not None and options.pad not in options.eos:
            visible = prompt.ne(options.pad)
            mask = None if bool(visible.all()) else visible
        return self.core.generate(prompt, mask, options)

    def tensor(self, role: str, layer: int | None = None, head: int | None = None) -> torch.Tensor:
        """Returns the weights of a role, a differentiable view of the parameter.

        role: q, k, v, o, gate, up, down, norm (of the attention of `layer`; without a layer the
        final one), embed, head; besides these attention_norm, ffn_norm, q_norm, k_norm,
        post_attention_norm, post_ffn_norm, position, project_in, project_out. Matrices are
        [out, in], also of GPT-2, which stores them transposed. head: the rows of q, k and v, the
        columns of o, that belong to it. q, k and v of all heads are a copy where they are one
        matrix by heads (GPT-NeoX). ValueError if the model has no such part.
        """
        return super().tensor(role, layer, head)

    def _end_tokens(self, token: int | Sequence[int] | _Default | None) -> list[int]:
        if isinstance(token, _Default):
            return self.core.eos_token_ids
        if token is None:
            return []
        tokens = list(token) if np.iterable(token) else [token]
        return [_arguments.integer("generate", "eos_token_id", t, 0, 2**40) for t in tokens]

    def _pad_token(self, token: int | _Default | None) -> int | None:
        if isinstance(token, _Default):
            return self.core.pad_token_id
        if token is None:
            return None
        return _arguments.integer("generate", "pad_token_id", token, 0, self.vocab_size - 1)


Model = Decoder | Encoder | ImageEncoder
_M = TypeVar("_M", bound=CppModule)


def load(
    directory: Path,
    *,
    dtype: torch.dtype | str | None = None,
    mmap: bool = True,
    device: torch.device | str | int | None = None,
) -> Model:
    """Returns the model of a Hugging Face directory, in eval mode; parameters require gradients.

    directory: config.json and safetensors, in shards or not, of a Llama, Mistral, Qwen2, Qwen3,
    GPT-NeoX, GPT-2, OPT or Gemma model (a `Decoder`), of a BERT, RoBERTa, DistilBERT or DeBERTa-v2
    model (an `Encoder`) or of a ViT (an `ImageEncoder`). dtype: float32, float64, bfloat16 or
    float16; None: the files' own. Tensors of that dtype are the mapped file: replace the file by
    rename, never rewrite it in place, while the model lives; mmap=False reads into memory instead.
    Writing to parameters leaves the file alone. device: where the parameters go, "cpu" (None too)
    or "cuda"; `model.to` moves them later.

    A decoder whose config.json says `attn_implementation` "paperlab_cca" has
    `paperlab.cca.apply` done with its `cca_*` settings; otherwise these are kept and change nothing
    (transformers' save_pretrained writes them without an implementation, and its from_pretrained
    then attends in full too).

    Raises FileNotFoundError or another OSError, or ValueError naming the file and the tensor or
    setting: missing, unknown or misshapen tensors, NaN, settings that would change the numbers and
    are not known (with the list of those that are), architectures likewise.
    """
    name = None if dtype is None else _arguments.dtype_name("load", dtype)
    path = _arguments.directory("load", directory)
    place = _arguments.device("load", device)
    model_type = _model_type(path)
    if _encoder.is_encoder(model_type):
        return _on(place, _encoder.load(path, name, mmap))
    try:
        return _on(place, _attending(Decoder(_core.Decoder.load(path, name, mmap))))
    except ValueError as error:
        hint = _OTHER_LOADERS.get(model_type)
        if hint is None:
            raise _with_encoders(error) from None
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
) -> Model:
    """Returns a new model with the settings of a config.json and random values.

    init: standard deviations, "normal" (initializer_range), "gpt_neox" (sqrt(2 / 5E), of outputs
    2 / (L sqrt(E)); arXiv:2204.06745), "gpt2" (initializer_range, of outputs initializer_range /
    sqrt(2 L), as transformers makes a new GPT-2), "xavier" (sqrt(2 / (in + out))); outputs are the
    matrices that end a sublayer. Encoders have the first alone. The values are a function of `seed`
    and the element for any number of threads, on any `device`. Raises ValueError as `load`.
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
    if _encoder.is_encoder(config.get("model_type")):
        if init != "normal":
            raise ValueError(f"from_config: init must be normal for an encoder, got {init}")
        return _on(place, _encoder.from_config(text, number, name))
    try:
        return _on(place, _attending(Decoder(_core.Decoder.from_config(text, init, number, name))))
    except ValueError as error:
        raise _with_encoders(error) from None


def _attending(model: Decoder) -> Decoder:
    """The model with the attention that its settings name, if that is core-context attention."""
    settings = model.config
    named = settings.get("attn_implementation", settings.get("_attn_implementation"))
    if named == "paperlab_cca":
        from paperlab.integrations.transformers import cca_settings

        _core.cca_apply(model.core, cca_settings("load", settings.get))
    return model


def as_decoder(model: Model) -> Decoder:
    """Returns the model, which must be a `Decoder`; ValueError if it is an encoder."""
    if not isinstance(model, Decoder):
        kind = model.config["model_type"]
        raise ValueError(f"the model must be a causal decoder, got one of model_type '{kind}'")
    return model


def _with_encoders(error: ValueError) -> ValueError:
    if "setting 'model_type'" not in str(error):
        return error
    return ValueError(f"{error}; encoders are {', '.join(_core.encoder_model_types())}")


def _on(device: torch.device, model: _M) -> _M:
    return model if device.type == "cpu" else model.to(device)  # mapped files stay as they are
