#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "paperlab/cca/baselines.h"
#include "paperlab/cca/inputs_internal.h"
#include "paperlab/cca/vertical_slash_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::cca::vertical_slash {
namespace {

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // + the choice
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

constexpr char kFunction[] = "vertical_slash";

at::ScalarType wide(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Tokens that a block can see, its own included.
std::int64_t longest_list(const at::Tensor& query, const Choice& choice) {
  const std::int64_t chosen = choice.columns.size(2) + kBlock * choice.diagonals.size(2);
  return std::min(query.size(2), chosen + kBlock);
}

// Heads whose tokens are gathered at a time: some 32 MiB, by the longest that they can be.
std::int64_t heads_at_once(const at::Tensor& query, std::int64_t longest) {
  constexpr std::int64_t kBytes = std::int64_t{32} << 20;
  const std::int64_t of_head = 2 * longest * query.size(3) * query.element_size();
  return std::max<std::int64_t>(2, kBytes / std::max<std::int64_t>(of_head, 1));
}

std::vector<PastTokens> past_tokens(const Choice& choice, std::int64_t length) {
  const at::Tensor columns = choice.columns.contiguous().flatten(0, 1);
  const at::Tensor diagonals = choice.diagonals.contiguous().flatten(0, 1);
  std::vector<PastTokens> past;
  past.reserve(static_cast<std::size_t>(columns.size(0)));
  for (std::int64_t head = 0; head < columns.size(0); ++head) {
    past.emplace_back(columns.select(0, head), diagonals.select(0, head), length);
  }
  return past;
}

// Calls body(block, first head, memory) for all blocks of rows of all heads, in order.
template <class F>
void for_each_block(const at::Tensor& query, const Choice& choice, F&& body) {
  const std::int64_t heads = query.size(0) * query.size(1);
  const std::int64_t length = query.size(2);
  const std::vector<PastTokens> past = past_tokens(choice, length);
  const std::int64_t longest = longest_list(query, choice);
  const std::int64_t step = heads_at_once(query, longest);
  for (std::int64_t first = 0; first < heads; first += step) {
    const std::int64_t count = std::min(step, heads - first);
    const std::vector<std::int64_t> sizes = {count, 1, longest, query.size(3)};
    const Memory memory{at::empty(sizes, query.options()), at::empty(sizes, query.options())};
    for (std::int64_t begin = 0; begin < length; begin += kBlock) {
      body(block_of(past, first, count, begin, length), first, memory);
    }
  }
}

// Whether gathering reads and writes memory itself. On a GPU nothing is missing: it is LibTorch's.
bool is_for_cpu(const at::Tensor& query) {
  return !query.is_cuda() && ops::route_of(kFunction, query, "q") == ops::Route::kCpu;
}

// [B, H, T, ...] as the block's rows of heads: [n, 1, size, ...], a view.
at::Tensor rows_of(const at::Tensor& x, const Block& block, std::int64_t first) {
  return x.flatten(0, 1)
      .narrow(0, first, block.start.size(0))
      .narrow(1, block.begin, block.size)
      .unsqueeze(1);
}

Results new_results(const at::Tensor& query, std::int64_t vertical, std::int64_t slash) {
  const auto sizes = query.sym_sizes();
  const auto longs = query.options().dtype(at::kLong);
  const c10::SymInt columns = std::max(vertical, kForcedColumns);
  const c10::SymInt diagonals = std::max(slash, kForcedDiagonals);
  return {at::empty_symint(sizes, query.options()),
          at::empty_symint({sizes[0], sizes[1], sizes[2]}, query.options().dtype(wide(query))),
          at::empty_symint({sizes[0], sizes[1], sizes[2].min(columns)}, longs),
          at::empty_symint({sizes[0], sizes[1], sizes[2].min(diagonals)}, longs)};
}

void check(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
           std::int64_t vertical, std::int64_t slash) {
  check_inputs(kFunction, query, key, value);
  check_count(kFunction, "vertical", vertical, 0);
  check_count(kFunction, "slash", slash, 0);
}

Results forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                std::int64_t vertical, std::int64_t slash) {
  check(query, key, value, vertical, slash);
  const bool is_cpu = is_for_cpu(query);
  auto [out, lse, columns, diagonals] = new_results(query, vertical, slash);
  if (query.numel() == 0) {
    return {out, lse, columns.zero_(), diagonals.zero_()};
  }
  const Choice choice = choose(query, key, vertical, slash);
  const at::Tensor q = query.contiguous();
  const at::Tensor k = key.contiguous();
  const at::Tensor v = value.contiguous();
  const auto of_block = [&, &out = out, &lse = lse](const Block& block, std::int64_t first,
                                                    const Memory& memory) {
    ops::AttentionOptions options;
    options.key_start = block.start.to(q.device());
    const Memory seen = is_cpu ? gathered({k, v}, block, first, q.size(1), memory)
                               : gathered_torch({k, v}, block, first, q.size(1));
    const auto result = ops::attention(rows_of(q, block, first), seen.key, seen.value, options);
    rows_of(out, block, first).copy_(result.out);
    rows_of(lse, block, first).copy_(result.lse);
  };
  for_each_block(q, choice, of_block);
  return {out, lse, choice.columns.to(q.device()), choice.diagonals.to(q.device())};
}

Results forward_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     std::int64_t vertical, std::int64_t slash) {
  check(query, key, value, vertical, slash);
  return new_results(query, vertical, slash);
}

