#include "paperlab/nn/rotary.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <mutex>
#include <numbers>
#include <string>
#include <tuple>

#include "paperlab/core/error.h"
#include "paperlab/ops/parallel_bridge.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::nn {
namespace {

constexpr char kFunction[] = "nn::Rotary";

// Tables of so many positions are kept at most; what lies beyond is computed at each call.
constexpr std::int64_t kKeptPositions = std::int64_t{1} << 17;
// Positions of a task: tens of microseconds of cosines.
constexpr std::int64_t kTaskPositions = 32;

void require_number(bool is_right, const char* name, const char* what, double got) {
  require<ValueError>(is_right && std::isfinite(got), kFunction,
                      std::string(name) + " must be finite and " + what, std::to_string(got));
}

void require_positive(const char* name, double got) { require_number(got > 0.0, name, "> 0", got); }

double original_positions(const RopeConfig& config) {
  return static_cast<double>(config.original_max_positions > 0 ? config.original_max_positions
                                                               : config.max_positions);
}

void check_llama3(const RopeConfig& config) {
  require_positive("original_max_positions", original_positions(config));
  require_positive("low_freq_factor", config.low_freq_factor);
  require_number(config.high_freq_factor > config.low_freq_factor, "high_freq_factor",
                 "above low_freq_factor", config.high_freq_factor);
}

void check_yarn(const RopeConfig& config) {
  require_positive("original_max_positions", original_positions(config));
  require_number(config.base > 1.0, "base", "> 1 with yarn", config.base);
  require_positive("beta_fast", config.beta_fast);
  require_positive("beta_slow", config.beta_slow);
  require_number(true, "attention_factor", "a number", config.attention_factor.value_or(1.0));
  require_number(true, "mscale", "a number", config.mscale.value_or(1.0));
  require_number(true, "mscale_all_dim", "a number", config.mscale_all_dim.value_or(1.0));
}

void check_config(const RopeConfig& config) {
  require<ValueError>(config.rotary_dim >= 0 && config.rotary_dim % 2 == 0, kFunction,
                      "rotary_dim must be even and >= 0", std::to_string(config.rotary_dim));
  require_positive("base", config.base);
  if (config.scaling != RopeScaling::kNone) {
    require_positive("factor", config.factor);
  }
  if (config.scaling == RopeScaling::kLlama3) {
    check_llama3(config);
  } else if (config.scaling == RopeScaling::kYarn) {
    check_yarn(config);
  } else if (config.scaling == RopeScaling::kDynamic) {
    require_positive("max_positions", static_cast<double>(config.max_positions));
    require<ValueError>(config.rotary_dim != 2, kFunction, "rotary_dim must not be 2 with dynamic",
                        "2");
  }
}

// base^(-2i/R)
std::vector<double> plain_frequencies(double base, std::int64_t rotary_dim) {
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < rotary_dim; i += 2) {
    frequencies.push_back(1.0 /
                          std::pow(base, static_cast<double>(i) / static_cast<double>(rotary_dim)));
  }
  return frequencies;
}

// The base that stretches the lowest frequency by factor seq_len / max_positions - (factor - 1).
double dynamic_base(const RopeConfig& config, std::int64_t seq_len) {
  const auto lanes = static_cast<double>(config.rotary_dim);
  const double beyond =
      static_cast<double>(std::max(seq_len, config.max_positions) - config.max_positions) /
      static_cast<double>(config.max_positions);
  const double base = config.base * std::pow(1.0 + config.factor * beyond, lanes / (lanes - 2.0));
  require_number(true, "the base that factor and seq_len stretch", "a number", base);
  return base;
}

// Wavelengths above original / low are stretched by the factor, those below original / high are
// not; those between in proportion to turns = original / wavelength.
double llama3_frequency(const RopeConfig& config, double f) {
  const double turns = original_positions(config) * f / (2.0 * std::numbers::pi);
  const double share = std::clamp(
      (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor), 0.0,
      1.0);
  return (1.0 - share) * f / config.factor + share * f;
}

// The pair, as a real number, that turns `rotations` times over the trained positions.
double yarn_pair(const RopeConfig& config, double rotations) {
  return static_cast<double>(config.rotary_dim) *
         std::log(original_positions(config) / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(config.base));
}

