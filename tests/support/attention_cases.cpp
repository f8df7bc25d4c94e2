#include "tests/support/attention_cases.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <ostream>
#include <sstream>

#include "paperlab/core/rng.h"

namespace paperlab::test {
namespace {

using kernels::DType;
using kernels::KeyRule;
using kernels::KeyRuleKind;

// Fields that the functions of KeyRule leave at their defaults, as a comment.
std::string rest_of(const KeyRule& rule) {
  std::ostringstream text;
  if (rule.kept != 0) {
    text << " kept " << rule.kept;
  }
  if (rule.overlap != 0) {
    text << " overlap " << rule.overlap;
  }
  if (rule.truncated) {
    text << " truncated";
  }
  if (rule.num_past != 0) {
    text << " num_past " << rule.num_past;
  }
  return text.str().empty() ? "" : " /*" + text.str() + " */";
}

std::string literal_of(const KeyRule& rule) {
  std::ostringstream text;
  text << "KeyRule::";
  switch (rule.kind) {
    case KeyRuleKind::kFull:
      text << "full()";
      break;
    case KeyRuleKind::kDense:
      text << "dense()";
      break;
    case KeyRuleKind::kWindow:
      text << "sliding(" << rule.window << ")";
      break;
    case KeyRuleKind::kCoreContext:
      text << "core_context(" << rule.group << ", " << rule.window << ")";
      break;
    case KeyRuleKind::kSinks:
      text << "sinks(" << rule.num_sinks << ", " << rule.window << ")";
      break;
  }
  return text.str() + rest_of(rule);
}

const char* enumerator_of(KeyRanges ranges) {
  constexpr std::array kNames = {"kAll", "kLeft", "kRight", "kBoth"};
  return kNames[static_cast<std::size_t>(ranges)];
}

const char* enumerator_of(AttentionLayout layout) {
  constexpr std::array kNames = {"kBHTD", "kBTHD", "kPadded", "kSpaced", "kShared"};
  return kNames[static_cast<std::size_t>(layout)];
}

const char* enumerator_of(DType dtype) {
  constexpr std::array kNames = {"kFloat32", "kBFloat16", "kFloat64", "kFloat16"};
  return kNames[static_cast<std::size_t>(dtype)];
}

// Draws one number after another from a stream.
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : seed_(seed) {}

  // Uniform in from..to.
  std::int64_t between(std::int64_t from, std::int64_t to) {
    const double width = static_cast<double>(to - from + 1);
    return from + static_cast<std::int64_t>(philox_uniform(seed_, /*stream=*/99, next_++) * width);
  }

  bool once_in(std::int64_t n) { return between(1, n) == 1; }

  template <class T, std::size_t N>
  T one_of(const std::array<T, N>& choices) {
    return choices[static_cast<std::size_t>(between(0, N - 1))];
  }

 private:
  std::uint64_t seed_;
  std::uint64_t next_ = 0;
};

std::int64_t draw_length(Draw& draw) {
  return draw.once_in(2) ? draw.between(draw.once_in(5) ? 0 : 1, 9) : draw.between(1, 300);
}

KeyRule draw_core_context(Draw& draw, std::int64_t size) {
  KeyRule rule = KeyRule::core_context(draw.between(1, 16), draw.between(0, size));
  rule.kept = draw.once_in(3) ? draw.between(1, 9) : 0;
  rule.overlap = draw.once_in(6) ? 1 : 0;
  rule.truncated = draw.once_in(6);
  return rule;
}

KeyRule draw_rule(Draw& draw) {
  const std::int64_t size = draw.once_in(2) ? 8 : 100;
  switch (draw.between(0, 6)) {
    case 0:
      return KeyRule::full();
    case 1:
      return KeyRule::sliding(draw.between(1, size));
    case 2:
    case 3:
      return draw_core_context(draw, size);
    case 4:
      return KeyRule::sinks(draw.between(0, 9), draw.between(1, size));
    default:
      return KeyRule::dense();
  }
}

std::int64_t products(const AttentionCase& of) {
  return of.batch * of.num_heads * of.num_queries * of.num_keys * of.head_dim;
}

// Collects changed copies of a case.
class Simpler {
 public:
  explicit Simpler(const AttentionCase& of) : of_(of) {}

  template <class F>
  void with(bool is_simpler, F change) {
    if (is_simpler) {
      AttentionCase changed = of_;
      change(changed);
      cases.push_back(changed);
    }
  }

  // Sets a number to the least it may be, to half of it, and to one less.
  void smaller(std::int64_t AttentionCase::* number, std::int64_t least) {
    const std::int64_t now = of_.*number;
    for (const std::int64_t to : {least, now / 2, now - 1}) {
      with(to >= least && to < now, [&](AttentionCase& c) { c.*number = to; });
    }
  }

  void smaller_in_rule(std::int64_t KeyRule::* number, std::int64_t least) {
    const std::int64_t now = of_.rule.*number;
    for (const std::int64_t to : {least, now / 2, now - 1}) {
      with(to >= least && to < now, [&](AttentionCase& c) { c.rule.*number = to; });
    }
  }

  std::vector<AttentionCase> cases;

