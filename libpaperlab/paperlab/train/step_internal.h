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
#include "paperlab/train/model.h"

namespace paperlab::train {

inline constexpr char kFunction[] = "fit";

/// The trained parameters of a model, their gradients and their optimizer. The gradients are gone
/// when this ends, however it ends, if a step was begun.
class Stepper {
 public:
  /// All four live longer.
  /// \throws ValueError  if the model cannot be trained so.
  Stepper(Model& model, const FitOptions& options, const FitCallbacks& callbacks,
          const Agreement& agreement);
  ~Stepper();
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  /// The global batch of a step, checked, on the parameters' device.
  Batch batch_of(std::int64_t step) const;

  /// \throws ValueError  in all processes, if one has another global batch.
  void check_same(std::int64_t step, const Batch& batch) const;

  /// Computes the gradients of a step; parameters and optimizer stay as they are.
  /// \param batch  of batch_of(); not defined: it is asked for.
  /// \return       with the loss; the norm is that of update().
  /// \throws ValueError, LostProcess  as fit(), in all processes.
  StepRecord gradients(std::int64_t step, Batch batch);

  /// Clips the gradients and changes the parameters whose optimizer's state is here. Tells the
  /// others nothing: who fails here must.
  /// \throws ValueError  in all processes, if a gradient is not finite; nothing is changed then.
  void update(StepRecord& record);

  /// What each process's optimizer has changed, to the others; then the gradients are gone.
  /// \throws LostProcess  and nothing else.
  void end_step();

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
  void check_rows(std::int64_t rows) const;
  double loss(std::int64_t step, Batch batch);
  double own_gradients(std::int64_t step, const Batch& rows);
  std::optional<class HalfParameters> in_half() const;
  [[noreturn]] void refuse_gradients(std::int64_t step) const;
  void clear_gradients();

  Model& model_;
  const FitOptions& options_;
  const FitCallbacks& callbacks_;
  const Agreement& agreement_;
  std::vector<Trained> trained_;
  std::vector<std::int64_t> owners_;  // of the trained parameters' states, if sharded
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<GradientBuckets> buckets_{};  // of several processes
  std::vector<double> counts_{};                // of processes with a gradient of each parameter
  std::vector<std::vector<at::Tensor>> changes_{};  // by process, if sharded
  at::Tensor room_{};                               // to copy them
  bool has_begun_ = false;
};

}  // namespace paperlab::train
