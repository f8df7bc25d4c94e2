#include "paperlab/data/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/core/rng.h"
#include "paperlab/data/permutation.h"

namespace paperlab::data {
namespace {

constexpr std::int64_t kMaxSamples = std::int64_t{1} << 40;
constexpr std::size_t kMaxDomains = 65535;
constexpr std::int64_t kCountTask = 1 << 16;  // samples
constexpr std::int64_t kFillTask = 1 << 15;   // tokens: below, threads cost more than they bring
constexpr double kSumTolerance = 1e-9;        // of weights that were divided by their sum

// Streams of random numbers: one for the domains, one for each permutation. Epochs and samples
// stay below 2^41.
constexpr std::uint64_t kDomainStream = std::uint64_t{0x64} << 56;
std::uint64_t permutation_stream(std::int64_t domain, std::int64_t epoch) {
  return std::uint64_t{0x70} << 56 | static_cast<std::uint64_t>(domain) << 40 |
         (static_cast<std::uint64_t>(epoch) & ((std::uint64_t{1} << 40) - 1));
}

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

void check_names(const std::vector<Domain>& domains) {
  require<ValueError>(!domains.empty() && domains.size() <= kMaxDomains, "Sampler",
                      "1..65535 domains", std::to_string(domains.size()));
  std::set<std::string> names;
  for (const Domain& domain : domains) {
    require<ValueError>(domain.tokens != nullptr, "Sampler", "domains with tokens",
                        domain.name + " without");
    require<ValueError>(names.insert(domain.name).second, "Sampler", "names that differ",
                        domain.name + " twice");
  }
}

}  // namespace

Sampler::Sampler(std::vector<Domain> domains, const SamplerOptions& options)
    : domains_(std::move(domains)), options_(options) {
  check_names(domains_);
  require<ValueError>(options_.length >= 1 && options_.length < kMaxSamples, "Sampler",
                      "length in 1..2^40", std::to_string(options_.length));
  index_windows();
  std::vector<double> weights = options_.weights;
  if (weights.empty()) {
    weights.assign(num_windows_.begin(), num_windows_.end());
    const bool is_empty =
        std::all_of(weights.begin(), weights.end(), [](double w) { return w == 0; });
    require<ValueError>(!is_empty, "Sampler",
                        "a domain with a window of " + std::to_string(length() + 1) + " tokens",
                        "none");
  }
  position_.counts.assign(domains_.size(), 0);
  use_weights(checked_weights(weights));
}

void Sampler::index_windows() {
  for (const Domain& domain : domains_) {
    const auto windows_of = [&](std::int64_t tokens) {
      return std::max<std::int64_t>(tokens - 1, 0) / length();
    };
    if (!options_.within_documents) {
      num_windows_.push_back(windows_of(domain.tokens->num_tokens()));
      continue;
    }
    const std::span<const std::int64_t> offsets = domain.tokens->offsets();
    std::vector<std::int64_t> before(offsets.size(), 0);
    for (std::size_t i = 1; i < offsets.size(); ++i) {
      before[i] = before[i - 1] + windows_of(offsets[i] - offsets[i - 1]);
    }
    num_windows_.push_back(before.back());
    windows_before_.push_back(std::move(before));
  }
}

std::vector<double> Sampler::checked_weights(const std::vector<double>& weights) const {
  require<ValueError>(weights.size() == domains_.size(), "Sampler",
                      "weights: one for each of " + std::to_string(domains_.size()) + " domains",
                      std::to_string(weights.size()));
  double sum = 0;
  for (std::size_t d = 0; d < weights.size(); ++d) {
    require<ValueError>(std::isfinite(weights[d]) && weights[d] >= 0, "Sampler",
                        "weights: finite and >= 0",
                        std::to_string(weights[d]) + " for domain " + domains_[d].name);
    if (weights[d] > 0 && num_windows_[d] == 0) {
      throw ValueError("Sampler: weights: domain " + domains_[d].name +
                       " has a positive weight and no window of " + std::to_string(length() + 1) +
                       " tokens");
    }
    sum += weights[d];
  }
  require<ValueError>(std::isfinite(sum) && sum > 0, "Sampler", "weights: a finite sum > 0",
                      std::to_string(sum));
  std::vector<double> shares = weights;
  for (double& share : shares) {
    share /= sum;
  }
  return shares;
}

void Sampler::use_weights(std::vector<double> weights) {
  options_.weights = std::move(weights);
  thresholds_.resize(options_.weights.size());
  std::partial_sum(options_.weights.begin(), options_.weights.end(), thresholds_.begin());
  // The sum may be below 1 by rounding: the last domain that can be drawn takes the rest.
  for (std::size_t d = thresholds_.size(); d-- > 0;) {
    thresholds_[d] = std::numeric_limits<double>::infinity();
    if (options_.weights[d] > 0) {
      break;
    }
  }
  changed_ = position_;
}

// The first domain whose sum of weights is above the number, found without a branch. A weight of
// zero gives the sum of the domain before, which is then not above it either.
std::int64_t Sampler::domain_of(double uniform) const {
  std::int64_t domain = 0;
  for (const double threshold : thresholds_) {
    domain += static_cast<std::int64_t>(threshold <= uniform);
  }
  return domain;
}

void Sampler::count_domains(std::int64_t begin, std::int64_t end, std::int64_t* counts) const {
  std::int64_t sample = begin;
  while (sample < end) {  // two samples a block
    const PhiloxBlock block =
        philox_block(options_.seed, kDomainStream, static_cast<std::uint64_t>(sample / 2));
    if (sample % 2 == 0) {
      ++counts[domain_of(uniform_of_words(block.word[0], block.word[1]))];
      ++sample;
    }
    if (sample < end) {
      ++counts[domain_of(uniform_of_words(block.word[2], block.word[3]))];
      ++sample;
    }
  }
}

Window Sampler::window(std::int64_t domain, std::int64_t index_in_domain) const {
  require<ValueError>(domain >= 0 && index(domain) < domains_.size(), "Sampler::window",
                      "domain below " + std::to_string(domains_.size()), std::to_string(domain));
  const std::int64_t count = num_windows_[index(domain)];
  require<ValueError>(index_in_domain >= 0 && index_in_domain < count, "Sampler::window",
                      "index below " + std::to_string(count), std::to_string(index_in_domain));
  if (!options_.within_documents) {
    return {domain, index_in_domain * length()};
  }
  const std::vector<std::int64_t>& before = windows_before_[index(domain)];
  const auto document = std::upper_bound(before.begin(), before.end(), index_in_domain) - 1;
  const std::int64_t first =
      domains_[index(domain)].tokens->offsets()[index(document - before.begin())];
  return {domain, first + (index_in_domain - *document) * length()};
}

std::vector<Window> Sampler::next(std::int64_t batch_size) {
  require<ValueError>(batch_size >= 1 && batch_size <= kMaxSamples - position_.samples,
                      "Sampler::next",
                      "batch_size in 1.." + std::to_string(kMaxSamples - position_.samples),
                      std::to_string(batch_size));
  std::vector<Window> windows;
  windows.reserve(index(batch_size));
  for (std::int64_t row = 0; row < batch_size; ++row) {
    const auto sample = static_cast<std::uint64_t>(position_.samples + row);
    const std::int64_t domain = domain_of(philox_uniform(options_.seed, kDomainStream, sample));
    const std::int64_t count = position_.counts[index(domain)]++;
    const std::int64_t size = num_windows_[index(domain)];
    const std::uint64_t place =
        permuted(options_.seed, permutation_stream(domain, count / size),
                 static_cast<std::uint64_t>(size), static_cast<std::uint64_t>(count % size));
    windows.push_back(window(domain, static_cast<std::int64_t>(place)));
  }
  position_.samples += batch_size;
  return windows;
}

void Sampler::seek(std::int64_t sample, const Executor& executor) {
  require<ValueError>(sample >= changed_.samples && sample <= kMaxSamples, "Sampler::seek",
                      "a sample in " + std::to_string(changed_.samples) +
                          "..2^40 (the weights "
                          "were set at the first)",
                      std::to_string(sample));
  Position position = sample < position_.samples ? changed_ : position_;
  const std::int64_t num_tasks = (sample - position.samples + kCountTask - 1) / kCountTask;
  const std::size_t stride = domains_.size() + 8;  // workers write to different cache lines
  std::vector<std::int64_t> counts(index(executor.num_workers()) * stride, 0);
  parallel_for(executor, num_tasks, [&](std::int64_t task, int worker) {
    const std::int64_t begin = position.samples + task * kCountTask;
    count_domains(begin, std::min(begin + kCountTask, sample), &counts[index(worker) * stride]);
  });
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (i % stride < domains_.size()) {
      position.counts[i % stride] += counts[i];
    }
  }
  position.samples = sample;
  position_ = std::move(position);
}

