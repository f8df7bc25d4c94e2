#include "experiments/mudd/vision.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "experiments/mudd/jobs.h"
#include "experiments/mudd/training.h"
#include "paperlab/core/error.h"
#include "paperlab/data/images.h"
#include "paperlab/data/permutation.h"
#include "paperlab/mudd/complexity.h"
#include "paperlab/mudd/vit.h"
#include "paperlab/train/fit.h"

namespace paperlab::experiments::mudd {

namespace lib = paperlab::mudd;

namespace {

constexpr char kPlain[] = "vit";
constexpr char kDense[] = "muddvit";

// All pictures of a folder, a fifth of them for validation: the same for all runs.
class Pictures {
 public:
  Pictures(const std::string& folder, double half_pixel, at::ScalarType dtype) {
    const data::ImageFolder images(folder);
    for (const std::string& split : images.splits()) {
      append(*images.open(split));
    }
    num_validation_ = size() / 5;
    require<ValueError>(num_validation_ >= 1, "mudd", "at least 5 pictures",
                        std::to_string(size()));
    const int brightest = *std::max_element(all_pixels_.begin(), all_pixels_.end());
    require<ValueError>(
        brightest <= 2.0 * half_pixel, "mudd",
        "pixels of at most twice vit_half_pixel (" + std::to_string(2.0 * half_pixel) + ")",
        std::to_string(brightest));
    const std::int64_t area = height_ * width_;
    pixels_ = at::empty({size(), 1, height_, width_}, at::kDouble);
    labels_ = at::empty({size()}, at::kLong);
    auto* pixels = pixels_.mutable_data_ptr<double>();
    auto* labels = labels_.mutable_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < size(); ++i) {
      const auto from = static_cast<std::int64_t>(
          data::permuted(0, 0, static_cast<std::uint64_t>(size()), static_cast<std::uint64_t>(i)));
      labels[i] = all_labels_[static_cast<std::size_t>(from)];
      for (std::int64_t j = 0; j < area; ++j) {
        const std::uint8_t value = all_pixels_[static_cast<std::size_t>(from * area + j)];
        pixels[i * area + j] = static_cast<double>(value) / half_pixel - 1.0;
      }
    }
    pixels_ = pixels_.to(dtype);
  }

  std::int64_t num_training() const { return size() - num_validation_; }
  std::int64_t num_labels() const {
    return 1 + *std::max_element(all_labels_.begin(), all_labels_.end());
  }
  std::int64_t height() const { return height_; }
  std::int64_t width() const { return width_; }

  train::Batch training(const at::Tensor& index) const {
    return {pixels_.index_select(0, index), labels_.index_select(0, index)};
  }
  train::Batch validation() const {
    return {pixels_.narrow(0, num_training(), num_validation_),
            labels_.narrow(0, num_training(), num_validation_)};
  }

 private:
  std::int64_t size() const { return static_cast<std::int64_t>(all_labels_.size()); }

  void append(const data::ImageFile& file) {
    require<ValueError>(all_labels_.empty() || (file.height() == height_ && file.width() == width_),
                        "mudd", "pictures of one size", "others in " + file.path());
    height_ = file.height();
    width_ = file.width();
    all_pixels_.insert(all_pixels_.end(), file.pixels().begin(), file.pixels().end());
    all_labels_.insert(all_labels_.end(), file.labels().begin(), file.labels().end());
  }

  std::vector<std::uint8_t> all_pixels_;
  std::vector<std::uint8_t> all_labels_;
  std::int64_t height_ = 0;
  std::int64_t width_ = 0;
  std::int64_t num_validation_ = 0;
  at::Tensor pixels_;  // [N, 1, H, W], those of validation last
  at::Tensor labels_;  // [N]
};

std::int64_t steps_per_epoch(const Config& config, const Pictures& pictures) {
  return std::max<std::int64_t>(1, pictures.num_training() / config.vit_batch_size);
}

// Which pictures a step reads: each epoch has an order of its own, whose rest is left out.
at::Tensor batch_index(const Config& config, const Pictures& pictures, const Job& job,
                       std::int64_t step) {
  const std::int64_t steps = steps_per_epoch(config, pictures);
  const std::int64_t size = std::min(config.vit_batch_size, pictures.num_training());
  at::Tensor index = at::empty({size}, at::kLong);
  auto* out = index.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = static_cast<std::int64_t>(
        data::permuted(job.seed, static_cast<std::uint64_t>(1 + step / steps),
                       static_cast<std::uint64_t>(pictures.num_training()),
                       static_cast<std::uint64_t>(step % steps * size + i)));
  }
  return index;
}

