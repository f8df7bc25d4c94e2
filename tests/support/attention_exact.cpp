#include "tests/support/attention_exact.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <limits>

#include "tests/support/attention_dense.h"
#include "tests/support/attention_dense_backward.h"
#include "tests/support/isa.h"

namespace paperlab::test {
namespace {

using kernels::DType;

struct Slack {
  DType dtype;                // of the tensor
  long double of_norm = 0.0;  // eps (4 + largest |logit|)
};

template <class Real, class PlainReal, class Formula>
ExpectedTensor expected_tensor(const char* name, const Sums<Real>& exact,
                               const Sums<PlainReal>& plain, const Slack& slack, Formula) {
  ExpectedTensor expected{name, {exact.value.begin(), exact.value.end()}, {}};
  long double of_plain = 0.0L;
  for (std::size_t i = 0; i < exact.value.size(); ++i) {
    const auto stored = is_half(slack.dtype)
                            ? static_cast<long double>(Formula::rounded(plain.value[i]))
                            : static_cast<long double>(plain.value[i]);
    const long double error = std::abs(stored - expected.exact[i]);
    of_plain = std::isnan(error) ? of_plain : std::max(of_plain, error);
  }
  for (std::size_t i = 0; i < exact.value.size(); ++i) {
    const auto norm = static_cast<long double>(exact.norm[i]);
    expected.allowed.push_back(
        norm == 0.0L ? 0.0L
                     : 2.0L * of_plain + half_ulp(slack.dtype, expected.exact[i]) +
                           slack.of_norm * norm + static_cast<long double>(exact.of_out[i]));
  }
  return expected;
}

// The results of a pass in two number types, as long as they live.
template <class ExactPass, class PlainPass>
struct Passes {
  ExactPass exact;
  PlainPass plain;
  Slack slack;  // of the tensors that the case's dtype has

