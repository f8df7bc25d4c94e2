#include <array>
#include <string_view>

#include "paperlab/core/error.h"
#include "paperlab/nn/encoder_load.h"

namespace paperlab::nn {
namespace {

constexpr char kFunction[] = "tensor";

struct NamedRole {
  std::string_view name;
  Role role;
  bool has_layer;
};

constexpr std::array kRoles = {NamedRole{"q", Role::kQuery, true},
                               NamedRole{"k", Role::kKey, true},
                               NamedRole{"v", Role::kValue, true},
                               NamedRole{"o", Role::kOut, true},
                               NamedRole{"up", Role::kUp, true},
                               NamedRole{"down", Role::kDown, true},
                               NamedRole{"norm", Role::kAttentionNorm, true},
                               NamedRole{"attention_norm", Role::kAttentionNorm, true},
                               NamedRole{"ffn_norm", Role::kFfnNorm, true},
                               NamedRole{"position_q", Role::kPositionQuery, true},
                               NamedRole{"position_k", Role::kPositionKey, true},
                               NamedRole{"embed", Role::kEmbed, false},
                               NamedRole{"head", Role::kHead, false},
                               NamedRole{"norm", Role::kFinalNorm, false},
                               NamedRole{"position_embed", Role::kPositionEmbed, false},
                               NamedRole{"type_embed", Role::kTypeEmbed, false},
                               NamedRole{"embed_norm", Role::kEmbedNorm, false},
                               NamedRole{"class_token", Role::kClassToken, false},
                               NamedRole{"relative_embed", Role::kRelativeEmbed, false},
                               NamedRole{"relative_norm", Role::kRelativeNorm, false},
                               NamedRole{"pooler", Role::kPooler, false},
                               NamedRole{"head_dense", Role::kHeadDense, false},
                               NamedRole{"head_norm", Role::kHeadNorm, false}};

// The place of a role in this encoder; null: it has none.
std::shared_ptr<at::Tensor> find(const Encoder& encoder, Role role, std::int64_t layer) {
  if (role == Role::kEmbed && reads_pixels(encoder.config())) {
    role = Role::kPatchEmbed;
  } else if (role == Role::kHead && has_tied_vocabulary(encoder.config())) {
    role = Role::kEmbed;
  }
  return encoder.parameters().find(role, layer);
}

// The weight, and the role that it has.
std::pair<at::Tensor, Role> named(const Encoder& encoder, const std::string& name,
                                  std::optional<std::int64_t> layer) {
  std::string names;
  for (const NamedRole& known : kRoles) {
    if (known.has_layer != layer.has_value()) {
      continue;
    }
    const std::shared_ptr<at::Tensor> weight = find(encoder, known.role, layer.value_or(-1));
    if (weight == nullptr) {
      continue;
    }
    if (name == known.name) {
      return {*weight, known.role};
    }
    names += (names.empty() ? "" : ", ") + std::string(known.name);
  }
  throw ValueError(std::string(kFunction) + ": role must be one of " + names +
                   (layer ? " with a layer, got '" : " without a layer, got '") + name + "'");
}

void check_index(const char* name, std::int64_t index, std::int64_t count) {
  require<ValueError>(index >= 0 && index < count, kFunction,
                      std::string(name) + " in 0.." + std::to_string(count - 1),
                      std::to_string(index));
}

}  // namespace

at::Tensor tensor_of(const Encoder& encoder, const std::string& role,
                     std::optional<std::int64_t> layer, std::optional<std::int64_t> head) {
  const DecoderConfig& config = encoder.config().block;
  if (layer) {
    check_index("layer", *layer, config.num_layers);
  }
  const auto [weight, found] = named(encoder, role, layer);
  if (!head) {
    return weight;
  }
  const bool has_heads = found == Role::kQuery || found == Role::kKey || found == Role::kValue ||
                         found == Role::kOut || found == Role::kPositionQuery ||
                         found == Role::kPositionKey;
  require<ValueError>(has_heads, kFunction, "head for q, k, v and o alone", role);
  check_index("head", *head, config.num_heads);
  return weight.narrow(found == Role::kOut ? 1 : 0, *head * config.head_dim, config.head_dim);
}

}  // namespace paperlab::nn