// The operator of the attention's gradient with these arguments, others at their defaults.
Gradients attention_backward(const std::map<std::string, at::Tensor>& arguments) {
  static const c10::OperatorHandle op =
      c10::Dispatcher::singleton().findSchemaOrThrow("paperlab::attention_backward", "");
  torch::jit::Stack stack;
  for (const c10::Argument& argument : op.schema().arguments()) {
    const auto found = arguments.find(argument.name());
    stack.push_back(found == arguments.end() ? argument.default_value().value_or(c10::IValue())
                                             : c10::IValue(found->second));
  }
  op.callBoxed(stack);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor()};
}

Gradients backward(const at::Tensor& grad_out, const OptionalTensor& grad_lse,
                   const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                   const at::Tensor& out, const at::Tensor& lse, const at::Tensor& columns,
                   const at::Tensor& diagonals) {
  const ops::autocast::Off no_autocast;  // a backward pass may run where autocast is on
  const bool is_cpu = is_for_cpu(query);
  const at::Tensor grad_query = at::zeros(query.sizes(), query.options());
  const std::int64_t num_rows = key.size(0) * key.size(1) * key.size(2);
  const std::vector<std::int64_t> sizes = {num_rows + 1, key.size(3)};  // a row for nothing
  const at::Tensor key_rows = at::zeros(sizes, query.options().dtype(wide(query)));
  const at::Tensor value_rows = at::zeros_like(key_rows);
  const at::Tensor grad_key = key_rows.narrow(0, 0, num_rows).view(key.sizes());
  const at::Tensor grad_value = value_rows.narrow(0, 0, num_rows).view(key.sizes());
  const at::Tensor q = query.contiguous();
  const at::Tensor k = key.contiguous();
  const at::Tensor v = value.contiguous();
  const at::Tensor g = grad_out.contiguous();
  const at::Tensor h = grad_lse.has_value() ? grad_lse->contiguous() : at::zeros_like(lse);
  const auto of_block = [&](const Block& block, std::int64_t first, const Memory& memory) {
    const Memory seen = is_cpu ? gathered({k, v}, block, first, q.size(1), memory)
                               : gathered_torch({k, v}, block, first, q.size(1));
    const auto [of_query, of_key, of_value] =
        attention_backward({{"grad_out", rows_of(g, block, first)},
                            {"grad_lse", rows_of(h, block, first)},
                            {"query", rows_of(q, block, first)},
                            {"key", seen.key},
                            {"value", seen.value},
                            {"out", rows_of(out, block, first)},
                            {"lse", rows_of(lse, block, first)},
                            {"key_start", block.start.to(q.device())}});
    rows_of(grad_query, block, first).copy_(of_query);
    if (is_cpu) {
      scatter_add(of_key, block, first, q.size(1), grad_key);
      scatter_add(of_value, block, first, q.size(1), grad_value);
    } else {
      scatter_add_torch(of_key, block, first, q.size(1), key.sizes(), key_rows);
      scatter_add_torch(of_value, block, first, q.size(1), key.sizes(), value_rows);
    }
  };
  if (query.numel() > 0) {
    for_each_block(q, {columns.cpu(), diagonals.cpu()}, of_block);
  }
  return {grad_query, grad_key.to(query.scalar_type()), grad_value.to(query.scalar_type())};
}

