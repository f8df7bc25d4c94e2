#pragma once
// A table of tensor names as the parameters of a model: what the descriptions of architectures are
// written in. A table is a constexpr array of rows over the struct that holds the model's sizes and
// switches.

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "paperlab/nn/parameters.h"

namespace paperlab::nn {

/// What stands behind a row's name in a file.
enum class RowForm : std::uint8_t {
  kModule,      ///< NAME.weight and, if the row has a bias, NAME.bias [first dimension].
  kTransposed,  ///< Likewise, a matrix stored as [in, out]: the bias is [last dimension].
  kTensor,      ///< NAME itself.
  kBias,        ///< NAME itself, a bias.
};

/// A module with a weight and perhaps a bias. A name with # stands in each block, # being the
/// block's number; rows of a block are neighbours.
template <class Config>
struct ParameterRow {
  using Condition = bool (*)(const Config& config);

  Role role;
  std::string_view name;
  std::string_view shape;         // of the weight, a letter a dimension
  Condition condition = nullptr;  // null: it is always there
  Condition bias = nullptr;       // null: there is none
  RowForm form = RowForm::kModule;
  std::string_view other_name = {};  // that files may have in the place of `name`; empty: none
};

/// The condition that a bool member of the struct holds: `flag<&Config::has_bias>`.
template <auto kMember, class Config>
bool flag(const Config& config) {
  return config.*kMember;
}

/// A row whose conditions are known.
struct ResolvedRow {
  Role role = Role::kEmbed;
  std::string_view name;
  std::string_view shape;
  bool has_bias = false;
  RowForm form = RowForm::kModule;
  std::string_view other_name;
};

/// The size that a letter stands for in a block (-1: outside the blocks).
using SizeOf = std::function<std::int64_t(char letter, std::int64_t layer)>;

/// The sizes of a decoder by the letters of families/family_internal.h, some of which encoders
/// share.
std::int64_t size_of_block(char letter, const DecoderConfig& config, std::int64_t layer);

/// Returns the parameters of the rows: those of each block together, in the order of the table.
/// \param root  what names begin with and files of the model without its head leave out; empty:
///              nothing.
std::vector<ParameterSpec> specs_of_rows(const std::vector<ResolvedRow>& rows,
                                         std::int64_t num_layers, const SizeOf& size_of,
                                         std::string_view root = {});

/// As above, of the rows that `config` asks for.
template <class Config>
std::vector<ParameterSpec> specs_of_rows(std::span<const ParameterRow<Config>> rows,
                                         const Config& config, std::int64_t num_layers,
                                         const SizeOf& size_of, std::string_view root = {}) {
  std::vector<ResolvedRow> resolved;
  for (const ParameterRow<Config>& row : rows) {
    if (row.condition == nullptr || row.condition(config)) {
      const bool has_bias = row.bias != nullptr && row.bias(config);
      resolved.push_back({row.role, row.name, row.shape, has_bias, row.form, row.other_name});
    }
  }
  return specs_of_rows(resolved, num_layers, size_of, root);
}

}  // namespace paperlab::nn
