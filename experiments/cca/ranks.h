#pragma once
// Rank correlation.

#include <vector>

namespace paperlab::experiments::cca {

// Spearman's: Pearson's correlation of ranks, equal values sharing the mean of theirs.
double rank_correlation(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace paperlab::experiments::cca
