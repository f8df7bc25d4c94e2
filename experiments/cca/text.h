#pragma once
// Windows of a text on disk, and how well a model predicts them by position.

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "experiments/cca/rows.h"
#include "paperlab/data/sampler.h"
#include "paperlab/data/tokens.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::experiments::cca {

// Some domains of the text in a folder of tokens.
struct TextPart {
  std::string folder;
  std::vector<std::string> domains;
};

// The documents of a split. Safe to use from several threads.
class Text {
 public:
  // Parts have the same vocabulary.
  explicit Text(const std::vector<TextPart>& parts);

  std::int64_t vocab_size() const { return parts_.front().folder.vocab_size(); }

  // Draws windows of length + 1 tokens of one document each from the training split.
  data::Sampler sampler(std::int64_t length, std::uint64_t seed) const;

  // [N, length + 1], N <= count: held-out windows of one document each, evenly spread.
  at::Tensor held_out(std::int64_t length, std::int64_t count) const;

  // [N, length], N <= count: the first tokens of held-out documents of at least that length.
  at::Tensor pages(std::int64_t length, std::int64_t count) const;

 private:
  struct Part {
    data::TokenFolder folder;
    std::vector<std::string> domains;
  };

  std::vector<data::Domain> domains_of(const std::string& split) const;

  std::vector<Part> parts_;
};

// The next windows, [rows, length + 1] int64.
at::Tensor next_windows(data::Sampler& sampler, std::int64_t rows);

// -ln p of tokens 1.. of each row, [N, T - 1] float64 on the CPU, for tokens [N, T]. Rows are read
// one by one or, if they are short, some at a time.
at::Tensor token_nats(nn::Decoder& decoder, const at::Tensor& tokens);

// "512-1023": tokens ends[i] .. ends[i + 1] - 1.
std::string bucket_name(const std::vector<std::int64_t>& ends, std::size_t i);

// Each bucket's name and each row's mean over it, [N]; column 0 of nats [N, T] is token number
// first_column.
using Buckets = std::vector<std::pair<std::string, at::Tensor>>;
Buckets by_position(const at::Tensor& nats, const std::vector<std::int64_t>& ends,
                    std::int64_t first_column);

}  // namespace paperlab::experiments::cca
