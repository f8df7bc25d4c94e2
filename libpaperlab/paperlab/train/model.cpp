#include "paperlab/train/model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/isfinite.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <array>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/io/checkpoint.h"
#include "paperlab/nn/encoder_load.h"
#include "paperlab/nn/encoder_parameters.h"
#include "paperlab/nn/hf_config.h"
#include "paperlab/train/loss.h"

namespace paperlab::train {
namespace {

constexpr char kFunction[] = "fit";

std::string shape_of(const at::Tensor& x) { return x.defined() ? c10::str(x.sizes()) : "nothing"; }

void check_is_int64(const at::Tensor& x, const std::string& required) {
  require<DTypeError>(x.scalar_type() == at::kLong, kFunction, required + " in int64",
                      at::toString(x.scalar_type()));
}

// Names the least or the largest that is not in 0..count-1.
void check_range(const at::Tensor& x, std::int64_t count, const std::string& required) {
  const auto [low, high] = at::aminmax(x.cpu());
  const auto id = (low.item<std::int64_t>() < 0 ? low : high).item<std::int64_t>();
  require<ValueError>(id >= 0 && id < count, kFunction,
                      required + " (" + std::to_string(count - 1) + ")", std::to_string(id));
}

// Of config.json: what says nothing about the numbers, or is checked by the parameters.
constexpr std::array<const char*, 6> kOtherSettings = {
    "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", "architectures"};

void check_same_settings(const std::string& path, const Json& saved, const Json& wanted) {
  for (const auto& [key, value] : saved.items()) {
    const bool counts =
        std::find(kOtherSettings.begin(), kOtherSettings.end(), key) == kOtherSettings.end();
    require<ValueError>(!counts || !wanted.contains(key) || wanted[key] == value, path.c_str(),
                        "a model with " + key + " " + value.dump(),
                        wanted.value(key, Json()).dump());
  }
}

// Names in files that are parameters once more.
nn::MapOptions options_of(const nn::FileNames& file_names) {
  nn::MapOptions options;
  for (const auto& [parameter, names] : file_names) {
    for (const std::string& name : names) {
      options.copies.emplace(name, parameter);
    }
  }
  return options;
}

// While this lives, a hook sees the inputs of a model's linear layers.
template <class M>
class Watched {
 public:
  Watched(M& model, const nn::LinearHook& hook) : model_(model), id_(model.add_linear_hook(hook)) {}
  ~Watched() { model_.remove_linear_hook(id_); }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

 private:
  M& model_;
  std::int64_t id_;
};

class DecoderModel final : public Model {
 public:
  explicit DecoderModel(nn::HfDecoder& model) : model_(model) {}

  const std::vector<nn::NamedParameter>& parameters() const override {
    return model_.decoder->parameters();
  }
  const Json& settings() const override { return model_.directory.config; }

  // The last tokens of the rows are never read by the decoder, which would check them.
  void check(const Batch& batch, const std::string& source) const override {
    const at::Tensor& rows = batch.rows;
    const bool is_shaped = rows.defined() && rows.dim() == 2 && rows.size(0) >= 1;
    require<ValueError>(is_shaped && rows.size(1) >= 2, kFunction,
                        source + "return [B, T + 1] with B, T >= 1", shape_of(rows));
    const bool is_alone = !batch.labels.defined() && !batch.attention_mask.defined() &&
                          !batch.token_type_ids.defined();
    require<ValueError>(is_alone, kFunction, source + "return tokens alone for a decoder",
                        "labels, a mask or types too");
    check_is_int64(rows, source + "return tokens");
    const nn::DecoderConfig& config = model_.decoder->config();
    require<ValueError>(rows.size(1) - 1 <= config.max_positions, kFunction,
                        source + "return at most max_position_embeddings + 1 (" +
                            std::to_string(config.max_positions + 1) + ") tokens a row",
                        std::to_string(rows.size(1)));
    check_range(rows, config.vocab_size, source + "return tokens in 0..vocab_size - 1");
  }

  at::Tensor loss(const Batch& batch) override {
    return next_token_loss(*model_.decoder, batch.rows);
  }

