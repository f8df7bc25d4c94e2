#pragma once
// Small models, and what trains them.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "paperlab/nn/decoder.h"
#include "paperlab/train/optimizer.h"

namespace paperlab::experiments::cca {

struct Shape {
  std::int64_t vocab_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t d_model = 0;
  std::int64_t num_heads = 0;
  std::int64_t max_positions = 0;
};

// RMSNorm before each sublayer, rotary positions, GELU, no biases, a tied head. Values are normal,
// of standard deviation 0.02, outputs of sublayers 0.01; norms are 1.
std::shared_ptr<nn::Decoder> new_model(const Shape& shape, std::uint64_t seed,
                                       const at::TensorOptions& options);

std::vector<at::Tensor> values_of(const nn::Decoder& decoder);

// A decoder of the same kind with copies of these values, which may be trained.
std::shared_ptr<nn::Decoder> trainable(const nn::Decoder& decoder,
                                       const std::vector<at::Tensor>& values);

struct Recipe {
  double learning_rate = 3e-3;
  std::int64_t warmup_steps = 20;  // linear, then constant
  double weight_decay = 0.01;
  double clip_norm = 1.0;
};

// AdamW (0.9, 0.98) on the loss of each step, on the calling thread.
class Minimizer {
 public:
  Minimizer(std::vector<train::Trained> parameters, const Recipe& recipe);

  void step(const at::Tensor& loss);

 private:
  Recipe recipe_;
  std::vector<at::Tensor> values_;
  std::unique_ptr<train::Optimizer> optimizer_;
  std::int64_t num_steps_ = 0;
};

// All parameters of a decoder, and a further tensor if it is defined.
std::vector<train::Trained> all_of(const nn::Decoder& decoder, const Recipe& recipe,
                                   const at::Tensor& further = {});

}  // namespace paperlab::experiments::cca