// Pairs below `low` keep their frequency, those above `high` are stretched by the factor.
void stretch_by_yarn(const RopeConfig& config, std::vector<double>& frequencies) {
  double low = yarn_pair(config, config.beta_fast);
  double high = yarn_pair(config, config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.rotary_dim - 1));
  if (low == high) {
    high += 0.001;
  }
  double pair = 0.0;
  for (double& f : frequencies) {
    const double share = std::clamp((pair - low) / (high - low), 0.0, 1.0);
    f = share * f / config.factor + (1.0 - share) * f;
    pair += 1.0;
  }
}

std::vector<double> frequencies_of(const RopeConfig& config, std::int64_t seq_len) {
  const bool is_dynamic = config.scaling == RopeScaling::kDynamic;
  std::vector<double> frequencies = plain_frequencies(
      is_dynamic && config.rotary_dim > 0 ? dynamic_base(config, seq_len) : config.base,
      config.rotary_dim);
  if (config.scaling == RopeScaling::kYarn) {
    stretch_by_yarn(config, frequencies);
  }
  for (double& f : frequencies) {
    if (config.scaling == RopeScaling::kLinear) {
      f /= config.factor;
    } else if (config.scaling == RopeScaling::kLlama3) {
      f = llama3_frequency(config, f);
    }
    require<ValueError>(std::isfinite(f) && std::isfinite(f * Rotary::kMaxPosition), kFunction,
                        "base and factor must give finite angles", std::to_string(f));
  }
  return frequencies;
}

double yarn_scale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// mscale counts where both are there; zero is as absent.
double attention_factor_of(const RopeConfig& config) {
  if (config.scaling != RopeScaling::kYarn) {
    return 1.0;
  }
  if (config.attention_factor) {
    return *config.attention_factor;
  }
  const double mscale = config.mscale.value_or(0.0);
  const double of_all = config.mscale_all_dim.value_or(0.0);
  if (mscale == 0.0 || of_all == 0.0) {
    return yarn_scale(config.factor, 1.0);
  }
  const double factor = yarn_scale(config.factor, mscale) / yarn_scale(config.factor, of_all);
  require_number(true, "the quotient of mscale and mscale_all_dim", "a number", factor);
  return factor;
}

at::ScalarType table_dtype(at::ScalarType dtype) {
  require<DTypeError>(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kDouble,
                      kFunction, "dtype must be float32, float64 or bfloat16",
                      c10::toString(dtype));
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

void check_position(std::int64_t position) {
  require<ValueError>(position >= 0 && position <= Rotary::kMaxPosition, kFunction,
                      "positions must be in 0.." + std::to_string(Rotary::kMaxPosition),
                      std::to_string(position));
}

void check_seq_len(std::int64_t seq_len) {
  require<ValueError>(seq_len >= 0 && seq_len <= Rotary::kMaxPosition + 1, kFunction,
                      "seq_len must be in 0.." + std::to_string(Rotary::kMaxPosition + 1),
                      std::to_string(seq_len));
}

// [batch, length, R/2]; ordinary tensors also where the caller is in inference mode.
RotaryTable new_table(std::int64_t batch, std::int64_t length, std::size_t half,
                      at::ScalarType dtype) {
  const c10::InferenceMode off(false);
  const auto empty = [&] {
    return at::Tensor(
        at::detail::empty_cpu({batch, length, static_cast<std::int64_t>(half)}, dtype));
  };
  return {empty(), empty()};
}

// Sets all rows of a table; row r is that of position_of(r).
template <class T, class F>
void fill_rows(const RotaryTable& table, const std::vector<double>& frequencies, double factor,
               F position_of) {
  const auto half = static_cast<std::int64_t>(frequencies.size());
  T* const cos = table.cos.mutable_data_ptr<T>();
  T* const sin = table.sin.mutable_data_ptr<T>();
  const std::int64_t rows = table.cos.size(0) * table.cos.size(1);
  const std::int64_t tasks = (rows + kTaskPositions - 1) / kTaskPositions;
  const auto fill = [&](std::int64_t task, int) {
    const std::int64_t end = std::min(rows, (task + 1) * kTaskPositions);
    for (std::int64_t row = task * kTaskPositions; row < end; ++row) {
      const auto position = static_cast<double>(position_of(row));
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = position * frequencies[static_cast<std::size_t>(i)];
        cos[row * half + i] = static_cast<T>(std::cos(angle) * factor);
        sin[row * half + i] = static_cast<T>(std::sin(angle) * factor);
      }
    }
  };
  parallel_for(tasks > 1 ? ops::torch_executor() : serial_executor(), tasks, fill);
}

