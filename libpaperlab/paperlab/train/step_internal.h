#pragma once
/// \file
/// One step of training: gradients of a batch, in one process or several, and the optimizer's turn.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "paperlab/train/agreement.h"
#include "paperlab/train/buckets.h"
#include "paperlab/train/fit.h"

namespace paperlab::train {

inline constexpr char kFunction[] = "fit";

/// The trained parameters of a decoder, their gradients and their optimizer. The gradients are gone
/// when this ends, however it ends, if a step was begun.
class Stepper {
 public:
  /// All four live longer.
  /// \throws ValueError  if the decoder cannot be trained so.
  Stepper(nn::HfDecoder& model, const FitOptions& options, const FitCallbacks& callbacks,
          const Agreement& agreement);
  ~Stepper();
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  /// The global batch of a step, checked, on the parameters' device.
  at::Tensor batch_of(std::int64_t step) const;

  /// \param batch  of batch_of(); not defined: it is asked for.
  /// \throws ValueError, LostProcess  as fit(); the parameters are then as before, unless an
  ///                                  optimizer is sharded and a process is lost.
  StepRecord operator()(std::int64_t step, at::Tensor batch);

  /// Each process has the first one's parameters afterwards.
  void copy_parameters_of_first();

  /// The optimizer's state: of all parameters in the first process.
  NamedState state() const;

  /// Gives each process its part of a state that the first has.
  /// \throws ValueError  as Optimizer::load_state(), in all processes.
  void load_state(const NamedState& state);

  /// \throws ValueError  if a parameter is not finite after that step, naming both.
  void check_parameters(std::int64_t step) const;

 private:
  bool is_sharded() const { return options_.shards_optimizer && !agreement_.is_alone(); }
  std::vector<Trained> owned_by(std::int64_t process) const;
  void check_batch(const at::Tensor& batch, std::int64_t step) const;
  double gradients(std::int64_t step, at::Tensor batch);
  double own_gradients(std::int64_t step, const at::Tensor& rows);
  void check_same_batch(std::int64_t step, const std::vector<double>& told) const;
  void copy_changes();
  std::optional<class HalfParameters> in_half() const;
  [[noreturn]] void refuse_gradients(std::int64_t step) const;
  void clear_gradients();

  nn::HfDecoder& model_;
  const FitOptions& options_;
  const FitCallbacks& callbacks_;
  const Agreement& agreement_;
  std::vector<Trained> trained_;
  std::vector<std::int64_t> owners_;  // of the trained parameters' states, if sharded
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<GradientBuckets> buckets_{};  // of several processes
  bool has_begun_ = false;
};

}  // namespace paperlab::train
