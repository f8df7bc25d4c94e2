#pragma once
/// \file
/// A model as training sees it: tensors, the loss of a batch, and the files of a checkpoint.

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/nn/linear.h"
#include "paperlab/nn/load.h"
#include "paperlab/nn/parameter_set.h"
#include "paperlab/nn/weights.h"
#include "paperlab/train/batch.h"

namespace paperlab::nn {
struct HfEncoder;
}  // namespace paperlab::nn

namespace paperlab::train {

/// A decoder, trained to predict the next token, or an encoder, trained to classify sequences. What
/// it is made of lives longer.
class PAPERLAB_API Model {
 public:
  Model() = default;
  virtual ~Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  /// All parameters, trained or not, in the order of the files.
  virtual const std::vector<nn::NamedParameter>& parameters() const = 0;

  /// The settings of config.json.
  virtual const Json& settings() const = 0;

  /// \param source  what returned the batch, for messages.
  /// \throws ValueError, DTypeError  unless the batch is one that loss() can read.
  virtual void check(const Batch& batch, const std::string& source) const = 0;

  /// The mean over the batch, [] in float32 (float64 for float64), differentiable.
  /// \throws c10::ValueError, c10::TypeError  as the model's forward().
  virtual at::Tensor loss(const Batch& batch) = 0;

  /// Calls `hook` with the input of each linear layer that the batch passes, without gradients.
  virtual void watch(const Batch& batch, const nn::LinearHook& hook) = 0;

  /// Writes a Hugging Face directory.
  /// \throws IoError, ValueError  as nn::save().
  virtual void save(const std::string& directory) const = 0;

  /// Values for all parameters, in their order, from a directory of save().
  /// \throws IoError, ValueError  if a file is missing, malformed or of another model.
  nn::NamedTensors read(const std::string& directory) const;

 protected:
  virtual nn::MapOptions map_options() const = 0;
};

PAPERLAB_API std::unique_ptr<Model> model_of(nn::HfDecoder& decoder);

/// \throws ValueError  unless the encoder classifies sequences, with two labels or more, of which a
///                     sequence has one (problem_type of config.json).
PAPERLAB_API std::unique_ptr<Model> model_of(nn::HfEncoder& encoder);

}  // namespace paperlab::train
