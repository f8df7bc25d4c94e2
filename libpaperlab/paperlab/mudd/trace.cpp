#include "paperlab/mudd/trace.h"

#include <memory>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/mudd/model.h"

namespace paperlab::mudd {

void check_traceable(const char* function, const MuddConfig& config) {
  require<ValueError>(is_dense(config.variant) || config.variant == Variant::kBase, function,
                      "variant must be base or one with dense connections",
                      "hyper_connections or lime");
}

Trace trace(const MuddConfig& config, const nn::Decoder& decoder, const at::Tensor& tokens) {
  check_traceable("trace", config);
  Trace result;
  result.weights.resize(static_cast<std::size_t>(config.num_layers));
  auto observer = std::make_shared<DenseObserver>();
  observer->on_state = [&](std::int64_t /*number*/, const at::Tensor& state) {
    result.states.push_back(state);
  };
  observer->on_weights = [&](std::int64_t layer, const at::Tensor& weights) {
    result.weights[static_cast<std::size_t>(layer)] = weights;
  };
  observer->on_streams = [&](std::int64_t /*layer*/, const Streams& streams) {
    result.streams.push_back(streams);
  };
  std::vector<at::Tensor> values;
  for (const nn::Decoder::Parameter& parameter : decoder.parameters()) {
    values.push_back(*parameter.value);
  }
  result.logits = make_decoder(config, std::move(values), observer)->forward(tokens);
  return result;
}

}  // namespace paperlab::mudd