void Sampler::set_weights(const std::vector<double>& weights) {
  std::vector<double> shares = checked_weights(weights);
  if (shares != options_.weights && weights != options_.weights) {
    use_weights(std::move(shares));
  }
}

void Sampler::fill(std::span<const Window> windows, std::span<std::int64_t> out,
                   const Executor& executor) const {
  const std::size_t row_tokens = index(length()) + 1;
  require<ShapeError>(out.size() / row_tokens == windows.size() && out.size() % row_tokens == 0,
                      "Sampler::fill",
                      std::to_string(windows.size()) + " rows of " + std::to_string(row_tokens),
                      std::to_string(out.size()) + " tokens");
  for (const Window& window : windows) {
    require<ValueError>(window.domain >= 0 && index(window.domain) < domains_.size(),
                        "Sampler::fill", "domains below " + std::to_string(domains_.size()),
                        std::to_string(window.domain));
  }
  const std::int64_t rows = std::max<std::int64_t>(1, kFillTask / (length() + 1));  // of a task
  const auto num_rows = static_cast<std::int64_t>(windows.size());
  parallel_for(executor, (num_rows + rows - 1) / rows, [&](std::int64_t task, int) {
    for (std::int64_t row = task * rows; row < std::min(num_rows, (task + 1) * rows); ++row) {
      const Window& window = windows[index(row)];
      domains_[index(window.domain)].tokens->copy(window.begin,
                                                  out.subspan(index(row) * row_tokens, row_tokens));
    }
  });
}

