#pragma once
/// \file
/// Training a decoder or an encoder: steps, accumulation, clipping, checkpoints, exact resumption.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/load.h"
#include "paperlab/train/batch.h"
#include "paperlab/train/optimizer.h"
#include "paperlab/train/processes.h"
#include "paperlab/train/run_directory.h"
#include "paperlab/train/schedule.h"

namespace paperlab::nn {
struct HfEncoder;
}  // namespace paperlab::nn

namespace paperlab::train {

struct FitOptions {
  Schedule schedule{};
  OptimizerOptions optimizer{};
  double weight_decay = 0.0;
  /// fnmatch(3) patterns of names that do not decay; one of them must match.
  std::vector<std::string> no_decay{};
  double clip_norm = std::numeric_limits<double>::infinity();  ///< > 0
  /// Products and activations in bfloat16; parameters and the optimizer stay float32.
  bool computes_in_bfloat16 = false;
  std::int64_t accumulate = 1;        ///< Parts of a batch that are computed one after another.
  std::string out{};                  ///< The run's directory; empty: nothing is written.
  std::int64_t checkpoint_every = 0;  ///< In steps, and at the end; 0: at the end alone.
  std::int64_t keep = 2;              ///< So many newest checkpoints stay; >= 1.
  bool resumes = true;     ///< From the newest checkpoint; else what the run has is removed.
  std::uint64_t seed = 0;  ///< Kept with the checkpoints.
  /// Several train together, each on its rows of the global batch; null: one. The first writes.
  std::shared_ptr<Processes> processes{};
  bool shards_optimizer = false;           ///< Each process keeps a part of the optimizer's state.
  std::int64_t bucket_bytes = 8LL << 20U;  ///< Of the gradients that are added up at once; >= 1.
};

/// What on_step answers.
struct StepReply {
  bool goes_on = true;          ///< false: a checkpoint is written and the run ends.
  Scalars measures{};           ///< Of this step, for the event file.
  bool is_interrupted = false;  ///< As goes_on = false, and the history says so.
};

struct FitCallbacks {
  /// The global batch of a step. Steps ascend by one.
  std::function<Batch(std::int64_t step)> batch;
  /// After each step, in each process; one that does not go on ends all.
  std::function<StepReply(const StepRecord& record)> on_step{};
  /// Where the data stand, as text (UTF-8) that is kept with each checkpoint. Both or none are
  /// given: none for data that are a function of the step alone.
  std::function<std::string()> data_state{};
  /// Goes to where data_state() was taken; throws, and has changed nothing, if it cannot.
  std::function<void(const std::string& state)> load_data_state{};
};

struct History {
  std::vector<StepRecord> records;  ///< Of all steps so far, resumed ones included.
  std::int64_t num_resumed = 0;     ///< How many of them this run found done.
  bool is_complete = true;          ///< false: on_step ended it.
  bool is_interrupted = false;      ///< An interruption, in any of the processes, did.
};

/// Trains in place the parameters that require gradients: a decoder's by the mean cross-entropy of
/// the next token, an encoder's, which must classify sequences (EncoderOutput::kSequence) by one
/// label each, by that of its logits with the labels. The same bits from run to run at one number
/// of threads (and processes), and after any interruption.
///
/// Several processes give the same arguments (`out` and on_step may differ) and the same batches.
/// Each computes the rows from rank * B / size to (rank + 1) * B / size - 1. All begin with the
/// first one's parameters and return the same history. n processes add up what one with n times
/// `accumulate` does, in another order where n > 2.
/// \throws ValueError  before any work, with models and directory as they were, if an option or the
///                     first batch is not as above, in inference mode, or if the directory holds a
///                     run with other settings or other files of these names; in step n if the loss
///                     or a gradient is not finite, naming the step and the first bad tensor (the
///                     parameters are those before the step); before a checkpoint, and at the end,
///                     if a parameter is not finite. What was saved stays. Who goes on with a run
///                     has the checkpoint's parameters before its next batch is asked for.
/// \throws DTypeError  as ValueError, for a batch of another dtype.
/// \throws IoError     if another run has the directory, or the system refuses.
/// \throws LostProcess  if another process has ended or does not answer. One that is left has then
///                      written a checkpoint of the last whole step: the first process, or, where
///                      that is lost, another one that was given `out`; none if the optimizer is
///                      sharded. Any other exception of one process ends all: see
///                      Agreement::fail(). If it came out of the optimizer, parameters are partly
///                      changed.
PAPERLAB_API History fit(nn::HfDecoder& model, const FitOptions& options,
                         const FitCallbacks& callbacks);
PAPERLAB_API History fit(nn::HfEncoder& model, const FitOptions& options,
                         const FitCallbacks& callbacks);

}  // namespace paperlab::train