// The paper's: AdamW (0.9, 0.999), clipping at 1, a cosine to 0.
train::FitOptions fit_options(const Config& config, const Job& job, const nn::Encoder& encoder) {
  train::FitOptions options;
  options.schedule = {
      .kind = train::ScheduleKind::kCosine,
      .learning_rate = job.learning_rate,
      .steps = job.num_steps,
      .warmup_steps = std::llround(config.vit_warmup_share * static_cast<double>(job.num_steps))};
  options.optimizer.beta2 = 0.999;
  options.weight_decay = config.vit_weight_decay;
  for (const auto& parameter : encoder.parameters().list()) {
    if (parameter.value->dim() < 2) {
      options.no_decay.push_back(parameter.spec.name);
    }
  }
  options.clip_norm = config.clip_norm;
  options.seed = job.seed;
  return options;
}

void validate(const nn::Encoder& encoder, const Pictures& pictures, Outcome& outcome) {
  const at::NoGradGuard no_grad;
  const train::Batch batch = pictures.validation();
  const at::Tensor logits = encoder.forward({{}, {}, {}, batch.rows});
  outcome.loss = at::cross_entropy_loss(logits, batch.labels).item<double>();
  const at::Tensor is_right = logits.argmax(1).eq(batch.labels);
  outcome.scalars.emplace_back("validation accuracy",
                               is_right.to(at::kDouble).mean().item<double>());
}

// A RunJob.
Outcome run_picture_job(const Config& config, const Pictures& pictures, const Job& job,
                        const std::function<void()>& on_step) {
  at::set_num_threads(1);  // of the calling thread
  const at::ScalarType dtype = config.dtype == "float64" ? at::kDouble : at::kFloat;
  nn::HfEncoder model = lib::new_vit(
      vit_config(config, job.method, pictures.height(), pictures.width(), pictures.num_labels()),
      job.seed, dtype);
  train::FitCallbacks callbacks;
  callbacks.batch = [&](std::int64_t step) {
    return pictures.training(batch_index(config, pictures, job, step));
  };
  callbacks.on_step = [&](const train::StepRecord&) {
    on_step();
    return train::StepReply();
  };
  Outcome outcome;
  try {
    const train::History history =
        train::fit(model, fit_options(config, job, *model.encoder), callbacks);
    outcome.series.emplace_back("training", curve(history, steps_per_epoch(config, pictures)));
    validate(*model.encoder, pictures, outcome);
  } catch (const ValueError&) {  // the loss or a gradient was not finite
    outcome.loss = std::numeric_limits<double>::quiet_NaN();
  }
  return outcome;
}

// Of tensors that are trained.
double num_parameters(const lib::VitConfig& config) {
  double total = 0.0;
  for (const nn::ParameterSpec& spec : lib::parameter_specs(config)) {
    if (spec.role != nn::Role::kPositionEmbed) {
      total += std::accumulate(spec.shape.begin(), spec.shape.end(), 1.0,
                               [](double product, std::int64_t extent) {
                                 return product * static_cast<double>(extent);
                               });
    }
  }
  return total;
}

// What a series of fresh seeds has besides losses.
double mean_accuracy(const Config& config, Run& run, const Series& series) {
  double sum = 0.0;
  for (const std::uint64_t seed : config.seeds) {
    sum += run.find(fresh_name(config, series, seed) + ": validation accuracy").value_or(NAN);
  }
  return sum / static_cast<double>(config.seeds.size());
}

}  // namespace