// What a state belongs to.
Json Sampler::identity() const {
  Json names = Json::array();
  for (const Domain& domain : domains_) {
    names.push_back(domain.name);
  }
  return {{"seed", options_.seed},
          {"length", options_.length},
          {"within_documents", options_.within_documents},
          {"domains", names},
          {"windows", num_windows_}};
}

Json Sampler::state() const {
  Json state = identity();
  state["weights"] = options_.weights;
  state["samples"] = position_.samples;
  state["counts"] = position_.counts;
  state["changed"] = {{"samples", changed_.samples}, {"counts", changed_.counts}};
  return state;
}

Sampler::Position Sampler::position_of(const Json& value) const {
  Position position;
  bool is_consistent = value.at("samples").is_number_integer() && value.at("counts").is_array() &&
                       value.at("counts").size() == domains_.size();
  for (const Json& count : value.at("counts")) {
    is_consistent = is_consistent && count.is_number_integer();
  }
  if (is_consistent) {
    value.at("samples").get_to(position.samples);
    value.at("counts").get_to(position.counts);
    is_consistent = position.samples >= 0 && position.samples <= kMaxSamples;
  }
  std::int64_t rest = position.samples;
  for (std::size_t d = 0; is_consistent && d < domains_.size(); ++d) {
    const std::int64_t count = position.counts[d];
    is_consistent = count >= 0 && count <= rest && (count == 0 || num_windows_[d] > 0);
    rest -= count;
  }
  require<ValueError>(is_consistent && rest == 0, "Sampler::load_state",
                      "counts that add up to the samples", value.dump().substr(0, 200));
  return position;
}

void Sampler::load_state(const Json& state) try {
  const Json expected = identity();
  for (const auto& [key, own] : expected.items()) {
    require<ValueError>(state.at(key) == own, "Sampler::load_state",
                        key + " as the sampler's, " + own.dump().substr(0, 200),
                        state.at(key).dump().substr(0, 200));
  }
  const auto weights = state.at("weights").get<std::vector<double>>();
  checked_weights(weights);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  require<ValueError>(std::abs(sum - 1) < kSumTolerance, "Sampler::load_state",
                      "weights that add up to 1", std::to_string(sum));
  Position position = position_of(state);
  Position changed = position_of(state.at("changed"));
  bool is_ordered = changed.samples <= position.samples;
  for (std::size_t d = 0; d < domains_.size(); ++d) {
    is_ordered = is_ordered && changed.counts[d] <= position.counts[d];
  }
  require<ValueError>(is_ordered, "Sampler::load_state", "a change of weights in the past",
                      std::to_string(changed.samples));
  use_weights(weights);  // as they are: another division would change bits
  position_ = std::move(position);
  changed_ = std::move(changed);
} catch (const Json::exception& error) {
  throw ValueError(std::string("Sampler::load_state: is no state of a sampler: ") + error.what());
}

}  // namespace paperlab::data
