#include "paperlab/mudd/layout.h"

#include <string>
#include <utility>

#include "paperlab/mudd/layout_internal.h"

namespace paperlab::mudd {
namespace {

using nn::Role;
using Shape = std::vector<std::int64_t>;

class Table {
 public:
  explicit Table(const MuddConfig& config) : config_(config) {}

  std::vector<Entry> entries() {
    add("tok_embeddings.weight", Role::kEmbed, -1, {config_.vocab_size, config_.d_model});
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      add_block(layer);
    }
    add_norm("norm", Role::kFinalNorm, -1);
    if (!config_.has_tied_head) {
      add("output.weight", Role::kHead, -1, {config_.vocab_size, config_.d_model});
    }
    add_connections();
    return std::move(entries_);
  }

 private:
  void add(const std::string& name, Role role, std::int64_t layer, Shape shape,
           Start start = Start::kMatrix, std::int64_t index = 0) {
    entries_.push_back(
        {{name, role, layer, name.ends_with(".bias"), std::move(shape)}, start, index});
  }

  void add_linear(const std::string& name, Role role, std::int64_t layer, Shape shape,
                  bool has_bias) {
    const std::int64_t rows = shape[0];
    add(name + ".weight", role, layer, std::move(shape));
    if (has_bias) {
      add(name + ".bias", role, layer, {rows}, Start::kZero);
    }
  }

  // LayerNorm in Pythia's block, else RMSNorm.
  void add_norm(const std::string& name, Role role, std::int64_t layer) {
    add(name + ".weight", role, layer, {config_.d_model}, Start::kOne);
    if (config_.parallel_block) {
      add(name + ".bias", role, layer, {config_.d_model}, Start::kZero);
    }
  }

  void add_attention(const std::string& block, std::int64_t layer) {
    const std::int64_t head_dim = head_dim_of(config_);
    const std::int64_t width = config_.d_model;
    const std::int64_t query = config_.num_heads * head_dim;
    const std::int64_t key = num_kv_heads_of(config_) * head_dim;
    const std::string at = block + "attention.";
    const bool has_bias = config_.parallel_block;
    add_linear(at + "wq", Role::kQuery, layer, {query, width}, has_bias);
    add_linear(at + "wk", Role::kKey, layer, {key, width}, has_bias);
    add_linear(at + "wv", Role::kValue, layer, {key, width}, has_bias);
    add_linear(at + "wo", Role::kOut, layer, {width, query}, has_bias);
    if (config_.has_qk_norm) {
      add(at + "q_norm.weight", Role::kQueryNorm, layer, {head_dim}, Start::kOne);
      add(at + "k_norm.weight", Role::kKeyNorm, layer, {head_dim}, Start::kOne);
    }
  }

  void add_ffn(const std::string& block, std::int64_t layer) {
    const std::int64_t width = config_.d_model;
    const std::int64_t hidden =
        ffn_dims_.empty() ? config_.d_ff : ffn_dims_[static_cast<std::size_t>(layer)];
    const std::string at = block + "feed_forward.";
    const bool has_bias = config_.parallel_block && config_.has_linear_bias;
    add_linear(at + "w1", config_.parallel_block ? Role::kUp : Role::kGate, layer, {hidden, width},
               has_bias);
    if (!config_.parallel_block) {
      add_linear(at + "w3", Role::kUp, layer, {hidden, width}, has_bias);
    }
    add_linear(at + "w2", Role::kDown, layer, {width, hidden}, has_bias);
  }

  void add_block(std::int64_t layer) {
    const std::string block = "layers." + std::to_string(layer) + '.';
    add_attention(block, layer);
    add_ffn(block, layer);
    add_norm(block + "ffn_norm", Role::kFfnNorm, layer);
    if (!has_way_norms(config_, layer)) {
      add_norm(block + "attention_norm", Role::kAttentionNorm, layer);
      return;
    }
    add_norm(block + "attention_norms.0", Role::kAttentionNorm, layer);
    add_norm(block + "attention_norms.1", Role::kConnection, layer);
    add_norm(block + "attention_norms.2", Role::kConnection, layer);
  }

  void add_aggregate(std::int64_t layer) {
    const auto ways = static_cast<std::int64_t>(ways_of(config_, layer).size());
    const auto sources = static_cast<std::int64_t>(sources_of(config_, layer).size());
    const std::int64_t width = config_.d_model;
    const bool has_norms = config_.pre_post_norm != PrePostNorm::kNone;
    const std::string number = std::to_string(layer);
    add("dense_bs." + number, Role::kConnection, layer, {ways, sources},
        has_norms ? Start::kZero : Start::kNewest);
    if (has_norms) {
      add("post_norms." + number + ".weight", Role::kConnection, layer, {ways, width},
          Start::kPostNorm);
    }
    if (const std::int64_t hidden = hidden_size(config_, layer)) {
      const std::string generator = "dynamic_dense." + number + '.';
      if (has_norms) {
        add(generator + "norm.weight", Role::kConnection, layer, {width}, Start::kOne);
      }
      add(generator + "w1.weight", Role::kConnection, layer, {hidden, width}, Start::kGenerator);
      add(generator + "w2.weight", Role::kConnection, layer, {ways * sources, hidden},
          Start::kZero);
    }
  }

