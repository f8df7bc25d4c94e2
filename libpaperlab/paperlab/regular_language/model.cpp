#include "paperlab/regular_language/model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "paperlab/core/parallel.h"

namespace paperlab::regular_language {
namespace {

void validate_model(const char* function, const Model& model) {
  const auto width = 2 * static_cast<std::size_t>(std::max(model.max_length, 0));
  require<ValueError>(model.max_length >= 1 && model.u.size() == width, function,
                      "u must be [2 * max_length]", std::to_string(model.u.size()) + " elements");
  require<ValueError>(model.w.size() == width * width, function,
                      "w must be [" + std::to_string(width) + ", " + std::to_string(width) + "]",
                      std::to_string(model.w.size()) + " elements");
  require<ValueError>(std::isfinite(model.attention_scale) && model.attention_scale > 0.0, function,
                      "attention_scale must be finite and > 0",
                      std::to_string(model.attention_scale));
  const auto finite = [](double x) { return std::isfinite(x); };
  require<ValueError>(std::all_of(model.u.begin(), model.u.end(), finite), function,
                      "u must be finite", "NaN or infinity");
  require<ValueError>(std::all_of(model.w.begin(), model.w.end(), finite), function,
                      "w must be finite", "NaN or infinity");
}

void validate_tokens(const char* function, std::span<const std::uint8_t> tokens) {
  const auto bad = std::find_if(tokens.begin(), tokens.end(), [](auto x) { return x > 1; });
  require<ValueError>(bad == tokens.end(), function, "tokens of strings must be 0 or 1",
                      bad == tokens.end() ? "" : std::to_string(*bad));
}

std::size_t index(std::size_t l, std::uint8_t token) { return 2 * l + token; }

// phi of the last token, without checks.
void attend(const Model& model, std::span<const std::uint8_t> tokens, std::vector<double>& phi) {
  const std::size_t width = model.u.size();
  const std::size_t query = index(tokens.size() - 1, tokens.back());
  double high = -std::numeric_limits<double>::infinity();
  phi.resize(tokens.size());
  for (std::size_t l = 0; l < tokens.size(); ++l) {
    phi[l] = model.w[index(l, tokens[l]) * width + query] / model.attention_scale;
    high = std::max(high, phi[l]);
  }
  double sum = 0.0;
  for (double& x : phi) {
    x = std::exp(x - high);
    sum += x;
  }
  for (double& x : phi) {
    x /= sum;
  }
}

double score_of(const Model& model, std::span<const std::uint8_t> tokens,
                const std::vector<double>& phi) {
  double t = 0.0;
  for (std::size_t l = 0; l < tokens.size(); ++l) {
    t += phi[l] * model.u[index(l, tokens[l])];
  }
  return t;
}

void validate_string(const char* function, const Model& model,
                     std::span<const std::uint8_t> tokens) {
  validate_model(function, model);
  require<ValueError>(
      !tokens.empty() && tokens.size() <= static_cast<std::size_t>(model.max_length), function,
      "tokens must hold 1.." + std::to_string(model.max_length), std::to_string(tokens.size()));
  validate_tokens(function, tokens);
}

// exp(logit - max) u of every key, by query: T > 0 iff their sum over the string's tokens is > 0.
class SignTable {
 public:
  explicit SignTable(const Model& model) : model_(model), terms_(model.w.size()) {
    const std::size_t width = model.u.size();
    for (std::size_t query = 0; query < width; ++query) {
      const std::size_t num_keys = query / 2 * 2 + 2;
      double high = -std::numeric_limits<double>::infinity();
      double low = std::numeric_limits<double>::infinity();
      for (std::size_t key = 0; key < num_keys; ++key) {
        high = std::max(high, model.w[key * width + query]);
        low = std::min(low, model.w[key * width + query]);
      }
      // Beyond this spread a string's terms could all underflow.
      is_wide_.push_back((high - low) / model.attention_scale > 600.0);
      for (std::size_t key = 0; key < num_keys; ++key) {
        terms_[query * width + key] =
            std::exp((model.w[key * width + query] - high) / model.attention_scale) * model.u[key];
      }
    }
  }

  bool is_positive(std::span<const std::uint8_t> tokens, std::vector<double>& phi) const {
    const std::size_t query = index(tokens.size() - 1, tokens.back());
    if (is_wide_[query]) {
      attend(model_, tokens, phi);
      return score_of(model_, tokens, phi) > 0.0;
    }
    const double* terms = terms_.data() + query * model_.u.size();
    double sum = 0.0;
    for (std::size_t l = 0; l < tokens.size(); ++l) {
      sum += terms[index(l, tokens[l])];
    }
    return sum > 0.0;
  }

 private:
  const Model& model_;
  std::vector<double> terms_;  // [query, key]
  std::vector<bool> is_wide_;
};

}  // namespace

std::vector<double> attention(const Model& model, std::span<const std::uint8_t> tokens) {
  validate_string("attention", model, tokens);
  std::vector<double> phi;
  attend(model, tokens, phi);
  return phi;
}

double score(const Model& model, std::span<const std::uint8_t> tokens) {
  return score_of(model, tokens, attention(model, tokens));
}

std::vector<double> features(const Model& model, const std::vector<LabelledString>& strings) {
  std::vector<double> out(strings.size() * model.u.size(), 0.0);
  for (std::size_t n = 0; n < strings.size(); ++n) {
    const std::vector<double> phi = attention(model, strings[n].tokens);
    for (std::size_t l = 0; l < phi.size(); ++l) {
      out[n * model.u.size() + index(l, strings[n].tokens[l])] = phi[l];
    }
  }
  return out;
}

std::vector<int> chain_of_thought(const Model& model, std::span<const std::uint8_t> strings,
                                  int base_length, bool truncated) {
  constexpr const char* kName = "chain_of_thought";
  validate_model(kName, model);
  require<ValueError>(base_length >= 2, kName, "strings must have at least 2 tokens",
                      std::to_string(base_length));
  const std::int64_t longest =
      truncated ? std::int64_t{base_length} : 2 * std::int64_t{base_length} - 2;
  require<ValueError>(longest <= model.max_length, kName,
                      "u and w must serve strings of " + std::to_string(longest) + " tokens",
                      "max_length " + std::to_string(model.max_length));
  const auto width = static_cast<std::size_t>(base_length);
  require<ValueError>(strings.size() % width == 0, kName,
                      "strings must be [N, " + std::to_string(base_length) + "]",
                      std::to_string(strings.size()) + " tokens");
  validate_tokens(kName, strings);
  constexpr std::size_t kChunk = 1024;
  const std::size_t count = strings.size() / width;
  const SignTable table(model);
  std::vector<int> out(count);
  parallel_for(*default_executor(), static_cast<std::int64_t>((count + kChunk - 1) / kChunk),
               [&](std::int64_t task, int) {
                 std::vector<std::uint8_t> chain;
                 std::vector<double> phi;
                 const std::size_t begin = static_cast<std::size_t>(task) * kChunk;
                 for (std::size_t n = begin; n < std::min(begin + kChunk, count); ++n) {
                   const auto string = strings.subspan(n * width, width);
                   chain.assign(string.begin(), string.end());
                   for (std::size_t step = 0; step + 1 < width; ++step) {
                     const auto seen = std::span(chain).subspan(truncated ? step : 0);
                     chain.push_back(table.is_positive(seen, phi) ? 0 : 1);
                   }
                   out[n] = chain.back();
                 }
               });
  return out;
}

}  // namespace paperlab::regular_language
