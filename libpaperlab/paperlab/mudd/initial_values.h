#pragma once
/// \file
/// Initial values of a MUDDFormer.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/mudd/config.h"

namespace paperlab::mudd {

struct InitOptions {
  /// Standard deviation of the backbone's matrices. Absent: the paper's Xavier normal,
  /// sqrt(2 / (in + out)); in Pythia's block GPT-NeoX's, sqrt(2 / (5 D)), and 2 / (L sqrt(D)) for
  /// wo and w2. The released configuration of 405M parameters has 0.006.
  std::optional<double> std{};
  std::optional<double> embedding_std{};  ///< Of the embedding; absent: as the other matrices.
};

/// Returns the official initial values for each of parameter_specs(config), in that order: norms 1,
/// biases 0, w1 of generators N(0, 1 / D), their w2 0, dense_bs 1 for the newest source and 0 else,
/// so that each stream starts as X_i (arXiv:2502.12170, Sec. 3). With pre- and post-norms dense_bs
/// is 0 and a post-norm's scale 1e-3. Hyper-connections: beta 1, alpha [e_{m mod n} | I_n], dynamic
/// functions 0, scales 0.01 (arXiv:2409.19606, Sec. 2). LIMe's routers: uniform on
/// +-sqrt(3 / columns), the identity for the block's own heads (arXiv:2502.09245).
///
/// Matrices are functions of the seed, of what they are and of the block: the backbone starts the
/// same in every variant, for any number of threads.
/// \throws ValueError  as check(), or if a standard deviation is negative or not finite.
/// \throws DTypeError  unless dtype is float32, float64 or bfloat16.
PAPERLAB_API std::vector<at::Tensor> initial_values(const MuddConfig& config, std::uint64_t seed,
                                                    at::ScalarType dtype,
                                                    const InitOptions& options = {});

}  // namespace paperlab::mudd
