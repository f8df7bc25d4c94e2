#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "paperlab/core/error.h"
#include "paperlab/nn/encoder_attention.h"

namespace paperlab::nn {
namespace {

// The bucket of each distance, float32: distances up to half of the buckets have their own, the
// others share them by the logarithm up to max_distance. In float32 as the released models have it:
// a rounded quotient may decide between two buckets.
at::Tensor log_buckets(const RelativeConfig& config, const at::Tensor& distance) {
  const std::int64_t middle = config.num_buckets / 2;
  const at::Tensor far = distance.abs().clamp_min(middle);  // the logarithm of near ones: unused
  const at::Tensor top =
      at::full({}, static_cast<double>(config.max_distance - 1) / static_cast<double>(middle),
               distance.options().dtype(at::kFloat));
  const at::Tensor share = far.to(at::kFloat).div(static_cast<double>(middle)).log().div(top.log());
  const at::Tensor bucket =
      share.mul(static_cast<double>(middle - 1)).ceil().add(static_cast<double>(middle));
  return at::where(distance.abs().le(middle), distance.to(at::kFloat),
                   bucket.mul(distance.sign().to(at::kFloat)));
}

double least_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return std::numeric_limits<double>::lowest();
    case at::kBFloat16:
      return std::numeric_limits<c10::BFloat16>::lowest();
    case at::kHalf:
      return std::numeric_limits<c10::Half>::lowest();
    default:
      return std::numeric_limits<float>::lowest();
  }
}

// [B, H, T, T] of products with all distances [B, H, T, 2 span].
at::Tensor at_distance(const at::Tensor& products, const at::Tensor& buckets) {
  const std::int64_t length = buckets.size(0);
  return at::gather(products, 3,
                    buckets.expand({products.size(0), products.size(1), length, length}));
}

}  // namespace

at::Tensor distance_buckets(const RelativeConfig& config, std::int64_t length,
                            const at::Device& device) {
  const auto options = at::TensorOptions(at::kLong).device(device);
  const std::int64_t reach = std::max<std::int64_t>(length, 1);
  at::Tensor distance = at::arange(1 - reach, reach, options);  // of each diagonal
  if (config.num_buckets > 0) {
    distance = log_buckets(config, distance).to(at::kLong);
  }
  const at::Tensor row = distance.add(config.span).clamp(0, 2 * config.span - 1);
  const at::Tensor place = at::arange(length, options);
  return row.take(place.unsqueeze(1).sub(place.unsqueeze(0)).add(reach - 1));
}

// [H, 2 span, D]
at::Tensor DisentangledAttention::of_distances(const LinearSlot& slot,
                                               const AttentionInput& input) const {
  const at::Tensor& distances = input.encoder->distances;
  const at::Tensor projected = slot(distances, *input.encoder->hooks);
  return projected.view({distances.size(0), input.query.size(2), input.query.size(3)})
      .transpose(0, 1);
}

at::Tensor DisentangledAttention::forward(const AttentionInput& input,
                                          LayerCache* /*cache*/) const {
  require<ValueError>(input.encoder != nullptr, "nn::DisentangledAttention", "an encoder's pass",
                      "none");
  const EncoderPass& pass = *input.encoder;
  const at::Tensor query = input.query.transpose(1, 2);
  const at::Tensor key = input.key.transpose(1, 2);
  at::Tensor logits = at::matmul(query, key.transpose(2, 3));
  if (config_.is_used && config_.has_content_to_position) {
    const at::Tensor products = at::matmul(query, of_distances(key_, input).transpose(1, 2));
    logits = logits.add(at_distance(products, pass.buckets));
  }
  if (config_.is_used && config_.has_position_to_content) {
    const at::Tensor products = at::matmul(key, of_distances(query_, input).transpose(1, 2));
    logits = logits.add(at_distance(products, pass.buckets.t()).transpose(2, 3));
  }
  const std::int64_t terms = num_terms_ * query.size(3);
  logits = logits.div(std::sqrt(static_cast<double>(terms)));
  if (pass.visible.defined()) {  // rows of hidden tokens see all evenly, as in the released models
    const at::Tensor sees = pass.visible.unsqueeze(1).logical_and(pass.visible.unsqueeze(2));
    logits = logits.masked_fill(sees.logical_not().unsqueeze(1), least_of(logits.scalar_type()));
  }
  return at::matmul(at::softmax(logits, -1), input.value.transpose(1, 2)).transpose(1, 2);
}

std::unique_ptr<LayerCache> DisentangledAttention::new_cache(const CacheShape& /*shape*/) const {
  throw UnsupportedError("nn::DisentangledAttention: an encoder has no cache");
}

}  // namespace paperlab::nn
