#pragma once
/// \file
/// The directory of a training run: its metrics, its checkpoints, and that one run at a time has
/// it.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/nn/weights.h"
#include "paperlab/train/event_file.h"
#include "paperlab/train/model.h"
#include "paperlab/train/optimizer.h"

namespace paperlab::train {

/// One step's line of metrics.jsonl. Numbers are read back with the same bits.
struct StepRecord {
  std::int64_t step = 0;  ///< from 0
  double loss = 0.0;
  double grad_norm = 0.0;  ///< before clipping
  double learning_rate = 0.0;

  bool operator==(const StepRecord&) const = default;
};

/// Another run has the directory.
class PAPERLAB_API TakenDirectory : public IoError {
 public:
  using IoError::IoError;
};

/// What a checkpoint holds besides its settings.
struct SavedTensors {
  nn::NamedTensors values{};  ///< In the order of the model's parameters.
  NamedState state{};         ///< Of the optimizer.

  /// Copies the values into the parameters.
  PAPERLAB_API void put_into(const Model& model) const;
};

/// DIR/metrics.jsonl, DIR/events.out.tfevents.* and DIR/checkpoint-NNNNNNNN, each a Hugging Face
/// directory with optimizer.safetensors and training.json beside the model.
class PAPERLAB_API RunDirectory {
 public:
  /// Makes the directory, takes it, and removes what a killed run left half-written. A directory
  /// that this made and in which nothing began goes again with it.
  /// \throws TakenDirectory, IoError  if another run has it, or the system refuses.
  explicit RunDirectory(std::string path);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::string& path() const { return path_; }

  /// Whether there is a directory of that path in which a run has begun.
  static bool has_metrics(const std::string& path);

  /// Complete checkpoints as step numbers, ascending. One of step n holds the state before step n.
  std::vector<std::int64_t> checkpoints() const;

  /// training.json of a checkpoint.
  /// \throws IoError, ValueError  as read_json(), and if it is no object or of another step.
  Json training(std::int64_t step) const;

  /// A checkpoint's values, one for each parameter of the model, and the optimizer's state.
  /// \throws IoError, ValueError  if a file is missing, malformed or of another model.
  SavedTensors read(std::int64_t step, const Model& model) const;

  /// Writes a checkpoint under a temporary name, renames it, and removes all but the newest `keep`.
  /// \throws IoError  if the system refuses; earlier checkpoints stay.
  void save(std::int64_t step, const Model& model, const NamedState& state, const Json& training,
            std::int64_t keep);

  /// Removes metrics, events and checkpoints.
  void clear();

  /// \throws ValueError  if there is a metrics.jsonl that no run wrote.
  void check_metrics() const;

  /// The first `num_steps` lines of metrics.jsonl.
  /// \throws ValueError  if there are fewer, or a line is malformed.
  std::vector<StepRecord> metrics(std::int64_t num_steps) const;

  /// Opens metrics.jsonl for append(); keeps its first `num_steps` lines, later ones come again.
  /// \throws IoError, ValueError  as metrics(), or if the system refuses.
  void open_metrics(std::int64_t num_steps);

  /// Opens metrics.jsonl, to which another process wrote the lines of these steps, perhaps not the
  /// last one's, and writes that.
  /// \return  false, with nothing changed, if its lines are of another run.
  /// \throws IoError  if the system refuses.
  bool complete_metrics(const std::vector<StepRecord>& records);

  /// Appends a line, and scalars of the same names to the event file, and hands both to the system.
  /// \throws IoError  if the system refuses.
  void append(const StepRecord& record);

  /// Appends other scalars of a step to the event file.
  void append_measures(std::int64_t step, const Scalars& measures);

 private:
  void take();
  std::string checkpoint_path(std::int64_t step) const;
  std::string lock_path() const { return path_ + "/lock"; }
  std::string metrics_path() const { return path_ + "/metrics.jsonl"; }

  std::string path_;
  std::vector<std::string> made_{};  // directories, the innermost first
  int lock_ = -1;
  bool made_lock_ = false;
  bool has_begun_ = false;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> metrics_;
  std::unique_ptr<EventFile> events_{};
};

}  // namespace paperlab::train
