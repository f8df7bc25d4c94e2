#include "paperlab/nn/roles.h"

#include <map>

#include "paperlab/core/error.h"
#include "paperlab/nn/role_view_internal.h"

namespace paperlab::nn {
namespace {

constexpr char kFunction[] = "tensor";

Role role_of(const std::string& name, bool has_layer) {
  static const std::map<std::string, Role> of_layer = {
      {"q", Role::kQuery},
      {"k", Role::kKey},
      {"v", Role::kValue},
      {"o", Role::kOut},
      {"gate", Role::kGate},
      {"up", Role::kUp},
      {"down", Role::kDown},
      {"norm", Role::kAttentionNorm},
      {"attention_norm", Role::kAttentionNorm},
      {"ffn_norm", Role::kFfnNorm},
      {"q_norm", Role::kQueryNorm},
      {"k_norm", Role::kKeyNorm},
      {"post_attention_norm", Role::kPostAttentionNorm},
      {"post_ffn_norm", Role::kPostFfnNorm}};
  static const std::map<std::string, Role> outside = {
      {"embed", Role::kEmbed},          {"head", Role::kHead},
      {"norm", Role::kFinalNorm},       {"position", Role::kPositionEmbed},
      {"project_in", Role::kProjectIn}, {"project_out", Role::kProjectOut}};
  const auto& roles = has_layer ? of_layer : outside;
  const auto found = roles.find(name);
  if (found != roles.end()) {
    return found->second;
  }
  std::string names;
  for (const auto& [known, role] : roles) {
    names += (names.empty() ? "" : ", ") + known;
  }
  throw ValueError(std::string(kFunction) + ": role must be one of " + names +
                   (has_layer ? " with a layer, got '" : " without a layer, got '") + name + "'");
}

bool is_qkv(Role role) {
  return role == Role::kQuery || role == Role::kKey || role == Role::kValue;
}

void check_index(const char* name, std::int64_t index, std::int64_t count) {
  require<ValueError>(index >= 0 && index < count, kFunction,
                      std::string(name) + " in 0.." + std::to_string(count - 1),
                      std::to_string(index));
}

// Of the one matrix [out, in] of all three.
at::Tensor part_of_fused(const DecoderConfig& config, const at::Tensor& matrix, Role role,
                         std::optional<std::int64_t> head) {
  const std::int64_t which = role == Role::kQuery ? 0 : role == Role::kKey ? 1 : 2;
  const std::int64_t rows = config.num_heads * config.head_dim;
  if (config.qkv_order == QkvOrder::kPartsFirst) {
    const at::Tensor part = matrix.narrow(0, which * rows, rows);
    return head ? head_part(part, false, *head, config.head_dim) : part;
  }
  const at::Tensor part =
      matrix.view({config.num_heads, 3, config.head_dim, config.d_model}).select(1, which);
  return head ? part.select(0, *head) : part.reshape({rows, config.d_model});
}

}  // namespace

at::Tensor tensor_of(const Decoder& decoder, const std::string& role,
                     std::optional<std::int64_t> layer, std::optional<std::int64_t> head) {
  const DecoderConfig& config = decoder.config();
  const Role wanted = role_of(role, layer.has_value());
  if (layer) {
    check_index("layer", *layer, config.num_layers);
  }
  const bool is_kv = wanted == Role::kKey || wanted == Role::kValue;
  const bool has_heads = is_qkv(wanted) || wanted == Role::kOut;
  require<ValueError>(!head || has_heads, kFunction, "head for q, k, v and o alone", role);
  if (head) {
    check_index("head", *head, is_kv ? config.num_kv_heads : config.num_heads);
  }
  const std::int64_t at = layer.value_or(-1);
  const bool is_fused = config.has_fused_qkv && is_qkv(wanted);
  const Decoder::Parameter* found =
      decoder.find_parameter(is_fused ? Role::kQueryKeyValue : wanted, at);
  require<ValueError>(found != nullptr, kFunction, "a role that this decoder has", role);
  const at::Tensor matrix = matrix_of(*found->value, found->spec.is_transposed);
  if (is_fused) {
    return part_of_fused(config, matrix, wanted, head);
  }
  return head ? head_part(matrix, wanted == Role::kOut, *head, config.head_dim) : matrix;
}

}  // namespace paperlab::nn