Gradients backward_meta(const at::Tensor& /*grad_out*/, const OptionalTensor& /*grad_lse*/,
                        const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const at::Tensor& /*out*/, const at::Tensor& /*lse*/,
                        const at::Tensor& /*columns*/, const at::Tensor& /*diagonals*/) {
  const auto like = [](const at::Tensor& x) {
    return at::empty_symint(x.sym_sizes(), x.options());
  };
  return {like(query), like(key), like(value)};
}

constexpr char kName[] = "paperlab::cca_vertical_slash";

Results call(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
             std::int64_t vertical, std::int64_t slash) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(kName, "").typed<decltype(forward)>();
  return op.call(query, key, value, vertical, slash);
}

class VerticalSlash : public torch::autograd::Function<VerticalSlash> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, std::int64_t vertical,
                                                std::int64_t slash) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [out, lse, columns, diagonals] = call(query, key, value, vertical, slash);
    context->set_materialize_grads(false);
    context->save_for_backward({query, key, value, out, lse, columns, diagonals});
    context->mark_non_differentiable({columns, diagonals});
    return {out, lse, columns, diagonals};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    if (!grads[0].defined() && !grads[1].defined()) {
      return torch::autograd::variable_list(5);
    }
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("paperlab::cca_vertical_slash_backward", "")
                               .typed<decltype(vertical_slash::backward)>();
    const auto saved = context->get_saved_variables();
    const at::Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_like(saved[3]);
    const OptionalTensor grad_lse = grads[1].defined() ? OptionalTensor(grads[1]) : std::nullopt;
    const auto [query, key, value] = op.call(grad_out, grad_lse, saved[0], saved[1], saved[2],
                                             saved[3], saved[4], saved[5], saved[6]);
    return {query, key, value, at::Tensor(), at::Tensor()};
  }
};

Results forward_autograd(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         std::int64_t vertical, std::int64_t slash) {
  check(query, key, value, vertical, slash);
  ops::refuse_forward_gradients(kFunction, query, key, value);
  const auto results = VerticalSlash::apply(query, key, value, vertical, slash);
  return {results[0], results[1], results[2], results[3]};
}

// As attention: in autocast's dtype; float64 stays.
template <c10::DeviceType kDevice>
Results forward_autocast(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         std::int64_t vertical, std::int64_t slash) {
  const ops::autocast::Guard<kDevice> guard;
  return call(ops::autocast::lowered<kDevice>(query), ops::autocast::lowered<kDevice>(key),
              ops::autocast::lowered<kDevice>(value), vertical, slash);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  m.def(
      "cca_vertical_slash(Tensor q, Tensor k, Tensor v, int vertical, int slash) -> (Tensor out, "
      "Tensor lse, Tensor columns, Tensor diagonals)");
  m.def(
      "cca_vertical_slash_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, "
      "Tensor v, Tensor out, Tensor lse, Tensor columns, Tensor diagonals) -> (Tensor grad_q, "
      "Tensor grad_k, Tensor grad_v)");
}

// Every device, so that a tensor on another one is refused by name.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) {
  m.impl("cca_vertical_slash", forward);
  m.impl("cca_vertical_slash_backward", backward);
}

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl("cca_vertical_slash", forward_meta);
  m.impl("cca_vertical_slash_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl("cca_vertical_slash", forward_autograd);
  m.impl("cca_vertical_slash_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) {
  m.impl("cca_vertical_slash", forward_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) {
  m.impl("cca_vertical_slash", forward_autocast<at::kCUDA>);
}

}  // namespace paperlab::cca::vertical_slash

namespace paperlab::cca::baselines {

ops::AttentionResult vertical_slash(const at::Tensor& query, const at::Tensor& key,
                                    const at::Tensor& value, std::int64_t vertical,
                                    std::int64_t slash) {
  check_inputs("vertical_slash", query, key, value);
  const auto [out, lse, columns, diagonals] =
      cca::vertical_slash::call(query, key, value, vertical, slash);
  return {out, lse};
}

}  // namespace paperlab::cca::baselines
