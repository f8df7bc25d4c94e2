"""`paperlab.ops.attention` and `paperlab.cca.attention` in models of Hugging Face transformers."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from paperlab import _arguments, _core, ops
from paperlab.cca._options import options as cca_options

__all__ = ["register"]

# What some models pass to change the result, and the operator has no argument for.
_REFUSED = (
    "block_indices",
    "cache",
    "head_mask",
    "indices",
    "position_bias",
    "s_aux",
    "sinks",
    "softcap",
)

# Settings of a config by which "paperlab_cca" computes, cca_ before them, and their defaults.
_CCA = {
    "group_size": 16,
    "window": 1024,
    "pooling": "attention",
    "weights_per": "query_head",
    "keep_first": 0,
}


def register(name: str = "paperlab") -> None:
    """Lets transformers' models run on `paperlab.ops.attention`: attn_implementation=`name`.

    Causal, sliding-window and bidirectional attention, padding on either side, dynamic and static
    caches, training; results equal those of "sdpa" up to rounding. Under torch.compile each layer
    breaks the graph, since transformers then makes a mask, whose values are looked at: not with
    fullgraph=True. Registering a name again changes nothing.

    A model then raises ValueError for any other mask, for attention dropout in training and for
    what the operator doesn't have, as logit soft-capping, learned sinks and attention weights.

    f"{name}_cca" is causal attention in the form of `paperlab.cca.attention`. Each call reads the
    model's `config.cca_group_size` (16), `cca_window` (1024), `cca_pooling` ("attention"),
    `cca_weights_per` ("query_head") and `cca_keep_first` (0); a saved config keeps them, and
    `paperlab.nn.load` heeds them where it also says `attn_implementation` "paperlab_cca". Groups
    begin at a row's first token that is not padding. A key-value cache has no past queries, so with
    pooling "attention" a step that needs a group of past tokens raises ValueError: generate with
    use_cache=False, or with `paperlab.nn.load` and `paperlab.cca.apply`. So do attention that is
    not causal and layers with a sliding window shorter than the sequence.

    Raises ImportError unless transformers >= 4.57, < 6 is installed, ValueError if `name` is not
    a printable str or is empty.
    """
    if not _arguments.text("register", "name", name):
        raise ValueError("register: name must not be empty, got ''")
    attention_interface, mask_interface = _interfaces()
    for full_name, function in ((name, _attention), (f"{name}_cca", _cca_attention)):
        attention_interface.register(full_name, function)
        mask_interface.register(full_name, _mask)


def _interfaces() -> tuple[Any, Any]:
    """transformers' registries of attention functions and of mask functions."""
    required = "register: paperlab needs transformers >= 4.57, < 6"
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{required}, which cannot be imported: {error}") from error
    version = re.match(r"(\d+)\.(\d+)", transformers.__version__)
    if version is None or not (4, 57) <= (int(version[1]), int(version[2])) < (6, 0):
        raise ImportError(f"{required}, got {transformers.__version__}")
    return transformers.AttentionInterface, transformers.AttentionMaskInterface


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The mask [B, 1, T, S] that "sdpa" gets, or None where that needs none."""
    from transformers.masking_utils import sdpa_mask

    # A model whose last layers share keys may drop queries after this; None would then say that
    # the remaining ones stand at the first keys.
    if getattr(kwargs.get("config"), "num_kv_shared_layers", None):
        kwargs["allow_is_causal_skip"] = False
    mask: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query [B, H, T, D] to key and value [B, G, S, D]: ([B, T, H, D], None)."""
    _refuse_other_attention(module, dropout, kwargs)
    if attention_mask is None:
        keys = _keys_without_mask(query.size(2), key.size(2), _is_causal(module, is_causal))
    else:
        keys = _keys_of_mask(attention_mask, query.size(0), query.size(2), key.size(2))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops.attention(
            q,
            k,
            v,
            causal=keys.causal,
            window=keys.window,
            scale=scaling,
            key_start=keys.start,
            key_end=keys.end,
        )

    return _attended(attend, query, key, value, keys)


def _is_causal(module: torch.nn.Module, is_causal: bool | None) -> bool:
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def _attended(
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: "_Keys",
) -> tuple[torch.Tensor, None]:
    """What transformers wants of attend(q, k, v) [B, H, T, D], by the keys that are in use."""
    value_dim, missing = value.size(3), query.size(3) - value.size(3)
    if missing > 0:  # the operator has one head size
        value = torch.nn.functional.pad(value, (0, missing))
    out = attend(query, key[:, :, : keys.num_keys], value[:, :, : keys.num_keys])
    return out[..., :value_dim].transpose(1, 2).contiguous(), None


