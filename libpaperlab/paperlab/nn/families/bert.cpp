// BERT. Source: Devlin et al., arXiv:1810.04805.
#include "paperlab/nn/families/encoder_family_internal.h"

namespace paperlab::nn {
namespace {

using C = EncoderConfig;
using rows::always;
using rows::has_pooler;
using rows::has_types;
using rows::is_labels;
using rows::is_untied;
using rows::is_vocabulary;

constexpr EncoderRow kRows[] = {
    {Role::kEmbed, "bert.embeddings.word_embeddings", "VD"},
    {Role::kPositionEmbed, "bert.embeddings.position_embeddings", "PD"},
    {Role::kTypeEmbed, "bert.embeddings.token_type_embeddings", "TD", has_types},
    {Role::kEmbedNorm, "bert.embeddings.LayerNorm", "D", nullptr, always},
    {Role::kQuery, "bert.encoder.layer.#.attention.self.query", "DD", nullptr, always},
    {Role::kKey, "bert.encoder.layer.#.attention.self.key", "DD", nullptr, always},
    {Role::kValue, "bert.encoder.layer.#.attention.self.value", "DD", nullptr, always},
    {Role::kOut, "bert.encoder.layer.#.attention.output.dense", "DD", nullptr, always},
    {Role::kAttentionNorm, "bert.encoder.layer.#.attention.output.LayerNorm", "D", nullptr, always},
    {Role::kUp, "bert.encoder.layer.#.intermediate.dense", "FD", nullptr, always},
    {Role::kDown, "bert.encoder.layer.#.output.dense", "DF", nullptr, always},
    {Role::kFfnNorm, "bert.encoder.layer.#.output.LayerNorm", "D", nullptr, always},
    {Role::kPooler, "bert.pooler.dense", "DD", has_pooler, always},
    {Role::kHead, "cls.predictions.bias", "V", has_tied_vocabulary, nullptr, RowForm::kBias},
    {Role::kUnused, "cls.predictions.bias", "V", is_untied, nullptr, RowForm::kBias},
    {Role::kHeadDense, "cls.predictions.transform.dense", "DD", is_vocabulary, always},
    {Role::kHeadNorm, "cls.predictions.transform.LayerNorm", "D", is_vocabulary, always},
    {Role::kHead, "cls.predictions.decoder", "VD", is_untied, always},
    {Role::kHead, "classifier", "LD", is_labels, always},
};

void read(Settings& settings, C& config) {
  read_bert_form(settings, 0, config);
  settings.allow(
      "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
      "pooler_size_per_head pooler_type");
}

}  // namespace

void read_bert_form(Settings& settings, std::int64_t padding, EncoderConfig& config) {
  config.num_positions = config.block.max_positions = read_positions(settings);
  config.block.pad_token_id = read_padding(settings, padding, config.block.vocab_size);
  config.num_token_types = settings.size("type_vocab_size", 2);
  settings.only("position_embedding_type", "absolute");
  config.has_pooler =
      config.output == EncoderOutput::kSequence || config.output == EncoderOutput::kStates;
  config.pooler_width = config.block.d_model;
  config.head_activation = config.block.activation;
}

const EncoderType kBertType = {
    "bert", "Bert", EncoderFamily::kBert, kRows, "bert.", read, {}, 30522, 768, 12, 12,
    3072,   1e-12};

}  // namespace paperlab::nn