  void watch(const Batch& batch, const nn::LinearHook& hook) override {
    const at::NoGradGuard no_grad;
    const Watched watched(*model_.decoder, hook);
    model_.decoder->forward(batch.rows.narrow(1, 0, batch.rows.size(1) - 1));
  }

  void save(const std::string& directory) const override { nn::save(model_, directory); }

 protected:
  nn::MapOptions map_options() const override { return options_of(model_.file_names); }

 private:
  nn::HfDecoder& model_;
};

const char* form_of(nn::EncoderOutput output) {
  switch (output) {
    case nn::EncoderOutput::kVocabulary:
      return "logits of tokens of the vocabulary";
    case nn::EncoderOutput::kTokens:
      return "labels of tokens";
    case nn::EncoderOutput::kSequence:
      return "labels of sequences";
    case nn::EncoderOutput::kStates:
      break;
  }
  return "no head";
}

// Of transformers' losses the one of cross-entropy with one label a sequence; the others, of
// numbers and of several labels, are not computed here.
void check_problem_type(const Json& settings) {
  const Json type = settings.value("problem_type", Json());
  require<ValueError>(type.is_null() || type == "single_label_classification", kFunction,
                      "problem_type must be single_label_classification or absent", type.dump());
}

class EncoderModel final : public Model {
 public:
  explicit EncoderModel(nn::HfEncoder& model) : model_(model) {
    require<ValueError>(config().output == nn::EncoderOutput::kSequence, kFunction,
                        "model must classify sequences or pictures (...ForSequenceClassification, "
                        "...ForImageClassification)",
                        std::string("an encoder with ") + form_of(config().output));
    check_problem_type(model_.directory.config);
    require<ValueError>(config().num_labels >= 2, kFunction, "model must have num_labels >= 2",
                        std::to_string(config().num_labels));
  }

  const std::vector<nn::NamedParameter>& parameters() const override {
    return model_.encoder->parameters().list();
  }
  const Json& settings() const override { return model_.directory.config; }

  void check(const Batch& batch, const std::string& source) const override {
    const at::Tensor& rows = batch.rows;
    if (nn::reads_pixels(config())) {
      check_pixels(batch, source);
    } else {
      check_tokens(batch, source);
    }
    const at::Tensor& labels = batch.labels;
    const std::string shape = "[" + std::to_string(rows.size(0)) + "]";
    require<ValueError>(labels.defined() && labels.dim() == 1 && labels.size(0) == rows.size(0),
                        kFunction, source + "return labels " + shape + ", one a row",
                        shape_of(labels));
    check_is_int64(labels, source + "return labels");
    check_range(labels, config().num_labels, source + "return labels in 0..num_labels - 1");
  }

  at::Tensor loss(const Batch& batch) override {
    const at::Tensor logits = model_.encoder->forward(input_of(batch));
    const at::ScalarType type = logits.scalar_type();
    const bool is_half = type == at::kBFloat16 || type == at::kHalf;
    return at::cross_entropy_loss(is_half ? logits.to(at::kFloat) : logits, batch.labels);
  }

  void watch(const Batch& batch, const nn::LinearHook& hook) override {
    const at::NoGradGuard no_grad;
    const Watched watched(*model_.encoder, hook);
    model_.encoder->forward(input_of(batch));
  }

  void save(const std::string& directory) const override { nn::save(model_, directory); }

 protected:
  nn::MapOptions map_options() const override {
    nn::MapOptions options = options_of(model_.file_names);
    options.is_buffer = [this](std::string_view name) {
      return nn::is_encoder_buffer(name) || nn::is_of_other_head(config(), name);
    };
    return options;
  }

 private:
  const nn::EncoderConfig& config() const { return model_.encoder->config(); }

  nn::EncoderInput input_of(const Batch& batch) const {
    nn::EncoderInput input;
    (nn::reads_pixels(config()) ? input.pixels : input.tokens) = batch.rows;
    input.attention_mask = batch.attention_mask;
    input.token_type_ids = batch.token_type_ids;
    return input;
  }

