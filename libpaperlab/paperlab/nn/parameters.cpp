#include "paperlab/nn/parameters.h"

#include <span>
#include <string_view>

#include "paperlab/core/error.h"

namespace paperlab::nn {
namespace {

using Flag = bool DecoderConfig::*;

// A module with a weight and perhaps a bias. A name with # stands in each block, and the rows of a
// block are neighbours.
struct Row {
  Role role;
  const char* name;
  const char* shape;  // of the weight, a letter a dimension: size_of()
  Flag condition = nullptr;
  Flag bias = nullptr;
};

// Norms of one letter D have a bias if they are LayerNorms.
constexpr Row kLlama[] = {
    {Role::kEmbed, "model.embed_tokens", "VD"},
    {Role::kQuery, "model.layers.#.self_attn.q_proj", "QD", nullptr, &DecoderConfig::has_qkv_bias},
    {Role::kKey, "model.layers.#.self_attn.k_proj", "KD", nullptr, &DecoderConfig::has_qkv_bias},
    {Role::kValue, "model.layers.#.self_attn.v_proj", "KD", nullptr, &DecoderConfig::has_qkv_bias},
    {Role::kOut, "model.layers.#.self_attn.o_proj", "DQ", nullptr, &DecoderConfig::has_out_bias},
    {Role::kQueryNorm, "model.layers.#.self_attn.q_norm", "H", &DecoderConfig::has_qk_norm},
    {Role::kKeyNorm, "model.layers.#.self_attn.k_norm", "H", &DecoderConfig::has_qk_norm},
    {Role::kGate, "model.layers.#.mlp.gate_proj", "FD", &DecoderConfig::has_gate,
     &DecoderConfig::has_ffn_bias},
    {Role::kUp, "model.layers.#.mlp.up_proj", "FD", nullptr, &DecoderConfig::has_ffn_bias},
    {Role::kDown, "model.layers.#.mlp.down_proj", "DF", nullptr, &DecoderConfig::has_ffn_bias},
    {Role::kAttentionNorm, "model.layers.#.input_layernorm", "D"},
    {Role::kFfnNorm, "model.layers.#.post_attention_layernorm", "D"},
    {Role::kFinalNorm, "model.norm", "D"},
    {Role::kHead, "lm_head", "VD", nullptr, &DecoderConfig::has_head_bias},
};

constexpr Row kGptNeoX[] = {
    {Role::kEmbed, "gpt_neox.embed_in", "VD"},
    {Role::kAttentionNorm, "gpt_neox.layers.#.input_layernorm", "D"},
    {Role::kFfnNorm, "gpt_neox.layers.#.post_attention_layernorm", "D"},
    {Role::kQueryKeyValue, "gpt_neox.layers.#.attention.query_key_value", "AD", nullptr,
     &DecoderConfig::has_qkv_bias},
    {Role::kOut, "gpt_neox.layers.#.attention.dense", "DQ", nullptr, &DecoderConfig::has_out_bias},
    {Role::kUp, "gpt_neox.layers.#.mlp.dense_h_to_4h", "FD", nullptr, &DecoderConfig::has_ffn_bias},
    {Role::kDown, "gpt_neox.layers.#.mlp.dense_4h_to_h", "DF", nullptr,
     &DecoderConfig::has_ffn_bias},
    {Role::kFinalNorm, "gpt_neox.final_layer_norm", "D"},
    {Role::kHead, "embed_out", "VD", nullptr, &DecoderConfig::has_head_bias},
};

// transformers 5 calls GPT-NeoX's head lm_head in memory; files have either name.
constexpr std::string_view kNeoXHead = "embed_out";
constexpr std::string_view kLlamaHead = "lm_head";

std::span<const Row> rows_of(Family family) {
  return family == Family::kLlama ? std::span<const Row>(kLlama) : std::span<const Row>(kGptNeoX);
}

std::int64_t size_of(char letter, const DecoderConfig& config, std::int64_t layer) {
  const std::int64_t query = config.num_heads * config.head_dim;
  const std::int64_t key = config.num_kv_heads * config.head_dim;
  switch (letter) {
    case 'V':
      return config.vocab_size;
    case 'D':
      return config.d_model;
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

bool has_bias(const Row& row, const DecoderConfig& config) {
  const bool is_layer_norm = config.norm == Norm::kLayer && std::string_view(row.shape) == "D";
  return is_layer_norm || (row.bias != nullptr && config.*row.bias);
}

std::string name_in(std::string_view pattern, std::int64_t layer) {
  std::string name(pattern);
  const std::size_t mark = name.find('#');
  return mark == std::string::npos ? name : name.replace(mark, 1, std::to_string(layer));
}

void append(const Row& row, const DecoderConfig& config, std::int64_t layer,
            std::vector<ParameterSpec>& specs) {
  const bool is_absent =
      row.role == Role::kHead ? config.has_tied_head : row.condition && !(config.*row.condition);
  if (is_absent) {
    return;
  }
  std::vector<std::int64_t> shape;
  for (const char letter : std::string_view(row.shape)) {
    shape.push_back(size_of(letter, config, layer));
  }
  const std::string name = name_in(row.name, layer);
  const std::string other = name == kNeoXHead ? std::string(kLlamaHead) : std::string();
  const auto with = [](const std::string& module, const char* suffix) {
    return module.empty() ? module : module + suffix;
  };
  specs.push_back({name + ".weight", row.role, layer, false, shape, with(other, ".weight")});
  if (has_bias(row, config)) {
    specs.push_back({name + ".bias", row.role, layer, true, {shape[0]}, with(other, ".bias")});
  }
}

bool is_in_block(const Row& row) {
  return std::string_view(row.name).find('#') != std::string_view::npos;
}

}  // namespace

std::vector<ParameterSpec> parameter_specs(const DecoderConfig& config, Family family) {
  const bool is_llama = family == Family::kLlama;
  require<ValueError>(
      config.has_fused_qkv != is_llama && (is_llama || (!config.has_gate && !config.has_qk_norm)),
      "nn::parameter_specs",
      is_llama ? "has_fused_qkv must be false for the names of Llama"
               : "the names of GPT-NeoX need has_fused_qkv, no has_gate and no has_qk_norm",
      "another configuration");
  const std::size_t num_widths = config.ffn_dims.size();
  require<ValueError>(num_widths == 0 || num_widths == static_cast<std::size_t>(config.num_layers),
                      "nn::parameter_specs", "a width of ffn_dims for each layer",
                      std::to_string(num_widths));
  std::vector<ParameterSpec> specs;
  const std::span<const Row> rows = rows_of(family);
  for (std::size_t i = 0; i < rows.size();) {
    std::size_t end = i + 1;
    while (is_in_block(rows[i]) && is_in_block(rows[end])) {  // the head is in no block
      ++end;
    }
    const std::int64_t repeats = is_in_block(rows[i]) ? config.num_layers : 1;
    for (std::int64_t layer = 0; layer < repeats; ++layer) {
      for (const Row& row : rows.subspan(i, end - i)) {
        append(row, config, is_in_block(row) ? layer : -1, specs);
      }
    }
    i = end;
  }
  return specs;
}

std::vector<std::string> head_names(Family family) {
  const std::string llama = std::string(kLlamaHead) + ".weight";
  return family == Family::kLlama ? std::vector{llama}
                                  : std::vector{std::string(kNeoXHead) + ".weight", llama};
}

}  // namespace paperlab::nn
