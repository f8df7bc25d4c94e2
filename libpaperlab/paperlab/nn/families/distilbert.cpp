// DistilBERT. Source: Sanh et al., arXiv:1910.01108.
#include "paperlab/nn/families/encoder_family_internal.h"

namespace paperlab::nn {
namespace {

using C = EncoderConfig;
using rows::always;
using rows::is_labels;
using rows::is_sequence;
using rows::is_untied;
using rows::is_vocabulary;

constexpr EncoderRow kRows[] = {
    {Role::kEmbed, "distilbert.embeddings.word_embeddings", "VD"},
    {Role::kPositionEmbed, "distilbert.embeddings.position_embeddings", "PD"},
    {Role::kEmbedNorm, "distilbert.embeddings.LayerNorm", "D", nullptr, always},
    {Role::kQuery, "distilbert.transformer.layer.#.attention.q_lin", "DD", nullptr, always},
    {Role::kKey, "distilbert.transformer.layer.#.attention.k_lin", "DD", nullptr, always},
    {Role::kValue, "distilbert.transformer.layer.#.attention.v_lin", "DD", nullptr, always},
    {Role::kOut, "distilbert.transformer.layer.#.attention.out_lin", "DD", nullptr, always},
    {Role::kAttentionNorm, "distilbert.transformer.layer.#.sa_layer_norm", "D", nullptr, always},
    {Role::kUp, "distilbert.transformer.layer.#.ffn.lin1", "FD", nullptr, always},
    {Role::kDown, "distilbert.transformer.layer.#.ffn.lin2", "DF", nullptr, always},
    {Role::kFfnNorm, "distilbert.transformer.layer.#.output_layer_norm", "D", nullptr, always},
    {Role::kHeadDense, "vocab_transform", "DD", is_vocabulary, always},
    {Role::kHeadNorm, "vocab_layer_norm", "D", is_vocabulary, always},
    {Role::kHead, "vocab_projector.bias", "V", has_tied_vocabulary, nullptr, RowForm::kBias},
    {Role::kHead, "vocab_projector", "VD", is_untied, always},
    {Role::kPooler, "pre_classifier", "DD", is_sequence, always},
    {Role::kHead, "classifier", "LD", is_labels, always},
};

void read(Settings& settings, C& config) {
  config.num_positions = config.block.max_positions = read_positions(settings);
  config.block.pad_token_id = read_padding(settings, 0, config.block.vocab_size);
  config.has_pooler = config.output == EncoderOutput::kSequence;
  config.pooler_width = config.block.d_model;
  config.pooler_activation = Activation::kRelu;
  config.head_activation = config.block.activation;
  // Its sinusoids are initial values.
  settings.allow(
      "sinusoidal_pos_embds dropout qa_dropout seq_classif_dropout tie_weights_ "
      "output_past hidden_act");
}

}  // namespace

const EncoderType kDistilBertType = {
    "distilbert",
    "DistilBert",
    EncoderFamily::kDistilBert,
    kRows,
    "distilbert.",
    read,
    {"dim", "n_layers", "n_heads", "hidden_dim", "activation", nullptr},
    30522,
    768,
    6,
    12,
    3072,
    1e-12};

}  // namespace paperlab::nn
