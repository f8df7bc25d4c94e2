// mudd_bench --out FILE [--machine NAME] [--repetitions N] [--threads N] [--isa NAME] [--only TEXT]
//            [--quick]
//
// What dense connections cost a whole model: training steps, prefill and decode of MUDDFormer and
// its sparse forms beside our own Transformer++ of the same widths, whose query, key and value
// matrices are one. The ratio is Transformer++'s time by the other's: below 1 is slower. Prints a
// table and writes it as JSON. Exit code 1 if the models do not start with the same loss.
//   --only TEXT   rows whose "table: case" contains TEXT
//   --quick       a small row

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randint.h>

#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/ratio_bench.h"
#include "bench/support/ratio_row.h"
#include "bench/support/roofs.h"
#include "bench/support/timing.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"
#include "paperlab/mudd/initial_values.h"
#include "paperlab/mudd/layout.h"
#include "paperlab/mudd/model.h"
#include "paperlab/train/loss.h"
#include "paperlab/train/optimizer.h"

namespace paperlab::bench {
namespace {

constexpr double kRowSeconds = 30.0;
constexpr double kMostOverhead = 1.15;  // of a training step

struct Shape {
  std::int64_t num_layers;
  std::int64_t d_model;
  std::int64_t num_heads;
  std::int64_t d_ff;
  std::int64_t length;
  std::int64_t batch_size;
};

struct Form {
  std::string name;
  mudd::Variant variant = mudd::Variant::kMudd;
  std::int64_t dilation = 1;
  std::int64_t period = 1;
  std::optional<std::int64_t> window{};
  double target = 0.0;  // of a training step
};

const std::vector<Form>& forms() {
  static const std::vector<Form> all = {
      {"MUDD", mudd::Variant::kMudd, 1, 1, {}, 1.0 / kMostOverhead},
      {"MUDD 2x2", mudd::Variant::kMudd, 2, 2},
      {"MUDD, window 2", mudd::Variant::kMudd, 1, 1, 2},
      {"one way", mudd::Variant::kDynamic}};
  return all;
}

mudd::MuddConfig config_of(const Shape& shape, const Form& form) {
  mudd::MuddConfig config;
  config.vocab_size = 256;
  config.num_layers = shape.num_layers;
  config.d_model = shape.d_model;
  config.num_heads = shape.num_heads;
  config.d_ff = shape.d_ff;
  config.variant = form.variant;
  config.dilation = form.dilation;
  config.period = form.period;
  config.window = form.window;
  config.ffn_round = 8;
  return config;
}

std::vector<at::Tensor> values_of(const mudd::MuddConfig& config) {
  std::vector<at::Tensor> values = mudd::initial_values(config, 1, at::kFloat);
  for (at::Tensor& value : values) {
    value.requires_grad_(true);
  }
  return values;
}

// q, k and v [heads size, D] as one matrix of rows [head][q, k, v][size].
at::Tensor fused(const std::vector<at::Tensor>& parts, const Shape& shape) {
  std::vector<at::Tensor> heads;
  for (const at::Tensor& part : parts) {
    heads.push_back(part.detach().view({shape.num_heads, 1, -1, shape.d_model}));
  }
  return at::cat(heads, 1).reshape({-1, shape.d_model}).requires_grad_(true);
}

// Transformer++ as the base variant has it, with one matrix for q, k and v.
std::shared_ptr<nn::Decoder> baseline(const Shape& shape) {
  const mudd::MuddConfig config = config_of(shape, {"", mudd::Variant::kBase});
  const std::vector<at::Tensor> values = values_of(config);
  std::vector<nn::ParameterSpec> specs;
  std::vector<at::Tensor> kept;
  std::vector<at::Tensor> parts;
  const std::vector<nn::ParameterSpec> all = mudd::parameter_specs(config);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const nn::Role role = all[i].role;
    if (role != nn::Role::kQuery && role != nn::Role::kKey && role != nn::Role::kValue) {
      specs.push_back(all[i]);
      kept.push_back(values[i]);
      continue;
    }
    parts.push_back(values[i]);
    if (parts.size() == 3) {
      kept.push_back(fused(std::exchange(parts, {}), shape));
      specs.push_back({"wqkv." + std::to_string(all[i].layer), nn::Role::kQueryKeyValue,
                       all[i].layer, false, kept.back().sizes().vec()});
    }
  }
  nn::DecoderConfig decoder = mudd::decoder_config(config);
  decoder.has_fused_qkv = true;
  return std::make_shared<nn::Decoder>(decoder, std::move(specs), std::move(kept));
}

// A model with its optimizer.
class Trainer {
 public:
  Trainer(std::shared_ptr<nn::Decoder> decoder, at::Tensor tokens)
      : decoder_(std::move(decoder)), tokens_(std::move(tokens)) {
    std::vector<train::Trained> trained;
    for (const nn::Decoder::Parameter& parameter : decoder_->parameters()) {
      trained.push_back({parameter.spec.name, *parameter.value, 0.0});
    }
    optimizer_ = train::make_optimizer(std::move(trained), {});
  }