 private:
  const AttentionCase& of_;
};

void add_fewer_heads(const AttentionCase& of, Simpler& simpler) {
  const std::int64_t shared = of.num_heads / of.num_kv_heads;
  for (const std::int64_t heads : {std::int64_t{1}, of.num_kv_heads - 1}) {
    simpler.with(heads >= 1 && heads < of.num_kv_heads, [&](AttentionCase& c) {
      c.num_kv_heads = heads;
      c.num_heads = heads * shared;
      c.num_prefix_heads = of.num_prefix_heads == of.num_heads      ? c.num_heads
                           : of.num_prefix_heads == of.num_kv_heads ? heads
                                                                    : 0;
    });
  }
  for (const std::int64_t to : {std::int64_t{1}, shared - 1}) {
    simpler.with(to >= 1 && to < shared, [&](AttentionCase& c) {
      c.num_heads = of.num_kv_heads * to;
      c.num_prefix_heads = of.num_prefix_heads == of.num_heads ? c.num_heads : of.num_prefix_heads;
    });
  }
}

void add_fewer_options(const AttentionCase& of, Simpler& simpler) {
  simpler.with(of.rule.kind != KeyRuleKind::kDense, [](AttentionCase& c) {
    c.rule = KeyRule::dense();
    c.num_prefix_heads = 0;
    c.has_prefix_query = false;
    c.num_extra_entries = 0;
  });
  simpler.with(of.has_prefix_query, [](AttentionCase& c) { c.has_prefix_query = false; });
  simpler.with(of.num_extra_entries > 0, [](AttentionCase& c) { c.num_extra_entries = 0; });
  simpler.with(of.has_grad_lse, [](AttentionCase& c) { c.has_grad_lse = false; });
  for (const KeyRanges ranges : {KeyRanges::kAll, KeyRanges::kLeft, KeyRanges::kRight}) {
    simpler.with(ranges < of.ranges, [&](AttentionCase& c) { c.ranges = ranges; });
  }
  simpler.with(of.layout != AttentionLayout::kBHTD,
               [](AttentionCase& c) { c.layout = AttentionLayout::kBHTD; });
  simpler.with(of.offset != 0, [](AttentionCase& c) { c.offset = 0; });
  simpler.with(of.scale.has_value(), [](AttentionCase& c) { c.scale.reset(); });
  simpler.with(of.magnitude != 1.0, [](AttentionCase& c) { c.magnitude = 1.0; });
}

}  // namespace

bool needs_prefix(const KeyRule& rule) {
  return rule.kind == KeyRuleKind::kCoreContext ||
         (rule.kind == KeyRuleKind::kSinks && rule.num_sinks > 0);
}

std::int64_t num_prefix_entries(const AttentionCase& of) {
  if (of.num_prefix_heads == 0) {
    return 0;
  }
  const std::int64_t behind =
      std::max<std::int64_t>(0, of.rule.num_past + of.num_keys - of.rule.window);
  switch (of.rule.kind) {
    case KeyRuleKind::kCoreContext: {
      const std::int64_t cores = std::max<std::int64_t>(0, behind - of.rule.kept) / of.rule.group;
      return of.num_extra_entries + (cores == 0 ? 0 : of.rule.kept + cores);
    }
    case KeyRuleKind::kSinks:
      return of.num_extra_entries + std::min(of.rule.num_sinks, behind);
    default:
      return of.num_extra_entries;
  }
}

double scale_of(const AttentionCase& of) {
  return of.scale.value_or(1.0 / std::sqrt(static_cast<double>(of.head_dim)));
}

const char* name_of(DType dtype) {
  constexpr std::array kNames = {"float32", "bfloat16", "float64"};
  return kNames[static_cast<std::size_t>(dtype)];
}

std::string literal_of(const AttentionCase& of) {
  const AttentionCase usual;
  std::ostringstream text;
  text.precision(17);
  const auto field = [&](const char* name, const auto& value, bool is_usual) {
    if (!is_usual) {
      text << "." << name << " = " << value << ", ";
    }
  };
  const auto flag = [](bool value) { return value ? "true" : "false"; };
  text << "{";
  field("batch", of.batch, of.batch == usual.batch);
  field("num_heads", of.num_heads, of.num_heads == usual.num_heads);
  field("num_kv_heads", of.num_kv_heads, of.num_kv_heads == usual.num_kv_heads);
  field("num_queries", of.num_queries, of.num_queries == usual.num_queries);
  field("num_keys", of.num_keys, of.num_keys == usual.num_keys);
  field("head_dim", of.head_dim, of.head_dim == usual.head_dim);
  field("dtype", std::string("DType::") + enumerator_of(of.dtype), of.dtype == usual.dtype);
  field("rule", literal_of(of.rule), of.rule.kind == usual.rule.kind && of.rule.num_past == 0);
  field("num_prefix_heads", of.num_prefix_heads, of.num_prefix_heads == usual.num_prefix_heads);
  field("num_extra_entries", of.num_extra_entries, of.num_extra_entries == usual.num_extra_entries);
  field("has_prefix_query", flag(of.has_prefix_query), !of.has_prefix_query);
  field("has_grad_lse", flag(of.has_grad_lse), of.has_grad_lse);
  field("ranges", std::string("KeyRanges::") + enumerator_of(of.ranges), of.ranges == usual.ranges);
  field("layout", std::string("AttentionLayout::") + enumerator_of(of.layout),
        of.layout == usual.layout);
  field("offset", of.offset, of.offset == usual.offset);
  field("scale", of.scale.value_or(0.0), !of.scale.has_value());
  field("magnitude", of.magnitude, of.magnitude == usual.magnitude);
  text << ".seed = " << of.seed << "}";
  return text.str();
}

