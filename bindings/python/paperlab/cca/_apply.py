"""Core-context attention in decoders of paperlab.nn."""

from typing import TypeVar

from paperlab import _arguments, _core, nn
from paperlab.cca._options import Boundary, Pooling, WeightsPer, options

Model = TypeVar("Model", bound=nn.Decoder)


def apply(
    model: Model,
    group_size: int = 16,
    window: int = 1024,
    pooling: Pooling = "attention",
    boundary: Boundary = "exact",
    weights_per: WeightsPer = "query_head",
    keep_first: int = 0,
) -> Model:
    """Lets every layer of `model` attend as `attention` does from now on; returns the model.

    model: of `paperlab.nn.load`, `paperlab.nn.from_config` or `paperlab.mudd`. Its parameters stay
    as they are and there are no new ones; with other options it may be applied again at any time.
    The options are those of `attention`; groups start at a row's first token that is not padding.

    `new_cache` and `generate` then keep core tokens and the last raw ones alone, however long the
    text is (boundary "exact" only; a cache that was made before is refused); under autocast in its
    dtype. Training, `eval` and `copy.deepcopy` go through it; `save_pretrained` writes the model as
    it would be without, with the settings that its config.json had.

    Raises ValueError or TypeError if an option is not as for `attention`, or if a layer has a
    sliding window of its own that is shorter than the model's positions; nothing has changed then.
    """
    settings = options("apply", group_size, window, pooling, boundary, weights_per, keep_first)
    _core.cca_apply(_decoder("apply", model).core, settings)
    return model


def remove(model: Model) -> Model:
    """Undoes `apply`; the model then computes as before. Returns the model.

    The settings of its config.json stay as they were read: if they name "paperlab_cca",
    `save_pretrained` writes that too, and what it wrote is loaded with `apply` done.
    """
    _core.cca_remove(_decoder("remove", model).core)
    return model


def _decoder(function: str, model: object) -> nn.Decoder:
    if not isinstance(model, nn.Decoder):
        raise _arguments.ArgumentTypeError(
            f"{function}: model must be a paperlab.nn.Decoder, got {type(model).__name__}"
        )
    return model
