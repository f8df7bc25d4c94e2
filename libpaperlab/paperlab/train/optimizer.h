#pragma once
/// \file
/// Optimizers over named parameters. What decays is data: a weight decay for each parameter.
/// Sources: AdamW: Loshchilov, Hutter, arXiv:1711.05101; Adafactor: Shazeer, Stern,
/// arXiv:1804.04235. Formulas and defaults of torch.optim's classes of these names.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/export.h"

namespace paperlab::train {

enum class OptimizerKind : std::uint8_t { kAdamW, kSgd, kAdafactor };

/// adamw, sgd or adafactor.
PAPERLAB_API const char* name_of(OptimizerKind kind);

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double beta1 = 0.9;     ///< adamw
  double beta2 = 0.95;    ///< adamw
  double eps = 1e-8;      ///< adamw
  double momentum = 0.0;  ///< sgd

  bool operator==(const OptimizerOptions&) const = default;
};

/// A parameter and how it decays.
struct Trained {
  std::string name;
  at::Tensor value;           ///< A leaf that requires a gradient.
  double weight_decay = 0.0;  ///< adamw, adafactor: decoupled; sgd: added to the gradient.
};

using NamedState = std::vector<std::pair<std::string, at::Tensor>>;

class PAPERLAB_API Optimizer {
 public:
  virtual ~Optimizer() = default;

  /// Changes the parameters by their gradients; one without a gradient stays as it is.
  virtual void step(double learning_rate) = 0;

  /// The optimizer's own tensors, `NAME.exp_avg` and the like; they share memory with it. A
  /// parameter's appear with its first step.
  virtual NamedState state() const = 0;

  /// Takes over what state() gave.
  /// \throws ValueError  if a name or shape is not as it would be.
  virtual void load_state(const NamedState& state) = 0;
};

/// \throws ValueError  if betas are outside [0, 1), eps or momentum negative, or numbers not
/// finite.
PAPERLAB_API std::unique_ptr<Optimizer> make_optimizer(std::vector<Trained> parameters,
                                                       const OptimizerOptions& options);

/// Returns the norm of all gradients together (float64) and, if it is above `most`, multiplies
/// them by most / (norm + 1e-6), as torch's clip_grad_norm_. An infinite `most` only measures.
PAPERLAB_API double clip_gradients(const std::vector<at::Tensor>& gradients, double most);

}  // namespace paperlab::train
