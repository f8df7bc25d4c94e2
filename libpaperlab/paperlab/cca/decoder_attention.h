#pragma once
/// \file
/// Core-context attention in a decoder: another attention over the same parameters.
/// Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465).

#include <cstdint>
#include <memory>

#include "paperlab/cca/options.h"
#include "paperlab/core/export.h"
#include "paperlab/nn/attention.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::cca {

/// Groups count from a row's first token that is not padding. Its cache keeps the core entries and
/// the last raw keys alone, whatever nn::CacheShape::max_length is. It has the dtype of its first
/// call: under autocast that of autocast (float64 stays), and later calls are brought to it.
class PAPERLAB_API DecoderAttention final : public nn::Attention {
 public:
  /// \param original  what remove() puts back; not null.
  /// \throws ValueError  if the options are not valid.
  DecoderAttention(const Options& options, std::shared_ptr<const nn::Attention> original);

  /// \throws ValueError  if the layer has a sliding window that hides a key; if the cache is not of
  ///                     these options; if num_past goes back to where keys are no longer there.
  at::Tensor forward(const nn::AttentionInput& input, nn::LayerCache* cache) const override;

  /// \throws ValueError  unless the boundary is exact: the others look ahead or count keys twice.
  std::unique_ptr<nn::LayerCache> new_cache(const nn::CacheShape& shape) const override;

  const Options& options() const { return options_; }
  const std::shared_ptr<const nn::Attention>& original() const { return original_; }

 private:
  Options options_;
  std::shared_ptr<const nn::Attention> original_;
};

/// Lets every layer attend by `options` from now on; again with others at any time. Parameters stay
/// as they are. A cache that was made before is refused afterwards.
/// \throws ValueError  if the options are not valid, or a layer has a sliding window that is
///                     shorter than config().max_positions; nothing has changed then.
PAPERLAB_API void apply(nn::Decoder& decoder, const Options& options);

/// The options of the last apply(); null after remove() or where there was none.
PAPERLAB_API const Options* applied(nn::Decoder& decoder);

/// Undoes apply(); nothing happens where there was none.
PAPERLAB_API void remove(nn::Decoder& decoder);

}  // namespace paperlab::cca