def _refuse_other_attention(
    module: torch.nn.Module, dropout: float, kwargs: dict[str, Any]
) -> None:
    if dropout > 0 and module.training:
        raise ValueError(
            f"paperlab attention: dropout must be 0 in training, got {dropout}; set the model's "
            "attention dropout to 0"
        )
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise ValueError(f"paperlab attention: {name} must be None: it is not supported")
    if kwargs.get("output_attentions"):
        raise ValueError("paperlab attention: output_attentions must be False: no weights are kept")


class _Keys(NamedTuple):
    """The keys that rows see, as the operator's arguments: of the first `num_keys` alone."""

    num_keys: int
    causal: bool
    window: int | None = None
    start: torch.Tensor | None = None
    end: torch.Tensor | None = None


def _keys_without_mask(num_queries: int, num_keys: int, causal: bool) -> _Keys:
    if not causal or num_queries == 1:
        return _Keys(num_keys, False)
    if num_queries > num_keys:
        raise ValueError(
            f"paperlab attention: an attention_mask is needed for {num_queries} causal queries of "
            f"{num_keys} keys"
        )
    # With more keys than queries this is the first part of a static cache: the rest is empty.
    return _Keys(num_queries, True)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _keys_of_mask(mask: torch.Tensor, batch: int, num_queries: int, num_keys: int) -> _Keys:
    """Derives the keys from the mask, once for all layers that get the same tensor.

    Its version tells of changes in place, except those through a NumPy view of its memory.
    """
    if mask.is_inference():  # changes in place go unnoticed
        return _read_mask(mask, batch, num_queries, num_keys)
    state = (mask._version, torch.is_inference_mode_enabled(), batch, num_queries, num_keys)
    known_state, keys = getattr(mask, "_paperlab_keys", (None, None))
    if keys is None or state != known_state:
        keys = _read_mask(mask, batch, num_queries, num_keys)
        mask._paperlab_keys = (state, keys)  # type: ignore[attr-defined]
    return keys


def _read_mask(mask: torch.Tensor, batch: int, num_queries: int, num_keys: int) -> _Keys:
    fits = (
        mask.dim() == 4
        and mask.size(0) in (1, batch)
        and mask.size(2) in (1, num_queries)
        and mask.size(3) >= num_keys
    )
    if not fits:
        raise ValueError(
            f"paperlab attention: attention_mask must be [{batch}, 1, {num_queries}, {num_keys}], "
            f"got {list(mask.shape)}"
        )
    if mask.stride(0) == 0:
        mask = mask[:1]
    visible = _visible(mask[..., :num_keys]).expand(-1, -1, num_queries, -1)
    keys, start, end = _derive(visible)
    return keys._replace(start=start.expand(batch).contiguous(), end=end.expand(batch).contiguous())


