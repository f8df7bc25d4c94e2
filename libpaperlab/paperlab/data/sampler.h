#pragma once
/// \file
/// Which windows of which domains make a batch: a function of the seed, the weights and the number
/// of the sample, so that it can be resumed and does not depend on how many processes share it.
/// Source: DRPruning (each sequence draws its domain on its own, then the next unused sequence of
/// that domain in a fixed shuffled order).

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"
#include "paperlab/data/tokens.h"

namespace paperlab::data {

/// A source of windows.
struct Domain {
  std::string name;
  std::shared_ptr<const TokenFile> tokens;
};

struct SamplerOptions {
  std::int64_t length = 0;  ///< T >= 1: a window has T + 1 tokens, T to read and T to predict
  std::uint64_t seed = 0;
  /// Windows of one document only. They start at the document's tokens 0, T, 2 T, ... as long as
  /// T + 1 tokens follow; what is left of a document, and shorter documents, are never drawn.
  /// Otherwise windows start at tokens 0, T, 2 T, ... of all documents back to back.
  bool within_documents = false;
  /// One a domain, >= 0, any positive sum; empty: in proportion to the domains' windows.
  std::vector<double> weights{};
};

/// T + 1 tokens of a domain.
struct Window {
  std::int64_t domain = 0;  ///< index of the domain
  std::int64_t begin = 0;   ///< index of its first token

  bool operator==(const Window&) const = default;
};

/// Draws windows. Sample s draws its domain by uniform number s of the seed and the weights. The
/// k-th sample of a domain with n windows takes window p(k mod n), where p is the permutation that
/// (seed, domain, k / n) names: each window is seen once before any is seen twice.
///
/// fill() and the functions that only return something are safe to call from several threads.
class PAPERLAB_API Sampler {
 public:
  /// \throws ValueError  if an option is outside the above, if there are no domains, or more than
  ///                     65,535, if a name comes twice, or if a domain with a positive weight has
  ///                     no window; the message names the domain.
  Sampler(std::vector<Domain> domains, const SamplerOptions& options);

  std::int64_t length() const { return options_.length; }  ///< T
  const std::vector<Domain>& domains() const { return domains_; }

  /// Windows by domain.
  const std::vector<std::int64_t>& num_windows() const { return num_windows_; }

  /// They add up to 1.
  const std::vector<double>& weights() const { return options_.weights; }

  /// How many samples come before the next one, in all and by domain.
  std::int64_t num_samples() const { return position_.samples; }
  const std::vector<std::int64_t>& counts() const { return position_.counts; }

  /// Window `index` of a domain in the order of its text; for evaluation.
  Window window(std::int64_t domain, std::int64_t index) const;

  /// Returns the windows of the next samples and goes on.
  /// \throws ValueError  unless 1 <= batch_size and there are at most 2^40 samples.
  std::vector<Window> next(std::int64_t batch_size);

  /// Makes `sample` the next one. Counts are found by drawing the domains in between, some
  /// nanoseconds each; from the last change of weights on if `sample` lies before the next one.
  /// \throws ValueError  if `sample` lies before the last change of weights, or is above 2^40.
  void seek(std::int64_t sample, const Executor& executor = *default_executor());

  /// Weights from the next sample on. The same ones change nothing.
  /// \throws ValueError  as the constructor; nothing is changed then.
  void set_weights(const std::vector<double>& weights);

  /// Copies the tokens of windows.
  /// \param out       [windows.size(), T + 1] row-major.
  /// \param executor  rows are its tasks.
  /// \throws ShapeError, ValueError  if a size or a window does not fit, or as TokenFile::copy().
  void fill(std::span<const Window> windows, std::span<std::int64_t> out,
            const Executor& executor = *default_executor()) const;

  /// Where the sampler stands; equal bits after load_state(). A few numbers for each domain.
  Json state() const;

  /// \throws ValueError  if it is no such state, or that of other domains or options; nothing is
  ///                     changed then.
  void load_state(const Json& state);

 private:
  struct Position {
    std::int64_t samples = 0;
    std::vector<std::int64_t> counts;  // by domain
  };

  void index_windows();
  std::vector<double> checked_weights(const std::vector<double>& weights) const;
  void use_weights(std::vector<double> weights);
  std::int64_t domain_of(double uniform) const;
  void count_domains(std::int64_t begin, std::int64_t end, std::int64_t* counts) const;
  Json identity() const;
  Position position_of(const Json& value) const;

  std::vector<Domain> domains_;
  SamplerOptions options_;
  std::vector<std::int64_t> num_windows_;
  // within_documents: by domain, how many windows lie before each document and in all, [D + 1].
  std::vector<std::vector<std::int64_t>> windows_before_;
  std::vector<double> thresholds_;  // domain_of()
  Position position_;               // of the next sample
  Position changed_;                // when the weights were set
};

}  // namespace paperlab::data
