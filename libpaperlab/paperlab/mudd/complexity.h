#pragma once
/// \file
/// What multiway dynamic dense connections cost, by counting.
/// Source: arXiv:2502.12170, Sec. 3 and Appendix C (Eqs. 13-16), Table 1; memory: Table 6.

#include <cstdint>
#include <optional>

#include "paperlab/core/export.h"

namespace paperlab::mudd {

/// Of L blocks of width D on T tokens. K_i = 4(i + 1) is the hidden size of the generator after
/// block i = 1..L.
struct Complexity {
  double eta = 0.0;                     ///< (L + 3) / D
  double rho = 0.0;                     ///< T / D
  double param_ratio = 0.0;             ///< eta / 6, about extra_params / base_params
  double flop_ratio = 0.0;              ///< eta / (3 + rho / 4), about extra_flops / base_flops
  std::int64_t sum_hidden = 0;          ///< sum of K_i = 2 L (L + 3)
  std::int64_t sum_hidden_squared = 0;  ///< sum of K_i^2 = 16 ((L+1)(L+2)(2L+3) / 6 - 1)
  std::int64_t extra_params = 0;        ///< sum of D K_i + K_i^2
  std::int64_t base_params = 0;         ///< 12 L D^2
  std::int64_t extra_flops = 0;         ///< sum of T (4 D K_i + 2 K_i^2)
  std::int64_t base_flops = 0;          ///< 2 L D T (12 D + T): causal attention, T keys a token
  /// Four ways after every block, the weights a included: extra_params + sum_hidden.
  std::int64_t generator_params = 0;
  /// As released: hidden sizes (floor(K / 64) + 1) 64, after the last block R alone with 4 K.
  std::int64_t generator_params_released = 0;
  /// With num_heads N: activations at the peak, as a part of Transformer++'s, which are
  /// 2 L B T D + B T D (34 + 6 N T / D) in 16 bit with checkpoints.
  std::optional<double> memory_ratio_denseformer{};  ///< L / (L + 17 + 3 N T / D)
  std::optional<double> memory_ratio_mudd{};         ///< (L + 3) / (L + 17 + 3 N T / D)
};

/// \throws ValueError  "complexity: ..." naming the argument, if one is below 1, num_layers is
/// above
///                     10000 or another above 2^31 - 1, or a count does not fit 63 bits.
PAPERLAB_API Complexity complexity(std::int64_t num_layers, std::int64_t d_model,
                                   std::int64_t seq_len,
                                   std::optional<std::int64_t> num_heads = std::nullopt);

}  // namespace paperlab::mudd
