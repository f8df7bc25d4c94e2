#include "tests/support/one_layer_emulation.h"

#include <memory>

namespace paperlab::test {

using namespace kernels;  // NOLINT(google-build-using-namespace): the subject of this file

EmulatedTables::EmulatedTables(const OneLayerParameters& parameters, int max_length)
    : e_(static_cast<std::size_t>(max_length) * 2 * kTableSize), eu_(e_.size()) {
  for (int column = 0; column < 2 * max_length; ++column) {
    const double* w =
        parameters.w + static_cast<std::ptrdiff_t>(column) * 2 * parameters.max_length;
    for (int i = 0; i < 2 * (column / 2 + 1); ++i) {
      const std::size_t at =
          static_cast<std::size_t>(column) * kTableSize + static_cast<std::size_t>(i);
      e_[at] = table_entry(w, column / 2 + 1, column % 2, parameters.attention_scale, i);
      eu_[at] = e_[at] * parameters.u[i];
    }
  }
}

QueryTable EmulatedTables::of(int length, int query) const {
  const int row = embedding_index(length - 1, query) * kTableSize;
  return {e_.data() + row, eu_.data() + row};
}

void emulate_sums(const OneLayerParameters& parameters, const EmulatedTables& tables,
                  int max_length, std::span<const EmulatedTask> tasks,
                  std::span<const Marginal> marginals, const OneLayerGradient& gradient) {
  const int width = 2 * parameters.max_length;
  std::vector<double> parts_of_u(static_cast<std::size_t>(max_length) * 2 * kTableSize);
  const auto sums = std::make_unique<QuerySums>();
  for (int column = 0; column < width; ++column) {
    const bool is_used = column < 2 * max_length;
    std::vector<std::int64_t> places;
    for (const EmulatedTask& task : tasks) {
      if (embedding_index(task.length - 1, task.query) == column) {
        places.push_back(task.marginals);
      }
    }
    HostTeam<NoRegisters> team(kSumThreads);
    sum_query(team, *sums, marginals.data(), {places.data(), static_cast<int>(places.size())},
              is_used ? column / 2 + 1 : 0,
              is_used ? tables.of(column / 2 + 1, column % 2) : QueryTable{nullptr, nullptr},
              parameters, gradient.w + static_cast<std::ptrdiff_t>(column) * width,
              parts_of_u.data() + (is_used ? column * kTableSize : 0));
  }
  for (int i = 0; i < width; ++i) {
    gradient.u[i] = sum_u_gradient(parts_of_u.data(), max_length, i);
  }
}

OneLayerEvaluation emulate_evaluation(std::span<const EvaluationSum> parts,
                                      std::int64_t num_strings) {
  HostTeam<NoRegisters> team(kBlockThreads);
  std::vector<EvaluationSum> sums(kBlockThreads, empty_evaluation());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    add_evaluation(parts[i], sums[i % kBlockThreads]);
  }
  add_up(team, sums.data());
  return {sums[0].loss, sums[0].min_margin, sums[0].num_correct, num_strings};
}

}  // namespace paperlab::test