  void check_pixels(const Batch& batch, const std::string& source) const {
    const at::Tensor& rows = batch.rows;
    const nn::PatchConfig& form = config().patches;
    const bool is_shaped = rows.defined() && rows.dim() == 4 && rows.size(0) >= 1 &&
                           rows.size(1) == form.num_channels && rows.size(2) == form.image_height &&
                           rows.size(3) == form.image_width;
    require<ValueError>(is_shaped, kFunction,
                        c10::str(source, "return pixels [B, ", form.num_channels, ", ",
                                 form.image_height, ", ", form.image_width, "] with B >= 1"),
                        shape_of(rows));
    require<DTypeError>(rows.is_floating_point(), kFunction, source + "return floating pixels",
                        at::toString(rows.scalar_type()));
    require<ValueError>(at::isfinite(rows).all().item<bool>(), kFunction,
                        source + "return finite pixels", "others");
    require<ValueError>(!batch.attention_mask.defined(), kFunction,
                        source + "return no mask with pixels", "one");
    require<ValueError>(!batch.token_type_ids.defined(), kFunction,
                        source + "return no token_type_ids with pixels", "some");
  }

  void check_tokens(const Batch& batch, const std::string& source) const {
    const at::Tensor& rows = batch.rows;
    const bool is_shaped = rows.defined() && rows.dim() == 2 && rows.size(0) >= 1;
    require<ValueError>(is_shaped && rows.size(1) >= 1, kFunction,
                        source + "return [B, T] with B, T >= 1", shape_of(rows));
    check_is_int64(rows, source + "return tokens");
    check_range(rows, config().block.vocab_size, source + "return tokens in 0..vocab_size - 1");
    const std::int64_t most = config().block.max_positions;
    const std::int64_t length = num_positions(rows);
    require<ValueError>(length <= most, kFunction,
                        source + "return at most " + std::to_string(most) +
                            " tokens a row (max_position_embeddings)",
                        std::to_string(length));
    const at::Tensor& mask = batch.attention_mask;
    require<ValueError>(!mask.defined() || mask.sizes() == rows.sizes(), kFunction,
                        source + "return a mask of the shape of tokens " + shape_of(rows),
                        shape_of(mask));
    if (batch.token_type_ids.defined()) {
      check_token_types(batch, source);
    }
  }

  void check_token_types(const Batch& batch, const std::string& source) const {
    const at::Tensor& types = batch.token_type_ids;
    require<ValueError>(
        types.sizes() == batch.rows.sizes(), kFunction,
        source + "return token_type_ids of the shape of tokens " + shape_of(batch.rows),
        shape_of(types));
    check_is_int64(types, source + "return token_type_ids");
    if (config().num_token_types > 0) {  // else the model does not read them
      check_range(types, config().num_token_types,
                  source + "return token_type_ids in 0..type_vocab_size - 1");
    }
  }

  // Of the longest row, as the model counts them.
  std::int64_t num_positions(const at::Tensor& tokens) const {
    if (!config().counts_from_padding) {
      return tokens.size(1);
    }
    return tokens.ne(config().block.pad_token_id.value_or(0)).sum(1).max().item<std::int64_t>();
  }

  nn::HfEncoder& model_;
};

}  // namespace

nn::NamedTensors Model::read(const std::string& directory) const {
  check_same_settings(directory, nn::read_hf_files(directory).config, settings());
  std::vector<nn::ParameterSpec> specs;
  for (const nn::NamedParameter& parameter : parameters()) {
    specs.push_back(parameter.spec);
  }
  const io::Checkpoint checkpoint(directory);
  nn::NamedTensors values = nn::map_weights(checkpoint, specs, map_options()).tensors;
  const at::ScalarType type = parameters().front().value->scalar_type();
  require<ValueError>(values.front().second.scalar_type() == type, directory.c_str(),
                      c10::str("a model in ", values.front().second.scalar_type()),
                      at::toString(type));
  return values;
}

std::unique_ptr<Model> model_of(nn::HfDecoder& decoder) {
  return std::make_unique<DecoderModel>(decoder);
}

std::unique_ptr<Model> model_of(nn::HfEncoder& encoder) {
  return std::make_unique<EncoderModel>(encoder);
}

}  // namespace paperlab::train
