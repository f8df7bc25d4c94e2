#include <ATen/ops/empty.h>

#include <algorithm>

#include "paperlab/ops/depth_checks_internal.h"
#include "paperlab/ops/depth_torch_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/torch_products_internal.h"

namespace paperlab::ops::depth {
namespace {

// Of states in the type of statistics, so that copies of many states do not pile up.
constexpr std::int64_t kElementsAtOnce = std::int64_t{1} << 27;

// Calls body(first, count) for all tokens, some at a time: a function of shapes alone.
template <class F>
void for_tokens(std::int64_t num_tokens, std::int64_t elements_of_token, F body) {
  const std::int64_t most =
      std::max<std::int64_t>(1, kElementsAtOnce / std::max<std::int64_t>(1, elements_of_token));
  for (std::int64_t first = 0; first < num_tokens; first += most) {
    body(first, std::min(most, num_tokens - first));
  }
}

// Tokens of x [m, N, n] as matrices [count, m, n] of `dtype`.
at::Tensor matrices(const at::Tensor& x, std::int64_t first, std::int64_t count,
                    at::ScalarType dtype) {
  return x.narrow(1, first, count).permute({1, 0, 2}).to(dtype);
}

at::Tensor by_rows(const at::Tensor& matrices) { return matrices.permute({1, 0, 2}); }

// In which x and y are multiplied: their own dtype where they share it and a GPU multiplies half
// types; weights that a generator made in the type of statistics are not rounded.
at::ScalarType factors_of(const at::Tensor& x, const at::Tensor& y, at::ScalarType sums) {
  return x.scalar_type() == y.scalar_type() ? factor_dtype(x, sums) : sums;
}

}  // namespace

at::Tensor sums_torch(const at::Tensor& states, const at::Tensor& weights) {
  const autocast::Off off;
  const at::ScalarType dtype = statistics_of(states);
  const at::ScalarType factors = factors_of(weights, states, dtype);
  const std::int64_t width = states.size(2);
  const at::Tensor out = at::empty({weights.size(0), states.size(1), width}, states.options());
  for_tokens(states.size(1), states.size(0) * width, [&](std::int64_t first, std::int64_t count) {
    const at::Tensor sums = product(matrices(weights, first, count, factors),
                                    matrices(states, first, count, factors), dtype);
    out.narrow(1, first, count).copy_(by_rows(sums));
  });
  return out;
}

at::Tensor weight_gradients_torch(const at::Tensor& grad, const at::Tensor& states) {
  const autocast::Off off;
  const at::ScalarType dtype = statistics_of(states);
  const at::ScalarType factors = factors_of(grad, states, dtype);
  const std::int64_t num_sources = states.size(0);
  const at::Tensor out =
      at::empty({grad.size(0), states.size(1), num_sources}, states.options().dtype(dtype));
  for_tokens(states.size(1), num_sources * states.size(2),
             [&](std::int64_t first, std::int64_t count) {
               const at::Tensor sums =
                   product(matrices(grad, first, count, factors),
                           matrices(states, first, count, factors).transpose(1, 2), dtype);
               out.narrow(1, first, count).copy_(by_rows(sums));
             });
  return out;
}

void state_gradients_torch(const at::Tensor& grad, const at::Tensor& weights,
                           std::int64_t num_sources, const TakeStates& take) {
  const autocast::Off off;
  const at::ScalarType dtype = statistics_of(grad);
  const at::ScalarType factors = factors_of(weights, grad, dtype);
  for_tokens(grad.size(1), num_sources * grad.size(2), [&](std::int64_t first, std::int64_t count) {
    take(first, by_rows(product(matrices(weights, first, count, factors).transpose(1, 2),
                                matrices(grad, first, count, factors), dtype)));
  });
}

}  // namespace paperlab::ops::depth
