// RoBERTa. Source: Liu et al., arXiv:1907.11692.
#include "paperlab/nn/families/encoder_family_internal.h"

namespace paperlab::nn {
namespace {

using C = EncoderConfig;
using rows::always;
using rows::has_state_pooler;
using rows::has_types;
using rows::is_sequence;
using rows::is_tokens;
using rows::is_untied;
using rows::is_vocabulary;

constexpr EncoderRow kRows[] = {
    {Role::kEmbed, "roberta.embeddings.word_embeddings", "VD"},
    {Role::kTypeEmbed, "roberta.embeddings.token_type_embeddings", "TD", has_types},
    {Role::kEmbedNorm, "roberta.embeddings.LayerNorm", "D", nullptr, always},
    {Role::kPositionEmbed, "roberta.embeddings.position_embeddings", "PD"},
    {Role::kQuery, "roberta.encoder.layer.#.attention.self.query", "DD", nullptr, always},
    {Role::kKey, "roberta.encoder.layer.#.attention.self.key", "DD", nullptr, always},
    {Role::kValue, "roberta.encoder.layer.#.attention.self.value", "DD", nullptr, always},
    {Role::kOut, "roberta.encoder.layer.#.attention.output.dense", "DD", nullptr, always},
    {Role::kAttentionNorm, "roberta.encoder.layer.#.attention.output.LayerNorm", "D", nullptr,
     always},
    {Role::kUp, "roberta.encoder.layer.#.intermediate.dense", "FD", nullptr, always},
    {Role::kDown, "roberta.encoder.layer.#.output.dense", "DF", nullptr, always},
    {Role::kFfnNorm, "roberta.encoder.layer.#.output.LayerNorm", "D", nullptr, always},
    {Role::kPooler, "roberta.pooler.dense", "DD", has_state_pooler, always},
    {Role::kHead, "lm_head.bias", "V", has_tied_vocabulary, nullptr, RowForm::kBias},
    {Role::kUnused, "lm_head.bias", "V", is_untied, nullptr, RowForm::kBias},
    {Role::kHeadDense, "lm_head.dense", "DD", is_vocabulary, always},
    {Role::kHeadNorm, "lm_head.layer_norm", "D", is_vocabulary, always},
    {Role::kHead, "lm_head.decoder", "VD", is_untied, always},
    {Role::kPooler, "classifier.dense", "DD", is_sequence, always},
    {Role::kHead, "classifier.out_proj", "LD", is_sequence, always},
    {Role::kHead, "classifier", "LD", is_tokens, always},
};

void read(Settings& settings, C& config) {
  read_bert_form(settings, 1, config);
  if (!config.block.pad_token_id) {
    settings.refuse("pad_token_id", "a token id: positions are counted from it on");
  }
  config.counts_from_padding = true;
  config.block.max_positions = config.num_positions - *config.block.pad_token_id - 1;
  if (config.block.max_positions < 1) {
    settings.refuse("max_position_embeddings", "more than pad_token_id + 1");
  }
  config.head_activation = Activation::kGelu;  // whatever the blocks have
}

}  // namespace

const EncoderType kRobertaType = {
    "roberta", "Roberta", EncoderFamily::kRoberta, kRows, "roberta.", read, {}, 50265, 768, 12, 12,
    3072,      1e-12};

}  // namespace paperlab::nn
