// The loop on a GPU. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kernels/common/cuda/descent.h"
#include "kernels/one_layer_loop/cuda.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "tests/support/error_measure.h"
#include "tests/support/exact_one_layer.h"
#include "tests/support/gpu.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

using test::OneLayerInputs;

class GpuLoopTest : public test::GpuTest {};

regular_language::TrainOptions options_of(int max_length) {
  regular_language::TrainOptions options;
  options.method = regular_language::Method::kStrings;
  options.max_length = max_length;
  return options;
}

std::unique_ptr<DescentCuda> make_descent(const regular_language::TrainOptions& options,
                                          const OneLayerParameters& parameters) {
  return std::make_unique<DescentCuda>(
      std::make_unique<LoopPlanCuda>(LoopPlan(regular_language::packed_strings(options))),
      parameters.max_length, parameters.attention_scale);
}

// The device's outputs start as NaN (descent.cu).
OneLayerEvaluation run(DescentCuda& descent, OneLayerInputs& inputs) {
  inputs.gradient();
  descent.gradient(inputs.u, inputs.w, inputs.u_gradient, inputs.w_gradient);
  return descent.evaluate(inputs.u, inputs.w);
}

TEST_F(GpuLoopTest, GivesTheExactGradient) {
  for (const int max_length : {1, 2, 3, 6, 11, 14}) {
    SCOPED_TRACE(max_length);
    const auto options = options_of(max_length);
    OneLayerInputs inputs({.max_length = max_length + max_length % 2});
    const auto strings = test::strings_of(regular_language::affine_groups(options));
    const auto exact = test::exact_one_layer(strings, inputs.parameters());
    const double bound =
        test::rounding_bound(exact, max_length, static_cast<double>(strings.size()));
    const auto descent = make_descent(options, inputs.parameters());
    const OneLayerEvaluation evaluation = run(*descent, inputs);
    EXPECT_TRUE(test::is_close(inputs.u_gradient, exact.u, exact.u_norm, bound));
    EXPECT_TRUE(test::is_close(inputs.w_gradient, exact.w, exact.w_norm, bound));
    EXPECT_TRUE(test::is_close(evaluation.loss, exact.loss, exact.loss_norm, bound));
    EXPECT_TRUE(test::is_close(evaluation.min_margin, exact.min_margin, exact.largest_u, bound));
    EXPECT_EQ(evaluation.num_correct, exact.num_correct);
    EXPECT_EQ(evaluation.num_strings, std::ssize(strings));
  }
}

TEST_F(GpuLoopTest, HasTheSameBitsInEveryRun) {
  const auto options = options_of(16);
  OneLayerInputs first({.max_length = 16});
  const OneLayerEvaluation expected = run(*make_descent(options, first.parameters()), first);
  for (int repetition = 0; repetition < 3; ++repetition) {
    OneLayerInputs again({.max_length = 16});
    const OneLayerEvaluation evaluation = run(*make_descent(options, again.parameters()), again);
    EXPECT_TRUE(test::has_same_bits(first.u_gradient, again.u_gradient));
    EXPECT_TRUE(test::has_same_bits(first.w_gradient, again.w_gradient));
    EXPECT_EQ(expected.loss, evaluation.loss);
  }
}

}  // namespace
}  // namespace paperlab::kernels