  double step() {
    std::vector<at::Tensor> gradients;
    const at::Tensor loss = train::next_token_loss(*decoder_, tokens_);
    loss.backward();
    for (const nn::Decoder::Parameter& parameter : decoder_->parameters()) {
      gradients.push_back(parameter.value->grad());
    }
    train::clip_gradients(gradients, 1.0);
    optimizer_->step(1e-6);
    for (const nn::Decoder::Parameter& parameter : decoder_->parameters()) {
      parameter.value->mutable_grad().reset();
    }
    return loss.item<double>();
  }

 private:
  std::shared_ptr<nn::Decoder> decoder_;
  at::Tensor tokens_;
  std::unique_ptr<train::Optimizer> optimizer_;
};

// Floating-point operations of the matrix products of one pass over `num_tokens` tokens, those of
// attention aside.
double product_flops(const nn::Decoder& decoder, std::int64_t num_tokens) {
  double count = 0.0;
  for (const nn::Decoder::Parameter& parameter : decoder.parameters()) {
    const bool is_matrix = parameter.value->dim() == 2 && parameter.spec.role != nn::Role::kEmbed;
    count += is_matrix ? static_cast<double>(parameter.value->numel()) : 0.0;
  }
  return 2.0 * count * static_cast<double>(num_tokens);
}

// A cache that holds the first `length` tokens.
std::unique_ptr<nn::Cache> filled_cache(const nn::Decoder& decoder, const at::Tensor& tokens,
                                        std::int64_t length) {
  auto cache = decoder.new_cache(tokens.size(0), tokens.size(1));
  nn::ForwardOptions options;
  options.cache = cache.get();
  options.last_only = true;
  decoder.forward(tokens.narrow(1, 0, length), options);
  return cache;
}

// The tokens from `start` on, one by one.
void decode(const nn::Decoder& decoder, const at::Tensor& tokens, nn::Cache& cache,
            std::int64_t start) {
  cache.length = start;
  nn::ForwardOptions options;
  options.cache = &cache;
  for (std::int64_t t = start; t < tokens.size(1); ++t) {
    decoder.forward(tokens.narrow(1, t, 1), options);
  }
}

class Bench {
 public:
  explicit Bench(const RatioArguments& arguments)
      : arguments_(arguments), fma_roof_gflops_(fma_roof_float32_gflops(cpu_isa())) {}

  std::vector<RatioRow> run() {
    const Shape byte_model = {8, 256, 4, 688, 256, 16};
    const Shape tiny = {3, 32, 2, 64, 32, 2};
    for (const Form& form : forms()) {
      for (const int num_threads : arguments_.thread_counts()) {
        training_row(byte_model, form, num_threads, false);
        generation_row(byte_model, form, num_threads);
      }
    }
    training_row(tiny, forms().front(), 1, true);
    return std::move(rows_);
  }

