#pragma once
// What the one-layer kernels share on the GPU: tables of exponentials before their tasks, sums in a
// fixed order and the gradient or the update after them. No atomics: the same bits in every run.
// No CUDA header, so that every build can name it.

#include <cstddef>
#include <memory>
#include <span>

#include "kernels/common/cuda/context.h"
#include "kernels/common/one_layer.h"

namespace paperlab::kernels {

struct EvaluationSum;

// Steps of plain gradient descent, kept on the device so that a captured step can be replayed.
struct DescentControl {
  double u_step = 0.0;
  double w_step = 0.0;
  std::int64_t num_steps = 0;
  std::int64_t first_not_finite = -1;  // number of the first step whose u is not finite
};

// Parameters that move; all pointers are of the device, in the layout of OneLayerParameters.
struct DescentState {
  int max_length = 0;
  double attention_scale = 1.0;
  double* u = nullptr;
  double* w = nullptr;
  double* gradient_w = nullptr;
  DescentControl* control = nullptr;
};

// A family of strings on the device and the memory of one step. Not to be shared by two streams.
class OneLayerPlanCuda {
 public:
  virtual ~OneLayerPlanCuda();
  OneLayerPlanCuda(const OneLayerPlanCuda&) = delete;
  OneLayerPlanCuda& operator=(const OneLayerPlanCuda&) = delete;

  // Asynchronous on the context's stream, 4 launches each (evaluate: 3). All pointers are of the
  // device; max_length must be at least that of the strings (ValueError).
  void gradient(const OneLayerParameters& parameters, const OneLayerGradient& gradient,
                const Context& context);
  void step(const DescentState& state, const Context& context);
  void evaluate(const OneLayerParameters& parameters, OneLayerEvaluation* out,
                const Context& context);

  // Throws UnsupportedError if, since the last call, the logits of some query were further apart
  // than kMaxSpread: the results are then not accurate. Waits for the stream.
  void check_spread(const Context& context);

  int max_length() const;

 protected:
  // Where the tasks of a query (length, last token) leave their marginals [2 length].
  struct TaskPlace {
    int length;
    int query;
    std::int64_t marginals;
  };
  struct Tables {
    const double* e;  // [2 max_length, 2 kMaxStringLength]
    const double* eu;
  };

  OneLayerPlanCuda(std::span<const TaskPlace> tasks, std::size_t num_marginals,
                   std::int64_t num_strings);

  virtual void launch_tasks(Tables tables, Marginal* out, const Context& context) = 0;
  virtual void launch_evaluations(Tables tables, EvaluationSum* out, const Context& context) = 0;

 private:
  struct Memory;

  void begin(const OneLayerParameters& parameters, const Context& context);
  void sum_tasks(const OneLayerParameters& parameters, double* gradient_w, const Context& context);

  std::unique_ptr<Memory> memory_;
};

// The last launches of a gradient and of an evaluation, on memory of the device: u's gradient
// [width] from the parts of every query, and the sum of `count` tasks.
void launch_u_gradient(const double* parts_of_u, int max_length, int width, double* gradient_u,
                       const Context& context);
void launch_evaluation_sum(const EvaluationSum* parts, int count, std::int64_t num_strings,
                           OneLayerEvaluation* out, const Context& context);

}  // namespace paperlab::kernels
