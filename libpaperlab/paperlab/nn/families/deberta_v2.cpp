// DeBERTa-v2 and -v3. Source: He et al., arXiv:2006.03654, arXiv:2111.09543.
#include <algorithm>
#include <cctype>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/nn/families/encoder_family_internal.h"

namespace paperlab::nn {
namespace {

using C = EncoderConfig;
using rows::always;
using rows::has_types;
using rows::is_labels;
using rows::is_sequence;
using rows::is_untied;
using rows::is_vocabulary;

bool has_positions(const C& c) { return c.num_positions > 0; }
bool has_relative(const C& c) { return c.relative.is_used; }
bool has_relative_norm(const C& c) { return c.relative.has_norm; }
bool has_position_key(const C& c) {
  return has_relative(c) && !c.relative.has_shared_projections &&
         c.relative.has_content_to_position;
}
bool has_position_query(const C& c) {
  return has_relative(c) && !c.relative.has_shared_projections &&
         c.relative.has_position_to_content;
}
bool has_convolution(const C& c) { return c.convolution.kernel_size > 0; }
bool is_legacy(const C& c) { return is_vocabulary(c) && c.has_legacy_head; }
bool is_legacy_tied(const C& c) { return is_legacy(c) && has_tied_vocabulary(c); }
bool is_legacy_untied(const C& c) { return is_legacy(c) && is_untied(c); }
bool is_new(const C& c) { return is_vocabulary(c) && !c.has_legacy_head; }

constexpr EncoderRow kRows[] = {
    {Role::kEmbed, "deberta.embeddings.word_embeddings", "VD"},
    {Role::kPositionEmbed, "deberta.embeddings.position_embeddings", "PD", has_positions},
    {Role::kTypeEmbed, "deberta.embeddings.token_type_embeddings", "TD", has_types},
    {Role::kEmbedNorm, "deberta.embeddings.LayerNorm", "D", nullptr, always},
    {Role::kQuery, "deberta.encoder.layer.#.attention.self.query_proj", "DD", nullptr, always},
    {Role::kKey, "deberta.encoder.layer.#.attention.self.key_proj", "DD", nullptr, always},
    {Role::kValue, "deberta.encoder.layer.#.attention.self.value_proj", "DD", nullptr, always},
    {Role::kPositionKey, "deberta.encoder.layer.#.attention.self.pos_key_proj", "DD",
     has_position_key, always},
    {Role::kPositionQuery, "deberta.encoder.layer.#.attention.self.pos_query_proj", "DD",
     has_position_query, always},
    {Role::kOut, "deberta.encoder.layer.#.attention.output.dense", "DD", nullptr, always},
    {Role::kAttentionNorm, "deberta.encoder.layer.#.attention.output.LayerNorm", "D", nullptr,
     always},
    {Role::kUp, "deberta.encoder.layer.#.intermediate.dense", "FD", nullptr, always},
    {Role::kDown, "deberta.encoder.layer.#.output.dense", "DF", nullptr, always},
    {Role::kFfnNorm, "deberta.encoder.layer.#.output.LayerNorm", "D", nullptr, always},
    {Role::kRelativeEmbed, "deberta.encoder.rel_embeddings", "RD", has_relative},
    {Role::kRelativeNorm, "deberta.encoder.LayerNorm", "D", has_relative_norm, always},
    {Role::kConv, "deberta.encoder.conv.conv", "DGK", has_convolution, always},
    {Role::kConvNorm, "deberta.encoder.conv.LayerNorm", "D", has_convolution, always},
    {Role::kHead, "cls.predictions.bias", "V", is_legacy_tied, nullptr, RowForm::kBias},
    {Role::kUnused, "cls.predictions.bias", "V", is_legacy_untied, nullptr, RowForm::kBias},
    {Role::kHeadDense, "cls.predictions.transform.dense", "DD", is_legacy, always},
    {Role::kHeadNorm, "cls.predictions.transform.LayerNorm", "D", is_legacy, always},
    {Role::kHead, "cls.predictions.decoder", "VD", is_legacy_untied, always},
    {Role::kHead, "lm_predictions.lm_head.bias", "V", is_new, nullptr, RowForm::kBias},
    {Role::kHeadDense, "lm_predictions.lm_head.dense", "DD", is_new, always},
    {Role::kHeadNorm, "lm_predictions.lm_head.LayerNorm", "D", is_new, always},
    {Role::kPooler, "pooler.dense", "DD", is_sequence, always},
    {Role::kHead, "classifier", "LD", is_labels, always},
};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// The words between bars: "c2p|p2c".
std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : lower(text) + '|') {
    if (c == '|') {
      words.push_back(std::exchange(word, {}));
    } else if (c != ' ') {
      word += c;
    }
  }
  return words;
}