lib::VitConfig vit_config(const Config& config, const std::string& method, std::int64_t height,
                          std::int64_t width, std::int64_t num_labels) {
  lib::VitConfig vit;
  vit.patches = {1, height, width, config.vit_patch, config.vit_patch};
  vit.num_labels = num_labels;
  vit.model.num_layers = config.vit_layers;
  vit.model.d_model = config.vit_width;
  vit.model.num_heads = config.vit_heads;
  vit.model.d_ff = config.vit_ffn;
  vit.model.variant = method == kPlain ? lib::Variant::kBase : lib::Variant::kMultiwayDynamic;
  vit.model.pre_post_norm = lib::PrePostNorm::kEq10;
  return vit;
}

void table9(const Config& config, Run& run, const std::string& images) {
  const auto pictures = std::make_shared<const Pictures>(
      images, config.vit_half_pixel, config.dtype == "float64" ? at::kDouble : at::kFloat);
  Config own = config;
  own.num_layers = config.vit_layers;
  own.d_model = config.vit_width;
  own.seeds = config.vit_seeds;
  own.num_steps = config.vit_epochs * steps_per_epoch(config, *pictures);
  Trainer trainer(own, run, [&own, pictures] {
    return RunJob([&own, pictures](const Job& job, const std::function<void()>& on_step) {
      return run_picture_job(own, *pictures, job, on_step);
    });
  });
  const Series plain = trainer.usual(kPlain);
  const Series dense = trainer.usual(kDense);
  trainer.sweep({plain, dense});
  const Gap gap = trainer.record_gap(dense, plain);
  run.claim("C17", gap.mean + 2.0 * gap.standard_error);
  for (const Series& series : {plain, dense}) {
    run.scalar("mean accuracy " + series.method, mean_accuracy(own, run, series));
    run.scalar("parameters of " + series.method,
               num_parameters(vit_config(own, series.method, pictures->height(), pictures->width(),
                                         pictures->num_labels())));
  }
}

void published_table9(Run& run) {
  // ViT-S/16, MUDDViT-S/16, ViT-M/16 on ImageNet-1k.
  const std::vector<double> width = {384.0, 384.0, 512.0};
  const std::vector<double> heads = {6.0, 6.0, 8.0};
  const std::vector<double> relative_size = {1.0, 1.007, 1.72};
  run.series("Table 8 as published", {{"layers", {12.0, 12.0, 12.0}},
                                      {"width", width},
                                      {"mlp", {1536.0, 1536.0, 2048.0}},
                                      {"heads", heads}});
  std::vector<double> parameters;
  for (std::size_t i = 0; i < width.size(); ++i) {
    lib::VitConfig model;
    model.patches = {3, 224, 224, 16, 16};
    model.num_labels = 1000;
    model.model.num_layers = 12;
    model.model.d_model = static_cast<std::int64_t>(width[i]);
    model.model.num_heads = static_cast<std::int64_t>(heads[i]);
    model.model.d_ff = 4 * model.model.d_model;
    model.model.variant = i == 1 ? lib::Variant::kMultiwayDynamic : lib::Variant::kBase;
    model.model.pre_post_norm = lib::PrePostNorm::kEq10;
    parameters.push_back(num_parameters(model));
  }
  std::vector<double> counted;
  counted.reserve(parameters.size());
  for (const double count : parameters) {
    counted.push_back(count / parameters.front());
  }
  run.series("Table 9 as published", {{"loss_90_epochs", {0.993, 0.871, 0.890}},
                                      {"top1_90_epochs", {53.4, 56.9, 55.2}},
                                      {"top1_300_epochs", {76.0, 78.1, 77.9}},
                                      {"relative_size", relative_size},
                                      {"counted_parameters", parameters},
                                      {"counted_relative_size", counted}});
  constexpr std::int64_t kPatches = 196;
  run.scalar("Table 9 relative size of MUDDViT-S/16 by the formula of Table 1",
             1.0 + lib::complexity(12, 384, kPatches).param_ratio);
}

}  // namespace paperlab::experiments::mudd
