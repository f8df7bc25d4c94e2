"""MUDDViT and the ViT that it is compared with, as a torch module over the C++ encoder."""

from collections.abc import Sequence
from typing import NoReturn

import torch

from paperlab import _arguments, _core, nn
from paperlab.mudd._model import pre_post_norm_name

_LARGEST = 2**31 - 1
_FUNCTION = "MuddViT"
_VARIANTS = ("base", "static", "dynamic", "multiway_static", "multiway_dynamic", "mudd")
_POSITIONS = "vit.embeddings.position_embeddings"

Size = int | Sequence[int]


class MuddViT(nn.ImageEncoder):
    """A vision transformer whose blocks read weighted sums over the outputs of all before them.

    Source: Xiao, Meng, Li, Yuan, "MUDDFormer", ICML 2025, arXiv:2502.12170, Appendix F. Norms
    first, GELU, fixed sines and cosines of rows and columns as positions, the mean of the last
    states classified (arXiv:2205.01580).

    image_size, patch_size: one number, or height and width; what is left of a picture beyond whole
    patches is not read. num_labels, num_layers, d_model, num_heads, d_ff, num_channels: sizes;
    d_model is a multiple of num_heads and of 4.
    variant: "multiway_dynamic" (MUDDViT), "base" (a plain ViT), "static", "dynamic",
    "multiway_static", or "mudd" (FFN widths re-allocated besides). pre_post_norm: True (Eq. 10),
    False or "later_revision". ways, gelu, hidden_round, last_hidden_expand, ffn_round, dilation,
    period, window: as of `MuddFormer`; norm_eps: of all norms.
    seed: of the initial values; None: drawn from torch's generator. dtype: of the parameters.

    `model(pixels)` returns the logits [B, num_labels]: see `paperlab.nn.ImageEncoder`. Parameters
    have the names of transformers' ViT in files, connections those of `MuddFormer`. The table of
    positions is one that does not require a gradient. At first every stream is the newest state, so
    the model is the plain one. A new model is in training mode, on the CPU. There is no published
    layout: `state_dict()` carries the parameters over.
    ValueError (a TypeError for types) if an argument is not as above, naming it.
    """

    def __init__(
        self,
        image_size: Size,
        patch_size: Size,
        num_labels: int,
        num_layers: int,
        d_model: int,
        num_heads: int,
        d_ff: int,
        num_channels: int = 3,
        variant: str = "multiway_dynamic",
        ways: str = "QKVR",
        norm_eps: float = 1e-6,
        gelu: str = "exact",
        hidden_round: int = 0,
        last_hidden_expand: int = 4,
        ffn_round: int = 128,
        dilation: int = 1,
        period: int = 1,
        window: int | None = None,
        pre_post_norm: bool | str = True,
        *,
        seed: int | None = None,
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        config = _core.MuddConfig()
        config.num_layers = _size("num_layers", num_layers)
        config.d_model = _size("d_model", d_model)
        config.num_heads = _size("num_heads", num_heads)
        config.d_ff = _size("d_ff", d_ff)
        config.hidden_round = _size("hidden_round", hidden_round, 0)
        config.last_hidden_expand = _size("last_hidden_expand", last_hidden_expand)
        config.ffn_round = _size("ffn_round", ffn_round)
        config.dilation = _size("dilation", dilation)
        config.period = _size("period", period)
        if window is not None:
            config.window = _size("window", window)
        config.set_variant(_word("variant", variant, _VARIANTS))
        config.ways = _arguments.text(_FUNCTION, "ways", ways)
        config.norm_eps = _arguments.positive(_FUNCTION, "norm_eps", norm_eps)
        config.set_gelu(_word("gelu", gelu, ("exact", "tanh")))
        config.set_pre_post_norm(pre_post_norm_name(_FUNCTION, pre_post_norm))
        channels = _size("num_channels", num_channels)
        pictures = [channels, *_pair("image_size", image_size), *_pair("patch_size", patch_size)]
        labels = _size("num_labels", num_labels)
        if seed is None:
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        seed = _arguments.integer(_FUNCTION, "seed", seed, 0, 2**64 - 1)
        name = _arguments.dtype_name(_FUNCTION, dtype)
        super().__init__(_core.new_mudd_vit(config, pictures, labels, seed, name))
        self.get_parameter(_POSITIONS).requires_grad_(False)
        self.train()

    def save_pretrained(self, *_: object, **__: object) -> NoReturn:
        """NotImplementedError: there is no published layout."""
        raise NotImplementedError(
            "save_pretrained: a MuddViT has no published layout; state_dict() carries it over"
        )


def _size(name: str, value: object, low: int = 1) -> int:
    return _arguments.integer(_FUNCTION, name, value, low, _LARGEST)


def _pair(name: str, value: Size) -> list[int]:
    if not isinstance(value, list | tuple):
        return [_size(name, value)] * 2
    if len(value) != 2:
        raise ValueError(
            f"{_FUNCTION}: {name} must be one number, or height and width, got {value!r:.60}"
        )
    return [_size(name, part) for part in value]


def _word(name: str, value: object, known: Sequence[str]) -> str:
    text = _arguments.text(_FUNCTION, name, value)
    if text not in known:
        raise ValueError(f"{_FUNCTION}: {name} must be one of {', '.join(known)}, got {text!r:.60}")
    return text