std::vector<std::string> read_words(Settings& settings, const char* key) {
  const Json* value = settings.find_value(key);
  if (value == nullptr) {
    return {};
  }
  if (value->is_string()) {
    return words_of(value->get<std::string>());
  }
  std::vector<std::string> words;
  for (const Json& word : value->is_array() ? *value : Json::array({Json()})) {
    words.push_back(word.is_string() ? word.get<std::string>() : "?");
  }
  return words;
}

// relative_attention, pos_att_type, share_att_key, norm_rel_ebd.
void read_relative_forms(Settings& settings, EncoderConfig& config) {
  RelativeConfig& relative = config.relative;
  relative.is_used = settings.flag("relative_attention", false);
  for (const std::string& word : read_words(settings, "pos_att_type")) {
    if (word.empty()) {  // "", and what transformers writes for it: [""]
      continue;
    }
    if (word != "c2p" && word != "p2c") {
      settings.refuse("pos_att_type", "c2p, p2c, both or null");
    }
    bool& is_there =
        word == "c2p" ? relative.has_content_to_position : relative.has_position_to_content;
    is_there = true;
  }
  config.attention_terms = 1 + static_cast<std::int64_t>(relative.has_content_to_position) +
                           static_cast<std::int64_t>(relative.has_position_to_content);
  relative.has_shared_projections = settings.flag("share_att_key", false);
  for (const std::string& word : read_words(settings, "norm_rel_ebd")) {
    if (word != "layer_norm" && word != "none") {
      settings.refuse("norm_rel_ebd", "layer_norm or none");
    }
    relative.has_norm = relative.has_norm || word == "layer_norm";
  }
}

// -1 (or 0) stands for the default.
std::int64_t read_optional_count(Settings& settings, const char* key, std::int64_t absent) {
  const Json* value = settings.find(key);
  const std::optional<std::int64_t> count =
      value == nullptr ? std::optional<std::int64_t>(-1) : integer(*value);
  if (!count || *count > kMaxSize) {
    settings.refuse(key, "an integer, at most " + std::to_string(kMaxSize));
  }
  return *count > 0 ? *count : absent;
}

void read_distances(Settings& settings, std::int64_t num_positions, RelativeConfig& relative) {
  relative.max_distance = read_optional_count(settings, "max_relative_positions", num_positions);
  relative.num_buckets = read_optional_count(settings, "position_buckets", 0);
  relative.span = relative.num_buckets > 0 ? relative.num_buckets : relative.max_distance;
  const std::int64_t middle = relative.num_buckets / 2;
  if (relative.is_used && relative.num_buckets > 0 &&
      (middle < 1 || relative.max_distance - 1 <= middle)) {
    settings.refuse("position_buckets",
                    "at least 2, and half of it less than the largest distance " +
                        std::to_string(relative.max_distance) + " - 1");
  }
}

void read_convolution(Settings& settings, EncoderConfig& config) {
  TokenConvolution& convolution = config.convolution;
  convolution.kernel_size = read_count(settings, "conv_kernel_size", 0);
  convolution.groups = settings.size("conv_groups", 1);
  convolution.activation = read_hf_activation(settings, "conv_act", "tanh");
  if (convolution.kernel_size > 0 && convolution.kernel_size % 2 == 0) {
    settings.refuse("conv_kernel_size", "odd, or 0");
  }
  if (config.block.d_model % convolution.groups != 0) {
    settings.refuse("conv_groups",
                    "a divisor of hidden_size (" + std::to_string(config.block.d_model) + ")");
  }
}

void read(Settings& settings, C& config) {
  const std::int64_t positions = read_positions(settings);
  const bool has_positions = settings.flag("position_biased_input", true);
  config.num_positions = has_positions ? positions : 0;
  config.block.max_positions = has_positions ? positions : std::int64_t{kMaxSize};
  config.block.pad_token_id = read_padding(settings, 0, config.block.vocab_size);
  config.num_token_types = read_count(settings, "type_vocab_size", 0);
  config.hides_states = true;
  config.has_pooler = config.output == EncoderOutput::kSequence;
  config.pooler_width = config.block.d_model;
  config.pooler_activation = read_hf_activation(settings, "pooler_hidden_act", "gelu");
  config.head_activation = config.block.activation;
  config.has_legacy_head = settings.flag("legacy", true);
  config.block.has_tied_head = config.block.has_tied_head || !config.has_legacy_head;
  read_relative_forms(settings, config);
  read_distances(settings, positions, config.relative);
  read_convolution(settings, config);
  settings.only("embedding_size", config.block.d_model);
  settings.only("pooler_hidden_size", config.block.d_model);
  settings.only("attention_head_size", config.block.head_dim);
  settings.allow("pooler_dropout cls_dropout");
}

}  // namespace

const EncoderType kDebertaV2Type = {"deberta-v2", "DebertaV2", EncoderFamily::kDebertaV2,
                                    kRows,        "deberta.",  read,
                                    {},           128100,      1536,
                                    24,           24,          6144,
                                    1e-7};

}  // namespace paperlab::nn
