#pragma once
/// \file
/// Depth-wise aggregation as a model runs it: the outputs of a pass's blocks in one buffer, each
/// written once, and after a block its output, its weights and its streams in one step.
/// Source: Xiao, Meng, Li, Yuan, "MUDDFormer", ICML 2025, arXiv:2502.12170, Eqs. (3) to (8).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "paperlab/core/export.h"

namespace paperlab::ops {

/// The weights of J sources in each of C ways: generated from the newest state
/// (connection_weights), or given. A tensor that is not defined is absent. w1 and w2 are read
/// without a copy where both are contiguous or both views of contiguous [K, D] and [C J, K], as
/// linear layers have them; their gradients lie likewise.
struct DepthWeights {
  at::Tensor w1{};                  ///< [D, K], any strides; absent with w2: `bias` alone.
  at::Tensor w2{};                  ///< [K, C J], likewise; column c J + j: way c, source j.
  at::Tensor bias{};                ///< [C, J]; without matrices also [C, B, T, J].
  double eps = 1e-6;                ///< Finite, > 0, also in float32 where sums are.
  std::string_view gelu = "exact";  ///< "exact" (erf) or "tanh".
};

struct DepthStep {
  at::Tensor newest;                ///< X_i, [B, T, D].
  std::vector<at::Tensor> streams;  ///< C sums over the sources, [B, T, D] each.
};

/// The states X_0, X_1, ... of one forward pass. What `push` returns lies in the buffer or is new;
/// neither the newest state nor gradients of it may be changed in place.
///
/// Differentiable once. The gradients of all states of a pass share one buffer too, which the steps
/// of the backward pass add to in place, from the last to the first; both buffers go with the
/// graph. On the CPU the bits are the same from run to run and for any number of threads. On CUDA
/// devices, and for tensors without memory, LibTorch's operations compute in the same buffers.
class PAPERLAB_API DepthStates {
 public:
  /// \param capacity  how many states there will be at most, >= 1.
  /// \param first     X_0, [B, T, D] with D >= 1, float32, float64 or bfloat16 (CUDA: float16
  ///                  too), any strides; copied.
  /// \throws c10::ValueError, c10::TypeError  if they are not as above.
  DepthStates(std::int64_t capacity, const at::Tensor& first);

  DepthStates(DepthStates&&) = default;
  DepthStates& operator=(DepthStates&&) = default;
  DepthStates(const DepthStates&) = delete;  // two next steps would add to one gradient
  DepthStates& operator=(const DepthStates&) = delete;
  ~DepthStates() = default;

  /// Appends X_i = base + delta, or base, and returns its streams.
  ///
  /// Under autocast what is given is cast to the dtype of X_0.
  ///
  /// \param base     shape, dtype and device of X_0, any strides.
  /// \param delta    likewise, or not defined.
  /// \param weights  of that dtype and device; without a bias there are no streams.
  /// \param sources  J state numbers, ascending, the last of them i.
  /// \throws c10::ValueError, c10::TypeError  if they are not as above, or no state is left; the
  ///                                          states are as they were.
  DepthStep push(const at::Tensor& base, const at::Tensor& delta, const DepthWeights& weights = {},
                 at::IntArrayRef sources = {});

  /// States so far.
  std::int64_t size() const { return size_; }

 private:
  void check_push(const at::Tensor& base, const at::Tensor& delta, const DepthWeights& weights,
                  at::IntArrayRef sources) const;
  DepthStep push_as_given(const at::Tensor& base, const at::Tensor& delta,
                          const DepthWeights& weights, at::IntArrayRef sources);
  DepthStep push_recorded(const at::Tensor& base, const at::Tensor& delta,
                          const DepthWeights& weights, at::IntArrayRef sources);

  std::int64_t capacity_;
  std::int64_t size_ = 1;
  at::Tensor buffer_;  // [capacity, B, T, D]
  // States from first_ on have gradients: those of [link_.size(0), B, T, D] of them come back
  // through link_, which holds no numbers. Not defined: none have.
  std::int64_t first_ = 0;
  at::Tensor link_;
};

}  // namespace paperlab::ops