def _visible(mask: torch.Tensor) -> torch.Tensor:
    """True where the row sees the key; a floating mask must be 0 there and least elsewhere."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point() or mask.requires_grad:
        raise _mask_error("be bool")
    # The least float16; anything below hides a key exactly, unless the row sees no key at all.
    hidden = mask <= -65504
    if not (hidden | (mask == 0)).all() or hidden.all(-1).any():
        raise _mask_error("be 0 at the keys that a row sees, at least one, and least elsewhere")
    return ~hidden


def _derive(visible: torch.Tensor) -> tuple[_Keys, torch.Tensor, torch.Tensor]:
    """The band of all rows, and start and end of each batch row's keys, that make up `visible`.

    Row t stands at key position t + offset, and sees the keys of its batch row's range that are
    neither behind that position nor before the window. The first and the last row that see a key
    tell all of this if the mask is of this kind, so it is formed again and compared.
    """
    num_queries, num_keys = visible.shape[2:]
    sees = visible[:, 0].any(-1)  # [B, T]
    sees_any = sees.any(-1)
    top, bottom = _first(sees), _last(sees)
    batch = torch.arange(len(sees), device=sees.device)
    upper, lower = visible[batch, 0, top], visible[batch, 0, bottom]  # [B, S]
    end = torch.where(sees_any, _last(lower) + 1, 0)
    start = torch.where(sees_any, _first(upper), 0)
    offset = int(torch.where(sees_any, _last(upper) - top, -num_queries).max())
    window = int(torch.where(sees_any, bottom + offset - _first(lower) + 1, 1).max())
    count = offset + num_queries
    if count <= num_keys:
        candidates = [_Keys(count, True), _Keys(count, True, window)]
    else:  # some row sees what lies behind its position: no row may be limited by its position
        candidates = [_Keys(num_keys, False)]
    for keys in candidates:
        if (_mask_of(keys, start, end, num_queries, num_keys) == visible).all():
            return keys, start, end
    raise _mask_error("be causal, full or a sliding window, with padding at the ends only")


def _first(bits: torch.Tensor) -> torch.Tensor:
    """The index of the first True along the last dimension; 0 if there is none."""
    return bits.view(torch.uint8).argmax(-1)


def _last(bits: torch.Tensor) -> torch.Tensor:
    """The index of the last True, likewise; the last index if there is none."""
    return bits.size(-1) - 1 - _first(bits.flip(-1))


def _mask_of(
    keys: _Keys, start: torch.Tensor, end: torch.Tensor, num_queries: int, num_keys: int
) -> torch.Tensor:
    """The mask [B, 1, T or 1, S] of the band `keys` and the ranges."""
    key = torch.arange(num_keys, device=start.device, dtype=torch.int32)
    mask = (key >= start.view(-1, 1, 1, 1)) & (key < end.view(-1, 1, 1, 1))
    if keys.causal:
        row = torch.arange(num_queries, device=start.device, dtype=torch.int32).view(-1, 1)
        position = row + keys.num_keys - num_queries
        mask = mask & (key <= position)
        if keys.window is not None:
            mask = mask & (key > position - keys.window)
    return mask


def _mask_error(required: str) -> ValueError:
    return ValueError(f"paperlab attention: attention_mask must {required}")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _cca_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Core-context attention, as `_attention`."""
    _refuse_other_attention(module, dropout, kwargs)
    config = getattr(module, "config", None)
    if config is None:
        raise ValueError(f"paperlab cca attention: {type(module).__name__} must have a config")
    settings = cca_settings(
        "paperlab cca attention", lambda name, default: getattr(config, name, default)
    )
    keys = _causal_keys(query, key, attention_mask, _is_causal(module, is_causal))
    _refuse_window(_own_window(module, config, kwargs), keys, query.size(2))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _core.cca_attention_of_rows(q, k, v, settings, keys.start, keys.end, scaling)

    return _attended(attend, query, key, value, keys)


def cca_settings(function: str, get: Callable[[str, Any], Any]) -> _core.CcaOptions:
    """The options that a config's `cca_*` settings are, by get(setting, default)."""
    given = {name: get(f"cca_{name}", default) for name, default in _CCA.items()}
    return cca_options(function, boundary="exact", **given)


def _causal_keys(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, causal: bool
) -> _Keys:
    """The keys of a causal mask, of the first `num_keys` alone."""
    keys: _Keys
    if mask is not None:
        keys = _keys_of_mask(mask, query.size(0), query.size(2), key.size(2))
        causal = causal and keys.causal
    elif query.size(2) == 1:
        keys = _Keys(key.size(2), True)
    else:
        keys = _keys_without_mask(query.size(2), key.size(2), causal)
    if not causal:
        raise ValueError("paperlab cca attention: the attention must be causal")
    return keys


def _own_window(module: torch.nn.Module, config: object, kwargs: Mapping[str, Any]) -> int | None:
    """The sliding window of the module's layer."""
    window: int | None = kwargs.get("sliding_window", getattr(module, "sliding_window", None))
    layer, kinds = getattr(module, "layer_idx", None), getattr(config, "layer_types", None)
    kind = "full_attention" if kinds is None or layer is None else kinds[layer]
    if kind == "sliding_attention":
        return getattr(config, "sliding_window", None) if window is None else window
    if kind != "full_attention":
        raise ValueError(f"paperlab cca attention: layer_types must be full_attention, got {kind}")
    return window


def _refuse_window(window: int | None, keys: _Keys, num_queries: int) -> None:
    window = keys.window if window is None else window
    if window is None:
        return
    has_past = num_queries < keys.num_keys  # their cache may have dropped keys and now hold these
    if keys.window is not None or window < keys.num_keys + has_past:
        raise ValueError(
            "paperlab cca attention: sliding_window must be None or "
            f"{'more than' if has_past else 'at least'} the {keys.num_keys} keys, got {window}"
        )
