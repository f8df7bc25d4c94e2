#pragma once
// What one step of the one-layer kernels needs besides its strings: the exponentials of every query
// and the sums of Q and R by query, position and token. Made once, reused by every step.

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/common/one_layer.h"

namespace paperlab::kernels {

class OneLayerWorkspace {
 public:
  // See query_table.h.
  using TableBuilder = double (*)(const double* w, const double* u, int n, int unused, double scale,
                                  double* e, double* eu);

  explicit OneLayerWorkspace(int max_length);

  // Fills the tables of all queries (L, q), L <= max_length, and sets all sums to 0. Returns
  // whether every string's Z is far from underflow; if not, only the reference is accurate. Throws
  // ValueError if parameters.max_length is below max_length.
  bool begin(const OneLayerParameters& parameters, TableBuilder build);

  QueryTable table(int length, int query) const;
  std::span<Marginal> sums(int length, int query);  // [2 length]
  void add(int length, int query, std::span<const Marginal> part);

  // Writes the whole gradient from the sums. A length's two queries are added first: where they
  // balance, u's gradient is exactly 0.
  void finish(const OneLayerParameters& parameters, const OneLayerGradient& gradient) const;

  std::size_t num_bytes() const;

 private:
  std::size_t row(int length, int query) const;

  int max_length_;
  std::size_t stride_;  // 2 max_length, padded to whole vectors
  std::vector<double> e_;
  std::vector<double> eu_;
  std::vector<Marginal> sums_;
};

}  // namespace paperlab::kernels