  explicit Passes(const AttentionTensors& tensors) : exact(tensors), plain(tensors) {
    exact.run();
    plain.run();
    const bool is_double = tensors.of.dtype == DType::kFloat64;
    const long double eps = is_double ? 0x1p-52L : 0x1p-23L;
    slack = {tensors.of.dtype, eps * (4.0L + static_cast<long double>(exact.largest_logit))};
  }
};

template <class Both, class Formula>
std::vector<ExpectedTensor> expected_results(const Both& of, Formula formula) {
  const bool is_double = of.slack.dtype == DType::kFloat64;
  const Slack statistics{is_double ? DType::kFloat64 : DType::kFloat32, of.slack.of_norm};
  return {expected_tensor("out", of.exact.forward[0], of.plain.forward[0], of.slack, formula),
          expected_tensor("lse", of.exact.forward[1], of.plain.forward[1], statistics, formula)};
}

std::vector<const char*> gradient_names(const AttentionTensors& tensors) {
  std::vector<const char*> names = {"grad_query", "grad_key", "grad_value"};
  if (!tensors.prefix_query.is_absent()) {
    names.push_back("grad_prefix_query");
  }
  names.insert(names.end(), {"grad_prefix_key", "grad_prefix_value"});
  return names;
}

template <class Real, class PlainReal, class Formula>
ExpectedAttention expected_of(const AttentionTensors& tensors, Direction direction,
                              Formula formula) {
  ExpectedAttention expected;
  if (direction == Direction::kForward) {
    const Passes<DenseForward<Real, Exact>, DenseForward<PlainReal, Formula>> passes(tensors);
    expected.forward = expected_results(passes, formula);
    return expected;
  }
  Passes<DenseBackward<Real, Exact>, DenseBackward<PlainReal, Formula>> passes(tensors);
  expected.forward = expected_results(passes, formula);
  const auto exact = passes.exact.take_gradients();
  const auto plain = passes.plain.take_gradients();
  const std::vector<const char*> names = gradient_names(tensors);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    expected.backward.push_back(
        expected_tensor(names[i], exact[i], plain[i], passes.slack, formula));
  }
  return expected;
}

// More than 1 is too much.
long double excess(double got, long double exact, long double allowed) {
  if (std::isinf(exact)) {
    return static_cast<long double>(got) == exact ? 0.0L
                                                  : std::numeric_limits<long double>::infinity();
  }
  const long double error = std::abs(static_cast<long double>(got) - exact);
  if (error <= allowed) {
    return 0.0L;
  }
  return std::isnan(error) || allowed == 0.0L ? std::numeric_limits<long double>::infinity()
                                              : error / allowed;
}

testing::AssertionResult are_within(const std::vector<const GuardedTensor*>& results,
                                    const std::vector<ExpectedTensor>& expected) {
  for (std::size_t i = 0; i < results.size(); ++i) {
    const testing::AssertionResult result = is_within(*results[i], expected[i]);
    if (!result) {
      return result;
    }
    if (!results[i]->has_untouched_gaps()) {
      return testing::AssertionFailure()
             << expected[i].name << ": memory between or around the elements was written";
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace

ExpectedAttention expected_attention(const AttentionTensors& tensors, Direction direction) {
  switch (tensors.of.dtype) {
    case DType::kFloat32:
      return expected_of<double, float>(tensors, direction, Plain());
    case DType::kFloat16:
      return expected_of<double, float>(tensors, direction, PlainFloat16());
    case DType::kBFloat16:
      return expected_of<double, float>(tensors, direction, PlainBFloat16());
    case DType::kFloat64:
      break;
  }
  return expected_of<long double, double>(tensors, direction, Plain());
}

testing::AssertionResult is_within(const GuardedTensor& actual, const ExpectedTensor& expected) {
  const std::vector<double> got = actual.values();
  if (got.size() != expected.exact.size()) {
    return testing::AssertionFailure()
           << expected.name << ": " << got.size() << " elements, not " << expected.exact.size();
  }
  std::size_t worst = 0;
  long double most = 0.0L;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const long double here = excess(got[i], expected.exact[i], expected.allowed[i]);
    if (here > most) {
      most = here;
      worst = i;
    }
  }
  if (most == 0.0L) {
    return testing::AssertionSuccess();
  }
  const auto [b, h, t, d] = actual.index_of(static_cast<std::int64_t>(worst));
  return testing::AssertionFailure()
         << expected.name << "[" << b << ", " << h << ", " << t << ", " << d << "]: got "
         << std::setprecision(17) << got[worst] << ", exact " << expected.exact[worst] << ", error "
         << std::setprecision(4) << std::abs(got[worst] - expected.exact[worst]) << ", allowed "
         << expected.allowed[worst] << " (" << most << " times)";
}

testing::AssertionResult is_right(AttentionTensors& tensors, const ExpectedAttention& expected,
                                  Direction direction, const Executor& executor) {
  const std::vector<std::byte> before = tensors.input_bytes();
  tensors.run_forward(executor);
  const testing::AssertionResult forward = are_within(tensors.forward_results(), expected.forward);
  if (!forward) {
    return forward;
  }
  if (direction == Direction::kBoth) {
    tensors.run_backward(executor);
    const testing::AssertionResult backward =
        are_within(tensors.backward_results(), expected.backward);
    if (!backward) {
      return backward;
    }
  }
  if (tensors.input_bytes() != before) {
    return testing::AssertionFailure() << "an input was changed";
  }
  return testing::AssertionSuccess();
}

testing::AssertionResult is_right_everywhere(const AttentionCase& of, Direction direction) {
  AttentionTensors tensors(of);
  const ExpectedAttention expected = expected_attention(tensors, direction);
  for (const CpuIsa isa : all_isas()) {
    if (!is_available(isa)) {
      continue;
    }
    const ScopedIsa scoped(isa);
    const testing::AssertionResult result =
        is_right(tensors, expected, direction, serial_executor());
    if (!result) {
      return testing::AssertionFailure()
             << result.message() << "\n  on " << cpu_isa_name(isa) << ", " << literal_of(of);
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace paperlab::test
