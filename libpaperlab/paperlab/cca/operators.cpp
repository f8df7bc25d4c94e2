// The functions of this module as operators for LibTorch. All but vertical_slash are compositions
// of other operators, through which autograd and compilers see; so they bring their tensors to
// autocast's dtype themselves.
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "paperlab/cca/attention.h"
#include "paperlab/cca/baselines.h"
#include "paperlab/cca/inputs_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"

namespace paperlab::cca {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

template <class T, std::size_t N>
using Names = std::array<std::pair<std::string_view, T>, N>;

constexpr Names<Pooling, 3> kPoolings = {
    {{"attention", Pooling::kAttention}, {"mean", Pooling::kMean}, {"max", Pooling::kMax}}};
constexpr Names<Boundary, 3> kBoundaries = {{{"exact", Boundary::kExact},
                                             {"paper_equation", Boundary::kPaperEquation},
                                             {"triton_truncation", Boundary::kTritonTruncation}}};
constexpr Names<WeightsPer, 2> kWeightsPer = {
    {{"query_head", WeightsPer::kQueryHead}, {"kv_head", WeightsPer::kKvHead}}};

template <class T, std::size_t N>
T named(const char* function, const char* argument, const Names<T, N>& names,
        std::string_view name) {
  std::string known;
  for (const auto& [text, value] : names) {
    if (text == name) {
      return value;
    }
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  TORCH_CHECK_VALUE(false, function, ": ", argument, " must be one of ", known, ", got '", name,
                    "'");
}

Pair attention_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  std::int64_t group_size, std::int64_t window, std::string_view pooling,
                  std::string_view boundary, std::string_view weights_per,
                  std::int64_t keep_first) {
  const Options options{group_size,
                        window,
                        named("attention", "pooling", kPoolings, pooling),
                        named("attention", "boundary", kBoundaries, boundary),
                        named("attention", "weights_per", kWeightsPer, weights_per),
                        keep_first};
  auto [out, lse] = attention(lowered(q), lowered(k), lowered(v), options);
  return {std::move(out), std::move(lse)};
}

Pair pool_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t group_size,
             std::string_view pooling, std::string_view weights_per, std::int64_t keep_first) {
  Options options;
  options.group_size = group_size;
  options.pooling = named("pool", "pooling", kPoolings, pooling);
  options.weights_per = named("pool", "weights_per", kWeightsPer, weights_per);
  options.keep_first = keep_first;
  auto [key, value] = pool(lowered(q), lowered(k), lowered(v), options);
  return {std::move(key), std::move(value)};
}

at::Tensor effective_attention_op(const at::Tensor& q, const at::Tensor& k, std::int64_t group_size,
                                  std::int64_t window) {
  at::Tensor query = q;
  at::Tensor key = k;
  if (is_autocast_on(q)) {  // it is computed in float32 at least: the widest dtype given
    ops::autocast::widen({&query, &key});
  }
  return effective_attention(query, key, group_size, window);
}

Pair as_pair(ops::AttentionResult result) { return {std::move(result.out), std::move(result.lse)}; }

Pair full_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  return as_pair(baselines::full(lowered(q), lowered(k), lowered(v)));
}

Pair window_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t window) {
  return as_pair(baselines::sliding_window(lowered(q), lowered(k), lowered(v), window));
}

Pair streaming_llm_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      std::int64_t sinks, std::int64_t recent, double rope_base) {
  return as_pair(
      baselines::streaming_llm(lowered(q), lowered(k), lowered(v), {sinks, recent, rope_base}));
}

Pair lm_infinite_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    std::int64_t global_tokens, std::int64_t local, std::int64_t limit,
                    double rope_base) {
  return as_pair(baselines::lm_infinite(lowered(q), lowered(k), lowered(v),
                                        {global_tokens, local, limit, rope_base}));
}

Pair a_shape_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t initial,
                std::int64_t local) {
  return as_pair(baselines::a_shape(lowered(q), lowered(k), lowered(v), initial, local));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  const std::string inputs = "(Tensor q, Tensor k, Tensor v";
  const std::string results = ") -> (Tensor out, Tensor lse)";
  const auto def = [&](const std::string& name, const std::string& options) {
    m.def((name + inputs + options + results).c_str());
  };
  def("cca_attention",
      ", int group_size=16, int window=1024, str pooling='attention', str boundary='exact', "
      "str weights_per='query_head', int keep_first=0");
  m.def(
      "cca_pool(Tensor q, Tensor k, Tensor v, int group_size=16, str pooling='attention', "
      "str weights_per='query_head', int keep_first=0) -> (Tensor core_k, Tensor core_v)");
  m.def(
      "cca_effective_attention(Tensor q, Tensor k, int group_size=16, int window=1024) -> Tensor");
  def("cca_full", "");
  def("cca_sliding_window", ", int window");
  def("cca_streaming_llm", ", int sinks=4, int recent=512, float rope_base=10000.0");
  def("cca_lm_infinite",
      ", int global_tokens=10, int local=4096, int limit=4096, float rope_base=10000.0");
  def("cca_a_shape", ", int initial, int local");
}

TORCH_LIBRARY_IMPL(paperlab, CompositeImplicitAutograd, m) {
  m.impl("cca_attention", attention_op);
  m.impl("cca_pool", pool_op);
  m.impl("cca_effective_attention", effective_attention_op);
  m.impl("cca_full", full_op);
  m.impl("cca_sliding_window", window_op);
  m.impl("cca_streaming_llm", streaming_llm_op);
  m.impl("cca_lm_infinite", lm_infinite_op);
  m.impl("cca_a_shape", a_shape_op);
}

}  // namespace paperlab::cca