template <class F>
void fill_table(const RotaryTable& table, const std::vector<double>& frequencies, double factor,
                F position_of) {
  if (table.cos.scalar_type() == at::kDouble) {
    fill_rows<double>(table, frequencies, factor, position_of);
  } else {
    fill_rows<float>(table, frequencies, factor, position_of);
  }
}

// Row r of `to` is row positions[r] of `from`, whose batch is 1.
void gather_rows(const at::Tensor& from, const std::int64_t* positions, const at::Tensor& to) {
  const auto width = static_cast<std::size_t>(to.size(2)) * to.element_size();
  const auto* source = static_cast<const std::byte*>(from.const_data_ptr());
  auto* target = static_cast<std::byte*>(to.mutable_data_ptr());
  for (std::int64_t row = 0; row < to.size(0) * to.size(1); ++row, target += width) {
    std::copy_n(source + static_cast<std::size_t>(positions[row]) * width, width, target);
  }
}

bool are_consecutive(const std::int64_t* positions, std::int64_t count) {
  for (std::int64_t i = 1; i < count; ++i) {
    if (positions[i] != positions[0] + i) {
      return false;
    }
  }
  return true;
}

// On the CPU, contiguous.
at::Tensor checked_positions(const at::Tensor& positions) {
  require<ShapeError>(
      positions.defined() && positions.dim() == 2, kFunction, "positions must be [B, T]",
      positions.defined() ? std::to_string(positions.dim()) + " dimensions" : std::string("none"));
  require<DTypeError>(positions.scalar_type() == at::kLong, kFunction, "positions must be int64",
                      c10::toString(positions.scalar_type()));
  at::Tensor dense = positions.to(at::kCPU).contiguous();
  const auto* data = dense.const_data_ptr<std::int64_t>();
  std::for_each(data, data + dense.numel(), check_position);
  return dense;
}

RotaryTable moved(const RotaryTable& table, const at::Device& device) {
  const c10::InferenceMode off(false);
  return {table.cos.to(device), table.sin.to(device)};
}

}  // namespace

// The first positions' tables; a larger one takes the place of a smaller one, whose views live on.
struct Rotary::Kept {
  using Place = std::tuple<c10::DeviceType, c10::DeviceIndex, at::ScalarType>;

  std::mutex mutex;
  RotaryTable of_float;
  RotaryTable of_double;
  std::map<Place, RotaryTable> elsewhere;  // copies on other devices
};

Rotary::Rotary(const RopeConfig& config) : config_(config), kept_(std::make_unique<Kept>()) {
  check_config(config);
  attention_factor_ = attention_factor_of(config);
  frequencies_ = frequencies_of(config, 0);
}

Rotary::~Rotary() = default;

bool Rotary::is_stretched(std::int64_t seq_len) const {
  return config_.scaling == RopeScaling::kDynamic && seq_len > config_.max_positions;
}

std::vector<double> Rotary::inverse_frequencies(std::int64_t seq_len) const {
  check_seq_len(seq_len);
  return is_stretched(seq_len) ? frequencies_of(config_, seq_len) : frequencies_;
}

// The kept table, of at least so many positions.
RotaryTable Rotary::first(std::int64_t num_positions, at::ScalarType dtype,
                          const at::Device& device) const {
  const std::scoped_lock lock(kept_->mutex);
  const RotaryTable table = first_on_cpu(num_positions, dtype);
  if (device.is_cpu()) {
    return table;
  }
  RotaryTable& kept = kept_->elsewhere[{device.type(), device.index(), dtype}];
  if (kept.cos.defined() && kept.cos.size(1) >= num_positions) {
    return kept;
  }
  RotaryTable there = moved(table, device);
  if (ops::checks::has_memory(there.cos)) {  // a fake tensor lives no longer than its mode
    kept = there;
  }
  return there;
}

