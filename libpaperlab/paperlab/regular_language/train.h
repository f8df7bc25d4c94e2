#pragma once
/// \file
/// One-layer softmax-attention transformers that learn even pairs, and parity by chain of thought,
/// trained by full-batch gradient descent on all binary strings.
/// Source: Huang, Liang, Yang, "How Transformers Learn Regular Language Recognition", ICML 2025,
/// (model, loss, two-phase training). Index: token s (a = 0, b = 1) at position l = 1..L is
/// entry 2(l-1)+s of u and of a row (key) or column (query) of w; logits are w / attention_scale.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/core/export.h"

namespace paperlab::regular_language {

enum class Task {
  kEvenPairs,  ///< y = +1 iff the first token equals the last; all strings of length 1..max_length.
  kParityCot,  ///< Teacher-forced chain of thought of all strings of base_length, plus even pairs.
  kParity,     ///< Control: y = +1 iff the number of b is even; all strings, no chain of thought.
};

enum class Method {
  kTwoClass,  ///< The exact reduced model: one score per length and label (zero initialization
              ///< only).
  kStrings,   ///< Every string, eight at a time.
  kFold,      ///< Every string as a row part plus a column part.
};

enum class Optimizer {
  kGd,
  kHeavyBall,     ///< m <- 0.9 m + g.
  kNormalizedGd,  ///< g / |g|, the norm taken over u and w together.
  kAdam,          ///< betas 0.9 and 0.999, eps 1e-8, bias-corrected.
  kSignGd,        ///< sign(g), sign(0) = 0.
};

enum class Embedding {
  kOrthonormal,    ///< One basis vector for each (position, token).
  kGaussian,       ///< Entries N(0, 1 / embedding_dim).
  kTokenPosition,  ///< (token + position) / sqrt(2), embedding_dim = max_length + 2.
};

enum class Device { kCpu, kCuda };

/// Whether kCuda was seen to pass its tests on a GPU: the tables in
/// kernels/one_layer_fold/README.md and kernels/one_layer_loop/README.md say where. Until then it
/// runs all the same where it is asked for, and Python says so once.
inline constexpr bool kCudaIsVerified = false;

struct TrainOptions {
  Task task = Task::kEvenPairs;
  int max_length = 6;              ///< Longest string; 2 * base_length - 2 for kParityCot.
  int base_length = 4;             ///< Read by kParityCot alone; at least 2.
  double learning_rate = 0.1;      ///< Finite, > 0.
  double attention_scale = 2.0;    ///< lambda, divides the logits; finite, > 0.
  std::int64_t boost_steps = 100;  ///< In the first steps w moves by learning_rate * boost.
  std::int64_t num_steps = 2000;
  Method method = Method::kTwoClass;
  Optimizer optimizer = Optimizer::kGd;
  double init_std = 0.0;  ///< Every entry of u and w is drawn from N(0, init_std^2).
  std::uint64_t seed = 0;
  /// Strictly increasing steps within 0..num_steps; this default is cut to those that are reached.
  std::vector<std::int64_t> record = {0, 100, 600, 1000, 2000};

  // Controls that the paper does not vary; the defaults are the paper's algorithm.
  double boost = 0.0;  ///< Multiplier of w's step while t < boost_steps; 0: attention_scale.
  std::int64_t freeze_attention_from = -1;  ///< w stays as it is from this step on; -1: never.
  int regularizer_length =
      -1;  ///< kParityCot adds even pairs of lengths 1..this; -1: base_length - 1.
  bool uniform_weights =
      false;  ///< Each string counts the same, not each length (method kStrings).
  Embedding embedding = Embedding::kOrthonormal;  ///< Others need method kStrings or kFold.
  int embedding_dim = 0;                          ///< Read by kGaussian alone.
  Device device = Device::kCpu;                   ///< kCuda serves kStrings and kFold with kGd.
  bool record_w = false;                          ///< Fill History::w_record.

  /// Called before each update (device kCuda: before each batch of at most 256) with the number of
  /// updates done; what it throws ends train().
  std::function<void(std::int64_t step)> on_step = nullptr;
};

/// The state after `step[r]` updates, for each record r.
struct History {
  std::vector<std::int64_t> step;
  std::vector<double> loss;            ///< The whole objective.
  std::vector<double> accuracy;        ///< Share of the training strings with y T > 0.
  std::vector<double> min_margin;      ///< Smallest y T.
  std::vector<std::vector<double>> u;  ///< [R][2 max_length]; <u, E> if embedded.
  std::vector<double> w_norm;          ///< Frobenius norm.
  std::vector<double> u_norm;
  std::vector<double> w;  ///< After num_steps, row-major [key, query]; empty above max_length 512.
  std::vector<std::vector<double>> w_record;  ///< As w, for each record, if options.record_w.
};

/// Trains and returns the recorded states.
///
/// \throws ValueError  naming the option that is out of range or does not fit the method
/// (max_length
///                     up to 4096 for kTwoClass, 20 for kStrings, 24 for kFold, base_length up to
///                     16 for kFold), or "the loss is not finite" with the step.
/// \throws UnsupportedError  for device kCuda without a build with CUDA and a GPU, or if the logits
/// of a
///                     query spread over more than 600 attention scales there.
///
/// float64. The same bits for any number of threads. Cost of a step: O(max_length^2) for kTwoClass,
/// O(2^max_length) for kFold, O(max_length 2^max_length) for kStrings.
PAPERLAB_API History train(const TrainOptions& options);

/// Checks the options as train() does before any work. \throws as train().
PAPERLAB_API void validate(const TrainOptions& options);

/// The records of 0, 100, 600, 1000, 2000 that `num_steps` reaches.
PAPERLAB_API std::vector<std::int64_t> default_record(std::int64_t num_steps);

}  // namespace paperlab::regular_language
