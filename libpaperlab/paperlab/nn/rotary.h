#pragma once
/// \file
/// Frequencies and tables of rotary position embedding, with the scalings for lengths beyond the
/// trained one. The rotation itself: ops/rope.h.
/// Sources: Su et al., arXiv:2104.09864; linear: Chen et al., arXiv:2306.15595; dynamic: NTK-aware
/// scaling by the sequence's length, as in Hugging Face transformers; yarn: Peng et al.,
/// arXiv:2309.00071, Eqs. (14) to (23); llama3: as released with Llama 3.1.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/config.h"

namespace paperlab::nn {

/// Cosines and sines of angles, multiplied by the attention factor.
struct RotaryTable {
  at::Tensor cos;  ///< [B or 1, T, R/2]
  at::Tensor sin;  ///< likewise
};

/// The frequencies f[i], i < R/2, of a configuration: position p turns pair i by p f[i].
///
/// Angles, cosines and sines are float64 and rounded once. Tables of usual positions are computed
/// once and kept; results may be views of them and must not be written to. May be used by several
/// threads at a time. The same bits for any number of threads.
class PAPERLAB_API Rotary {
 public:
  /// Larger positions are refused: their angles, in float64, would be less exact than float32.
  static constexpr std::int64_t kMaxPosition = std::int64_t{1} << 30;

  /// \throws ValueError  if rotary_dim is odd or negative, a number that the scaling uses is not
  ///                     finite or not positive, high_freq_factor <= low_freq_factor, base <= 1
  ///                     with yarn, rotary_dim == 2 with dynamic, or a frequency overflows.
  explicit Rotary(const RopeConfig& config);
  ~Rotary();
  Rotary(const Rotary&) = delete;
  Rotary& operator=(const Rotary&) = delete;

  const RopeConfig& config() const { return config_; }

  /// What cosines and sines are multiplied by; 1 unless yarn.
  double attention_factor() const { return attention_factor_; }

  /// [R/2] frequencies for sequences of `seq_len` positions, which dynamic scaling alone looks at
  /// (from max_positions on).
  /// \throws ValueError  if seq_len is outside 0..kMaxPosition + 1.
  std::vector<double> inverse_frequencies(std::int64_t seq_len = 0) const;

  /// Tables of positions start..start + length - 1, [1, length, R/2] on `device`, contiguous.
  ///
  /// \param dtype    of what is rotated: float64 gives float64 tables; float32 and bfloat16,
  ///                 float32.
  /// \param seq_len  the sequence's length for dynamic scaling; 0: start + length.
  /// \throws ValueError  if a position is outside 0..kMaxPosition, or seq_len as above.
  /// \throws DTypeError  if dtype is another one.
  RotaryTable range(std::int64_t start, std::int64_t length, at::ScalarType dtype,
                    std::int64_t seq_len = 0, const at::Device& device = at::kCPU) const;

  /// Tables of any positions, [B, T, R/2] on their device.
  ///
  /// \param positions  [B, T] int64, 0..kMaxPosition.
  /// \param dtype      as in range().
  /// \param seq_len    likewise; 0: the largest position + 1.
  /// \throws ShapeError, DTypeError, ValueError  if they are not as above.
  RotaryTable at(const at::Tensor& positions, at::ScalarType dtype, std::int64_t seq_len = 0) const;

  /// The same of positions that are all below seq_len, which is not checked: the tensor may be on
  /// any device, and nothing waits for it.
  RotaryTable rows(const at::Tensor& positions, std::int64_t seq_len, at::ScalarType dtype) const;

 private:
  struct Kept;

  bool is_stretched(std::int64_t seq_len) const;
  RotaryTable first(std::int64_t num_positions, at::ScalarType dtype,
                    const at::Device& device = at::kCPU) const;
  RotaryTable first_on_cpu(std::int64_t num_positions, at::ScalarType dtype) const;

  RopeConfig config_;
  double attention_factor_ = 1.0;
  std::vector<double> frequencies_;  // of sequences that are not stretched
  std::unique_ptr<Kept> kept_;
};

}  // namespace paperlab::nn