// It grows twofold, up to max_positions.
RotaryTable Rotary::first_on_cpu(std::int64_t num_positions, at::ScalarType dtype) const {
  RotaryTable& kept = dtype == at::kDouble ? kept_->of_double : kept_->of_float;
  const std::int64_t before = kept.cos.defined() ? kept.cos.size(1) : 0;
  if (before < num_positions || before == 0) {
    const std::int64_t most =
        std::min(kKeptPositions, std::max<std::int64_t>(config_.max_positions, 1));
    const std::int64_t grown = std::min(most, std::max<std::int64_t>(2 * before, 256));
    const RotaryTable table =
        new_table(1, std::max(num_positions, grown), frequencies_.size(), dtype);
    fill_table(table, frequencies_, attention_factor_, [](std::int64_t row) { return row; });
    kept = table;
  }
  return kept;
}

RotaryTable Rotary::range(std::int64_t start, std::int64_t length, at::ScalarType dtype,
                          std::int64_t seq_len, const at::Device& device) const {
  const at::ScalarType of_table = table_dtype(dtype);
  check_seq_len(seq_len);
  check_position(start);
  require<ValueError>(length >= 0 && length <= kMaxPosition + 1 - start, kFunction,
                      "length must be >= 0 with positions up to " + std::to_string(kMaxPosition),
                      std::to_string(length) + " from " + std::to_string(start));
  const std::int64_t end = start + length;
  const std::int64_t sequence = seq_len == 0 ? end : seq_len;
  if (end <= kKeptPositions && !is_stretched(sequence)) {
    const RotaryTable table = first(end, of_table, device);
    return {table.cos.narrow(1, start, length), table.sin.narrow(1, start, length)};
  }
  const RotaryTable table = new_table(1, length, frequencies_.size(), of_table);
  fill_table(table, inverse_frequencies(sequence), attention_factor_,
             [start](std::int64_t row) { return start + row; });
  return moved(table, device);
}

RotaryTable Rotary::rows(const at::Tensor& positions, std::int64_t seq_len,
                         at::ScalarType dtype) const {
  // Where no row has a token to see, all positions are 0 and the length is, too.
  const std::int64_t length = std::max<std::int64_t>(seq_len, 1);
  const RotaryTable all = range(0, length, dtype, seq_len, positions.device());
  const at::Tensor flat = positions.flatten();
  const auto row_of = [&](const at::Tensor& table) {
    return table.squeeze(0).index_select(0, flat).unflatten(0, positions.sizes());
  };
  return {row_of(all.cos), row_of(all.sin)};
}

RotaryTable Rotary::at(const at::Tensor& positions, at::ScalarType dtype,
                       std::int64_t seq_len) const {
  const at::ScalarType of_table = table_dtype(dtype);
  check_seq_len(seq_len);
  const at::Tensor dense = checked_positions(positions);
  const auto* data = dense.const_data_ptr<std::int64_t>();
  const std::int64_t count = dense.numel();
  RotaryTable table;
  if (dense.size(0) == 1 && count > 0 && are_consecutive(data, count)) {
    table = range(data[0], count, dtype, seq_len);
  } else {
    const std::int64_t end = count == 0 ? 0 : *std::max_element(data, data + count) + 1;
    const std::int64_t sequence = seq_len == 0 ? end : seq_len;
    table = new_table(dense.size(0), dense.size(1), frequencies_.size(), of_table);
    if (end <= kKeptPositions && !is_stretched(sequence)) {
      const RotaryTable kept = first(end, of_table);
      gather_rows(kept.cos, data, table.cos);
      gather_rows(kept.sin, data, table.sin);
    } else {
      fill_table(table, inverse_frequencies(sequence), attention_factor_,
                 [data](std::int64_t row) { return data[row]; });
    }
  }
  return {table.cos.to(positions.device()), table.sin.to(positions.device())};
}

}  // namespace paperlab::nn
