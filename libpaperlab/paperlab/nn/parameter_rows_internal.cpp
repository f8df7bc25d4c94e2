#include "paperlab/nn/parameter_rows_internal.h"

#include <string>
#include <utility>

namespace paperlab::nn {
namespace {

bool is_in_block(const ResolvedRow& row) { return row.name.find('#') != std::string_view::npos; }

std::string name_in(std::string_view pattern, std::int64_t layer) {
  std::string name(pattern);
  const std::size_t mark = name.find('#');
  return mark == std::string::npos ? name : name.replace(mark, 1, std::to_string(layer));
}

// The name that a file may have instead: the row's own, or the one without the root.
std::string other_name_of(const ResolvedRow& row, std::int64_t layer, std::string_view root) {
  if (!row.other_name.empty()) {
    return name_in(row.other_name, layer);
  }
  const bool has_root = !root.empty() && row.name.starts_with(root);
  return has_root ? name_in(row.name.substr(root.size()), layer) : std::string();
}

void append(const ResolvedRow& row, std::int64_t layer, const SizeOf& size_of,
            std::string_view root, std::vector<ParameterSpec>& specs) {
  std::vector<std::int64_t> shape;
  for (const char letter : row.shape) {
    shape.push_back(size_of(letter, layer));
  }
  const std::string name = name_in(row.name, layer);
  const std::string other = other_name_of(row, layer, root);
  const auto add = [&](const char* suffix, bool is_bias, std::vector<std::int64_t> sizes) {
    ParameterSpec spec{name + suffix, row.role, layer, is_bias, std::move(sizes), {}, false};
    if (!other.empty()) {
      spec.other_name = other + suffix;
    }
    spec.is_transposed = row.form == RowForm::kTransposed && !is_bias;
    specs.push_back(std::move(spec));
  };
  if (row.form == RowForm::kTensor || row.form == RowForm::kBias) {
    add("", row.form == RowForm::kBias, std::move(shape));
    return;
  }
  const std::int64_t out = row.form == RowForm::kTransposed ? shape.back() : shape.front();
  add(".weight", false, std::move(shape));
  if (row.has_bias) {
    add(".bias", true, {out});
  }
}

}  // namespace

std::vector<ParameterSpec> specs_of_rows(const std::vector<ResolvedRow>& rows,
                                         std::int64_t num_layers, const SizeOf& size_of,
                                         std::string_view root) {
  std::vector<ParameterSpec> specs;
  for (std::size_t i = 0; i < rows.size();) {
    std::size_t end = i + 1;
    while (end < rows.size() && is_in_block(rows[i]) && is_in_block(rows[end])) {
      ++end;
    }
    const bool is_block = is_in_block(rows[i]);
    for (std::int64_t layer = 0; layer < (is_block ? num_layers : 1); ++layer) {
      for (std::size_t row = i; row < end; ++row) {
        append(rows[row], is_block ? layer : -1, size_of, root, specs);
      }
    }
    i = end;
  }
  return specs;
}

}  // namespace paperlab::nn