 private:
  static std::string text_of(const Shape& shape, const Form& form, int num_threads) {
    return form.name + ", L " + std::to_string(shape.num_layers) + ", D " +
           std::to_string(shape.d_model) + ", " + threads_text(num_threads);
  }

  void training_row(const Shape& shape, const Form& form, int num_threads, bool is_small) {
    RatioRow row;
    row.table = "training step, float32";
    row.name = text_of(shape, form, num_threads);
    row.backend = "Transformer++, ours";
    row.num_threads = num_threads;
    row.target = is_small ? 0.0 : form.target;
    row.fma_roof_gflops = num_threads * fma_roof_gflops_;
    if (!arguments_.wants(row, is_small)) {
      return;
    }
    at::set_num_threads(num_threads);
    const at::Tensor tokens = at::randint(256, {shape.batch_size, shape.length + 1}, at::kLong);
    const auto decoder =
        mudd::make_decoder(config_of(shape, form), values_of(config_of(shape, form)));
    row.flops = 3.0 * product_flops(*decoder, shape.batch_size * shape.length);
    Trainer dense(decoder, tokens);
    Trainer plain(baseline(shape), tokens);
    const double losses[] = {dense.step(), plain.step()};
    // Widths that differ by layer are other functions; each is near the uniform guess at first.
    const double limit = form.variant == mudd::Variant::kMudd ? 0.5 : 1e-3;
    if (!(std::fabs(losses[0] - losses[1]) < limit)) {
      row.wrong = "losses " + std::to_string(losses[0]) + " and " + std::to_string(losses[1]);
    } else {
      time(row, [&] { dense.step(); }, [&] { plain.step(); });
    }
    add_row(row, rows_);
  }

  void generation_row(const Shape& shape, const Form& form, int num_threads) {
    const at::Tensor tokens = at::randint(256, {1, 1024}, at::kLong);
    const auto dense =
        mudd::make_decoder(config_of(shape, form), values_of(config_of(shape, form)));
    const auto plain = baseline(shape);
    RatioRow row;
    row.table = "prefill of 1024 tokens, float32";
    row.name = text_of(shape, form, num_threads);
    row.backend = "Transformer++, ours";
    row.num_threads = num_threads;
    row.target = 0.0;
    row.fma_roof_gflops = num_threads * fma_roof_gflops_;
    row.flops = product_flops(*dense, 1024);
    at::set_num_threads(num_threads);
    if (arguments_.wants(row, false)) {
      time(
          row, [&] { filled_cache(*dense, tokens, tokens.size(1)); },
          [&] { filled_cache(*plain, tokens, tokens.size(1)); });
      add_row(row, rows_);
    }
    row.table = "decode of 64 tokens after 960, float32";
    row.flops = product_flops(*dense, 64);
    if (arguments_.wants(row, false)) {
      constexpr std::int64_t kStart = 960;
      const auto dense_cache = filled_cache(*dense, tokens, kStart);
      const auto plain_cache = filled_cache(*plain, tokens, kStart);
      time(
          row, [&] { decode(*dense, tokens, *dense_cache, kStart); },
          [&] { decode(*plain, tokens, *plain_cache, kStart); });
      add_row(row, rows_);
    }
  }

  void time(RatioRow& row, const std::function<void()>& ours,
            const std::function<void()>& baseline_step) const {
    const auto timings = time_interleaved({{[] {}, ours}, {[] {}, baseline_step}},
                                          arguments_.num_repetitions, kRowSeconds);
    row.ours = timings[0];
    row.baseline = timings[1];
  }

  const RatioArguments& arguments_;
  double fma_roof_gflops_;
  std::vector<RatioRow> rows_;
};

std::vector<RatioRow> measure_all(const RatioArguments& arguments, Json& result) {
  result["note"] =
      "Ratio: the time of our own Transformer++ with one matrix for query, key and value, by that "
      "of the model with dense connections; below 1 is slower.";
  return Bench(arguments).run();
}

}  // namespace
}  // namespace paperlab::bench

int main(int argc, char** argv) {
  return paperlab::bench::run_ratio_bench(argc, argv, paperlab::bench::measure_all);
}
