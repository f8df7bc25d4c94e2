#pragma once
/// \file
/// Vision transformers with dense connections (MUDDViT): what they are, and their parameters.
///
/// The form is that of the paper's Appendix F: norms first, fixed sines and cosines of rows and
/// columns as positions, the mean of the last states (after the final norm) in a class token's
/// place. Source: Xiao et al., "MUDDFormer", ICML 2025, arXiv:2502.12170; the plain model: Beyer,
/// Zhai, Kolesnikov, "Better plain ViT baselines for ImageNet-1k", arXiv:2205.01580.

#include <cstdint>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/mudd/config.h"
#include "paperlab/nn/encoder_config.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::mudd {

/// A classifier of pictures.
struct VitConfig {
  nn::PatchConfig patches{};
  std::int64_t num_labels = 0;
  /// Sizes (num_layers, d_model, num_heads, d_ff), norm_eps and the connections. What only decoders
  /// have (vocabulary, rotary positions, forms of blocks and heads) is not read. MUDDViT has
  /// Variant::kMultiwayDynamic and PrePostNorm::kEq10, the plain ViT Variant::kBase.
  MuddConfig model{};
};

/// \throws ValueError  "MuddViT: ..." naming the option: as check(const MuddConfig&); d_model that
/// is
///                     no multiple of 4 or of num_heads, heads of more than 256 lanes, a size below
///                     1 or a patch above its picture, or a variant without dense connections that
///                     is not the base.
PAPERLAB_API void check(const VitConfig& config);

/// Returns the encoder that holds the blocks: of nn::EncoderFamily::kVit, mean pooling, a
/// classifier's output.
/// \throws ValueError  as check().
PAPERLAB_API nn::EncoderConfig encoder_config(const VitConfig& config);

/// Returns the parameters: those of transformers' ViT without the class token, under the names of
/// its files (`vit.encoder.layer.0.layernorm_before.weight`, ...; positions are there, as a table
/// that is not trained), then the connections' as in layout.h. The norms of K and V of a block with
/// several ways are `layers.l.attention_norms.{1,2}`, that of Q is the block's `layernorm_before`.
/// \throws ValueError  as check().
PAPERLAB_API std::vector<nn::ParameterSpec> parameter_specs(const VitConfig& config);

}  // namespace paperlab::mudd