  void add_hyper_connection(std::int64_t index) {
    const std::string at = "hyper_connections." + std::to_string(index) + '.';
    const std::int64_t layer = index / 2;
    const std::int64_t streams = config_.num_streams;
    const std::int64_t width = config_.d_model;
    add(at + "norm.weight", Role::kConnection, layer, {width}, Start::kOne);
    add(at + "static_alpha", Role::kConnection, layer, {streams, streams + 1}, Start::kAlpha,
        index);
    add(at + "static_beta", Role::kConnection, layer, {streams}, Start::kOne);
    add(at + "dynamic_alpha_fn", Role::kConnection, layer, {width, streams + 1}, Start::kZero);
    add(at + "dynamic_beta_fn", Role::kConnection, layer, {width}, Start::kZero);
    add(at + "dynamic_alpha_scale", Role::kConnection, layer, {}, Start::kScale);
    add(at + "dynamic_beta_scale", Role::kConnection, layer, {}, Start::kScale);
  }

  void add_connections() {
    const std::int64_t num_layers = config_.num_layers;
    const bool is_hyper = config_.variant == Variant::kHyperConnections;
    for (std::int64_t index = 0; is_hyper && index < 2 * num_layers; ++index) {
      add_hyper_connection(index);
    }
    const std::int64_t heads = num_kv_heads_of(config_);
    for (std::int64_t l = 1; config_.variant == Variant::kLime && l < num_layers; ++l) {
      add("routers." + std::to_string(l), Role::kConnection, l, {heads, (l + 1) * heads},
          Start::kRouter);
    }
    const bool has_norms = config_.pre_post_norm != PrePostNorm::kNone;
    for (std::int64_t j = 0; is_dense(config_.variant) && has_norms && j <= num_layers; ++j) {
      add("source_norms." + std::to_string(j) + ".weight", Role::kConnection, j - 1,
          {config_.d_model}, Start::kOne);
    }
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      if (aggregate_after(config_, layer)) {
        add_aggregate(layer);
      }
    }
  }

  const MuddConfig& config_;
  std::vector<std::int64_t> ffn_dims_ = ffn_dims_of(config_);
  std::vector<Entry> entries_;
};

void set_pythia_block(const MuddConfig& config, nn::DecoderConfig& decoder) {
  decoder.norm = nn::Norm::kLayer;
  decoder.activation = nn::Activation::kGelu;
  decoder.has_gate = false;
  decoder.has_qkv_bias = true;
  decoder.has_out_bias = true;
  decoder.has_ffn_bias = config.has_linear_bias;
  decoder.is_parallel = config.has_parallel_residual;
}

}  // namespace

std::vector<Entry> entries_of(const MuddConfig& config) { return Table(config).entries(); }

std::vector<nn::ParameterSpec> parameter_specs(const MuddConfig& config) {
  check(config);
  std::vector<nn::ParameterSpec> specs;
  for (Entry& entry : entries_of(config)) {
    specs.push_back(std::move(entry.spec));
  }
  return specs;
}

nn::DecoderConfig decoder_config(const MuddConfig& config) {
  check(config);
  nn::DecoderConfig decoder;
  decoder.vocab_size = config.vocab_size;
  decoder.num_layers = config.num_layers;
  decoder.d_model = config.d_model;
  decoder.num_heads = config.num_heads;
  decoder.num_kv_heads = num_kv_heads_of(config);
  decoder.head_dim = head_dim_of(config);
  decoder.d_ff = config.d_ff;
  decoder.ffn_dims = ffn_dims_of(config);
  decoder.max_positions = config.max_positions;
  decoder.norm_eps = config.norm_eps;
  decoder.has_qk_norm = config.has_qk_norm;
  decoder.has_tied_head = config.has_tied_head;
  decoder.rope.base = config.rope_base;
  decoder.rope.rotary_dim = rotary_dim_of(config);
  decoder.rope.max_positions = config.max_positions;
  if (config.eos_token_id) {
    decoder.eos_token_ids = {*config.eos_token_id};
  }
  decoder.pad_token_id = config.pad_token_id;
  if (config.parallel_block) {
    set_pythia_block(config, decoder);
  }
  return decoder;
}

}  // namespace paperlab::mudd
