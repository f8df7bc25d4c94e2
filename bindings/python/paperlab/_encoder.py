"""Encoders: of tokens (BERT, RoBERTa, DistilBERT, DeBERTa-v2) and of pictures (ViT)."""

from typing import Any

import numpy.typing as npt
import torch

from paperlab import _core
from paperlab._module import CppModule, Tokens
from paperlab._tokens import mask_tensor, pixel_tensor, token_tensor

Mask = torch.Tensor | npt.NDArray[Any]
Pixels = torch.Tensor | npt.NDArray[Any]


class _Encoder(CppModule):
    @property
    def core(self) -> _core.Encoder:
        """The C++ model."""
        core: _core.Encoder = self._core
        return core

    @property
    def num_labels(self) -> int:
        """How many labels a classification head has."""
        return self.core.num_labels

    def other_linear_names(self) -> dict[str, str]:
        """Those of `linear_names` that transformers also knows by another name, and that name.

        Of ViT alone: what its files call `encoder.layer.0.attention.attention.query` is
        `layers.0.attention.q_proj` in the memory of transformers 5, after whose names adapters are
        made.
        """
        return self.core.other_linear_names()

    def tensor(self, role: str, layer: int | None = None, head: int | None = None) -> torch.Tensor:
        """Returns the weights of a role, a differentiable view of the parameter.

        With a layer: q, k, v, o, up, down, norm (that of the attention; also attention_norm),
        ffn_norm, and of DeBERTa position_q, position_k. Without one: embed (of pictures the
        projection of patches), head (what makes the logits), norm (ViT's final one),
        position_embed, type_embed, embed_norm, class_token, relative_embed, relative_norm, pooler,
        head_dense, head_norm. head: the rows of q, k and v, the columns of o, that belong to it.
        ValueError, with the list of those that there are, if the model has no such part.
        """
        return super().tensor(role, layer, head)


class Encoder(_Encoder):
    """BERT, RoBERTa, DistilBERT or DeBERTa-v2, without dropout; `load` and `from_config` make one.

    Parameters, training and saving: as for `Decoder`. The row of `pad_token_id` in the embedding
    gets no gradient from tokens, as in transformers.
    """

    def forward(
        self,
        tokens: Tokens,
        attention_mask: Mask | None = None,
        token_type_ids: Tokens | None = None,
    ) -> torch.Tensor:
        """Returns the logits of `architectures[0]`; differentiable.

        ...ForMaskedLM: [B, T, V]. ...ForSequenceClassification: [B, labels], T >= 1.
        ...ForTokenClassification: [B, T, labels]. ...Model, which has no logits, and files without
        `architectures`: the states [B, T, E] after the last block.

        tokens: [B, T] integers in 0..V-1. attention_mask: [B, T], not zero where a token counts.
        Positions are those of transformers: of all tokens; RoBERTa numbers those that are not
        `pad_token_id`. token_type_ids: [B, T] integers below type_vocab_size, by default zeros; a
        model without types (DistilBERT, most of DeBERTa-v2) does not read them.

        Raises ValueError or TypeError, before any work, if an argument is not as above or T is more
        than `max_positions`.
        """
        self.bind()
        return self.core.forward(*self._inputs("forward", tokens, attention_mask, token_type_ids))

    def hidden(
        self,
        tokens: Tokens,
        attention_mask: Mask | None = None,
        token_type_ids: Tokens | None = None,
    ) -> torch.Tensor:
        """Returns the states [B, T, E] after the last block. As `forward`."""
        self.bind()
        return self.core.hidden(*self._inputs("hidden", tokens, attention_mask, token_type_ids))

    def _inputs(
        self, function: str, tokens: Tokens, mask: Mask | None, types: Tokens | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        ids = self.token_ids(function, tokens)
        visible = mask_tensor(function, mask)
        if types is None:
            return ids, visible, None
        plain = token_tensor(function, types, "[B, T]", 2, "token_type_ids")
        return ids, visible, plain.to(device=ids.device, dtype=torch.int64)


class ImageEncoder(_Encoder):
    """ViT, without dropout; `load` and `from_config` make one. As `Encoder`."""

    def forward(self, pixels: Pixels) -> torch.Tensor:
        """Returns the logits [B, labels]; of ViTModel, which has none, the states [B, T, E].

        pixels: [B, channels, height, width], floating, of the model's picture size, in any dtype;
        differentiable with respect to them too. T is the number of patches and one. Raises
        ValueError or TypeError, before any work, if they are not as above.
        """
        self.bind()
        return self.core.forward_pixels(self._pixels("forward", pixels))

    def hidden(self, pixels: Pixels) -> torch.Tensor:
        """Returns the states [B, T, E] after the final norm. As `forward`."""
        self.bind()
        return self.core.hidden_pixels(self._pixels("hidden", pixels))

    def _pixels(self, function: str, pixels: Pixels) -> torch.Tensor:
        return pixel_tensor(function, pixels).to(next(self.parameters()).device)


def is_encoder(model_type: object) -> bool:
    """Whether config.json's model_type is that of an encoder."""
    return model_type in _core.encoder_model_types()


def load(path: bytes, dtype: str | None, mmap: bool) -> Encoder | ImageEncoder:
    """The encoder of a directory, on the CPU."""
    return _made_of(_core.Encoder.load(path, dtype, mmap))


def from_config(config: str, seed: int, dtype: str) -> Encoder | ImageEncoder:
    """A new encoder with the settings of a config.json, on the CPU."""
    return _made_of(_core.Encoder.from_config(config, seed, dtype))


def _made_of(core: _core.Encoder) -> Encoder | ImageEncoder:
    return ImageEncoder(core) if core.reads_pixels else Encoder(core)