void PrintTo(const AttentionCase& of, std::ostream* out) { *out << literal_of(of); }

AttentionCase random_attention_case(std::uint64_t seed, std::int64_t max_products) {
  Draw draw(seed);
  AttentionCase of{.seed = seed};
  of.batch = draw.once_in(20) ? 0 : draw.between(1, 3);
  of.num_kv_heads = draw.between(1, 3);
  of.num_heads = of.num_kv_heads * draw.one_of(std::array<std::int64_t, 5>{1, 1, 2, 3, 8});
  of.num_queries = draw.once_in(5) ? 1 : draw_length(draw);
  of.num_keys = draw.once_in(3) ? of.num_queries : draw_length(draw);
  of.head_dim = draw.once_in(2)
                    ? draw.between(1, 40)
                    : draw.one_of(std::array<std::int64_t, 6>{16, 64, 64, 80, 128, 256});
  of.dtype = draw.one_of(std::array{DType::kFloat32, DType::kFloat32, DType::kFloat32,
                                    DType::kBFloat16, DType::kBFloat16, DType::kFloat64});
  of.rule = draw_rule(draw);
  if (of.rule.kind != KeyRuleKind::kFull && draw.once_in(4)) {
    of.rule.num_past = draw.between(1, draw.once_in(2) ? 5 : 60);
  }
  if (needs_prefix(of.rule) || draw.once_in(10)) {
    of.num_prefix_heads = draw.once_in(2) ? of.num_heads : of.num_kv_heads;
    of.num_extra_entries = draw.once_in(4) ? draw.between(1, 3) : 0;
    of.has_prefix_query = draw.once_in(2);
  }
  of.has_grad_lse = draw.once_in(2);
  of.ranges = draw.one_of(std::array{KeyRanges::kAll, KeyRanges::kAll, KeyRanges::kAll,
                                     KeyRanges::kLeft, KeyRanges::kRight, KeyRanges::kBoth});
  of.layout = draw.one_of(
      std::array{AttentionLayout::kBHTD, AttentionLayout::kBTHD, AttentionLayout::kPadded});
  of.offset = draw.once_in(3) ? draw.between(1, 15) : 0;
  if (draw.once_in(4)) {
    of.scale = draw.one_of(std::array{0.0, -0.25, 0.01});
  }
  // Not more: the bound knows a logit's size and not that of its terms, which cancel in a few
  // cases.
  of.magnitude = draw.one_of(std::array{1.0, 1.0, 1.0, 0.125});
  while (products(of) > max_products) {  // halve what is largest
    std::int64_t& longer = of.num_queries >= of.num_keys ? of.num_queries : of.num_keys;
    std::int64_t& largest = longer > 16 ? longer : of.head_dim > 1 ? of.head_dim : longer;
    largest /= 2;
  }
  return of;
}

std::vector<AttentionCase> simpler_cases(const AttentionCase& of) {
  Simpler simpler(of);
  simpler.smaller(&AttentionCase::batch, 1);
  add_fewer_heads(of, simpler);
  add_fewer_options(of, simpler);
  simpler.smaller(&AttentionCase::num_queries, 1);
  simpler.smaller(&AttentionCase::num_keys, 1);
  simpler.smaller(&AttentionCase::head_dim, 1);
  simpler.smaller_in_rule(&KeyRule::num_past, 0);
  if (of.rule.kind == KeyRuleKind::kCoreContext) {
    simpler.with(of.rule.overlap != 0, [](AttentionCase& c) { c.rule.overlap = 0; });
    simpler.with(of.rule.truncated, [](AttentionCase& c) { c.rule.truncated = false; });
    simpler.smaller_in_rule(&KeyRule::kept, 0);
    simpler.smaller_in_rule(&KeyRule::group, 1);
    simpler.smaller_in_rule(&KeyRule::window, 0);
  } else if (of.rule.kind != KeyRuleKind::kDense) {
    simpler.smaller_in_rule(&KeyRule::num_sinks, 0);
    simpler.smaller_in_rule(&KeyRule::window, 1);
  }
  return simpler.cases;
}

AttentionCase smallest_failure(AttentionCase of,
                               const std::function<bool(const AttentionCase&)>& fails) {
  for (bool found = true; found;) {
    const std::vector<AttentionCase> simpler = simpler_cases(of);
    const auto next = std::find_if(simpler.begin(), simpler.end(), fails);
    found = next != simpler.end();
    if (found) {
      of = *next;
    }
  }
  return of;
}

}  // namespace paperlab::test
