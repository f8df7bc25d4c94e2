#include "paperlab/nn/parameters.h"

#include "paperlab/core/error.h"
#include "paperlab/nn/families/family_internal.h"

namespace paperlab::nn {

std::int64_t size_of_block(char letter, const DecoderConfig& config, std::int64_t layer) {
  const std::int64_t query = config.num_heads * config.head_dim;
  const std::int64_t key = config.num_kv_heads * config.head_dim;
  switch (letter) {
    case 'V':
      return config.vocab_size;
    case 'W':
      return config.embed_dim == 0 ? config.d_model : config.embed_dim;
    case 'D':
      return config.d_model;
    case 'P':
      return config.position_offset + config.max_positions;
    case 'F':
      return config.ffn_dims.empty() ? config.d_ff
                                     : config.ffn_dims[static_cast<std::size_t>(layer)];
    case 'H':
      return config.head_dim;
    case 'Q':
      return query;
    case 'K':
      return key;
    default:  // 'A'
      return query + 2 * key;
  }
}

const NameTable& names_of(Family family) {
  switch (family) {
    case Family::kGptNeoX:
      return kGptNeoXNames;
    case Family::kGpt2:
      return kGpt2Names;
    case Family::kOpt:
      return kOptNames;
    case Family::kLlama:
      break;
  }
  return kLlamaNames;
}

std::vector<ParameterSpec> parameter_specs(const DecoderConfig& config, Family family) {
  const NameTable& names = names_of(family);
  require<ValueError>(names.fits(config), "nn::parameter_specs", names.required,
                      "another configuration");
  const std::size_t num_widths = config.ffn_dims.size();
  require<ValueError>(num_widths == 0 || num_widths == static_cast<std::size_t>(config.num_layers),
                      "nn::parameter_specs", "a width of ffn_dims for each layer",
                      std::to_string(num_widths));
  return specs_of_rows(
      names.rows, config, config.num_layers,
      [&](char letter, std::int64_t layer) { return size_of_block(letter, config, layer); },
      names.root);
}

std::vector<std::string> head_names(Family family) {
  std::vector<std::string> names;
  for (const DecoderRow& row : names_of(family).rows) {
    if (row.role == Role::kHead) {
      names.push_back(std::string(row.name) + ".weight");
      if (!row.other_name.empty()) {
        names.push_back(std::string(row.other_name) + ".weight");
      }
    }
  }
  return names;
}

}  // namespace paperlab::nn
