#include "experiments/cca/text.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/ops/linear_cross_entropy.h"

namespace paperlab::experiments::cca {
namespace {

constexpr std::int64_t kTokensAtOnce = 8192;

at::Tensor tokens_of(const data::Sampler& sampler, const std::vector<data::Window>& windows) {
  at::Tensor tokens =
      at::empty({static_cast<std::int64_t>(windows.size()), sampler.length() + 1}, at::kLong);
  sampler.fill(windows,
               {tokens.mutable_data_ptr<std::int64_t>(), static_cast<std::size_t>(tokens.numel())},
               serial_executor());
  return tokens;
}

// Also what stands in the test split: both are held out.
constexpr const char* kHeldOut[] = {"valid", "test"};

}  // namespace

Text::Text(const std::vector<TextPart>& parts) {
  for (const TextPart& part : parts) {
    parts_.push_back({data::TokenFolder(part.folder), part.domains});
    require<ValueError>(parts_.back().folder.vocab_size() == vocab_size(), "cca",
                        "texts of the same vocabulary", part.folder);
  }
}

std::vector<data::Domain> Text::domains_of(const std::string& split) const {
  std::vector<data::Domain> domains;
  for (const Part& part : parts_) {
    for (const std::string& name : part.domains) {
      domains.push_back({name, part.folder.open(name, split)});
    }
  }
  return domains;
}

data::Sampler Text::sampler(std::int64_t length, std::uint64_t seed) const {
  return {domains_of("train"), {.length = length, .seed = seed, .within_documents = true}};
}

at::Tensor Text::held_out(std::int64_t length, std::int64_t count) const {
  const data::Sampler sampler(domains_of("valid"), {.length = length, .within_documents = true});
  const auto num_domains = static_cast<std::int64_t>(sampler.num_windows().size());
  std::vector<data::Window> windows;
  for (std::int64_t domain = 0; domain < num_domains; ++domain) {
    const std::int64_t there = sampler.num_windows()[static_cast<std::size_t>(domain)];
    const std::int64_t wanted = std::min(there, count / num_domains);
    for (std::int64_t i = 0; i < wanted; ++i) {
      windows.push_back(sampler.window(domain, i * there / wanted));
    }
  }
  return tokens_of(sampler, windows);
}

at::Tensor Text::pages(std::int64_t length, std::int64_t count) const {
  std::vector<at::Tensor> rows;
  for (const char* split : kHeldOut) {
    for (const data::Domain& domain : domains_of(split)) {
      const auto offsets = domain.tokens->offsets();
      for (std::size_t i = 0; i + 1 < offsets.size() && std::ssize(rows) < count; ++i) {
        if (offsets[i + 1] - offsets[i] >= length) {
          at::Tensor row = at::empty({1, length}, at::kLong);
          domain.tokens->copy(
              offsets[i], {row.mutable_data_ptr<std::int64_t>(), static_cast<std::size_t>(length)});
          rows.push_back(row);
        }
      }
    }
  }
  require<ValueError>(!rows.empty(), "cca",
                      "a held-out page of " + std::to_string(length) + " tokens", "none");
  return at::cat(rows);
}

at::Tensor next_windows(data::Sampler& sampler, std::int64_t rows) {
  return tokens_of(sampler, sampler.next(rows));
}

at::Tensor token_nats(nn::Decoder& decoder, const at::Tensor& tokens) {
  const at::NoGradGuard no_grad;
  const at::Device device = decoder.parameters().front().value->device();
  const std::int64_t length = tokens.size(1) - 1;
  std::vector<at::Tensor> parts;
  for (const at::Tensor& part :
       tokens.split(std::max<std::int64_t>(1, kTokensAtOnce / (length + 1)), 0)) {
    const at::Tensor state = decoder.hidden(part.narrow(1, 0, length).to(device));
    ops::LinearCrossEntropyOptions options;
    options.reduction = "none";
    const at::Tensor nats = ops::linear_cross_entropy(state, decoder.plain_head()->weight(),
                                                      part.narrow(1, 1, length).to(device), options)
                                .loss;
    parts.push_back(nats.to(at::kDouble).cpu());
  }
  return at::cat(parts);
}

std::string bucket_name(const std::vector<std::int64_t>& ends, std::size_t i) {
  return std::to_string(ends[i]) + "-" + std::to_string(ends[i + 1] - 1);
}

Buckets by_position(const at::Tensor& nats, const std::vector<std::int64_t>& ends,
                    std::int64_t first_column) {
  Buckets buckets;
  for (std::size_t i = 0; i + 1 < ends.size(); ++i) {
    const std::int64_t begin = std::max<std::int64_t>(ends[i] - first_column, 0);
    const std::int64_t end = ends[i + 1] - first_column;
    buckets.emplace_back(bucket_name(ends, i), nats.narrow(1, begin, end - begin).mean(1));
  }
  return buckets;
}

}  // namespace paperlab::experiments::cca
